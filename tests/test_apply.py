"""apply_state_dict(): what load_state_dict does, in bounded memory."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict, UserDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ckpt_streamer import apply_state_dict

Load = Callable[..., _IncompatibleKeys]


def identity(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
    return tensor


def torch_load(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    converter: object = None,  # noqa: ARG001
    strict: bool = True,
    assign: bool = False,
) -> _IncompatibleKeys:
    keys = model.load_state_dict(state_dict, strict=strict, assign=assign)
    assert isinstance(keys, _IncompatibleKeys)
    return keys


@dataclass
class Outcome:
    """How one load ended: the keys that it returned or what it raised."""

    keys: _IncompatibleKeys | None
    error: type[BaseException] | None
    text: str


def outcome_of(load: Load, *arguments: Any, **options: Any) -> Outcome:
    try:
        keys = load(*arguments, **options)
    except Exception as error:
        return Outcome(None, type(error), str(error))
    assert type(keys) is _IncompatibleKeys
    return Outcome(keys, None, "")


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def assert_same_state(
    left: nn.Module, right: nn.Module, without_values: Collection[str] = ()
) -> None:
    ones, others = tensors_of(left), tensors_of(right)
    assert [name for name, _ in ones] == [name for name, _ in others]
    for (name, one), (_, other) in zip(ones, others, strict=True):
        assert type(one) is type(other), name
        assert one.requires_grad == other.requires_grad, name
        if not is_lazy(one):
            assert one.dtype == other.dtype, name
            assert one.shape == other.shape, name
            assert name in without_values or torch.equal(one, other), name

    def ties(tensors: list[tuple[str, Tensor]]) -> list[int]:
        ids = [id(tensor) for _, tensor in tensors]
        return [ids.index(identifier) for identifier in ids]

    assert ties(ones) == ties(others)


def hook_counts(model: nn.Module) -> list[tuple[int, int]]:
    return [
        (len(m._load_state_dict_pre_hooks), len(m._load_state_dict_post_hooks))
        for m in model.modules()
    ]


def assert_loads_as_torch(
    model: nn.Module, state_dict: Mapping[str, Any], **options: Any
) -> nn.Module:
    """Load into copies of the model both ways; return the one loaded here."""
    ours, twin = copy.deepcopy(model), copy.deepcopy(model)
    outcome = outcome_of(apply_state_dict, ours, copy.deepcopy(state_dict), **options)
    assert outcome == outcome_of(torch_load, twin, copy.deepcopy(state_dict), **options)
    assert_same_state(ours, twin)
    assert hook_counts(ours) == hook_counts(model)
    return ours


def assert_refuses_as_torch(
    model: nn.Module, state_dict: Mapping[str, Any], **options: Any
) -> str:
    """Both raise the same; ours changed nothing. Return the text."""
    ours, twin = copy.deepcopy(model), copy.deepcopy(model)
    outcome = outcome_of(apply_state_dict, ours, copy.deepcopy(state_dict), **options)
    assert outcome.error is RuntimeError
    assert outcome == outcome_of(torch_load, twin, copy.deepcopy(state_dict), **options)
    assert_same_state(ours, model)
    return outcome.text


def shifted(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Another state_dict of the same form and metadata, all values changed."""
    result = OrderedDict(
        (key, value + 1 if isinstance(value, Tensor) else value)
        for key, value in state_dict.items()
    )
    if hasattr(state_dict, "_metadata"):
        result._metadata = copy.deepcopy(state_dict._metadata)  # type: ignore[attr-defined]
    return result


class Holder(nn.Module):
    """One of each thing that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 3), 0.5))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.register_parameter("absent", None)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("gone", None)
        self.register_buffer("scratch", torch.zeros(4), persistent=False)


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.extra: Any = "initial"

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Renaming(nn.Module):
    """Takes its weight under an older name as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *rest: Any, **options: Any
    ) -> None:
        if prefix + "kernel" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)


# What is loaded, and what is returned


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("converter", [None, identity])
@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 3),
        nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())),
        nn.MultiheadAttention(4, 2),
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False),
        nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
        nn.LSTM(2, 3, num_layers=2),
        nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        nn.ParameterDict({"a": torch.ones(2), "b": torch.zeros(3)}),
        nn.ModuleDict({"x": Holder(), "y": ExtraState(), "z": Renaming()}),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)),
        nn.Identity(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_load_as_with_torch(
    model: nn.Module, converter: Any, assign: bool
) -> None:
    state_dict = shifted(model.state_dict())
    ours = assert_loads_as_torch(model, state_dict, converter=converter, assign=assign)
    for key, value in ours.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, state_dict[key])


def test_root_level_parameters() -> None:
    model = nn.Linear(2, 3)
    keys = apply_state_dict(
        model, {"weight": torch.full((3, 2), 5.0), "bias": torch.arange(3.0)}
    )
    assert str(keys) == "<All keys matched successfully>"
    assert (model.weight == 5).all()
    assert model.bias.tolist() == [0, 1, 2]


def test_not_strict_returns_the_keys() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    state_dict: dict[str, Any] = {
        "0.bias": torch.arange(3.0),
        "stray": torch.ones(1),
        "0.more.deep": "no tensor",
        "2.weight": torch.ones(1),
        "_extra_state": 1,
    }
    ours = assert_loads_as_torch(model, state_dict, strict=False)
    assert_loads_as_torch(model, state_dict, strict=False, converter=identity)
    keys = apply_state_dict(ours, state_dict, strict=False)
    assert keys.missing_keys == ["0.weight", "1.weight", "1.bias"]
    assert keys.unexpected_keys == ["_extra_state", "stray", "2.weight", "0.more.deep"]
    assert ours.get_parameter("0.bias").tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_any_mapping_is_taken_and_left_alone(kind: Any) -> None:
    model = nn.Sequential(Renaming(), nn.BatchNorm1d(2, affine=False))
    state_dict = kind(
        {
            "0.kernel": torch.arange(3.0),
            "1.running_mean": torch.ones(2),
            "1.running_var": torch.zeros(2),
        }
    )
    before = dict(state_dict)
    apply_state_dict(model, state_dict, converter=identity)
    assert dict(state_dict) == before
    assert model.get_parameter("0.weight").tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [None, [("weight", torch.ones(1))], "x.pt", 5])
def test_a_state_dict_that_is_no_mapping(bad: Any) -> None:
    model = nn.Linear(1, 1)
    outcome = outcome_of(apply_state_dict, model, bad)
    assert outcome.error is TypeError
    assert outcome == outcome_of(torch_load, model, bad)


def test_every_kind_of_member() -> None:
    model = Holder()
    state_dict = shifted(model.state_dict())
    assert set(state_dict) == {"weight", "frozen", "scalar", "steps"}
    ours = assert_loads_as_torch(model, state_dict)
    assert isinstance(ours, Holder)
    assert ours.steps == 4
    # A None parameter and a non-persistent buffer take no key.
    for key in ("absent", "gone", "scratch"):
        text = assert_refuses_as_torch(model, {**state_dict, key: torch.ones(4)})
        assert text.endswith(f'\n\tUnexpected key(s) in state_dict: "{key}". ')


@pytest.mark.parametrize("assign", [False, True])
def test_a_scalar_from_a_tensor_of_one_element(assign: bool) -> None:
    model = Holder()
    state_dict = {**model.state_dict(), "scalar": torch.tensor([7.0])}
    ours = assert_loads_as_torch(model, state_dict, assign=assign)
    assert isinstance(ours, Holder)
    assert ours.scalar.shape == ()
    assert ours.scalar == 7
    assert_refuses_as_torch(model, {**state_dict, "scalar": torch.ones(1, 1)})
    assert_refuses_as_torch(model, {**state_dict, "frozen": torch.tensor(1.0)})


def test_dtypes_are_converted_on_copying() -> None:
    model = nn.Linear(2, 2)
    state_dict = {"weight": torch.ones(2, 2).double(), "bias": torch.ones(2).half()}
    ours = assert_loads_as_torch(model, state_dict)
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    ours = assert_loads_as_torch(model, state_dict, assign=True)
    assert [p.dtype for p in ours.parameters()] == [torch.float64, torch.float16]


def test_assign_puts_the_tensors_themselves_into_the_model() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), Holder())
    state_dict = shifted(model.state_dict())
    state_dict["0.bias"] = nn.Parameter(state_dict["0.bias"], requires_grad=False)
    apply_state_dict(model, state_dict, assign=True)
    norm = model[0]
    running_mean = model.get_buffer("0.running_mean")
    assert type(running_mean) is Tensor
    assert set(norm._buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    assert running_mean is state_dict["0.running_mean"]
    bias, weight = model.get_parameter("0.bias"), model.get_parameter("0.weight")
    assert bias is state_dict["0.bias"]
    assert bias.requires_grad
    assert weight.data_ptr() == state_dict["0.weight"].data_ptr()
    assert not model.get_parameter("1.frozen").requires_grad


def test_assigned_views_of_the_file_stay_valid(large_checkpoint: Path) -> None:
    state_dict = load_flat(large_checkpoint)
    model = flat_model()
    apply_state_dict(model, state_dict, assign=True, memory_limit_mb=8)
    assert resident_of(large_checkpoint).clean_bytes == 0
    for i in range(COUNT):
        weight = model.get_parameter(f"w{i}")
        assert weight.data_ptr() == state_dict[f"w{i}"].data_ptr()
        assert (weight == i).all()


def test_assign_fills_a_meta_model() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state_dict = dict(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict())
    for converter in (None, identity):
        ours = copy.deepcopy(model)
        apply_state_dict(ours, state_dict, converter, assign=True)
        assert not any(tensor.is_meta for _, tensor in tensors_of(ours))
    with pytest.warns(UserWarning, match="copying from a non-meta parameter"):
        apply_state_dict(model, state_dict)


def test_swapping_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for converter in (None, identity):
            state_dict = shifted(model.state_dict())
            assert_loads_as_torch(model, state_dict, converter=converter)
            assert_loads_as_torch(model, state_dict, converter=converter, assign=True)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("assign", [False, True])
def test_tied_parameters_and_shared_modules(assign: bool) -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), shared, shared)
    model[1].weight = model.get_parameter("0.weight")
    state_dict = shifted(model.state_dict())
    state_dict["1.weight"] = torch.full((2, 2), 9.0)  # the later one wins
    ours = assert_loads_as_torch(model, state_dict, assign=assign)
    assert (ours.get_parameter("1.weight") == 9).all()
    text = assert_refuses_as_torch(model, {"0.weight": torch.ones(2, 2)})
    assert '"2.weight", "2.bias", "3.weight", "3.bias". ' in text


@pytest.mark.parametrize("converter", [None, identity])
def test_lazy_modules(converter: Any) -> None:
    def lazy() -> nn.Module:  # a lazy buffer cannot be copied
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())

    def eager() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    state_dict = eager().state_dict()
    ours, twin = lazy(), lazy()
    apply_state_dict(ours, state_dict, converter)
    twin.load_state_dict(state_dict)
    assert_same_state(ours, twin)
    assert ours.get_parameter("0.weight").shape == (3, 2)
    # From a lazy one: into another, nothing happens; an eager one refuses it.
    for make in (lazy, eager):
        outcome = outcome_of(apply_state_dict, make(), lazy().state_dict(), converter)
        assert outcome == outcome_of(torch_load, make(), lazy().state_dict())
        assert (outcome.error is None) == (make is lazy)


def test_scripted_modules() -> None:
    def scripted() -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        result: nn.Module = torch.jit.script(module)
        return result

    state_dict = shifted(scripted().state_dict())
    damaged: list[dict[str, Any]] = [
        dict(state_dict),
        {**state_dict, "more": torch.ones(1)},
        {**state_dict, "0.bias": torch.ones(1)},
    ]
    for entries in damaged:
        ours, twin = scripted(), scripted()
        assert outcome_of(apply_state_dict, ours, entries) == outcome_of(
            torch_load, twin, entries
        )
        assert_same_state(ours, scripted() if entries is not damaged[0] else twin)


# Batch norms without num_batches_tracked, and extra state


def test_an_old_batch_norm_state_dict() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model.get_buffer("0.num_batches_tracked").add_(5)
    state_dict = shifted(model.state_dict())
    del state_dict["0.num_batches_tracked"]
    text = assert_refuses_as_torch(model, state_dict)  # its metadata says version 2
    assert 'Missing key(s) in state_dict: "0.num_batches_tracked". ' in text
    state_dict._metadata["0"]["version"] = 1  # type: ignore[attr-defined]
    for old in (state_dict, dict(state_dict)):
        ours = assert_loads_as_torch(model, old)
        assert ours.get_buffer("0.num_batches_tracked") == 5
        assert_loads_as_torch(model, old, assign=True)
        assert_refuses_as_torch(model, {**old, "stray": torch.ones(1)})


def test_a_batch_norm_that_was_told_to_track_later() -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    model = nn.Sequential(nn.Linear(2, 2), norm)
    state_dict = shifted(model.state_dict())
    norm.track_running_stats = True  # it has no buffers all the same
    text = assert_refuses_as_torch(model, dict(state_dict))
    assert 'Unexpected key(s) in state_dict: "1.num_batches_tracked". ' in text


def test_the_converter_is_not_given_what_batch_norm_fills_in() -> None:
    model = nn.BatchNorm1d(2)
    state_dict = {k: v for k, v in model.state_dict().items() if v.dim() == 1}
    given: list[Tensor] = []

    def record(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        given.append(tensor)
        return tensor

    apply_state_dict(model, state_dict, record)
    assert {id(tensor) for tensor in given} == {id(v) for v in state_dict.values()}
    assert len(given) == 4


def test_extra_state() -> None:
    model = nn.Sequential(ExtraState(), ExtraState(), nn.Linear(1, 1))
    state_dict = shifted(model.state_dict())
    state_dict["0._extra_state"] = {"table": torch.arange(4), "step": 7}
    apply_state_dict(model, state_dict, identity)
    assert model[0].extra is state_dict["0._extra_state"]
    assert model[1].extra == "initial"
    del state_dict["1._extra_state"]
    state_dict["2._extra_state"] = 1
    state_dict["0._extra_state"] = "other"
    text = assert_refuses_as_torch(model, state_dict)
    assert text == (
        "Error(s) in loading state_dict for Sequential:\n"
        '\tMissing key(s) in state_dict: "1._extra_state". \n'
        '\tUnexpected key(s) in state_dict: "2._extra_state". '
    )
    with pytest.raises(RuntimeError):
        apply_state_dict(model, state_dict)
    assert model[0].extra != "other"


# Errors


def test_missing_and_unexpected_keys_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2)))
    state_dict = shifted(model.state_dict())
    del state_dict["1.0.bias"]
    state_dict["1.0.more"] = torch.ones(1)
    state_dict["0.weight.deep"] = torch.ones(1)
    state_dict["2"] = torch.ones(1)
    assert assert_refuses_as_torch(model, state_dict) == (
        "Error(s) in loading state_dict for Sequential:\n"
        '\tMissing key(s) in state_dict: "1.0.bias". \n'
        '\tUnexpected key(s) in state_dict: "2", "0.weight.deep", "1.0.more". '
    )
    ours = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="Missing key"):
        apply_state_dict(ours, state_dict, lambda *_: pytest.fail("converted"))
    assert_same_state(ours, model)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_wrong_shapes_change_nothing(strict: bool, assign: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state_dict = shifted(model.state_dict())
    state_dict["0.bias"] = torch.ones(3, 1)
    state_dict["1.running_var"] = torch.tensor(1.0)
    text = assert_refuses_as_torch(model, state_dict, strict=strict, assign=assign)
    assert text == (
        "Error(s) in loading state_dict for Sequential:\n"
        "\tsize mismatch for 0.bias: copying a param with shape torch.Size([3, 1]) "
        "from checkpoint, the shape in current model is torch.Size([3]).\n"
        "\tsize mismatch for 1.running_var: copying a param with shape torch.Size([]) "
        "from checkpoint, the shape in current model is torch.Size([3])."
    )


@pytest.mark.parametrize("value", [None, 1.5, "text", [1.0], {"a": torch.ones(1)}])
def test_entries_that_are_no_tensors_change_nothing(value: Any) -> None:
    model = nn.Linear(2, 3)
    text = assert_refuses_as_torch(
        model, {"weight": torch.ones(3, 2), "bias": value}, strict=False
    )
    assert text == (
        "Error(s) in loading state_dict for Linear:\n"
        '\tWhile copying the parameter named "bias", expected torch.Tensor or '
        f"Tensor-like object from checkpoint but received {type(value)}"
    )


def test_all_kinds_of_errors_in_one_text() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))
    state_dict = {"1.weight": torch.ones(1), "1.bias": None, "stray": torch.ones(1)}
    text = assert_refuses_as_torch(model, state_dict)
    assert [line.split()[0] for line in text.split("\n\t")[1:]] == [
        "Missing",
        "Unexpected",
        "size",
        "While",
    ]


def test_what_cannot_be_copied() -> None:
    model = nn.Linear(2, 3)
    state_dict = {"weight": torch.empty(3, 2, device="meta"), "bias": torch.ones(3)}
    ours, twin = copy.deepcopy(model), copy.deepcopy(model)
    outcome = outcome_of(apply_state_dict, ours, state_dict)
    assert outcome == outcome_of(torch_load, twin, state_dict)
    assert "an exception occurred : (" in outcome.text
    assert_same_state(ours, twin)


def test_keys_that_are_no_text() -> None:
    model = nn.Linear(2, 3)
    state_dict: dict[Any, Any] = {**shifted(model.state_dict()), 5: torch.ones(1)}
    ours = copy.deepcopy(model)
    outcome = outcome_of(apply_state_dict, ours, state_dict)
    assert outcome == outcome_of(torch_load, copy.deepcopy(model), state_dict)
    assert_same_state(ours, model)


# Hooks and overrides


def add_hooks(model: Any, pre_hook: Any = None, post_hook: Any = None) -> None:
    if pre_hook is not None:
        model.register_load_state_dict_pre_hook(pre_hook)
    if post_hook is not None:
        model.register_load_state_dict_post_hook(post_hook)


class Recording(nn.Module):
    """Notes every call that a load makes to it."""

    calls: list[tuple[str, str]]

    def __init__(self, name: str, calls: list[tuple[str, str]]) -> None:
        super().__init__()
        self.name = name
        self.calls = calls
        self.weight = nn.Parameter(torch.ones(2))
        add_hooks(self, self.note_pre_hook, Recording.note_post_hook)

    def note_pre_hook(self, _module: nn.Module, entries: Any, *_: Any) -> None:
        self.calls.append((f"pre {type(entries).__name__}", self.name))

    @staticmethod
    def note_post_hook(module: nn.Module, _keys: _IncompatibleKeys) -> None:
        assert isinstance(module, Recording)
        module.calls.append(("post", module.name))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *rest: Any, **options: Any
    ) -> None:
        self.calls.append(("load", f"{self.name} {list(state_dict)} {rest[1]}"))
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)
        self.calls.append(("loaded", self.name))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("converter", [None, identity])
def test_calls_come_in_torchs_order(converter: Any, strict: bool) -> None:
    recorded: list[list[tuple[str, str]]] = []
    for load in (apply_state_dict, torch_load):
        calls: list[tuple[str, str]] = []
        root = Recording("root", calls)
        for name in ("b", "a"):
            child = Recording(name, calls)
            child.add_module("leaf", Recording(f"{name}.leaf", calls))
            root.add_module(name, child)
        root.add_module("none", None)
        load(root, shifted(root.state_dict()), converter=converter, strict=strict)
        recorded.append(calls)
    assert recorded[0] == recorded[1]
    assert len(recorded[0]) == 20


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("converter", [None, identity])
def test_hooks_may_change_the_entries_and_the_keys(
    converter: Any, assign: bool
) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3, bias=False), Renaming())

    def split(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        fused = entries.pop(prefix + "fused")
        entries[prefix + "0.weight"], entries[prefix + "1.weight"] = (
            fused[:, :2],
            fused[:, 2:],
        )

    def forgive(_module: nn.Module, keys: _IncompatibleKeys) -> None:
        keys.missing_keys.clear()

    model.register_load_state_dict_pre_hook(split)
    model.register_load_state_dict_post_hook(forgive)
    state_dict = {"fused": torch.arange(15.0).view(3, 5), "2.kernel": torch.zeros(3)}
    ours = assert_loads_as_torch(model, state_dict, converter=converter, assign=assign)
    assert ours.get_parameter("0.weight").tolist() == [[0, 1], [5, 6], [10, 11]]


def test_with_hooks_what_can_be_loaded_is_loaded() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[1].register_load_state_dict_pre_hook(lambda *_: None)
    state_dict = shifted(model.state_dict())
    del state_dict["0.bias"]
    ours = assert_loads_as_torch(model, state_dict)
    assert torch.equal(ours.get_parameter("1.bias"), state_dict["1.bias"])


def test_a_post_hook_that_returns_something() -> None:
    model = nn.Linear(1, 1)
    model.register_load_state_dict_post_hook(lambda _module, keys: keys)
    outcome = outcome_of(apply_state_dict, model, model.state_dict())
    assert outcome.error is AssertionError
    assert outcome == outcome_of(torch_load, model, model.state_dict())


def test_an_override_on_one_instance() -> None:
    def renaming() -> nn.Module:
        layer: Any = nn.Linear(2, 2)
        plain = layer._load_from_state_dict

        def load(entries: Any, prefix: str, *rest: Any) -> None:
            entries[prefix + "weight"] = entries.pop(prefix + "kernel")
            plain(entries, prefix, *rest)

        layer._load_from_state_dict = load
        return nn.Sequential(layer)

    for converter in (None, identity):
        model = renaming()
        state_dict = {"0.kernel": torch.ones(2, 2), "0.bias": torch.zeros(2)}
        apply_state_dict(model, state_dict, converter)
        assert (model.get_parameter("0.weight") == 1).all()


def fail_always(*_: Any) -> Any:
    raise KeyError("on purpose")


@pytest.mark.parametrize("where", ["pre hook", "post hook", "override", "converter"])
def test_exceptions_leave_no_hooks_and_no_pages(
    where: str, large_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dict = load_grouped(large_checkpoint)
    model = grouped_model()
    converter = fail_after(10) if where == "converter" else identity
    if where == "pre hook":
        model[3].register_load_state_dict_pre_hook(fail_always)
    elif where == "post hook":
        model[3].register_load_state_dict_post_hook(fail_always)
    elif where == "override":
        monkeypatch.setattr(model[3], "_load_from_state_dict", fail_always)
    before = hook_counts(model)
    with pytest.raises(KeyError, match="on purpose"):
        apply_state_dict(model, state_dict, converter, memory_limit_mb=8)
    assert hook_counts(model) == before
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert "_load_from_state_dict" not in vars(model[2])
    loaded = bool((model.get_parameter("2.w3") == 11).all())
    assert loaded == (where != "converter")
    assert torch.overrides._get_current_function_mode() is None


def test_nothing_is_left_registered() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    seen: list[int] = []

    def look(_root: nn.Module, module: nn.Module, tensor: Tensor) -> Tensor:
        seen.append(len(module._load_state_dict_pre_hooks))
        return tensor

    apply_state_dict(model, model.state_dict(), look)
    assert seen
    for module in model.modules():
        assert not module._load_state_dict_pre_hooks
        assert not module._load_state_dict_post_hooks
        assert "_load_from_state_dict" not in vars(module)


# The converter


def test_the_converter_gets_each_tensor_once_with_its_owner() -> None:
    shared = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(Holder(), nn.Sequential(shared, nn.BatchNorm1d(2)), shared)
    state_dict = shifted(model.state_dict())
    whole = torch.arange(8.0)
    state_dict["2.weight"] = whole[4:].view(2, 2)
    state_dict["1.0.weight"] = whole[:4].view(2, 2)
    state_dict["1.1.bias"] = state_dict["1.1.weight"]  # tied in the state_dict alone
    calls: list[tuple[nn.Module, int]] = []

    def double(root: nn.Module, module: nn.Module, tensor: Tensor) -> Tensor:
        assert root is model
        calls.append((module, id(tensor)))
        return tensor * 2

    keys = apply_state_dict(model, state_dict, double)
    assert keys == _IncompatibleKeys([], [])
    assert calls == [
        (model.get_submodule(key.rpartition(".")[0]), id(value))
        for key, value in state_dict.items()
    ]
    for key, value in model.state_dict().items():
        expected = "2.weight" if key == "1.0.weight" else key
        assert torch.equal(value, state_dict[expected] * 2)


def test_the_converter_is_not_given_unexpected_entries() -> None:
    model = nn.Linear(2, 3, bias=False)
    state_dict = {
        "weight": torch.ones(3, 2),
        "more": torch.ones(1),
        "a.b": torch.ones(1),
    }
    shapes: list[torch.Size] = []

    def record(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return tensor

    apply_state_dict(model, state_dict, record, strict=False)
    assert shapes == [(3, 2)]


def test_the_converter_may_change_shapes_and_dtypes() -> None:
    model = nn.Linear(2, 3)
    state_dict = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(3)}

    def convert(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        return tensor.t().to(torch.float16)

    apply_state_dict(model, state_dict, convert, assign=True)
    assert model.weight.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert model.weight.dtype == torch.float16


def test_the_converter_returns_the_wrong_thing() -> None:
    model = nn.Linear(2, 3)
    state_dict = shifted(model.state_dict())
    converted: dict[str, Any] = {"weight": torch.ones(1), "bias": None}
    replies = iter(converted.values())
    ours = outcome_of(apply_state_dict, model, state_dict, lambda *_: next(replies))
    assert ours == outcome_of(torch_load, model, converted)


def test_the_converter_sees_renamed_entries() -> None:
    model = Renaming()
    apply_state_dict(model, {"kernel": torch.ones(3)}, lambda _r, _m, x: x * 4)
    assert (model.weight == 4).all()


def test_an_override_that_loads_twice_converts_once() -> None:
    class Twice(nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            super()._load_from_state_dict(*arguments)
            super()._load_from_state_dict(*arguments)

    model = Twice(2, 3)
    state_dict = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    apply_state_dict(model, state_dict, lambda _root, _module, x: x * 2)
    assert (model.weight == 2).all()


# Memory: the first COUNT tensors of the large checkpoint

COUNT = 16


def load_flat(path: Path) -> dict[str, Tensor]:
    state_dict = load_mapped(path)
    return {f"w{i}": state_dict[f"w{i}"] for i in range(COUNT)}


def load_grouped(path: Path) -> dict[str, Tensor]:
    state_dict = load_mapped(path)
    return {f"{i // 4}.w{i % 4}": state_dict[f"w{i}"] for i in range(COUNT)}


def flat_model() -> nn.Module:
    """One module that holds all of the tensors."""
    model = nn.Module()
    for i in range(COUNT):
        model.register_parameter(f"w{i}", nn.Parameter(torch.zeros(256, 1024)))
    return model


def grouped_model(group_count: int = COUNT // 4) -> nn.Sequential:
    """Modules of 4 of the tensors each."""
    model = nn.Sequential()
    for _ in range(group_count):
        group = nn.Module()
        for j in range(4):
            group.register_parameter(f"w{j}", nn.Parameter(torch.zeros(256, 1024)))
        model.append(group)
    return model


def joining_model(
    watch: PeakWatch, join: Callable[[list[Tensor]], Tensor]
) -> nn.Module:
    """One parameter made of 4 of the tensors in each module."""
    model = nn.Sequential()

    def fuse(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        parts = [entries.pop(f"{prefix}w{j}") for j in range(4)]
        entries[prefix + "weight"] = join(parts)
        watch.look()

    for _ in range(COUNT // 4):
        layer = nn.Linear(1024, 1024, bias=False)
        layer.register_load_state_dict_pre_hook(fuse)
        model.append(layer)
    return model


def fail_after(count: int) -> Callable[[Any, Any, Tensor], Tensor]:
    left = iter(range(count))

    def convert(_root: Any, _module: Any, tensor: Tensor) -> Tensor:
        tensor.sum()
        return tensor if next(left, None) is not None else fail_always()

    return convert


class PeakWatch(TorchFunctionMode):
    """Looks at a file's resident pages after every function that reads tensors."""

    READING = frozenset({"cat", "concat", "copy_", "repeat", "sum"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.peak_bytes = 0

    def look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, resident_of(self.path).clean_bytes)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__ in self.READING:
            self.look()
        return result

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if exception == (None, None, None):
            assert self.peak_bytes > 0
            assert resident_of(self.path).clean_bytes == 0


@pytest.mark.parametrize("limit_mb", [2, 8])
@pytest.mark.parametrize("is_flat", [False, True])
def test_copying_keeps_the_limit(
    large_checkpoint: Path, is_flat: bool, limit_mb: int
) -> None:
    state_dict = (load_flat if is_flat else load_grouped)(large_checkpoint)
    model = flat_model() if is_flat else grouped_model()
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=limit_mb)
    assert watch.peak_bytes <= limit_mb * MIB
    for i, weight in enumerate(model.parameters()):
        assert (weight == i).all()


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_converters_see_the_limit_kept(
    large_checkpoint: Path, assign: bool, is_flat: bool
) -> None:
    state_dict = (load_flat if is_flat else load_grouped)(large_checkpoint)
    for tensor in state_dict.values():  # what is resident from before goes first
        tensor.sum()
    assert resident_of(large_checkpoint).clean_bytes >= COUNT * MIB
    model = flat_model() if is_flat else grouped_model()

    def convert(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        watch.look()
        tensor.sum()
        return tensor

    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, convert, assign=assign, memory_limit_mb=8)
    assert watch.peak_bytes <= 8 * MIB


def test_load_hooks_see_the_limit_kept(large_checkpoint: Path) -> None:
    model = grouped_model()
    watch = PeakWatch(large_checkpoint)

    def read_all(_module: nn.Module, entries: Any, *_: Any) -> None:
        for tensor in entries.values():
            tensor.sum()

    for module in model.modules():
        module.register_load_state_dict_pre_hook(read_all)
        module.register_load_state_dict_post_hook(lambda *_: watch.look())
    with watch:
        apply_state_dict(model, load_grouped(large_checkpoint), memory_limit_mb=8)
    assert watch.peak_bytes <= 8 * MIB


@pytest.mark.parametrize(
    "join", [torch.cat, lambda parts: torch.concat(tensors=tuple(parts))]
)
@pytest.mark.parametrize("limit_mb", [5, 9])
def test_hooks_that_join_tensors_keep_the_limit(
    large_checkpoint: Path, limit_mb: int, join: Callable[[list[Tensor]], Tensor]
) -> None:
    with PeakWatch(large_checkpoint) as watch:
        model = joining_model(watch, join)
        state_dict = load_grouped(large_checkpoint)
        apply_state_dict(model, state_dict, memory_limit_mb=limit_mb)
    assert watch.peak_bytes <= limit_mb * MIB
    assert model.get_parameter("3.weight")[::256, 0].tolist() == [12, 13, 14, 15]


def test_more_than_the_limit_in_one_call_goes_back_after_it(
    large_checkpoint: Path,
) -> None:
    with PeakWatch(large_checkpoint) as watch:
        model = joining_model(watch, torch.cat)
        apply_state_dict(model, load_grouped(large_checkpoint), memory_limit_mb=2)
    # The four tensors of one call and what a fault maps beyond each.
    assert watch.peak_bytes <= 8 * MIB


def test_hooks_that_split_tensors_keep_the_limit(large_checkpoint: Path) -> None:
    # All first halves are read, then all second ones.
    model = nn.Module()
    halves = [f"{half}{i}" for half in "ab" for i in range(COUNT)]
    for name in halves:
        model.register_parameter(name, nn.Parameter(torch.zeros(128, 1024)))

    def split(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        for i in range(COUNT):
            parts = entries.pop(f"{prefix}w{i}").chunk(2)
            entries[f"{prefix}a{i}"], entries[f"{prefix}b{i}"] = parts

    model.register_load_state_dict_pre_hook(split)
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, load_flat(large_checkpoint), memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((model.get_parameter(f"b{i}") == i).all() for i in range(COUNT))


def test_views_at_one_address_keep_the_limit(large_checkpoint: Path) -> None:
    model = flat_model()
    state_dict = load_flat(large_checkpoint)
    for i in range(COUNT):
        model.register_parameter(f"v{i}", nn.Parameter(torch.zeros(1)))
        state_dict[f"v{i}"] = state_dict[f"w{i}"][0, :1]
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB


@pytest.mark.parametrize(
    "converter",
    [None, lambda _root, _module, x: x.view(2, -1)[1:].repeat(2, 1).view(-1)],
)
def test_views_of_one_storage_keep_the_limit(tmp_path: Path, converter: Any) -> None:
    path = tmp_path / "one_storage.pt"
    flat = torch.arange(16.0).repeat_interleave(MIB // 4)
    torch.save({f"w{i}": part for i, part in enumerate(flat.split(MIB // 4))}, path)
    state_dict = load_mapped(path)
    assert len({t.untyped_storage().data_ptr() for t in state_dict.values()}) == 1
    model = nn.Module()
    for name in state_dict:
        model.register_parameter(name, nn.Parameter(torch.zeros(MIB // 4)))
    with PeakWatch(path) as watch:
        apply_state_dict(model, state_dict, converter, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((model.get_parameter(f"w{i}") == i).all() for i in range(16))


def test_sparse_tensors_keep_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    size = MIB // 8
    indices = torch.arange(size).unsqueeze(0)
    saved = {
        f"s{i}": torch.sparse_coo_tensor(
            indices.clone(), torch.ones(size), (size,), check_invariants=True
        )
        for i in range(8)
    }
    torch.save(saved, path)
    with torch.sparse.check_sparse_tensor_invariants(True):
        state_dict = load_mapped(path)
    model = nn.Module()
    for name in saved:
        model.register_buffer(name, torch.zeros(size).to_sparse())
    with PeakWatch(path) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((buffer.to_dense() == 1).all() for buffer in model.buffers())


def test_extra_state_is_read_under_the_limit(tmp_path: Path) -> None:
    class Tables(ExtraState):
        def set_extra_state(self, state: Any) -> None:
            self.extra = [float(table.sum()) for table in state["tables"]]

    path = tmp_path / "extra.pt"
    tables = [torch.full((MIB // 4,), float(i)) for i in range(16)]
    torch.save({"weight": torch.ones(2), "_extra_state": {"tables": tables}}, path)
    model = Tables()
    with PeakWatch(path) as watch:
        apply_state_dict(model, load_mapped(path), memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert model.extra == [i * MIB / 4 for i in range(16)]


@pytest.mark.parametrize("converter", [None, identity])
def test_writes_to_the_state_dict_are_kept(
    large_checkpoint: Path, converter: Any
) -> None:
    state_dict = load_flat(large_checkpoint)
    state_dict["w5"][7, 9] = 123.0
    state_dict["w15"].fill_(-1.0)
    model = flat_model()

    def write(_module: nn.Module, entries: Any, *_: Any) -> None:
        entries["w10"].add_(1000.0)

    model.register_load_state_dict_pre_hook(write)
    apply_state_dict(model, state_dict, converter, memory_limit_mb=2)
    assert model.get_parameter("w5")[7, 9] == state_dict["w5"][7, 9] == 123
    assert state_dict["w5"].sum() == 123 + 5 * (256 * 1024 - 1)
    assert (model.get_parameter("w15") == -1).all()
    assert (state_dict["w15"] == -1).all()
    assert (model.get_parameter("w10") == 1010).all()
    assert (state_dict["w10"] == 1010).all()
    assert (state_dict["w11"] == 11).all()
    assert resident_of(large_checkpoint).written_bytes >= 2 * MIB


def test_a_refused_state_dict_is_not_read(large_checkpoint: Path) -> None:
    state_dict = load_flat(large_checkpoint)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        apply_state_dict(flat_model(), {**state_dict, "more": torch.ones(1)})
    assert resident_of(large_checkpoint).clean_bytes == 0


def let_go_check(
    alive: list[tuple[nn.Module, weakref.ref[Tensor]]],
) -> Callable[[nn.Module, nn.Module, Tensor], Tensor]:
    """A converter that finds no tensor of another module still alive."""

    def convert(_root: nn.Module, module: nn.Module, tensor: Tensor) -> Tensor:
        assert all(owner is module or ref() is None for owner, ref in alive)
        result = tensor.clone()
        alive.append((module, weakref.ref(result)))
        return result

    return convert


def test_converted_tensors_of_finished_modules_are_let_go(
    large_checkpoint: Path,
) -> None:
    loaded = load_mapped(large_checkpoint)
    state_dict = {f"{i // 4}.w{i % 4}": loaded[f"w{i}"] for i in range(64)}
    alive: list[tuple[nn.Module, weakref.ref[Tensor]]] = []
    gc.disable()  # by reference counting alone
    try:
        apply_state_dict(grouped_model(16), state_dict, let_go_check(alive))
        assert len(alive) == 64
        assert all(ref() is None for _, ref in alive)
    finally:
        gc.enable()


def test_converted_tensors_of_a_parent_are_let_go_before_its_children() -> None:
    model = Holder()
    model.add_module("child", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    alive: list[tuple[nn.Module, weakref.ref[Tensor]]] = []
    gc.disable()
    try:
        apply_state_dict(model, model.state_dict(), let_go_check(alive))
    finally:
        gc.enable()
    assert len(alive) == 8


# Arguments


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "memory_limit_mb is True (bool), expected an int >= 1 (MiB)"),
        (1.0, TypeError, "memory_limit_mb is 1.0 (float), expected an int >= 1 (MiB)"),
        (
            float("nan"),
            TypeError,
            "memory_limit_mb is nan (float), expected an int >= 1 (MiB)",
        ),
        ("64", TypeError, "memory_limit_mb is '64' (str), expected an int >= 1 (MiB)"),
        (None, TypeError, "memory_limit_mb is None (NoneType), expected an int >= 1"),
        (0, ValueError, "memory_limit_mb is 0, expected an int >= 1 (MiB)"),
        (-1, ValueError, "memory_limit_mb is -1, expected an int >= 1 (MiB)"),
        (2**43, ValueError, f"memory_limit_mb is {2**43}, expected less than {2**43}"),
    ],
)
def test_bad_memory_limit(value: Any, error: type[Exception], text: str) -> None:
    model = nn.Linear(1, 1)
    before = copy.deepcopy(model)
    with pytest.raises(error) as caught:
        apply_state_dict(model, shifted(model.state_dict()), memory_limit_mb=value)
    assert text in str(caught.value)
    assert_same_state(model, before)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "cpu_page_size is True (bool), expected None or an int >= 1"),
        (4096.0, TypeError, "cpu_page_size is 4096.0 (float), expected None or an int"),
        (0, ValueError, "cpu_page_size is 0, expected None or an int >= 1 (bytes)"),
        (-1, ValueError, "cpu_page_size is -1, expected None or an int >= 1 (bytes)"),
    ],
)
def test_bad_page_size(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        apply_state_dict(nn.Linear(1, 1), {}, cpu_page_size=value)
    assert text in str(caught.value)


@pytest.mark.parametrize("page_size", [None, 1, 4096, 65536])
def test_page_size_is_accepted_and_not_used(page_size: int | None) -> None:
    model = nn.Linear(1, 1)
    state_dict = shifted(model.state_dict())
    apply_state_dict(model, state_dict, identity, True, False, 1, page_size)
    assert torch.equal(model.weight, state_dict["weight"])


# Against load_state_dict, with random models and damage

VISITS: list[str] = []


def note_visit(_module: nn.Module, _entries: Any, prefix: str, *_: Any) -> None:
    VISITS.append(f"pre {prefix}")


def rename_weight(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
    if prefix + "stray" in entries:
        entries[prefix + "weight"] = entries.pop(prefix + "stray")


def note_end(module: nn.Module, keys: _IncompatibleKeys) -> None:
    VISITS.append(f"post {type(module).__name__} {keys}")


def forget_one(_module: nn.Module, keys: _IncompatibleKeys) -> None:
    del keys.missing_keys[:1]


LEAVES: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.Linear(2, 2, bias=False),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm1d(2, affine=False),
    lambda: nn.BatchNorm1d(2, track_running_stats=False),
    lambda: nn.MultiheadAttention(2, 1),
    Holder,
    ExtraState,
    nn.ReLU,
]
# Those of which only their own load knows which keys they take.
PARTICULAR_LEAVES: list[Callable[[], nn.Module]] = [
    Renaming,
    lambda: nn.LazyLinear(2),
    lambda: nn.InstanceNorm1d(2),
    lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
]
PRE_HOOKS = [note_visit, rename_weight]
POST_HOOKS = [note_end, forget_one]


@st.composite
def models(draw: st.DrawFn, leaves: list[Callable[[], nn.Module]]) -> nn.Module:
    made: list[nn.Module] = []

    def make(depth: int) -> nn.Module:
        if made and draw(st.integers(0, 7)) == 0:
            return draw(st.sampled_from(made))
        if depth == 0 or draw(st.integers(0, 2)) == 0:
            module = draw(st.sampled_from(leaves))()
        else:
            module = draw(st.sampled_from([nn.Sequential, Holder, ExtraState]))()
            for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
                module.add_module(name, make(depth - 1))
        made.append(module)
        return module

    return make(3)


@st.composite
def tied(draw: st.DrawFn, model: nn.Module) -> None:
    places = [
        (module, name, value)
        for module in model.modules()
        for name, value in module._parameters.items()
        if value is not None and not is_lazy(value)
    ]
    for _ in range(draw(st.integers(0, 2)) if places else 0):
        module, name, value = draw(st.sampled_from(places))
        _, _, other = draw(st.sampled_from(places))
        if other.shape == value.shape:
            setattr(module, name, other)


@st.composite
def damaged(draw: st.DrawFn, model: nn.Module) -> OrderedDict[str, Any]:
    state_dict: Any = model.state_dict()
    for key, value in state_dict.items():
        if isinstance(value, Tensor):
            state_dict[key] = torch.ones(2, 2) if is_lazy(value) else value + 1
    if draw(st.booleans()):
        del state_dict._metadata
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*state_dict, "weight"]))
        prefix = key[: key.rfind(".") + 1]
        match draw(st.integers(0, 5)):
            case 0:
                state_dict.pop(key, None)
            case 1:
                names = ["stray", "stray.deep", "a.weight", "_extra_state", "kernel"]
                state_dict[prefix + draw(st.sampled_from(names))] = torch.ones(2)
            case 2:
                shape = draw(st.sampled_from([(), (1,), (2,), (2, 2), (1, 1)]))
                state_dict[key] = torch.full(shape, 3.0)
            case 3:
                state_dict[key] = draw(st.sampled_from([None, 1, "text"]))
            case 4:
                state_dict[f"{key}.deep"] = torch.ones(1)
            case 5:  # all that the prefix holds
                for other in [k for k in state_dict if k.startswith(prefix)]:
                    del state_dict[other]
    assert isinstance(state_dict, OrderedDict)
    return state_dict


def check_against_torch(
    model: nn.Module,
    state_dict: OrderedDict[str, Any],
    options: dict[str, Any],
    is_transparent: bool,
) -> None:
    ours, twin = copy.deepcopy(model), copy.deepcopy(model)
    entries = copy.deepcopy(state_dict)
    VISITS.clear()
    outcome = outcome_of(apply_state_dict, ours, entries, **options)
    visits = VISITS.copy()
    assert list(entries) == list(state_dict)
    VISITS.clear()
    expected = outcome_of(torch_load, twin, copy.deepcopy(state_dict), **options)
    assert hook_counts(ours) == hook_counts(model)
    assert outcome.error is expected.error
    assert outcome.keys == expected.keys
    names_keys = "key(s) in state_dict: " in expected.text
    converts = options["converter"] is not None
    if not is_transparent or outcome.error is None or (converts and not names_keys):
        # Loaded, or failed as far as PyTorch had got.
        assert outcome.text == expected.text
        assert visits == VISITS
        # Lazy parameters that were made and then not loaded have no values.
        made = {name for name, tensor in tensors_of(model) if is_lazy(tensor)}
        assert_same_state(ours, twin, () if outcome.error is None else made)
    else:
        # PyTorch has loaded what it could. A converter might have mended shapes:
        # it was not asked, so that only the keys are named.
        assert_same_state(ours, model)
        if converts:
            assert expected.text.startswith(outcome.text)
        else:
            assert outcome.text == expected.text


OPTIONS = st.fixed_dictionaries(
    {
        "converter": st.sampled_from([None, identity]),
        "strict": st.booleans(),
        "assign": st.booleans(),
    }
)
bounded = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)


@bounded
@given(st.data(), OPTIONS)
def test_random_models_without_hooks(
    data: st.DataObject, options: dict[str, Any]
) -> None:
    model = data.draw(models(LEAVES))
    data.draw(tied(model))
    state_dict = data.draw(damaged(model))
    check_against_torch(model, state_dict, options, is_transparent=True)


@bounded
@given(st.data(), OPTIONS)
def test_random_models_with_hooks(data: st.DataObject, options: dict[str, Any]) -> None:
    model = data.draw(models(LEAVES + PARTICULAR_LEAVES))
    data.draw(tied(model))
    state_dict = data.draw(damaged(model))
    modules = list(model.modules())
    modules[0].register_load_state_dict_pre_hook(note_visit)
    for _ in range(data.draw(st.integers(0, 4))):
        module = data.draw(st.sampled_from(modules))
        module.register_load_state_dict_pre_hook(data.draw(st.sampled_from(PRE_HOOKS)))
        module = data.draw(st.sampled_from(modules))
        module.register_load_state_dict_post_hook(
            data.draw(st.sampled_from(POST_HOOKS))
        )
    check_against_torch(model, state_dict, options, is_transparent=False)
