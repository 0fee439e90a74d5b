"""Fused conversion: ``open(..., dtype=...)`` equals ``.to(dtype)`` bit for bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, Resident, load_mapped, resident_of
from torch import Tensor

import ckpt_streamer  # noqa: F401 - registers the ops

FLOATING = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(AS_INTEGERS[tensor.element_size()])


def assert_same(made: Tensor, expected: Tensor) -> None:
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    assert made.stride() == expected.stride()
    assert torch.equal(bits(made), bits(expected))


def random_bits(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """All values there are, those of every third element NaNs of all payloads."""
    generator = torch.Generator().manual_seed(seed)
    item_size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(
        0, 256, (count * item_size,), dtype=torch.uint8, generator=generator
    )
    if item_size > 1:
        quiet = torch.tensor(float("nan"), dtype=dtype).view(AS_INTEGERS[item_size])
        infinity = torch.tensor(float("inf"), dtype=dtype)
        exponent = infinity.view(AS_INTEGERS[item_size])
        values = raw.view(AS_INTEGERS[item_size])
        values[::3] |= exponent
        values[1] = quiet
    return raw.view(dtype)


def read_all(
    path: Path, limit: int, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    handle = torch.ops.ckpt_streamer.open(str(path), limit, dtype=dtype)
    result = {}
    while handle.has_next():
        name, tensor = handle.next()
        result[name] = tensor
    return result


def layouts_of(values: Tensor) -> dict[str, Tensor]:
    """Views of one storage of at least 4,000 elements, in all kinds of layout."""
    return {
        "flat": values,
        "short": values[:1],
        "odd": values[3:40],
        "empty": values[:0],
        "scalar": values[5],
        "rows": values[: 40 * 50].view(40, 50),
        "transposed": values[: 40 * 50].view(40, 50).t(),
        "channels_last": values[: 2 * 3 * 4 * 5]
        .view(2, 3, 4, 5)
        .contiguous(memory_format=torch.channels_last),
        "sliced": values[: 40 * 50].view(40, 50)[:, 3:40],
        "step": values[::2],
        "column": values[: 40 * 50].view(40, 50)[:, 7],
        "permuted": values[: 6 * 5 * 8].view(6, 5, 8)[:, :, :4].permute(2, 0, 1),
        "expanded": values[:37].expand(3, 37),
        "spread": values[:37].unsqueeze(1).expand(37, 5),
        "one_row": values[:50].view(1, 50),
    }


@pytest.mark.parametrize("target", FLOATING, ids=str)
@pytest.mark.parametrize("source", FLOATING, ids=str)
def test_bits_and_strides_are_those_of_to(
    source: torch.dtype, target: torch.dtype, tmp_path: Path
) -> None:
    tensors = layouts_of(random_bits(70001, source))
    torch.save(tensors, tmp_path / "layouts.pt")
    made = read_all(tmp_path / "layouts.pt", 64 * MIB, target)
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(made[name], tensor.to(target))


@pytest.mark.parametrize("limit", [4096, MIB])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float16, torch.float8_e5m2),
    ],
    ids=str,
)
def test_pieces_have_the_bits_of_the_whole(
    source: torch.dtype,
    target: torch.dtype,
    limit: int,
    tmp_path: Path,
) -> None:
    values = random_bits(max(limit * 3 // source.itemsize, 70_000) + 13, source)
    rows = values[: values.numel() // 1000 * 1000].view(-1, 1000)
    tensors = {
        "flat": values,
        "transposed": rows.t(),
        "sliced": rows[:, 3:996],
        "halves": values[: values.numel() // 2 * 2].view(2, -1)[:, 5:-3],
        "blocks": values[: values.numel() // 993 * 993].view(1, -1, 993)[:, 1:],
        "step": values[::2],
        "column": rows[:, 7],
        "permuted": rows[:60].view(3, 20, 1000)[:, :, :999].permute(2, 0, 1),
        "spread": values[: values.numel() // 5].unsqueeze(1).expand(-1, 3),
    }
    torch.save(tensors, tmp_path / "large.pt")
    made = read_all(tmp_path / "large.pt", limit, target)
    for name, tensor in tensors.items():
        assert_same(made[name], tensor.to(target))


@pytest.mark.parametrize("thread_count", [1, 5])
def test_pieces_have_the_bits_of_any_number_of_threads(thread_count: int) -> None:
    # In a process of its own: a thread pool that has grown shrinks some time.
    name = test_pieces_have_the_bits_of_the_whole.__name__
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", f"{__file__}", "-k", name],
        env={**os.environ, "OMP_NUM_THREADS": str(thread_count)},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_is_not_floating_passes(tmp_path: Path) -> None:
    tensors = {
        "int": torch.arange(5),
        "byte": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "already": torch.randn(3, dtype=torch.bfloat16),
        "packed": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "float": torch.randn(3),
    }
    path = tmp_path / "kinds.pt"
    torch.save(tensors, path)
    made = read_all(path, MIB, torch.bfloat16)
    plain = read_all(path, MIB, None)
    for name in tensors.keys() - {"float"}:
        assert made[name].dtype == tensors[name].dtype
        assert bytes(made[name].untyped_storage()) == bytes(
            tensors[name].untyped_storage()
        )
    assert made["int"].data_ptr() != plain["int"].data_ptr()  # other mappings
    assert resident_of(path).written_bytes == 0
    made["int"][0] = 7  # a view of the file still, copied on write
    assert resident_of(path).written_bytes == 4096
    made["float"][0] = 7
    assert resident_of(path).written_bytes == 4096


def test_a_converted_tensor_owns_its_storage(large_checkpoint: Path) -> None:
    made = read_all(large_checkpoint, 8 * MIB, torch.bfloat16)
    gc.collect()
    assert resident_of(large_checkpoint) == Resident(0, 0)
    for i in range(64):
        tensor = made[f"w{i}"]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 2
        assert tensor.untyped_storage().resizable()
        assert (tensor == i).all()


def test_the_limit_holds_and_nothing_stays(large_checkpoint: Path) -> None:
    handle = torch.ops.ckpt_streamer.open(
        str(large_checkpoint), 8 * MIB, dtype=torch.float16
    )
    while handle.has_next():
        handle.next()
        assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
    assert 0 < handle.peak_bytes_resident() <= 8 * MIB
    assert handle.bytes_streamed() == 64 * MIB
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(30, 20)
    other = torch.randn(30, 20)
    tied = torch.nn.Parameter(weight)
    path = tmp_path / "tied.pt"
    torch.save(
        {
            "a": tied,
            "flat": weight.view(600),
            "b": weight,
            "half": weight[:15],
            "transposed": weight.t(),
            "c": weight,
            "alone": other,
        },
        path,
    )
    made = read_all(path, MIB, torch.bfloat16)
    pointers = {name: tensor.data_ptr() for name, tensor in made.items()}
    assert pointers["a"] == pointers["b"] == pointers["c"]
    assert len(set(pointers.values())) == 5
    assert [name for name in made if made[name].requires_grad] == ["a"]
    assert made["a"].is_leaf
    made["b"][0, 0] = 42
    assert made["c"][0, 0] == 42
    assert made["flat"][0] != 42
    for name in ("a", "b", "c"):
        assert made[name].stride() == (20, 1)
        assert torch.equal(made[name][1:], weight.to(torch.bfloat16)[1:])


def test_a_tied_tensor_is_converted_again_once_it_is_gone(tmp_path: Path) -> None:
    weight = torch.randn(30)
    path = tmp_path / "tied.pt"
    torch.save({"a": weight, "b": weight}, path)
    handle = torch.ops.ckpt_streamer.open(str(path), MIB, dtype=torch.float64)
    for _ in range(2):
        handle.next()[1].zero_()
        assert torch.equal(handle.next()[1], weight.double())
        handle.reset()
    first = handle.next()[1].zero_()
    handle.reset()
    assert torch.equal(handle.next()[1], weight.double())
    assert torch.equal(handle.next()[1], weight.double())
    assert not first.any()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse CSR")
def test_tensors_in_memory_are_converted_too(large_checkpoint: Path) -> None:
    tensors = load_mapped(large_checkpoint)
    tensors["heap"] = torch.randn(100)
    tensors["sparse"] = torch.eye(5).to_sparse()
    tensors["csr"] = torch.eye(5).to_sparse_csr()
    tensors["meta"] = torch.empty(3, device="meta")
    tensors["negated"] = torch.randn(3, dtype=torch.complex64).conj().imag
    tensors["quantized"] = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    handle = torch.ops.ckpt_streamer.stream(tensors, 8 * MIB, dtype=torch.bfloat16)
    made = {}
    while handle.has_next():
        name, tensor = handle.next()
        made[name] = tensor
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert made.pop("quantized").dtype == torch.qint8
    assert made.pop("meta").dtype == torch.bfloat16
    for name in ("sparse", "csr"):
        expected = tensors.pop(name).to(torch.bfloat16)
        tensor = made.pop(name)
        assert tensor.dtype == torch.bfloat16
        assert tensor.layout == expected.layout
        assert torch.equal(tensor.to_dense(), expected.to_dense())
    for name, tensor in made.items():
        assert_same(tensor, tensors[name].to(torch.bfloat16))


def test_shards_are_converted(tmp_path: Path) -> None:
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.pt"))
        torch.save({f"w{i}": torch.full((3,), float(i))}, paths[-1])
    handle = torch.ops.ckpt_streamer.open(paths, MIB, dtype=torch.float16)
    assert [handle.next()[1].tolist() for _ in paths] == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int32, "int32"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
        (torch.float4_e2m1fn_x2, "float4_e2m1fn_x2"),
    ],
)
def test_other_dtypes_are_errors_before_the_file_is_opened(
    dtype: torch.dtype, name: str
) -> None:
    text = (
        f"dtype is torch.{name}, expected a floating-point dtype that tensors "
        "can be converted to"
    )
    with pytest.raises(ValueError, match=text):
        torch.ops.ckpt_streamer.open("missing.pt", MIB, dtype=dtype)
    with pytest.raises(ValueError, match=text):
        torch.ops.ckpt_streamer.open(["missing.pt"], MIB, dtype=dtype)
    with pytest.raises(ValueError, match=text):
        torch.ops.ckpt_streamer.stream({}, MIB, dtype=dtype)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous in smaps_rollup")


@pytest.mark.parametrize("limit", [4 * MIB, 32 * MIB])
def test_one_tensor_of_sixteen_limits(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    count = 4 * limit
    torch.save(
        {"w": torch.arange(count, dtype=torch.float32), "x": torch.ones(9)}, path
    )
    before = anonymous_bytes()
    handle = torch.ops.ckpt_streamer.open(str(path), limit, dtype=torch.bfloat16)
    _, made = handle.next()
    assert resident_of(path).clean_bytes == 0
    assert 0 < handle.peak_bytes_resident() <= limit
    assert anonymous_bytes() - before <= 2 * count + 16 * MIB
    assert handle.bytes_evicted() >= 16 * limit
    assert torch.equal(made, torch.arange(count, dtype=torch.float32).bfloat16())
    assert handle.next()[1].tolist() == [1.0] * 9
