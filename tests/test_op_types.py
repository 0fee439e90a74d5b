"""The types of the ops say what their schemas say."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, get_overloads

import pytest
import torch

import ckpt_streamer

OVERLOADS = [
    ("open", "", 0),
    ("open", "paths", 1),
    ("stream", "", None),
    ("copy_", "", None),
    ("create", "", None),
    ("default_memory_limit_bytes", "", None),
    ("load_into", "", 0),
    ("load_into", "paths", 1),
]
TYPES = {
    "str": "str",
    "List[str]": "Sequence[str]",
    "Optional[List[str]]": "Sequence[str] | None",
    "int": "int",
    "bool": "bool",
    "Optional[int]": "torch.dtype | None",  # ScalarType
    "Optional[str]": "str | None",
    "Tensor": "Tensor",
    "Dict[str, Tensor]": "dict[str, Tensor]",
    "Optional[Dict[str, str]]": "dict[str, str] | None",
    "Optional[__torch__.torch.classes.ckpt_streamer.MemoryBudget]": (
        "MemoryBudget | None"
    ),
}


def function_of(name: str, index: int | None) -> Any:
    if index is None:
        return getattr(ckpt_streamer.Ops, name)
    # What is left of an overloaded function at run time is not the function.
    overloaded: Any = SimpleNamespace(
        __module__=ckpt_streamer.Ops.__module__, __qualname__=f"Ops.{name}"
    )
    return get_overloads(overloaded)[index]


@pytest.mark.parametrize(("name", "overload", "index"), OVERLOADS)
def test_arguments(name: str, overload: str, index: int | None) -> None:
    packet = getattr(torch.ops.ckpt_streamer, name)
    schema = getattr(packet, overload or "default")._schema
    signature = inspect.signature(function_of(name, index))
    parameters = list(signature.parameters.values())[1:]
    assert [p.name for p in parameters] == [a.name for a in schema.arguments]
    for parameter, argument in zip(parameters, schema.arguments, strict=True):
        is_keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert is_keyword == argument.kwarg_only
        assert parameter.annotation == TYPES[str(argument.type)], argument.name
        if argument.has_default_value():
            assert parameter.default == argument.default_value
        else:
            assert parameter.default is inspect.Parameter.empty


def test_every_public_op_has_its_types() -> None:
    registered = {
        schema.name.removeprefix("ckpt_streamer::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("ckpt_streamer::")
    }
    public = {name for name in registered if not name.startswith("_")}
    assert public == {name for name, _, _ in OVERLOADS}


def test_every_method_has_its_types() -> None:
    handle = ckpt_streamer.ops.stream({"a": torch.ones(1)}, 1 << 20)
    methods = {name for name in handle._method_names() if name[:2] != "__"}  # type: ignore[attr-defined]
    typed = {
        name
        for name, member in vars(ckpt_streamer.StreamHandle).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    assert typed == methods
    assert len(handle) == 1


def test_every_method_of_a_budget_has_its_types() -> None:
    budget: Any = ckpt_streamer.MemoryBudget(4)
    methods = {name for name in budget._method_names() if name[:2] != "__"}
    members = vars(ckpt_streamer.MemoryBudget)
    assert methods == {name for name in members if name[0] != "_"}


def test_the_typed_ops_are_those_of_torch() -> None:
    assert ckpt_streamer.ops is torch.ops.ckpt_streamer
