"""The arguments that several functions share, checked in one place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch

from ckpt_streamer import _ops
from ckpt_streamer._budget import MemoryBudget, check_budget

Path = str | os.PathLike[str]

_MIB = 1024 * 1024

_logger = logging.getLogger("ckpt_streamer")


@dataclass(frozen=True)
class Bounds:
    """What a stream has to keep within.

    Attributes:
        memory_limit_bytes: The most of the files' pages to hold at once.
        drop_page_cache: Whether the limit is for the kernel's copy of them as well.
        budget: Of which that is the most that a stream may have; or None.
    """

    memory_limit_bytes: int
    drop_page_cache: bool = False
    budget: MemoryBudget | None = None

    def within(self, other: Bounds) -> Bounds:
        """What keeps both.

        Raises:
            ValueError: They have different budgets.
        """
        budgets = [each for each in (self.budget, other.budget) if each is not None]
        if len(budgets) == 2 and budgets[0] is not budgets[1]:
            raise ValueError(
                "budget is another one than the checkpoint's own, expected the same "
                "or None"
            )
        return replace(
            self,
            memory_limit_bytes=min(self.memory_limit_bytes, other.memory_limit_bytes),
            drop_page_cache=self.drop_page_cache or other.drop_page_cache,
            budget=budgets[0] if budgets else None,
        )

    @contextmanager
    def taken(self) -> Iterator[Bounds]:
        """Hold half of what is left of the budget, for one call that reads it all.

        Raises:
            ValueError: Too little is left.
        """
        if self.budget is None:
            yield self
            return
        share = _ops.budget_share(self.budget, self.memory_limit_bytes)
        try:
            yield replace(self, memory_limit_bytes=share.bytes(), budget=None)
        finally:
            share.close()


def bounds_of(
    memory_limit_mb: int | None,
    drop_page_cache: bool = False,
    budget: MemoryBudget | None = None,
) -> Bounds:
    """Check the arguments and return what they say.

    Raises:
        TypeError, ValueError: As :func:`memory_limit_bytes_of`; ``budget`` is none.
    """
    check_budget(budget)
    if budget is None:
        limit_bytes = memory_limit_bytes_of(memory_limit_mb)
    else:
        limit_bytes = budget.limit_bytes()
        if memory_limit_mb is not None:
            limit_bytes = min(limit_bytes, memory_limit_bytes_of(memory_limit_mb))
    return Bounds(limit_bytes, bool(drop_page_cache), budget)


def memory_limit_bytes_of(memory_limit_mb: int | None) -> int:
    """Check ``memory_limit_mb`` and return it in bytes.

    For ``None``, what fits the machine and the container at the moment; a line of
    the logger ``ckpt_streamer`` at level INFO says what, and why.

    Raises:
        TypeError: It is neither ``None`` nor an ``int`` (``bool`` is none here).
        ValueError: It is below 1, or too large to count in bytes.
    """
    if memory_limit_mb is None:
        limit_bytes, explanation = _ops.default_memory_limit()
        _logger.info("the memory limit is %s", explanation)
        return limit_bytes
    _check_int("memory_limit_mb", memory_limit_mb, "None or an int >= 1 (MiB)")
    limit_bytes = memory_limit_mb * _MIB
    if limit_bytes >= 2**63:
        raise ValueError(
            f"memory_limit_mb is {memory_limit_mb}, expected less than "
            f"{2**63 // _MIB} (MiB)"
        )
    return limit_bytes


def check_dtype(dtype: torch.dtype | None) -> None:
    """Check the dtype to convert to.

    Raises:
        TypeError: It is neither ``None`` nor a ``torch.dtype``.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"dtype is {dtype!r} ({type(dtype).__name__}), expected None or a "
            "floating-point torch.dtype"
        )


def check_cpu_page_size(cpu_page_size: int | None) -> None:
    """Check an argument that is accepted and not used.

    Raises:
        TypeError: It is neither ``None`` nor an ``int``.
        ValueError: It is below 1.
    """
    if cpu_page_size is not None:
        _check_int("cpu_page_size", cpu_page_size, "None or an int >= 1 (bytes)")


def is_path(value: object) -> TypeGuard[Path | Sequence[Path]]:
    """Whether a value is a path, or a list or tuple of nothing but paths."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_one_path, value))
    return is_one_path(value)


def is_one_path(value: object) -> TypeGuard[Path]:
    return isinstance(value, (str, os.PathLike))


def paths_of(path: Any) -> list[str]:
    """Check the path of a file, or a list of them.

    Raises:
        TypeError: It is anything else.
        ValueError: It cannot be the name of a file.
    """
    paths = path if isinstance(path, (list, tuple)) else [path]
    for each in paths:
        if not is_one_path(each):
            what = "an open file; " if hasattr(each, "read") else ""
            raise TypeError(
                f"path is {each!r} ({type(each).__name__}), {what}expected the path of "
                "a checkpoint file, as it is read by mapping it into memory, or a list "
                "of paths"
            )
    return [_checked_name(os.fspath(each)) for each in paths]


def one_path_of(path: Any) -> str:
    """Check the path of one file that is to be written.

    Raises:
        TypeError: It is anything else.
        ValueError: It cannot be the name of a file.
    """
    if not is_one_path(path):
        raise TypeError(
            f"path is {path!r} ({type(path).__name__}), expected the path of a file to "
            "write"
        )
    return _checked_name(os.fspath(path))


def _checked_name(name: Any) -> str:
    text = os.fsdecode(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"path is {name!r}, expected the name of a file in UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"path is {name!r}, expected a name without a NUL")
    return text


def _check_int(name: str, value: object, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}), expected {expected}"
        )
    if value < 1:
        raise ValueError(f"{name} is {value}, expected {expected}")
