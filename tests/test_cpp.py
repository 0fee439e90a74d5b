"""The C++ tests of the layers below torch, each a test of its own here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = {
    match[1]: source.name
    for source in sorted((ROOT / "tests/cpp").glob("*_test.cpp"))
    for match in re.finditer(r"^TEST\((\w+)\)", source.read_text(), re.MULTILINE)
}


@pytest.fixture(scope="session")
def program() -> Path:
    done = subprocess.run(
        ["make", "--no-print-directory", "-j2", "cpp-tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ROOT / ".cache/cpp/run_tests"


@pytest.mark.parametrize("name", TESTS)
def test_cpp(program: Path, name: str) -> None:
    done = subprocess.run([program, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_cpp_test_is_listed(program: Path) -> None:
    listed = subprocess.run(
        [program, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(listed) == sorted(TESTS)


def test_an_unknown_cpp_test_is_a_failure(program: Path) -> None:
    assert subprocess.run([program, "no_such_test"], check=False).returncode == 1
