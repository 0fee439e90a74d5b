"""TorchScript archives, held against torch.jit.load.

TorchScript reads annotations as values, so they are not postponed here.
"""

import enum
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB
from torch import Tensor, nn
from torch.package.package_exporter import PackageExporter

import ckpt_streamer  # noqa: F401 - registers the ops

OPEN = torch.ops.ckpt_streamer.open


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Layer(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.register_buffer("kept", torch.randn(4, generator=generator))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.plain = torch.arange(seed)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.plain.sum()


class Model(nn.Module):
    tensors: list[Tensor]
    named: dict[str, Tensor]
    nothing: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.first = Layer(2)
        self.second = Layer(3)
        self.second.weight = self.first.weight
        self.again = self.first
        self.stack = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.frozen = nn.Parameter(torch.randn(2).bfloat16(), requires_grad=False)
        self.register_buffer("turned", torch.randn(3, 4).t())
        self.register_buffer("part", torch.arange(10)[3:7])
        self.tensors = [torch.zeros(3), torch.ones(2)]
        self.named = {"k": torch.full((2,), 5.0), "l": torch.ones(1)}
        self.pair = (torch.arange(3.0), 3)
        self.color = Color.BLUE
        self.number = 5
        self.nothing = None
        self.device = torch.device("cpu")
        self.complex = 1 + 2j

    def forward(self, x: Tensor) -> Tensor:
        if self.color == Color.RED:
            return x
        y: Tensor = self.stack(self.first(x) + self.second(x))
        return y + self.tensors[0]


def read_all(path: Path) -> dict[str, Tensor]:
    handle = OPEN(str(path), 64 * MIB)
    items = {}
    while handle.has_next():
        name, tensor = handle.next()
        assert name not in items
        items[name] = tensor
    return items


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, expected in theirs.items():
        tensor = ours[name]
        assert tensor.dtype == expected.dtype
        assert tensor.shape == expected.shape
        assert tensor.stride() == expected.stride()
        assert tensor.storage_offset() == expected.storage_offset()
        assert torch.equal(tensor, expected)


@pytest.fixture
def scripted() -> Any:
    torch.manual_seed(1)
    return torch.jit.script(Model().eval())


def save(module: Any, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lite Interpreter is deprecated")
        if path.suffix == ".ptl":
            module._save_for_lite_interpreter(str(path), **options)
        else:
            torch.jit.save(module, path)
    return path


each_kind = pytest.mark.parametrize("suffix", [".pt", ".ptl"])


@each_kind
def test_a_module_is_its_tensors(tmp_path: Path, scripted: Any, suffix: str) -> None:
    path = save(scripted, tmp_path / f"model{suffix}")
    loaded = torch.jit.load(path)
    state = loaded.state_dict()
    ours = read_all(path)
    assert_same(ours, state)
    assert_same(ours, dict(loaded.named_buffers(remove_duplicate=False)))
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        assert ours[name].requires_grad == parameter.requires_grad
    # What is no part of the state is there all the same.
    others = {
        "first.passing": torch.ones(2),
        "second.passing": torch.ones(2),
        "again.passing": torch.ones(2),
        "first.plain": torch.arange(2),
        "second.plain": torch.arange(3),
        "again.plain": torch.arange(2),
        "tensors.0": torch.zeros(3),
        "tensors.1": torch.ones(2),
        "named.k": torch.full((2,), 5.0),
        "named.l": torch.ones(1),
        "pair.0": torch.arange(3.0),
    }
    assert_same(ours, others)
    assert ours.keys() == state.keys() | others.keys()


def test_sharing_is_kept(tmp_path: Path, scripted: Any) -> None:
    ours = read_all(save(scripted, tmp_path / "model.pt"))
    address = ours["first.weight"].data_ptr()
    assert ours["second.weight"].data_ptr() == address
    assert ours["again.weight"].data_ptr() == address


@each_kind
def test_constants(tmp_path: Path, scripted: Any, suffix: str) -> None:
    path = save(torch.jit.freeze(scripted), tmp_path / f"frozen{suffix}")
    constants = torch.jit.load(path).code_with_constants[1].const_mapping
    ours = read_all(path)
    assert len(ours) > 5
    assert_same(ours, {f"constants.{name[1:]}": constants[name] for name in constants})
    assert ours.keys() == {f"constants.{i}" for i in range(len(ours))}


def test_a_traced_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    path = save(torch.jit.trace(model, torch.ones(1, 3)), tmp_path / "traced.pt")
    ours = read_all(path)
    assert_same(ours, torch.jit.load(path).state_dict())
    assert ours.keys() == model.state_dict().keys()


def test_constants_of_a_traced_function(tmp_path: Path) -> None:
    table = torch.randn(5, 2)

    class Lookup(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return table[x]

    path = save(torch.jit.trace(Lookup(), torch.tensor([1])), tmp_path / "traced.pt")
    ours = read_all(path)
    assert list(ours) == ["constants.0"]
    assert torch.equal(ours["constants.0"], table)


class Holder(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)

    def forward(self, x: int) -> int:
        return x


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex32,
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.float4_e2m1fn_x2,
    ],
    ids=str,
)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ComplexHalf support")
        tensor = torch.tensor([1, 0] * 16, dtype=torch.uint8).view(dtype)
        path = save(torch.jit.script(Holder(tensor)), tmp_path / "held.pt")
        ours = read_all(path)["held"]
    assert ours.dtype == dtype
    assert torch.equal(ours.view(torch.uint8), tensor.view(torch.uint8))


def test_scripts_read_archives(tmp_path: Path, scripted: Any) -> None:
    path = save(scripted, tmp_path / "model.pt")

    @torch.jit.script
    def total(path: str) -> float:
        handle = torch.ops.ckpt_streamer.open(path, 1048576)
        result = 0.0
        while handle.has_next():
            name, tensor = handle.next()
            if name == "stack.0.weight":
                result += float(tensor.detach().sum())
        return result

    assert total(str(path)) == float(scripted.stack[0].weight.detach().sum())


def test_flatbuffers_are_named(tmp_path: Path) -> None:
    module = torch.jit.script(nn.Linear(2, 2))
    path = save(module, tmp_path / "model.ptl", _use_flatbuffer=True)
    with pytest.raises(NotImplementedError) as error:
        OPEN(str(path), MIB)
    assert str(error.value).startswith(
        f"{path}: is a PyTorch mobile flatbuffer, which is not read; expected a "
        "torch.save, TorchScript or safetensors file"
    )


def test_packages_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings(), PackageExporter(path) as exporter:
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        exporter.extern("torch.**")
        exporter.save_pickle("model", "data.pkl", nn.Linear(2, 2))
    with pytest.raises(NotImplementedError) as error:
        OPEN(str(path), MIB)
    assert str(error.value).startswith(
        f"{path}: is a torch.package archive, which is not read; expected a "
        "torch.save, TorchScript or safetensors file"
    )


def test_exported_programs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    with pytest.raises(NotImplementedError) as error:
        OPEN(str(path), MIB)
    assert str(error.value).startswith(
        f"{path}: is a torch.export archive (.pt2), which is not read; expected a "
        "torch.save, TorchScript or safetensors file"
    )
