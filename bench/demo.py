"""Stream a checkpoint of more than 1 GiB through 128 MiB, beside the plain way.

Five processes, one after the other: convert every tensor to bfloat16 and load a
bfloat16 model, each in PyTorch's way and in ckpt_streamer's, and write a bfloat16
file. Their memory is sampled from outside. Exits with 1 if a bounded way exceeded
the limit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import MIB, load, model_checkpoint
from environment import PLOTS, write_result
from language_model import DEMO, REHEARSAL, Config, empty_bfloat16_model
from pages import warm
from plot import draw_rss
from sampler import Marks, Recording, record
from torch import Tensor, nn
from tqdm import tqdm

from ckpt_streamer import apply_state_dict, convert, stream

LIMIT_MIB = 128

Way = Callable[[Path, Config], None]


def progress(title: str, state_dict: dict[str, Tensor], config: Config) -> tqdm[Any]:
    return tqdm(
        desc=f"{title:30}",
        total=sum(tensor.nbytes for tensor in state_dict.values()),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=config == REHEARSAL,
    )


def convert_plainly(path: Path, config: Config) -> None:
    state_dict = load(path)
    with progress("convert: state_dict.items()", state_dict, config) as bar:
        for tensor in state_dict.values():
            tensor.to(torch.bfloat16)
            bar.update(tensor.nbytes)


def convert_bounded(path: Path, config: Config) -> None:
    state_dict = load(path)
    with progress("convert: stream(state_dict)", state_dict, config) as bar:
        for _obj, _key, tensor in stream(state_dict, memory_limit_mb=LIMIT_MIB):
            tensor.to(torch.bfloat16)
            bar.update(tensor.nbytes)


def load_model_plainly(path: Path, config: Config) -> None:
    empty_bfloat16_model(config).load_state_dict(load(path))


def load_model_bounded(path: Path, config: Config) -> None:
    state_dict = load(path)
    with progress("load: apply_state_dict(model)", state_dict, config) as bar:

        def count(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
            bar.update(tensor.nbytes)
            return tensor  # converted to bfloat16 by the copy into the model

        apply_state_dict(
            empty_bfloat16_model(config),
            state_dict,
            converter=count,
            memory_limit_mb=LIMIT_MIB,
        )


def convert_file(path: Path, config: Config) -> None:
    """Write the converted tensors to a file as well."""
    target = path.with_name(f"{config.name}-bfloat16.safetensors")
    convert(
        path,
        target,
        torch.bfloat16,
        tied="once",
        memory_limit_mb=LIMIT_MIB,
        progress=config != REHEARSAL,
    )
    target.unlink()


# Task, label, way, whether it is bounded.
WAYS: list[tuple[str, str, Way, bool]] = [
    ("convert to bfloat16", "state_dict.items()", convert_plainly, False),
    ("convert to bfloat16", "stream()", convert_bounded, True),
    ("load a bfloat16 model", "load_state_dict()", load_model_plainly, False),
    ("load a bfloat16 model", "apply_state_dict()", load_model_bounded, True),
    ("write a bfloat16 file", "convert()", convert_file, True),
]


def work(marks: Marks, way: Way, path: Path, rehearsal_path: Path) -> None:
    way(rehearsal_path, REHEARSAL)  # so that the code's own pages count before
    marks.baseline()
    marks.start()
    way(path, DEMO)
    marks.done()


def figures(
    task: str, label: str, is_bounded: bool, recording: Recording[None]
) -> dict[str, Any]:
    return {
        "task": task,
        "way": label,
        "limit_bytes": LIMIT_MIB * MIB if is_bounded else None,
        "peak_file_bytes": recording.peak_file_bytes,
        "peak_anon_bytes": recording.peak_anon_bytes,
        "work_seconds": round(recording.work_seconds, 3),
        "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        "seconds": [round(value, 4) for value in recording.seconds],
        "file_bytes": recording.file_bytes,
        "anon_bytes": recording.anon_bytes,
    }


def print_table(rows: list[dict[str, Any]], path: Path) -> None:
    file_size_mib = path.stat().st_size / MIB
    print(
        f"\n{'task':22} {'way':19} {'file':>10} {'limit':>9} {'peak file':>11} "
        f"{'peak anon':>11} {'time':>8}"
    )
    for row in rows:
        limit = f"{LIMIT_MIB} MiB" if row["limit_bytes"] else "none"
        print(
            f"{row['task']:22} {row['way']:19} {file_size_mib:6.0f} MiB {limit:>9} "
            f"{row['peak_file_bytes'] / MIB:7.1f} MiB "
            f"{row['peak_anon_bytes'] / MIB:7.1f} MiB {row['work_seconds']:6.2f} s"
        )


def main() -> int:
    path = model_checkpoint(DEMO)
    rehearsal_path = model_checkpoint(REHEARSAL)
    warm(path)
    rows = []
    for task, label, way, is_bounded in WAYS:
        recording = record(work, way, path, rehearsal_path)
        rows.append(figures(task, label, is_bounded, recording))
    print_table(rows, path)
    write_result("demo", rows)
    plot = draw_rss(rows, PLOTS / "rss.png")
    print(
        "\npeak file: resident pages of files, peak anon: other memory, both without "
        f"what was there before the work.\n{plot} shows them over time."
    )
    peak_mib = max(row["peak_file_bytes"] for row in rows if row["limit_bytes"]) / MIB
    gap_ms = max(row["longest_gap_seconds"] for row in rows) * 1000
    held = peak_mib <= LIMIT_MIB
    print(
        f"The limit of {LIMIT_MIB} MiB {'held' if held else 'DID NOT HOLD'}: sampled "
        f"every millisecond (longest gap {gap_ms:.1f} ms), the bounded ways had at "
        f"most {peak_mib:.1f} MiB of the file in memory."
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
