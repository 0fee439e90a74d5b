"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def bytes_of(name: str, size: int | str) -> int:
    """Read a size: a number of bytes, or a text like ``"5GB"`` or ``"1.5 GiB"``.

    ``K``, ``M``, ``G`` and ``T`` alone are powers of 1024, as ``KiB`` and so on;
    ``kB``, ``MB`` and so on are powers of 1000. In any case.

    Raises:
        TypeError: It is neither an ``int`` nor a ``str``.
        ValueError: It is no size, or below 1 byte.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(
            f"{name} is {size!r} ({type(size).__name__}), expected a number of bytes "
            "or a text like '5GB'"
        )
    count = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size)
        unit = None if match is None else _UNITS.get(match[2].lower())
        if match is None or unit is None:
            raise ValueError(
                f"{name} is {size!r}, expected a size like '512MiB', '5GB' or '1.5 GiB'"
            )
        whole, _, fraction = match[1].partition(".")
        count = int(whole + fraction) * unit // 10 ** len(fraction)
    assert isinstance(count, int)
    if count < 1 or count >= 2**63:
        raise ValueError(f"{name} is {size!r}, expected at least 1 byte, below 2**63")
    return count
