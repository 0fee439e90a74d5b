"""Cold files are read ahead of the reader; warm ones cost nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, make_cold, resident_of

import ckpt_streamer
from ckpt_streamer import apply_state_dict, stream

LIMIT_MB = 8
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cold_checkpoint(tmp_path: Path) -> Path:
    """32 tensors of 1 MiB, on the disk alone; value ``i`` fills the i-th."""
    path = tmp_path / "cold.pt"
    torch.save({f"w{i}": torch.full((256, 1024), float(i)) for i in range(32)}, path)
    make_cold(path)
    return path


def comes_true(condition: Callable[[], bool]) -> bool:
    """False if it does not within a minute."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("way", ["stream", "checkpoint"])
def test_the_next_window_is_read_while_this_one_is_used(
    cold_checkpoint: Path, way: str
) -> None:
    if way == "stream":
        items = stream(load_mapped(cold_checkpoint), LIMIT_MB)
    else:
        items = iter(ckpt_streamer.open(cold_checkpoint, LIMIT_MB))  # type: ignore[assignment]
    make_cold(cold_checkpoint)  # also what opening it has read
    values = [float(next(items)[-1][0, 0])]
    # More than this window has.
    assert comes_true(lambda: items.stats().bytes_prefetched > LIMIT_MB * MIB)
    assert items.stats().bytes_prefetched <= (2 * LIMIT_MB + 4) * MIB
    peak = 0
    for item in items:
        values.append(float(item[-1].max()))
        peak = max(peak, resident_of(cold_checkpoint).clean_bytes)
    assert values == [float(i) for i in range(32)]
    assert 0 < peak <= LIMIT_MB * MIB + PAGE_BYTES
    assert resident_of(cold_checkpoint).clean_bytes == 0


def test_a_warm_file_is_not_read_ahead(large_checkpoint: Path) -> None:
    large_checkpoint.read_bytes()
    with stream(load_mapped(large_checkpoint), LIMIT_MB) as items:
        for _, _, val in items:
            val.sum()
        assert items.stats().bytes_prefetched == 0


def test_loading_reads_ahead(cold_checkpoint: Path) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(32):
                self.register_parameter(
                    f"w{i}", torch.nn.Parameter(torch.zeros(256, 1024))
                )

    model = Model()
    apply_state_dict(model, cold_checkpoint, memory_limit_mb=LIMIT_MB)
    values = [float(each[0, 0]) for each in model.state_dict().values()]
    assert values == [float(i) for i in range(32)]


@pytest.mark.parametrize("limit_mb", [4, 8])
def test_a_large_tensor_copied_in_pieces(tmp_path: Path, limit_mb: int) -> None:
    path = tmp_path / "large.pt"
    torch.save({"w": torch.arange(8 * MIB, dtype=torch.int32)}, path)
    make_cold(path)
    source = load_mapped(path)["w"]
    destination = torch.empty_like(source)
    torch.ops.ckpt_streamer.copy_(destination, source, limit_mb * MIB)
    assert resident_of(path).clean_bytes == 0
    assert destination.equal(source)
