"""torch.ops.ckpt_streamer and StreamHandle, eagerly."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor

from ckpt_streamer import StreamStats

OPEN = torch.ops.ckpt_streamer.open
STREAM = torch.ops.ckpt_streamer.stream


def read_all(handle: Any) -> list[tuple[str, Tensor]]:
    items = []
    while handle.has_next():
        items.append(handle.next())
    return items


def saved(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "saved.pt"
    torch.save(value, path)
    return str(path)


def flattened(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Name the tensors of a tree as open() does."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, (list, tuple)):
        entries = list(enumerate(value))
    else:
        return {}
    result = {}
    for key, inner in entries:
        result.update(flattened(inner, f"{prefix}.{key}" if prefix else str(key)))
    return result


DTYPES = [
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


def raw_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


# What a file holds


@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
def test_open_equals_torch_load(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    tree = {
        "dtypes": [
            torch.randint(0, 255, (4, 16), generator=generator, dtype=torch.uint8)
            .view(torch.uint8)
            .clone()
            .view(dtype)
            if dtype is not torch.bool
            else torch.tensor([True, False])
            for dtype in DTYPES
        ],
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "expanded": base[:1].expand(5, 8),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        3: torch.ones(2),
        "model": model.state_dict(),
        "parameter": model[0].weight,
        "nested": {"list": [torch.ones(1), (torch.ones(2), {"x": torch.ones(3)})]},
        "plain": [1, 2.5, "text", None, True, b"bytes", 10**30],
        "ordered": OrderedDict(a=torch.zeros(2), b=torch.zeros(1)),
    }
    path = saved(tmp_path, tree)
    expected = flattened(torch.load(path))
    items = read_all(OPEN(path, MIB))
    assert sorted(name for name, _ in items) == sorted(expected)
    for name, tensor in items:
        wanted = expected[name]
        assert tensor.dtype == wanted.dtype, name
        assert tensor.shape == wanted.shape, name
        assert tensor.stride() == wanted.stride(), name
        assert tensor.storage_offset() == wanted.storage_offset(), name
        assert tensor.requires_grad == wanted.requires_grad, name
        storage, wanted_storage = tensor.untyped_storage(), wanted.untyped_storage()
        assert storage.nbytes() == wanted_storage.nbytes(), name
        if tensor.numel():
            assert torch.equal(raw_bytes(tensor), raw_bytes(wanted)), name


def test_a_bare_tensor_has_no_name(tmp_path: Path) -> None:
    [(name, tensor)] = read_all(OPEN(saved(tmp_path, torch.arange(5)), MIB))
    assert name == ""
    assert torch.equal(tensor, torch.arange(5))


def test_open_yields_in_file_order(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    tree = {"late": base[5:], "early": base[:5], "next": torch.ones(1), "no": base[:0]}
    handle = OPEN(saved(tmp_path, tree), MIB)
    assert [name for name, _ in read_all(handle)] == ["no", "early", "late", "next"]


def test_tensors_of_one_storage_share_it(tmp_path: Path) -> None:
    base = torch.zeros(8)
    path = saved(tmp_path, {"a": base, "b": base[2:], "c": base.view(2, 4)})
    before = Path(path).read_bytes()
    handle = OPEN(path, MIB)
    tensors = dict(read_all(handle))
    assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == 1
    assert tensors["a"].untyped_storage().nbytes() == 32
    tensors["a"][2] = 7
    assert tensors["b"][0] == 7
    # Copy-on-write: the file, and every other reader of it, keep their bytes.
    assert Path(path).read_bytes() == before
    assert dict(read_all(OPEN(path, MIB)))["a"][2] == 0
    # A storage lives as long as one of its tensors: after a reset as well.
    handle.reset()
    again = dict(read_all(handle))
    assert again["c"].data_ptr() == tensors["a"].data_ptr()


def test_a_tensor_made_later_shares_a_storage_that_is_still_held(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, {f"w{i}": torch.full((4,), float(i)) for i in range(9)})
    handle = OPEN(path, MIB)
    kept = dict(read_all(handle))
    handle.reset()
    again = dict(read_all(handle))
    storages = {t.untyped_storage()._cdata for t in kept.values()}
    assert len(storages) == 9
    assert {t.untyped_storage()._cdata for t in again.values()} == storages
    # The last holder goes, and comes back after a loss of all.
    cdata = kept["w3"].untyped_storage()._cdata
    del kept
    assert again["w3"].untyped_storage()._cdata == cdata
    del again
    handle.reset()
    assert dict(read_all(handle))["w3"].tolist() == [3.0] * 4
    del handle


def test_storages_are_shared_and_dropped_by_many_threads(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"w{i}": torch.full((4,), float(i)) for i in range(64)})
    handle = OPEN(path, MIB)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(100):
            try:
                name, tensor = handle.next()
            except IndexError:
                handle.reset()
                continue
            # Python knows the storage: finding it takes Python's lock.
            if tensor.untyped_storage().nbytes() != 16 or tensor[0] != int(name[1:]):
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tensor_outlives_its_handle_and_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.arange(100_000)})
    [(_, tensor)] = read_all(OPEN(path, MIB))
    os.unlink(path)
    assert torch.equal(tensor, torch.arange(100_000))


def test_unaligned_records_give_aligned_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.arange(10.0), "b": torch.arange(3)})
    rezipped = tmp_path / "rezipped.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rezipped, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    tensors = dict(read_all(OPEN(str(rezipped), MIB)))
    assert torch.equal(tensors["a"], torch.arange(10.0))
    assert torch.equal(tensors["b"], torch.arange(3))
    for tensor in tensors.values():
        assert tensor.data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize("shift", range(8))
def test_a_storage_is_aligned_to_all_its_tensors(tmp_path: Path, shift: int) -> None:
    base = torch.arange(16, dtype=torch.uint8)
    views = {str(t): base.view(t) for t in (torch.uint8, torch.uint16, torch.uint64)}
    path = saved(tmp_path, views)
    rezipped = tmp_path / "rezipped.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rezipped, "w") as target:
        # The first record's length shifts those behind it.
        target.writestr("saved/padding", b"x" * shift)
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    tensors = dict(read_all(OPEN(str(rezipped), MIB)))
    for name, tensor in tensors.items():
        assert tensor.data_ptr() % tensor.element_size() == 0
        assert torch.equal(tensor, views[name])
    assert len({t.data_ptr() for t in tensors.values()}) == 1


@pytest.mark.parametrize("shift", range(0, 16, 2))
def test_complex_numbers_are_aligned_as_a_whole(tmp_path: Path, shift: int) -> None:
    numbers = torch.arange(64).to(torch.complex128)
    path = saved(tmp_path, numbers)
    rezipped = tmp_path / "rezipped.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rezipped, "w") as target:
        target.writestr("saved/padding", b"x" * shift)
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    [(_, tensor)] = read_all(OPEN(str(rezipped), MIB))
    assert tensor.data_ptr() % 16 == 0
    # A vectorised copy, which loads whole numbers.
    assert torch.equal(tensor.clone(), numbers)


# The handle


def test_a_stream_of_tensors_in_memory() -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.empty(0)}
    handle = STREAM(tensors, MIB)
    assert len(handle) == 3
    items = read_all(handle)
    assert items[0][0] == "c"
    assert {name: t.data_ptr() for name, t in items} == {
        name: t.data_ptr() for name, t in tensors.items()
    }
    assert handle.bytes_streamed() == 20
    assert handle.bytes_evicted() == 0


@pytest.mark.parametrize("source", ["open", "stream"])
def test_figures(large_checkpoint: Path, source: str) -> None:
    limit = 8 * MIB
    if source == "open":
        handle = OPEN(str(large_checkpoint), limit)
    else:
        handle = STREAM(load_mapped(large_checkpoint), limit)
    assert handle.bytes_streamed() == handle.peak_bytes_resident() == 0
    count = 0
    while handle.has_next():
        handle.next()[1].sum()
        count += 1
        if count % 8 == 0:
            resident = resident_of(large_checkpoint).clean_bytes
            assert handle.bytes_resident() == resident <= limit
            assert handle.bytes_streamed() == count * MIB
            assert handle.peak_bytes_resident() >= resident
    assert handle.bytes_evicted() >= 64 * MIB
    assert 4 * MIB < handle.peak_bytes_resident() <= limit
    assert handle.bytes_resident() == resident_of(large_checkpoint).clean_bytes == 0
    assert handle.not_held() == ""
    stats = handle.stats()
    assert stats.pop("windows_entered") >= 8
    # The kernel may have taken pages of the file from its cache.
    assert 0 <= stats.pop("bytes_prefetched") <= 64 * MIB
    assert stats == {
        "tensors": 64,
        "tensors_yielded": 64,
        "memory_limit_bytes": limit,
        "bytes_streamed": handle.bytes_streamed(),
        "bytes_evicted": handle.bytes_evicted(),
        "bytes_resident": 0,
        "peak_bytes_resident": handle.peak_bytes_resident(),
        "bytes_over_limit": 0,
        "bytes_written": 0,
    }


@torch.jit.script
def stats_of_first(path: str, limit: int) -> tuple[dict[str, int], str]:
    handle = torch.ops.ckpt_streamer.open(path, limit)
    handle.next()
    return handle.stats(), handle.not_held()


def test_a_script_asks_for_figures(large_checkpoint: Path) -> None:
    stats, not_held = stats_of_first(str(large_checkpoint), 8 * MIB)
    fields = {field.name for field in dataclasses.fields(StreamStats)}
    assert set(stats) == fields - {"not_held", "notes"}
    assert (stats["tensors"], stats["tensors_yielded"]) == (64, 1)
    assert not_held == ""


def test_release_and_reset(large_checkpoint: Path) -> None:
    handle = OPEN(str(large_checkpoint), 8 * MIB)
    kept = [handle.next()[1] for _ in range(3)]
    for tensor in kept:
        tensor.sum()
    assert handle.bytes_resident() > 0
    handle.release()
    handle.release()
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert [float(tensor[0, 0]) for tensor in kept] == [0.0, 1.0, 2.0]
    assert handle.next()[0] == "w3"
    handle.reset()
    assert handle.bytes_streamed() == 0
    assert handle.next()[0] == "w0"


def test_a_dropped_handle_releases(large_checkpoint: Path) -> None:
    handle = OPEN(str(large_checkpoint), 8 * MIB)
    tensor = handle.next()[1]
    tensor.sum()
    assert resident_of(large_checkpoint).clean_bytes > 0
    del handle
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert float(tensor[0, 0]) == 0.0


def test_many_threads_share_one_handle(large_checkpoint: Path) -> None:
    handle = OPEN(str(large_checkpoint), 8 * MIB)
    names: list[str] = []

    def work() -> None:
        while True:
            try:
                name, tensor = handle.next()
            except IndexError:
                return
            if (tensor == float(name[1:])).all():
                names.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == sorted(f"w{i}" for i in range(64))


# In a process of its own: this one's heap has room for what others left behind.
PEAK_OF_OPENING = """
import sys
import torch
import ckpt_streamer
from memory_peaks import peaks_of
print(peaks_of(lambda: torch.ops.ckpt_streamer.open(sys.argv[1], 1 << 26))[1])
"""


def test_opening_many_tensors_takes_little_memory_for_each(tmp_path: Path) -> None:
    count = 65_536
    path = saved(tmp_path, {f"key{i}": torch.zeros(4) for i in range(count)})
    done = subprocess.run(
        [sys.executable, "-P", "-c", PEAK_OF_OPENING, path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert count * 100 < int(done.stdout) < count * 540


# Errors


def test_next_past_the_end() -> None:
    handle = STREAM({"a": torch.ones(1)}, MIB)
    handle.next()
    assert not handle.has_next()
    with pytest.raises(IndexError) as caught:
        handle.next()
    assert "next() past the end: all 1 tensors have been yielded" in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, -(2**63)])
def test_bad_limits(limit: int) -> None:
    for call in (lambda: OPEN("/nonexistent", limit), lambda: STREAM({}, limit)):
        with pytest.raises(
            ValueError, match=f"memory_limit_bytes is {limit}, expected"
        ):
            call()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_a_handle_cannot_be_copied(duplicate: Callable[[Any], Any]) -> None:
    handle = STREAM({"a": torch.ones(1)}, MIB)
    with pytest.raises(NotImplementedError) as caught:
        duplicate(handle)
    assert "a stream cannot be pickled, copied or saved in a module" in str(
        caught.value
    )


def refusal(path: Path) -> tuple[type[Exception], str]:
    """Open what cannot be opened: the error's type and first line."""
    try:
        OPEN(str(path), MIB)
    except Exception as error:
        return type(error), str(error).splitlines()[0]
    raise AssertionError("nothing was raised")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    path = tmp_path / "no.pt"
    assert refusal(path) == (
        RuntimeError,
        f"{path}: cannot open: No such file or directory",
    )
    assert refusal(tmp_path) == (
        ValueError,
        f"{tmp_path}: is a directory, expected a checkpoint file",
    )
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == (
        ValueError,
        f"{tmp_path / 'fifo'}: is not a regular file, expected a checkpoint file",
    )


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"")
    assert refusal(path) == (
        ValueError,
        f"{path}: is empty, expected a torch.save, TorchScript or safetensors file",
    )
    path.write_bytes(b"hello world, this is text")
    assert refusal(path) == (
        ValueError,
        f"{path}: begins with 68 65 6c 6c 6f 20 77 6f 72 6c 64 2c 20 74 68 69, "
        "expected a torch.save, TorchScript or safetensors file [byte 0]",
    )
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert refusal(path) == (
        NotImplementedError,
        f"{path}: is a GGUF file, which is not read; expected a torch.save, "
        "TorchScript or safetensors file",
    )


def test_truncated_files(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.arange(1000)}, whole)
    data = whole.getvalue()
    path = tmp_path / "x.pt"
    for length in [*range(4, len(data) - 1, 97), len(data) - 1]:
        path.write_bytes(data[:length])
        error, text = refusal(path)
        assert error is ValueError
        assert text.startswith(f"{path}: ")
        assert "expected a whole zip file" in text or "truncated" in text


def test_a_zip_without_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/b", "c")
        target.writestr("a/d", "e")
    error, text = refusal(path)
    assert issubclass(error, (ValueError, NotImplementedError))
    assert text == (
        f"{path}: is a zip file of 2 records ('a/b', 'a/d'), expected 'a/data.pkl' as "
        "torch.save writes"
    )


def test_a_file_that_shrinks_is_an_error(
    large_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shrinking.pt"
    path.write_bytes(large_checkpoint.read_bytes())
    size = path.stat().st_size
    handle = OPEN(str(path), 4 * MIB)
    handle.next()
    os.truncate(path, MIB)
    with pytest.raises(ValueError) as caught:  # noqa: PT011, PT012
        for _ in range(8):
            handle.next()
    assert str(caught.value).startswith(
        f"{path}: the file has shrunk to {MIB} bytes since it was opened, expected "
        f"{size}"
    )


def test_selected_tensors_are_streamed_alone(large_checkpoint: Path) -> None:
    handle = OPEN(str(large_checkpoint), 8 * MIB, select=["w6?", "w1"])
    assert len(handle) == 5
    assert [name for name, _ in read_all(handle)] == ["w1", "w60", "w61", "w62", "w63"]
    assert handle.bytes_streamed() == 5 * MIB
    with pytest.raises(
        ValueError, match=r": none of 64 tensors is named as 'x\*'; the"
    ):
        OPEN([str(large_checkpoint)], 8 * MIB, select=["x*", "w*"])


def test_look_ups_leave_the_stream_where_it_is(large_checkpoint: Path) -> None:
    handle = OPEN(str(large_checkpoint), 8 * MIB)
    for i in range(64):
        name, tensor = handle.next()
        assert name == f"w{i}"
        assert (tensor == i).all()
        other = handle.tensor(f"w{63 - i}")
        assert (other == 63 - i).all()
        part = handle.slice(f"w{(i + 32) % 64}", 10, 20)
        assert part.shape == (10, 1024)
        assert (part == (i + 32) % 64).all()
        assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
    assert not handle.has_next()
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_look_ups_in_the_middle_of_tied_tensors_leave_them_tied(tmp_path: Path) -> None:
    base = torch.randn(8)
    path = saved(tmp_path, {"a": base, "b": base, "c": torch.ones(3)})
    handle = OPEN(path, MIB, dtype=torch.bfloat16)
    _, a = handle.next()
    handle.tensor("c")
    _, b = handle.next()
    assert a.data_ptr() == b.data_ptr()


def test_look_ups_that_find_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.b": torch.ones(2), "a": {"b": torch.ones(1)}})
    handle = OPEN(path, MIB)
    with pytest.raises(ValueError, match=f"^{path}: has no tensor 'x'"):
        handle.tensor("x")
    with pytest.raises(ValueError, match=f"^{path}: has 2 tensors of the name 'a.b', "):
        handle.slice("a.b", 0, 1)
    handle = STREAM({"a": torch.ones(2)}, MIB)
    assert handle.tensor("a").tolist() == [1.0, 1.0]
    assert handle.slice("a", 1, 2).tolist() == [1.0]
    assert handle.tensor("a").tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"^the dict has no tensor 'x'"):
        handle.tensor("x")
    with pytest.raises(
        IndexError, match=r"^slice \[0, 3\) of the tensor 'a', expected"
    ):
        handle.slice("a", 0, 3)
