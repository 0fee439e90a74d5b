"""Time iterating over a checkpoint in bounded memory, beside the plain way.

Pairs of passes that convert every tensor to bfloat16, ``stream(state_dict)`` and
``state_dict.items()``, interleaved in random order in one process. Both start
from the same state: the file in the page cache (see pages.warm), none of it
mapped into the process. Construction and the last eviction are timed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpoints import tensors_checkpoint
from environment import write_result
from original import add_option
from pages import warm
from ratios import paired_ratio

WORKER = Path(__file__).with_name("iterate_worker.py")

# Title, tensors, elements of each, limits in MiB.
File = tuple[str, int, int, tuple[int, ...]]
LARGE: File = ("4 GiB of 4 MiB tensors", 1024, 1024 * 1024, (64, 256, 1024))
SMALL: File = ("1 GiB of 4 KiB tensors", 262_144, 1024, (64, 1024))
QUICK_LARGE: File = ("256 MiB of 4 MiB tensors", 64, 1024 * 1024, (64,))
QUICK_SMALL: File = ("64 MiB of 4 KiB tensors", 16_384, 1024, (16,))


def run_worker(task: dict[str, Any], original: Path | None = None) -> Any:
    environment = dict(os.environ)
    if original:
        # The same package name: in front of the installed one.
        paths = [str(original / "src"), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    finished = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(task),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


def row_of(title: str, way: str, times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "file": title,
        "way": way,
        "ratio": asdict(paired_ratio(times["seconds"], times["plain_seconds"])),
        "median_seconds": median(times["seconds"]),
        "plain_median_seconds": median(times["plain_seconds"]),
        **times,
    }


def measure_iteration(
    file: File, ways: dict[str, Path | None], pair_count: int, warm_up_count: int
) -> list[dict[str, Any]]:
    title, count, elements, limits_mib = file
    path = tensors_checkpoint(count, elements)
    rows = []
    for way, original in ways.items():
        # The control comes first, while no stream has touched either mapping.
        limits = limits_mib if original else (None, *limits_mib)
        cases = [
            {"limit_mib": limit, "threads": threads}
            for limit in limits
            for threads in thread_counts()
        ]
        task = {
            "path": str(path),
            "cases": cases,
            "pair_count": pair_count,
            "warm_up_count": warm_up_count,
        }
        warm(path)
        for case, times in zip(cases, run_worker(task, original), strict=True):
            name = "control" if case["limit_mib"] is None else way
            rows.append({**case, **row_of(title, name, times)})
            print_row(rows[-1])
    return rows


def thread_counts() -> list[int]:
    """Return one, and torch's default."""
    return sorted({1, torch.get_num_threads()})


def measure_opening(file: File, count: int) -> dict[str, Any]:
    title, tensor_count, elements, _ = file
    path = tensors_checkpoint(tensor_count, elements)
    warm(path)
    times = run_worker({"path": str(path), "count": count})
    return row_of(title, "open", times)


def print_header() -> None:
    print(
        f"{'file':25} {'way':14} {'limit':>9} {'threads':>7} {'plain':>9} "
        f"{'bounded':>9}  time relative to the plain way (95%)"
    )


def print_row(row: dict[str, Any]) -> None:
    limit = f"{row['limit_mib']} MiB" if row["limit_mib"] else "-"
    ratio = row["ratio"]
    print(
        f"{row['file']:25} {row['way']:14} {limit:>9} {row['threads']:7} "
        f"{row['plain_median_seconds']:7.3f} s {row['median_seconds']:7.3f} s  "
        f"{ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option(parser)
    parser.add_argument("--pairs", type=int, default=11, help="timed pairs a case")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small files and 3 pairs; prints, but writes no result",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    quick = options.quick
    files = [QUICK_LARGE, QUICK_SMALL] if quick else [LARGE, SMALL]
    pair_count, warm_up_count = (3, 1) if quick else (options.pairs, 2)
    ways: dict[str, Path | None] = {"ckpt_streamer": None}
    if options.original:
        ways["original"] = options.original.resolve()

    print_header()
    rows = []
    for file in files:
        rows += measure_iteration(file, ways, pair_count, warm_up_count)
    opening = measure_opening(files[-1], 3)
    print(
        f"opening {opening['file']}: torch.load(mmap=True) "
        f"{opening['plain_median_seconds']:.2f} s, torch.ops.ckpt_streamer.open "
        f"{opening['median_seconds']:.3f} s (medians of 3)"
    )
    if not quick:
        print(write_result("iterate", [*rows, opening]))


if __name__ == "__main__":
    main()
