"""Time and charge of reading a cold file in a container that just fits the limit.

Each run is a process in a memory cgroup of its own (version 1; needs root) whose
limit is what the idle process needs (torch imported, its model built and touched),
and the stream's limit, and 10%. In each round all ways run once, in random order,
each on a file dropped from the page cache just before.

ways:
  stream, plain        every tensor summed: stream(path, limit, drop_page_cache=True),
                       and torch.load(path, mmap=True).values()
  apply, plain apply   loaded into a model: apply_state_dict(), likewise, and
                       load_state_dict()
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from checkpoints import MIB, tensors_checkpoint
from environment import write_result
from memory_group import new_memory_group, why_none
from pages import make_cold
from ratios import paired_ratio

from ckpt_streamer import apply_state_dict, stream

TENSOR_MIB = 4
# Each way, and what it is compared with.
PEERS = {"stream": "plain", "apply": "plain apply"}


def run_inside(way: str, path: str, limit_mib: int, group: Path) -> None:
    """Run one way in this process, and print its figures."""
    torch.set_num_threads(1)
    model = torch.nn.Module()
    if way.endswith("apply"):
        count = Path(path).stat().st_size // (TENSOR_MIB * MIB)
        for i in range(count):
            model.register_buffer(f"key{i}", torch.ones(TENSOR_MIB * MIB // 4))
    torch.ones(1000).sum()
    idle = int((group / "memory.usage_in_bytes").read_text())
    (group / "memory.limit_in_bytes").write_text(
        str(int(1.1 * (idle + limit_mib * MIB)))
    )
    (group / "memory.max_usage_in_bytes").write_text("0")
    start = time.perf_counter()
    if way == "stream":
        for _, _, tensor in stream(path, limit_mib, drop_page_cache=True):
            tensor.sum()
    elif way == "plain":
        for tensor in torch.load(path, mmap=True).values():
            tensor.sum()
    elif way == "apply":
        apply_state_dict(model, path, memory_limit_mb=limit_mib, drop_page_cache=True)
    else:
        model.load_state_dict(torch.load(path, mmap=True))
    seconds = time.perf_counter() - start
    peak = int((group / "memory.max_usage_in_bytes").read_text())
    print(json.dumps({"seconds": seconds, "idle": idle, "peak": peak}))


def run_once(way: str, path: Path, limit_mib: int) -> dict[str, Any]:
    """Run one way in a new process and cgroup."""
    make_cold(path)
    with new_memory_group() as group:
        printed = subprocess.run(
            [
                *("/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"'),
                *(str(group), sys.executable, __file__, "--inside", way),
                *("--path", str(path), "--group", str(group)),
                *("--limit", str(limit_mib)),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    figures: dict[str, Any] = json.loads(printed)
    return figures


def measure(way: str, size_mib: int, limit_mib: int, rounds: int) -> dict[str, Any]:
    """Compare a way with its peer."""
    path = tensors_checkpoint(size_mib // TENSOR_MIB, TENSOR_MIB * MIB // 4)
    ways = [way, PEERS[way]]
    runs: dict[str, list[dict[str, Any]]] = {each: [] for each in ways}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for each in shuffle.sample(ways, len(ways)):
            runs[each].append(run_once(each, path, limit_mib))
    times = {each: [run["seconds"] for run in runs[each]] for each in ways}
    above = max(run["peak"] - run["idle"] for run in runs[way]) / MIB
    ratio = paired_ratio(times[way], times[PEERS[way]])
    print(
        f"{way}, {size_mib} MiB, limit {limit_mib} MiB: at most {above:.0f} MiB "
        f"above the idle process; of {PEERS[way]}'s time {ratio.mean:.2f} "
        f"({ratio.low:.2f} to {ratio.high:.2f})",
        flush=True,
    )
    return {
        "way": way,
        "size_mib": size_mib,
        "limit_mib": limit_mib,
        "peak_above_idle_mib": above,
        "ratio": asdict(ratio),
        **times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="MiB")
    parser.add_argument("--limit", type=int, default=64, help="MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", choices=[*PEERS, *PEERS.values()])
    parser.add_argument("--path")
    parser.add_argument("--group", type=Path)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        run_inside(arguments.inside, arguments.path, arguments.limit, arguments.group)
        return
    if (reason := why_none()) is not None:
        sys.exit(reason)
    rows = [
        measure(way, arguments.size, arguments.limit, arguments.rounds) for way in PEERS
    ]
    print(write_result("container", rows))


if __name__ == "__main__":
    main()
