"""Passes over checkpoints by one way, in a process of its own.

Run by peers.py as a worker: reads requests from stdin, a JSON object a line, and
answers each with a line; what the packages print goes to stderr. The first line that
it writes says whether the way can be used here.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pages import drop_resident
from peer_ways import WAYS, Way
from sampler import Marks
from settling import settle


class Job(NamedTuple):
    """A file, what is in it, and the limit."""

    path: Path
    tensor_count: int
    elements: int
    limit_mib: int | None


def time_pass(way: Way, job: Job) -> dict[str, float]:
    """Time opening and iterating once; freeing is not timed."""
    way.prepare(job.tensor_count, job.elements)
    settle()
    start = time.perf_counter()
    opened = way.open(job.path, job.limit_mib)
    middle = time.perf_counter()
    way.iterate(opened)
    end = time.perf_counter()
    way.close(opened)
    return {"open_seconds": middle - start, "iterate_seconds": end - middle}


def time_iterations(
    way: Way, job: Job, warm_up_count: int, count: int
) -> dict[str, list[float]]:
    """Time iterating several times over what was opened once.

    Each begins with none of the file mapped in.
    """
    opened = way.open(job.path, job.limit_mib)
    seconds = []
    for _ in range(warm_up_count + count):
        drop_resident(job.path)
        gc.collect()
        start = time.perf_counter()
        way.iterate(opened)
        seconds.append(time.perf_counter() - start)
    way.close(opened)
    return {"iterate_seconds": seconds[warm_up_count:]}


def read_in_group(
    marks: Marks, name: str, job: Job, rehearsal: Job, threads: int, group: Path | None
) -> int | None:
    """Read a file, sampled from outside; return what the cgroup was charged for."""
    way = prepared(name, threads)
    way.prepare(rehearsal.tensor_count, rehearsal.elements)
    run_once(way, rehearsal)
    way.prepare(job.tensor_count, job.elements)
    settle()
    if group:
        # What was there before stays with the cgroup around it.
        (group / "cgroup.procs").write_text(str(os.getpid()))
        (group / "memory.max_usage_in_bytes").write_text("0")
    marks.baseline()
    marks.start()
    run_once(way, job)
    marks.done()
    if not group:
        return None
    return int((group / "memory.max_usage_in_bytes").read_text())


def run_once(way: Way, job: Job) -> None:
    opened = way.open(job.path, job.limit_mib)
    way.iterate(opened)
    way.close(opened)


def prepared(name: str, threads: int) -> Way:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    return WAYS[name]()


def version_of(way: Way) -> str:
    try:
        return f"{way.package} {importlib.metadata.version(way.package)}"
    except importlib.metadata.PackageNotFoundError:
        return way.package


def answer(way: Way, request: dict[str, Any]) -> dict[str, Any]:
    job = Job(Path(request["path"]), *request["job"])
    if request["ask"] == "iterations":
        counts = request["warm_up_count"], request["count"]
        return dict(time_iterations(way, job, *counts))
    return dict(time_pass(way, job))


def main() -> None:
    # The packages' prints must not come among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        way = prepared(sys.argv[1], int(sys.argv[2]))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"version": version_of(way)}), file=answers)
    for line in sys.stdin:
        try:
            reply = answer(way, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)
        settle()
    answers.flush()
    os._exit(0)  # without freeing what is left, tensor by tensor


if __name__ == "__main__":
    main()
