"""The most memory of this process, sampled from a second one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Prints a line when it has begun, and at the end of its input the most that it
# has seen of a process's file pages and anonymous memory, in bytes.
SAMPLER = r"""
import re, select, sys
status = f"/proc/{sys.argv[1]}/status"
peaks = [0, 0]
while not select.select([sys.stdin], [], [], 0.0002)[0]:
    text = open(status).read()
    for i, name in enumerate(("RssFile", "RssAnon")):
        kilobytes = int(re.search(name + r":\s+(\d+) kB", text)[1])
        peaks[i] = max(peaks[i], kilobytes * 1024)
    if len(sys.argv) > 2:
        print(*peaks, flush=True)
        sys.argv.pop()
print(*peaks)
"""


def file_pages_bytes() -> int:
    """All resident file pages of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssFile:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def peaks_of(work: Callable[[], object]) -> tuple[int, int]:
    """The most file pages and anonymous memory that come on top in the meantime.

    File pages that are still there afterwards are not the work's: of libraries,
    which are read in as they are used, and again where the kernel took them.

    REQUIRES: the work leaves no file pages behind; the caller asserts it.
    """
    with subprocess.Popen(
        [sys.executable, "-c", SAMPLER, str(os.getpid()), "announce"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as sampler:
        assert sampler.stdout is not None
        before = sampler.stdout.readline().split()
        work()
        left_bytes = file_pages_bytes()
        after = sampler.communicate("")[0].split()
    file_bytes, anonymous_bytes = map(int, after)
    base_bytes = max(int(before[0]), left_bytes)
    return file_bytes - base_bytes, anonymous_bytes - int(before[1])
