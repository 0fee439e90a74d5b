"""Loads into twins, by load_state_dict and here, and what became of them."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parameter import is_lazy

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


CHANGED = "\n\tChanged key(s) in the model: "


def without_changed_keys(outcome: Outcome) -> Outcome:
    """What PyTorch says: it does not tell which keys it has changed."""
    return replace(outcome, text=outcome.text.partition(CHANGED)[0])


def assert_loads_as_torch(
    model: nn.Module, state_dict: Mapping[str, Any], **options: Any
) -> nn.Module:
    """Load into copies of the model both ways; return the one loaded here."""
    ours, twin = copy.deepcopy(model), copy.deepcopy(model)
    outcome = outcome_of(apply_state_dict, ours, copy.deepcopy(state_dict), **options)
    expected = outcome_of(torch_load, twin, copy.deepcopy(state_dict), **options)
    assert without_changed_keys(outcome) == expected
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


def call_count(work: Callable[[], object]) -> int:
    """How many calls and returns there are, of functions in C as well."""
    calls = 0

    def count_call(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


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
