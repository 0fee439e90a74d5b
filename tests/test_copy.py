"""``copy_`` of the op: ``Tensor.copy_`` in all respects, the source within a limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from memory_peaks import peaks_of
from test_conversion import bits, random_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ckpt_streamer  # noqa: F401 - registers the ops

copy_ = torch.ops.ckpt_streamer.copy_
LIMIT = 4 * MIB


def mapped(path: Path, tensor: Tensor) -> Tensor:
    torch.save({"w": tensor}, path)
    return load_mapped(path)["w"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A mapped float32 [1024, 16384] of 64 MiB, its elements' index in each."""
    path = tmp_path_factory.mktemp("copy") / "large.pt"
    values = torch.arange(16 * MIB, dtype=torch.float32)
    return path, mapped(path, values.view(1024, -1))


def sources_of(values: Tensor) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Views in several layouts, each with the shape that it is copied to."""
    rows = values[: values.numel() // 1000 * 1000].view(-1, 1000)
    count = rows.shape[0]
    return {
        "flat": (values, (values.numel(),)),
        "transposed": (rows.t(), (1000, count)),
        "sliced": (rows[:, 3:996], (count, 993)),
        "step": (values[::2], (values[::2].numel(),)),
        "broadcast": (values[:70_000], (3, 70_000)),
        "spread": (rows[:, 7:8], (count, 5)),
    }


def destinations_of(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    yield torch.empty(shape, dtype=dtype)
    yield torch.empty(*shape, 2, dtype=dtype)[..., 1]
    yield torch.empty(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])


@pytest.mark.parametrize("limit", [4096, 64 * 1024])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.float8_e4m3fn),
        (torch.int64, torch.float16),
        (torch.float32, torch.int16),
        (torch.uint8, torch.bool),
        (torch.float32, torch.complex64),
    ],
    ids=str,
)
def test_bits_are_those_of_copy(
    source: torch.dtype, target: torch.dtype, limit: int, tmp_path: Path
) -> None:
    if source.is_floating_point:
        values = random_bits(200_013, source)
    else:
        values = torch.randint(0, 200, (200_013,)).to(source)
    if target == torch.int16:
        # Which integer a NaN becomes is left to the compiler.
        values = values.nan_to_num(0, 0, 0).clamp(-9, 9)
    values = mapped(tmp_path / "values.pt", values)
    for name, (view, shape) in sources_of(values).items():
        for destination in destinations_of(shape, target):
            expected = torch.empty_strided(
                shape, destination.stride(), dtype=target
            ).copy_(view)
            assert copy_(destination, view, limit) is destination
            assert torch.equal(bits(destination), bits(expected)), name


def test_nothing_else_is_written(large: tuple[Path, Tensor]) -> None:
    _, source = large
    base = torch.full((1024, 3 * 16384), 5, dtype=torch.int32)
    copy_(base[:, 16384:32768], source, LIMIT)
    assert torch.equal(base[:, 16384:32768], source.int())
    assert (base[:, :16384] == 5).all()
    assert (base[:, 32768:] == 5).all()


def test_nothing_stays_of_a_source_larger_than_the_limit(
    large: tuple[Path, Tensor],
) -> None:
    path, source = large
    source.sum()  # resident before
    copy_(torch.empty_like(source), source, LIMIT)
    assert resident_of(path).clean_bytes == 0


def test_the_pages_of_a_source_that_fits_are_left(large: tuple[Path, Tensor]) -> None:
    path, source = large
    copy_(torch.empty(16384), source[3], LIMIT)
    assert resident_of(path).clean_bytes > 0
    copy_(torch.empty_like(source), source, LIMIT)
    assert resident_of(path).clean_bytes == 0


def test_written_pages_are_copied_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "written.pt"
    source = mapped(path, torch.zeros(4 * MIB))
    source[::MIB] = 7
    written = resident_of(path).written_bytes
    destination = copy_(torch.empty(4 * MIB), source, LIMIT)
    assert resident_of(path).written_bytes == written == 4 * 4096
    assert resident_of(path).clean_bytes == 0
    assert (destination[::MIB] == 7).all()
    assert destination.sum() == source.sum() == 4 * 7


def test_from_one_part_of_a_file_to_another(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"a": torch.ones(4 * MIB), "b": torch.zeros(4 * MIB)}, path)
    tensors = load_mapped(path)
    copy_(tensors["b"], tensors["a"], LIMIT)
    assert (tensors["b"] == 1).all()
    assert load_mapped(path)["b"].any().item() is False
    assert copy_(tensors["b"][5:], tensors["b"][:-5].clone(), LIMIT).all()


def test_overlapping_memory_is_an_error_as_in_copy(large: tuple[Path, Tensor]) -> None:
    flat = large[1].view(-1)
    with pytest.raises(RuntimeError) as expected:
        flat[5:].copy_(flat[:-5])
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        copy_(flat[5:], flat[:-5], LIMIT)
    copy_(flat, flat, LIMIT)  # onto itself: nothing to do


@pytest.mark.parametrize("source", ["heap", "mapped"])
def test_errors_are_those_of_copy(source: str, large: tuple[Path, Tensor]) -> None:
    values = large[1] if source == "mapped" else large[1].clone()
    leaf = torch.zeros(1024, 16384, requires_grad=True)
    cases = [
        (torch.empty(1024, 16383), values),
        (torch.empty(16384), values),
        (torch.empty(1, 16384).expand(1024, 16384), values),
        (leaf, values),
        (leaf[:], values),  # a view of a leaf
        (torch.empty(1024, 16384), torch.empty(1024, 16384, device="meta")),
    ]
    with torch.inference_mode():
        cases.append((torch.empty(1024, 16384), values))
    for destination, given in cases:
        with pytest.raises(Exception) as expected:  # noqa: PT011 - text compared
            destination.copy_(given)
        with pytest.raises(
            type(expected.value), match=re.escape(str(expected.value).split("\n")[0])
        ):
            copy_(destination, given, LIMIT)
    assert not leaf.detach().any()
    with torch.no_grad():
        assert copy_(leaf, values, LIMIT) is leaf
    assert torch.equal(leaf.detach(), values)
    assert leaf.requires_grad
    assert leaf.is_leaf


@pytest.mark.parametrize("limit", [0, -1])
def test_the_limit_is_positive(limit: int) -> None:
    text = f"memory_limit_bytes is {limit}, expected a positive number of bytes"
    with pytest.raises(ValueError, match=text):
        copy_(torch.empty(1), torch.empty(1), limit)


def test_gradients_are_those_of_copy(large: tuple[Path, Tensor]) -> None:
    source = large[1].detach().requires_grad_()
    scale = torch.full((1024, 1), 2.0, requires_grad=True)
    destination = scale * torch.ones(1024, 16384)
    copy_(destination, source, LIMIT)
    destination.sum().backward()
    assert source.grad is not None
    assert (source.grad == 1).all()
    assert scale.grad is not None
    assert not scale.grad.any()


def test_the_version_counts_each_copy(large: tuple[Path, Tensor]) -> None:
    _, source = large
    destination = torch.empty_like(source)
    copy_(destination, source, LIMIT)
    assert destination._version == 1
    copy_(destination[:, 5:], source[:, 5:], LIMIT)
    assert destination._version == 2
    weight = torch.ones(1024, 1, requires_grad=True)
    product = weight * destination  # keeps destination for the gradient
    copy_(destination, source, LIMIT)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_forward_gradients_are_those_of_copy(large: tuple[Path, Tensor]) -> None:
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        source = forward.make_dual(large[1], torch.ones_like(large[1]))
        destination = copy_(torch.empty(1024, 16384), source, LIMIT)
        assert (forward.unpack_dual(destination).tangent == 1).all()


def test_in_inference_mode(large: tuple[Path, Tensor]) -> None:
    path, source = large
    with torch.inference_mode():
        destination = copy_(torch.empty(1024, 16384), source, LIMIT)
        assert resident_of(path).clean_bytes == 0
        assert torch.equal(destination, source)


def test_meta_and_modes_see_a_plain_copy(large: tuple[Path, Tensor]) -> None:
    _, source = large
    meta = torch.empty(1024, 16384, device="meta")
    assert copy_(meta, source, LIMIT) is meta

    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Seeing():  # type: ignore[no-untyped-call]
        copy_(torch.ones_like(source), source, LIMIT)
    assert torch.ops.aten.copy_.default in seen


def test_opcheck(large: tuple[Path, Tensor]) -> None:
    _, source = large
    for destination in (torch.zeros(1024, 16384), torch.zeros(2, 1024, 16384)):
        torch.library.opcheck(
            torch.ops.ckpt_streamer.copy_.default, (destination, source, LIMIT)
        )
    torch.library.opcheck(
        torch.ops.ckpt_streamer.copy_.default,
        (torch.zeros(3), torch.ones(3, requires_grad=True), LIMIT),
    )


def test_compiled(large: tuple[Path, Tensor]) -> None:
    _, source = large

    def copy_and_add(destination: Tensor) -> Tensor:
        copied: Tensor = copy_(destination, source, LIMIT)
        return copied + 1

    compiled = torch.compile(copy_and_add, backend="aot_eager", fullgraph=True)
    destination = torch.zeros(1024, 16384)
    assert torch.equal(compiled(destination), source + 1)
    assert torch.equal(destination, source)


@torch.jit.script
def load_scripted(
    path: str, destinations: dict[str, Tensor], memory_limit_bytes: int
) -> int:
    handle = torch.ops.ckpt_streamer.open(path, memory_limit_bytes)
    while handle.has_next():
        name, tensor = handle.next()
        torch.ops.ckpt_streamer.copy_(destinations[name], tensor, memory_limit_bytes)
    peak: int = handle.peak_bytes_resident()
    return peak


def test_scripted(large: tuple[Path, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tensors = {"small": torch.randn(7), "large": large[1].clone()}
    torch.save(tensors, path)
    destinations = {
        "small": torch.empty(7, dtype=torch.float64),
        "large": torch.empty(1024, 16384, dtype=torch.bfloat16),
    }
    assert load_scripted(str(path), destinations, LIMIT) <= LIMIT
    assert resident_of(path).clean_bytes == 0
    for name, tensor in tensors.items():
        assert torch.equal(destinations[name], tensor.to(destinations[name].dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("limit", [4 * MIB, 32 * MIB])
def test_memory_while_copying_sixteen_limits(
    limit: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "large.pt"
    torch.save({"w": torch.ones(16 * limit // 4)}, path)
    source = load_mapped(path)["w"]
    destination = torch.zeros(16 * limit // 4, dtype=dtype)

    def copy_again() -> None:
        for _ in range(3):
            copy_(destination, source, limit)

    copy_again()  # threads, their stacks and all code are there
    destination.zero_()
    assert resident_of(path).clean_bytes == 0
    file_bytes, anonymous_bytes = peaks_of(copy_again)
    # Whatever else of libraries is touched meanwhile counts as well.
    assert limit // 2 < file_bytes <= limit + MIB // 2
    assert anonymous_bytes <= 16 * MIB
    assert resident_of(path).clean_bytes == 0
    assert (destination == 1).all()
