"""Measure the most that is resident, in many cases and under several limits.

Each case runs in a process of its own, whose file pages are sampled from outside
every half millisecond. Exits with 1 if a case exceeded what is promised for it: the
limit, or, where the caller's own code reads what no limit can hold back (a tensor
larger than the limit), limit + 8 MiB on one thread, and on all processors the limit,
or 96 MiB if that is more, and 5%.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sampler
import torch
from checkpoints import MIB, load, saved_checkpoint, tensors_checkpoint
from environment import write_result
from pages import resident_bytes, warm
from sampler import Marks, record

import ckpt_streamer
from ckpt_streamer import MemoryBudget, Stream, stream

LIMITS_MIB = (16, 64, 256)
ALL = os.cpu_count() or 1
KEPT = 10_000


def read_all(path: Path, limit_mib: int) -> None:
    for _, _, tensor in stream(load(path), limit_mib):
        tensor.sum()


def convert_in_pieces(path: Path, limit_mib: int) -> None:
    with ckpt_streamer.open(path, limit_mib, dtype=torch.bfloat16) as checkpoint:
        for _ in checkpoint:
            pass


def read_again(path: Path, limit_mib: int) -> None:
    for _, _, tensor in stream(load(path), limit_mib):
        for _ in range(4):
            tensor.sum()


def keep_and_read_again(path: Path, limit_mib: int) -> None:
    """All tensors are kept, and read again at random while the stream is open."""
    kept = []
    with stream(load(path), limit_mib) as items:
        for _, _, tensor in items:
            tensor.sum()
            kept.append(tensor)
            if len(kept) == KEPT:
                random.Random(0).shuffle(kept)
                for again in kept:
                    again.sum()


def keep_of_op_and_read_again(path: Path, limit_mib: int) -> None:
    """The same after the end of a handle that is still there."""
    handle = torch.ops.ckpt_streamer.open(str(path), limit_mib * MIB)
    kept = []
    while handle.has_next():
        kept.append(handle.next()[1])
    random.Random(0).shuffle(kept)
    for again in kept:
        again.sum()
    handle.release()


def read_side_by_side(path: Path, limit_mib: int) -> None:
    """The file twice, tensor by tensor, under one budget."""
    budget = MemoryBudget(limit_mib)
    pairs = (stream(path, budget=budget), stream(path, budget=budget))
    for (_, _, one), (_, _, two) in zip(*pairs, strict=True):
        one.sum()
        two.sum()


def look_up_beside(path: Path, limit_mib: int) -> None:
    """One iteration, and look-ups in the same order in another opened file."""
    budget = MemoryBudget(limit_mib)
    with (
        ckpt_streamer.open(path, budget=budget) as first,
        ckpt_streamer.open(path, budget=budget) as second,
    ):
        for name, tensor in first:
            tensor.sum()
            second.tensor(name).sum()


def read_in_threads(path: Path, limit_mib: int) -> None:
    """Three threads, each through the whole file, under one budget."""
    budget = MemoryBudget(limit_mib)

    def read(items: Stream) -> None:
        for _, _, tensor in items:
            tensor.sum()

    streams = [stream(path, budget=budget) for _ in range(3)]
    threads = [threading.Thread(target=read, args=(items,)) for items in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_everywhere(path: Path, limit_mib: int) -> None:
    """Two threads write a mark to each 16 KiB of a tensor that a third one reads."""
    for _, _, tensor in stream(load(path), limit_mib):

        def write(worker: int, tensor: torch.Tensor = tensor) -> None:
            marks = tensor.view(-1)[worker::4096]
            for part in marks.split(1024):
                part.fill_(float(worker))

        writers = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        for thread in writers:
            thread.start()
        tensor.sum()
        for thread in writers:
            thread.join()
        for worker in range(2):
            if not bool((tensor.view(-1)[worker::4096] == worker).all()):
                raise RuntimeError("a write was lost")


def one_tensor(mib: int) -> Path:
    return tensors_checkpoint(1, mib * MIB // 4)


def kept_checkpoint(limit_mib: int) -> Path:
    """10,000 tensors of 16 limits together."""
    return tensors_checkpoint(KEPT, 16 * limit_mib * MIB // 4 // KEPT)


def tied_checkpoint(mib: int) -> Path:
    """Views of one storage: tied, strided and transposed."""

    def state_dict() -> dict[str, torch.Tensor]:
        base = torch.ones(mib, MIB // 4)
        return {
            "base": base,
            "tied": base,
            "strided": base[::2, ::3],
            "transposed": base.t(),
        }

    return saved_checkpoint(f"tied-{mib}", state_dict)


@dataclass(frozen=True)
class Case:
    """What is read, and how; the promise is for `threads` of them."""

    path: Callable[[int], Path]  # by the limit in MiB
    read: Callable[[Path, int], None]
    is_watched: bool = False
    threads: int = 1

    def promised_bytes(self, limit_mib: int) -> int:
        if not self.is_watched:
            return limit_mib * MIB
        if self.threads == 1:
            return (limit_mib + 8) * MIB
        return max(limit_mib, 96) * MIB * 105 // 100


def watched(
    name: str, path: Callable[[int], Path], read: Callable[[Path, int], None]
) -> dict[str, Case]:
    return {
        f"{name}, {threads} threads": Case(path, read, True, threads)
        for threads in sorted({1, ALL})
    }


CASES = {
    "below the limit": Case(
        lambda mib: tensors_checkpoint(64, mib * MIB // 4 // 16), read_all
    ),
    "near the limit": Case(
        lambda mib: tensors_checkpoint(4, (mib - 3) * MIB // 4), read_all
    ),
    "shared budget": Case(
        lambda mib: tensors_checkpoint(64, mib * MIB // 4 // 16), read_side_by_side
    ),
    "shared budget, large": Case(
        lambda mib: tensors_checkpoint(16, mib * MIB // 4 // 4), read_side_by_side
    ),
    "shared budget, look-ups": Case(
        lambda mib: tensors_checkpoint(64, mib * MIB // 4 // 16), look_up_beside
    ),
    "shared budget, threads": Case(
        lambda mib: tensors_checkpoint(64, mib * MIB // 4 // 16), read_in_threads
    ),
    "16 limits, converted": Case(lambda mib: one_tensor(16 * mib), convert_in_pieces),
    **watched("16 limits", lambda mib: one_tensor(16 * mib), read_all),
    **watched("16 limits, 4 times", lambda mib: one_tensor(16 * mib), read_again),
    **watched("tied, strided", lambda mib: tied_checkpoint(4 * mib), read_all),
    "kept and read again": Case(kept_checkpoint, keep_and_read_again),
    "kept and read again, op": Case(kept_checkpoint, keep_of_op_and_read_again),
    "written to, 3 threads": Case(
        lambda mib: one_tensor(4 * mib), write_everywhere, True, 3
    ),
}


def work(marks: Marks, name: str, path: Path, limit_mib: int) -> dict[str, int]:
    case = CASES[name]
    torch.set_num_threads(case.threads if case.threads <= ALL else 1)
    case.read(one_tensor(1), limit_mib)  # threads, their stacks and all code are there
    marks.baseline()
    marks.start()
    case.read(path, limit_mib)
    marks.done()
    return {"end_bytes": resident_bytes(path)}


def measure(name: str, limit_mib: int) -> dict[str, Any]:
    case = CASES[name]
    path = case.path(limit_mib)
    one_tensor(1)
    warm(path)
    recording = record(work, name, path, limit_mib)
    end_bytes = recording.result["end_bytes"]
    promised_bytes = case.promised_bytes(limit_mib)
    return {
        "case": name,
        "file_size_bytes": path.stat().st_size,
        "limit_bytes": limit_mib * MIB,
        "promised_bytes": promised_bytes,
        "peak_file_bytes": recording.peak_file_bytes,
        "end_bytes": end_bytes,
        "samples": len(recording.seconds),
        "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        "work_seconds": round(recording.work_seconds, 3),
        "held": recording.peak_file_bytes <= promised_bytes and end_bytes == 0,
    }


def rows_of(names: list[str]) -> Iterator[dict[str, Any]]:
    for limit_mib in LIMITS_MIB:
        for name in names:
            row = measure(name, limit_mib)
            print(
                f"{name:30} {limit_mib:4} MiB: peak "
                f"{row['peak_file_bytes'] / MIB:7.1f} MiB of "
                f"{row['promised_bytes'] / MIB:6.1f}, {row['samples']:6} samples, "
                f"gap {row['longest_gap_seconds'] * 1000:.1f} ms, "
                f"{row['work_seconds']:.2f} s{'' if row['held'] else '  EXCEEDED'}",
                flush=True,
            )
            yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="those whose names contain this")
    wanted = parser.parse_args().cases
    sampler.INTERVAL_SECONDS = 0.0005
    rows = list(rows_of([name for name in CASES if wanted in name]))
    if not wanted:
        print(write_result("limits", rows))
    failures = sum(not row["held"] for row in rows)
    print(f"{len(rows) - failures} of {len(rows)} cases kept what is promised.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
