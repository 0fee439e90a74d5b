"""One limit for several streams."""

from __future__ import annotations

from typing import Any, cast

import torch

import ckpt_streamer._ops  # noqa: F401  (registers the class)

_NAME = "__torch__.torch.classes.ckpt_streamer.MemoryBudget"
_MIB = 1024 * 1024


class _TorchClass(type):
    """Of a class whose objects are torch's own."""

    def __instancecheck__(cls, value: object) -> bool:
        if not isinstance(value, torch.ScriptObject):
            return False
        kind: Any = value._type()
        return bool(kind.str() == _NAME)


class MemoryBudget(metaclass=_TorchClass):
    """One limit that several streams share, given to each as ``budget=``.

    What they hold resident together never exceeds it, whichever threads they run
    in. A stream takes its share of the budget whenever it makes room for further
    tensors, and cuts its windows to fit: up to half of what the others leave, more
    for a tensor that needs more if an eighth of the budget stays. It keeps that until
    it goes on, ends, is closed or released. Of several that go on in turn, each comes
    to hold about the same.

    Nobody waits: a stream that finds less than 4 MiB left raises a ValueError. Those
    made before the first of them is read are all sure of their part.

    It is a ``torch.classes.ckpt_streamer.MemoryBudget``, as the ops take it. It can be
    an attribute of a scripted module, saved with it, pickled and deep-copied: as its
    limit, with nothing held.

    Args:
        limit_mb: The limit in MiB, at least 4.

    Raises:
        TypeError: ``limit_mb`` is no ``int``.
        ValueError: It is below 4, or too large to count in bytes.

    Example:
        >>> budget = MemoryBudget(64)
        >>> budget.limit_bytes()
        67108864
    """

    def __new__(cls, limit_mb: int) -> MemoryBudget:
        """Make torch's object."""
        if not isinstance(limit_mb, int) or isinstance(limit_mb, bool):
            raise TypeError(
                f"limit_mb is {limit_mb!r} ({type(limit_mb).__name__}), expected an "
                "int >= 4 (MiB)"
            )
        if not 4 <= limit_mb < 2**63 // _MIB:
            raise ValueError(f"limit_mb is {limit_mb}, expected an int >= 4 (MiB)")
        made: Any = torch.classes.ckpt_streamer.MemoryBudget(limit_mb * _MIB)
        return cast("MemoryBudget", made)

    def limit_bytes(self) -> int:
        """The limit."""
        raise NotImplementedError

    def bytes_held(self) -> int:
        """What its streams may have resident at the moment, all together."""
        raise NotImplementedError


def check_budget(budget: Any) -> None:
    """Check that it is one, or None.

    Raises:
        TypeError: It is anything else.
    """
    if budget is not None and not isinstance(budget, MemoryBudget):
        raise TypeError(
            f"budget is {budget!r} ({type(budget).__name__}), expected None or a "
            "MemoryBudget"
        )
