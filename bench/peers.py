"""Measure all ways to read a checkpoint beside each other: time and memory.

Time: each way is a process of its own that waits to be asked for passes. In each
round all ways make one pass, in random order, over the same tensors in their own
format; ratios are of passes of the same round. The floor is a C++ program that reads
the same bytes and converts them.

Memory: each way in a new process, sampled from outside each millisecond, in a memory
cgroup of its own where that can be had.

Warm cases have the files in the page cache at each pass, cold ones nothing of them.
Of large tensors, a warm pass of less than a second follows one of the same process
that does not count.
With --minutes, what is not done by then goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import original
from checkpoints import CACHE, MIB, remove_checkpoints
from environment import write_result
from floor import FLOORS, Floor
from journal import Journal, OutOfTimeError, deadline_in
from memory_group import new_memory_group, why_none
from pages import keep_warm, make_cold
from peer_ways import FORMATS, WAYS
from peer_worker import Job, read_in_group
from ratios import paired_ratio
from sampler import record

WORKER = Path(__file__).with_name("peer_worker.py")
LOG = CACHE / "peers.log"  # what the packages print
PAUSED = 3  # the exit code when a run is to be continued


@dataclass(frozen=True)
class Case:
    """Files of ``count`` tensors, read warm or cold, under each of the limits."""

    name: str
    title: str
    count: int
    elements: int
    limits_mib: tuple[int, ...]
    is_cold: bool = False
    rounds: int = 11
    memory_runs: int = 3
    # Whether a way whose pass takes less than a second makes two each time, of
    # which the second counts: where another process ran before, the first is up
    # to twice as slow, by chance.
    warms_up: bool = False


LARGE = (256, MIB)
HUGE = (1024, MIB)
SMALL = (262_144, 1024)
CASES = [
    Case(
        "large-warm",
        "1 GiB of 4 MiB tensors",
        *LARGE,
        (8, 64, 256, 1024),
        warms_up=True,
    ),
    Case("large-cold", "1 GiB of 4 MiB tensors", *LARGE, (8, 64, 256, 1024), True),
    Case(
        "huge-warm",
        "4 GiB of 4 MiB tensors",
        *HUGE,
        (64, 1024),
        memory_runs=1,
        warms_up=True,
    ),
    Case("huge-cold", "4 GiB of 4 MiB tensors", *HUGE, (64, 1024), True, memory_runs=1),
    Case("small-warm", "1 GiB of 4 KiB tensors", *SMALL, (64,), memory_runs=1),
    Case("small-cold", "1 GiB of 4 KiB tensors", *SMALL, (64,), True, memory_runs=1),
]
QUICK_LARGE = ("256 MiB of 4 MiB tensors", 64, MIB, (8,))
QUICK_SMALL = ("64 MiB of 4 KiB tensors", 16_384, 1024, (16,))
QUICK_CASES = [
    Case("large-warm", *QUICK_LARGE, rounds=3, memory_runs=1, warms_up=True),
    Case("large-cold", *QUICK_LARGE, is_cold=True, rounds=3, memory_runs=0),
    Case("small-warm", *QUICK_SMALL, rounds=3, memory_runs=1),
]
# Before it is measured, each way has read a file of this kind.
REHEARSALS = {LARGE[1]: (8, MIB), SMALL[1]: (4096, 1024)}
REHEARSAL_LIMIT_MIB = 8


@dataclass(frozen=True)
class Entry:
    """A way, and the limit that it is given if it takes one; or a floor."""

    way: str
    limit_mib: int | None
    title: str
    file_format: str
    is_ours: bool = False
    loads_model: bool = False
    floor: str | None = None

    @property
    def name(self) -> str:
        return f"{self.way}@{self.limit_mib}" if self.limit_mib else self.way


def entries_of(case: Case, wanted: list[str]) -> list[Entry]:
    entries = [
        Entry(name, limit_mib, way.title, way.file_format, way.is_ours, way.loads_model)
        for name, way in WAYS.items()
        for limit_mib in (case.limits_mib if way.has_limit else (None,))
    ]
    entries += [
        Entry(f"{name}_{file_format}", None, floor.title, file_format, floor=name)
        for name, floor in FLOORS.items()
        for file_format in ("pt", "safetensors")
    ]
    if not wanted:
        return entries
    return [entry for entry in entries if entry.way in wanted or entry.floor in wanted]


class CannotError(Exception):
    """A way cannot read this file here; the text says why."""


class Worker:
    """The process of one way."""

    def __init__(self, name: str, threads: int, errors: TextIO) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self._why_not: str | None = None
        self.version: str | None = None
        try:
            self.version = self._answer()["version"]
        except CannotError as error:
            self._why_not = str(error)

    def ask(self, what: str, job: Job, **more: Any) -> dict[str, Any]:
        """Raises CannotError where the way fails."""
        if self._why_not:
            raise CannotError(self._why_not)
        assert self._process.stdin
        request = {"ask": what, "path": str(job.path), "job": job[1:], **more}
        with suppress(BrokenPipeError):  # it is dead: no answer comes
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._why_not = f"its process ended with code {self._process.wait()}"
            raise CannotError(self._why_not)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise CannotError(reply["error"])
        return reply


class Workers:
    """The processes that are needed, each made when it first is."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._stack = ExitStack()
        self._workers: dict[str, Worker] = {}
        self._floors: dict[tuple[str, Path], Floor] = {}
        LOG.parent.mkdir(exist_ok=True)
        self._errors = self._stack.enter_context(LOG.open("w"))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, way: str) -> Worker:
        if way not in self._workers:
            self._workers[way] = Worker(way, self._threads, self._errors)
            self._stack.callback(self._workers[way].close)
        return self._workers[way]

    def floor(self, name: str, path: Path) -> Floor:
        if (name, path) not in self._floors:
            self._floors[name, path] = Floor(name, path, self._threads)
            self._stack.callback(self._floors[name, path].close)
        return self._floors[name, path]


class Measurement:
    """One case."""

    def __init__(
        self,
        case: Case,
        entries: list[Entry],
        journal: Journal,
        workers: Workers,
        threads: int,
    ) -> None:
        self.case = case
        self.entries = entries
        self.versions: dict[str, str] = {}
        self._journal = journal
        self._workers = workers
        self._threads = threads
        self._warmed_up: set[Entry] = set()

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        able = []
        for entry in self.entries:
            found = self._journal.once(
                f"check {entry.name}", partial(self._check, entry)
            )
            if found.get("version"):
                self.versions[WAYS[entry.way].package] = found["version"]
            if found["why_not"]:
                rows.append(
                    {"kind": "cannot", **self._row(entry), "reason": found["why_not"]}
                )
            else:
                able.append(entry)
                if self.case.warms_up and found["seconds"] < 1:
                    self._warmed_up.add(entry)
        passes = self._passes(able)
        rows += [self._time_row(entry, passes[entry]) for entry in able]
        for entry, peer in pairs_of(able):
            rows += self._ratio_rows(entry, peer, passes)
        if self.case.memory_runs:
            rows += [self._memory_row(entry) for entry in able if not entry.floor]
        return rows

    def _check(self, entry: Entry) -> dict[str, Any]:
        """Read the file once, which warms up, and say why it cannot be read."""
        version = None
        try:
            job = self._job(entry)
            if not entry.floor:
                worker = self._workers.of(entry.way)
                version = worker.version
                worker.ask("pass", self._rehearsal(entry))
            seconds = sum(self._single_pass(entry).values())
        except CannotError as error:
            return {"why_not": str(error), "version": version}
        except (ImportError, RuntimeError) as error:  # of making the file
            return {"why_not": f"{type(error).__name__}: {error}", "version": version}
        assert job.path.exists()
        return {"why_not": None, "version": version, "seconds": seconds}

    def _passes(self, able: list[Entry]) -> dict[Entry, list[dict[str, float]]]:
        shuffle = random.Random(0)
        passes: dict[Entry, list[dict[str, float]]] = {entry: [] for entry in able}
        for number in range(self.case.rounds):
            for entry in shuffle.sample(able, len(able)):
                passes[entry].append(
                    self._journal.once(
                        f"round {number} {entry.name}", partial(self._pass, entry)
                    )
                )
            say(f"{self.case.name}: round {number + 1} of {self.case.rounds}")
        return passes

    def _pass(self, entry: Entry) -> dict[str, float]:
        if entry in self._warmed_up:
            self._single_pass(entry)
        return self._single_pass(entry)

    def _single_pass(self, entry: Entry) -> dict[str, float]:
        job = self._job(entry)
        if self.case.is_cold:
            make_cold(job.path)
        else:
            keep_warm(job.path)
        if entry.floor:
            seconds = self._workers.floor(entry.floor, job.path).seconds_of_pass()
            return {"open_seconds": 0.0, "iterate_seconds": seconds}
        return self._workers.of(entry.way).ask("pass", job)

    def _time_row(self, entry: Entry, passes: list[dict[str, float]]) -> dict[str, Any]:
        names = ("open_seconds", "iterate_seconds")
        seconds = {name: [round(each[name], 6) for each in passes] for name in names}
        return {"kind": "time", **self._row(entry), **seconds}

    def _ratio_rows(
        self, entry: Entry, peer: Entry, passes: dict[Entry, list[dict[str, float]]]
    ) -> Iterator[dict[str, Any]]:
        """Give the time of ours relative to the peer's: less than 1 is faster."""
        for step in ("total",) if entry.loads_model else ("iterate", "total"):
            ours, theirs = (
                [seconds_of(each, step) for each in passes[side]]
                for side in (entry, peer)
            )
            yield {
                "kind": "ratio",
                **self._row(entry),
                "peer": peer.way,
                "peer_title": peer.title,
                "of": step,
                "ratio": asdict(paired_ratio(ours, theirs)),
            }

    def _memory_row(self, entry: Entry) -> dict[str, Any]:
        runs = [
            self._journal.once(
                f"memory {number} {entry.name}", partial(self._memory, entry)
            )
            for number in range(self.case.memory_runs)
        ]
        say(f"{self.case.name}: memory of {entry.name}")
        return {
            "kind": "memory",
            **self._row(entry),
            **{name: [run[name] for run in runs] for name in runs[0]},
            "why_no_charge": why_none(),
        }

    def _memory(self, entry: Entry) -> dict[str, Any]:
        job = self._job(entry)
        (make_cold if self.case.is_cold else keep_warm)(job.path)
        with new_memory_group() as group:
            recording = record(
                read_in_group,
                entry.way,
                job,
                self._rehearsal(entry),
                self._threads,
                group,
            )
        samples = zip(recording.anon_bytes, recording.file_bytes, strict=True)
        return {
            "peak_bytes": max(anon + file for anon, file in samples),
            "peak_anon_bytes": recording.peak_anon_bytes,
            "peak_file_bytes": recording.peak_file_bytes,
            "charge_bytes": recording.result,
            "longest_gap_seconds": round(recording.longest_gap_seconds, 4),
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "file": self.case.title,
            "tensors": self.case.count,
            "tensor_bytes": self.case.count * self.case.elements * 4,
            "way": entry.way,
            "title": entry.title,
            "format": entry.file_format,
            "limit_mib": entry.limit_mib,
            "threads": self._threads,
        }

    def _job(self, entry: Entry) -> Job:
        return job_of(entry, self.case.count, self.case.elements, entry.limit_mib)

    def _rehearsal(self, entry: Entry) -> Job:
        limit_mib = REHEARSAL_LIMIT_MIB if entry.limit_mib else None
        return job_of(entry, *REHEARSALS[self.case.elements], limit_mib)


def job_of(entry: Entry, count: int, elements: int, limit_mib: int | None) -> Job:
    path = FORMATS[entry.file_format](count, elements)
    return Job(path, count, elements, limit_mib)


def pairs_of(entries: list[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Pair ours with the peers of the same format, limit and task.

    tensorizer's files are nobody else's: it is paired with ours of safetensors.
    """
    for entry in entries:
        for peer in entries:
            peer_format = peer.file_format.replace("tensorizer", "safetensors")
            if (
                entry.is_ours
                and not peer.is_ours
                and entry.loads_model == peer.loads_model
                and entry.file_format == peer_format
                and peer.limit_mib in {None, entry.limit_mib}
            ):
                yield entry, peer


def seconds_of(one_pass: dict[str, float], step: str) -> float:
    seconds = one_pass["iterate_seconds"]
    return seconds + one_pass["open_seconds"] if step == "total" else seconds


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_case(
    case: Case, options: argparse.Namespace, workers: Workers, deadline: float | None
) -> Path:
    entries = entries_of(case, options.ways)
    settings = {
        "case": asdict(case),
        "entries": [entry.name for entry in entries],
        "threads": options.threads,
    }
    name = f"peers-{case.name}"
    journal = Journal(f"quick-{name}" if options.quick else name, settings, deadline)
    measurement = Measurement(case, entries, journal, workers, options.threads)
    rows = measurement.rows()
    run = {
        "quick": options.quick,
        "rounds": case.rounds,
        "memory_runs": case.memory_runs,
        "versions": measurement.versions,
        "processes": "one for each way",
    }
    path = write_result(name, rows, run)
    journal.remove()
    if not options.keep and case.count * case.elements * 4 > 1024 * MIB:
        remove_checkpoints(case.count, case.elements)
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    original.add_option(parser)
    parser.add_argument(
        "--case",
        action="append",
        choices=[case.name for case in CASES],
        dest="cases",
        help="only this one (may be given again)",
    )
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=[],
        help="only those with these names, separated by commas",
    )
    parser.add_argument("--rounds", type=int, help="timed rounds a case")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--minutes", type=float, help="go on for no longer")
    parser.add_argument("--keep", action="store_true", help="keep files of 4 GiB")
    parser.add_argument("--quick", action="store_true", help="small files, 3 rounds")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.original:
        # Told to the children, of which one puts it in front of the installed one.
        original.tell_children(options.original)
    deadline = deadline_in(options.minutes)
    with Workers(options.threads) as workers:
        for case in QUICK_CASES if options.quick else CASES:
            if options.cases and case.name not in options.cases:
                continue
            rounds = options.rounds or case.rounds
            try:
                print(
                    measure_case(
                        replace(case, rounds=rounds), options, workers, deadline
                    )
                )
            except OutOfTimeError:
                print(f"{case.name} is not done; the same command goes on with it")
                return PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
