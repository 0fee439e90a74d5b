"""Streams and look-ups of files that convert, in eager Python."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, resident_of, resident_pages_of
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ckpt_streamer
from ckpt_streamer import _file_stream, stream

BF16 = torch.bfloat16


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def small_tensors(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"k{i}": torch.randn(3, 5, generator=generator) for i in range(count)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def test_small_tensors_are_converted_lot_by_lot(path: Path) -> None:
    tensors = small_tensors(5000)
    tensors["k7"] = torch.arange(4)
    saved(path, tensors)
    names = []
    for name, val in ckpt_streamer.open(path, dtype=BF16):
        names.append(name)
        wanted = tensors[name]
        wanted = wanted if name == "k7" else wanted.to(BF16)
        assert val.dtype == wanted.dtype
        assert torch.equal(val, wanted)
    assert names == list(tensors)


def test_lots_of_larger_tensors_end_at_their_bytes(large_checkpoint: Path) -> None:
    items = stream(large_checkpoint, memory_limit_mb=32, dtype=torch.float64)
    for i, (_, key, val) in enumerate(items):
        assert key == f"w{i}"
        assert val.dtype == torch.float64
        assert (val == i).all()
        assert resident_of(large_checkpoint).clean_bytes <= 28 * MIB
        assert items.stats().tensors_yielded == i + 1
    assert i == 63
    stats = items.stats()
    assert stats.memory_limit_bytes == 32 * MIB
    assert stats.bytes_streamed == 64 * MIB
    assert stats.bytes_over_limit == 0


def test_what_is_ahead_is_within_the_limit_and_goes_as_it_is_taken(path: Path) -> None:
    # One window: only lots hold back what is converted.
    count, limit_mb = 64, 32
    saved(path, {f"w{i}": torch.full((65536,), float(i)) for i in range(count)})
    items = stream(path, limit_mb, dtype=BF16)
    next(items)
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is Tensor]
    ahead = [each for each in tensors if each.dtype == BF16]
    assert 0 < sum(each.nbytes for each in ahead) <= 4 * MIB
    del tensors, ahead
    _, _, val = next(items)
    alive = weakref.ref(val)
    del val
    next(items)
    assert alive() is None


def large_and_small(path: Path) -> dict[str, Tensor]:
    large = torch.arange(MIB // 2, dtype=torch.float32)
    tied = large + 1
    tensors = {
        "large": large,
        "small": torch.ones(5),
        "integers": torch.arange(MIB // 4),
        "tied": tied,
        "tied_again": tied,
        "parameter": torch.nn.Parameter(large + 2),
        "transposed": (large + 3).view(2, -1).t(),
        "double": large.double(),
        "last": large + 4,
    }
    saved(path, tensors)
    return tensors


@pytest.mark.parametrize("released_at", range(10))
def test_large_tensors_are_converted_one_by_one_as_all_are(
    path: Path, released_at: int
) -> None:
    tensors = large_and_small(path)
    items = stream(path, dtype=BF16)
    seen = {}
    for i, (_, key, val) in enumerate(items):
        seen[key] = val
        source = tensors[key]
        is_converted = source.is_floating_point()
        assert val.dtype == (BF16 if is_converted else source.dtype)
        assert torch.equal(val, source.detach().to(val.dtype))
        assert val.requires_grad == source.requires_grad
        assert val.is_leaf
        assert val.stride() == source.stride()
        assert items.stats().tensors_yielded == i + 1
        if i == released_at:
            items.release()
            assert resident_of(path).clean_bytes == 0
    assert set(seen) == set(tensors)
    assert storage(seen["tied"]) == storage(seen["tied_again"])
    assert resident_of(path).clean_bytes == 0


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_conversion_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    tensors = {f"w{i}": torch.full((MIB // 4,), float(i)) for i in range(8)}
    path = tmp_path / f"model.{suffix}"
    (torch.save if suffix == "pt" else save_file)(tensors, path)
    converted_row = _file_stream._converted_row
    failures: list[BaseException] = [KeyboardInterrupt(), MemoryError("no memory")]

    def failing(convert: Any, row: tuple[Any, ...]) -> Any:
        item = converted_row(convert, row)
        if failures and item[-1][0] == 3:
            raise failures.pop()
        return item

    monkeypatch.setattr(_file_stream, "_converted_row", failing)
    items = iter(ckpt_streamer.open(path, dtype=BF16))
    for i in range(3):
        assert next(items)[0] == f"w{i}"
    for failure in reversed(failures.copy()):
        with pytest.raises(type(failure)):
            next(items)
    assert [(name, int(val[0])) for name, val in items] == [
        (f"w{i}", i) for i in range(3, 8)
    ]


class Spy(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_modes_see_nothing_of_conversions(path: Path) -> None:
    tensors = large_and_small(path)
    saved(path, {**tensors, "strided": torch.randn(8, 6)[:, ::2]})
    of_handle = {}
    with Spy() as spy:
        seen = dict(iter(ckpt_streamer.open(path, dtype=BF16)))
        handle = torch.ops.ckpt_streamer.open(str(path), 64 * MIB, dtype=BF16)
        while handle.has_next():
            name, val = handle.next()
            of_handle[name] = val
    assert {call.namespace for call in spy.calls} == {"ckpt_streamer"}
    assert all(torch.equal(of_handle[name], val) for name, val in seen.items())
    with FakeTensorMode():
        for name, val in ckpt_streamer.open(path, dtype=BF16):
            assert type(val) is Tensor
            assert val.data_ptr() != 0
            seen.pop(name)
    assert not seen


@pytest.mark.parametrize("channels", [4, 1024])
def test_strides_are_those_of_to(path: Path, channels: int) -> None:
    value = torch.randn(channels, channels, 1, 1).to(memory_format=torch.channels_last)
    value = value.as_strided(value.shape, (channels, 1, channels, channels))
    saved(path, {"w": value})
    wanted = value.to(BF16)
    assert wanted.stride() == (channels, 1, channels, channels)
    checkpoint = ckpt_streamer.open(path, dtype=BF16)
    handle = torch.ops.ckpt_streamer.open(str(path), 64 * MIB, dtype=BF16)
    results = [checkpoint.tensor("w"), handle.next()[1], next(iter(checkpoint))[1]]
    for result in results:
        assert torch.equal(result, wanted)
        assert result.stride() == wanted.stride()


def test_what_is_not_converted_in_pieces_is_watched(path: Path) -> None:
    saved(path, {"w": torch.zeros(12 * MIB, dtype=torch.float64)._neg_view()})
    items = stream(path, memory_limit_mb=8, dtype=BF16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may not have been held
        _, _, val = next(items)
        until = time.monotonic() + 10
        while resident_of(path).clean_bytes > 8 * MIB and time.monotonic() < until:
            time.sleep(0.01)
        assert resident_of(path).clean_bytes <= 8 * MIB
        items.close()
    assert (val == 0).all()


def test_of_large_tensors_nothing_is_converted_ahead(path: Path) -> None:
    saved(path, {f"w{i}": torch.full((MIB // 4,), float(i)) for i in range(16)})
    items = stream(path, dtype=BF16)
    for i, (_, _, val) in enumerate(items):
        assert (val == i).all()
        gc.collect()
        tensors = (each for each in gc.get_objects() if type(each) is Tensor)
        assert sum(each.dtype == BF16 for each in tensors) == 1


def test_results_that_are_gone_leave_their_memory_to_others(
    large_checkpoint: Path,
) -> None:
    items = stream(large_checkpoint, memory_limit_mb=64, dtype=torch.float64)
    addresses = set()
    kept = []
    for i, (_, _, val) in enumerate(items):
        addresses.add(val.data_ptr())
        if i % 16 == 0:
            kept.append(val)
            assert len({each.data_ptr() for each in kept}) == len(kept)
    assert len(addresses) <= 2 + len(kept)
    assert [int(each[0, 0]) for each in kept] == [0, 16, 32, 48]
    last = val.untyped_storage()
    assert last.resizable()
    val.resize_(300, 1024)
    assert last.nbytes() == 300 * 1024 * 8
    assert (val[:256] == 63).all()


def test_a_dropped_stream_of_large_tensors_needs_no_garbage_collection(
    large_checkpoint: Path,
) -> None:
    gc.collect()
    gc.disable()
    try:
        items = stream(large_checkpoint, dtype=BF16)
        next(items)
        assert resident_of(large_checkpoint).clean_bytes > 0
        del items
        assert resident_of(large_checkpoint).clean_bytes == 0
    finally:
        gc.enable()


def test_what_is_kept_for_a_lot_belongs_to_the_limit(path: Path) -> None:
    saved(path, {"n": torch.arange(4 * MIB - MIB // 8), "w": torch.ones(3)})
    items = stream(path, memory_limit_mb=32, dtype=BF16)
    for _, _, val in items:
        assert val.sum() > 0
    stats = items.stats()
    assert 0 < stats.peak_bytes_resident <= 32 * MIB
    assert stats.bytes_over_limit == 0


def test_obj_stays_as_it_is_in_the_file(path: Path) -> None:
    value = {"a": {"w": torch.randn(4), "n": torch.arange(3)}, "l": [torch.randn(2)]}
    saved(path, value)
    items = list(stream(path, dtype=BF16))
    assert [key for _, key, _ in items] == ["w", "n", 0]
    for obj, key, val in items:
        unconverted = obj[key]
        assert unconverted.dtype in {torch.float32, torch.int64}
        assert torch.equal(unconverted.to(val.dtype), val)
        assert (storage(unconverted) == storage(val)) == (key == "n")
    checkpoint = ckpt_streamer.open(path, dtype=BF16)
    assert checkpoint.dtype == BF16
    assert checkpoint["a"]["w"].dtype == torch.float32
    assert checkpoint.tensor("a.w").dtype == BF16
    assert [val.dtype for _, _, val in stream(checkpoint, dtype=torch.float16)] == [
        torch.float16,
        torch.int64,
        torch.float16,
    ]
    assert next(iter(stream(checkpoint)))[2].dtype == BF16
    assert next(iter(stream(checkpoint["a"])))[2].dtype == torch.float32
    assert next(iter(stream(checkpoint["a"], dtype=BF16)))[2].dtype == BF16


def test_a_bare_tensor(path: Path) -> None:
    saved(path, torch.randn(3))
    [(obj, key, val)] = stream(path, dtype=BF16)
    assert key == ""
    assert obj[key].dtype == torch.float32
    assert torch.equal(obj[key].to(BF16), val)


def test_a_converted_tensor_owns_its_storage_and_ties_stay(path: Path) -> None:
    base = torch.randn(8, 8)
    value = {"a": base, "b": base, "view": base[2:], "other": torch.ones(3)}
    saved(path, value)
    tensors = dict(iter(ckpt_streamer.open(path, dtype=BF16)))
    assert storage(tensors["a"]) == storage(tensors["b"])
    assert storage(tensors["a"]) != storage(tensors["view"])
    assert tensors["a"].untyped_storage().nbytes() == 128
    for name, wanted in value.items():
        assert torch.equal(tensors[name], wanted.to(BF16))
    tensors["a"].zero_()
    assert torch.equal(ckpt_streamer.open(path)["a"], base)


@pytest.mark.parametrize("limit_mib", [6, 8, 16, 64])
def test_the_memory_of_a_result_is_used_for_the_next(
    path: Path, limit_mib: int
) -> None:
    """One is in use while the next is made; each has half the bytes of its tensor."""
    rows = min(1024, limit_mib * 128)  # half of the limit
    saved(path, {f"w{i}": torch.ones(rows, 1024) for i in range(16)})
    items = stream(path, limit_mib, dtype=BF16)
    assert len({val.data_ptr() for *_, val in items}) == 2


@pytest.mark.parametrize("position", [1, 7, 2048, 2049, 3000])
def test_release_and_close_in_mid_lot(path: Path, position: int) -> None:
    tensors = small_tensors(3000)
    items = stream(saved(path, tensors), dtype=BF16)
    for i, (_, key, val) in enumerate(items, 1):
        assert torch.equal(val, tensors[key].to(BF16))
        if i == position:
            items.release()
            assert resident_of(path).clean_bytes == 0
            assert items.stats().tensors_yielded == i
    assert i == 3000
    items = stream(path, dtype=BF16)
    for _ in range(position):
        next(items)
    items.close()
    assert items.stats().tensors_yielded == position
    assert list(items) == []


def test_a_released_window_is_entered_again_before_it_is_read(
    large_checkpoint: Path,
) -> None:
    items = stream(large_checkpoint, memory_limit_mb=8, dtype=BF16)
    for i, (_, _, val) in enumerate(items):
        assert (val == i).all()
        assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
        items.release()


def test_a_tensor_larger_than_the_limit_is_converted_in_pieces(path: Path) -> None:
    large = torch.arange(8 * MIB, dtype=torch.float32)
    saved(path, {"large": large, "n": torch.arange(4), "small": torch.ones(5)})
    items = stream(path, memory_limit_mb=8, dtype=BF16)
    for _, key, val in items:
        if key == "large":
            assert torch.equal(val, large.to(BF16))
    assert items.stats().peak_bytes_resident <= 8 * MIB
    checkpoint = ckpt_streamer.open(path, memory_limit_mb=8, dtype=BF16)
    assert torch.equal(checkpoint.tensor("large"), large.to(BF16))
    assert checkpoint.stats().peak_bytes_resident <= 8 * MIB
    assert checkpoint.stats().bytes_over_limit == 0


# Parts.


@pytest.mark.parametrize("dtype", [None, BF16])
def test_slices_are_those_of_the_tensor(path: Path, dtype: torch.dtype | None) -> None:
    weight = torch.randn(10, 4)
    parameter = torch.nn.Parameter(torch.randn(6))
    saved(path, {"m": {"w": weight, "t": weight.t(), "p": parameter}})
    checkpoint = ckpt_streamer.open(path, dtype=dtype)
    for name, whole in (("m.w", weight), ("m.t", weight.t()), ("m.p", parameter)):
        for begin, end in ((0, 2), (1, 4), (2, 2), (0, len(whole)), (3, 4)):
            part = checkpoint.slice(name, begin, end)
            wanted = whole.detach()[begin:end].to(dtype or torch.float32)
            assert part.dtype == wanted.dtype
            assert torch.equal(part, wanted)
            assert part.requires_grad == whole.requires_grad
            assert part.is_leaf
    view = checkpoint.slice("m.w", 2, 5)
    assert (storage(view) == storage(checkpoint["m"]["w"])) == (dtype is None)


@pytest.mark.parametrize("dtype", [None, BF16])
def test_a_slice_reads_its_own_pages_only(
    path: Path, dtype: torch.dtype | None
) -> None:
    rows, columns = 64, MIB // 4  # 64 MiB, a row is one
    large = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns)
    saved(path, {"large": large.contiguous()})
    with ckpt_streamer.open(path, memory_limit_mb=8, dtype=dtype) as checkpoint:
        for begin in (5, 60, 0, 17):
            part = checkpoint.slice("large", begin, begin + 2)
            assert (part == torch.tensor([[begin], [begin + 1.0]])).all()
            assert resident_of(path).clean_bytes <= 8 * MIB
        if dtype is not None:  # in pieces
            part = checkpoint.slice("large", 1, 63)
            assert (part[:, 7] == torch.arange(1.0, 63)).all()
            assert resident_of(path).clean_bytes <= 8 * MIB
        assert checkpoint.stats().bytes_over_limit == 0
    assert resident_of(path).clean_bytes == 0


@pytest.mark.parametrize("dtype", [None, BF16])
def test_a_slice_touches_no_page_but_its_own(
    path: Path, dtype: torch.dtype | None
) -> None:
    rows, row_pages = 256, 16
    large = torch.ones(rows, row_pages * 4096 // 4)
    saved(path, {"small": torch.ones(5), "large": large})
    with ckpt_streamer.open(path, memory_limit_mb=8, dtype=dtype) as checkpoint:
        whole = checkpoint["large"]  # no page of it
        checkpoint.release()
        assert resident_pages_of(whole) == []
        first = whole.data_ptr() % 4096  # of a page
        for begin, end in ((100, 103), (7, 8), (0, 40)):
            assert (checkpoint.slice("large", begin, end) == 1).all()
            last_page = end * row_pages + (1 if first > 0 else 0)
            wanted = range(begin * row_pages, min(last_page, rows * row_pages))
            assert resident_pages_of(whole) == list(wanted)
            checkpoint.release()
    # What one fault maps, with a limit that is large beside it.
    with ckpt_streamer.open(path, memory_limit_mb=64, dtype=dtype) as checkpoint:
        whole = checkpoint["large"]
        checkpoint.release()
        assert (checkpoint.slice("large", 120, 122) == 1).all()
        pages = resident_pages_of(whole)
        assert 2 * row_pages <= len(pages) <= 2 * row_pages + 2 * 512
        assert pages[0] > 120 * row_pages - 512
        assert pages[-1] < 122 * row_pages + 512


def test_slices_of_small_tensors_count_in_the_limit(large_checkpoint: Path) -> None:
    with ckpt_streamer.open(large_checkpoint, memory_limit_mb=8) as checkpoint:
        for i in range(64):
            assert (checkpoint.slice(f"w{i}", 3, 250) == i).all()
            assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB


def test_slices_that_are_not_there(path: Path) -> None:
    saved(path, {"w": torch.ones(3, 2), "scalar": torch.tensor(1.0), "l": [5]})
    checkpoint = ckpt_streamer.open(path)
    for begin, end in ((-1, 2), (2, 1), (0, 4), (4, 4)):
        with pytest.raises(IndexError) as raised:
            checkpoint.slice("w", begin, end)
        assert str(raised.value).startswith(
            f"slice [{begin}, {end}) of the tensor 'w', expected one within [0, 3)"
        )
    for begin, end in ((0, 2**63), (-(2**63) - 1, 2), (2**70, 2**71)):
        with pytest.raises(IndexError) as raised:
            checkpoint.slice("w", begin, end)
        assert str(raised.value) == (
            f"slice [{begin}, {end}) of the tensor 'w', expected one within its first "
            "dimension"
        )
    with pytest.raises(TypeError, match="'NoneType' object cannot be interpreted as"):
        checkpoint.slice("w", 0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the tensor 'scalar' has no dimensions, exp"):
        checkpoint.slice("scalar", 0, 0)
    with pytest.raises(KeyError, match=f"{path} has no tensor 'x'"):
        checkpoint.slice("x", 0, 1)
    checkpoint.close()
    with pytest.raises(ValueError, match="the checkpoint is closed"):
        checkpoint.slice("w", 0, 1)


# What cannot be.


def test_what_is_no_dtype_to_convert_to(path: Path) -> None:
    saved(path, {"w": torch.ones(1)})
    bad: Any = "bf16"
    for use in (ckpt_streamer.open, stream):
        with pytest.raises(TypeError, match=r"^dtype is 'bf16' \(str\), expected None"):
            use(path, dtype=bad)
        for dtype in (torch.int32, torch.complex64, torch.float4_e2m1fn_x2):
            with pytest.raises(ValueError, match=f"^dtype is {dtype}, expected a flo"):
                use(path, dtype=dtype)
    with pytest.raises(ValueError, match=r"^dtype is torch.int32, expected a floa"):
        stream(ckpt_streamer.open(path), dtype=torch.int32)
    with pytest.raises(
        TypeError, match=r"^dtype is torch.bfloat16, and state_dict is "
    ):
        stream({"w": torch.ones(1)}, dtype=BF16)
