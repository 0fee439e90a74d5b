"""Times ways to open and read one file; run by open.py, in a process of its own.

Reads a task as JSON from stdin and writes its figures to stdout.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from checkpoints import MIB
from pages import cached_bytes, resident_bytes, warm
from settling import settle

import ckpt_streamer

BFLOAT16 = torch.bfloat16


@torch.jit.script
def convert_in_torchscript(path: str, memory_limit_bytes: int) -> None:
    handle = torch.ops.ckpt_streamer.open(
        path, memory_limit_bytes, dtype=torch.bfloat16
    )
    while handle.has_next():
        handle.next()


class Ways:
    """Each a pass over the file at ``path``, by its name.

    Of one that is a generator, what it yields is the name of another way that it
    begins with, which is timed in the same pass.
    """

    def __init__(self, path: str, limit_mib: int, program: str | None) -> None:
        self.path = path
        self.limit_mib = limit_mib
        self.program = program

    def open(self) -> Any:
        return ckpt_streamer.open(self.path, memory_limit_mb=self.limit_mib)

    def iterate(self) -> Any:
        opened = self.open()
        for _name, tensor in opened:
            tensor.to(BFLOAT16)
        return opened

    def fused(self) -> Any:
        opened = ckpt_streamer.open(
            self.path, memory_limit_mb=self.limit_mib, dtype=BFLOAT16
        )
        for _name, _tensor in opened:
            pass
        return opened

    def fused_torchscript(self) -> None:
        convert_in_torchscript(self.path, self.limit_mib * MIB)

    def torch_load(self) -> Any:
        return torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)

    def torch_load_iterate(self) -> Iterator[str]:
        tensors = self.torch_load()
        yield "torch_load"
        convert_all(tensors)

    def torch_load_unmapped(self) -> Any:
        """The format before torch 1.6 cannot be mapped."""
        tensors = torch.load(self.path, map_location="cpu", weights_only=True)
        return convert_all(tensors)

    def torch_jit_load(self) -> Any:
        module = torch.jit.load(self.path, map_location="cpu")
        return convert_all(dict(module.named_buffers())), module

    def safe_open(self) -> None:
        with safetensors.safe_open(self.path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                file.get_tensor(name).to(BFLOAT16)

    def safe_open_shards(self) -> None:
        index = Path(self.path)
        weight_map = json.loads(index.read_text())["weight_map"]
        for shard in sorted(set(weight_map.values())):
            with safetensors.safe_open(index.with_name(shard), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    file.get_tensor(name).to(BFLOAT16)

    def load_file(self) -> Any:
        return convert_all(safetensors.torch.load_file(self.path))


def convert_all(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for tensor in tensors.values():
        tensor.to(BFLOAT16)
    return tensors


def seconds_of(name: str, way: Callable[[], object]) -> dict[str, float]:
    """Of the way and those that it begins with."""
    gc.collect()  # what earlier passes left must not be collected in this one
    seconds = {}
    start = time.perf_counter()
    result = way()
    if isinstance(result, Iterator):
        for step in result:
            seconds[step] = time.perf_counter() - start
    seconds[name] = time.perf_counter() - start
    del result  # freeing is not timed
    return seconds


def seconds_of_program(program: str, path: str, limit_mib: int) -> float:
    """Of a pass of the C++ program, which warms up with another."""
    arguments = [program, path, str(limit_mib * MIB), "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def time_rounds(
    ways: Ways,
    files: list[Path],
    names: list[str],
    slow_names: list[str],
    round_count: int,
    threads: int,
    settled: bool,
) -> dict[str, list[float]]:
    """Time all ways in each round, in random order.

    A round in front warms up all but the slow ones. What the kernel has dropped of
    the files meanwhile is read again before each pass.
    """
    torch.set_num_threads(threads)
    shuffle = random.Random(0)
    seconds: dict[str, list[float]] = {}
    for number in range(1 + round_count):
        is_warm_up = number == 0
        for name in shuffle.sample(names, len(names)):
            if is_warm_up and name in slow_names:
                continue
            for path in files:
                if cached_bytes(path) < path.stat().st_size:
                    warm(path)
            if settled:
                settle()
            taken = time_way(ways, name)
            if not is_warm_up:
                for step, each in taken.items():
                    seconds.setdefault(step, []).append(each)
    return seconds


def time_way(ways: Ways, name: str) -> dict[str, float]:
    if name == "fused_cpp":
        assert ways.program is not None
        return {name: seconds_of_program(ways.program, ways.path, ways.limit_mib)}
    return seconds_of(name, getattr(ways, name))


def peak_memory(ways: Ways, name: str, small_path: str) -> int:
    """Return the peak of anonymous memory that a way needs, in bytes.

    The peak of resident memory, less what was resident before and what of the
    file is at the end: a file's pages come and do not go while it is opened.
    """
    # What the way itself brings into memory is there before.
    getattr(Ways(small_path, ways.limit_mib, None), name)()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_bytes("VmRSS")
    result = getattr(ways, name)()
    peak = status_bytes("VmHWM") - before - resident_bytes(Path(ways.path))
    del result
    return peak


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def main() -> None:
    task = json.load(sys.stdin)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    ways = Ways(task["path"], task["limit_mib"], task.get("program"))
    if "small_path" in task:
        figures: Any = peak_memory(ways, task["name"], task["small_path"])
    else:
        figures = time_rounds(
            ways,
            [Path(path) for path in task["files"]],
            task["names"],
            task["slow_names"],
            task["round_count"],
            task["threads"],
            task["settled"],
        )
    json.dump(figures, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # without freeing what is left, tensor by tensor


if __name__ == "__main__":
    main()
