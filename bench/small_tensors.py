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


def scripted_loop(path: str, memory_limit_bytes: int, passes: int) -> int:
    """Go through the file as small_loop.cpp does."""
    stream = ckpt_streamer.ops.open(path, memory_limit_bytes)
    name_bytes = 0
    for _ in range(passes):
        stream.reset()
        while stream.has_next():
            name, _tensor = stream.next()
            name_bytes += len(name)
    return name_bytes


warnings.filterwarnings("ignore", category=DeprecationWarning)
IN_SCRIPT = torch.jit.script(scripted_loop)


def seconds_of_a_pass(path: str) -> float:
    """Of one more pass: the opening is left out."""
    seconds = []
    for passes in (1, 2):
        begin = time.perf_counter()
        IN_SCRIPT(path, LIMIT_BYTES, passes)
        seconds.append(time.perf_counter() - begin)
    return seconds[1] - seconds[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=262144)
    arguments = parser.parse_args()
    path = tensors_checkpoint(arguments.count, 1024)
    program = compiled("small_loop")
    seconds_of_a_pass(str(path))
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
        scripted.append(seconds_of_a_pass(str(path)))
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
