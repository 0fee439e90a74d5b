"""Measure the memory that loading into a model takes, at every millisecond.

Each case loads a file into a model in a process of its own, sampled from outside.
Exits with 1 if more of the file than the limit was in memory at once, pages of it
were left, or more anonymous memory than 16 MiB came on top of the model's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import MIB
from environment import write_result
from models import large_checkpoint, large_model, single_checkpoint, single_model
from pages import resident_bytes, warm
from sampler import Marks, record
from torch import nn

from ckpt_streamer import apply_state_dict

LIMIT_MIB = 64
REHEARSAL_MIB = 32
ANON_BAR_BYTES = 16 * MIB


@dataclass(frozen=True)
class Case:
    """A float32 file, and the model that it is loaded into."""

    title: str
    checkpoint: Callable[[int], Path]
    make_model: Callable[[int, torch.dtype], nn.Module]
    size_mib: int
    dtype: torch.dtype
    is_made: bool = False  # a model on the meta device, its parameters made


def cases(size_mib: int) -> list[Case]:
    large, single = (large_checkpoint, large_model), (single_checkpoint, single_model)
    title, one = f"{size_mib} MiB", f"one of {16 * LIMIT_MIB} MiB"
    return [
        Case(title, *large, size_mib, torch.float32),
        Case(title, *large, size_mib, torch.bfloat16),
        Case(one, *single, 16 * LIMIT_MIB, torch.float32),
        Case(one, *single, 16 * LIMIT_MIB, torch.bfloat16),
        Case(title, *large, size_mib, torch.bfloat16, is_made=True),
        Case(one, *single, 16 * LIMIT_MIB, torch.bfloat16, is_made=True),
    ]


def load(case: Case, model: nn.Module, path: Path) -> None:
    options: dict[str, Any] = {}
    if case.is_made:
        options = {"assign": True, "dtype": case.dtype}
    apply_state_dict(model, path, memory_limit_mb=LIMIT_MIB, **options)


def model_of(case: Case, size_mib: int) -> nn.Module:
    with torch.device("meta" if case.is_made else "cpu"):
        return case.make_model(size_mib, case.dtype)


def work(marks: Marks, case: Case, path: Path, rehearsal: Path) -> dict[str, Any]:
    # With threads, their stacks, and all code in memory.
    load(case, model_of(case, REHEARSAL_MIB), rehearsal)
    model = model_of(case, case.size_mib)
    marks.baseline()
    marks.start()
    load(case, model, path)
    marks.done()
    own_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "end_bytes": resident_bytes(path),
        "made_bytes": own_bytes if case.is_made else 0,
        "dtypes": sorted({str(parameter.dtype) for parameter in model.parameters()}),
    }


def measure(case: Case) -> dict[str, Any]:
    path, rehearsal = case.checkpoint(case.size_mib), case.checkpoint(REHEARSAL_MIB)
    warm(path)
    recording = record(work, case, path, rehearsal)
    result = recording.result
    anon_bytes = recording.peak_anon_bytes - result["made_bytes"]
    return {
        "case": case.title,
        "model": "made" if case.is_made else "there",
        "limit_bytes": LIMIT_MIB * MIB,
        "samples": len(recording.seconds),
        "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        "peak_file_bytes": recording.peak_file_bytes,
        "peak_anon_bytes_beside_model": anon_bytes,
        "work_seconds": round(recording.work_seconds, 3),
        **result,
        "held": recording.peak_file_bytes <= LIMIT_MIB * MIB
        and anon_bytes <= ANON_BAR_BYTES
        and result["end_bytes"] == 0,
    }


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:16} {row['dtypes'][0]:15} {row['model']:6} "
        f"{row['peak_file_bytes'] / MIB:9.2f} MiB "
        f"{row['peak_anon_bytes_beside_model'] / MIB:9.2f} MiB "
        f"{row['end_bytes'] / MIB:5.1f} MiB {row['samples']:8} "
        f"{row['longest_gap_seconds'] * 1000:6.1f} ms {row['work_seconds']:6.2f} s"
        f"{'' if row['held'] else '  EXCEEDED'}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="a large model of 4 GiB")
    full = parser.parse_args().full
    print(
        f"{'file':16} {'dtype':15} {'model':6} {'peak of file':>13} "
        f"{'anonymous':>13} {'after':>9} {'samples':>8} {'gap':>9} {'time':>8}"
    )
    rows = []
    for case in cases(4096 if full else 1024):
        rows.append(measure(case))
        print_row(rows[-1])
    print(write_result("apply_memory", rows))
    return 0 if all(row["held"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
