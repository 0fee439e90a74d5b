"""Measure loading a TorchScript archive, against torch.jit.load.

Each way loads a warm archive in a process of its own, sampled from outside: the
seconds and the memory that it takes until the module is there, then until it has
run once. The ratio of the seconds is of interleaved pairs.

Exits with 1 unless loading takes less time, and no more anonymous memory than
16 MiB, with ckpt_streamer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import CACHE, MIB
from environment import write_result
from pages import warm
from ratios import paired_ratio
from sampler import Marks, record
from torch import nn

from ckpt_streamer import jit_load

WIDTH = 2048
LAYER_MIB = WIDTH * WIDTH * 4 // MIB
ANON_BAR_BYTES = 16 * MIB

LOADS: dict[str, Callable[[Path], Any]] = {
    "torch.jit.load": torch.jit.load,
    "ckpt_streamer.jit_load": jit_load,
}


def archive(size_mib: int) -> Path:
    path = CACHE / f"module-{size_mib}.pt"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        layers = [
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(size_mib // LAYER_MIB)
        ]
        torch.jit.save(torch.jit.script(nn.Sequential(*layers)), path)
    return path


def work(
    marks: Marks, way: str, path: Path, small: Path, runs: bool
) -> tuple[float, float]:
    """Return the seconds of the load, and of the load with the first run."""
    x = torch.rand(1, WIDTH)
    with torch.no_grad():
        LOADS[way](small)(x)
        marks.baseline()
        marks.start()
        begin = time.perf_counter()
        module = LOADS[way](path)
        loaded = time.perf_counter() - begin
        if runs:
            module(x)
        done = time.perf_counter() - begin
        marks.done()
    return loaded, done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    path, small = archive(arguments.size), archive(LAYER_MIB)
    warm(path)
    failed = False
    rows = []
    for runs in (False, True):
        seconds: dict[str, list[float]] = {way: [] for way in LOADS}
        peaks: dict[str, tuple[int, int]] = {}
        for _ in range(arguments.pairs):
            for way in LOADS:
                recording = record(work, way, path, small, runs)
                seconds[way].append(recording.result[1 if runs else 0])
                peaks[way] = (recording.peak_anon_bytes, recording.peak_file_bytes)
        theirs, ours = (seconds[way] for way in LOADS)
        ratio = paired_ratio(ours, theirs)
        for way in LOADS:
            anon_bytes, file_bytes = peaks[way]
            row = {
                "size_mib": arguments.size,
                "runs_once": runs,
                "way": way,
                "seconds": sorted(seconds[way])[arguments.pairs // 2],
                "peak_anon_bytes": anon_bytes,
                "peak_file_bytes": file_bytes,
            }
            if way == "ckpt_streamer.jit_load":
                row |= {"ratio": ratio.mean, "low": ratio.low, "high": ratio.high}
                failed |= ratio.high >= 1 or (not runs and anon_bytes > ANON_BAR_BYTES)
            rows.append(row)
            print(row)
    write_result("jit_load", rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
