"""What the caller's own code makes between two tensors, it makes in one place.

Else each result of ``Tensor.to()`` costs as many page faults as it has pages, and a
stream of 4 MiB tensors holds 16 MiB more.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

MIB = 1024 * 1024
COUNT = 48
RESULT_PAGES = 2 * MIB // os.sysconf("SC_PAGE_SIZE")
PROGRAM = """
import resource, sys, torch, ckpt_streamer
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
def fault_count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def new_places():
    places = []  # those within half a result of another one are mostly its pages
    for tensor in tensors():
        address = tensor.to(torch.bfloat16).data_ptr()
        if all(abs(address - place) > (1 << 20) for place in places):
            places.append(address)
    return len(places)
before = fault_count()
places = new_places() + new_places()
faults = fault_count() - before
for tensor in tensors():
    tensor.sum()
print(places, faults - 2 * (fault_count() - before - faults))
"""


only_with_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another heap"
)


@only_with_glibc
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
    # Or the heap's end moves a little with each, and is given back now and then.
    places, faults = map(int, done.stdout.split())
    assert places <= 12
    assert faults < COUNT * RESULT_PAGES / 3


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


@only_with_glibc
def test_results_of_one_pass_take_each_others_place(tmp_path: Path) -> None:
    """Each is freed before the next: of 48, some find no place among the others."""
    path = tmp_path / "tensors.pt"
    torch.save({f"w{i}": torch.ones(MIB // 2) for i in range(COUNT)}, path)
    for seed in range(6):  # the heap's layout is another one each time
        done = subprocess.run(
            [sys.executable, "-P", "-c", PASS, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        assert int(done.stdout) < 5 * MIB  # five results
