"""The layers of csrc: includes point down, and platforms stay in their folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
ALLOWED = {
    "base": {"base"},
    "os": {"base", "os"},
    "format": {"base", "format"},
    "plan": {"base", "plan"},
    "stream": {"base", "os", "plan", "stream"},
    "write": {"base", "os", "format", "write"},
    "ops": {"base", "os", "format", "plan", "stream", "write", "ops"},
    "api": {"ops", "api"},
}
SOURCES = sorted(path for path in CSRC.glob("*/*") if path.suffix in {".h", ".cpp"})


each_source = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}"
)


def includes(source: Path) -> list[str]:
    return re.findall(r'^#include [<"]([^>"]+)[>"]', source.read_text(), re.MULTILINE)


@each_source
def test_includes_point_down(source: Path) -> None:
    layer = source.parent.name
    for include in includes(source):
        folder, slash, _ = include.partition("/")
        if slash and (CSRC / include).exists():
            assert folder in ALLOWED[layer], include
        elif slash and folder in {"ATen", "c10", "torch"}:
            assert layer in {"ops", "api"}, include
        elif slash and folder in {"sys", "mach", "linux"}:
            assert layer == "os", include
        assert include not in {"Python.h", "torch/extension.h"}


@each_source
def test_platforms_are_chosen_by_file(source: Path) -> None:
    text = source.read_text()
    assert not re.search(r"__linux__|__APPLE__|_WIN32", text)


def test_every_folder_is_a_layer() -> None:
    assert {path.name for path in CSRC.iterdir()} == set(ALLOWED)
