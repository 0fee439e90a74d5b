"""Programs that run in a memory cgroup of their own (version 1; needs root)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HIERARCHY = Path("/sys/fs/cgroup/memory")


class MemoryGroup:
    """A cgroup, and what it is charged for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self, limit_bytes: int) -> None:
        """Set the most that it may be charged; what is above is killed."""
        (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))

    def run(self, code: str, *arguments: object) -> str:
        """Run a Python program in it; return what it printed.

        Its first argument is the folder.
        """
        command = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        with tempfile.TemporaryDirectory() as folder:
            # torch.jit.script reads the source of what it compiles.
            program = Path(folder) / "program.py"
            program.write_text(textwrap.dedent(code))
            result = subprocess.run(
                [
                    *("/bin/sh", "-c", command, str(self.folder)),
                    *(sys.executable, "-P", str(program)),
                    *map(str, [self.folder, *arguments]),
                ],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            )
        assert result.returncode == 0, (result.returncode, result.stderr)
        return result.stdout

    @property
    def peak_bytes(self) -> int:
        """The most that it was charged so far."""
        return int((self.folder / "memory.max_usage_in_bytes").read_text())


@contextmanager
def new_memory_group() -> Iterator[MemoryGroup]:
    """Make one inside this process's own; skips the test where that cannot be."""
    if os.geteuid() != 0 or not (_HIERARCHY / "memory.limit_in_bytes").exists():
        pytest.skip("needs root, and memory cgroups of version 1 in /sys/fs/cgroup")
    own = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if "memory" in line.split(":")[1].split(",")
    )
    parent = _HIERARCHY / own.lstrip("/")
    folder = parent / f"ckpt_streamer_test_{os.getpid()}_{time.monotonic_ns()}"
    folder.mkdir()
    try:
        yield MemoryGroup(folder)
    finally:
        # What it is charged for goes to the cgroup around it.
        folder.rmdir()
