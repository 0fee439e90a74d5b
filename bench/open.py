"""Time opening and reading checkpoint files, beside the ways that there are.

All ways of a file are interleaved in random order in one process, which opens
the file anew each time; it is in the page cache (see pages.warm), and none of it
mapped into the process. A ratio is that of two ways of the same rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import (
    legacy_checkpoint,
    safetensors_checkpoint,
    script_checkpoint,
    sharded_checkpoint,
    tensors_checkpoint,
)
from environment import write_result
from pages import warm
from programs import compiled
from ratios import paired_ratio

HERE = Path(__file__).resolve().parent
SMALL_LIMIT_MIB = 64
DEFAULT_LIMIT_MIB = 1024
OURS = ["iterate", "fused", "fused_torchscript", "fused_cpp"]

# By their names in open_worker.py.
TEXTS = {
    "open": "ckpt_streamer.open",
    "iterate": "open, iterate, .to(bfloat16)",
    "fused": "open(dtype=bfloat16), iterate",
    "fused_torchscript": "the same in TorchScript",
    "fused_cpp": "the same in C++",
    "torch_load": "torch.load(mmap=True)",
    "torch_load_iterate": "the same, items, .to(bfloat16)",
    "torch_load_unmapped": "torch.load, items, .to(bfloat16)",
    "torch_jit_load": "torch.jit.load, buffers, .to(bfloat16)",
    "safe_open": "safe_open, get_tensor, .to(bfloat16)",
    "safe_open_shards": "safe_open of each shard, likewise",
    "load_file": "load_file, values, .to(bfloat16)",
}


@dataclass(frozen=True)
class Case:
    title: str
    path: Path
    pairs: list[tuple[str, str]]  # a way and the one that it is held against
    round_count: int
    limit_mib: int
    slow_names: tuple[str, ...] = ()  # ways that are not warmed up


def against(ways: list[str], peers: list[str]) -> list[tuple[str, str]]:
    return [(way, peer) for peer in peers for way in ways]


def small_tensors(count: int, elements: int, options: argparse.Namespace) -> list[Case]:
    zip_pairs = [("open", "torch_load"), *against(OURS, ["torch_load_iterate"])]
    quarter = count // 4
    return [
        Case(
            f"zip, {count} of {elements * 4 // 1024} KiB",
            tensors_checkpoint(count, elements),
            zip_pairs,
            min(options.rounds, 3),  # of torch.load, each takes half a minute
            SMALL_LIMIT_MIB,
            ("torch_load_iterate",),
        ),
        Case(
            f"safetensors, {quarter} of {elements * 4 // 1024} KiB",
            safetensors_checkpoint(quarter, elements),
            against(OURS, ["safe_open", "load_file"]),
            options.rounds,
            SMALL_LIMIT_MIB,
        ),
    ]


def large_tensors(count: int, elements: int, options: argparse.Namespace) -> list[Case]:
    """One checkpoint in each format, at the default limit and a small one."""
    size = f"{count} of {elements * 4 // 1024 // 1024} MiB"
    ways = ["iterate", "fused"]
    formats = [
        ("zip", tensors_checkpoint, ["torch_load_iterate"]),
        ("legacy", legacy_checkpoint, ["torch_load_unmapped"]),
        ("TorchScript", script_checkpoint, ["torch_jit_load"]),
        ("safetensors", safetensors_checkpoint, ["safe_open", "load_file"]),
        ("4 shards", sharded_checkpoint, ["safe_open_shards"]),
    ]
    return [
        Case(
            f"{name}, {size}",
            make(count, elements),
            against(ways, peers),
            2 * options.rounds,
            limit_mib,
        )
        for name, make, peers in formats
        for limit_mib in (DEFAULT_LIMIT_MIB, SMALL_LIMIT_MIB)
    ]


def run_worker(**task: Any) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / "open_worker.py")],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def measure_times(
    case: Case, program: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    files = [case.path, *case.path.parent.glob(f"{case.path.stem}-shard*")]
    for path in files:
        warm(path)
    seconds = run_worker(
        path=str(case.path),
        files=[str(path) for path in files],
        limit_mib=case.limit_mib,
        program=str(program),
        # What another way begins with is timed in its pass.
        names=[
            name
            for name in dict.fromkeys(name for pair in case.pairs for name in pair)
            if name != "torch_load"
        ],
        slow_names=case.slow_names,
        round_count=case.round_count,
        threads=options.threads,
        settled=options.settled,
    )
    rows = []
    for way, peer in case.pairs:
        row = {
            "file": case.title,
            "way": way,
            "peer": peer,
            "threads": options.threads,
            "limit_mib": case.limit_mib,
            "more_is_better": True,  # how many times faster
            "ratio": asdict(paired_ratio(seconds[peer], seconds[way])),
            "median_seconds": median(seconds[way]),
            "peer_median_seconds": median(seconds[peer]),
            "seconds": seconds[way],
            "peer_seconds": seconds[peer],
        }
        rows.append(row)
        ratio = row["ratio"]
        print(
            f"{case.title:28} {case.limit_mib:4} MiB {TEXTS[way]:30} "
            f"{row['median_seconds']:8.4f} s  "
            f"{TEXTS[peer]:38} {row['peer_median_seconds']:8.4f} s  "
            f"{ratio['mean']:6.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            flush=True,
        )
    return rows


def measure_memory(case: Case) -> list[dict[str, Any]]:
    small = tensors_checkpoint(16, 1024)
    rows = []
    for name in ("open", "torch_load"):
        peak = run_worker(
            path=str(case.path),
            limit_mib=case.limit_mib,
            name=name,
            small_path=str(small),
        )
        rows.append({"file": case.title, "way": name, "peak_anonymous_bytes": peak})
        print(
            f"{case.title:28} {TEXTS[name]:30} {peak / 2**20:8.1f} MiB "
            "of anonymous memory, at most"
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a file")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument(
        "--settled",
        action="store_true",
        help="give free memory back before each pass, as at the start of a process; "
        "else a pass may find what another has left",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small files and 3 rounds; prints, but writes no result",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="files with this in their titles; prints, but writes no result",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.quick:
        options.rounds = 3
        cases = [
            *small_tensors(8192, 1024, options),
            *large_tensors(16, 1024 * 1024, options),
        ]
    else:
        cases = [
            *small_tensors(262_144, 1024, options),
            *large_tensors(256, 1024 * 1024, options),
        ]
    program = compiled("open_loop")
    print("file, way, its median, peer, its median, how many times faster (95%)")
    rows = []
    if options.only in cases[0].title:
        rows += measure_memory(cases[0])
    for case in cases:
        if options.only in case.title:
            rows += measure_times(case, program, options)
    if not options.quick and not options.only:
        print(write_result("open-settled" if options.settled else "open", rows))


if __name__ == "__main__":
    main()
