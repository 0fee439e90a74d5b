"""Loads the library of ops. Nothing else in the package touches ``torch.ops``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import torch


class WindowHandle(Protocol):
    """What ``csrc/ops/window_handle.h`` offers."""

    def add(self, tensors: Sequence[torch.Tensor]) -> object: ...
    def plan(self) -> None: ...
    def order(self) -> torch.Tensor: ...
    def window_ends(self) -> torch.Tensor: ...
    def enter(self, window: int) -> None: ...
    def admit(self, position: int) -> None: ...
    def release(self) -> None: ...
    def close(self, yielded_count: int) -> None: ...
    def figures(self, yielded_count: int) -> dict[str, int]: ...


def library_path() -> str:
    """Return the path of the shared object that registers the ops.

    A C++ program makes ``torch.ops.ckpt_streamer`` available by loading it
    (``dlopen``); it needs libtorch and no Python.
    """
    return str(Path(__file__).parent / "_C.so")


def _load_library() -> None:
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


_load_library()


def windows(memory_limit_bytes: int) -> WindowHandle:
    """Make a handle that cuts tensors in memory into windows within the limit."""
    return cast("WindowHandle", torch.ops.ckpt_streamer._windows(memory_limit_bytes))


def add(handle: WindowHandle, tensors: Sequence[torch.Tensor]) -> None:
    """Add tensors to a handle that is not planned yet."""
    with torch._C.DisableTorchFunction():  # a subclass may refuse to be an argument
        handle.add(tensors)
