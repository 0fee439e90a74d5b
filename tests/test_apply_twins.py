"""apply_state_dict() beside load_state_dict(), on random models and state_dicts."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from load_outcomes import (
    CHANGED,
    Load,
    Outcome,
    hook_counts,
    identity,
    outcome_of,
    tensors_of,
    torch_load,
    without_changed_keys,
)
from random_models import (
    PARTICULAR_LEAVES,
    PLAIN_LEAVES,
    VISITS,
    Change,
    Plan,
    changes,
    hooks,
    plans,
    state_dict_of,
)
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.testing._internal.two_tensor import TwoTensor

from ckpt_streamer import apply_state_dict


@contextmanager
def swapping(is_on: bool) -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(is_on)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def value_of(value: Any) -> Any:
    """What two equal values have in common, comparable by ``==``."""
    if not isinstance(value, Tensor):
        return repr(value)
    with torch._C.DisableTorchFunction():
        kind = (type(value), value.requires_grad, value.is_leaf)
        if is_lazy(value):
            return kind
        form = (value.dtype, value.device, value.layout, tuple(value.shape))
        if value.is_meta:
            return kind, form
        plain = value.a if isinstance(value, TwoTensor) else value.detach()
        if plain.is_quantized:
            plain = plain.dequantize()
        return kind, form, repr(plain.to_dense().tolist())


class Twin:
    """One load of one plan: what there was before, and everything after it."""

    def __init__(
        self, plan: Plan, damage: list[Change], load: Load, options: dict[str, Any]
    ) -> None:
        self.model = plan.build()
        self.entries = state_dict_of(self.model, damage)
        self.given = OrderedDict(self.entries)
        self.initial = [tensor for _, tensor in tensors_of(self.model)]
        self.is_lazy = any(is_lazy(tensor) for tensor in self.initial)
        self.initial_values = self.values()
        self.initial_state = self.state()
        self.hook_counts = hook_counts(self.model)
        VISITS.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.set_warn_always(True)
            self.outcome: Outcome = outcome_of(
                load, self.model, self.entries, **options
            )
        torch.set_warn_always(False)
        self.warnings = [str(each.message) for each in caught]
        self.visits = VISITS.copy()

    def values(self) -> list[Any]:
        return [(name, value_of(tensor)) for name, tensor in tensors_of(self.model)]

    def state(self) -> list[Any]:
        """The model's tensors and what a state_dict has of it beside them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                state_dict = self.model.state_dict()
            except Exception as error:  # a quantized module may be left in pieces
                return [*self.values(), repr(error)]
        return [
            *self.values(),
            *((key, value_of(value)) for key, value in state_dict.items()),
        ]

    def identities(self) -> list[Any]:
        """Which objects the model holds: its own from before, the entries, ties."""
        found = []
        tensors = [tensor for _, tensor in tensors_of(self.model)]
        for tensor in tensors:
            for others in (self.initial, list(self.given.values()), tensors):
                found.append([i for i, x in enumerate(others) if x is tensor])
                found.append(
                    [i for i, x in enumerate(others) if _share_memory(x, tensor)]
                )
        return found

    def left(self) -> list[Any]:
        """What became of the state_dict."""
        metadata = getattr(self.entries, "_metadata", None)
        return [
            [(key, value_of(value)) for key, value in self.entries.items()],
            [self.given[key] is value for key, value in self.entries.items()],
            metadata,
        ]


def _share_memory(one: Any, other: Tensor) -> bool:
    try:
        return bool(one.data_ptr() == other.data_ptr() != 0)
    except (AttributeError, RuntimeError, ValueError):  # no memory of its own
        return False


def assert_equal_twins(ours: Twin, torchs: Twin) -> None:
    assert without_changed_keys(ours.outcome) == torchs.outcome
    assert ours.visits == torchs.visits
    assert ours.warnings == torchs.warnings
    for left, torchs_left in zip(ours.left(), torchs.left(), strict=True):
        assert left == torchs_left
    # Lazy parameters that were made and then not loaded have no values.
    if not ours.is_lazy:
        assert ours.state() == torchs.state()
    assert ours.identities() == torchs.identities()
    if ours.outcome.error is RuntimeError and ours.values() != ours.initial_values:
        assert ours.outcome.text.count(CHANGED) == 1


def load_twins(
    plan: Plan, damage: list[Change], options: dict[str, Any], swaps: bool
) -> tuple[Twin, Twin]:
    with swapping(swaps):
        ours = Twin(plan, damage, apply_state_dict, options)
        torchs = Twin(plan, damage, torch_load, options)
    assert hook_counts(ours.model) == ours.hook_counts
    assert torch.overrides._get_current_function_mode() is None
    return ours, torchs


def assert_equal_or_refused(ours: Twin, torchs: Twin, is_converted: bool) -> None:
    """Allow for an error before anything is changed, where PyTorch changes much."""
    if torchs.outcome.error is None or ours.state() != ours.initial_state:
        assert_equal_twins(ours, torchs)
    elif torchs.outcome.error is ValueError:
        # Keys and shapes come before what set_extra_state() raises.
        assert ours.outcome.error is not None
    elif is_converted or "an exception occurred" in torchs.outcome.text:
        # What copying or converting may run into is not known before.
        assert ours.outcome.error is torchs.outcome.error
        lines = iter(torchs.outcome.text.split("\n\t"))
        text = without_changed_keys(ours.outcome).text
        assert all(line in lines for line in text.split("\n\t"))
    else:
        assert without_changed_keys(ours.outcome) == torchs.outcome


OPTIONS = st.fixed_dictionaries(
    {
        "converter": st.sampled_from([None, identity]),
        "strict": st.booleans(),
        "assign": st.booleans(),
    }
)
bounded = examples(120)
swaps = st.integers(0, 4).map(lambda number: number == 0)


@bounded
@given(plans(PLAIN_LEAVES), changes, OPTIONS, swaps)
def test_models_without_hooks(
    plan: Plan, damage: list[Change], options: dict[str, Any], swaps: bool
) -> None:
    ours, torchs = load_twins(plan, damage, options, swaps)
    assert_equal_or_refused(ours, torchs, bool(options["converter"]))


@bounded
@given(plans(PLAIN_LEAVES + PARTICULAR_LEAVES), hooks(), changes, OPTIONS, swaps)
def test_models_with_hooks_and_loads_of_their_own(
    plan: Plan,
    hooks: list[Any],
    damage: list[Change],
    options: dict[str, Any],
    swaps: bool,
) -> None:
    plan.hooks = hooks
    ours, torchs = load_twins(plan, damage, options, swaps)
    if isinstance(ours.model, torch.jit.ScriptModule):  # takes no hooks
        assert_equal_or_refused(ours, torchs, bool(options["converter"]))
    else:
        assert_equal_twins(ours, torchs)


@bounded
@given(plans(PLAIN_LEAVES), OPTIONS, swaps)
def test_state_dicts_that_fit_load(
    plan: Plan, options: dict[str, Any], swaps: bool
) -> None:
    ours, torchs = load_twins(plan, [], options, swaps)
    assert_equal_or_refused(ours, torchs, bool(options["converter"]))
