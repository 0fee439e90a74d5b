"""Storages that lie unaligned in the file: copies, shared as long as they live."""

from __future__ import annotations

import gc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB
from torch import Tensor

import ckpt_streamer

OPEN = torch.ops.ckpt_streamer.open


def save_legacy(tree: Any, path: Path) -> Path:
    """Moved by the length of a text until no storage is aligned to two bytes."""
    torch.save(["", tree], path, _use_new_zipfile_serialization=False)
    size = path.stat().st_size
    if size % 2 == 0:
        torch.save(["x", tree], path, _use_new_zipfile_serialization=False)
        assert path.stat().st_size % 2 == 1
    return path


def save_rezipped(tree: Any, path: Path) -> Path:
    """As zip tools write it: records one behind the other, at any offset."""
    plain = path.with_suffix(".plain")
    torch.save(tree, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            # Of such a length that the bytes behind the header are at an odd
            # offset.
            info = zipfile.ZipInfo(name)
            begin = target.fp.tell() + 30 + len(name)  # type: ignore[union-attr]
            if begin % 2 == 0:
                info.extra = b"\x00\x00\x01\x00x"
            target.writestr(info, source.read(name))
    return path


SAVERS = {"legacy": save_legacy, "rezipped": save_rezipped}
each_format = pytest.mark.parametrize("save", SAVERS.values(), ids=list(SAVERS))


def items_of(handle: Any) -> list[tuple[str, Tensor]]:
    result = []
    while handle.has_next():
        result.append(handle.next())
    return result


def by_last_key(handle: Any) -> dict[str, Tensor]:
    return {name.rpartition(".")[2]: tensor for name, tensor in items_of(handle)}


@each_format
def test_aligned_and_equal(tmp_path: Path, save: Any) -> None:
    values = torch.arange(6)
    tree = {
        "double": values.to(torch.float64),
        "complex": values.to(torch.complex128),
        "half": values.to(torch.float16),
        "bytes": values.to(torch.uint8),
    }
    handle = OPEN(str(save(tree, tmp_path / "x.pt")), MIB)
    tensors = by_last_key(handle)
    for name, wanted in tree.items():
        assert torch.equal(tensors[name], wanted)
        assert tensors[name].data_ptr() % wanted.element_size() == 0
    del tensors["bytes"]  # aligned anywhere, and no copy
    handle.release()
    copied = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    assert handle.bytes_resident() == copied
    tensors.clear()
    assert handle.bytes_resident() == 0


@each_format
def test_writes_are_seen_by_all_tensors_of_the_storage(
    tmp_path: Path, save: Any
) -> None:
    base = torch.zeros(1000)
    tree = {"a": base, "b": base[10:20], "c": base.view(50, 20).t()}
    handle = OPEN(str(save(tree, tmp_path / "x.pt")), MIB)
    tensors = by_last_key(handle)
    tensors["b"][5] = 7
    assert tensors["a"][15] == 7
    assert tensors["c"][15, 0] == 7
    # Made again while one of them lives.
    del tensors["a"], tensors["b"]
    handle.reset()
    again = by_last_key(handle)
    assert again["a"][15] == 7
    again["a"][16] = 8
    assert tensors["c"][16, 0] == 8
    assert (
        again["b"].untyped_storage().data_ptr()
        == tensors["c"].untyped_storage().data_ptr()
    )
    # And from the file when none does.
    del again, tensors
    handle.reset()
    assert not by_last_key(handle)["a"].any()


@each_format
def test_copies_count_in_the_figures(tmp_path: Path, save: Any) -> None:
    count, size = 16, MIB
    tree = {f"t{i}": torch.full((size // 4,), float(i)) for i in range(count)}
    handle = OPEN(str(save(tree, tmp_path / "x.pt")), 4 * MIB)
    held = []
    for i in range(count):
        held.append(handle.next()[1])
        assert handle.bytes_resident() == (i + 1) * size
    assert handle.peak_bytes_resident() == count * size
    held.clear()
    assert handle.bytes_resident() == 0
    handle.reset()
    while handle.has_next():
        _, tensor = handle.next()
        assert handle.bytes_resident() == size
        del tensor
    assert handle.bytes_resident() == 0
    assert handle.peak_bytes_resident() == count * size


@each_format
def test_one_at_a_time_is_one_at_a_time(tmp_path: Path, save: Any) -> None:
    tree = [torch.full((MIB // 4,), float(i)) for i in range(8)]
    handle = OPEN(str(save(tree, tmp_path / "x.pt")), 4 * MIB)
    while handle.has_next():
        handle.next()
    # Each is copied when the one before it is gone.
    assert handle.peak_bytes_resident() == MIB


@each_format
def test_of_a_storage_beyond_the_limit_only_what_is_asked_for(
    tmp_path: Path, save: Any
) -> None:
    base = torch.arange(8 * MIB // 4, dtype=torch.float32)
    tree = {
        "first": base[5:1005],
        "overlapping": base[1000:1010],
        "beside": base[1010:1020],
        "far": base[-100:].view(10, 10),
        "strided": base[MIB // 4 : MIB // 2 : 1000],
        "empty": base[20:20],
    }
    path = save(tree, tmp_path / "x.pt")
    handle = OPEN(str(path), MIB)
    tensors = by_last_key(handle)
    assert handle.peak_bytes_resident() < 2 * MIB
    for name, wanted in tree.items():
        assert torch.equal(tensors[name], wanted), name
        assert tensors[name].stride() == wanted.stride(), name
        assert tensors[name].data_ptr() % 4 == 0, name
    tensors["first"][1000 - 5] = -1
    assert tensors["overlapping"][0] == -1
    # Nothing beyond what was read can be reached.
    with pytest.raises(RuntimeError, match="out of bounds"):
        tensors["beside"].as_strided((1000,), (1,))
    # With room for all of it the storage is one.
    whole = by_last_key(OPEN(str(path), 16 * MIB))
    assert len({t.untyped_storage().data_ptr() for t in whole.values()}) == 1


def test_one_tensor_that_needs_alignment_is_enough(tmp_path: Path) -> None:
    base = torch.zeros(8, dtype=torch.uint8)
    path = save_rezipped([base, base.view(torch.uint16)], tmp_path / "x.pt")
    first, second = (tensor for _, tensor in items_of(OPEN(str(path), MIB)))
    first[2] = 5
    assert second[1] == 5


@each_format
def test_a_checkpoint_in_python(tmp_path: Path, save: Any) -> None:
    tree = {f"t{i:02}": torch.full((MIB // 4,), float(i)) for i in range(16)}
    path = save(tree, tmp_path / "x.pt")
    with ckpt_streamer.open(path, memory_limit_mb=4) as checkpoint:
        for name, tensor in checkpoint:
            assert torch.equal(tensor, tree[name.rpartition(".")[2]])
        del tensor
        figures = checkpoint.stats()
        # A window's tensors are made at once.
        assert 2 * MIB <= figures.peak_bytes_resident <= 4 * MIB
        assert figures.bytes_resident == 0
        assert figures.bytes_over_limit == 0


@each_format
@pytest.mark.parametrize("limit", [MIB, 64 * MIB])
def test_conversion(tmp_path: Path, save: Any, limit: int) -> None:
    base = torch.arange(MIB, dtype=torch.float32)
    tree = {"a": base[:10], "b": base[10:20], "tied": base[10:20], "all": base}
    path = save(tree, tmp_path / "x.pt")
    handle = OPEN(str(path), limit, dtype=torch.bfloat16)
    tensors = by_last_key(handle)
    for name, wanted in tree.items():
        assert torch.equal(tensors[name], wanted.to(torch.bfloat16)), name
    assert tensors["b"].data_ptr() == tensors["tied"].data_ptr()
    assert handle.bytes_resident() == 0


@each_format
def test_a_file_that_shrinks_is_an_error(tmp_path: Path, save: Any) -> None:
    tree = [torch.ones(1000) for _ in range(2)]
    path = save(tree, tmp_path / "x.pt")
    handle = OPEN(str(path), MIB)
    handle.next()
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match=str(path)):
        handle.next()


@each_format
def test_tensors_outlive_the_handle(tmp_path: Path, save: Any) -> None:
    handle = OPEN(str(save([torch.arange(100)], tmp_path / "x.pt")), MIB)
    [(_, tensor)] = items_of(handle)
    del handle
    gc.collect()
    assert torch.equal(tensor, torch.arange(100))
