"""Opens a file in a child process, which may die, and measures what that took."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import ckpt_streamer  # noqa: F401 - registers the ops

MIB = 1024 * 1024
ADDRESS_SPACE_BYTES = 2048 * MIB  # beyond what the child begins with
CPU_SECONDS = 60
SECONDS = 120

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    error: str | None  # the exception's type
    message: str  # its first line
    names: list[str]  # of the first three tensors, cut to 64 characters
    count: int
    growth_bytes: int  # of the address space, at most
    cpu_seconds: float


def run_in_child(action: Callable[[], Result]) -> Result:
    """Fork, run and return. A child that dies is an error here.

    The child inherits torch, loaded: to import it takes longer than all tests.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; those of torch are not used in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            limit = virtual_bytes("VmSize") + ADDRESS_SPACE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            signal.alarm(SECONDS)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(action(), pipe)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with code {os.waitstatus_to_exitcode(status)}"
    result: Result = pickle.loads(data)
    return result


def virtual_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def open_in_child(path: Path | list[Path]) -> Outcome:
    def action() -> Outcome:
        target: Any = (
            [str(each) for each in path] if isinstance(path, list) else str(path)
        )
        before = virtual_bytes("VmSize")
        names: list[str] = []
        count = 0
        error, message = None, ""
        try:
            handle = torch.ops.ckpt_streamer.open(target, 64 * MIB)
            count = len(handle)
            while handle.has_next():
                name, tensor = handle.next()
                if len(names) < 3:
                    names.append(name[:64])
                    bool(tensor.view(torch.uint8).any())
        except Exception as caught:
            error, message = type(caught).__name__, str(caught).splitlines()[0]
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Outcome(
            error,
            message,
            names,
            count,
            virtual_bytes("VmPeak") - before,
            used.ru_utime + used.ru_stime,
        )

    return run_in_child(action)
