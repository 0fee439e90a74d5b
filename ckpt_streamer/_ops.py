"""Loads the library of ops. Nothing else in the package touches ``torch.ops``."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from ckpt_streamer._op_types import Ops

if TYPE_CHECKING:
    from ckpt_streamer._budget import MemoryBudget


class WindowHandle(Protocol):
    """What ``csrc/ops/window_handle.h`` offers."""

    def add(self, tensors: Sequence[torch.Tensor]) -> object: ...
    def plan(self) -> None: ...
    def order(self) -> torch.Tensor: ...
    def window_ends(self) -> torch.Tensor: ...
    def enter(self, window: int) -> int: ...
    def admit(self, position: int) -> None: ...
    def unmapped_bytes(self) -> int: ...
    def covered_bytes(self) -> int: ...
    def convert(self, tensor: torch.Tensor) -> torch.Tensor: ...
    def check_unchanged(self) -> None: ...
    def release(self) -> None: ...
    def close(self, yielded_count: int) -> None: ...
    def stats(self, yielded_count: int) -> dict[str, int]: ...
    def not_held(self) -> str: ...
    def notes(self) -> str: ...


class SlotList(Protocol):
    """What ``csrc/ops/slot_list.h`` offers."""

    def __len__(self) -> int: ...
    def names(self, begin: int, end: int) -> str | list[str]: ...
    def keys(self, begin: int, end: int) -> str | list[str] | torch.Tensor: ...
    def containers(self, begin: int, end: int) -> torch.Tensor: ...
    def describe(
        self, begin: int, end: int
    ) -> tuple[str | list[str], torch.Tensor, torch.Tensor]: ...
    def tensors(self, begin: int, end: int) -> list[torch.Tensor]: ...
    def converted(
        self, begin: int, end: int, windows: WindowHandle
    ) -> tuple[list[torch.Tensor], list[bool]]: ...
    def matching(self, patterns: Sequence[str]) -> SlotList: ...
    def at(self, positions: torch.Tensor) -> SlotList: ...
    def windows(
        self,
        memory_limit_bytes: int,
        dtype: torch.dtype | None,
        drop_page_cache: bool,
        budget: MemoryBudget | None,
    ) -> WindowHandle: ...


class Checkpoint(Protocol):
    """What ``csrc/ops/checkpoint_handle.h`` offers."""

    def paths(self) -> list[str]: ...
    def texts(self) -> list[tuple[str, str]]: ...
    def storage_bytes(self) -> int: ...
    def root(self) -> int: ...
    def values(self, nodes: Sequence[int]) -> list[Any]: ...
    def items(self, node: int) -> torch.Tensor: ...
    def entry_values(self, node: int) -> torch.Tensor: ...
    def children(
        self, nodes: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...
    def kinds(self, nodes: Sequence[int]) -> torch.Tensor: ...
    def keys(self, node: int) -> str | list[str] | torch.Tensor: ...
    def parts(self, node: int) -> list[int]: ...
    def tensor(self, name: str) -> torch.Tensor | None: ...
    def slice(self, name: str, begin: int, end: int) -> torch.Tensor | None: ...
    def leaves(self) -> tuple[str | list[str], torch.Tensor] | None: ...
    def slots(self) -> SlotList: ...
    def slots_under(self, node: int) -> SlotList: ...
    def lookups(self) -> WindowHandle: ...


class BudgetShare(Protocol):
    """What ``csrc/ops/memory_budget.h`` offers."""

    def bytes(self) -> int: ...
    def close(self) -> None: ...


class Writer(Protocol):
    """What ``csrc/ops/writer_handle.h`` offers."""

    def write(self, name: str, tensor: torch.Tensor) -> None: ...
    def _write_from(self, begin: int, tensors: Sequence[torch.Tensor]) -> None: ...
    def size_bytes(self) -> int: ...
    def bytes_written(self) -> int: ...
    def finish(self) -> list[str]: ...
    def close(self) -> None: ...


def library_path() -> str:
    """Return the path of the shared library: the ops, and the C++ interface.

    A C++ program makes ``torch.ops.ckpt_streamer`` available by linking it or by
    loading it (``dlopen``); it needs libtorch and no Python.
    """
    return str(Path(__file__).parent / "lib/libckpt_streamer.so")


def _load_library() -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ImportError(
            "ckpt_streamer does not support free-threaded builds of Python: its "
            "iterators rely on the global interpreter lock; use the ordinary build of "
            "the same version"
        )
    # torch's C++ interface changes with each minor release; another one's
    # library may crash instead of failing to load.
    note = Path(library_path()).with_name("compiled_for_torch.txt")
    compiled_for = note.read_text()
    if torch.__version__.split(".")[:2] != compiled_for.split(".")[:2]:
        raise ImportError(
            f"ckpt_streamer was compiled for torch {compiled_for}, and this is "
            f"torch {torch.__version__}; install ckpt_streamer again, without "
            "pip's cache: pip install --no-cache-dir --force-reinstall --no-deps"
        )
    torch.ops.load_library(library_path())


def _refuse_tracing() -> None:
    """A graph would hold what is in the file while it is traced, for ever.

    torch.compile breaks the graph at such a call; torch.export raises the text.
    """

    def refuse(*_args: Any, **_keywords: Any) -> Any:
        from torch._subclasses.fake_tensor import (  # noqa: PLC0415  (slow)
            UnsupportedOperatorException,
        )

        text: Any = (
            "ops of ckpt_streamer that read or write files, or make streams, are not "
            "traced, as the graph would hold what the file has now: call them outside "
            "of it"
        )
        raise UnsupportedOperatorException(text)

    for name in (
        *("open", "open.paths", "stream", "load_into", "load_into.paths"),
        *("create", "_create"),
    ):
        torch.library.register_fake(f"ckpt_streamer::{name}", refuse)


_load_library()
_refuse_tracing()

# The same object, with its types: `ckpt_streamer.ops.open` completes in editors.
ops = cast("Ops", torch.ops.ckpt_streamer)


def default_memory_limit() -> tuple[int, str]:
    """Return the limit, in bytes, for those who name none, and why it is that."""
    limit_bytes, explanation = torch.ops.ckpt_streamer._default_memory_limit()
    return limit_bytes, explanation


def fault_extent_bytes() -> int:
    """The most that touching one byte of a mapped file can map."""
    extent_bytes: int = torch.ops.ckpt_streamer._fault_extent_bytes()
    return extent_bytes


def windows(
    memory_limit_bytes: int, drop_page_cache: bool, budget: MemoryBudget | None
) -> WindowHandle:
    """Make a handle that cuts tensors in memory into windows within the limit."""
    handle = torch.ops.ckpt_streamer._windows(
        memory_limit_bytes, drop_page_cache, budget
    )
    return cast("WindowHandle", handle)


def budget_share(budget: MemoryBudget, most_bytes: int) -> BudgetShare:
    """Take a part of a budget, until it is closed."""
    share = torch.classes.ckpt_streamer._BudgetShare(budget, most_bytes)
    return cast("BudgetShare", share)


def open_checkpoint(
    paths: Sequence[str],
    is_list: bool,
    memory_limit_bytes: int,
    dtype: torch.dtype | None,
    verify: bool,
    drop_page_cache: bool,
    budget: MemoryBudget | None,
) -> Checkpoint:
    """Open one path, or a list of them that makes one stream."""
    opened = torch.ops.ckpt_streamer._open(
        paths, is_list, memory_limit_bytes, dtype, verify, drop_page_cache, budget
    )
    return cast("Checkpoint", opened)


def jit_load(path: str, device: torch.device | None, verify: bool) -> Any:
    """Load a TorchScript archive; the module is not wrapped for Python yet."""
    return torch.ops.ckpt_streamer._jit_load(path, device, verify)


def texts(given: str | list[str]) -> list[str]:
    """The texts of a lot, at least one: the op joins them if it can."""
    return given.split("\n") if isinstance(given, str) else given


def add(handle: WindowHandle, tensors: Sequence[torch.Tensor]) -> None:
    """Add tensors to a handle that is not planned yet."""
    with torch._C.DisableTorchFunction():  # a subclass may refuse to be an argument
        handle.add(tensors)


def copy_(
    destination: torch.Tensor,
    source: torch.Tensor,
    limit_bytes: int,
    drop_page_cache: bool,
) -> None:
    """``destination.copy_(source)``; a source above the limit is read in pieces."""
    torch.ops.ckpt_streamer.copy_(
        destination, source, limit_bytes, drop_page_cache=drop_page_cache
    )


def create(
    path: str,
    tensors: dict[str, torch.Tensor],
    memory_limit_bytes: int,
    **options: Any,
) -> Writer:
    """Begin a checkpoint of tensors like these."""
    with torch._C.DisableTorchFunction():  # a subclass may refuse to be an argument
        made = torch.ops.ckpt_streamer.create(
            path, tensors, memory_limit_bytes, **options
        )
    return cast("Writer", made)


def without_data(
    slots: SlotList, names: Sequence[str], path: str
) -> list[torch.Tensor]:
    """Make the tensors of a checkpoint on the meta device; their data is not read.

    Raises:
        NotImplementedError: One is not strided; ``path`` is the file that is to
            hold it.
    """
    made: list[torch.Tensor]
    made = torch.ops.ckpt_streamer._without_data(slots, names, path)
    return made


def create_from_slots(slots: SlotList, names: Sequence[str], *options: Any) -> Writer:
    """Begin a checkpoint of the tensors of another one."""
    return cast("Writer", torch.ops.ckpt_streamer._create(slots, names, *options))
