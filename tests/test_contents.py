"""What `verify` and `diff` look at, within the limit also where a tensor is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ckpt_streamer
from ckpt_streamer import Checkpoint
from ckpt_streamer._contents import differences_of, look_at

MIB = 1024 * 1024
LIMIT_MIB = 8


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Eight times the limit, one below it, and one of a single row."""
    big = torch.zeros(1024, 16384)
    big[1000, 5] = float("nan")
    big[3, 7] = float("-inf")
    return {"big": big, "small": torch.ones(3), "row": torch.zeros(1, 4 * MIB)}


@pytest.fixture(scope="module")
def paths(
    tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("contents")
    torch.save(tensors, folder / "one.pt")
    other = dict(tensors, big=tensors["big"].clone())
    other["big"][1023, 16383] = 2.0
    safetensors.torch.save_file(other, folder / "other.safetensors")
    yield folder / "one.pt", folder / "other.safetensors"
    for path in folder.iterdir():
        path.unlink()


def assert_held(checkpoint: Checkpoint) -> None:
    stats = checkpoint.stats()
    assert 0 < stats.peak_bytes_resident <= LIMIT_MIB * MIB
    assert stats.not_held is None


def test_a_tensor_above_the_limit_is_looked_at_within_it(
    paths: tuple[Path, Path],
) -> None:
    done: list[int] = []
    with ckpt_streamer.open(paths[0], LIMIT_MIB, select=["big", "small"]) as checkpoint:
        health = look_at(checkpoint, done.append)
        assert_held(checkpoint)
    assert health.nan == health.infinite == {"big": 1}
    assert (health.tensors, health.elements) == (2, 1024 * 16384 + 3)
    assert sum(done) == 64 * MIB + 12
    assert max(done) <= LIMIT_MIB * MIB // 2


def test_two_are_compared_within_it(paths: tuple[Path, Path]) -> None:
    done: list[int] = []
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(
                ckpt_streamer.open(path, LIMIT_MIB, select=["big", "small"])
            )
            for path in paths
        )
        found = list(differences_of(one, other, done.append))
        assert_held(one)
        assert_held(other)
    assert [(each.name, each.what, each.text) for each in found] == [
        ("big", "values", "1 of 16777216 differ, by 2 at most")
    ]
    assert sum(done) == 64 * MIB + 12


def test_a_single_row_above_the_limit(paths: tuple[Path, Path]) -> None:
    with ckpt_streamer.open(paths[0], LIMIT_MIB, select="row") as checkpoint:
        health = look_at(checkpoint, lambda _: None)
    assert (health.nan, health.elements) == ({}, 4 * MIB)


def test_names_that_repeat(tmp_path: Path) -> None:
    big = torch.zeros(1024, 4096)
    big[0, 0] = float("nan")
    torch.save({"a.b": big, "a": {"b": torch.zeros(3)}}, tmp_path / "x.pt")
    with ckpt_streamer.open(tmp_path / "x.pt", LIMIT_MIB) as checkpoint:
        health = look_at(checkpoint, lambda _: None)
    assert health.nan == {"a.b": 1}
    assert (health.tensors, health.elements) == (2, 1024 * 4096 + 3)
