"""The fuzz targets on their corpus: seeds of every format, and what was found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests/fuzz/corpus"
TARGETS = sorted(
    path.stem.removeprefix("fuzz_") for path in CORPUS.parent.glob("fuzz_*.cpp")
)


@pytest.fixture(scope="session")
def programs() -> Path:
    done = subprocess.run(
        ["make", "--no-print-directory", "-j2", "fuzz-replay"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ROOT / ".cache/cpp"


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(programs: Path, target: str) -> None:
    done = subprocess.run(
        [programs / f"replay_{target}", CORPUS / target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count = len(list((CORPUS / target).iterdir()))
    assert count > 0
    assert done.stdout == f"{count} files\n"


def test_every_corpus_has_a_target() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == TARGETS


def test_replay_fails_when_a_target_does(programs: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = subprocess.run(
        [programs / "replay_zip", missing], capture_output=True, check=False
    )
    assert done.returncode == 1
