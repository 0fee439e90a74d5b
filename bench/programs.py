"""Compiles the C++ programs that are measured, against this package and torch."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

from checkpoints import CACHE
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).resolve().parent


@cache
def compiled(name: str, *flags: str) -> Path:
    """Compile ``bench/<name>.cpp``, once, and return the program."""
    # Here, so that a process that needs another package of this name can import this.
    ckpt_streamer = import_module("ckpt_streamer")
    program = CACHE / name
    includes = [*ckpt_streamer.include_paths(), *include_paths()]
    folders = [*ckpt_streamer.library_paths(), *library_paths()]
    CACHE.mkdir(exist_ok=True)
    subprocess.run(
        [
            *("c++", "-std=c++20", "-O2", *flags, str(HERE / f"{name}.cpp")),
            *(flag for path in includes for flag in ("-isystem", path)),
            *(flag for path in folders for flag in (f"-L{path}", f"-Wl,-rpath,{path}")),
            *("-lckpt_streamer", "-ltorch_cpu", "-lc10", "-o", str(program)),
        ],
        check=True,
    )
    return program
