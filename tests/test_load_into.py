"""Loading a file into tensors that are there already, eager and scripted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor, nn

import ckpt_streamer

load_into = torch.ops.ckpt_streamer.load_into


@torch.jit.script
def scripted_load_into(
    parameters: dict[str, Tensor], path: str, memory_limit_bytes: int
) -> tuple[list[str], list[str]]:
    missing, unexpected = torch.ops.ckpt_streamer.load_into(
        parameters, path, memory_limit_bytes
    )
    return missing, unexpected


@torch.jit.script
def load_and_sum(path: str, memory_limit_bytes: int) -> Tensor:
    a = torch.zeros(2)
    torch.ops.ckpt_streamer.load_into({"a": a}, path, memory_limit_bytes)
    return a.sum()


@torch.jit.script
def first_names_of_two_streams(path: str) -> tuple[str, str]:
    one = torch.ops.ckpt_streamer.open(path, 1000000)
    other = torch.ops.ckpt_streamer.open(path, 1000000)
    return one.next()[0], other.next()[0]


def zeros_like(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("load", [load_into, scripted_load_into])
def test_all_is_loaded_within_the_limit(load: object, large_checkpoint: Path) -> None:
    assert callable(load)
    parameters = {f"w{i}": torch.zeros(256, 1024) for i in range(64)}
    assert load(parameters, str(large_checkpoint), 8 * MIB) == ([], [])
    assert resident_of(large_checkpoint).clean_bytes == 0
    for name, tensor in load_mapped(large_checkpoint).items():
        assert torch.equal(parameters[name], tensor)
        assert parameters[name]._version == 1


def test_a_tensor_larger_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    torch.save({"w": torch.arange(8 * MIB, dtype=torch.int32)}, path)
    parameters = {"w": torch.zeros(8 * MIB, dtype=torch.float64)}
    # Looked at whenever memory is given back: at most the limit.
    load_into(parameters, str(path), 4 * MIB)
    assert torch.equal(parameters["w"], torch.arange(8 * MIB, dtype=torch.float64))
    assert resident_of(path).clean_bytes == 0


def test_missing_and_unexpected_names_in_order(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({name: torch.ones(2) for name in ("z", "b", "y", "a")}, path)
    parameters = {name: torch.zeros(2) for name in ("d", "b", "c")}
    assert load_into(parameters, str(path), MIB) == (["d", "c"], ["z", "y", "a"])
    assert parameters["b"].tolist() == [1, 1]
    assert parameters["c"].tolist() == [0, 0]


def test_strict(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({f"u{i}": torch.ones(2) for i in range(7)} | {"a": torch.ones(2)}, path)
    parameters = {"a": torch.zeros(2), "b": torch.zeros(2)}
    text = (
        f"{path}: missing 'b', unexpected 'u0', 'u1', 'u2', 'u3', 'u4' and 2 others, "
        "expected a tensor for each parameter, and no others"
    )
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        load_into(parameters, str(path), MIB, strict=True)
    assert parameters["a"].tolist() == [0, 0]


def test_the_prefix_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    state = {"0.weight": torch.ones(2), "0.bias": torch.ones(2)}
    optimizer = {"state": {"0": {"weight": torch.zeros(2)}}}
    torch.save({"model": state, "optimizer": optimizer}, path)
    parameters = zeros_like(state)
    assert load_into(parameters, str(path), MIB) == ([], [])
    assert torch.equal(parameters["0.weight"], torch.ones(2))
    # Given, the other one.
    assert load_into(parameters, str(path), MIB, prefix="optimizer.state.") == (
        ["0.bias"],
        [],
    )
    assert torch.equal(parameters["0.weight"], torch.zeros(2))


def test_the_outermost_of_equally_good_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"ema": {"w": torch.zeros(1)}, "w": torch.ones(1)}, path)
    parameters = {"w": torch.full((1,), 5.0)}
    assert load_into(parameters, str(path), MIB) == ([], ["ema.w"])
    assert parameters["w"].item() == 1


def test_equally_good_prefixes_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"ema": {"w": torch.zeros(1)}, "model": {"w": torch.ones(1)}}, path)
    text = (
        f"{path}: has 1 of the 2 names behind each of 'ema.', 'model.', expected one "
        "prefix that has the most; say which by prefix"
    )
    parameters = {"w": torch.zeros(1), "v": torch.zeros(1)}
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        load_into(parameters, str(path), MIB)


def test_shapes_are_checked_before_anything_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"s": {"a": torch.ones(2), "b": torch.ones(2, 3)}}, path)
    parameters = {"a": torch.zeros(2), "b": torch.zeros(3, 2)}
    text = (
        f"{path}: 's.b' is of shape [2, 3], expected [3, 2], the shape of its parameter"
    )
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        load_into(parameters, str(path), MIB)
    assert parameters["a"].tolist() == [0, 0]


def test_one_element_for_a_scalar(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(1)}, path)
    parameters = {"a": torch.zeros(())}
    load_into(parameters, str(path), MIB)
    assert parameters["a"].item() == 1


def test_a_parameter_on_the_meta_device(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(1)}, path)
    text = (
        "parameter 'a' is on the meta device, expected one with memory to load "
        f"{path} into"
    )
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        load_into({"a": torch.zeros(1, device="meta")}, str(path), MIB)


def test_a_name_that_several_tensors_have(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, path)
    text = (
        f"{path}: has 2 tensors of the name 'a.b', ['a.b'] and ['a']['b'], "
        "expected the name of one"
    )
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        load_into({"a.b": torch.zeros(1)}, str(path), MIB)


def test_what_copy_refuses_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(3)}, path)
    expanded = torch.zeros(1).expand(3)
    with pytest.raises(RuntimeError, match="single memory location") as raised:
        load_into({"a": expanded}, str(path), MIB)
    assert "(while 'a' was loaded)" in str(raised.value)


def test_several_files(tmp_path: Path) -> None:
    paths = [str(tmp_path / "1.pt"), str(tmp_path / "2.pt")]
    torch.save({"a": torch.ones(1)}, paths[0])
    torch.save({"b": torch.full((1,), 2.0)}, paths[1])
    parameters = {"a": torch.zeros(1), "b": torch.zeros(1)}
    assert load_into(parameters, paths, MIB) == ([], [])
    assert [parameters["a"].item(), parameters["b"].item()] == [1, 2]


def test_parameters_that_require_grad(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    model = nn.Linear(2, 2)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    before = model.weight._version
    assert load_into(dict(model.named_parameters()), str(path), MIB) == ([], [])
    assert model.weight._version == before + 1
    assert model.weight.is_leaf
    assert torch.equal(model.weight, torch.load(path)["weight"])


def test_inference_mode(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(1)}, path)
    outside = torch.zeros(1)
    with torch.inference_mode():
        inside = torch.zeros(1)
        load_into({"a": inside}, str(path), MIB)
        load_into({"a": outside}, str(path), MIB)
        assert inside.item() == outside.item() == 1
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        load_into({"a": inside}, str(path), MIB)


def test_scripted_calls_stay_where_they_are(tmp_path: Path) -> None:
    path = str(tmp_path / "m.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, path)
    for _ in range(3):  # the optimised graph as well
        assert load_and_sum(path, MIB).item() == 2
        assert first_names_of_two_streams(path) == ("a", "a")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_is_not_positive(limit: int) -> None:
    text = f"memory_limit_bytes is {limit}, expected a positive number of bytes"
    with pytest.raises(ValueError, match=f"^{text}$"):
        load_into({}, "none.pt", limit)


# Modules with a method that loads


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.named = nn.ModuleDict({"a-b": nn.Linear(4, 4, bias=False)})
        self.scale = nn.Parameter(torch.ones(()))
        self.shared = self.layers[0]
        self.rest = nn.ParameterList([nn.Parameter(torch.zeros(4))])
        self.register_buffer("skipped", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        scaled: Tensor = x * self.scale + self.rest[0]
        return scaled


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt"
    source = Model()
    with torch.no_grad():
        for value in source.state_dict().values():
            value.add_(torch.rand_like(value, dtype=torch.float32).to(value.dtype))
    torch.save({"state_dict": source.state_dict(), "epoch": torch.tensor(3)}, path)
    return path


def assert_loaded(module: nn.Module, path: Path) -> None:
    state = module.state_dict()
    for name, tensor in torch.load(path)["state_dict"].items():
        assert torch.equal(state[name], tensor), name


def test_a_module_that_is_then_scripted(checkpoint: Path, tmp_path: Path) -> None:
    model = ckpt_streamer.add_load_method(Model())
    scripted = torch.jit.script(model)
    assert scripted.load(str(checkpoint), MIB) == ([], [])
    assert_loaded(scripted, checkpoint)
    scripted.save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    with torch.no_grad():
        loaded.scale.fill_(9)
    assert loaded.load(str(checkpoint), MIB) == ([], [])
    assert_loaded(loaded, checkpoint)
    # Not scripted, the same.
    again = ckpt_streamer.add_load_method(Model())
    assert isinstance(again, Model)
    assert type(again).__name__ == "Model"
    assert again.load(str(checkpoint), MIB) == ([], [])  # type: ignore[operator]
    assert_loaded(again, checkpoint)


def test_one_of_two_modules_of_a_class(checkpoint: Path) -> None:
    plain = torch.jit.script(Model())
    equipped = torch.jit.script(ckpt_streamer.add_load_method(Model()))
    assert not hasattr(plain, "load")
    assert not hasattr(torch.jit.script(Model()), "load")
    equipped.load(str(checkpoint), MIB)
    assert_loaded(equipped, checkpoint)


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_a_module_that_is_scripted_already(how: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    path = tmp_path / "state.pt"
    torch.save({"model": {k: v + 1 for k, v in model.state_dict().items()}}, path)
    module = (
        torch.jit.script(model)
        if how == "scripted"
        else torch.jit.trace(model, torch.zeros(1, 4))
    )
    equipped = ckpt_streamer.add_load_method(module, "restore", prefix="model.")
    assert equipped is module
    equipped.save(tmp_path / "module.pt")
    loaded = torch.jit.load(tmp_path / "module.pt")
    assert loaded.restore(str(path), MIB) == ([], [])
    for name, value in torch.load(path)["model"].items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_method_that_is_strict_or_not(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"weight": torch.ones(2, 2), "scale": torch.ones(1)}, path)
    strict = torch.jit.script(ckpt_streamer.add_load_method(nn.Linear(2, 2)))
    text = (
        f"{path}: missing 'bias', unexpected 'scale', expected a tensor for each "
        "parameter, and no others"
    )
    with pytest.raises(Exception, match=re.escape(text)):
        strict.load(str(path), MIB)
    lenient = ckpt_streamer.add_load_method(nn.Linear(2, 2), strict=False)
    assert torch.jit.script(lenient).load(str(path), MIB) == (["bias"], ["scale"])


def test_a_name_that_is_taken() -> None:
    with pytest.raises(
        ValueError, match=r"^Linear has an attribute 'forward' already$"
    ):
        ckpt_streamer.add_load_method(nn.Linear(1, 1), "forward")
    with pytest.raises(ValueError, match=r"^name is 'a b', expected an identifier$"):
        ckpt_streamer.add_load_method(nn.Linear(1, 1), "a b")
