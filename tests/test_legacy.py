"""The format of torch.save before torch 1.6, held against torch.load."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from mapped_checkpoints import MIB
from torch import Tensor, nn

import ckpt_streamer  # noqa: F401 - registers the ops

OPEN = torch.ops.ckpt_streamer.open

# Those with a storage type of their own, which is what the format can name.
DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.bool,
]


def save(tree: Any, path: Path, protocol: int = 2) -> Path:
    torch.save(
        tree,
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=False,
    )
    return path


def flattened(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {name: tree}
    pairs: Any = ()
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list | tuple):
        pairs = enumerate(tree)
    result = {}
    for key, value in pairs:
        result.update(flattened(value, f"{name}.{key}" if name else str(key)))
    return result


def read_all(path: Path, limit: int = 64 * MIB) -> dict[str, Tensor]:
    handle = OPEN(str(path), limit)
    result = {}
    while handle.has_next():
        name, tensor = handle.next()
        assert name not in result
        result[name] = tensor
    return result


def raw(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().flatten())
    return flat.view(torch.uint8).numpy().tobytes()


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, wanted in theirs.items():
        tensor = ours[name]
        assert tensor.dtype == wanted.dtype, name
        assert tensor.shape == wanted.shape, name
        assert tensor.stride() == wanted.stride(), name
        assert tensor.storage_offset() == wanted.storage_offset(), name
        assert tensor.requires_grad == wanted.requires_grad, name
        assert tensor.untyped_storage().nbytes() == wanted.untyped_storage().nbytes(), (
            name
        )
        assert raw(tensor) == raw(wanted), name
        assert tensor.data_ptr() % tensor.element_size() == 0, name
    for one, other in combinations(theirs, 2):
        assert shared(ours[one], ours[other]) == shared(theirs[one], theirs[other])


def shared(one: Tensor, other: Tensor) -> bool:
    pointer = one.untyped_storage().data_ptr()
    return pointer != 0 and pointer == other.untyped_storage().data_ptr()


def assert_as_torch_load(path: Path) -> None:
    theirs = flattened(torch.load(path, weights_only=False))
    assert_equal(read_all(path), theirs)


def tree_of_everything() -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return {
        "dtypes": [torch.arange(7).to(dtype) for dtype in DTYPES],
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
        "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
        "nested": {"list": [torch.ones(1), (torch.ones(2), {"x": torch.ones(3)})]},
        "plain": [1, 2.5, "text", None, True, b"bytes", 10**30],
        "ordered": collections.OrderedDict(a=torch.zeros(2), b=torch.zeros(1)),
    }


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_equals_torch_load(tmp_path: Path, protocol: int) -> None:
    path = save(tree_of_everything(), tmp_path / "x.pt", protocol)
    assert_as_torch_load(path)


def test_protocol_0_has_no_tensors(tmp_path: Path) -> None:
    path = save({"a": [1, 2.5, "text"]}, tmp_path / "x.pt", 0)
    assert read_all(path) == {}
    # Persistent ids are texts there, which torch.load refuses as well.
    save({"a": torch.ones(2)}, path, 0)
    with pytest.raises(AssertionError, match="saved_id must be a tuple"):
        torch.load(path, weights_only=False)
    with pytest.raises(ValueError, match=r"expected .'storage', type, key, location"):
        OPEN(str(path), MIB)


def test_a_bare_tensor_has_no_name(tmp_path: Path) -> None:
    path = save(torch.arange(5), tmp_path / "x.pt")
    ours = read_all(path)
    assert list(ours) == [""]
    assert torch.equal(ours[""], torch.arange(5))


def test_objects_may_follow(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        for value in (1.0, 2.0):
            torch.save(
                {"a": torch.full((3,), value)},
                file,
                _use_new_zipfile_serialization=False,
            )
    assert_as_torch_load(path)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Nested containers over a few storages, each viewed in several ways."""
    bases = [
        torch.arange(draw(st.integers(0, 40))).to(draw(st.sampled_from(DTYPES))).clone()
        for _ in range(draw(st.integers(1, 4)))
    ]

    def view(values: tuple[Tensor, int, int, int, bool]) -> Tensor:
        base, begin, length, step, is_parameter = values
        part = base[begin : begin + length : step]
        if is_parameter and (part.is_floating_point() or part.is_complex()):
            return nn.Parameter(part)
        return part

    leaves = st.one_of(
        st.builds(
            lambda *values: view(values),
            st.sampled_from(bases),
            st.integers(0, 40),
            st.integers(0, 40),
            st.integers(1, 3),
            st.booleans(),
        ),
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    )
    keys = st.text("abc", min_size=1, max_size=3)
    containers = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(keys, inner, max_size=4),
            st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict),
        ),
        max_leaves=12,
    )
    return draw(containers)


@given(tree=trees(), protocol=st.integers(1, 5))
@examples(150)
def test_any_tree_is_read_as_torch_load_does(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("legacy") / "x.pt"
    assert_as_torch_load(save(tree, path, protocol))


# What torch wrote before 0.4


class StorageId:
    """Stands for a storage in the pickle."""

    def __init__(self, *parts: Any) -> None:
        self.parts = ("storage", *parts)


class OldTensor:
    def __init__(self, storage: StorageId, offset: int, size: int) -> None:
        self.args = (storage, offset, (size,), (1,))

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.args


class OldPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.parts if isinstance(obj, StorageId) else None


def write_old(path: Path, tree: Any, storages: dict[Any, list[float]]) -> Path:
    file = io.BytesIO()
    for part in (
        torch.serialization.MAGIC_NUMBER,
        torch.serialization.PROTOCOL_VERSION,
        {"little_endian": True},
    ):
        pickle.dump(part, file, protocol=2)
    OldPickler(file, protocol=2).dump(tree)
    pickle.dump(list(storages), file, protocol=2)
    for values in storages.values():
        file.write(struct.pack(f"<q{len(values)}f", len(values), *values))
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("key", ["94", 94], ids=["str", "int"])
def test_views_of_storages(tmp_path: Path, key: str | int) -> None:
    def storage(*view: Any) -> StorageId:
        return StorageId(torch.FloatStorage, key, "cpu", 6, view or None)

    def tree() -> dict[str, OldTensor]:
        return {
            "view": OldTensor(storage("v", 1, 4), 1, 3),
            "same view": OldTensor(storage("v", 1, 4), 0, 2),
            "root": OldTensor(storage(), 0, 6),
            "other view": OldTensor(storage("w", 5, 1), 0, 1),
        }

    path = write_old(tmp_path / "x.pt", tree(), {key: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]})
    theirs = torch.load(path, weights_only=False)
    ours = read_all(path)
    assert sorted(ours) == sorted(theirs)
    for tensors in (ours, theirs):
        for at in range(6):
            tensors["root"][at] = 10.0 * at
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.stride() == theirs[name].stride(), name
    assert ours["view"].tolist() == [20.0, 30.0, 40.0]


class Net(nn.Module):
    """A class whose source the format keeps."""


def test_whole_modules_keep_their_sources_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"net": Net(), "type": Net, "w": torch.ones(2)}, path)
    assert b"A class whose source the format keeps." in path.read_bytes()
    assert torch.equal(read_all(path)["w"], torch.ones(2))


def test_truncated_files_are_errors(tmp_path: Path) -> None:
    path = save({"a": torch.arange(100)}, tmp_path / "x.pt")
    whole = path.read_bytes()
    for length in range(15, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"the file (ends at byte|has \d+ bytes)"):
            OPEN(str(path), MIB)
