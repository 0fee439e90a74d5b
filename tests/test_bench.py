"""The benchmarks of all peers, with tiny files; no figure of theirs is tested."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import compare
import environment
import figures
import floor
import journal as journals
import peers
import plot
import pytest
import tables
import torch
from checkpoints import safetensors_checkpoint, tensors_checkpoint
from journal import Journal, OutOfTimeError
from pages import cached_bytes, make_cold
from peer_worker import Job
from sampler import Recording

COMPARE = Path(compare.__file__)


@pytest.fixture
def bench_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the benchmarks write, instead of the repository."""
    monkeypatch.setattr(checkpoints, "CACHE", tmp_path)
    monkeypatch.setattr(journals, "FOLDER", tmp_path / "journals")
    monkeypatch.setattr(peers, "LOG", tmp_path / "peers.log")
    monkeypatch.setattr(environment, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(environment, "QUICK_RESULTS", tmp_path / "results" / "quick")
    return tmp_path


def ratio_row(low: float, high: float, **more: Any) -> dict[str, Any]:
    ratio = {"mean": (low + high) / 2, "low": low, "high": high}
    return {"kind": "ratio", "way": "open", "peer": "plain", "ratio": ratio, **more}


def verdicts(old: dict[str, Any], new: dict[str, Any], seconds: bool = False) -> Any:
    return [verdict for verdict, _ in compare.changes([old], [new], seconds)]


def test_a_ratio_is_worse_when_the_intervals_do_not_overlap() -> None:
    assert verdicts(ratio_row(1.0, 1.1), ratio_row(1.05, 1.3)) == []
    assert verdicts(ratio_row(1.0, 1.1), ratio_row(1.11, 1.3)) == ["worse"]
    assert verdicts(ratio_row(1.0, 1.1), ratio_row(0.8, 0.99)) == ["better"]


def test_more_is_better_where_the_row_says_so() -> None:
    faster = ratio_row(5, 6, more_is_better=True)
    slower = ratio_row(3, 4, more_is_better=True)
    assert verdicts(faster, slower) == ["worse"]
    assert verdicts(slower, faster) == ["better"]


def test_a_peak_is_worse_when_all_runs_are_above_all_old_ones() -> None:
    def row(*peaks_mib: float) -> dict[str, Any]:
        peaks = [int(mib * 2**20) for mib in peaks_mib]
        return {"kind": "memory", "way": "open", "peak_bytes": peaks}

    assert verdicts(row(60, 64), row(64.5, 80)) == []
    assert verdicts(row(60, 64), row(65.5, 80)) == ["worse"]
    assert verdicts(
        {"way": "a", "peak_file_bytes": 0}, {"way": "a", "peak_file_bytes": 2 << 20}
    ) == ["worse"]


def test_seconds_are_compared_when_asked_to() -> None:
    old = {"kind": "time", "way": "open", "open_seconds": [1.0, 1.1, 1.05]}
    new = {"kind": "time", "way": "open", "open_seconds": [2.0, 2.1, 2.05]}
    assert verdicts(old, new) == []
    assert verdicts(old, new, seconds=True) == ["worse"]


def test_what_cannot_be_read_any_more_is_worse() -> None:
    old = {"kind": "time", "case": "a", "way": "open", "open_seconds": [1.0, 2.0]}
    new = {"kind": "cannot", "case": "a", "way": "open", "reason": "it raised"}
    assert verdicts(old, new) == ["worse"]
    assert verdicts(old, {**new, "way": "another"}) == ["gone"]


def compare_files(folder: Path, old: Any, new: Any) -> tuple[int, str]:
    paths = []
    for name, row in (("old", old), ("new", new)):
        path = folder / f"{name}.json"
        described = {"cpu": name, "commit": name}
        path.write_text(json.dumps({"environment": described, "rows": [row]}))
        paths.append(path)
    done = subprocess.run(
        [sys.executable, COMPARE, *paths], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_exit_code_says_whether_anything_got_worse(tmp_path: Path) -> None:
    good, bad = ratio_row(1.0, 1.1, limit_mib=8), ratio_row(2.0, 2.2, limit_mib=8)
    assert compare_files(tmp_path, good, good)[0] == 0
    code, printed = compare_files(tmp_path, good, bad)
    assert code == 1
    assert printed.splitlines() == [
        "not the same: cpu: old, now new",
        "worse: ratio, open, plain, limit_mib 8: ratio 1.050 (1.000 to 1.100), "
        "now 2.100 (2.000 to 2.200)",
        "1 figures of 1 rows got worse beyond noise.",
    ]
    other = ratio_row(1.0, 1.1, limit_mib=9)
    assert compare_files(tmp_path, good, other)[0] == 2


def test_a_journal_goes_on_where_it_was(bench_folder: Path) -> None:
    def never() -> int:
        raise AssertionError("measured again")

    first = Journal("a", {"rounds": 1})
    assert first.once("x", lambda: 1) == 1
    assert first.once("x", never) == 1
    again = Journal("a", {"rounds": 1}, deadline=time.monotonic() - 1)
    assert again.once("x", never) == 1
    with pytest.raises(OutOfTimeError):
        again.once("y", never)
    other = Journal("a", {"rounds": 2})
    assert other.once("x", lambda: 2) == 2
    other.remove()
    assert not list(bench_folder.glob("journals/*"))


@pytest.fixture
def files_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are tiny: no process is started for each."""

    def make(path: Path, save: Callable[..., None], *args: Any) -> Path:
        if not path.exists():
            save(path, *args)
        return path

    monkeypatch.setattr(checkpoints, "_made", make)


@pytest.mark.usefixtures("files_made_here")
@pytest.mark.parametrize("make", [tensors_checkpoint, safetensors_checkpoint])
def test_the_floor_reads_each_tensor(bench_folder: Path, make: Any) -> None:
    del bench_folder
    path = make(12, 100)
    data = path.read_bytes()
    found = {data[begin : begin + size] for begin, size in floor.spans(path)}
    tensors = checkpoints.load(tensors_checkpoint(12, 100))
    assert found == {tensor.numpy().tobytes() for tensor in tensors.values()}


def test_repeated_tensors_are_saved_apart(bench_folder: Path) -> None:
    del bench_folder
    tensors = checkpoints.load(checkpoints.repeated_checkpoint(4, 2048))
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 4
    assert all(torch.equal(tensor, tensors["key0"]) for tensor in tensors.values())
    assert tensors["key0"].count_nonzero() > 0


def test_what_is_cached_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    make_cold(path)
    assert cached_bytes(path) == 0
    with path.open("rb") as file:
        file.read()
        assert cached_bytes(path) > 0


def test_samples_are_thinned_to_the_highest() -> None:
    recording = Recording(
        seconds=[0.001, 0.002, 0.021, 0.039],
        file_bytes=[1, 5, 2, 0],
        anon_bytes=[7, 6, 3, 9],
        work_seconds=0.04,
        result=None,
    )
    assert figures.thinned(recording) == {
        "seconds": [0.0, 0.02],
        "file_bytes": [5, 2],
        "anon_bytes": [7, 9],
    }


def test_ours_are_paired_with_peers_of_the_same_format_limit_and_task() -> None:
    case = peers.Case("a", "a", 4, 1024, (8, 64))
    entries = peers.entries_of(case, [])
    pairs = {(a.name, b.name) for a, b in peers.pairs_of(entries)}
    assert ("open@8", "torch_load_mapped") in pairs
    assert ("open@8", "original@8") in pairs
    assert ("open@8", "original@64") not in pairs
    assert ("open@8", "safe_open") not in pairs
    assert ("open_safetensors@8", "tensorizer") in pairs
    assert ("open@64", "floor_mmap_torch_pt") in pairs
    assert ("apply@8", "accelerate") in pairs
    assert ("apply@8", "torch_load_mapped") not in pairs
    assert not any(b.startswith(("open", "fused", "stream")) for _, b in pairs)


@pytest.mark.usefixtures("files_made_here")
def test_peers_are_measured_and_described(bench_folder: Path) -> None:
    options = argparse.Namespace(
        ways=[
            *("fused", "apply", "torch_load_mapped", "original", "floor_pread_loop"),
        ],
        threads=1,
        quick=True,
        keep=True,
    )
    case = peers.Case(
        "small-warm", "tiny", 64, 1024, (8,), rounds=2, memory_runs=1, warms_up=True
    )
    with peers.Workers(1) as workers:
        path = peers.measure_case(case, options, workers, None)
    result = json.loads(path.read_text())
    assert path.parent == bench_folder / "results" / "quick"
    assert result["environment"]["run"]["versions"]["torch"].startswith("torch 2")
    rows = result["rows"]
    (cannot,) = tables.of_kind(rows, "cannot")
    assert cannot["way"] == "original"
    assert cannot["reason"].endswith("no checkout of it was given by --original")
    able = {*options.ways} - {"original", "floor_pread_loop"}
    assert {row["way"] for row in tables.of_kind(rows, "memory")} == able
    timed = tables.of_kind(rows, "time")
    floors = {"floor_pread_loop_pt", "floor_pread_loop_safetensors"}
    assert {row["way"] for row in timed} == able | floors
    assert all(len(row["iterate_seconds"]) == 2 for row in timed)

    text = "\n".join(tables.describe_case(result))
    assert "| **ckpt_streamer.open(dtype=)** | pt | 8 MiB |" in text
    assert "cannot: ModuleNotFoundError: no checkout" in text
    said = "\n".join(tables.claims({"peers-small-warm": result}))
    assert "262,144 tensors, open and iterate: twice as fast as the best peer" in said
    assert "- not measured: 4 GiB, cold" in said
    readme = bench_folder / "README.md"
    marks = ("<!-- table peers-small-warm -->", "<!-- end of peers-small-warm -->")
    readme.write_text(f"above\n{marks[0]}\nold\n{marks[1]}\nbelow\n")
    for _ in range(2):  # the second time it finds its marks again
        tables.write_into(readme, {"peers-small-warm": result})
    written = readme.read_text().splitlines()
    assert (written[:2], written[-2:]) == (["above", marks[0]], [marks[1], "below"])
    assert "old" not in written
    assert written[-3].endswith("(bench/plots/peers-small-warm.png)")
    picture = plot.draw_peers(rows, bench_folder / "peers.png", "warm")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("files_made_here")
def test_a_way_that_fails_says_so(bench_folder: Path) -> None:
    bad = bench_folder / "bad.pt"
    bad.write_bytes(b"nothing of the kind")
    with peers.Workers(1) as workers:
        worker = workers.of("open")
        job = Job(bad, 1, 1, 8)
        with pytest.raises(peers.CannotError, match=r"^ValueError: .*bad\.pt"):
            worker.ask("pass", job)
        good = Job(tensors_checkpoint(4, 16), 4, 16, 8)
        assert worker.ask("pass", good)["open_seconds"] > 0


@pytest.mark.usefixtures("files_made_here")
def test_figures_are_measured_and_drawn(bench_folder: Path) -> None:
    sizes = figures.Sizes(
        memory_mib=4,
        memory_limit_mib=1,
        memory_pause_seconds=0,
        access_mib=(4, 8),
        access_rounds=2,
        access_rounds_of_largest=3,
        access_warm_ups=1,
        access_passes=2,
        many_mib=(1,),
        many_rounds=2,
        limit_mib=1,
    )
    ways = [figures.PLAIN, "stream", "fused"]
    with peers.Workers(1) as workers:
        one, two, three = (
            figure(sizes, ways, Journal(name, {}), workers)
            for name, figure in figures.FIGURES.items()
        )
    plain, bounded = one
    assert (plain["way"], bounded["way"]) == (figures.PLAIN, "stream")
    assert plain["limit_bytes"] is None
    assert bounded["limit_bytes"] == 1 << 20
    assert [(row["size_mib"], row["way"]) for row in two] == [
        *((4, figures.PLAIN), (4, "stream"), (8, figures.PLAIN), (8, "stream")),
    ]
    assert [len(row["round_seconds"]) for row in two] == [2, 2, 3, 3]
    assert [row["rounds"] for row in two] == [2, 2, 3, 3]
    assert [(row["size_mib"], row["way"]) for row in three] == [
        (1, way) for way in ways
    ]
    assert all(len(row["open_seconds"]) == 2 for row in three)
    assert all(("ratio" in row) == (row["way"] != figures.PLAIN) for row in three)
    for picture in (
        plot.draw_rss(one, bench_folder / "one.png"),
        plot.draw_access(two, bench_folder / "two.png", "tiny"),
        plot.draw_many(three, bench_folder / "three.png", "tiny"),
    ):
        assert picture.read_bytes().startswith(b"\x89PNG")
