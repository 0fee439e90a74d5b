"""What `verify` and `diff` look at, within the limit also where a tensor is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ckpt_streamer
from ckpt_streamer import Checkpoint
from ckpt_streamer._contents import calls_of, differences_of, look_at

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


def test_under_another_default_device(paths: tuple[Path, Path]) -> None:
    with (
        torch.device("meta"),
        ckpt_streamer.open(paths[0], LIMIT_MIB, select=["big", "small"]) as checkpoint,
    ):
        health = look_at(checkpoint, lambda _: None)
    assert health.nan == health.infinite == {"big": 1}
    assert health.elements == 1024 * 16384 + 3


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


class Named:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class Stack(list[Any]):
    pass


class Table(dict[str, Any]):
    pass


def test_calls_are_counted_without_reading_a_tensor(tmp_path: Path) -> None:
    """Of unaligned storages, as the old format has them, tensors would be copies."""

    def big() -> torch.Tensor:
        return torch.zeros(MIB)

    stack = Stack([Named(x=Fraction(1, 2)), big()])
    tree = {
        **{f"w{i}": big() for i in range(4)},
        "list": [big(), (big(), {"a": big()}), {3: Fraction(1, 3)}],
        "object": Named(weight=big(), others=[big()], table=Table(a=big())),
        "stack": stack,
    }
    path = tmp_path / "old.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=False)
    with ckpt_streamer.open(path, LIMIT_MIB) as checkpoint:
        before = bytes_read()
        calls = calls_of(checkpoint)
        assert bytes_read() - before < MIB
    assert calls == {
        "fractions.Fraction": 2,
        f"{__name__}.Named": 2,
        f"{__name__}.Stack": 1,
        f"{__name__}.Table": 1,
    }


def bytes_read() -> int:
    """By system calls of this process, from any file."""
    return int(Path("/proc/self/io").read_text().split()[1])


def compared(
    one: torch.Tensor, other: torch.Tensor, folder: Path
) -> list[tuple[str, str]]:
    torch.save({"w": one}, folder / "one.pt")
    torch.save({"w": other}, folder / "other.pt")
    with (
        ckpt_streamer.open(folder / "one.pt") as first,
        ckpt_streamer.open(folder / "other.pt") as second,
    ):
        assert not list(differences_of(first, first, lambda _: None))
        found = list(differences_of(first, second, lambda _: None))
    assert {each.name for each in found} <= {"w"}
    return [(each.what, each.text) for each in found]


def nan_of(payload: int) -> torch.Tensor:
    bits = torch.tensor([0x7FC00000 + payload, 0], dtype=torch.int32)
    return bits.view(torch.float32)


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        (torch.tensor([2**53, 5]), torch.tensor([2**53 + 1, 5]), "1 of 2 differ, by 1"),
        (
            torch.tensor([-(2**63)]),
            torch.tensor([2**63 - 1]),
            "1 of 1 differ, by 1.84e",
        ),
        (
            torch.tensor([2**63 + 1, 0], dtype=torch.uint64),
            torch.tensor([2**63 - 1, 0], dtype=torch.uint64),
            "1 of 2 differ, by 2 at most",
        ),
        (
            torch.tensor([0.0, 1.0]),
            torch.tensor([-0.0, 1.0]),
            "1 of 2 differ, in their bits alone",
        ),
        (
            torch.tensor([0.0, 1.0]),
            torch.tensor([-0.0, 3.0]),
            "2 of 2 differ, by 2 at most",
        ),
        (nan_of(0), nan_of(1), "1 of 2 differ, in their bits alone"),
        (nan_of(0), torch.zeros(2), "1 of 2 differ, by inf at most"),
        (
            torch.tensor([1 + 0j, 2j], dtype=torch.complex128),
            torch.tensor([complex(1, -0.0), 2j], dtype=torch.complex128),
            "1 of 2 differ, in their bits alone",
        ),
        (
            torch.tensor([True, False]),
            torch.tensor([True, True]),
            "1 of 2 differ, by 1",
        ),
    ],
)
def test_what_differs_in_one_bit_is_different(
    one: torch.Tensor, other: torch.Tensor, text: str, tmp_path: Path
) -> None:
    [(what, found)] = compared(one, other, tmp_path)
    assert what == "values"
    assert found.startswith(text)


def test_numbers_of_two_dtypes_are_compared_as_numbers(tmp_path: Path) -> None:
    one = torch.tensor([0.0, float("nan"), 2.0])
    other = torch.tensor([-0.0, float("nan"), 5.0]).double()
    assert compared(one, other, tmp_path) == [
        ("dtype", "float32 and float64"),
        ("values", "1 of 3 differ, by 3 at most"),
    ]


def sparse(*values: Any) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.tensor(values), (3,))


def quantized(*values: int) -> torch.Tensor:
    ints = torch.tensor(values, dtype=torch.int32)
    return torch._make_per_tensor_quantized_tensor(ints, 1.0, 0)


def nested(*sizes: int, value: float = 0.0) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.full((size,), value) for size in sizes])


@pytest.mark.filterwarnings("ignore")
def test_other_kinds_are_compared_bit_by_bit(tmp_path: Path) -> None:
    nan = float("nan")
    for one, other in (
        (sparse(1.0, 0.0), sparse(1.0, -0.0)),
        (sparse(2**53, 0), sparse(2**53 + 1, 0)),
        (quantized(2**24), quantized(2**24 + 1)),
        (nested(2, 3), nested(2, 3, value=-0.0)),
        (nested(2, 3), nested(2, 3, 1)),
        (nested(2, 3), nested(2, 4)),
    ):
        assert compared(one, other, tmp_path) == [("values", "not equal")]
    for same in (sparse(1.0, nan), nested(2, 3, value=nan), quantized(7)):
        assert compared(same, same.clone(), tmp_path) == []
