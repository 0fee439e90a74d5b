"""Opens and drops streams by the thousand, and counts what stays.

Started by test_leaks.py: ``count_leaks.py FOLDER TURNS``; prints a line of JSON for
each way of using them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import apply_state_dict, stream

MIB = 1024 * 1024
WARM_UP = 100
OPEN = torch.ops.ckpt_streamer.open


class MallInfo(ctypes.Structure):
    # malloc.h, struct mallinfo2.
    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("counts", ctypes.c_size_t * 3),
        ("hblkhd", ctypes.c_size_t),
        ("more", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("rest", ctypes.c_size_t * 2),
    )


@dataclass(frozen=True)
class Held:
    """What this process has, all of it exact."""

    heap_bytes: int  # in use, of malloc's
    python_blocks: int
    descriptors: int
    file_mappings: int
    mappings: int
    threads: int


def held(folder: Path) -> Held:
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    info = libc.mallinfo2()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return Held(
        info.uordblks + info.hblkhd,
        sys.getallocatedblocks(),
        len(os.listdir("/proc/self/fd")),
        sum(str(folder) in line for line in maps),
        len(maps),
        len(os.listdir("/proc/self/task")),
    )


def make_files(folder: Path) -> tuple[dict[str, Tensor], str, str, str, Path]:
    tensors = {f"w{i}": torch.full((1500,), float(i)) for i in range(8)}
    zipped, legacy, plain = (str(folder / name) for name in ("z.pt", "l.pt", "p"))
    torch.save(tensors, zipped)
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    save_file(tensors, plain)
    broken = folder / "broken"
    broken.write_bytes(Path(zipped).read_bytes()[:-40])
    return tensors, zipped, legacy, plain, broken


def make_ways(folder: Path) -> dict[str, Callable[[], object]]:
    tensors, zipped, legacy, plain, broken = make_files(folder)
    loaded = torch.load(zipped, mmap=True)
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor.clone())

    libc = ctypes.CDLL(None)

    def by_op(path: str, **options: object) -> None:
        handle = OPEN(path, MIB, **options)
        while handle.has_next():
            handle.next()
        handle.stats()

    def dropped() -> None:
        OPEN(plain, MIB).next()[1].add_(1)

    def look_ups() -> None:
        handle = OPEN(zipped, MIB)
        handle.tensor("w3")
        handle.slice("w4", 1, 3)
        handle.release()
        handle.reset()

    def errors() -> None:
        handle = OPEN(zipped, MIB)
        for fail in (
            lambda: handle.tensor("none"),
            lambda: handle.slice("w1", 5, 1),
            lambda: OPEN(str(broken), MIB),
            lambda: OPEN(str(folder / "missing"), MIB),
            lambda: OPEN(zipped, 0),
            lambda: ckpt_streamer.open(broken),
        ):
            try:
                fail()
            except (RuntimeError, ValueError, IndexError, OSError):
                continue
            raise AssertionError("no error")

    def opened() -> None:
        with ckpt_streamer.open(zipped, 1) as checkpoint:
            for _, tensor in checkpoint:
                tensor.sum()
            _ = checkpoint["w1"], checkpoint.slice("w2", 0, 5), checkpoint.metadata
            checkpoint.stats()

    def half_read() -> None:
        list(islice(stream(zipped, 1), 3))

    def in_memory() -> None:
        for _ in stream(loaded, 1):
            pass

    def closed() -> None:
        with stream(loaded, 1) as items:
            next(items)

    def cold() -> None:
        with open(plain, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        OPEN(plain, MIB).next()

    def copied() -> None:
        torch.ops.ckpt_streamer.copy_(tensors["w1"], loaded["w1"], 4096)

    def refused_load() -> None:
        try:
            apply_state_dict(model, {"w0": tensors["w0"]}, memory_limit_mb=1)
        except RuntimeError:
            return
        raise AssertionError("no error")

    return {
        "op": lambda: by_op(zipped),
        "op, legacy": lambda: by_op(legacy),
        "op, safetensors": lambda: by_op(plain),
        "op, several": lambda: by_op([zipped, plain]),  # type: ignore[arg-type]
        "op, converting": lambda: by_op(zipped, dtype=torch.bfloat16),
        "op, verifying": lambda: by_op(zipped, verify=True),
        "op, dropped": dropped,
        "op, look-ups": look_ups,
        "op, tensors in memory": lambda: torch.ops.ckpt_streamer.stream(
            loaded, MIB
        ).next(),
        "op, cold": cold,
        "copy_": copied,
        "errors": errors,
        "open": opened,
        "stream, half read": half_read,
        "stream, in memory": in_memory,
        "stream, closed": closed,
        "apply": lambda: apply_state_dict(model, zipped, memory_limit_mb=1),
        "apply, refused": refused_load,
        "a byte, leaked on purpose": lambda: libc.malloc(ctypes.c_size_t(1)),
    }


def main() -> None:
    folder, turns = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, use in make_ways(folder).items():
        for _ in range(WARM_UP):
            use()
        before = asdict(held(folder))
        for _ in range(turns):
            use()
        after = asdict(held(folder))
        growth = {key: after[key] - before[key] for key in before}
        print(json.dumps({"way": name} | growth), flush=True)


if __name__ == "__main__":
    main()
