"""Loads the library of ops. Nothing else in the package touches ``torch.ops``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import torch

_LOT = 2048


class WindowHandle(Protocol):
    """What ``csrc/ops/window_handle.h`` offers."""

    def add(self, tensors: Sequence[torch.Tensor]) -> None: ...
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


torch.ops.load_library(library_path())


def plan(tensors: Sequence[torch.Tensor], memory_limit_bytes: int) -> WindowHandle:
    """Cut tensors in memory into windows that each keep the limit."""
    handle = cast("WindowHandle", torch.ops.ckpt_streamer._windows(memory_limit_bytes))
    # Each tensor is looked at several times on its way: lots that fit a cache
    # take half the time.
    with torch._C.DisableTorchFunction():  # a subclass may refuse to be an argument
        for begin in range(0, len(tensors), _LOT):
            handle.add(tensors[begin : begin + _LOT])
    handle.plan()
    return handle
