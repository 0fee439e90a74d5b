"""A limit for those who name none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped
from memory_groups import new_memory_group

import ckpt_streamer
from ckpt_streamer import apply_state_dict, stream


def the_line(caplog: pytest.LogCaptureFixture) -> str:
    """The one line that says which limit was chosen."""
    lines = [m for m in caplog.messages if m.startswith("the memory limit is ")]
    assert len(lines) == 1
    return lines[0]


def iterate(source: Any) -> int:
    with stream(source, memory_limit_mb=None) as items:
        for _ in items:
            pass
    return items.stats().memory_limit_bytes


def iterate_checkpoint(source: Path) -> int:
    with ckpt_streamer.open(source, memory_limit_mb=None) as checkpoint:
        assert checkpoint.memory_limit_bytes == checkpoint.stats().memory_limit_bytes
        return checkpoint.memory_limit_bytes


@pytest.mark.parametrize("way", ["memory", "path", "checkpoint"])
def test_what_was_chosen_is_told(
    large_checkpoint: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckpt_streamer")
    if way == "checkpoint":
        limit_bytes = iterate_checkpoint(large_checkpoint)
    else:
        path = large_checkpoint
        limit_bytes = iterate(load_mapped(path) if way == "memory" else path)
    assert 16 * MIB <= limit_bytes <= 1024 * MIB
    assert limit_bytes % MIB == 0
    line = the_line(caplog)
    assert line.startswith(f"the memory limit is {limit_bytes // MIB} MiB: a quarter")
    assert line.endswith(", from 16 MiB to 1024 MiB")


def test_loading_chooses_once(
    large_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckpt_streamer")
    model = torch.nn.Module()
    for i in range(64):
        model.register_buffer(f"w{i}", torch.zeros(256, 1024))
    apply_state_dict(model, large_checkpoint, memory_limit_mb=None)
    assert float(model.get_buffer("w63")[0, 0]) == 63
    assert the_line(caplog)


def test_a_limit_that_is_named_is_not_told(
    large_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckpt_streamer")
    with ckpt_streamer.open(large_checkpoint, 64):
        pass
    assert not caplog.messages


@torch.jit.script
def scripted_limit(path: str) -> tuple[int, int]:
    limit = torch.ops.ckpt_streamer.default_memory_limit_bytes()
    return limit, torch.ops.ckpt_streamer.open(path, limit).stats()[
        "memory_limit_bytes"
    ]


def test_the_op(large_checkpoint: Path) -> None:
    limit_bytes, told = scripted_limit(str(large_checkpoint))
    assert limit_bytes == told
    assert 16 * MIB <= limit_bytes <= 1024 * MIB
    # It is asked each time, not once when a function is compiled.
    graph = torch._C._last_executed_optimized_graph()
    assert "default_memory_limit_bytes" in str(graph)


def test_in_a_container() -> None:
    code = """
    import logging
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import sys, torch, ckpt_streamer
    from pathlib import Path
    from ckpt_streamer import stream

    logging.getLogger().handlers[0].setStream(sys.stdout)
    print(stream({}, None).stats().memory_limit_bytes)
    """
    with new_memory_group() as group:
        group.limit(768 * MIB)
        line, chosen = group.run(code).splitlines()
    assert f"available in {group.folder}, from" in line
    # A quarter of what the process has left of it.
    assert 64 * MIB < int(chosen) < 192 * MIB
