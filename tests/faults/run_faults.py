"""Streams files while one system call fails, each time in a process of its own.

Started with inject.cpp preloaded: ``run_faults.py INJECT_LIBRARY FOLDER``. Reads a
list of cases, writes what became of each, a line of JSON for each.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import stream

MIB = 1024 * 1024
LIMIT = 4 * MIB
KEPT_LIMIT = 16 * MIB
SECONDS = 30  # for one case, before it counts as hanging

OPEN = torch.ops.ckpt_streamer.open


class WrongError(AssertionError):
    """What must not happen under any fault."""


class Module(torch.nn.Module):
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def make_files(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Write the same tensors in each format, and one that is above the limit."""
    generator = torch.Generator().manual_seed(7)
    sizes = [MIB // 4] * 7 + [100, 5000]
    tensors = {
        f"w{i}": torch.randn(size, generator=generator) for i, size in enumerate(sizes)
    }
    large = {"large": torch.randn(6 * MIB // 4, generator=generator)}
    paths = {
        name: str(folder / name)
        for name in ("zip.pt", "legacy.pt", "script.pt", "plain.safetensors")
    }
    torch.save(tensors, paths["zip.pt"])
    torch.save(tensors, paths["legacy.pt"], _use_new_zipfile_serialization=False)
    save_file(tensors, paths["plain.safetensors"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Module(tensors)), paths["script.pt"])
    index = folder / "model.safetensors.index.json"
    weight_map = dict.fromkeys(tensors, "plain.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    paths["index"] = str(index)
    paths["large"] = str(folder / "large.pt")
    torch.save(large, paths["large"])
    small = {f"s{i}": torch.full((MIB // 16,), float(i)) for i in range(160)}
    paths["small"] = str(folder / "small.pt")
    torch.save(small, paths["small"])
    return paths, tensors | large | small


def clean_bytes(path: str) -> int:
    """Clean resident bytes of a file's private mappings, by the page tables."""
    total = 0
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            if line.rstrip().endswith(f" {path}"):
                begin, end = (int(n, 16) // 4096 for n in line.split()[0].split("-"))
                pagemap.seek(8 * begin)
                entries = memoryview(pagemap.read(8 * (end - begin))).cast("Q")
                total += sum(entry >> 61 & 5 == 5 for entry in entries)
    return total * 4096


class Watch:
    """Checks bytes as they come, writes to some, and holds the figures to account."""

    is_bounded = True

    def __init__(self, expected: dict[str, Tensor], path: str) -> None:
        self.expected = expected
        self.path = path
        self.written: list[tuple[str, Tensor]] = []
        self.writes = 0 if path.endswith("legacy.pt") else 3  # a copy counts while kept
        self.peak = 0

    def see(self, name: str, tensor: Tensor) -> None:
        if not torch.equal(tensor, self.expected[name].to(tensor.dtype)):
            raise WrongError(f"the bytes of {name}")
        if tensor.dtype == torch.float32 and len(self.written) < self.writes:
            tensor[::700] += 1.0
            self.written.append((name, tensor))
        self.peak = max(self.peak, clean_bytes(self.path))

    def finish(self, not_held: str | None) -> str:
        """Look at what was written; return what the stream says it did not hold."""
        for name, tensor in self.written:
            expected = self.expected[name].clone()
            expected[::700] += 1.0
            if not torch.equal(tensor, expected):
                raise WrongError(f"a write to {name} is lost")
        if self.is_bounded and self.peak > LIMIT and not not_held:
            raise WrongError(
                f"{self.peak} bytes were resident, and nothing is said of it"
            )
        return not_held or ""


Steps = Iterator[tuple[str, Callable[[], str]]]


def steps(paths: dict[str, str], expected: dict[str, Tensor]) -> Steps:
    """Yield what is done under a fault, each step by itself."""

    def read(path: str, tensors: str) -> str:
        handle = OPEN(path, LIMIT)
        watch = Watch(expected, tensors)
        while handle.has_next():
            watch.see(*handle.next())
            if len(watch.written) == 2:
                handle.release()
        handle.release()
        return watch.finish(handle.not_held())

    def convert() -> str:
        both = [paths["zip.pt"], paths["large"]]
        handle = OPEN(both, LIMIT, dtype=torch.bfloat16)
        watch = Watch(expected, paths["large"])
        while handle.has_next():
            watch.see(*handle.next())
        return watch.finish(handle.not_held())

    def copy() -> str:
        handle = OPEN(paths["large"], LIMIT)
        source = handle.next()[1]
        destination = torch.empty_like(source)
        torch.ops.ckpt_streamer.copy_(destination, source, LIMIT)
        if not torch.equal(destination, expected["large"]):
            raise WrongError("the bytes of a copy")
        return ""

    def load() -> str:
        loaded = torch.load(paths["zip.pt"], mmap=True)
        watch = Watch(expected, paths["zip.pt"])
        with stream(loaded, LIMIT // MIB) as items:
            for obj, name, tensor in items:
                if obj[name] is not tensor:
                    raise WrongError("another object")
                watch.see(name, tensor)
        return watch.finish(items.stats().not_held)

    def look_up() -> str:
        with ckpt_streamer.open(
            paths["zip.pt"], LIMIT // MIB, verify=True
        ) as checkpoint:
            watch = Watch(expected, paths["zip.pt"])
            watch.see("w3", checkpoint["w3"])
            part = checkpoint.slice("w5", 1000, 2000)
            if not torch.equal(part, expected["w5"][1000:2000]):
                raise WrongError("the bytes of a slice")
            for name, tensor in checkpoint:
                if name != "w3":
                    watch.see(name, tensor)
            return watch.finish(checkpoint.stats().not_held)

    for name in ("zip.pt", "legacy.pt", "script.pt", "plain.safetensors", "index"):
        path = paths[name]
        tensors = paths["plain.safetensors"] if name == "index" else path
        yield name, lambda p=path, t=tensors: read(p, t)  # type: ignore[misc]
    yield "convert", convert
    yield "copy", copy
    yield "load", load
    yield "look_up", look_up
    yield "keep", lambda: keep(paths["small"], expected)
    yield "race", lambda: race(paths["zip.pt"])


def keep(path: str, expected: dict[str, Tensor]) -> str:
    """Read small tensors again whose windows are over, a few and then all of them."""
    handle = OPEN(path, KEPT_LIMIT)
    kept = []
    while handle.has_next():
        kept.append(handle.next())
        if len(kept) % 40 == 0:
            kept[-40][1][0].item()
    for name, tensor in kept:
        if not torch.equal(tensor, expected[name]):
            raise WrongError(f"the bytes of {name}")
    handle.release()
    not_held: str = handle.not_held() or ""
    if clean_bytes(path) > 0 and not not_held:
        raise WrongError("pages stayed, and nothing is said of it")
    return not_held


def map_again(paths: dict[str, str]) -> list[mmap.mmap]:
    """Map the files in this process, not in its children.

    Reclaim passes over their pages then; they have to be moved away.
    """
    mappings = []
    for path in paths.values():
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapping.madvise(mmap.MADV_DONTFORK)
        for at in range(0, len(mapping), mmap.PAGESIZE):
            mapping[at]
        mappings.append(mapping)
    return mappings


@torch.jit.script
def write_over_and_over(tensors: list[Tensor], stride: int) -> int:
    for start in range(stride):
        for tensor in tensors:
            tensor[start::stride].fill_(7.0)
    return stride


@torch.jit.script
def start_writing(tensors: list[Tensor], stride: int) -> torch.jit.Future[int]:
    return torch.jit.fork(  # type: ignore[no-any-return]
        write_over_and_over, tensors, stride
    )


def race(path: str) -> str:
    """Write to all tensors in a thread of its own while they are streamed."""
    passes = 0
    while passes < 2:  # with a writer that was done sooner: once more
        passes = race_once(list(torch.load(path, mmap=True).values()))
    return ""


def race_once(tensors: list[Tensor]) -> int:
    writer = start_writing(tensors, 1024)
    passes = 0
    while not writer.done():
        for _, _, tensor in stream(tensors, LIMIT // MIB):
            tensor[0].item()
        passes += 1
    if not all(bool((tensor == 7.0).all()) for tensor in tensors):
        raise WrongError("a write of another thread is lost")
    return passes


def make_cold(paths: dict[str, str]) -> None:
    for path in paths.values():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# seccomp(2): what a container's or a sandbox's policy refuses.
def refuse(numbers: list[int], error_number: int) -> None:
    """Let the system refuse calls to this thread and its children, by number."""
    load_number, equal, answer = 0x20, 0x15, 0x06
    allow, fail = 0x7FFF0000, 0x00050000 | error_number
    program = [(load_number, 0, 0, 0)]
    program += [(equal, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    program += [(answer, 0, 0, allow), (answer, 0, 0, fail)]

    class Instruction(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_ushort),
            ("yes", ctypes.c_ubyte),
            ("no", ctypes.c_ubyte),
            ("value", ctypes.c_uint),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("at", ctypes.POINTER(Instruction)))

    array = (Instruction * len(program))(*(Instruction(*each) for each in program))
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_no_new_privs, pr_set_seccomp, filter_mode = 38, 22, 2
    assert libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0) == 0
    done = libc.prctl(
        pr_set_seccomp, filter_mode, ctypes.byref(Program(len(program), array)), 0, 0
    )
    assert done == 0, os.strerror(ctypes.get_errno())


def run_case(
    case: dict[str, Any],
    library: ctypes.CDLL,
    paths: dict[str, str],
    expected: dict[str, Tensor],
) -> dict[str, Any]:
    if case["beside"]:  # another thread, which may write
        threading.Thread(target=time.sleep, args=(SECONDS * 2,), daemon=True).start()
    Watch.is_bounded = case["bounded"]
    if case["cold"]:
        make_cold(paths)
    if case["numbers"]:
        refuse(case["numbers"], case["errno"])
    library.ckpt_fault_arm(
        case["call"].encode(),
        case["text"].encode(),
        case["detail"],
        case["errno"],
        case["shortens"],
        case["first"],
        case["last"],
        case["delayed"].encode(),
    )
    outcomes: dict[str, str] = {}
    for name, step in steps(paths, expected):
        if name not in case["steps"]:
            continue
        try:
            outcomes[name] = f"held: {step()}"
        except WrongError as error:
            outcomes[name] = f"WRONG: {error}"
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    library.ckpt_fault_disarm()
    return {
        "outcomes": outcomes,
        "calls": library.ckpt_fault_calls(),
        "hits": library.ckpt_fault_hits(),
    }


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    text, number = ctypes.c_char_p, ctypes.c_long
    library.ckpt_fault_arm.argtypes = [
        *(text, text, number, ctypes.c_int, ctypes.c_int, number, number, text)
    ]
    library.ckpt_fault_calls.restype = library.ckpt_fault_hits.restype = number
    torch.set_num_threads(1)
    paths, expected = make_files(Path(sys.argv[2]))
    for line in sys.stdin:
        case = json.loads(line)
        mapped_again = map_again(paths) if case["mapped_again"] else []
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            warnings.simplefilter("ignore")
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                # Replaces the parent's pool, which two threads at once do not survive.
                torch.set_num_threads(1)
                result = run_case(case, library, paths, expected)
                os.write(writer, json.dumps(result).encode())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(child, 0)
        del mapped_again
        result = json.loads(data) if data else {"outcomes": {}, "calls": 0, "hits": 0}
        result["exit_code"] = os.waitstatus_to_exitcode(status)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
