"""What the caller's own code makes between two tensors, it makes in one place.

Else each result of ``Tensor.to()`` costs as many page faults as it has pages, and a
stream of 4 MiB tensors holds 16 MiB more.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

COUNT = 48
PROGRAM = """
import sys, torch, ckpt_streamer
path, way = sys.argv[1:]
torch.set_num_threads(1)
def tensors():
    if way == "open":
        with ckpt_streamer.open(path, memory_limit_mb=64) as checkpoint:
            yield from (tensor for _, tensor in checkpoint)
    elif way == "op":
        handle = torch.ops.ckpt_streamer.open(path, 64 << 20)
        while handle.has_next():
            yield handle.next()[1]
    else:
        state_dict = torch.load(path, mmap=True)
        yield from (val for *_, val in ckpt_streamer.stream(state_dict, 64))
for _ in range(2):
    print(len({tensor.to(torch.bfloat16).data_ptr() for tensor in tensors()}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another heap")
@pytest.mark.parametrize(
    ("way", "suffix"),
    [
        *(("open", "pt"), ("op", "pt"), ("stream", "pt")),
        *(("open", "safetensors"), ("op", "safetensors")),
    ],
)
def test_results_share_their_memory(tmp_path: Path, way: str, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    tensors = {f"w{i:02}": torch.ones(1024, 1024) for i in range(COUNT)}
    (torch.save if suffix == "pt" else safetensors.torch.save_file)(tensors, path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(path), way],
        capture_output=True,
        text=True,
        check=True,
    )
    # Of two passes: a few where the heap was in pieces before; 15 to 22 otherwise.
    assert sum(map(int, done.stdout.split())) <= 12
