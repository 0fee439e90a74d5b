"""Time reading a file that the kernel has not cached, beside plain mmap.

In each round all ways run once, in random order, each on the file dropped from
the page cache just before: a disk's speed changes from second to second, and only
neighbours can be compared.

ways, over all tensors of the file:
  stream          stream(state_dict, limit), each tensor summed
  plain           the same over state_dict.values()
  stream, work    as stream, and a pause of 1 ms for each MiB after each tensor
  plain, work     as plain, with the pause
  disk            read(2) from front to end, 8 MiB at a time
  work            as "plain, work", with the file in the cache
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from checkpoints import MIB, load, tensors_checkpoint
from environment import write_result
from pages import make_cold, read_through, warm
from ratios import paired_ratio

from ckpt_streamer import stream

WORK_SECONDS_PER_MIB = 1e-3
# How many MiB of tensors of how many MiB, and the limit.
CASES = ((1024, 4, 64), (1024, 32, 64), (2048, 4, 1024))


def tensors_of(way: str, path: Path, limit_mib: int) -> Iterator[torch.Tensor]:
    state_dict = load(path)
    if way.startswith("stream"):
        for _, _, tensor in stream(state_dict, memory_limit_mb=limit_mib):
            yield tensor
    else:
        yield from state_dict.values()


def read_once(way: str, path: Path, limit_mib: int) -> None:
    if way == "disk":
        read_through(path, 8 * MIB)
        return
    for tensor in tensors_of(way, path, limit_mib):
        tensor.sum()
        if way.endswith("work"):
            time.sleep(tensor.nbytes / MIB * WORK_SECONDS_PER_MIB)


def seconds_of(way: str, path: Path, limit_mib: int) -> float:
    gc.collect()  # no mapping of the file is left
    if way == "work":
        warm(path)
    else:
        make_cold(path)
    start = time.perf_counter()
    read_once(way, path, limit_mib)
    return time.perf_counter() - start


def measure(
    size_mib: int, tensor_mib: int, limit_mib: int, rounds: int
) -> dict[str, Any]:
    path = tensors_checkpoint(size_mib // tensor_mib, tensor_mib * MIB // 4)
    ways = ["stream", "plain", "stream, work", "plain, work", "disk", "work"]
    times: dict[str, list[float]] = {way: [] for way in ways}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for way in shuffle.sample(ways, len(ways)):
            times[way].append(seconds_of(way, path, limit_mib))
    slower = [
        max(disk, work) for disk, work in zip(times["disk"], times["work"], strict=True)
    ]
    hidden = [
        bound / with_work
        for bound, with_work in zip(slower, times["stream, work"], strict=True)
    ]
    return {
        "size_mib": size_mib,
        "tensor_mib": tensor_mib,
        "limit_mib": limit_mib,
        "ratio": asdict(paired_ratio(times["stream"], times["plain"])),
        "work_ratio": asdict(paired_ratio(times["stream, work"], times["plain, work"])),
        "hidden": geometric_mean(hidden),
        "hidden_median": median(hidden),
        **times,
    }


def print_row(row: dict[str, Any]) -> None:
    def text(ratio: dict[str, float]) -> str:
        return f"{ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"

    print(
        f"{row['size_mib']} MiB of {row['tensor_mib']} MiB, limit "
        f"{row['limit_mib']} MiB: disk {median(row['disk']):.2f} s, plain "
        f"{median(row['plain']):.2f} s, stream {median(row['stream']):.2f} s; of plain "
        f"{text(row['ratio'])}, with work {text(row['work_ratio'])}; of the slower one "
        f"of disk and work {row['hidden']:.2f}, median {row['hidden_median']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--case", type=int, help="only this one; writes no result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = CASES if options.case is None else CASES[options.case : options.case + 1]
    rows = []
    for case in cases:
        rows.append(measure(*case, options.rounds))
        print_row(rows[-1])
    if options.case is None:
        print(write_result("cold", rows))


if __name__ == "__main__":
    main()
