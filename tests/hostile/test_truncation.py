"""Good files that are cut: an error that names the file, or the right tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hostile.child import open_in_child

TENSORS = {f"layer.{i}.weight": torch.arange(40.0) + i for i in range(20)}


def save_zip(path: Path) -> None:
    torch.save(TENSORS, path)


def save_legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def save_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(20, 20))), path)


def save_safetensors(path: Path) -> None:
    safetensors.torch.save_file(TENSORS, path)


@pytest.mark.parametrize("part", range(20))
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_script, save_safetensors])
def test_each_twentieth(
    tmp_path: Path, save: Callable[[Path], None], part: int
) -> None:
    path = tmp_path / "model.pt"
    save(path)
    whole = open_in_child(path)
    assert whole.error is None
    assert whole.count
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * part // 20)
    outcome = open_in_child(path)
    assert outcome.error == "ValueError"
    assert outcome.message.startswith(f"{path}: ")
    assert ", expected " in outcome.message
