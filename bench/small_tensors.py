"""Measure what one small tensor costs in a loop, in C++ and in TorchScript.

The loops do not touch the tensors, 262,144 of 4 KiB. Medians of interleaved passes,
in microseconds for each tensor. Exits with 1 if the C++ loop takes more than 1, or the
scripted one more than 1.5 on top of it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings

import torch
from checkpoints import MIB, tensors_checkpoint
from environment import write_result
from programs import compiled

import ckpt_streamer

LIMIT_BYTES = 64 * MIB
CPP_BAR, SCRIPTED_BAR = 1.0, 1.5


def scripted_loop(path: str, memory_limit_bytes: int, passes: int) -> list[float]:
    """Return the seconds of each pass, as small_loop.cpp prints them."""
    stream = ckpt_streamer.ops.open(path, memory_limit_bytes)
    seconds: list[float] = []
    for _ in range(passes):
        stream.reset()
        name_bytes = 0
        begin = time.perf_counter()
        while stream.has_next():
            name, _tensor = stream.next()
            name_bytes += len(name)
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=262144)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    path = tensors_checkpoint(arguments.count, 1024)
    program = compiled("small_loop")
    in_script = torch.jit.script(scripted_loop)
    in_script(str(path), LIMIT_BYTES, 2)
    cpp: list[float] = []
    scripted: list[float] = []
    for _ in range(arguments.rounds):
        done = subprocess.run(
            [program, path, str(LIMIT_BYTES), "2"],
            capture_output=True,
            text=True,
            check=True,
        )
        cpp.append(float(done.stdout.split()[-1]))
        scripted.append(in_script(str(path), LIMIT_BYTES, 2)[-1])
    each_cpp, each_scripted = (
        statistics.median(seconds) / arguments.count * 1e6
        for seconds in (cpp, scripted)
    )
    print(f"C++: {each_cpp:.2f} us each, at most {CPP_BAR}")
    over = each_scripted - each_cpp
    print(
        f"TorchScript: {each_scripted:.2f} us each, {over:.2f} on top, "
        f"at most {SCRIPTED_BAR}"
    )
    write_result(
        "small_tensors",
        [{"cpp_microseconds": each_cpp, "scripted_microseconds": each_scripted}],
    )
    return int(each_cpp > CPP_BAR or over > SCRIPTED_BAR)


if __name__ == "__main__":
    sys.exit(main())
