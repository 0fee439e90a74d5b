"""README's Python blocks run, and its docstrings' examples as well."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest
import torch

import ckpt_streamer
from ckpt_streamer import (
    _budget,
    _checkpoint,
    _convert,
    _jit,
    _scripting,
    _stream,
    _writer,
)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def in_folder_with_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    checkpoint = {"state_dict": model.state_dict(), "epoch": 3}
    torch.save(checkpoint, tmp_path / "model.ckpt")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_folder_with_checkpoint")
def test_python_blocks() -> None:
    assert len(BLOCKS) >= 4
    names: dict[str, object] = {"__name__": "readme"}
    for i, block in enumerate(BLOCKS):
        # torch.jit.script reads the source of what it compiles.
        source = Path(f"block_{i}.py")
        source.write_text(block)
        exec(compile(block, os.path.abspath(source), "exec"), names)


@pytest.mark.usefixtures("in_folder_with_checkpoint")
def test_docstring_examples() -> None:
    for module in (_budget, _checkpoint, _convert, _jit, _scripting, _stream, _writer):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    texts = README + (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", texts)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_public_name_is_documented() -> None:
    for name in ckpt_streamer.__all__:
        assert name in README
