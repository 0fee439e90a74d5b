"""apply_state_dict(): what it tells that a person would not expect."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from load_outcomes import assert_same_state
from mapped_checkpoints import MIB, load_mapped
from test_apply_memory import COUNT, flat_model, load_flat
from torch import Tensor, nn

from ckpt_streamer import apply_state_dict

UNMAPPED = (
    "ckpt_streamer: {} bytes of the state_dict are no pages of a mapped file, so that "
    "the limit of 1048576 bytes does not bound them: load it by torch.load(path, "
    'map_location="cpu", mmap=True), or give the path instead (what is not aligned in '
    "its file is copied all the same)"
)


def model_of(tensors: dict[str, Tensor]) -> nn.Module:
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, torch.zeros_like(tensor))
    return model


def heap_tensors() -> dict[str, Tensor]:
    one = torch.ones(MIB // 2)  # 2 MiB
    return {"a": one, "b": one.view(2, -1), "c": torch.ones(MIB // 4)}


def told(state_dict: Any, **options: Any) -> list[str]:
    model = model_of(
        load_mapped(state_dict) if isinstance(state_dict, Path) else state_dict
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        apply_state_dict(model, state_dict, **options)
    for each in caught:
        assert each.category is UserWarning
        assert each.filename == __file__  # where it was called
    return [str(each.message) for each in caught]


def test_more_on_the_heap_than_the_limit(tmp_path: Path) -> None:
    tensors = heap_tensors()
    assert told(tensors, memory_limit_mb=1) == [UNMAPPED.format(3 * MIB)]
    assert told(tensors, memory_limit_mb=3) == []
    # Mapped, and from the path.
    torch.save(tensors, tmp_path / "file.pt")
    assert told(load_mapped(tmp_path / "file.pt"), memory_limit_mb=1) == []
    assert told(tmp_path / "file.pt", memory_limit_mb=1) == []
    # Written to: the caller's own.
    mapped = load_mapped(tmp_path / "file.pt")
    mapped["a"].add_(1)
    assert told(mapped, memory_limit_mb=1) == []
    # Not in this memory.
    elsewhere = {"a": torch.ones(MIB, device="meta")}
    assert told(elsewhere, memory_limit_mb=1, assign=True) == []
    # Some of it.
    mapped["c"] = tensors["c"]
    assert told(mapped, memory_limit_mb=1) == []
    mapped["b"] = tensors["b"]
    assert told(mapped, memory_limit_mb=1) == [UNMAPPED.format(3 * MIB)]


def test_a_warning_that_is_an_error_comes_first() -> None:
    tensors = heap_tensors()
    model = model_of(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no pages of a mapped file"):
            apply_state_dict(model, tensors, memory_limit_mb=1)
    assert_same_state(model, model_of(tensors))


def test_more_in_memory_than_the_limit(large_checkpoint: Path) -> None:
    model = flat_model()

    def read_all(_module: nn.Module, entries: Any, *_: Any) -> None:
        torch.stack([tensor.sum() for tensor in entries.values()])  # one by one
        if entries["w0"][0, 0] == 0:
            torch.cat(list(entries.values()))

    model.register_load_state_dict_pre_hook(read_all)
    state_dict = load_flat(large_checkpoint)
    pattern = (
        r"ckpt_streamer: (\d+) bytes of the file more than the limit of 4194304 bytes "
        r"were in memory at once: a hook, an override or a converter may have read "
        r"more than that in one call"
    )
    with pytest.warns(UserWarning, match="more than the limit") as caught:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    [warning] = caught
    assert warning.filename == __file__
    match = re.fullmatch(pattern, str(warning.message))
    assert match is not None
    assert (COUNT - 4) * MIB <= int(match[1]) <= (COUNT + 4) * MIB
    state_dict["w0"] += 1
    apply_state_dict(model, state_dict, memory_limit_mb=4)


def test_a_line_for_each_load(
    large_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ckpt_streamer")
    apply_state_dict(flat_model(), load_flat(large_checkpoint), memory_limit_mb=4)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("ckpt_streamer", logging.DEBUG)
    match = re.fullmatch(
        r"Module: loaded (\d+) bytes, at most (\d+) of the file at once, (\d+) given "
        r"back",
        record.getMessage(),
    )
    assert match is not None
    loaded_bytes, peak_bytes, evicted_bytes = map(int, match.groups())
    assert loaded_bytes == COUNT * MIB
    assert 0 < peak_bytes <= 4 * MIB
    assert evicted_bytes >= COUNT * MIB
