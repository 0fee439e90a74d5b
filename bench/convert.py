"""Converting a file to bfloat16 safetensors: memory and time.

Time is a ratio to `dd` that reads the input and writes as many bytes as the output
has, in the same run, and to loading, converting and `safetensors` `save_file`. All
of them have the disk keep what they wrote.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from checkpoints import CACHE, MIB, load, tensors_checkpoint
from environment import write_result
from sampler import Marks, record

import ckpt_streamer

TARGET = CACHE / "converted.safetensors"
COPY = CACHE / "copied.safetensors"


def convert_in_child(marks: Marks, source: str, limit_mb: int) -> int:
    """Convert, in a process that has done so with a small file before."""
    small = CACHE / "rehearsal.pt"
    torch.save({"a": torch.ones(1 << 20)}, small)
    ckpt_streamer.convert(
        small, CACHE / "rehearsal.safetensors", torch.bfloat16, memory_limit_mb=limit_mb
    )
    marks.baseline()
    marks.start()
    ckpt_streamer.convert(source, TARGET, torch.bfloat16, memory_limit_mb=limit_mb)
    marks.done()
    return TARGET.stat().st_size


def measure_memory(source: Path, limit_mb: int) -> dict[str, Any]:
    recording = record(convert_in_child, str(source), limit_mb)
    together = [
        file + anon
        for file, anon in zip(recording.file_bytes, recording.anon_bytes, strict=True)
    ]
    return {
        "what": "memory",
        "limit_mb": limit_mb,
        "peak_mib": round(max(together) / MIB, 1),
        "peak_file_mib": round(recording.peak_file_bytes / MIB, 1),
        "peak_anon_mib": round(recording.peak_anon_bytes / MIB, 1),
        "seconds": round(recording.work_seconds, 2),
    }


def with_dd(source: Path, _: int) -> None:
    """Read the input's bytes; write the output's."""
    size = TARGET.stat().st_size
    run = ["dd", "bs=4M", "status=none"]
    subprocess.run([*run, f"if={source}", "of=/dev/null"], check=True)
    subprocess.run(
        [
            *run,
            "if=/dev/zero",
            f"of={COPY}",
            "conv=fsync",
            "iflag=count_bytes",
            f"count={size}",
        ],
        check=True,
    )
    COPY.unlink()


def with_convert(source: Path, limit_mb: int) -> None:
    ckpt_streamer.convert(source, TARGET, torch.bfloat16, memory_limit_mb=limit_mb)


def with_save_file(source: Path, _: int) -> None:
    """Load, convert and save, as one does."""
    state_dict = load(source)
    converted = {key: value.to(torch.bfloat16) for key, value in state_dict.items()}
    safetensors.torch.save_file(converted, COPY)
    descriptor = os.open(COPY, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    COPY.unlink()


def drop_cached(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def warm(path: Path) -> None:
    subprocess.run(
        ["dd", "bs=4M", "status=none", f"if={path}", "of=/dev/null"], check=True
    )


def seconds_of(
    way: Callable[[Path, int], None], source: Path, limit_mb: int, is_cold: bool
) -> float:
    (drop_cached if is_cold else warm)(source)
    os.sync()
    begin = time.perf_counter()
    way(source, limit_mb)
    return time.perf_counter() - begin


def measure_time(
    source: Path, limit_mb: int, pairs: int, is_cold: bool, usual: bool
) -> dict[str, Any]:
    """Run the ways by turns; the ratio is the geometric mean of the pairs'."""
    ways = {"dd": with_dd, "convert": with_convert}
    if usual:
        ways["save_file"] = with_save_file
    with_convert(source, limit_mb)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs):
        names = list(ways) if pair % 2 == 0 else list(reversed(ways))
        for name in names:
            seconds[name].append(seconds_of(ways[name], source, limit_mb, is_cold))
    row: dict[str, Any] = {
        "what": "time",
        "cold": is_cold,
        "limit_mb": limit_mb,
        "pairs": pairs,
    }
    for name, values in seconds.items():
        row[f"{name}_seconds"] = [round(value, 2) for value in values]
        logs = [
            math.log(own / theirs)
            for own, theirs in zip(seconds["convert"], values, strict=True)
        ]
        if name != "convert":
            row[f"ratio_to_{name}"] = round(math.exp(sum(logs) / len(logs)), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=1024, help="of 4 MiB")
    parser.add_argument("--limit", type=int, default=256, help="MiB")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["memory", "warm", "cold"])
    parser.add_argument("--usual", action="store_true", help="save_file as well")
    parser.add_argument("--write", action="store_true", help="to bench/results")
    arguments = parser.parse_args()
    source = tensors_checkpoint(arguments.tensors, 1 << 20)
    rows = []
    if arguments.only in {None, "memory"}:
        rows.append(measure_memory(source, arguments.limit))
    for name in ("warm", "cold"):
        if arguments.only in {None, name}:
            rows.append(
                measure_time(
                    source,
                    arguments.limit,
                    arguments.pairs,
                    name == "cold",
                    arguments.usual,
                )
            )
    for row in rows:
        print(row, file=sys.stderr)
    if arguments.write:
        print(write_result("convert", rows))
    TARGET.unlink()


if __name__ == "__main__":
    main()
