"""Streaming a state_dict, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ckpt_streamer import _ops
from ckpt_streamer._arguments import (
    Bounds,
    Path,
    bounds_of,
    check_cpu_page_size,
    check_dtype,
    is_path,
)
from ckpt_streamer._budget import MemoryBudget
from ckpt_streamer._checkpoint import Checkpoint, open_within
from ckpt_streamer._file_stream import PlacedState, Select, selected
from ckpt_streamer._tree import MappingNode, OpaqueObject, SequenceNode
from ckpt_streamer._windows import State, TensorStream

StreamItem = tuple[Any, Any, Tensor]

_PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


_CONTAINERS = (Mapping, list, tuple, SequenceNode)

# A tensor is looked at several times on its way into a window, and out of it:
# lots whose objects fit a cache take half the time.
_LOT = 2048


class Slots:
    """Every (container, key) of a tree that holds a tensor, in traversal order.

    Three lists of equal length; ``containers[i][keys[i]] is tensors[i]``. All
    tensors, in this order, are added to a handle on the way.
    """

    def __init__(self, handle: _ops.WindowHandle) -> None:
        self.containers: list[Any] = []
        self.keys: list[Any] = []
        self.tensors: list[Any] = []
        self._handle = handle
        self._added_count = 0

    def append(self, container: Any, key: Any, tensor: Tensor) -> None:
        self.containers.append(container)
        self.keys.append(key)
        self.tensors.append(tensor)
        if len(self.tensors) - self._added_count >= _LOT:
            self.flush()

    def take_head(self, container: Any, keys: list[Any], values: list[Any]) -> int:
        """Append the head of the entries that is plain tensors, lot by lot.

        Returns its length. The lists are the callee's from now on.
        """
        self.flush()
        count = len(values)
        for begin in range(0, count, _LOT):
            lot = values[begin : begin + _LOT]
            if not _PLAIN_TENSORS.issuperset(map(type, lot)):
                count = begin
                break
            _ops.add(self._handle, lot)
        if count and not self.tensors and count == len(values):
            self.keys, self.tensors = keys, values
        else:
            self.keys += islice(keys, count)
            self.tensors += islice(values, count)
        self.containers += repeat(container, count)
        self._added_count = len(self.tensors)
        return count

    def flush(self) -> None:
        """Add the tensors that were appended to the handle."""
        if self._added_count < len(self.tensors):
            _ops.add(self._handle, self.tensors[self._added_count :])
            self._added_count = len(self.tensors)

    def permute(self, order: list[int]) -> None:
        """Reorder the slots; ``order[i]`` is the present index of the i-th."""
        take = itemgetter(*order)  # of two or more: one item is always in order
        self.containers = list(take(self.containers))
        self.keys = list(take(self.keys))
        self.tensors = list(take(self.tensors))


def walk(root: Any, handle: _ops.WindowHandle) -> Slots:
    """List the tensors in nested mappings, lists, tuples and namedtuples.

    Every container is walked once, at its first place; cycles are fine. Other
    leaves (numbers, strings, sets, modules, ...) are passed over. The tensors
    are added to the handle.
    """
    slots = Slots(handle)
    # Holding the containers keeps an id from being used again for another one.
    seen: dict[int, Any] = {id(root): root}
    stack = [_entries(root, slots)]
    while stack:
        for container, key, value in stack[-1]:
            if isinstance(value, Tensor):
                slots.append(container, key, value)
            elif isinstance(value, _CONTAINERS) and id(value) not in seen:
                seen[id(value)] = value
                stack.append(_entries(value, slots))
                break
        else:
            stack.pop()
    slots.flush()
    return slots


def _entries(container: Any, slots: Slots) -> Iterator[tuple[Any, Any, Any]]:
    """Iterate over a container's (container, key, value).

    A head that holds nothing but tensors goes into the slots at once, which
    takes a tenth of the time.
    """
    if isinstance(container, Mapping):
        keys, values = list(container.keys()), list(container.values())
        if len(keys) != len(values):  # a multidict, or one that changes by itself
            items = list(container.items())
            keys, values = [key for key, _ in items], [value for _, value in items]
    else:
        values = list(container)
        keys = list(range(len(values)))
    rest = zip(repeat(container), keys, values)
    taken_count = slots.take_head(container, keys, values)
    if taken_count == len(values):
        return iter(())
    return islice(rest, taken_count, None)


class _MemoryState(State):
    """Of a state_dict that is in memory."""

    def __init__(self, root: Any, bounds: Bounds) -> None:
        handle = _ops.windows(
            bounds.memory_limit_bytes, bounds.drop_page_cache, bounds.budget
        )
        self._slots = walk(root, handle)
        handle.plan()
        order = handle.order().tolist()
        if order:
            self._slots.permute(order)
        super().__init__(handle, len(self._slots.tensors))

    def lots(self, _: int, begin: int, end: int) -> Iterator[None]:
        """Put out a window's slots, and forget them here, lot by lot.

        A tensor that the caller replaces must not live on past its lot.
        """
        slots = self._slots
        while begin < end and not self.is_closed:
            lot = slice(begin, min(begin + _LOT, end))
            containers, keys = slots.containers[lot], slots.keys[lot]
            tensors = slots.tensors[lot]
            slots.keys[lot] = slots.tensors[lot] = [None] * len(tensors)
            self.put_out(lot.stop, tensors, containers, keys)
            yield
            begin = lot.stop

    def close(self) -> None:
        super().close()
        self._slots.tensors.clear()
        self._slots.containers.clear()
        self._slots.keys.clear()


class Stream(TensorStream[StreamItem]):
    """An iterator of ``(obj, key, val)`` that keeps file pages under a limit.

    Made by :func:`stream`. ``val`` is a tensor and ``obj[key]`` the same one: of a
    tree in memory the very object, of a file a twin that shares its storage
    while either lives.

    At most ``memory_limit_mb`` of the streamed tensors' file pages are in
    physical memory at any instant, as long as no single tensor is larger. They
    all go back when the iteration ends, on :meth:`close`, at the end of a
    ``with`` block, and when the stream is dropped, as a ``for`` loop does with
    a stream it was given directly, also on ``break`` or an exception. Tensors
    that were kept stay valid: their bytes are read from the file again when
    touched, and count against no limit once the stream is closed.

    For one thread at a time: where two ask for a tensor at once, a RuntimeError
    comes to one of them at least. :meth:`release`, :meth:`close` and :meth:`stats`
    may come from any. It cannot be pickled or copied.
    """

    _MADE_BY = "stream()"


def stream(
    state_dict: Mapping[Any, Any]
    | Sequence[Any]
    | Path
    | Sequence[Path]
    | Checkpoint
    | OpaqueObject,
    memory_limit_mb: int | None = 1024,
    cpu_page_size: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    drop_page_cache: bool = False,
    budget: MemoryBudget | None = None,
) -> Stream:
    """Iterate over the tensors of a checkpoint in bounded physical memory.

    Meant for a checkpoint file by its path, which is opened in milliseconds and
    of which nothing is executed (see :func:`open`); and for tensors that are
    views of a memory-mapped file, as ``torch.load(path, map_location="cpu",
    mmap=True)`` makes them. Tensors in other memory (heap, shared, another
    device) are yielded all the same, and their memory is left alone. Pages that
    were written to are never dropped.

    Tensors come in the order of their storages' addresses, then of their offsets
    in it, then of the tree: for one file, in file order; for several, file by
    file. Those without memory here (empty, meta, sparse, other devices) come
    first.

    Args:
        state_dict: Mappings, lists, tuples and namedtuples in any nesting, with
            tensors at the leaves; others are passed over. Each (container, key)
            is yielded once, a tied tensor under each of its keys. A container
            reached twice is walked once. The keys of sequences are indices. It
            is walked at the call: later changes of the containers do not show.
            Or the path of a checkpoint file, or a list of paths; or a
            :class:`Checkpoint`, or what is in one. There, the tensors inside
            objects come as well, and the containers are read-only.
        memory_limit_mb: The most of the tensors' file pages to hold in physical
            memory, in MiB; None for what fits the machine, as :func:`open`
            chooses it. For a :class:`Checkpoint`, its own limit holds as well.
        cpu_page_size: Accepted for compatibility and not used: the system knows
            its page size.
        dtype: What floating-point tensors of a checkpoint file are converted to on
            their way: see :func:`open`. ``obj[key]`` is as it is in the file. Of a
            :class:`Checkpoint`, its own by default.
        select: Which tensors of a checkpoint file to stream: see :func:`open`.
            Names are those of the whole checkpoint, also for a part of one.
        drop_page_cache: Whether the limit is for the kernel's copy of the files as
            well: see :func:`open`. A :class:`Checkpoint`'s own holds, too.
        budget: A limit shared with other streams: see :func:`open`. A
            :class:`Checkpoint`'s own by default; it cannot be another one.

    Returns:
        A :class:`Stream` of ``(obj, key, val)``: ``val`` is the tensor and
        ``obj[key] is val``. From a file, ``obj[key]`` is another tensor on the
        same storage, as long as one of them lives; afterwards, on the same
        memory. A file that is one tensor has the key ``''``.

    Raises:
        TypeError: ``state_dict`` is no container, a number is no ``int``, or
            ``dtype`` or ``select`` is not what it says, or given for tensors in
            memory.
        ValueError: ``memory_limit_mb`` or ``cpu_page_size`` is below 1, ``dtype`` is
            no floating-point one, the checkpoint is closed, or has another budget.
            While iterating: ``budget`` has no room left.
        OSError, ValueError, NotImplementedError: As :func:`open`, for a path.

    Example:
        >>> weights = {"weight": torch.ones(2, 2), "step": 7}
        >>> for obj, key, val in stream(weights, memory_limit_mb=64):
        ...     print(key, val.shape, obj[key] is val)
        weight torch.Size([2, 2]) True
    """
    bounds = bounds_of(memory_limit_mb, drop_page_cache, budget)
    check_cpu_page_size(cpu_page_size)
    check_dtype(dtype)
    if is_path(state_dict):
        state_dict = open_within(state_dict, bounds, dtype, select)
        dtype = select = None
    if isinstance(state_dict, Checkpoint):
        checkpoint = state_dict
        bounds = bounds.within(checkpoint.tree.bounds)
        slots = selected(checkpoint.slots, select)
        dtype = dtype or checkpoint.dtype
        return Stream.of(PlacedState(checkpoint.tree, slots, bounds, dtype))
    if isinstance(state_dict, (MappingNode, SequenceNode, OpaqueObject)):
        tree = state_dict.tree
        bounds = bounds.within(tree.bounds)
        slots = selected(tree.handle.slots_under(state_dict.node), select)
        return Stream.of(PlacedState(tree, slots, bounds, dtype))
    if not isinstance(state_dict, _CONTAINERS):
        raise TypeError(
            f"state_dict is of type {type(state_dict).__name__}, expected a "
            "mapping, list or tuple of tensors, or the path of a checkpoint file"
        )
    for name, value in (("dtype", dtype), ("select", select)):
        if value is not None:
            raise TypeError(
                f"{name} is {value!r}, and state_dict is in memory; expected None, or "
                "the path of a checkpoint file"
            )
    return Stream.of(_MemoryState(state_dict, bounds))
