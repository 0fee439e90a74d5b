"""Methods of scripted modules that stream their weights in."""

from __future__ import annotations

import itertools
import linecache
import types
from typing import Any, TypeVar

import torch
from torch.nn import Module

from ckpt_streamer._check import local_state_of

_ModuleT = TypeVar("_ModuleT", bound=Module)

_numbers = itertools.count()


def add_load_method(
    module: _ModuleT,
    name: str = "load",
    *,
    prefix: str | None = None,
    strict: bool = True,
) -> _ModuleT:
    """Give a module a method that streams a checkpoint into its parameters.

    The method is ``load(path: str, memory_limit_bytes: int) -> tuple[list[str],
    list[str]]``: it calls ``torch.ops.ckpt_streamer.load_into`` with all that the
    module's ``state_dict()`` has, by name, and returns the missing and unexpected
    names. TorchScript compiles it, where it does not compile
    ``self.named_parameters()``: saved by ``torch.jit.save``, the module has it in
    Python and in C++.

    Args:
        module: A module that is to be scripted, which gets a class of its own for
            it, below its class (equip it last: such an object cannot be pickled); or
            a scripted or traced one.
        name: The method's.
        prefix: What the names in the file begin with and lose, as
            ``"state_dict."``. None: that with which most parameters are found.
        strict: Whether missing and unexpected names are an error.

    Returns:
        The module itself.

    Raises:
        ValueError: The module has an attribute of that name, or ``name`` is no
            identifier.

    Example:
        >>> model = torch.jit.script(add_load_method(torch.nn.Linear(2, 2)))
        >>> torch.save(torch.nn.Linear(2, 2).state_dict(), "linear.pt")
        >>> model.load("linear.pt", 1 << 20)
        ([], [])
    """
    if not name.isidentifier():
        raise ValueError(f"name is {name!r}, expected an identifier")
    if hasattr(module, name):
        raise ValueError(f"{type(module).__name__} has an attribute {name!r} already")
    source = _source_of(module, name, prefix, strict)
    if isinstance(module, torch.jit.ScriptModule):
        module.define(source)
        return module
    kind = type(module)
    method = torch.jit.export(_compiled(source, name))
    members = {name: method, "__module__": kind.__module__}
    module.__class__ = types.new_class(
        kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(members)
    )
    return module


def _source_of(module: Module, name: str, prefix: str | None, strict: bool) -> str:
    lines = [
        f"def {name}(self, path: str, memory_limit_bytes: int) -> "
        "Tuple[List[str], List[str]]:",
        '    """Stream a checkpoint into the parameters and buffers, by name."""',
        "    parameters: Dict[str, Tensor] = {}",
    ]
    for path, owner in module.named_modules(remove_duplicate=False):
        for key in local_state_of(owner):
            parts = [*(path.split(".") if path else ()), key]
            value = "self"
            for part in parts:
                value = f"getattr({value}, {part!r})"
            lines.append(f"    parameters[{'.'.join(parts)!r}] = {value}")
    lines.append(
        "    return torch.ops.ckpt_streamer.load_into("
        f"parameters, path, memory_limit_bytes, prefix={prefix!r}, strict={strict})"
    )
    return "\n".join(lines) + "\n"


def _compiled(source: str, name: str) -> Any:
    """Compile a function whose source TorchScript finds."""
    file_name = f"<ckpt_streamer load method {next(_numbers)}>"
    linecache.cache[file_name] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        file_name,
    )
    names: dict[str, Any] = {
        "torch": torch,
        "Tensor": torch.Tensor,
        "Dict": dict,
        "List": list,
        "Tuple": tuple,
    }
    exec(compile(source, file_name, "exec"), names)
    return names[name]
