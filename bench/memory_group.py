"""A memory cgroup for a process that is measured (version 1; needs root)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HIERARCHY = Path("/sys/fs/cgroup/memory")


def why_none() -> str | None:
    """Return why there can be none here, if so."""
    if not (_HIERARCHY / "memory.max_usage_in_bytes").exists():
        return "no memory cgroups of version 1 in /sys/fs/cgroup"
    if os.geteuid() != 0:
        return "needs root"
    return None


@contextmanager
def new_memory_group() -> Iterator[Path | None]:
    """Make one inside this process's own, where that can be, and remove it."""
    if why_none():
        yield None
        return
    own = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if "memory" in line.split(":")[1].split(",")
    )
    parent = _HIERARCHY / own.lstrip("/")
    folder = parent / f"ckpt_streamer_bench_{os.getpid()}_{time.monotonic_ns()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        # What it is charged for goes to the cgroup around it.
        folder.rmdir()
