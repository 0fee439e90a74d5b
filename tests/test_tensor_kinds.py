"""Every kind of tensor that torch.save writes, against torch.load."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ckpt_streamer

OPEN = torch.ops.ckpt_streamer.open
LIMIT = 64 << 20


def opened(path: str) -> dict[str, Tensor]:
    handle = OPEN(path, LIMIT)
    tensors = {}
    while handle.has_next():
        name, tensor = handle.next()
        assert name not in tensors
        tensors[name] = tensor
    assert len(tensors) == len(handle)
    return tensors


def saved(tmp_path: Path, value: Any, **options: Any) -> str:
    path = tmp_path / "saved.pt"
    torch.save(value, path, **options)
    return str(path)


def parts(tensor: Tensor) -> list[Tensor]:
    """The strided tensors that a tensor is made of."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return list(tensor.unbind())
    return []


def bytes_of(tensor: Tensor) -> bytes:
    """The storage's bytes: what no operator can change on the way."""
    storage = tensor.untyped_storage()
    return bytes(storage.tolist())


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.layout == wanted.layout
    assert found.device == wanted.device
    assert found.requires_grad == wanted.requires_grad
    assert found.is_nested == wanted.is_nested
    assert found.is_leaf
    pieces = parts(wanted)
    if not wanted.is_nested:
        assert found.shape == wanted.shape
    if pieces:
        for found_part, wanted_part in zip(parts(found), pieces, strict=True):
            assert_values_same(found_part, wanted_part)
        if wanted.layout == torch.sparse_coo:
            assert found.is_coalesced() == wanted.is_coalesced()
        return
    assert found.stride() == wanted.stride()
    if not wanted.is_meta:
        assert_values_same(found, wanted)


def assert_values_same(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.stride() == wanted.stride()
    assert found.storage_offset() == wanted.storage_offset()
    assert found.is_conj() == wanted.is_conj()
    assert found.is_neg() == wanted.is_neg()
    assert bytes_of(found) == bytes_of(wanted)
    assert found.is_quantized == wanted.is_quantized
    if wanted.is_quantized:
        assert found.qscheme() == wanted.qscheme()
        if wanted.qscheme() == torch.per_tensor_affine:
            assert found.q_scale() == wanted.q_scale()
            assert found.q_zero_point() == wanted.q_zero_point()
        else:
            assert found.q_per_channel_scales().equal(wanted.q_per_channel_scales())
            assert found.q_per_channel_zero_points().equal(
                wanted.q_per_channel_zero_points()
            )
            assert found.q_per_channel_axis() == wanted.q_per_channel_axis()


def assert_opens_as_loaded(path: str) -> dict[str, Tensor]:
    """Of a dict of tensors: every one as torch.load gives it, sharing included."""
    loaded = torch.load(path, weights_only=False)
    found = opened(path)
    assert found.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert_same(found[name], tensor)
    plain = [
        name
        for name, tensor in loaded.items()
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel()
    ]
    for one in plain:
        for two in plain:
            shares = loaded[one].untyped_storage().data_ptr() == (
                loaded[two].untyped_storage().data_ptr()
            )
            assert shares == (
                found[one].untyped_storage().data_ptr()
                == found[two].untyped_storage().data_ptr()
            ), (one, two)
    return found


@pytest.fixture(params=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], str]:
    zipped = request.param == "zip"
    return lambda value: saved(tmp_path, value, _use_new_zipfile_serialization=zipped)


NEW_DTYPES = [
    getattr(torch, name)
    for name in (
        *("uint16", "uint32", "uint64", "complex32"),
        *("float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"),
        *("float8_e8m0fnu", "float4_e2m1fn_x2"),
        *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
    )
]
# Of later releases of torch: not read, and named in the error.
LATER_DTYPES = [
    getattr(torch, name) for name in ("bcomplex32",) if hasattr(torch, name)
]
OLD_DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]


def of_dtype(dtype: torch.dtype, count: int) -> Tensor:
    data = torch.arange(count * dtype.itemsize).to(torch.uint8)
    if dtype == torch.bool:
        data %= 2
    return torch.empty(0, dtype=dtype).set_(data.untyped_storage(), 0, (count,), (1,))


def test_every_dtype_of_torch_is_known() -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    quantized = {
        torch.qint8,
        torch.quint8,
        torch.qint32,
        torch.quint4x2,
        torch.quint2x4,
    }
    assert dtypes == {*OLD_DTYPES, *NEW_DTYPES, *LATER_DTYPES, *quantized}


@pytest.mark.skipif(not LATER_DTYPES, reason="all dtypes of this torch are read")
def test_later_dtypes_are_named(save: Callable[[Any], str]) -> None:
    for dtype in LATER_DTYPES:
        path = save({"w": torch.empty(4, dtype=dtype)})
        text = f"tensor 'w' has the dtype {dtype}, expected one of torch 2.13"
        with pytest.raises(NotImplementedError, match=text):
            list(ckpt_streamer.open(path))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_dtypes(save: Callable[[Any], str]) -> None:
    readable = {}
    for dtype in (*OLD_DTYPES, *NEW_DTYPES):
        tensor = of_dtype(dtype, 6)
        try:
            torch.load(save({"w": tensor}), weights_only=False)
        except (AttributeError, KeyError, NotImplementedError):
            continue  # torch.save or torch.load itself does not know it
        readable[str(dtype)] = tensor
    assert len(readable) >= len(OLD_DTYPES)
    assert_opens_as_loaded(save(readable))


def test_views_and_ties(save: Callable[[Any], str]) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    assert_opens_as_loaded(
        save(
            {
                "base": base,
                "tied": base,
                "row": base[1],
                "transposed": base.t(),
                "steps": base[::2, 1::3],
                "expanded": base[0, :1].expand(5),
                "empty": base[:0],
                "scalar": base[2, 3],
            }
        )
    )


def test_conjugate_and_negative_views(save: Callable[[Any], str]) -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    negative = torch._neg_view(torch.tensor([2.0, -4.0]))
    found = assert_opens_as_loaded(
        save({"conj": numbers.conj(), "neg": negative, "plain": numbers})
    )
    assert found["conj"].is_conj()
    assert found["neg"].is_neg()
    assert found["conj"].resolve_conj().tolist() == [1 - 2j, 3 + 4j]
    assert found["neg"].resolve_neg().tolist() == [-2.0, 4.0]


def test_parameters(save: Callable[[Any], str]) -> None:
    attributed = nn.Parameter(torch.ones(2))
    attributed.note = "kept"  # type: ignore[attr-defined]
    assert_opens_as_loaded(
        save(
            {
                "parameter": nn.Parameter(torch.ones(3)),
                "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
                "attributed": attributed,
                "buffer": nn.Buffer(torch.ones(1)),
                "grad": torch.ones(2, requires_grad=True),
            }
        )
    )


def test_uninitialized_parameters(save: Callable[[Any], str]) -> None:
    path = save({"u": nn.UninitializedParameter(), "b": nn.UninitializedBuffer()})
    found = opened(path)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "u": (0,),
        "b": (0,),
    }
    assert found["u"].requires_grad
    assert not found["b"].requires_grad


def sparse_matrix() -> Tensor:
    return torch.tensor([[0.0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 4], [0, 0, 5, 0]])


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:.*invariant checks are implicitly disabled")
def test_sparse(save: Callable[[Any], str]) -> None:
    matrix = sparse_matrix()
    coo = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 2], [1, 1, 0]]), [1.0, 2.0, 3.0], (4, 4)
    )
    assert_opens_as_loaded(
        save(
            {
                "coo": matrix.to_sparse(),
                "uncoalesced": coo,
                "hybrid": matrix.to_sparse(1),
                "csr": matrix.to_sparse_csr(),
                "csc": matrix.to_sparse_csc(),
                "bsr": matrix.to_sparse_bsr((2, 2)),
                "bsc": matrix.to_sparse_bsc((2, 2)),
                "int32": torch.sparse_csr_tensor(
                    torch.tensor([0, 1, 2], dtype=torch.int32),
                    torch.tensor([0, 1], dtype=torch.int32),
                    torch.ones(2),
                    (2, 2),
                ),
                "empty": torch.zeros(3, 3).to_sparse(),
                "parameter": nn.Parameter(matrix.to_sparse()),
                "bool": (matrix > 1).to_sparse(),
            }
        )
    )


def test_sparse_shares_the_files_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": sparse_matrix().to_sparse()})
    handle = OPEN(path, LIMIT)
    _, one = handle.next()
    handle.reset()
    _, two = handle.next()
    assert one._values().data_ptr() == two._values().data_ptr()
    assert handle.bytes_streamed() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized(save: Callable[[Any], str]) -> None:
    values = torch.linspace(-1, 1, 12).reshape(3, 4)
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    zeros = torch.tensor([0, 1, 2])
    per_tensor = torch.quantize_per_tensor(values, 0.1, 3, torch.quint8)
    quantized = {
        "qint8": torch.quantize_per_tensor(values, 0.1, -3, torch.qint8),
        "quint8": per_tensor,
        "qint32": torch.quantize_per_tensor(values, 0.1, 0, torch.qint32),
        "view": per_tensor[1:, ::2],
        "channels": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
        "floats": torch.quantize_per_channel(
            values, scales.float(), zeros.float(), 0, torch.quint8
        ),
        "quint4x2": torch.quantize_per_channel(
            values, scales.float(), zeros.float(), 0, torch.quint4x2
        ),
    }
    found = assert_opens_as_loaded(save(quantized))
    for name, tensor in quantized.items():
        if name != "quint4x2":
            assert found[name].dequantize().equal(tensor.dequantize())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_kinds_convert_as_to_does(tmp_path: Path) -> None:
    tensors = {
        "sparse": sparse_matrix().to_sparse(),
        "neg": torch._neg_view(torch.tensor([2.0, -4.0])),
        "meta": torch.empty(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(5)]),
        "array": rebuilt_from_numpy(torch.float32, np.ones(3, "f4"), True),
    }
    path = saved(tmp_path, tensors)
    handle = OPEN(path, LIMIT, dtype=torch.bfloat16)
    unconverted = opened(path)
    while handle.has_next():
        name, tensor = handle.next()
        wanted = unconverted[name].detach().to(torch.bfloat16)
        assert tensor.requires_grad == unconverted[name].requires_grad
        assert tensor.dtype == torch.bfloat16
        assert tensor.layout == wanted.layout
        if wanted.is_nested:
            assert tensor.unbind()[1].equal(wanted.unbind()[1])
        elif not wanted.is_meta:
            assert (
                tensor.to_dense().resolve_neg().equal(wanted.to_dense().resolve_neg())
            )


def test_meta(save: Callable[[Any], str]) -> None:
    assert_opens_as_loaded(
        save(
            {
                "w": torch.empty(3, 4, device="meta"),
                "t": torch.empty(1 << 40, 4, device="meta", dtype=torch.int8).t(),
                "p": nn.Parameter(torch.empty(3, device="meta")),
            }
        )
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested(save: Callable[[Any], str]) -> None:
    rows = [torch.arange(6.0).reshape(2, 3), torch.arange(9.0).reshape(3, 3)]
    nested = torch.nested.nested_tensor(rows)
    path = save({"n": nested})
    # Not against torch.load: with a legacy file it looks at the sizes before it
    # has read them.
    found = opened(path)["n"]
    assert_same(found, nested)
    assert found.unbind()[1].equal(rows[1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_of_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, {"n": torch.nested.nested_tensor([])})
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=False)
    with pytest.raises(
        NotImplementedError,
        match=r"saved\.pt: tensor 'n' is nested with no tensor inside, which "
        r"torch.load does not read either; expected at least one in "
        r"'saved/data.pkl' \[byte \d+\]",
    ):
        opened(path)


class Labelled(Tensor):
    pass


def test_subclasses_are_their_data(save: Callable[[Any], str]) -> None:
    labelled = torch.ones(3).as_subclass(Labelled)
    labelled.label = torch.zeros(2)  # type: ignore[attr-defined]
    found = opened(
        save({"w": labelled, "p": nn.Parameter(torch.ones(1).as_subclass(Labelled))})
    )
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "w": [1, 1, 1],
        "w.label": [0, 0],
        "p": [1],
    }
    assert type(found["w"]) is Tensor


class Pair(Tensor):
    """A subclass without data: it wraps two tensors."""

    one: Tensor
    two: Tensor

    @staticmethod
    def __new__(cls, one: Tensor, two: Tensor) -> Pair:
        pair: Pair = Tensor._make_wrapper_subclass(cls, one.shape, dtype=one.dtype)
        pair.one, pair.two = one, two
        return pair

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Pair(args[0].one, args[0].two)
        raise NotImplementedError(str(function))


def test_wrapper_subclasses_are_what_they_wrap(save: Callable[[Any], str]) -> None:
    pair = Pair(torch.ones(2), torch.zeros(2))
    found = opened(
        save({"pair": pair, "p": nn.Parameter(Pair(torch.ones(1), torch.ones(1)))})
    )
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "pair.one": [1, 1],
        "pair.two": [0, 0],
        "p.one": [1],
        "p.two": [1],
    }


def rebuilt_from_numpy(dtype: torch.dtype, array: Any, requires_grad: bool) -> Any:
    class Remote:
        def __reduce__(self) -> Any:
            return (
                torch._utils._rebuild_device_tensor_from_numpy,
                (array, dtype, "cpu", requires_grad),
            )

    return Remote()


@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_that_are_pickled_as_arrays(tmp_path: Path, protocol: int) -> None:
    path = saved(
        tmp_path,
        {
            "bf16": rebuilt_from_numpy(
                torch.bfloat16, np.arange(6, dtype="f4").reshape(2, 3), True
            ),
            "fortran": rebuilt_from_numpy(
                torch.int64, np.asfortranarray(np.arange(6).reshape(2, 3)), False
            ),
            "scalar": rebuilt_from_numpy(torch.float64, np.array(2.5), False),
        },
        pickle_protocol=protocol,
    )
    loaded = torch.load(path, weights_only=False)
    found = opened(path)
    assert found.keys() == loaded.keys()
    for name, tensor in loaded.items():
        assert found[name].equal(tensor)
        assert found[name].dtype == tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert found[name].requires_grad == tensor.requires_grad


class Point(NamedTuple):
    x: Tensor
    y: int


class Settings(dict[str, Any]):
    pass


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_reached_wherever_they_are(tmp_path: Path, protocol: int) -> None:
    counter = iter(range(100))

    def tensor() -> Tensor:
        return torch.full((2,), float(next(counter)))

    settings = Settings(a=tensor())
    settings.extra = tensor()  # type: ignore[attr-defined]
    state_dict = collections.OrderedDict(w=tensor())
    state_dict._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    value = {
        "point": Point(tensor(), 1),
        "settings": settings,
        "state_dict": state_dict,
        "namespace": argparse.Namespace(lr=0.1, w=tensor()),
        "holder": Holder([tensor()]),
        "slotted": Slotted(tensor()),
        "deque": collections.deque([tensor()], maxlen=3),
        "defaultdict": collections.defaultdict(list, {"k": [tensor()]}),
        "when": datetime.datetime(2024, 1, 2),
        "storage": tensor().untyped_storage(),
        "model": nn.Sequential(nn.Linear(2, 1)),
    }
    found = opened(saved(tmp_path, value, pickle_protocol=protocol))
    linear = value["model"][0]  # type: ignore[index]
    assert list(found) == [
        "point.0",
        "settings.a",
        "settings.extra",
        "state_dict.w",
        "namespace.w",
        "holder.value.0",
        "slotted.value",
        "deque.0",
        "defaultdict.k.0",
        "storage",
        "model._modules.0._parameters.weight",
        "model._modules.0._parameters.bias",
    ]
    assert found["holder.value.0"].tolist() == [5, 5]
    assert found["model._modules.0._parameters.weight"].equal(linear.weight)
    assert found["model._modules.0._parameters.weight"].requires_grad


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_runs(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}"
    evil = [
        Evil(os.system, (command,)),
        Evil(builtins.eval, (f"open({str(witness)!r}, 'w')",)),
        Evil(builtins.exec, (f"open({str(witness)!r}, 'w')",)),
        Evil(subprocess.Popen, (command,), {"shell": True}),
        Evil(getattr, (Evil(__import__, ("os",)), "system")),
    ]
    path = saved(
        tmp_path,
        {"evil": evil, "w": torch.ones(1), "nested": {"k": Evil(list, (evil[0],))}},
        pickle_protocol=protocol,
    )
    assert list(opened(path)) == ["w"]
    assert not witness.exists()


def rewritten(path: str, old: bytes, new: bytes, record: str) -> None:
    """Replaces bytes of one record of the archive, of as many."""
    assert len(old) == len(new)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            assert old in data or not name.endswith(record)
            wanted = name.endswith(record)
            archive.writestr(name, data.replace(old, new) if wanted else data)


def int64s(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_kinds_are_leaves_of_a_checkpoint(tmp_path: Path) -> None:
    labelled = torch.ones(3).as_subclass(Labelled)
    labelled.label = torch.zeros(2)  # type: ignore[attr-defined]
    value: dict[str, Any] = {
        "sparse": sparse_matrix().to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(5)]),
        "meta": torch.empty(2, device="meta"),
        "conj": torch.tensor([1 + 2j]).conj(),
        "labelled": labelled,
        "array": np.arange(3),
    }
    with ckpt_streamer.open(saved(tmp_path, value), verify=True) as checkpoint:
        for name in ("sparse", "nested", "meta", "conj"):
            assert_same(checkpoint[name], value[name])
            assert_same(checkpoint.tensor(name), value[name])
        assert checkpoint["labelled"].equal(torch.ones(3))
        assert checkpoint.tensor("labelled.label").equal(torch.zeros(2))
        assert len(checkpoint) == 6
        assert {name for name, _ in checkpoint} == {
            *("sparse", "nested", "meta", "conj", "labelled", "labelled.label")
        }


def test_sparse_indices_outside_the_tensor(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        {"w": torch.sparse_coo_tensor(torch.tensor([[0, 3]]), [1.0, 2.0], (4,))},
    )
    rewritten(path, int64s(0, 3), int64s(0, 1 << 40), "data/0")
    with pytest.raises(
        ValueError, match=r"saved\.pt: has a sparse tensor that does not hold"
    ):
        opened(path)
    rewritten(path, int64s(0, 1 << 40), int64s(0, -1), "data/0")
    with pytest.raises(ValueError, match="expected valid parts"):
        opened(path)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_compressed_indices_outside_the_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.eye(3).to_sparse_csr()})
    rewritten(path, int64s(0, 1, 2, 3), int64s(0, 1, 2, 99), "data/0")
    with pytest.raises(
        ValueError, match=r"saved\.pt: has a sparse tensor that does not hold"
    ):
        opened(path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("bad", [-1, 1 << 40, (1 << 63) - 1])
def test_nested_parts_outside_the_buffer(tmp_path: Path, bad: int) -> None:
    path = saved(
        tmp_path, {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(5)])}
    )
    rewritten(path, int64s(2, 5), int64s(2, bad), "data/1")
    with pytest.raises(
        ValueError,
        match=r"saved\.pt: has a nested tensor whose part 1 is outside its buffer, "
        "expected it inside the 7 elements",
    ):
        opened(path)


def test_pickled_module_names_stay_data(tmp_path: Path) -> None:
    """A class that cannot be imported is no obstacle."""
    path = saved(tmp_path, {"w": Holder(torch.ones(2))})
    name = f"{Holder.__module__}\n".encode()
    rewritten(path, name, b"x" * (len(name) - 1) + b"\n", "data.pkl")
    with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):
        torch.load(path, weights_only=False)
    assert opened(path)["w.value"].tolist() == [1, 1]
