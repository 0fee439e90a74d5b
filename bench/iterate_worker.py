"""Times passes over one checkpoint; run by iterate.py, in a process of its own.

Reads a task as JSON from stdin and writes the times to stdout. Which
ckpt_streamer it times is the path's choice: ``stream`` is all it takes of it.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import MIB, load
from pages import drop_resident, huge_page_bytes, warm
from torch import Tensor

from ckpt_streamer import stream

StateDict = dict[str, Tensor]


def iterate_plainly(state_dict: StateDict) -> None:
    for _key, tensor in state_dict.items():
        tensor.to(torch.bfloat16)


def iterate_bounded(state_dict: StateDict, limit_mib: int) -> None:
    for _obj, _key, tensor in stream(state_dict, memory_limit_mb=limit_mib):
        tensor.to(torch.bfloat16)


def seconds_of(run: Callable[[], object]) -> float:
    gc.collect()  # what earlier passes left must not be collected in this one
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result  # freeing is not timed
    return seconds


def seconds_of_each(
    path: Path, sides: list[tuple[str, Callable[[], object]]], huge_bytes: int
) -> dict[str, float]:
    """Time each side once, in the order given, from the same state of the cache.

    Kernels reclaim cached pages as they see fit (DAMON, for one, those of idle
    files), and what is read in again lies in smaller folios, which cost more to
    map and to unmap. Where that has happened, the file is warmed and the pair
    begins anew, a few times at most. `huge_bytes` is what all of the file maps as
    huge pages when it is warm.
    """
    seconds = {}
    for _ in range(3):
        for name, run in sides:
            drop_resident(path)
            seconds[name] = seconds_of(run)
        if huge_page_bytes(path) >= huge_bytes * 0.98:
            break
        drop_resident(path)
        warm(path)
    return seconds


def time_pairs(
    path: Path, cases: list[dict[str, Any]], pair_count: int, warm_up_count: int
) -> list[dict[str, list[float]]]:
    """Time pairs of passes, plain and bounded, in random order.

    A case without a limit is a control: the plain way on both sides.
    """
    # Each side has a mapping of its own: a stream advises the kernel how to map
    # its file, and the plain way must not see that.
    plain, other = load(path), load(path)
    huge_bytes = huge_page_bytes(path)
    shuffle = random.Random(0)
    times = []
    for case in cases:
        torch.set_num_threads(case["threads"])
        limit_mib = case["limit_mib"]

        def run_other(limit_mib: int | None = limit_mib) -> None:
            if limit_mib is None:
                iterate_plainly(other)
            else:
                iterate_bounded(other, limit_mib)

        sides: list[tuple[str, Callable[[], object]]] = [
            ("plain_seconds", lambda: iterate_plainly(plain)),
            ("seconds", run_other),
        ]
        seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
        for i in range(warm_up_count + pair_count):
            order = shuffle.sample(sides, len(sides))
            each = seconds_of_each(path, order, huge_bytes)
            if i >= warm_up_count:
                for name, listed in seconds.items():
                    listed.append(each[name])
        times.append(seconds)
    return times


def time_opening(path: Path, count: int) -> dict[str, list[float]]:
    """Time ``torch.load(mmap=True)`` and ``torch.ops.ckpt_streamer.open``."""
    open_stream = torch.ops.ckpt_streamer.open
    torch_seconds, seconds = [], []
    for _ in range(count):
        seconds.append(seconds_of(lambda: open_stream(str(path), 64 * MIB)))
        torch_seconds.append(seconds_of(lambda: load(path)))
    return {"plain_seconds": torch_seconds, "seconds": seconds}


def main() -> None:
    task = json.load(sys.stdin)
    path = Path(task.pop("path"))
    times = time_pairs if "cases" in task else time_opening
    json.dump(times(path, **task), sys.stdout)


if __name__ == "__main__":
    main()
