"""Measure whether the limit holds at every millisecond.

Each case runs in a process of its own and converts every tensor to bfloat16
twice: once sampled from outside every millisecond, once with its own exact count
of the file's mapped pages. Exits with 1 if a limit was exceeded, or if pages of
the file were still mapped after the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from checkpoints import MIB, load, tensors_checkpoint
from environment import write_result
from pages import resident_bytes, warm
from sampler import Marks, record
from torch import Tensor

from ckpt_streamer import stream

# Tensors, elements of each.
LARGE = (1024, 1024 * 1024)
SMALL = (262_144, 1024)
CASES = [(LARGE, 64), (LARGE, 256), (LARGE, 1024), (SMALL, 64)]  # limits in MiB
# 32 MiB each, streamed under 16 MiB.
REHEARSALS = {LARGE: (8, 1024 * 1024), SMALL: (8192, 1024)}
REHEARSAL_LIMIT_MIB = 16
# One exact count for each tensor or for this part of the limit, whichever is
# more: a count walks the page tables, and takes as long as some conversions.
COUNTS_PER_LIMIT = 64


class Way(Protocol):
    """One way to read a file's tensors under a limit, more than once."""

    def __init__(self, path: Path) -> None: ...
    def tensors(self, limit_mib: int) -> Iterator[Tensor]: ...


class Loaded:
    """``stream(torch.load(mmap=True))``"""

    def __init__(self, path: Path) -> None:
        self._state_dict = load(path)

    def tensors(self, limit_mib: int) -> Iterator[Tensor]:
        return (tensor for _, _, tensor in stream(self._state_dict, limit_mib))


class Opened:
    """``torch.ops.ckpt_streamer.open``"""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: Any = None  # held, so that its mapping outlives a pass

    def tensors(self, limit_mib: int) -> Iterator[Tensor]:
        handle = torch.ops.ckpt_streamer.open(str(self._path), limit_mib * MIB)
        self._handle = handle
        while handle.has_next():
            yield handle.next()[1]


WAYS: dict[str, type[Way]] = {"stream": Loaded, "open": Opened}


def convert(way: Way, limit_mib: int) -> None:
    for tensor in way.tensors(limit_mib):
        tensor.to(torch.bfloat16)


def work(
    marks: Marks, name: str, path: Path, rehearsal: Path, limit_mib: int
) -> dict[str, int]:
    convert(WAYS[name](rehearsal), REHEARSAL_LIMIT_MIB)
    marks.baseline()
    way = WAYS[name](path)
    before_bytes = resident_bytes(path)
    marks.start()
    convert(way, limit_mib)
    marks.done()
    end_bytes = resident_bytes(path)
    exact_bytes = [0]
    uncounted_bytes = 0
    for tensor in way.tensors(limit_mib):
        tensor.to(torch.bfloat16)
        uncounted_bytes += tensor.nbytes
        if uncounted_bytes >= limit_mib * MIB // COUNTS_PER_LIMIT:
            exact_bytes.append(resident_bytes(path))
            uncounted_bytes = 0
    return {
        "before_bytes": before_bytes,
        "end_bytes": end_bytes,
        "exact_peak_bytes": max(exact_bytes),
        "exact_counts": len(exact_bytes) - 1,
        "exact_end_bytes": resident_bytes(path),
    }


def measure(name: str, file: tuple[int, int], limit_mib: int) -> dict[str, Any]:
    path = tensors_checkpoint(*file)
    recording = record(
        work, name, path, tensors_checkpoint(*REHEARSALS[file]), limit_mib
    )
    counts = recording.result
    peak_bytes = max(recording.peak_file_bytes, counts["exact_peak_bytes"])
    end_bytes = max(counts["end_bytes"], counts["exact_end_bytes"])
    return {
        "way": name,
        "tensors": file[0],
        "elements": file[1],
        "file_size_bytes": path.stat().st_size,
        "limit_bytes": limit_mib * MIB,
        "samples": len(recording.seconds),
        "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        "peak_file_bytes": recording.peak_file_bytes,
        "peak_anon_bytes": recording.peak_anon_bytes,
        "work_seconds": round(recording.work_seconds, 3),
        **counts,
        "held": peak_bytes <= limit_mib * MIB and end_bytes == 0,
    }


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['way']:7} {row['tensors']:8} {row['limit_bytes'] // MIB:5} MiB "
        f"{row['peak_file_bytes'] / MIB:9.2f} MiB "
        f"{row['exact_peak_bytes'] / MIB:9.2f} MiB "
        f"{row['end_bytes'] / MIB:4.1f} MiB "
        f"{row['peak_anon_bytes'] / MIB:6.1f} MiB {row['samples']:8} "
        f"{row['longest_gap_seconds'] * 1000:5.1f} ms {row['work_seconds']:6.2f} s"
        f"{'' if row['held'] else '  EXCEEDED'}",
        flush=True,
    )


def main() -> int:
    rows = []
    print(
        f"{'way':7} {'tensors':>8} {'limit':>9} {'peak sampled':>13} "
        f"{'peak exact':>13} {'after':>8} {'peak anon':>10} {'samples':>8} "
        f"{'gap':>8} {'time':>8}"
    )
    for file, limit_mib in CASES:
        warm(tensors_checkpoint(*file))
        for name in WAYS:
            rows.append(measure(name, file, limit_mib))
            print_row(rows[-1])
    print(write_result("rss", rows))
    failures = sum(not row["held"] for row in rows)
    print(
        f"{len(rows) - failures} of {len(rows)} cases stayed within their limit at "
        "every sample and at every exact count, and had 0 bytes mapped at the end."
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
