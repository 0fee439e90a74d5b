"""convert(): every source, target and dtype; ties, names, values, limits."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from leaves import differences, leaves_of, read_leaves
from mapped_checkpoints import MIB, cached_share, load_mapped
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import convert

FLOATING = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def tensors_of_all_kinds() -> dict[str, Tensor]:
    torch.manual_seed(0)
    values = torch.randn(300, 70)
    return {
        "w_weight": values,
        "w_column": torch.randn(40, 50)[:, 7],
        "w_transposed": torch.randn(60, 33).t(),
        "w_half": torch.randn(9).half(),
        "w_double": torch.tensor([1e300, float("nan"), -0.0, float("inf")]).double(),
        "w_scalar": torch.tensor(3.25),
        "w_empty": torch.empty(0, 4),
        "w_ints": torch.arange(7),
        "w_bytes": torch.arange(5, dtype=torch.uint8),
        "w_bools": torch.tensor([True, False, True]),
        "w_complex": torch.randn(3, dtype=torch.complex64),
        "w_float8": torch.randn(5).to(torch.float8_e4m3fn),
        "w_unsigned": torch.tensor([1, 2, 3], dtype=torch.uint32),
    }


def save_zip(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "source.pt")
    return folder / "source.pt"


def save_legacy(tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "source-legacy.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


def save_safetensors(tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "source.safetensors"
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path)
    return path


def save_script(tensors: dict[str, Tensor], folder: Path) -> Path:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    torch.jit.save(torch.jit.script(module), folder / "source-script.pt")
    return folder / "source-script.pt"


def save_shards(tensors: dict[str, Tensor], folder: Path) -> Path:
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        shard = f"shard-{i:05}.safetensors"
        safetensors.torch.save_file({name: tensor.contiguous()}, folder / shard)
        weight_map[name] = shard
    index = folder / "source.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


SOURCES = [save_zip, save_legacy, save_safetensors, save_script, save_shards]


def same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    ones, others = (
        each.contiguous().view(-1).view(torch.uint8) for each in (left, right)
    )
    return torch.equal(ones, others)


def expected_of(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return (
        tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
    )


def read_target(path: Path) -> dict[str, Tensor]:
    """By torch or safetensors, not by this library."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("dtype", [None, *FLOATING], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("save", SOURCES)
def test_every_source_target_and_dtype(
    save: Callable[[dict[str, Tensor], Path], Path],
    suffix: str,
    dtype: torch.dtype | None,
    tmp_path: Path,
) -> None:
    tensors = tensors_of_all_kinds()
    if save is save_script:  # which has no such storages
        del tensors["w_float8"], tensors["w_unsigned"]
    target = tmp_path / f"target{suffix}"
    assert convert(save(tensors, tmp_path), target, dtype) == [str(target)]
    found = read_target(target)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(found[name], expected_of(tensor, dtype)), name
    ours = dict(read_leaves(str(target)))
    assert ours.keys() == found.keys()
    for name, tensor in ours.items():
        assert same_bits(tensor, found[name]), name
    if suffix == ".pt":
        with zipfile.ZipFile(target) as archive:
            assert archive.testzip() is None
        torch.load(target, mmap=True, weights_only=True)


def random_bits(count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator)
    return raw.to(torch.uint8).view(dtype)


@pytest.mark.parametrize("thread_count", [1, 2, 3])
@pytest.mark.parametrize("limit_mb", [1, 64])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float64, torch.float16),
        (torch.bfloat16, torch.float64),
        (torch.float16, torch.float8_e5m2),
    ],
    ids=str,
)
def test_pieces_have_the_bits_of_the_whole(
    source: torch.dtype,
    target: torch.dtype,
    limit_mb: int,
    thread_count: int,
    tmp_path: Path,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count)
    try:
        values = random_bits(9 * MIB // source.itemsize + 13, source)
        torch.save({"w": values, "small": values[:70_001].clone()}, tmp_path / "a.pt")
        path = tmp_path / "b.safetensors"
        convert(tmp_path / "a.pt", path, target, memory_limit_mb=limit_mb)
        found = read_target(path)
        assert same_bits(found["w"], values.to(target))
        assert same_bits(found["small"], values[:70_001].to(target))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("thread_count", [1, 2, 3])
@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
def test_transposed_pieces_have_the_bits_of_the_whole(
    source: torch.dtype, thread_count: int, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count)
    try:
        values = torch.full((1501 * 1403,), -1, dtype=torch.int64)
        values[::3] = 0x7FF0000000000001
        nans = values.to(torch.int32) if source == torch.float32 else values
        matrix = nans.view(source)
        for tensor in (
            matrix.view(1501, 1403).t(),
            matrix.view(1403, 19, 79).permute(1, 0, 2),
            matrix.view(19, 1403, 79).permute(2, 0, 1),
        ):
            torch.save({"w": tensor}, tmp_path / "a.pt")
            path = tmp_path / "b.safetensors"
            convert(tmp_path / "a.pt", path, torch.bfloat16)
            assert same_bits(read_target(path)["w"], tensor.to(torch.bfloat16))
    finally:
        torch.set_num_threads(before)


def nested_checkpoint() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    base = torch.randn(50, 8)
    return {
        "state_dict": model.state_dict(),
        "epoch": 3,
        "views": [base, base[10:20], base.t(), base],
        "values": (1, 2.5, None, True, "text \u20ac", b"ab\xff", -(2**70), {1: {}}),
        "complex": 2 + 3j,
        "dtype": torch.bfloat16,
        "ordered": OrderedDict(a=[], b=()),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "leaf": torch.ones(2, requires_grad=True),
        "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, dtype=torch.complex64).conj().imag,
    }


def test_a_tree_stays_as_it_was(tmp_path: Path) -> None:
    checkpoint = nested_checkpoint()
    shared = [1]
    checkpoint["twice"] = [shared, shared]
    checkpoint["self"] = {}
    checkpoint["self"]["loop"] = checkpoint["self"]
    torch.save(checkpoint, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(found) == list(checkpoint)
    for key in ("epoch", "values", "complex", "dtype", "ordered"):
        assert found[key] == checkpoint[key]
        assert type(found[key]) is type(checkpoint[key])
    assert found["twice"][0] is found["twice"][1]
    assert found["self"]["loop"] is found["self"]
    metadata = found["state_dict"]._metadata
    assert metadata == checkpoint["state_dict"]._metadata
    leaves = [leaves_of(tree) for tree in (found, checkpoint)]
    # Of its storage only the elements that it spans are written.
    ours, theirs = ([leaf for leaf in each if leaf[0] != "negative"] for each in leaves)
    assert len(ours) == len(leaves[0]) - 1
    assert not differences(ours, theirs)
    for key in ("parameter", "frozen", "leaf", "conjugate", "negative"):
        assert type(found[key]) is type(checkpoint[key])
        assert found[key].requires_grad == checkpoint[key].requires_grad
        assert torch.equal(found[key], checkpoint[key])
    assert found["conjugate"].is_conj()
    assert found["negative"].is_neg()


def test_a_tree_is_converted_and_stays_tied(tmp_path: Path) -> None:
    checkpoint = nested_checkpoint()
    torch.save(checkpoint, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt", torch.bfloat16)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    base, part, transposed, again = found["views"]
    assert base is again
    assert {each.untyped_storage().data_ptr() for each in found["views"]} == {
        base.data_ptr()
    }
    assert torch.equal(part, base[10:20])
    assert torch.equal(transposed, base.t())
    assert same_bits(base, checkpoint["views"][0].bfloat16())
    assert found["state_dict"]["1.num_batches_tracked"].dtype == torch.int64
    assert type(found["parameter"]) is torch.nn.Parameter


def test_what_is_not_selected_is_missing_from_the_tree(tmp_path: Path) -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    tree = {"a": a, "list": [a, b, c], "inner": {"b": b, "n": 1}, "tuple": (c, 2)}
    torch.save(tree, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt", select=["list.1", "tuple.*"])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    # What is one tensor is one, whichever of its names was selected.
    assert list(found) == ["list", "inner", "tuple"]
    assert found["list"][0] is None
    assert torch.equal(found["list"][1], b)
    assert found["list"][2] is found["tuple"][0]
    assert found["inner"]["b"] is found["list"][1]
    assert found["tuple"][1] == 2


def test_only_what_a_tensor_spans_is_written(tmp_path: Path) -> None:
    torch.save({"part": torch.arange(100_000)[10:20]}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)["part"]
    assert torch.equal(found, torch.arange(10, 20))
    assert found.untyped_storage().nbytes() == 80


def test_opaque_values(tmp_path: Path) -> None:
    checkpoint = {
        "w": torch.ones(2),
        "array": np.ones(2),
        "counter": Counter("ab"),
        "more": [np.float64(1), 2],
    }
    torch.save(checkpoint, tmp_path / "a.pt")
    target = tmp_path / "b.pt"
    with pytest.raises(NotImplementedError) as error:
        convert(tmp_path / "a.pt", target)
    assert str(error.value).partition("\n")[0] == (
        f"{target}: the value 'array' is a numpy array, which only Python can write; "
        "expected a plain value, or opaque='drop', to leave such values out"
    )
    assert not target.exists()
    convert(tmp_path / "a.pt", target, opaque="drop")
    found = torch.load(target, weights_only=True)
    assert list(found) == ["w", "counter", "more"]
    assert found["counter"] == {"a": 1, "b": 1}
    assert type(found["counter"]) is dict
    assert found["more"] == [None, 2]
    # Of tensors under their names there are no others.
    convert(tmp_path / "a.pt", tmp_path / "c.safetensors")


def test_ties_in_safetensors(tmp_path: Path) -> None:
    weight = torch.randn(5, 4)
    torch.save({"a": weight, "b": weight, "c": weight[1:]}, tmp_path / "a.pt")
    target = tmp_path / "b.safetensors"
    with pytest.raises(
        ValueError, match="tensor 'b' shares memory with the tensor 'a'"
    ):
        convert(tmp_path / "a.pt", target, select=["a", "b"])
    with pytest.raises(
        ValueError, match="'c' shares memory with the tensor 'a', which"
    ):
        convert(tmp_path / "a.pt", target, tied="once")
    assert not list(tmp_path.glob("b*"))
    convert(tmp_path / "a.pt", target, tied="copy")
    found = read_target(target)
    assert torch.equal(found["c"], weight[1:])
    assert torch.equal(found["b"], weight)
    convert(tmp_path / "a.pt", target, tied="once", select=["a", "b"])
    assert list(read_target(target)) == ["a"]
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "b": "a"}
    model = torch.nn.Linear(4, 5, bias=False)
    convert(
        tmp_path / "a.pt",
        target,
        tied="once",
        rename={"a": "weight", "b": "tied", "c": None},
    )
    model.tied = model.weight
    safetensors.torch.load_model(model, target)
    assert model.tied is model.weight
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        ({"state_dict.*": "*"}, ["a.x", "a.y", "other"]),
        ({"*.a.*": "*/*", "*": None}, ["state_dict/x", "state_dict/y"]),
        ({"state_dict.a.x": "x", "state_dict.*": None}, ["x", "other"]),
        ({"*y": "*Y*"[:2]}, ["state_dict.a.Y", "state_dict.a.x", "other"]),
        (lambda name: name.upper(), ["STATE_DICT.A.X", "STATE_DICT.A.Y", "OTHER"]),
        (lambda name: None if "a" in name else name, ["other"]),
        ({}, ["state_dict.a.x", "state_dict.a.y", "other"]),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names(rename: Any, expected: list[str], suffix: str, tmp_path: Path) -> None:
    tree = {
        "state_dict": {"a.x": torch.ones(1), "a.y": torch.ones(2)},
        "other": torch.ones(3),
    }
    torch.save(tree, tmp_path / "a.pt")
    target = tmp_path / f"b{suffix}"
    convert(tmp_path / "a.pt", target, rename=rename)
    assert sorted(read_target(target)) == sorted(expected)


def test_names_under_another_default_device(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "a.pt")
    with torch.device("meta"):
        convert(tmp_path / "a.pt", tmp_path / "b.pt", rename={"a": None})
    [(name, tensor)] = read_target(tmp_path / "b.pt").items()
    assert name == "b"
    assert torch.equal(tensor, torch.ones(2))


def test_bad_names(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "a.pt")
    target = tmp_path / "b.safetensors"

    def refuses(rename: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error) as found:
            convert(tmp_path / "a.pt", target, rename=rename)
        assert str(found.value).partition("\n")[0] == text
        assert not target.exists()

    refuses(
        lambda _: "same",
        ValueError,
        f"{target}: there are two values of the name 'same', expected distinct names",
    )
    refuses(
        lambda name: name + "\0",
        ValueError,
        f"{target}: the name 'a\\x00' holds a NUL character, expected one without",
    )
    refuses(
        lambda _: 3,
        TypeError,
        "rename gives 3 (int) for 'a', expected a name or None",
    )
    refuses(
        {"a": "*"},
        ValueError,
        "rename maps 'a' to '*', expected no more '*' than the pattern has",
    )
    refuses(
        3,
        TypeError,
        "rename is 3 (int), expected None, a function of a name, or a mapping of "
        "patterns to names",
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_converter(suffix: str, tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    tree = {"w": weight, "tied": weight, "ints": torch.arange(3)}
    torch.save(tree, tmp_path / "a.pt")
    calls: list[tuple[str, str]] = []

    def converter(name: str, tensor: Tensor) -> Tensor:
        calls.append((name, tensor.device.type))
        return tensor.t() * 2 if tensor.dim() == 2 else tensor.to(torch.int8)

    target = tmp_path / f"b{suffix}"
    convert(tmp_path / "a.pt", target, torch.float16, converter=converter)
    found = read_target(target)
    assert same_bits(found["w"], (weight.t() * 2).half())
    assert same_bits(found["tied"], (weight.t() * 2).half())
    assert same_bits(found["ints"], torch.arange(3, dtype=torch.int8))
    assert Counter(calls) == Counter(itertools.product(tree, ["meta", "cpu"]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_converter_of_conjugate_and_negative_views(
    suffix: str, tmp_path: Path
) -> None:
    values = torch.randn(3, 4, dtype=torch.complex64)
    tree = {
        "conjugate": values.conj(),
        "transposed": values.t().conj().clone(),
        "negative": torch._neg_view(torch.randn(3)),
        "imaginary": values.conj().clone().imag,
        "plain": values.clone(),
    }
    torch.save(tree, tmp_path / "a.pt")
    converters: list[Callable[[str, Tensor], Tensor]] = [
        lambda _, tensor: tensor,
        lambda _, tensor: tensor.conj(),
        lambda _, tensor: torch._neg_view(tensor),
        lambda _, tensor: tensor.resolve_conj().resolve_neg(),
        lambda _, tensor: tensor.clone(),
        lambda _, tensor: tensor.conj() if tensor.is_meta else tensor,
        lambda _, tensor: tensor if tensor.is_meta else tensor.conj(),
        lambda name, _: tree[name].conj(),
    ]
    for converter in converters:
        path = tmp_path / f"b{suffix}"
        convert(tmp_path / "a.pt", path, converter=converter)
        found = read_target(path)
        for name, tensor in tree.items():
            assert torch.equal(found[name], converter(name, tensor)), name


def test_what_a_converter_returns_is_learned_without_reading(tmp_path: Path) -> None:
    """Of unaligned storages, tensors would be copies."""
    tree = {f"w{i}": torch.full((MIB,), float(i)) for i in range(8)}
    path = save_legacy(tree, tmp_path)
    read_bytes: dict[str, list[int]] = {"meta": [], "cpu": []}

    def converter(_: str, tensor: Tensor) -> Tensor:
        read_bytes[tensor.device.type].append(bytes_read())
        return tensor

    with ckpt_streamer.open(path, 8) as checkpoint:
        before = bytes_read()
        convert(checkpoint, tmp_path / "b.safetensors", converter=converter)
    assert len(read_bytes["meta"]) == len(read_bytes["cpu"]) == 8
    assert max(read_bytes["meta"]) - before < MIB
    assert max(read_bytes["cpu"]) - before > 8 * 4 * MIB
    found = read_target(tmp_path / "b.safetensors")
    assert all(same_bits(found[name], tensor) for name, tensor in tree.items())


def bytes_read() -> int:
    """By system calls of this process, from any file."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_converter_that_changes_its_mind(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(6)}, tmp_path / "a.pt")
    target = tmp_path / "b.safetensors"

    def fails(converter: Any, error: type[BaseException], text: str) -> None:
        target.write_text("old")
        with pytest.raises(error) as found:
            convert(tmp_path / "a.pt", target, converter=converter)
        assert str(found.value).partition("\n")[0] == text
        assert target.read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a.pt",
            "b.safetensors",
        ]

    fails(
        lambda _, tensor: tensor if tensor.is_meta else tensor[:5],
        ValueError,
        f"{target}: the tensor 'w' is float32 [5], expected the float32 [6] that was "
        "declared",
    )
    fails(
        lambda _, tensor: tensor if tensor.is_meta else tensor.long(),
        ValueError,
        f"{target}: the tensor 'w' is int64 [6], expected the float32 [6] that was "
        "declared",
    )
    fails(
        lambda _, tensor: tensor if tensor.is_meta else None,
        TypeError,
        "the converter returned None (NoneType) for 'w', expected a tensor",
    )

    def interrupted(_: str, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        raise KeyboardInterrupt

    fails(interrupted, KeyboardInterrupt, "")
    fails(
        3,
        TypeError,
        "converter is 3 (int), expected None or a function of a name and a tensor",
    )


def test_metadata(tmp_path: Path) -> None:
    def metadata_of(**options: Any) -> dict[str, str] | None:
        path = tmp_path / "out.safetensors"
        convert(tmp_path / "a.safetensors", path, **options)
        with safetensors.safe_open(path, "pt") as file:
            found = file.metadata()
            assert found is None or isinstance(found, dict)
            return found

    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert metadata_of() == {"format": "pt"}
    own = {"format": "pt", "x": '\u20ac "quoted"'}
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", own)
    assert metadata_of() == own
    assert metadata_of(metadata={"k": "v"}) == {"k": "v"}
    assert not metadata_of(metadata={})
    convert(tmp_path / "a.safetensors", tmp_path / "out.bin")
    assert list(torch.load(tmp_path / "out.bin", weights_only=True)) == ["w"]
    convert(tmp_path / "a.safetensors", tmp_path / "out.bin", metadata={"k": "v"})
    found = torch.load(tmp_path / "out.bin", weights_only=True)
    assert found["k"] == "v"
    assert list(found) == ["w", "k"]
    torch.save({"inner": {"w": torch.ones(1)}, "n": 1}, tmp_path / "tree.pt")
    with pytest.raises(ValueError, match="metadata is given, and the tree of values"):
        convert(tmp_path / "tree.pt", tmp_path / "out.pt", metadata={"k": "v"})


@pytest.mark.parametrize(
    ("name", "index", "first"),
    [
        (
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00003.safetensors",
        ),
        (
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00003.bin",
        ),
    ],
)
def test_shards(name: str, index: str, first: str, tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.randn(100, 10) for i in range(6)}
    tensors["z"] = torch.empty(0)
    torch.save(tensors, tmp_path / "a.pt")
    paths = convert(tmp_path / "a.pt", tmp_path / name, shard_size="10kB")
    assert paths[0] == str(tmp_path / index)
    assert paths[1] == str(tmp_path / first)
    assert len(paths) == 4
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.pt",
        *(Path(path).name for path in paths),
    }
    text = json.loads(Path(paths[0]).read_text())
    assert text["metadata"]["total_size"] == 24_000
    found: dict[str, Tensor] = {}
    for path in paths[1:]:
        shard = read_target(Path(path))
        assert all(text["weight_map"][key] == Path(path).name for key in shard)
        found |= shard
    assert found.keys() == tensors.keys() == text["weight_map"].keys()
    with ckpt_streamer.open(paths[0]) as checkpoint:
        for key, tensor in checkpoint:
            assert torch.equal(tensor, tensors[key])
    # Several files cannot be replaced together.
    with pytest.raises(FileExistsError, match="cannot write: File exists"):
        convert(tmp_path / "a.pt", tmp_path / name, shard_size="10kB")
    # All in one file, and no index.
    one = convert(tmp_path / "a.pt", tmp_path / ("one" + name), shard_size=10**6)
    assert one == [str(tmp_path / ("one" + name))]
    # Back into one.
    whole = tmp_path / "whole.pt"
    convert(paths[0], whole)
    assert torch.load(whole, weights_only=True).keys() == tensors.keys()


def test_tied_tensors_are_in_one_shard(tmp_path: Path) -> None:
    w = torch.randn(100)
    torch.save({"a": w, "b": torch.ones(100), "c": w}, tmp_path / "a.pt")
    paths = convert(tmp_path / "a.pt", tmp_path / "m.bin", shard_size=400)
    assert len(paths) == 3
    first = torch.load(paths[1], weights_only=True)
    assert first["a"].data_ptr() == first["c"].data_ptr()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_target_may_be_the_source(suffix: str, tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.randn(300_000) for i in range(8)}
    path = (
        save_zip(tensors, tmp_path)
        if suffix == ".pt"
        else save_safetensors(tensors, tmp_path)
    )
    link = tmp_path / f"link{suffix}"
    link.symlink_to(path)
    assert convert(path, link, torch.bfloat16, memory_limit_mb=4) == [str(link)]
    assert link.is_symlink()
    found = read_target(path)
    for name, tensor in tensors.items():
        assert same_bits(found[name], tensor.bfloat16())
    assert len(list(tmp_path.iterdir())) == 2


def test_an_open_checkpoint_is_a_source(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "a.pt")
    with ckpt_streamer.open(tmp_path / "a.pt", select="a") as checkpoint:
        convert(checkpoint, tmp_path / "b.safetensors")
        assert list(read_target(tmp_path / "b.safetensors")) == ["a"]
        assert torch.equal(checkpoint.tensor("b"), torch.ones(2))
    with pytest.raises(ValueError, match="the checkpoint is closed"):
        convert(checkpoint, tmp_path / "c.safetensors")


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_an_open_checkpoints_dtype_is_the_default(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    target = tmp_path / "b.pt"
    with ckpt_streamer.open(tmp_path / "a.pt", dtype=torch.bfloat16) as checkpoint:
        convert(checkpoint, target, dtype)
    assert read_target(target)["a"].dtype == (dtype or torch.bfloat16)


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt"])
def test_the_limit_holds(target: str, large_checkpoint: Path, tmp_path: Path) -> None:
    with ckpt_streamer.open(large_checkpoint, 4) as checkpoint:
        handle = checkpoint.tree.handle
        seen: list[int] = []
        convert(
            checkpoint,
            tmp_path / target,
            torch.bfloat16,
            progress=lambda *_: seen.append(resident_bytes(large_checkpoint)),
        )
        assert handle.paths() == [str(large_checkpoint)]
    assert len(seen) >= 4
    assert max(seen) <= 4 * MIB
    assert resident_bytes(large_checkpoint) == 0
    found = read_target(tmp_path / target)
    for i in range(64):
        assert (found[f"w{i}"] == i).all()


def resident_bytes(path: Path) -> int:
    with open("/proc/self/smaps") as smaps:
        lines = smaps.read().splitlines()
    total, inside = 0, False
    for line in lines:
        name, _, value = line.partition(":")
        if " " in name:
            inside = line.endswith(f" {path}")
        elif inside and name == "Rss":
            total += int(value.split()[0]) * 1024
    return total


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_tensor_of_sixteen_limits(dtype: torch.dtype | None, tmp_path: Path) -> None:
    values = torch.arange(16 * MIB, dtype=torch.float32)
    torch.save({"w": values, "t": values.view(-1, 64)[:, :3]}, tmp_path / "a.pt")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory_bytes("VmRSS")
    convert(
        tmp_path / "a.pt",
        tmp_path / "b.safetensors",
        dtype,
        select="w",
        memory_limit_mb=4,
    )
    assert memory_bytes("VmHWM") - before <= (4 + 12) * MIB
    found = load_mapped_safetensors(tmp_path / "b.safetensors")
    assert same_bits(found["w"], expected_of(values, dtype))


def load_mapped_safetensors(path: Path) -> Mapping[str, Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def memory_bytes(name: str) -> int:
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields[name].split()[0]) * 1024


def test_progress_is_told(large_checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    target = tmp_path / "b.safetensors"
    convert(large_checkpoint, target, progress=lambda *done: told.append(done))
    size = target.stat().st_size
    assert {total for _, total in told} == {size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) >= 4
    assert told[-1][0] == size


def test_the_page_cache_is_given_back(large_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.safetensors"
    convert(large_checkpoint, target, drop_page_cache=True)
    assert cached_share(target) < 0.02
    assert load_mapped(large_checkpoint)["w3"][0, 0] == 3


def test_records_are_verified(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError, match="CRC-32"):
        convert(tmp_path / "a.pt", tmp_path / "b.pt", verify=True)
    assert not (tmp_path / "b.pt").exists()


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "s": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    calls: list[str] = []

    def converter(name: str, tensor: Tensor) -> Tensor:
        calls.append(name)
        return tensor

    targets = [tmp_path / "b.pt", tmp_path / "b.safetensors"]
    for target, each in itertools.product(targets, [None, converter]):
        with pytest.raises(NotImplementedError) as error:
            convert(tmp_path / "a.pt", target, converter=each)
        assert str(error.value).partition("\n")[0] == (
            f"{target}: the tensor 's' is a sparse tensor, expected a strided one"
        )
    assert not calls


def test_bad_arguments(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")

    def refuses(
        text: str, error: type[Exception], target: Any = "b.safetensors", **options: Any
    ) -> None:
        path = tmp_path / target if isinstance(target, str) else target
        with pytest.raises(error) as found:
            convert(tmp_path / "a.pt", path, **options)
        assert text in str(found.value)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    refuses("path is 3 (int), expected the path of a file to write", TypeError, 3)
    refuses("the name does not say a format", ValueError, "b.npz")
    refuses("the format is 'x', expected", ValueError, format="x")
    refuses("tied is 'x', expected 'error', 'copy' or 'once'", ValueError, tied="x")
    refuses("opaque is 'x', expected 'error' or 'drop'", ValueError, opaque="x")
    refuses("dtype is torch.int8, expected a floating", ValueError, dtype=torch.int8)
    refuses("memory_limit_mb is 0, expected", ValueError, memory_limit_mb=0)
    refuses("shard_size is 'big', expected a size", ValueError, shard_size="big")
    refuses("shard_size is 0, expected at least 1", ValueError, shard_size=0)
    refuses("shard_size is 1.5 (float), expected", TypeError, shard_size=1.5)
    refuses("progress is 3 (int), expected a bool", TypeError, progress=3)
    refuses("No such file or directory", FileNotFoundError, "no/b.safetensors")
    with pytest.raises(IsADirectoryError):
        convert(tmp_path / "a.pt", tmp_path, format="torch")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.pt", tmp_path / "b.pt")
