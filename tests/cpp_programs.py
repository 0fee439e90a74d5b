"""Builds C++ programs as a user does: with CMake, from the installed package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.utils.cpp_extension

import ckpt_streamer

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    """Return the path of a program that pip installed beside Python, or another."""
    beside = TOOLS / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"needs {name}: pip install {name}"
    return found


def configure(
    source: Path, build: Path, *definitions: str
) -> subprocess.CompletedProcess[str]:
    toolkit = torch.utils.cpp_extension.CUDA_HOME
    has_toolkit = toolkit is not None and Path(toolkit, "include/cuda.h").exists()
    if torch.version.cuda is not None and not has_toolkit:
        pytest.skip("torch's CMake files of a CUDA build need the CUDA toolkit")
    return subprocess.run(
        [
            tool("cmake"),
            *("-S", source, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_PREFIX_PATH={ckpt_streamer.cmake_prefix_path()}",
            *definitions,
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def build_program(source: Path, build: Path) -> Path:
    """Build a CMake project, warnings being errors; return its program."""
    configured = configure(source, build, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(
        [tool("cmake"), "--build", build], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout
    return build / source.name


def run(
    program: Path, *arguments: object, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)],
        input=stdin,
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def libraries_of(program: Path) -> Sequence[str]:
    """The libraries that a process of it loads, those that they need included."""
    done = subprocess.run(
        [program],
        env={**bare_environment(), "LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split()[0] for line in done.stdout.splitlines()]


def exported_functions() -> set[str]:
    """What other programs can call of the library, ``ckpt_streamer::v1::open``."""
    symbols = subprocess.run(
        ["nm", "-DC", "--defined-only", ckpt_streamer.library_path()],
        capture_output=True,
        text=True,
        check=False,
    )
    if symbols.returncode != 0:
        pytest.skip("needs nm, from binutils")
    names = {line.split(" ", 2)[2] for line in symbols.stdout.splitlines()}
    return {re.split(r"[(\[]", name)[0] for name in names}


def bare_environment() -> dict[str, str]:
    """Nothing that would help to find libraries."""
    return {"PATH": os.environ["PATH"]}
