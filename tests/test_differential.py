"""Generated checkpoints, leaf by leaf against what torch makes of them.

safetensors files are generated in test_safetensors.py. pickle's protocol 0 is not
among those here: torch.save writes it, and torch.load cannot read it.
"""

from __future__ import annotations

import json
import keyword
import re
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from examples import examples
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from leaves import Leaves, differences, leaves_of, read_leaves
from torch import Tensor, nn
from torch.utils.serialization import config

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

# What a storage is saved as, one type for all tensors that share it.
TYPED = [
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.complex64, torch.complex128),
]
# What has no storage type: saved as bytes, so that a storage may have several.
UNTYPED = [
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.complex32),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2),
    *(torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
]


# Tensors


@st.composite
def storages(draw: st.DrawFn) -> tuple[torch.UntypedStorage, list[torch.dtype]]:
    """A storage of any bytes, and the dtypes that its tensors may have."""
    dtypes = draw(st.sampled_from([[dtype] for dtype in TYPED] + [UNTYPED] * 3))
    largest = max(dtype.itemsize for dtype in dtypes)
    data = draw(st.binary(max_size=12 * largest))
    data = data[: len(data) // largest * largest]
    if dtypes == [torch.bool]:
        data = bytes(byte % 2 for byte in data)
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    return tensor.untyped_storage(), dtypes


@st.composite
def views(
    draw: st.DrawFn, storage: torch.UntypedStorage, dtypes: list[torch.dtype]
) -> Tensor:
    """A view of a storage, of any strides: expanded, overlapping, with gaps."""
    dtype = draw(st.sampled_from(dtypes))
    last = storage.nbytes() // dtype.itemsize - 1
    offset = draw(st.integers(0, max(last, 0)))
    # Whatever the strides, an empty tensor reaches nothing.
    sizes = draw(st.lists(st.integers(1, 4), max_size=4))
    if last < 0 or draw(st.integers(0, 9)) == 0:
        sizes.insert(draw(st.integers(0, len(sizes))), 0)
    room = last - offset
    strides = []
    for size in sizes:
        limit = 9 if 0 in sizes else room // (size - 1) if size > 1 else 9
        strides.append(draw(st.integers(0, max(limit, 0))))
        room -= strides[-1] * (size - 1) if size > 1 else 0
    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, sizes, strides)
    # torch cannot load _rebuild_tensor_v3 with requires_grad.
    if dtype in TYPED and (dtype.is_floating_point or dtype.is_complex):
        tensor.requires_grad_(draw(st.booleans()))
    return tensor


@st.composite
def tensor_pools(draw: st.DrawFn, most: int = 6) -> list[Tensor]:
    """Tensors that may share their storages, parameters among them."""
    tensors = []
    for storage, dtypes in draw(st.lists(storages(), min_size=1, max_size=3)):
        for _ in range(draw(st.integers(1, most // 2))):
            tensor = draw(views(storage, dtypes))
            if draw(st.integers(0, 4)) == 0:
                tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
            tensors.append(tensor)
    return tensors


# Trees

plain_text = st.text("abcXYZ_09", max_size=4)
keys = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.sampled_from(["a.b", "a", "b", "", "0", "weight", "module.layer.0.weight"]),
    st.integers(-(2**70), 2**70),
    st.integers(0, 300),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.tuples(st.integers(-300, 300), plain_text),
    plain_text.map(str.encode),
)
plain_values = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    *(st.binary(max_size=300), st.just(10**400), st.just(torch.float32)),
    *(st.sets(st.integers(), max_size=2), st.just({"no": ["tensors", ()]})),
    *(st.just(torch.Size([2, 3])), st.just(print), st.just(2j)),
)


class Pair(NamedTuple):
    first: Any
    second: Any


@st.composite
def trees(draw: st.DrawFn, tensors: list[Tensor]) -> Any:
    """Containers in containers, some of them shared, some inside themselves."""
    containers: list[Any] = []

    def value(depth: int) -> Any:
        kinds = ["tensor"] * 5 + ["plain"] + (["shared"] if containers else [])
        if depth < 4:
            kinds += ["dict", "OrderedDict", "defaultdict", "list", "tuple"] * 2
            kinds += ["Pair"]
        kind = "dict" if depth == 0 else draw(st.sampled_from(kinds))
        if depth == 0 and draw(st.booleans()):
            kind = draw(st.sampled_from(kinds))
        if kind == "tensor":
            return draw(st.sampled_from(tensors))
        if kind == "plain":
            return draw(plain_values)
        if kind == "shared":
            return draw(st.sampled_from(containers))
        if kind == "Pair":
            made: Any = Pair(value(depth + 1), value(depth + 1))
            containers.append(made)
            return made
        count = draw(st.integers(0, 4))
        if kind == "tuple":
            made = tuple(value(depth + 1) for _ in range(count))
            containers.append(made)
            return made
        # What holds itself is there before what it holds.
        makers: dict[str, Any] = {
            "dict": dict,
            "OrderedDict": OrderedDict,
            "defaultdict": lambda: defaultdict(list),
            "list": list,
        }
        made = makers[kind]()
        containers.append(made)
        for _ in range(count):
            if kind == "list":
                made.append(value(depth + 1))
            else:
                made[draw(keys)] = value(depth + 1)
        return made

    return value(0)


def assert_same(path: Path | list[Path], theirs: Leaves) -> None:
    ours = read_leaves(
        [str(each) for each in path] if isinstance(path, list) else str(path)
    )
    assert not differences(ours, theirs)


def loaded(path: Path) -> Leaves:
    return leaves_of(torch.load(path, weights_only=False, mmap=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("differential")


@examples(300)
@given(
    tensors=tensor_pools(),
    data=st.data(),
    protocol=st.integers(1, 5),
    alignment=st.sampled_from([1, 64, 4096]),
    is_rezipped=st.booleans(),
)
def test_zip_files(
    folder: Path,
    tensors: list[Tensor],
    data: st.DataObject,
    protocol: int,
    alignment: int,
    is_rezipped: bool,
) -> None:
    path = folder / "zip.pt"
    tree = data.draw(trees(tensors))
    with config.patch("save.storage_alignment", alignment):  # type: ignore[attr-defined]
        torch.save(tree, path, pickle_protocol=protocol)
    if is_rezipped:  # as others do, who do not align
        saved, path = path, folder / "rezipped.pt"
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
            for entry in data.draw(st.permutations(source.infolist())):
                target.writestr(entry.filename, source.read(entry))
    assert_same(path, loaded(path))


@examples(100)
@given(tensors=tensor_pools(), data=st.data(), protocol=st.integers(1, 5))
def test_files_before_torch_1_6(
    folder: Path, tensors: list[Tensor], data: st.DataObject, protocol: int
) -> None:
    # torch cannot load others from this format.
    assume(all(tensor.dtype in TYPED for tensor in tensors))
    path = folder / "legacy.pt"
    torch.save(
        data.draw(trees(tensors)),
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=False,
    )
    assert_same(path, loaded(path))


@examples(60)
@given(pools=st.lists(tensor_pools(most=4), min_size=1, max_size=3), data=st.data())
def test_lists_of_files(
    folder: Path, pools: list[list[Tensor]], data: st.DataObject
) -> None:
    paths = [folder / f"part{i}.pt" for i in range(len(pools))]
    for path, tensors in zip(paths, pools, strict=True):
        torch.save(data.draw(trees(tensors)), path)
    assert_same(paths, [leaf for path in paths for leaf in loaded(path)])


@examples(100)
@given(shards=st.lists(tensor_pools(most=4), min_size=1, max_size=3))
def test_shards(folder: Path, shards: list[list[Tensor]]) -> None:
    theirs: Leaves = []
    weight_map = {}
    for i, tensors in enumerate(shards):
        path = folder / f"pytorch_model-{i}.bin"
        torch.save({f"{i}.{j}": tensor for j, tensor in enumerate(tensors)}, path)
        weight_map.update({f"{i}.{j}": path.name for j in range(len(tensors))})
        theirs += loaded(path)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(index, theirs)


# TorchScript

identifiers = st.text("abcdefgh", min_size=1, max_size=3).filter(
    lambda text: not keyword.iskeyword(text) and not hasattr(nn.Module, text)
)


@st.composite
def modules(draw: st.DrawFn, tensors: list[Tensor]) -> nn.Module:
    """Modules in modules, some shared, with parameters and buffers."""
    made: list[nn.Module] = []

    def module(depth: int) -> nn.Module:
        result = nn.Module()
        for name in draw(st.lists(identifiers, max_size=4, unique=True)):
            kind = draw(st.sampled_from(["tensor", "tensor", "module", "shared"]))
            if kind == "module" and depth < 3:
                result.add_module(name, module(depth + 1))
            elif kind == "shared" and made:
                result.add_module(name, draw(st.sampled_from(made)))
            else:
                tensor = draw(st.sampled_from(tensors))
                if isinstance(tensor, nn.Parameter):
                    result.register_parameter(name, tensor)
                else:
                    result.register_buffer(name, tensor.detach())
        made.append(result)
        return result

    return module(0)


def state_of(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, shared ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


# Of some views, torch.jit.save writes less of the storage than they reach into; what
# torch.jit.load says of its own archive then.
_TOO_SHORT = r"out of bounds for storage of size|require a storage of at least"


@examples(100)
@given(tensors=tensor_pools(), data=st.data(), is_lite=st.booleans())
def test_torchscript_archives(
    folder: Path, tensors: list[Tensor], data: st.DataObject, is_lite: bool
) -> None:
    scripted = torch.jit.script(data.draw(modules(tensors)))
    path = folder / "module.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lite Interpreter is deprecated")
        if is_lite:
            scripted._save_for_lite_interpreter(str(path))
        else:
            torch.jit.save(scripted, path)
    try:
        theirs = list(state_of(torch.jit.load(path)))
    except RuntimeError as error:
        if not re.search(_TOO_SHORT, str(error)):
            raise
        # There is nothing to hold it against. It is read all the same, or refused.
        with suppress(ValueError):
            read_leaves(str(path))
        reject()
    assert_same(path, theirs)


# The comparison itself


@pytest.mark.parametrize(
    "changed",
    [
        {"b": torch.ones(4)[1:]},
        {"a": torch.ones(4).double()},
        {"a": torch.ones(2, 2)},
        {"a": torch.ones(8)[::2]},
        {"a": torch.ones(5)[1:]},
        {"a": torch.ones(4).requires_grad_()},
        {"a": torch.ones(5)[:4]},
        {"a": torch.tensor([1.0, 1.0, 1.0, 2.0])},
        {"c": torch.ones(4)},
        {},
    ],
)
def test_each_difference_is_seen(changed: dict[str, Tensor]) -> None:
    shared = torch.ones(4)
    tree = {"a": shared, "b": shared[1:]}
    assert not differences(leaves_of(tree), leaves_of(tree))
    other = {**tree, **changed} if changed else {"a": tree["a"]}
    assert differences(leaves_of(tree), leaves_of(other))
