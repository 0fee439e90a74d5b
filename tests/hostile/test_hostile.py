"""Files made to do harm: each is refused with its message, or harmless.

Every file is opened in a child process, with little memory and time.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from hostile import (
    legacy_defects,
    path_defects,
    pickle_bombs,
    pickle_defects,
    safetensors_defects,
    script_defects,
    shard_defects,
    zip_defects,
)
from hostile.child import MIB, open_in_child
from hostile.files import Generator, Opened

MODULES = [
    zip_defects,
    pickle_defects,
    pickle_bombs,
    legacy_defects,
    script_defects,
    safetensors_defects,
    shard_defects,
    path_defects,
]


def generators_of(module: ModuleType) -> list[Generator]:
    """All public functions that are written there and take a folder alone."""
    return [
        function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and list(inspect.signature(function).parameters) == ["folder"]
    ]


GENERATORS = [each for module in MODULES for each in generators_of(module)]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda each: each.__name__)
def test_a_defect_is_named(tmp_path: Path, generator: Generator) -> None:
    made = generator(tmp_path)
    outcome = open_in_child(made.path)
    if isinstance(made, Opened):
        assert (outcome.error, outcome.message) == (None, "")
        assert (outcome.names, outcome.count) == (made.names, made.count)
    else:
        assert (outcome.error, outcome.message) == (made.error.__name__, made.message)
    paths = made.path if isinstance(made.path, list) else [made.path]
    file_bytes = sum(map(size_of, paths))
    # A byte of a pickle may be a tuple around all before it: the most that is
    # made of one is some 180 bytes.
    assert outcome.growth_bytes <= 200 * file_bytes + 16 * MIB
    # What grows with the square of the size takes minutes.
    assert outcome.cpu_seconds <= 4 + 8 * file_bytes / MIB


def test_there_are_many() -> None:
    assert len(GENERATORS) == len({each.__name__ for each in GENERATORS}) >= 100
