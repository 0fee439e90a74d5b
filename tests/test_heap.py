"""What streaming adds to the heap beside the tensors that the caller makes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MIB = 1024 * 1024
RESULT_BYTES = MIB

PASS = """
import ctypes
import gc
import sys

import torch

import ckpt_streamer


def anonymous_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_of_a_pass():
    before = peak = anonymous_bytes()
    for _, tensor in ckpt_streamer.open(sys.argv[1], 4):
        tensor.to(torch.bfloat16)
        peak = max(peak, anonymous_bytes())
    return peak - before


peak_of_a_pass()
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
print(peak_of_a_pass())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's heap is looked after"
)
def test_results_of_one_pass_take_each_others_place(tmp_path: Path) -> None:
    """Each is freed before the next: of 48, some find no place among the others."""
    path = tmp_path / "tensors.pt"
    torch.save({f"w{i}": torch.ones(MIB // 2) for i in range(48)}, path)
    for seed in range(6):  # the heap's layout is another one each time
        done = subprocess.run(
            [sys.executable, "-P", "-c", PASS, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        assert int(done.stdout) < 5 * RESULT_BYTES
