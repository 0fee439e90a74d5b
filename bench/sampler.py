"""Samples the resident memory of a child process, from outside, every millisecond.

Linux only. RssFile and RssAnon of /proc/PID/status are exact since kernel 6.16;
before, they lag behind by up to 128 KiB per processor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

INTERVAL_SECONDS = 0.001
_STATUS = re.compile(rb"RssAnon:\s+(\d+) kB\nRssFile:\s+(\d+) kB")


class Marks:
    """The child's side. Every mark waits until the sampler has read the memory."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def baseline(self) -> None:
        """Everything is imported and rehearsed; the file is not mapped yet."""
        self._meet()

    def start(self) -> None:
        """The work begins."""
        self._meet()

    def done(self) -> None:
        """The work has ended; what it holds is still there."""
        self._meet()

    def _meet(self) -> None:
        self._pipe.send(time.perf_counter())
        self._pipe.recv()


@dataclass(frozen=True)
class Recording(Generic[Result]):
    """Resident memory from start to done, the value before taken off.

    ``file_bytes`` counts from the baseline, ``anon_bytes`` from the start. The
    last sample is from after the end.
    """

    seconds: list[float]
    file_bytes: list[int]
    anon_bytes: list[int]
    work_seconds: float
    result: Result

    @property
    def peak_file_bytes(self) -> int:
        return max(self.file_bytes)

    @property
    def peak_anon_bytes(self) -> int:
        return max(self.anon_bytes)

    @property
    def longest_gap_seconds(self) -> float:
        times = [0.0, *self.seconds]
        return max(b - a for a, b in pairwise(times))


def record(
    function: Callable[Concatenate[Marks, Arguments], Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Recording[Result]:
    """Run ``function(marks, ...)`` in a new process and sample its memory.

    Raises:
        RuntimeError: The child died or raised; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    pipe, child_pipe = context.Pipe()
    child = context.Process(
        target=_run_child, args=(child_pipe, function, args, kwargs)
    )
    child.start()
    child_pipe.close()
    try:
        _be_prompt()
        with open(f"/proc/{child.pid}/status", "rb", buffering=0) as status:
            return _sample(pipe, status.fileno())
    except EOFError:
        child.join()
        raise RuntimeError(f"the child ended with code {child.exitcode}") from None
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pipe.close()
        child.join()


def _be_prompt() -> None:
    """Ask for the processor as soon as a sample is due; root alone gets it.

    With as many busy threads as processors, samples come late otherwise.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _run_child(
    pipe: Connection, function: Callable[..., Any], args: Any, kwargs: Any
) -> None:
    pipe.send(function(Marks(pipe), *args, **kwargs))


def _read(descriptor: int) -> tuple[int, int]:
    """Return (file, anonymous) bytes."""
    found = _STATUS.search(os.pread(descriptor, 4096, 0))
    if not found:
        raise EOFError("the process is gone")
    return int(found[2]) * 1024, int(found[1]) * 1024


def _sample(pipe: Connection, descriptor: int) -> Recording[Any]:
    pipe.recv()
    file_before, _ = _read(descriptor)
    pipe.send(None)
    start = pipe.recv()
    _, anon_before = _read(descriptor)
    pipe.send(None)
    # One clock for both: CLOCK_MONOTONIC.
    samples: list[tuple[float, int, int]] = []
    due = time.perf_counter()
    is_done = False
    while not is_done:
        # Looked at first, so that one sample follows the end.
        is_done = pipe.poll(0)
        now = time.perf_counter()
        samples.append((now - start, *_read(descriptor)))
        due = max(due + INTERVAL_SECONDS, now)
        time.sleep(max(0.0, due - time.perf_counter()))
    work_seconds = pipe.recv() - start
    pipe.send(None)
    return Recording(
        seconds=[sample[0] for sample in samples],
        file_bytes=[sample[1] - file_before for sample in samples],
        anon_bytes=[sample[2] - anon_before for sample in samples],
        work_seconds=work_seconds,
        result=pipe.recv(),
    )
