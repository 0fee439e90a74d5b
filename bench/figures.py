"""Measure the three figures that the original project shows, with ours beside it.

1  Resident memory over time: 16 GiB in 1024 tensors, limit 1024 MiB, each converted
   to bfloat16, with a pause of 10 ms after it.
2  Iterating: files of 4 MiB to 16 GiB of 1024 tensors, each converted; 100 passes after
   5 warm-ups, in 10 rounds that go through sizes and ways in random order.
3  Many tensors: files of 4 MiB to 1 GiB of tensors of 1024 elements; opening and
   iterating apart, 5 rounds after a warm-up, likewise.

Each way is a process of its own. Files are in the page cache. With --minutes, what is
not done by then goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import original
import torch
from checkpoints import (
    MIB,
    remove_checkpoints,
    repeated_checkpoint,
    tensors_checkpoint,
)
from environment import write_result
from journal import Journal, OutOfTimeError, deadline_in
from pages import keep_warm
from peer_ways import WAYS
from peer_worker import Job, prepared, run_once
from peers import PAUSED, Workers, say, seconds_of
from ratios import paired_ratio, standard_error
from sampler import Marks, Recording, record

TENSORS = 1024  # of a file of figures 1 and 2
ELEMENTS = 1024  # of each tensor of figure 3
PLAIN = "torch_load_mapped"
STREAMS = [PLAIN, "original", "stream"]
REHEARSAL = (16, MIB // 4)
# A sample is kept of each such part of figure 1: the highest.
KEPT_SECONDS = 0.02


@dataclass(frozen=True)
class Sizes:
    """What a run measures, full or quick."""

    memory_mib: int
    memory_limit_mib: int
    memory_pause_seconds: float
    access_mib: tuple[int, ...]
    access_rounds: int
    access_rounds_of_largest: int
    access_warm_ups: int
    access_passes: int
    many_mib: tuple[int, ...]
    many_rounds: int
    limit_mib: int = 1024
    threads: int = 1  # of torch


FULL = Sizes(
    memory_mib=16_384,
    memory_limit_mib=1024,
    memory_pause_seconds=0.01,
    access_mib=(4, 16, 64, 256, 1024, 4096, 16_384),
    access_rounds=10,
    access_rounds_of_largest=10,
    access_warm_ups=5,
    access_passes=100,
    many_mib=(4, 16, 64, 256, 1024),
    many_rounds=5,
)
QUICK = Sizes(
    memory_mib=1024,
    memory_limit_mib=64,
    memory_pause_seconds=0.002,
    access_mib=(4, 16, 64, 256),
    access_rounds=3,
    access_rounds_of_largest=3,
    access_warm_ups=1,
    access_passes=10,
    many_mib=(4, 16, 64),
    many_rounds=2,
)


def file_of(size_mib: int) -> Path:
    """Return a file of 1024 tensors; making the largest takes too much memory."""
    make = tensors_checkpoint if size_mib <= 4096 else repeated_checkpoint
    return make(TENSORS, elements_of(size_mib))


def elements_of(size_mib: int) -> int:
    return size_mib * MIB // 4 // TENSORS


# Figure 1.


def read_slowly(
    marks: Marks, name: str, job: Job, rehearsal: Job, sizes: Sizes
) -> None:
    way = prepared(name, sizes.threads)
    run_once(way, rehearsal)
    marks.baseline()
    marks.start()
    for tensor in way.tensors(way.open(job.path, job.limit_mib)):
        tensor.to(torch.bfloat16)
        time.sleep(sizes.memory_pause_seconds)
    marks.done()


def thinned(recording: Recording[None]) -> dict[str, list[Any]]:
    """Keep the highest of each part of the time, and of each kind of memory."""
    parts: dict[int, list[int]] = {}
    for i, second in enumerate(recording.seconds):
        parts.setdefault(int(second / KEPT_SECONDS), []).append(i)
    return {
        "seconds": [round(part * KEPT_SECONDS, 3) for part in parts],
        **{
            name: [max(values[i] for i in kept) for kept in parts.values()]
            for name, values in (
                ("file_bytes", recording.file_bytes),
                ("anon_bytes", recording.anon_bytes),
            )
        },
    }


def measure_memory(name: str, sizes: Sizes) -> dict[str, Any]:
    way = WAYS[name]
    limit_mib = sizes.memory_limit_mib if way.has_limit else None
    path = file_of(sizes.memory_mib)
    keep_warm(path)
    rehearsal = Job(tensors_checkpoint(*REHEARSAL), *REHEARSAL, limit_mib)
    recording = record(
        read_slowly,
        name,
        Job(path, TENSORS, elements_of(sizes.memory_mib), limit_mib),
        rehearsal,
        sizes,
    )
    return {
        "task": f"{sizes.memory_mib // 1024} GiB of {TENSORS} tensors to bfloat16",
        "way": name,
        "title": way.title,
        "limit_bytes": limit_mib and limit_mib * MIB,
        "peak_file_bytes": recording.peak_file_bytes,
        "peak_anon_bytes": recording.peak_anon_bytes,
        "work_seconds": round(recording.work_seconds, 3),
        "samples": len(recording.seconds),
        "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        **thinned(recording),
    }


def figure_1(
    sizes: Sizes, ways: list[str], journal: Journal, _: Workers
) -> list[dict[str, Any]]:
    return [
        journal.once(name, partial(measure_memory, name, sizes))
        for name in ways
        if name in STREAMS
    ]


# Figures 2 and 3.


def shuffled_rounds(
    units: list[tuple[int, str]],
    rounds: int,
    journal: Journal,
    measure: Callable[[int, str], Any],
) -> dict[tuple[int, str], list[Any]]:
    """Measure all units in each round, in random order."""
    shuffle = random.Random(0)
    found: dict[tuple[int, str], list[Any]] = {unit: [] for unit in units}
    for number in range(rounds):
        for size_mib, name in shuffle.sample(units, len(units)):
            value = journal.once(
                f"round {number} {name} {size_mib}", partial(measure, size_mib, name)
            )
            found[size_mib, name].append(value)
        say(f"round {number + 1} of {rounds}")
    return found


def figure_2(
    sizes: Sizes, ways: list[str], journal: Journal, workers: Workers
) -> list[dict[str, Any]]:
    def measure(size_mib: int, name: str) -> dict[str, float]:
        path = file_of(size_mib)
        keep_warm(path)
        seconds = workers.of(name).ask(
            "iterations",
            Job(path, TENSORS, elements_of(size_mib), sizes.limit_mib),
            warm_up_count=sizes.access_warm_ups,
            count=sizes.access_passes,
        )["iterate_seconds"]
        return {"mean": fmean(seconds), "median": median(seconds)}

    # The largest after all others: it takes the page cache for itself.
    found: dict[tuple[int, str], list[Any]] = {}
    for group, round_count in (
        (sizes.access_mib[:-1], sizes.access_rounds),
        (sizes.access_mib[-1:], sizes.access_rounds_of_largest),
    ):
        units = [(size, name) for size in group for name in ways if name in STREAMS]
        found |= shuffled_rounds(units, round_count, journal, measure)
    rows = []
    for (size_mib, name), rounds in found.items():
        means = [each["mean"] for each in rounds]
        rows.append(
            {
                **row_of(size_mib, TENSORS, name, sizes),
                "passes": sizes.access_passes,
                "rounds": len(rounds),
                "mean_seconds": fmean(means),
                "standard_error_seconds": standard_error(means),
                "round_seconds": [round(each, 6) for each in means],
                "round_median_seconds": [round(each["median"], 6) for each in rounds],
                **ratio_to_plain(
                    name,
                    [each["median"] for each in rounds],
                    [each["median"] for each in found[size_mib, PLAIN]],
                ),
            }
        )
    return rows


def figure_3(
    sizes: Sizes, ways: list[str], journal: Journal, workers: Workers
) -> list[dict[str, Any]]:
    def measure(size_mib: int, name: str) -> dict[str, float]:
        count = size_mib * MIB // 4 // ELEMENTS
        path = tensors_checkpoint(count, ELEMENTS)
        keep_warm(path)
        job = Job(path, count, ELEMENTS, sizes.limit_mib)
        return workers.of(name).ask("pass", job)

    units = [(size, name) for size in sizes.many_mib for name in ways]
    # The first round warms up.
    found = shuffled_rounds(units, 1 + sizes.many_rounds, journal, measure)
    rows = []
    for (size_mib, name), (_, *passes) in found.items():
        plain = found[size_mib, PLAIN][1:]
        steps = {
            step: [each[f"{step}_seconds"] for each in passes]
            for step in ("open", "iterate")
        }
        rows.append(
            {
                **row_of(size_mib, size_mib * MIB // 4 // ELEMENTS, name, sizes),
                **{
                    f"{step}_seconds": [round(each, 6) for each in seconds]
                    for step, seconds in steps.items()
                },
                **ratio_to_plain(
                    name,
                    [seconds_of(each, "total") for each in passes],
                    [seconds_of(each, "total") for each in plain],
                ),
            }
        )
    return rows


def row_of(size_mib: int, tensors: int, name: str, sizes: Sizes) -> dict[str, Any]:
    return {
        "way": name,
        "title": WAYS[name].title,
        "size_mib": size_mib,
        "tensors": tensors,
        "limit_mib": sizes.limit_mib if WAYS[name].has_limit else None,
    }


def ratio_to_plain(
    name: str, seconds: list[float], plain_seconds: list[float]
) -> dict[str, Any]:
    if name == PLAIN:
        return {}
    return {"peer": PLAIN, "ratio": asdict(paired_ratio(seconds, plain_seconds))}


Figure = Callable[[Sizes, list[str], Journal, Workers], list[dict[str, Any]]]
FIGURES: dict[str, Figure] = {
    "figure-1": figure_1,
    "figure-2": figure_2,
    "figure-3": figure_3,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    original.add_option(parser)
    parser.add_argument(
        "--figure",
        action="append",
        choices=FIGURES,
        dest="figures",
        help="only this one (may be given again)",
    )
    parser.add_argument("--rounds", type=int, help="of figures 2 and 3")
    parser.add_argument(
        "--rounds-of-largest",
        type=int,
        metavar="ROUNDS",
        help="of the largest file of figure 2, for want of time",
    )
    parser.add_argument("--passes", type=int, help="in each round of figure 2")
    parser.add_argument(
        "--largest", type=int, metavar="MIB", help="no larger files, for want of disk"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--minutes", type=float, help="go on for no longer")
    parser.add_argument("--keep", action="store_true", help="keep the file of 16 GiB")
    parser.add_argument("--quick", action="store_true", help="small files, few rounds")
    return parser.parse_args()


def sizes_of(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else FULL
    changes: dict[str, Any] = {"threads": options.threads}
    if options.rounds:
        rounds = ("access_rounds", "access_rounds_of_largest", "many_rounds")
        changes |= dict.fromkeys(rounds, options.rounds)
    if options.rounds_of_largest:
        changes["access_rounds_of_largest"] = options.rounds_of_largest
    if options.passes:
        changes["access_passes"] = options.passes
    if options.largest:
        changes["memory_mib"] = min(sizes.memory_mib, options.largest)
        for name in ("access_mib", "many_mib"):
            all_mib = asdict(sizes)[name]
            changes[name] = tuple(mib for mib in all_mib if mib <= options.largest)
    return Sizes(**(asdict(sizes) | changes))


def main() -> int:
    options = arguments()
    ways = [PLAIN, "stream", "open", "fused"]
    if options.original:
        original.tell_children(options.original)
        ways.insert(1, "original")
    sizes = sizes_of(options)
    run = {"quick": options.quick, **asdict(sizes)}
    deadline = deadline_in(options.minutes)
    with Workers(sizes.threads) as workers:
        for name in options.figures or FIGURES:
            journal = Journal(
                f"quick-{name}" if options.quick else name,
                {**run, "ways": ways},
                deadline,
            )
            try:
                rows = FIGURES[name](sizes, ways, journal, workers)
            except OutOfTimeError:
                print(f"{name} is not done; the same command goes on with it")
                return PAUSED
            print(write_result(name, rows, run))
            journal.remove()
    if not options.quick and not options.keep:
        remove_checkpoints(TENSORS, elements_of(sizes.access_mib[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
