"""Time a warm tensor larger than the limit, watched, beside the plain way.

In each round both ways read the tensor once, in random order, each with nothing of
it mapped in before: `tensor.sum()` of the tensor from `torch.load(mmap=True)`, plain
and while a stream of it is open. Then, how much of a processor the watcher takes
while the tensor is out and nobody reads it.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpoints import MIB, load, tensors_checkpoint
from environment import write_result
from pages import drop_resident, warm
from ratios import paired_ratio

from ckpt_streamer import stream

SIZE_MIB = 4096
LIMITS_MIB = (256, 64, 16)
IDLE_SECONDS = 3.0


def tensor_of(way: str, path: Path, limit_mib: int) -> Iterator[torch.Tensor]:
    state_dict = load(path)
    if way == "watched":
        with stream(state_dict, limit_mib) as items:
            for _, _, tensor in items:
                yield tensor
    else:
        yield from state_dict.values()


def seconds_of(way: str, path: Path, limit_mib: int) -> float:
    gc.collect()
    for tensor in tensor_of(way, path, limit_mib):
        drop_resident(path)
        start = time.perf_counter()
        tensor.sum()
        seconds = time.perf_counter() - start
    return seconds


def idle_share(path: Path, limit_mib: int) -> float:
    """The share of one processor that is used while the tensor is out."""
    for _ in tensor_of("watched", path, limit_mib):
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(IDLE_SECONDS)
        share = (time.process_time() - before) / IDLE_SECONDS
    return share


def measure(path: Path, limit_mib: int, threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    ways = ["watched", "plain"]
    times: dict[str, list[float]] = {way: [] for way in ways}
    shuffle = random.Random(0)
    for i in range(rounds + 1):
        for way in shuffle.sample(ways, len(ways)):
            seconds = seconds_of(way, path, limit_mib)
            if i > 0:  # the first is a rehearsal
                times[way].append(seconds)
    ratio = paired_ratio(times["watched"], times["plain"])
    return {
        "tensor_bytes": SIZE_MIB * MIB,
        "limit_bytes": limit_mib * MIB,
        "threads": threads,
        "rounds": rounds,
        "plain_seconds": round(median(times["plain"]), 4),
        "watched_seconds": round(median(times["watched"]), 4),
        **{f"ratio_{name}": round(x, 3) for name, x in asdict(ratio).items()},
        "idle_share": round(idle_share(path, limit_mib), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    path = tensors_checkpoint(1, SIZE_MIB * MIB // 4)
    warm(path)
    rows = []
    for limit_mib in LIMITS_MIB:
        for threads in sorted({1, os.cpu_count() or 1}):
            row = measure(path, limit_mib, threads, rounds)
            rows.append(row)
            print(
                f"{limit_mib:4} MiB, {threads} threads: "
                f"plain {row['plain_seconds']:.3f} s, "
                f"watched {row['watched_seconds']:.3f} s, "
                f"ratio {row['ratio_mean']:.3f} "
                f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), "
                f"idle {row['idle_share']:.2%} of a processor",
                flush=True,
            )
    print(write_result("watch", rows))


if __name__ == "__main__":
    main()
