"""Converting a file to bfloat16 safetensors: memory and time.

Memory is that of the process, sampled each millisecond, and in a further run the most
that a cgroup was charged for whose limit is what the idle process needs, the limit
and 10%. Time is a ratio to `dd` that reads the input and writes as many bytes as the
output has, in the same run, and to loading, converting and `safetensors` `save_file`.
All of them have the disk keep what they wrote.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from checkpoints import CACHE, MIB, load, tensors_checkpoint
from environment import write_result
from memory_group import new_memory_group, why_none
from pages import make_cold, read_through
from ratios import paired_ratio
from sampler import Marks, record

from ckpt_streamer import convert

TARGET = CACHE / "converted.safetensors"
COPY = CACHE / "copied.safetensors"


def rehearse(limit_mb: int, way: Callable[..., object] = convert) -> None:
    small = CACHE / "convert-rehearsal.pt"
    torch.save({"a": torch.ones(1 << 20)}, small)
    target = CACHE / "convert-rehearsal.safetensors"
    way(small, target, torch.bfloat16, memory_limit_mb=limit_mb)


def convert_in_child(marks: Marks, source: str, limit_mb: int) -> None:
    """Convert, in a process that has done so with a small file before."""
    rehearse(limit_mb)
    marks.baseline()
    marks.start()
    convert(source, TARGET, torch.bfloat16, memory_limit_mb=limit_mb)
    marks.done()


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


def convert_in_group(
    marks: Marks, source: str, limit_mb: int, group: Path
) -> dict[str, Any]:
    """Do that inside a cgroup, whose limit is set when the process is idle.

    The memory that the process had before it moved in is charged elsewhere, so that
    the group's limit is the stricter for it.
    """
    (group / "cgroup.procs").write_text(str(os.getpid()))
    convert_dropping = partial(convert, drop_page_cache=True)
    rehearse(limit_mb, convert_dropping)
    idle_bytes = int((group / "memory.usage_in_bytes").read_text())
    allowed_bytes = int((idle_bytes + limit_mb * MIB) * 1.1)
    (group / "memory.limit_in_bytes").write_text(str(allowed_bytes))
    (group / "memory.max_usage_in_bytes").write_text("0")
    marks.baseline()
    marks.start()
    convert_dropping(source, TARGET, torch.bfloat16, memory_limit_mb=limit_mb)
    marks.done()
    events = dict(map(str.split, (group / "memory.oom_control").open()))
    return {
        "idle_mib": round(idle_bytes / MIB, 1),
        "allowed_mib": round(allowed_bytes / MIB, 1),
        "charged_mib": round(
            int((group / "memory.max_usage_in_bytes").read_text()) / MIB, 1
        ),
        "oom_kills": int(events["oom_kill"]),
    }


def measure_in_group(source: Path, limit_mb: int) -> dict[str, Any]:
    """Convert the file cold: what is in the page cache is charged to others."""
    row: dict[str, Any] = {"what": "cgroup", "limit_mb": limit_mb}
    if reason := why_none():
        return row | {"why_none": reason}
    make_cold(source)
    with new_memory_group() as group:
        assert group is not None
        recording = record(convert_in_group, str(source), limit_mb, group)
    return row | recording.result | {"seconds": round(recording.work_seconds, 2)}


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
    convert(source, TARGET, torch.bfloat16, memory_limit_mb=limit_mb)


def with_save_file(source: Path, _: int) -> None:
    """Load, convert and save, as one does."""
    state_dict = load(source)
    converted = {key: value.to(torch.bfloat16) for key, value in state_dict.items()}
    safetensors.torch.save_file(converted, COPY)
    descriptor = os.open(COPY, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    COPY.unlink()


def seconds_of(
    way: Callable[[Path, int], None], source: Path, limit_mb: int, is_cold: bool
) -> float:
    (make_cold if is_cold else read_through)(source)
    os.sync()
    begin = time.perf_counter()
    way(source, limit_mb)
    return time.perf_counter() - begin


def measure_time(
    source: Path, limit_mb: int, pairs: int, is_cold: bool, usual: bool
) -> dict[str, Any]:
    """Run the ways by turns."""
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
        if name != "convert":
            ratio = paired_ratio(seconds["convert"], values)
            row[f"ratio_to_{name}"] = asdict(ratio)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=1024, help="of 4 MiB")
    parser.add_argument("--limit", type=int, default=256, help="MiB")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["memory", "cgroup", "warm", "cold"])
    parser.add_argument("--usual", action="store_true", help="save_file as well")
    parser.add_argument("--write", action="store_true", help="to bench/results")
    arguments = parser.parse_args()
    source = tensors_checkpoint(arguments.tensors, 1 << 20)
    rows = []
    if arguments.only in {None, "memory"}:
        rows.append(measure_memory(source, arguments.limit))
    if arguments.only in {None, "cgroup"}:
        rows.append(measure_in_group(source, arguments.limit))
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
