"""Files that are replaced, written to or cut short while they are streamed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ckpt_streamer

MIB = 1024 * 1024
LIMIT_MB = 4
SHAPE = (64, 1024)  # 256 KiB
WRITTEN_TO = (
    "the file was written to since it was opened, expected it to stay as it was: save "
    "to another path, and rename that"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({f"w{i}": torch.full(SHAPE, float(i)) for i in range(64)}, path)
    # As of a file that was there before: times are as exact as the kernel's ticks.
    os.utime(path, (1e9, 1e9))
    return path


def by_op(path: Path) -> Iterator[tuple[str, Tensor]]:
    handle = torch.ops.ckpt_streamer.open(str(path), LIMIT_MB * MIB)
    while handle.has_next():
        yield handle.next()


def by_op_converting(path: Path) -> Iterator[tuple[str, Tensor]]:
    handle = torch.ops.ckpt_streamer.open(
        str(path), LIMIT_MB * MIB, dtype=torch.bfloat16
    )
    while handle.has_next():
        yield handle.next()


def by_checkpoint(path: Path) -> Iterator[tuple[str, Tensor]]:
    yield from ckpt_streamer.open(path, LIMIT_MB)


def by_stream(path: Path) -> Iterator[tuple[str, Tensor]]:
    for _, name, tensor in ckpt_streamer.stream(path, LIMIT_MB):
        yield name, tensor


Way = Callable[[Path], Iterator[tuple[str, Tensor]]]
WAYS = pytest.mark.parametrize(
    "way", [by_op, by_op_converting, by_checkpoint, by_stream]
)


def other_values(path: Path) -> None:
    torch.save({f"w{i}": torch.full(SHAPE, -1.0) for i in range(64)}, path)


@WAYS
def test_a_file_that_is_replaced_is_read_to_its_end(
    path: Path, tmp_path: Path, way: Way
) -> None:
    other_values(tmp_path / "new.pt")
    count = 0
    for name, tensor in way(path):
        if count == 3:
            os.replace(tmp_path / "new.pt", path)
        assert (tensor == float(name[1:])).all()
        count += 1
    assert count == 64
    assert all((tensor == -1).all() for _, tensor in way(path))


@WAYS
def test_a_file_that_is_removed_is_read_to_its_end(path: Path, way: Way) -> None:
    for name, tensor in way(path):
        path.unlink(missing_ok=True)
        assert (tensor == float(name[1:])).all()


@WAYS
@pytest.mark.parametrize("position", [0, 30, 63])
def test_saving_over_the_file_is_an_error(path: Path, way: Way, position: int) -> None:
    """Also in the last window, at the end."""
    count = 0
    with pytest.raises(ValueError) as caught:  # noqa: PT011, PT012
        for _, _ in way(path):
            if count == position:
                other_values(path)
            count += 1
    assert str(caught.value).splitlines()[0] == f"{path}: {WRITTEN_TO}"
    # No further window was read.
    assert position < count <= min(position + 4 * LIMIT_MB + 1, 64)


def test_what_is_appended_is_an_error(path: Path) -> None:
    items = by_op(path)
    next(items)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=WRITTEN_TO):
        list(items)


def test_look_ups_in_a_file_that_was_written_to(path: Path) -> None:
    with ckpt_streamer.open(path, LIMIT_MB) as checkpoint:
        assert (checkpoint["w5"] == 5).all()
        other_values(path)
        for look_up in (
            lambda: checkpoint["w6"],
            lambda: checkpoint.tensor("w6"),
            lambda: checkpoint.slice("w6", 0, 1),
        ):
            with pytest.raises(ValueError, match=WRITTEN_TO):
                look_up()


@pytest.mark.parametrize("position", [1, 30, 63])
def test_loading_from_a_file_that_was_written_to(path: Path, position: int) -> None:
    model = torch.nn.Module()
    for i in range(64):
        model.register_buffer(f"w{i}", torch.zeros(SHAPE))
    count = 0

    def change(_done: int, _total: int) -> None:
        nonlocal count
        count += 1
        if count == position:
            other_values(path)

    with pytest.raises(ValueError, match=WRITTEN_TO):
        ckpt_streamer.apply_state_dict(
            model, path, memory_limit_mb=LIMIT_MB, progress=change
        )
    assert position <= count <= position + 4 * LIMIT_MB + 1


def test_reading_changes_nothing(path: Path) -> None:
    """What is written to tensors, and to the file's attributes, is no such change."""
    for _, tensor in by_op(path):
        tensor.add_(1)
        path.chmod(0o600)
        os.link(path, f"{path}.{time.monotonic_ns()}")
