"""apply_state_dict(): what load_state_dict does, in bounded memory."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from load_outcomes import (
    ExtraState,
    Holder,
    Renaming,
    assert_loads_as_torch,
    assert_refuses_as_torch,
    assert_same_state,
    call_count,
    identity,
    outcome_of,
    shifted,
    tensors_of,
    torch_load,
    without_changed_keys,
)
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ckpt_streamer import apply_state_dict

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


@pytest.mark.parametrize("bad", [None, [("weight", torch.ones(1))], b"x.pt", 5])
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
    assert without_changed_keys(outcome) == outcome_of(torch_load, twin, state_dict)
    assert "an exception occurred : (" in outcome.text
    assert outcome.text.endswith('.\n\tChanged key(s) in the model: "bias". ')
    assert_same_state(ours, twin)


def test_the_error_names_the_keys_that_are_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    state_dict = shifted(model.state_dict())

    def transpose_one(_root: nn.Module, module: nn.Module, tensor: Tensor) -> Tensor:
        return tensor.t() if module is model[1] else tensor

    text = outcome_of(apply_state_dict, model, state_dict, transpose_one).text
    assert text == (
        "Error(s) in loading state_dict for Sequential:\n"
        "\tsize mismatch for 1.weight: copying a param with shape torch.Size([3, 2]) "
        "from checkpoint, the shape in current model is torch.Size([2, 3]).\n"
        '\tChanged key(s) in the model: "0.weight", "0.bias", "1.bias". '
    )


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("has_hook", [False, True])
def test_what_a_converter_raises_is_noted_with_the_keys_changed(
    has_hook: bool, assign: bool
) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    if has_hook:
        model.register_load_state_dict_pre_hook(lambda *_: None)
    calls = iter([False, False, False, True])

    def fail_once(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        if next(calls):
            raise KeyError("on purpose")
        return tensor.clone()

    with pytest.raises(KeyError, match="on purpose") as caught:
        apply_state_dict(model, shifted(model.state_dict()), fail_once, assign=assign)
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [
            'Changed key(s) in the model: "0.weight", "0.bias", "1.weight". '
        ]


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
        kind = OrderedDict if isinstance(entries, OrderedDict) else dict
        assert isinstance(entries, kind)
        self.calls.append((f"pre {kind.__name__}", self.name))

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


# Progress


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("converter", [None, identity])
@pytest.mark.parametrize("has_hook", [False, True])
def test_progress_is_told_in_bytes(
    has_hook: bool, converter: Any, assign: bool
) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    if has_hook:
        add_hooks(model[0], lambda *_: None)
        add_hooks(model[1], lambda *_: None)
    state_dict = {**shifted(model.state_dict()), "stray": torch.ones(5)}
    told: list[tuple[int, int]] = []
    apply_state_dict(
        model,
        state_dict,
        converter,
        strict=False,
        assign=assign,
        progress=lambda *bytes_of: told.append(bytes_of),
    )
    # Two weights of 6 floats, a bias of 3, and at the end what was left out.
    assert told == [(24, 80), (36, 80), (60, 80), (80, 80)]


def test_progress_stops_where_a_load_does() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    told: list[tuple[int, int]] = []

    def fail_in_the_second(_root: Any, module: Any, tensor: Tensor) -> Tensor:
        if module is model[1]:
            raise KeyError("on purpose")
        return tensor

    with pytest.raises(KeyError):
        apply_state_dict(
            model,
            model.state_dict(),
            fail_in_the_second,
            progress=lambda *bytes_of: told.append(bytes_of),
        )
    assert told == [(24, 68), (36, 68)]


@pytest.mark.parametrize("assign", [False, True])
def test_what_progress_raises_is_noted_with_the_keys_changed(assign: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))

    def stop(bytes_done: int, _bytes_total: int) -> None:
        if bytes_done >= 60:
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose") as caught:
        apply_state_dict(
            model, shifted(model.state_dict()), assign=assign, progress=stop
        )
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [
            'Changed key(s) in the model: "0.weight", "0.bias", "1.weight". '
        ]


def test_a_bar_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(1024, 1024, bias=False)
    apply_state_dict(model, model.state_dict(), progress=True)
    assert "4.00M/4.00M" in capfd.readouterr().err


def test_a_bar_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model = nn.Linear(1, 1)
    with pytest.raises(ImportError) as caught:
        apply_state_dict(model, shifted(model.state_dict()), progress=True)
    assert str(caught.value) == (
        "progress=True shows a bar of tqdm's, which is not installed: pip install "
        "tqdm, or give a function of (bytes_done, bytes_total)"
    )


@pytest.mark.parametrize("value", [None, 1, "bar"])
def test_bad_progress(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        apply_state_dict(nn.Linear(1, 1), {}, progress=value)
    assert str(caught.value) == (
        f"progress is {value!r} ({type(value).__name__}), expected a bool or a "
        "function of (bytes_done, bytes_total)"
    )


# Cost


def wide_model(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(1, 1) for _ in range(count)))


def hooked_model(count: int) -> nn.Module:
    model = nn.Sequential(*(wide_model(4) for _ in range(count // 4)))
    for module in model:
        add_hooks(module, lambda *_: None, lambda *_: None)
    return model


@pytest.mark.parametrize("make", [wide_model, hooked_model])
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"converter": identity}])
def test_calls_are_linear_in_the_modules(
    make: Callable[[int], nn.Module], options: dict[str, Any]
) -> None:
    def calls_for(count: int) -> int:
        model = make(count)
        state_dict = model.state_dict()
        if "strict" in options:
            state_dict = OrderedDict((f"{k}.stray", v) for k, v in state_dict.items())
        return call_count(lambda: apply_state_dict(model, state_dict, **options))

    assert calls_for(256) <= 2.1 * calls_for(128)


# Arguments


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "memory_limit_mb is True (bool), expected None or an int"),
        (1.0, TypeError, "memory_limit_mb is 1.0 (float), expected None or an int"),
        (
            float("nan"),
            TypeError,
            "memory_limit_mb is nan (float), expected None or an int >= 1",
        ),
        ("64", TypeError, "memory_limit_mb is '64' (str), expected None or an int"),
        (0, ValueError, "memory_limit_mb is 0, expected None or an int >= 1"),
        (-1, ValueError, "memory_limit_mb is -1, expected None or an int >= 1"),
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
