"""Compiles ``largest.cpp`` when it is needed and prints what its op returns.

python compile_and_run.py model.ckpt
"""

import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

import ckpt_streamer

load(
    name="checkpoint_statistics",
    sources=[str(Path(__file__).with_name("largest.cpp"))],
    extra_include_paths=ckpt_streamer.include_paths(),
    extra_cflags=["-std=c++20"],
    extra_ldflags=[
        *(f"-L{path}" for path in ckpt_streamer.library_paths()),
        "-lckpt_streamer",
    ],
    is_python_module=False,
)

found = torch.ops.checkpoint_statistics.largest(sys.argv[1], 64 << 20)
for name, value in found.items():
    print(f"{name}: {value:g}")
