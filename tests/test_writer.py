"""create() and the op under it: tensors written one by one, from any language."""

from __future__ import annotations

import copy
import pickle
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import create

MIB = 1024 * 1024
BF16 = torch.bfloat16


def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*sizes, dtype=dtype, device="meta")


def first_line(error: pytest.ExceptionInfo[Any]) -> str:
    return str(error.value).partition("\n")[0]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


@torch.jit.script
def rewrite(source: str, target: str, memory_limit_bytes: int) -> list[str]:
    declared: dict[str, Tensor] = {}
    handle = torch.ops.ckpt_streamer.open(source, memory_limit_bytes)
    while handle.has_next():
        name, tensor = handle.next()
        dtype = torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
        declared["new." + name] = torch.empty(
            tensor.shape, dtype=dtype, device=torch.device("meta")
        )
    writer = torch.ops.ckpt_streamer.create(
        target, declared, memory_limit_bytes, metadata={"by": "a script"}
    )
    handle.reset()
    while handle.has_next():
        name, tensor = handle.next()
        writer.write("new." + name, tensor)
    paths: list[str] = writer.finish()
    return paths


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_script_rewrites_a_file(suffix: str, tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(300_000),
        "b": torch.arange(5),
        "c": torch.randn(3, 4).t(),
    }
    torch.save(tensors, tmp_path / "a.pt")
    target = tmp_path / f"b{suffix}"
    assert rewrite(str(tmp_path / "a.pt"), str(target), 1 << 20) == [str(target)]
    found: dict[str, Any] = dict(load(target))
    if suffix == ".pt":
        assert found.pop("by") == "a script"
    else:
        with safetensors.safe_open(target, "pt") as file:
            assert file.metadata() == {"by": "a script"}
    assert found.keys() == {"new.a", "new.b", "new.c"}
    assert torch.equal(found["new.a"], tensors["a"].to(BF16))
    assert torch.equal(found["new.b"], tensors["b"])
    assert torch.equal(found["new.c"], tensors["c"].to(BF16))


def test_any_order_and_any_layout(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    declared = {
        "a": meta(3, 5, dtype=BF16),
        "b": meta(4, dtype=torch.int64),
        "c": meta(2, 3),
        "d": meta(4, dtype=torch.complex64),
        "e": meta(0, 3),
        "f": meta(2, 2),
    }
    a, c, d = torch.randn(5, 3).t(), torch.randn(2, 6), torch.randn(4) * 1j
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    with create(path, declared) as writer:
        assert repr(writer) == f"<CheckpointWriter {str(path)!r}>"
        writer.write("f", parameter)
        writer.write("e", torch.empty(0, 3))
        writer.write("d", d.conj())
        writer.write("c", c[:, ::2])
        writer.write("b", torch.arange(4))
        assert names_in(tmp_path) == []
        writer.write("a", a)
    found = load(path)
    assert torch.equal(found["a"], a.to(BF16))
    assert torch.equal(found["b"], torch.arange(4))
    assert torch.equal(found["c"], c[:, ::2])
    assert torch.equal(found["d"], d.conj().resolve_conj())
    assert found["e"].shape == (0, 3)
    assert torch.equal(found["f"], torch.ones(2, 2))
    assert names_in(tmp_path) == ["x.safetensors"]


def test_declared_views_stay_views(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    base = torch.arange(12.0).view(3, 4)
    tensors = {"row": base[1], "base": base, "transposed": base.t(), "tied": base}
    with create(path, tensors) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    found = load(path)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()
        storage = found[name].untyped_storage()
        assert storage.data_ptr() == found["base"].untyped_storage().data_ptr()
    # What is no such view cannot be written as one.
    writer = create(path, tensors)
    with pytest.raises(ValueError, match="expected the view of 12 elements") as error:
        writer.write("row", torch.arange(4.0))
    assert "'row' has the strides [1] from element 0" in first_line(error)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.finish()
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.write("row", base[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_tensor_that_could_not_be_read_may_be_written_again(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    weight = torch.arange(12.0).view(3, 4)
    with create(path, {"w": weight, "row": weight[1]}, tied="copy") as writer:
        with pytest.raises((RuntimeError, ValueError)) as error:
            writer.write("w", torch.empty(3, 4, device="meta"))
        assert "is written a second time" not in str(error.value)
        with pytest.raises((RuntimeError, ValueError)):
            writer.write("row", torch.empty(4, device="meta"))
        writer.write("w", weight)
        writer.write("row", weight[1])
        with pytest.raises(ValueError, match="'w' is written a second time"):
            writer.write("w", weight)
    found = load(path)
    assert torch.equal(found["w"], weight)
    assert torch.equal(found["row"], weight[1])


def test_what_shares_memory_with_a_half_written_tensor_cannot_be_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.pt"
    base = torch.arange(4 * MIB, dtype=torch.int32)  # 16 MiB
    writer = create(path, {"a": base, "b": base})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MIB, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.write("a", base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with pytest.raises(
        ValueError,
        match=rf"{path}: the tensor 'b' shares memory with one that could not be "
        r"written on from byte \d+ of 16777216, expected another writer after that",
    ):
        writer.write("b", base)
    with pytest.raises(ValueError, match=r"'a' has \d+ bytes, expected all of its"):
        writer.finish()
    writer.close()
    assert not path.exists()


def conjugate_and_negative() -> list[Tensor]:
    """Views with both bits and with none, whole and transposed, above 4 MiB too."""
    tensors = [
        torch.randn(3, 4, dtype=torch.complex64),
        torch.randn(4, 3, dtype=torch.complex64).t(),
        torch.randn(1000, 700, dtype=torch.complex64).t(),
    ]
    both = [each for tensor in tensors for each in (tensor, tensor.conj())]
    return [each for tensor in both for each in (tensor, torch._neg_view(tensor))]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_values_are_written_however_they_are_declared(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    tensors = conjugate_and_negative()
    for declared in tensors:
        for tensor in tensors:
            alike = declared.shape == tensor.shape
            if not alike or declared.stride() != tensor.stride():
                continue
            with create(path, {"a": declared, "b": declared[1:]}, tied="copy") as made:
                made.write("b", tensor[1:])
                made.write("a", tensor)
            found = load(path)
            assert torch.equal(found["a"], tensor)
            assert torch.equal(found["b"], tensor[1:])
            if suffix == ".pt":
                assert found["a"].is_conj() == declared.is_conj()
                assert found["a"].is_neg() == declared.is_neg()
    negative = torch._neg_view(torch.ones(3))
    with create(path, {"a": negative}) as writer:
        writer.write("a", torch.tensor([1.0, 2.0, -3.0]).half())
    assert load(path)["a"].tolist() == [1.0, 2.0, -3.0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_not_declared_so_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    writer = create(path, {"a": meta(2, 3), "b": meta(4, dtype=torch.int8)})

    def refuses(name: str, tensor: Tensor, text: str) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
            writer.write(name, tensor)
        assert first_line(error) == f"{path}: {text}"

    refuses(
        "c",
        torch.ones(1),
        "there is no tensor 'c' to write, expected one of the 2 that were declared",
    )
    refuses(
        "a",
        torch.ones(3, 2),
        "the tensor 'a' is float32 [3, 2], expected the float32 [2, 3] that was "
        "declared",
    )
    refuses(
        "a",
        torch.ones(2, 3).int(),
        "the tensor 'a' is int32 [2, 3], expected the float32 [2, 3] that was declared",
    )
    refuses(
        "b",
        torch.ones(4),
        "the tensor 'b' is float32 [4], expected the int8 [4] that was declared",
    )
    refuses(
        "a",
        torch.ones(2, 3).to_sparse(),
        "the tensor 'a' is not strided, float32 [2, 3], expected the float32 [2, 3] "
        "that was declared",
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
        writer.finish()
    assert first_line(error) == (
        f"{path}: the tensor 'a' has 0 bytes, expected all of its 24 before finish()"
    )
    writer.write("a", torch.ones(2, 3).half())
    refuses(
        "a",
        torch.ones(2, 3),
        "the tensor 'a' is written a second time, expected each once",
    )
    writer.write("b", torch.ones(4, dtype=torch.int8))
    assert writer.finish() == [str(path)]
    assert torch.equal(load(path)["a"], torch.ones(2, 3))
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.finish()


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_text("old")

    def interrupted() -> None:
        with create(path, {"a": meta(4)}) as writer:
            writer.write("a", torch.ones(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    writer = create(path, {"a": meta(4)})
    writer.write("a", torch.ones(4))
    del writer
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.pt"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_cannot_be_declared(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def refuses(tensors: dict[str, Tensor], error: type[Exception], text: str) -> None:
        with pytest.raises(error) as found:
            create(path, tensors)
        assert first_line(found) == f"{path}: {text}"

    refuses(
        {"a\0": meta(1)},
        ValueError,
        "the name 'a\\x00' holds a NUL character, expected one without",
    )
    refuses(
        {"__metadata__": meta(1)},
        ValueError,
        "a tensor has the name '__metadata__', which safetensors keeps for itself, "
        "expected another",
    )
    refuses(
        {"s": torch.eye(2).to_sparse()},
        NotImplementedError,
        "the tensor 's' is a sparse tensor, expected a strided one",
    )
    refuses(
        {"q": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)},
        NotImplementedError,
        "the tensor 'q' is a quantized tensor, expected a strided one",
    )
    refuses(
        {"c": meta(1, dtype=torch.complex128)},
        NotImplementedError,
        "the tensor 'c' is of the dtype complex128, which safetensors does not have",
    )
    with pytest.raises(ValueError, match="memory_limit_bytes is 0"):
        torch.ops.ckpt_streamer.create(str(path), {"a": meta(1)}, 0)
    with pytest.raises(ValueError, match="shard_size_bytes is -1, expected"):
        torch.ops.ckpt_streamer.create(
            str(path), {"a": meta(1)}, 1, shard_size_bytes=-1
        )
    assert names_in(tmp_path) == []


def test_a_writer_cannot_be_copied(tmp_path: Path) -> None:
    writer = create(tmp_path / "x.pt", {"a": meta(1)})
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            attempt(writer)
    handle = torch.ops.ckpt_streamer.create(str(tmp_path / "y.pt"), {"a": meta(1)}, 1)
    with pytest.raises(NotImplementedError, match="a stream cannot be pickled"):
        copy.deepcopy(handle)


def test_threads_may_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    declared = {f"w{i}": meta(10_000) for i in range(64)}
    with create(path, declared) as writer:

        def work(first: int) -> None:
            for i in range(first, 64, 4):
                writer.write(f"w{i}", torch.full((10_000,), float(i)))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = load(path)
    assert all((found[f"w{i}"] == i).all() for i in range(64))


def test_shards_by_a_writer(tmp_path: Path) -> None:
    declared = {f"w{i}": meta(100) for i in range(4)}
    with create(tmp_path / "m.safetensors", declared, shard_size="800 B") as writer:
        for i in reversed(range(4)):
            writer.write(f"w{i}", torch.full((100,), float(i)))
    assert names_in(tmp_path) == [
        "m-00001-of-00002.safetensors",
        "m-00002-of-00002.safetensors",
        "m.safetensors.index.json",
    ]
    with ckpt_streamer.open(tmp_path / "m.safetensors.index.json") as checkpoint:
        assert checkpoint.names == ["w0", "w1", "w2", "w3"]
        assert [float(tensor[99]) for _, tensor in checkpoint] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (17, 17),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("5GB", 5 * 10**9),
        ("1.5 gib", 3 << 29),
        ("0.001kB", 1),
        (" 2 T ", 2 << 40),
        ("7b", 7),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert ckpt_streamer._sizes.bytes_of("x", text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1.MiB", "-1", "1 2", "5 pounds", "1e3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=f"x is {text!r}, expected a size like"):
        ckpt_streamer._sizes.bytes_of("x", text)
