"""Time loading into a model in bounded memory, beside PyTorch's own way.

Pairs of loads into one model, ``apply_state_dict`` and ``load_state_dict``,
interleaved in random order in one process. Both start from the same state: the
file in the page cache (see pages.warm), none of it mapped into the process.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpoints import load, saved_checkpoint
from environment import write_result
from models import large_checkpoint, large_model, nested_model, wide_model
from pages import drop_resident, warm
from ratios import paired_ratio
from torch import nn

from ckpt_streamer import apply_state_dict

MIB = 1024 * 1024
LIMIT_MIB = 64
LARGE_LIMITS_MIB = (64, 1024)  # the latter is the default


@dataclass(frozen=True)
class Case:
    """One load of ours beside one of PyTorch's, and the ratio it is to keep."""

    title: str
    other: str
    bar: float
    model: nn.Module
    path: Path
    load_here: Callable[[], object]
    load_there: Callable[[], object]


def many_module_cases(
    title: str, bar: float, make_model: Callable[[], nn.Module]
) -> list[Case]:
    model = make_model()
    path = saved_checkpoint(title.replace(" ", "-"), model.state_dict)
    state_dict = load(path)
    return [
        Case(
            title,
            "load_state_dict",
            bar,
            model,
            path,
            lambda: apply_state_dict(model, state_dict, memory_limit_mb=LIMIT_MIB),
            lambda: model.load_state_dict(state_dict),
        ),
        Case(
            title,
            "torch.load(mmap=True) and it",
            0.05,
            model,
            path,
            lambda: apply_state_dict(model, path, memory_limit_mb=LIMIT_MIB),
            lambda: model.load_state_dict(load(path)),
        ),
    ]


def large_cases(size_mib: int) -> list[Case]:
    title = f"{size_mib} MiB"
    model = large_model(size_mib)
    path = large_checkpoint(size_mib)
    # Each side has a mapping of its own: loading here advises the kernel how to
    # map its file, and PyTorch's way must not see that.
    ours, plain = load(path), load(path)

    def load_unmapped() -> None:
        model.load_state_dict(torch.load(path, map_location="cpu"))

    return [
        *(
            Case(
                f"{title}, limit {limit_mib}",
                "load_state_dict, mapped",
                1.02,
                model,
                path,
                partial(apply_state_dict, model, ours, memory_limit_mb=limit_mib),
                lambda: model.load_state_dict(plain),
            )
            for limit_mib in LARGE_LIMITS_MIB
        ),
        Case(
            f"{title}, limit {LIMIT_MIB}",
            "torch.load(mmap=False) and it",
            0.5,
            model,
            path,
            lambda: apply_state_dict(model, load(path), memory_limit_mb=LIMIT_MIB),
            load_unmapped,
        ),
    ]


def measure(case: Case, pair_count: int, warm_up_count: int) -> dict[str, Any]:
    warm(case.path)
    shuffle = random.Random(0)
    sides = [("seconds", case.load_here), ("plain_seconds", case.load_there)]
    times: dict[str, list[float]] = {name: [] for name, _ in sides}
    for _ in range(warm_up_count + pair_count):
        for name, run in shuffle.sample(sides, len(sides)):
            drop_resident(case.path)
            times[name].append(seconds_of(run))
    kept = {name: each[warm_up_count:] for name, each in times.items()}
    return {
        "case": case.title,
        "beside": case.other,
        "bar": case.bar,
        "ratio": asdict(paired_ratio(kept["seconds"], kept["plain_seconds"])),
        "median_seconds": median(kept["seconds"]),
        "plain_median_seconds": median(kept["plain_seconds"]),
        **kept,
    }


def seconds_of(run: Callable[[], object]) -> float:
    gc.collect()  # what earlier loads left must not be collected in this one
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result
    return seconds


def print_row(row: dict[str, Any]) -> None:
    ratio = row["ratio"]
    print(
        f"{row['case']:22} {row['beside']:30} {row['plain_median_seconds']:8.3f} s "
        f"{row['median_seconds']:8.3f} s  {ratio['mean']:.4f} ({ratio['low']:.4f} to "
        f"{ratio['high']:.4f}), bar {row['bar']}",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=11, help="timed pairs a case")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--full", action="store_true", help="a large model of 4 GiB")
    sizes.add_argument(
        "--quick",
        action="store_true",
        help="small models and 3 pairs; prints, but writes no result",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="models with this in their titles",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    quick = options.quick
    wide, outer, inner, size_mib = (
        (1000, 20, 50, 128)
        if quick
        else (8000, 200, 100, 4096 if options.full else 1024)
    )
    pair_count, warm_up_count = (3, 1) if quick else (options.pairs, 1)
    print(f"{'model':22} {'beside':30} {'plain':>10} {'here':>10}  ratio (95%)")
    wide_title, nested_title = f"{wide} modules", f"{outer} x {inner} modules"
    # Made one after another: the models of some are large.
    makers = {
        wide_title: partial(
            many_module_cases, wide_title, 0.02, partial(wide_model, wide)
        ),
        nested_title: partial(
            many_module_cases, nested_title, 0.2, partial(nested_model, outer, inner)
        ),
        f"{size_mib} MiB": partial(large_cases, size_mib),
    }
    for title, make_cases in makers.items():
        if options.only not in title:
            continue
        rows = []
        for case in make_cases():
            rows.append(measure(case, pair_count, warm_up_count))
            print_row(rows[-1])
        if not quick:
            print(write_result(f"apply-{title.replace(' ', '-')}", rows))


if __name__ == "__main__":
    main()
