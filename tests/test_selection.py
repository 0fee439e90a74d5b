"""Choosing a file's tensors by their names."""

from __future__ import annotations

import fnmatch
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, resident_of

import ckpt_streamer
from ckpt_streamer import stream

NAMES = ["a.weight", "a.bias", "b.0.weight", "b.1.weight", "b.1.bias", "B.weight", "c"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({name: torch.tensor([i]) for i, name in enumerate(NAMES)}, path)
    return path


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("*.weight", ["a.weight", "b.0.weight", "b.1.weight", "B.weight"]),
        ("b.*", ["b.0.weight", "b.1.weight", "b.1.bias"]),
        ("[!bB].*", ["a.weight", "a.bias"]),
        ("?", ["c"]),
        (["c", "a.b*"], ["a.bias", "c"]),
        (("*", "c"), NAMES),
        (lambda name: name.count(".") == 2, ["b.0.weight", "b.1.weight", "b.1.bias"]),
        (lambda _: False, []),
        (None, NAMES),
    ],
)
def test_what_is_selected(path: Path, select: Any, chosen: list[str]) -> None:
    with ckpt_streamer.open(path, select=select) as checkpoint:
        assert checkpoint.names == chosen
        assert len(checkpoint) == len(chosen)
        assert [(name, NAMES[int(tensor)]) for name, tensor in checkpoint] == [
            (name, name) for name in chosen
        ]
        assert list(checkpoint.keys()) == NAMES  # the tree is whole
        assert [key for _, key, _ in stream(checkpoint)] == chosen
    assert [key for _, key, _ in stream(path, select=select)] == chosen


def test_selecting_narrows_a_selection_down(path: Path) -> None:
    checkpoint = ckpt_streamer.open(path, select="b.*")
    assert repr(checkpoint).startswith(f"<Checkpoint {str(path)!r}: 3 of 7 tensors, ")
    chosen = [key for _, key, _ in stream(checkpoint, select="*.weight")]
    assert chosen == ["b.0.weight", "b.1.weight"]


def test_the_default_device_is_the_callers(path: Path) -> None:
    with torch.device("meta"):
        checkpoint = ckpt_streamer.open(path, select=lambda name: "bias" in name)
        assert [(name, int(tensor)) for name, tensor in checkpoint] == [
            ("a.bias", 1),
            ("b.1.bias", 4),
        ]
        text = "^positions are on meta, expected the CPU"
        with pytest.raises(ValueError, match=text):
            checkpoint.slots.at(torch.tensor([0]))


def test_names_are_those_of_the_whole_checkpoint(path: Path) -> None:
    torch.save(
        {"a": {"w": torch.ones(1), "v": torch.ones(1)}, "w": torch.ones(1)}, path
    )
    part = ckpt_streamer.open(path)["a"]
    assert [key for _, key, _ in stream(part, select="a.w")] == ["w"]


def test_patterns_that_match_nothing_are_named(path: Path) -> None:
    with pytest.raises(ValueError, match="named as") as raised:
        ckpt_streamer.open(path, select=["a.*", "x.*", "A.*"])
    assert str(raised.value) == (
        f"{path}: none of 7 tensors is named as 'x.*', 'A.*'; the first is 'a.weight'"
    )
    with pytest.raises(ValueError, match=r"by no patterns, expected at least one$"):
        stream(path, select=[])
    torch.save({}, path)
    with pytest.raises(ValueError, match=r": none of 0 tensors is named as '\*'$"):
        stream(path, select="*")


def test_what_cannot_select(path: Path) -> None:
    expected = (
        "expected a pattern of names, a list of patterns, or a function of a name$"
    )
    for select in (5, [1], {"a"}):
        with pytest.raises(TypeError, match=expected) as raised:
            ckpt_streamer.open(path, select=select)  # type: ignore[arg-type]
        assert str(raised.value).startswith(
            f"select is {select!r} ({type(select).__name__}), "
        )
    with pytest.raises(
        TypeError, match=r"^select is 'a', and state_dict is in memory;"
    ):
        stream({"a": torch.ones(1)}, select="a")


def test_patterns_are_those_of_fnmatch(path: Path) -> None:
    chooser = random.Random(0)
    alphabet = "ab.[]!-*?\u00e4\U0001f600"
    names = {
        "".join(chooser.choices(alphabet, k=chooser.randrange(7))) for _ in range(400)
    }
    torch.save({name: torch.ones(1) for name in names}, path)
    checkpoint = ckpt_streamer.open(path)
    compared = 0
    for _ in range(3000):
        pattern = "".join(chooser.choices(alphabet, k=chooser.randrange(1, 6)))
        if "-" in pattern and "[" in pattern:
            continue  # Python drops ranges that are empty; see below
        wanted = [
            name for name in checkpoint.names if fnmatch.fnmatchcase(name, pattern)
        ]
        if wanted:
            compared += 1
            found = [key for _, key, _ in stream(checkpoint, select=pattern)]
            assert found == wanted, pattern
        else:
            with pytest.raises(ValueError, match="is named as"):
                stream(checkpoint, select=pattern)
    assert compared > 500


@pytest.mark.parametrize(
    "pattern",
    ["[a-c]", "[!a-c]", "[-a]", "[a-]", "[]-]", "[a-c-e]", "[0-9a-b]", "[b-d]?"],
)
def test_ranges_are_those_of_fnmatch(path: Path, pattern: str) -> None:
    names = [*"abcdefg059-]!", "ba", "da"]
    torch.save({name: torch.ones(1) for name in names}, path)
    chosen = ckpt_streamer.open(path, select=pattern).names
    assert chosen == [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def test_many_stars_take_no_exponential_time(path: Path) -> None:
    torch.save({"a" * 2000: torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is named as"):
        ckpt_streamer.open(path, select="*a" * 500 + "*b")


def test_what_is_not_selected_is_not_read(large_checkpoint: Path) -> None:
    items = stream(large_checkpoint, memory_limit_mb=32, select=["w3", "w60"])
    for _, _, val in items:
        val.sum()
        assert resident_of(large_checkpoint).clean_bytes <= 2 * 3 * MIB
    assert items.stats().bytes_streamed == 2 * MIB
