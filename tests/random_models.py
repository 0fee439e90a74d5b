"""Random module trees of all kinds, each built anew from its plan, and damage.

A plan is drawn once and built twice: what cannot be copied (scripted and
compiled modules) has twins as well.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from load_outcomes import ExtraState, Holder, Renaming
from torch import Tensor, nn
from torch.ao.nn import quantized
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor

Make = Callable[[], nn.Module]

# What hooks and overrides saw, in order.
VISITS: list[str] = []


class Marked(Tensor):
    """A subclass of Tensor without a __torch_function__ of its own."""


class Named(Tensor):
    """A subclass that sees every function that it is given to."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.__name__ == "copy_":
            VISITS.append("copy_ of a Named")
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


class OfSubclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Named))
        self.register_buffer("steps", torch.ones(2).as_subclass(Marked))


class OfWrappers(nn.Module):
    """Of a subclass that wraps others, as quantized and distributed tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))


class Joining(nn.Module):
    """Reads what it finds under its prefix, and more than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.a = nn.Linear(2, 2)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        VISITS.append(f"joining {list(state_dict)} {sorted(local_metadata)}")
        state_dict[prefix + "a.bias"] = torch.full((2,), 4.0)
        state_dict.setdefault(prefix + "weight", torch.full((2, 2), 5.0))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class OfCopies(nn.Module):
    """Hands PyTorch's code a dict of its own, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *rest: Any, **options: Any
    ) -> None:
        for _ in range(2):
            copied = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
            super()._load_from_state_dict(copied, prefix, *rest, **options)


class Refusing(nn.Module):
    """Adds to every list that it is given."""

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,  # noqa: ARG002
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing_keys.append(prefix + "nothing")
        unexpected_keys += [key for key in state_dict if key.endswith("stray")]
        if any(key.endswith("_extra_state") for key in state_dict):
            error_msgs.append(f"{prefix} has no room")


class FailingState(ExtraState):
    def set_extra_state(self, state: Any) -> None:
        if isinstance(state, Tensor):
            raise ValueError("a tensor is no state")
        super().set_extra_state(state)


class OfDots(nn.Module):
    """Names that add_module() would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self._modules["a.b"] = nn.Linear(2, 2)
        self._modules["a"] = nn.Linear(2, 2)
        self._parameters["x.y"] = nn.Parameter(torch.ones(2))


class OwnAttributes(nn.Module):
    """Notes what is set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def __setattr__(self, name: str, value: Any) -> None:
        VISITS.append(f"set {name}")
        super().__setattr__(name, value)


def an_old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and much used
        result: nn.Module = nn.utils.spectral_norm(nn.Linear(2, 2))
        return result


def a_scripted_module() -> nn.Module:
    result: nn.Module = torch.jit.script(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    )
    return result


def a_meta_module() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def of_quantized_weight(linear: Any) -> nn.Module:
    weight = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    linear.set_weight_bias(weight, torch.zeros(2))
    assert isinstance(linear, nn.Module)
    return linear


def compiled(module: nn.Module) -> nn.Module:
    if isinstance(module, torch.jit.ScriptModule):
        return module  # which torch.compile refuses
    result: Any = torch.compile(module, backend="eager")
    # Of a compiled leaf it makes a function.
    return result if isinstance(result, nn.Module) else module


def parameter_list() -> nn.Module:
    return nn.ParameterList([torch.ones(2), torch.ones(2, 2)])


# Of which a load can be checked in advance.
PLAIN_LEAVES: list[Make] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.Linear(2, 2, bias=False),
    lambda: nn.Linear(2, 2).half(),
    lambda: nn.Linear(2, 2).requires_grad_(False),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm1d(2, affine=False),
    lambda: nn.BatchNorm1d(2, track_running_stats=False),
    lambda: nn.MultiheadAttention(2, 1),
    lambda: nn.MultiheadAttention(2, 1, kdim=3, vdim=5, bias=False),
    lambda: nn.EmbeddingBag(3, 2),
    lambda: nn.TransformerEncoderLayer(2, 1, 2),
    lambda: nn.CrossEntropyLoss(torch.ones(2)),
    lambda: prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5),
    lambda: nn.LSTM(2, 2),
    lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    lambda: parametrizations.spectral_norm(nn.Linear(2, 2)),
    lambda: parametrizations.orthogonal(nn.Linear(2, 2)),
    parameter_list,
    a_meta_module,
    a_scripted_module,
    Holder,
    ExtraState,
    FailingState,
    OfDots,
    OfSubclasses,
    OfWrappers,
    OwnAttributes,
    nn.ReLU,
]
# Of which only their own load knows which keys they take.
PARTICULAR_LEAVES: list[Make] = [
    Renaming,
    Joining,
    OfCopies,
    Refusing,
    an_old_spectral_norm,
    lambda: nn.SyncBatchNorm(2),
    lambda: nn.LazyLinear(2),
    lambda: nn.LazyConv1d(2, 1),
    nn.LazyBatchNorm1d,
    lambda: nn.InstanceNorm1d(2),
    lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
    lambda: of_quantized_weight(quantized.Linear(2, 2)),
    lambda: of_quantized_weight(quantized.dynamic.Linear(2, 2)),
    lambda: quantized.BatchNorm2d(2),
    lambda: quantized.dynamic.LSTM(2, 2),
    lambda: quantized.dynamic.LSTMCell(2, 2),
    quantized.FloatFunctional,
    quantized.QFunctional,
    FakeQuantize,
    MinMaxObserver,
    HistogramObserver,
    PerChannelMinMaxObserver,
    FusedMovingAvgObsFakeQuantize,
]
CONTAINERS: list[Make] = [nn.Sequential, Holder, ExtraState, nn.ModuleDict]
WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    nn.DataParallel,
    compiled,
]


# Hooks: called as PyTorch calls those of register_load_state_dict_pre_hook() and
# register_load_state_dict_post_hook().


def note_visit(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
    VISITS.append(f"pre {prefix} {list(entries)}")


def rename_weight(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
    if prefix + "stray" in entries:
        entries[prefix + "weight"] = entries.pop(prefix + "stray")


def forget_children(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
    for key in [key for key in entries if key.startswith(f"{prefix}a.")]:
        del entries[key]


def change_metadata(
    _module: nn.Module, _entries: Any, _prefix: str, local_metadata: Any, *_: Any
) -> None:
    local_metadata["version"] = 1


def complain(
    _module: nn.Module, entries: Any, prefix: str, _metadata: Any, *rest: Any
) -> None:
    _strict, missing, unexpected, errors = rest
    missing.append(f"{prefix}wanted")
    unexpected.extend(key for key in entries if key.endswith("deep"))
    errors.append(f"{prefix} complains")


def without_module(_entries: Any, prefix: str, *_: Any) -> None:
    VISITS.append(f"plain pre {prefix}")


def raise_in_pre_hook(*_: Any) -> None:
    raise KeyError("pre hook")


def note_end(module: nn.Module, keys: _IncompatibleKeys) -> None:
    VISITS.append(f"post {type(module).__name__} {keys}")


def forget_one(_module: nn.Module, keys: _IncompatibleKeys) -> None:
    del keys.missing_keys[:1]


def forget_all(_module: nn.Module, keys: _IncompatibleKeys) -> None:
    keys.missing_keys.clear()
    keys.unexpected_keys.clear()


def return_keys(_module: nn.Module, keys: _IncompatibleKeys) -> _IncompatibleKeys:
    return keys


def raise_in_post_hook(*_: Any) -> None:
    raise LookupError("post hook")


PRE_HOOKS = (
    *(note_visit, note_visit, rename_weight, forget_children, change_metadata),
    *(complain, raise_in_pre_hook),
)
POST_HOOKS = (
    *(note_end, note_end, forget_one, forget_all, return_keys, raise_in_post_hook),
)


@dataclass
class Plan:
    """How to build one module tree."""

    make: Make | None = None
    wrap: Callable[[nn.Module], nn.Module] | None = None
    children: list[tuple[str, Plan | None]] = field(default_factory=list)
    built_before: int | None = None  # the same module again
    # Of the whole tree, at its root.
    ties: list[tuple[int, int]] = field(default_factory=list)
    hooks: list[tuple[int, str, Any]] = field(default_factory=list)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            model = self._build([])
        self._tie(model)
        modules: list[Any] = [
            module
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
        ]
        for index, kind, hook in self.hooks if modules else []:
            getattr(modules[index % len(modules)], kind)(hook)
        return model

    def _build(self, built: list[nn.Module]) -> nn.Module:
        if self.built_before is not None and built:
            return built[self.built_before % len(built)]
        if self.wrap is not None:
            module = self.wrap(self.children[0][1]._build(built))  # type: ignore[union-attr]
        else:
            assert self.make is not None
            module = self.make()
            for name, plan in self.children:
                child = None if plan is None else plan._build(built)
                module.register_module(name, child)
        built.append(module)
        return module

    def _tie(self, model: nn.Module) -> None:
        places = [
            (module, name)
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
            for name, value in module._parameters.items()
            if value is not None and type(value) is nn.Parameter
        ]
        for one, other in self.ties if places else []:
            left, name = places[one % len(places)]
            right, other_name = places[other % len(places)]
            if right._parameters[other_name].shape == left._parameters[name].shape:  # type: ignore[union-attr]
                left._parameters[name] = right._parameters[other_name]


@st.composite
def plans(draw: st.DrawFn, leaves: list[Make], wraps: bool = True) -> Plan:
    count = 0

    def plan(depth: int) -> Plan:
        nonlocal count
        count += 1
        if count > 2 and draw(st.integers(0, 7)) == 0:
            return Plan(
                draw(st.sampled_from(leaves)), built_before=draw(st.integers(0, 9))
            )
        if depth == 0 or draw(st.integers(0, 2)) == 0:
            return Plan(draw(st.sampled_from(leaves)))
        if wraps and draw(st.integers(0, 7)) == 0:
            wrap = draw(st.sampled_from(WRAPPERS))
            return Plan(wrap=wrap, children=[("", plan(depth - 1))])
        names = draw(st.lists(st.sampled_from("abcd"), unique=True))
        children = [
            (name, None if draw(st.integers(0, 9)) == 0 else plan(depth - 1))
            for name in names
        ]
        return Plan(draw(st.sampled_from(CONTAINERS)), children=children)

    result = plan(3)
    index = st.integers(0, 30)
    result.ties = draw(st.lists(st.tuples(index, index), max_size=2))
    return result


@st.composite
def hooks(draw: st.DrawFn) -> list[tuple[int, str, Any]]:
    index = st.integers(0, 10)
    kinds = st.one_of(
        st.tuples(
            index,
            st.just("register_load_state_dict_pre_hook"),
            st.sampled_from(PRE_HOOKS),
        ),
        st.tuples(
            index,
            st.just("_register_load_state_dict_pre_hook"),
            st.just(without_module),
        ),
        st.tuples(
            index,
            st.just("register_load_state_dict_post_hook"),
            st.sampled_from(POST_HOOKS),
        ),
    )
    root = (0, "register_load_state_dict_pre_hook", note_visit)
    return [root, *draw(st.lists(kinds, max_size=4))]


# State_dicts. A plan as well: a list of changes, made anew for each twin.

Change = tuple[str, int, Any]
STRAY = ("stray", "stray.deep", "a.weight", "_extra_state", "kernel", "a.b.c", "")


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.full((2, 2), 3.0)


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "int": lambda: 1,
    "text": lambda: "text",
    "scalar": lambda: torch.tensor(3.0),
    "one": lambda: torch.tensor([3.0]),
    "two": lambda: torch.full((2,), 3.0),
    "matrix": lambda: torch.full((2, 2), 3.0),
    "double": lambda: torch.full((2, 2), 3.0).double(),
    "complex": lambda: torch.full((2, 2), 3j),
    "strided": lambda: torch.arange(8.0).view(2, 4)[:, ::2],
    "expanded": lambda: torch.tensor([3.0]).expand(2, 2),
    "parameter": lambda: nn.Parameter(torch.full((2, 2), 3.0)),
    "frozen": lambda: nn.Parameter(torch.full((2, 2), 3.0), requires_grad=False),
    "graph": lambda: torch.full((2,), 3.0, requires_grad=True),
    "marked": lambda: torch.full((2, 2), 3.0).as_subclass(Marked),
    "named": lambda: torch.full((2, 2), 3.0).as_subclass(Named),
    "wrapper": lambda: TwoTensor(torch.full((2, 2), 3.0), torch.full((2, 2), 3.0)),
    "meta": lambda: torch.empty(2, 2, device="meta"),
    "sparse": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [1, 0]]), torch.ones(2), (2, 2), check_invariants=True
    ),
    "quantized": lambda: torch.quantize_per_tensor(
        torch.ones(2, 2), 0.1, 0, torch.qint8
    ),
    "inference": inference_tensor,
}


changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("drop", "add", "replace", "replace", "deepen", "drop all", "tie"),
                *("no metadata", "old version", "no versions", "shuffle", "not text"),
            ]
        ),
        st.integers(0, 40),
        st.tuples(st.sampled_from(STRAY), st.sampled_from(sorted(VALUES))),
    ),
    max_size=3,
)


def state_dict_of(model: nn.Module, damage: list[Change]) -> OrderedDict[str, Any]:
    """Return a state_dict of other values than the model's, then changed."""
    entries: Any = OrderedDict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict: Any = model.state_dict()
        for key, value in state_dict.items():
            entries[key] = _shifted(value)
        entries._metadata = OrderedDict(
            (name, dict(each)) for name, each in state_dict._metadata.items()
        )
        for kind, index, (name, value) in damage:
            _change(entries, kind, index, name, value)
    return entries  # type: ignore[no-any-return]


def _shifted(value: Any) -> Any:
    if isinstance(value, tuple):  # of packed parameters
        return tuple(_shifted(each) for each in value)
    if not isinstance(value, Tensor):
        return value
    if is_lazy(value):
        return torch.ones(2, 2)
    if value.is_quantized:
        return value
    return value.detach() + 1 if value.dtype is not torch.bool else ~value


def _change(entries: Any, kind: str, index: int, name: str, value: str) -> None:  # noqa: PLR0912
    keys: list[Any] = [*entries, "weight"]
    key = str(keys[index % len(keys)])
    prefix = key[: key.rfind(".") + 1]
    metadata = getattr(entries, "_metadata", {})
    match kind:
        case "drop":
            entries.pop(key, None)
        case "add":
            entries[prefix + name] = VALUES[value]()
        case "replace":
            entries[key] = VALUES[value]()
        case "deepen":
            entries[f"{key}.deep"] = VALUES[value]()
        case "drop all":
            for other in [k for k in entries if str(k).startswith(prefix)]:
                del entries[other]
        case "tie":
            other = keys[(index * 7 + 1) % len(keys)]
            if key in entries and other in entries:
                entries[key] = entries[other]
        case "no metadata":
            entries.__dict__.clear()
        case "old version":
            for each in list(metadata.values())[index % 3 :]:
                each["version"] = 1
        case "no versions":
            for each in metadata.values():
                each.clear()
        case "shuffle":
            for other in keys[index % len(keys) :: 2]:
                if other in entries:
                    entries.move_to_end(other)
        case "not text":
            entries[index] = VALUES[value]()
