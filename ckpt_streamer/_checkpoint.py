"""Checkpoint files, opened without reading or executing what is in them."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from collections.abc import Iterator, KeysView, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn
from weakref import WeakSet

import torch
from torch import Tensor
from typing_extensions import Self

from ckpt_streamer import _ops
from ckpt_streamer._arguments import (
    Bounds,
    Path,
    bounds_of,
    check_dtype,
    paths_of,
)
from ckpt_streamer._budget import MemoryBudget
from ckpt_streamer._file_stream import (
    Figures,
    NamedState,
    NamedStream,
    Select,
    lots_of,
    names_of,
    selected,
)
from ckpt_streamer._stats import StreamStats
from ckpt_streamer._tree import Tree


class Checkpoint:
    """An open checkpoint: its tensors as a stream, and its values as a tree.

    Made by :func:`open`. Iterating over it yields ``(name, tensor)`` for each
    tensor, in the order of the file; the name is the keys that lead to it,
    joined by ``.``. It can be iterated over again, also while an iteration is
    under way. ``len(checkpoint)`` is the number of tensors.

    The tree is that of what the file holds, as ``torch.load`` would return it:
    :attr:`root`, ``checkpoint[key]``, :meth:`keys`, :meth:`get`. Its containers
    are read-only mappings and sequences whose values are made when they are
    asked for: opening costs nothing for each, and a look-up costs one tensor.
    What would have been made by a call is an :class:`OpaqueObject`.

    Tensors are views of the file. They share storages as the file says, as long
    as one of the tensors lives, and outlive the checkpoint. Writing to one is
    copy-on-write and never reaches the file.

    Each iteration keeps at most the limit of the file's pages in physical
    memory, as :class:`Stream` does; so do look-ups together, an iteration over
    ``items()`` and ``values()`` of a mapping included: when what was looked up is
    of more than the limit, the pages of what came before go. All pages go back
    on :meth:`close`, at the end of a ``with`` block, and by :meth:`release`.

    Not thread-safe. It cannot be pickled or copied.
    """

    def __init__(
        self,
        handle: _ops.Checkpoint,
        bounds: Bounds,
        dtype: torch.dtype | None,
        select: Select | None,
    ) -> None:
        self.paths: tuple[str, ...] = tuple(handle.paths())
        """The files, in the order of the stream."""
        self.memory_limit_bytes = bounds.memory_limit_bytes
        """The limit of each iteration, and of look-ups, in bytes."""
        self.dtype = dtype
        """What floating-point tensors are converted to on their way, or None."""
        self._tree = Tree(handle, bounds)
        slots = handle.slots()
        self._tensor_count = len(slots)
        self._slots = selected(slots, select)
        self._length = len(self._slots)
        self._storage_bytes = handle.storage_bytes()
        self._streams: WeakSet[NamedState] = WeakSet()
        self._ended = Figures(self._length, bounds.memory_limit_bytes)
        self._final_stats: StreamStats | None = None

    @property
    def tree(self) -> Tree:
        """For this package alone."""
        return self._tree

    @property
    def slots(self) -> _ops.SlotList:
        """For this package alone."""
        _ = self._tree.handle  # an error once closed
        return self._slots

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.iterate(self.slots)

    def iterate(self, slots: _ops.SlotList) -> Iterator[tuple[str, Tensor]]:
        """For this package alone: iterate over some of the slots."""
        state = NamedState(slots, self.tree.bounds, self.dtype, self._ended)
        self._streams.add(state)
        return NamedStream.of(state)

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return True

    @cached_property
    def root(self) -> Any:
        """What the file holds: most often a mapping.

        Of several files, or a format of names and tensors alone, a mapping of
        the names to the tensors.
        """
        return self._tree.value(self._tree.handle.root())

    def __getitem__(self, key: Any) -> Any:
        """Look up in the root; a root that is one tensor has the key ``''``.

        Raises:
            KeyError, IndexError: As the root does.
            ValueError: Several files have a tensor of that name, or the
                checkpoint is closed.
        """
        _ = self._tree.handle  # an error once closed
        root = self.root
        return {"": root}[key] if isinstance(root, Tensor) else root[key]

    def __contains__(self, key: object) -> bool:
        root = self.root
        return key == "" if isinstance(root, Tensor) else key in root

    def keys(self) -> KeysView[Any]:
        """The keys of the root.

        Raises:
            TypeError: It is no mapping.
        """
        root = {"": self.root} if isinstance(self.root, Tensor) else self.root
        if not isinstance(root, Mapping):
            raise TypeError(f"{self._tree.name}: holds {root!r}, expected a mapping")
        return root.keys()

    def get(self, key: Any, default: Any = None) -> Any:
        """``self[key]``, or the default if the root has no such key."""
        try:
            return self[key]
        except (KeyError, IndexError):
            return default

    @property
    def names(self) -> list[str]:
        """The dotted names of all tensors, in the order of the stream.

        Made at each call: about 0.1 microseconds a name.
        """
        slots = self.slots
        return [name for lot in lots_of(self._length) for name in names_of(slots, *lot)]

    def tensor(self, name: str) -> Tensor:
        """Make the tensor of a dotted name, selected or not.

        In :attr:`dtype`, if there is one, and then in memory of its own; else a
        view of the file, of which ``tensor[begin:end]`` reads that part alone.

        Raises:
            KeyError: There is none.
            ValueError: There are several, or the checkpoint is closed.
        """
        return self._tree.tensor(name)

    def slice(self, name: str, begin: int, end: int) -> Tensor:
        """Make ``tensor(name)[begin:end]``, reading and converting only that part.

        The limit holds for it also where the tensor is larger.

        Raises:
            IndexError: Not 0 <= begin <= end <= the size of its first dimension.
            TypeError: ``begin`` or ``end`` is no integer.
            KeyError: There is no tensor of that name.
            ValueError: There are several, it has no dimensions, or the checkpoint
                is closed.
        """
        return self._tree.slice(name, begin, end)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the checkpoint holds beside its tensors, by dotted name.

        The numbers, texts, arrays, objects, sets and plain tuples of the tree,
        then the texts that safetensors files and indexes of shards keep. Of two
        of one name it has the first.
        """
        metadata: dict[str, Any] = {}
        found = self._tree.handle.leaves()
        if found is not None:
            names, nodes = found[0], found[1].tolist()
            distinct = list(dict.fromkeys(nodes))
            values = dict(zip(distinct, self._tree.values(distinct), strict=True))
            for name, node in zip(_ops.texts(names), nodes, strict=True):
                metadata.setdefault(name, values[node])
        for name, text in self._tree.handle.texts():
            metadata.setdefault(name, text)
        return MappingProxyType(metadata)

    def release(self) -> None:
        """Give back all pages now; iterations go on. Idempotent.

        Tensors stay valid.
        """
        for state in list(self._streams):
            state.release()
        self._tree.handle.lookups().release()

    def close(self) -> None:
        """End all iterations and give back all pages. Idempotent.

        Tensors and values that were made stay valid; new ones are no longer
        made.
        """
        if not self._tree.is_closed:
            for state in list(self._streams):
                state.close()
            lookups = self._tree.handle.lookups()
            lookups.close(0)
            self._final_stats = self.stats()
            self._tree.close()
            del self._slots

    def stats(self) -> StreamStats:
        """Return the figures of all iterations and look-ups so far.

        ``bytes_streamed`` is of iterations, each counted by itself.

        Cost: a look at the page tables of all tensors; after :meth:`close`, none.
        """
        if self._final_stats is not None:
            return self._final_stats
        figures = Figures(self._length, self.memory_limit_bytes)
        figures.add(self._ended.stats)
        for state in list(self._streams):
            if not state.is_closed:
                figures.add(state.stats())
        lookups = self._tree.handle.lookups()
        figures.add(
            StreamStats(
                tensors=self._length,
                **lookups.stats(0),
                not_held=lookups.not_held() or None,
                notes=lookups.notes() or None,
            )
        )
        return figures.stats

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Checkpoint cannot be pickled or copied: it stands for this process's "
            "memory; open the file again with open()"
        )

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        chosen = "" if self._length == self._tensor_count else f"{self._length} of "
        size = f"{chosen}{self._tensor_count} tensors, {readable(self._storage_bytes)}"
        if self._tree.is_closed:
            holds = "closed"
        else:
            holds = "one" if isinstance(self.root, Tensor) else repr(self.root)
        return f"<Checkpoint {self.paths[0]!r}{more}: {size}; {holds}>"


def open(
    path: Path | Sequence[Path],
    memory_limit_mb: int | None = 1024,
    *,
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    verify: bool = False,
    drop_page_cache: bool = False,
    budget: MemoryBudget | None = None,
) -> Checkpoint:
    """Open a checkpoint file without reading its tensors or executing anything.

    It is read in C++, whichever its format: ``torch.save``'s, old and new,
    TorchScript archives, safetensors, and the index of a sharded checkpoint,
    found by content, not by name. Nothing in a pickle is imported or called.

    Args:
        path: The file, or a list of files to be one stream, in that order.
        memory_limit_mb: The most of the files' pages to hold in physical memory,
            in MiB: in each iteration, and by look-ups. None for what fits: a quarter
            of the memory that is available at the moment, on the machine or in the
            tightest of the cgroups around the process, whichever is less, but no
            less than 16 and no more than 1024. A line of the logger
            ``ckpt_streamer`` at level INFO says which, and so does
            ``stats().memory_limit_bytes``.
        dtype: A floating-point dtype that floating-point tensors are converted to
            on their way, bit for bit as ``tensor.to(dtype)`` does it, by iterations
            and :meth:`Checkpoint.tensor`. A converted tensor owns its memory;
            those that are tied are converted once and stay tied. What is of
            another kind passes as it is. What is converted ahead, and memory that is
            kept for more, count in the limit: up to a third of it, 8 MiB at most.
            The tree stays as it is in the file.
        select: Which tensors the checkpoint streams, counts and names: a pattern
            of their dotted names as ``fnmatch.fnmatchcase`` takes it (``*`` takes
            dots as well), a list of patterns of which one must match, or a
            function of the name. No other tensor is made. The tree stays whole.
        verify: Hold each record of a zip archive against its checksum, before a
            tensor of it is made; what the tree is read from, now.
        drop_page_cache: Whether the limit is for the kernel's copy of the files as
            well, for which a container is charged: it is dropped behind the reader,
            and what is read ahead counts. Whoever reads the file next waits for the
            disk. What could not be dropped says ``stats().not_held``.
        budget: A :class:`MemoryBudget` that iterations and look-ups share with other
            streams: what is above is the most that each may have of it then, and
            ``memory_limit_mb=None`` all of it.

    Returns:
        A :class:`Checkpoint`.

    Raises:
        TypeError: ``path`` is no path, ``memory_limit_mb`` no ``int``, ``dtype`` no
            dtype, or ``select`` nothing to select by.
        FileNotFoundError, PermissionError, IsADirectoryError: As for any file.
        ValueError: ``memory_limit_mb`` is below 1, ``dtype`` is no floating-point
            one, the file is damaged, or a pattern matches no name. While
            iterating, and by look-ups: ``budget`` has no room left.
        NotImplementedError: The file is of a known kind that is not read, or has no
            checksums to ``verify``.
        RuntimeError: The system refuses to read or map it.

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/model.pt"
        >>> torch.save({"weight": torch.ones(2, 2), "step": 7}, path)
        >>> with open(path, memory_limit_mb=64) as checkpoint:
        ...     for name, tensor in checkpoint:
        ...         print(name, tuple(tensor.shape))
        ...     checkpoint["step"]
        weight (2, 2)
        7
    """
    bounds = bounds_of(memory_limit_mb, drop_page_cache, budget)
    return open_within(path, bounds, dtype, select, verify)


def open_within(
    path: Path | Sequence[Path],
    bounds: Bounds,
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    verify: bool = False,
) -> Checkpoint:
    """Do that, within bounds that are checked already."""
    check_dtype(dtype)
    paths = paths_of(path)
    is_list = isinstance(path, (list, tuple))
    try:
        handle = _ops.open_checkpoint(
            paths,
            is_list,
            bounds.memory_limit_bytes,
            dtype,
            bool(verify),
            bounds.drop_page_cache,
            bounds.budget,
        )
    except (RuntimeError, ValueError) as error:
        raise_os_error(error)
        raise
    return Checkpoint(handle, bounds, dtype, select)


def raise_os_error(error: Exception) -> None:
    """Raise what Python's own functions do where a path cannot be opened."""
    if isinstance(error, NotImplementedError):
        return
    path, found, text = str(error).rpartition(": is a directory")
    if found and isinstance(error, ValueError) and os.path.isdir(path):
        text = "is a directory" + text
        raise IsADirectoryError(errno.EISDIR, text, path) from error
    path, found, _ = str(error).rpartition(": cannot open: ")
    is_systems = isinstance(error, RuntimeError)  # no text of a file in it
    if found and is_systems and stat.S_ISREG(os.stat(path).st_mode):
        builtins.open(path, "rb").close()


def readable(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
