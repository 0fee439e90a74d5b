"""What ``load_state_dict`` would complain about, found before it changes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX
from torch.overrides import is_tensor_like


class Report:
    """What a load found, and the error that PyTorch makes of it."""

    def __init__(self, model: Module, strict: bool) -> None:
        self._model = model
        self._strict = strict
        self.missing_keys: list[str] = []
        self.unexpected_keys: list[str] = []
        self.error_messages: list[str] = []

    def text(self) -> str | None:
        """Return load_state_dict's error text, None if there is no error."""
        messages = list(self.error_messages)
        if self._strict:
            for kind, keys in (
                ("Unexpected", self.unexpected_keys),
                ("Missing", self.missing_keys),
            ):
                if keys:
                    messages.insert(0, f"{kind} key(s) in state_dict: {quoted(keys)}. ")
        if not messages:
            return None
        return "Error(s) in loading state_dict for {}:\n\t{}".format(
            self._model.__class__.__name__, "\n\t".join(messages)
        )


def quoted(keys: list[str]) -> str:
    """List keys as PyTorch's messages do."""
    return ", ".join(f'"{key}"' for key in keys)


def local_state_of(module: Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of one module that a state_dict holds."""
    buffers = (
        (name, buffer)
        for name, buffer in module._buffers.items()
        if name not in module._non_persistent_buffers_set
    )
    return {
        name: value
        for name, value in chain(module._parameters.items(), buffers)
        if value is not None
    }


def filled_in_key_of(
    module: Module, entries: Mapping[str, Any], prefix: str, local_metadata: Any
) -> str | None:
    """Return the entry that batch norm's load adds by itself, if it will."""
    # batchnorm.py: before version 2 there was no num_batches_tracked.
    if isinstance(module, _NormBase) and module.track_running_stats:
        version = local_metadata.get("version", None)
        key = prefix + "num_batches_tracked"
        if (version is None or version < 2) and key not in entries:
            return key
    return None


def children_of(
    module: Module, entries: Mapping[str, Any], prefix: str
) -> Iterator[tuple[Module, dict[str, Any], str]]:
    """Yield each child with its part of the entries and its prefix.

    One pass over the entries for all children; PyTorch makes one for each. A
    part is not held here once yielded: what it was converted to must go when
    the child is done.
    """
    parts: dict[str, dict[str, Any]] | None = None
    for name, child in module._modules.items():
        if child is None:
            continue
        if parts is None:
            parts = _parts_of(entries, prefix)
        child_prefix = f"{prefix}{name}."
        if "." in name or not name:  # put into _modules by hand
            part = {k: v for k, v in entries.items() if k.startswith(child_prefix)}
        else:
            part = parts.pop(name, {})
        yield child, part, child_prefix


def _parts_of(entries: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        if key.startswith(prefix):
            name, dot, _ = key[len(prefix) :].partition(".")
            if dot:
                parts.setdefault(name, {})[key] = value
    return parts


def check(
    module: Module,
    entries: dict[str, Any],
    prefix: str,
    metadata: Any,
    report: Report,
    checks_shapes: bool,
) -> None:
    """Find what ``_load_from_state_dict`` would complain about, in its order.

    REQUIRES: no module under this one interferes.
    """
    local_state = local_state_of(module)
    local_metadata = {} if metadata is None else metadata.get(prefix[:-1], {})
    filled_in_key = filled_in_key_of(module, entries, prefix, local_metadata)
    if filled_in_key is not None:
        entries[filled_in_key] = local_state.get("num_batches_tracked")
    for name, value in local_state.items():
        key = prefix + name
        if key not in entries:
            report.missing_keys.append(key)
        elif checks_shapes:
            _check_shape(key, value, entries[key], report)

    _check_other_keys(module, entries, prefix, local_state, report)
    for child, part, child_prefix in children_of(module, entries, prefix):
        check(child, part, child_prefix, metadata, report, checks_shapes)


def _check_other_keys(
    module: Module,
    entries: dict[str, Any],
    prefix: str,
    local_state: dict[str, Tensor],
    report: Report,
) -> None:
    extra_state_key = prefix + _EXTRA_STATE_KEY_SUFFIX
    if type(module).set_extra_state is not Module.set_extra_state:
        if extra_state_key not in entries:
            report.missing_keys.append(extra_state_key)
    elif extra_state_key in entries:
        report.unexpected_keys.append(extra_state_key)
    for key in entries:
        if key.startswith(prefix) and key != extra_state_key:
            name, dot, _ = key[len(prefix) :].partition(".")
            if name not in (module._modules if dot else local_state):
                report.unexpected_keys.append(key)


def _check_shape(key: str, parameter: Tensor, value: Any, report: Report) -> None:
    if not is_tensor_like(value):
        report.error_messages.append(not_a_tensor_text(key, value))
    elif (
        not torch.nn.parameter.is_lazy(parameter)
        # Before 0.4, scalars were saved as tensors of one element.
        and not (len(parameter.shape) == 0 and tuple(value.shape) == (1,))
        and value.shape != parameter.shape
    ):
        report.error_messages.append(size_mismatch_text(key, value, parameter))


def not_a_tensor_text(key: str, value: object) -> str:
    """Say it as ``_load_from_state_dict`` does."""
    return (
        f'While copying the parameter named "{key}", expected torch.Tensor or '
        f"Tensor-like object from checkpoint but received {type(value)}"
    )


def size_mismatch_text(key: str, value: Tensor, parameter: Tensor) -> str:
    """Say it as ``_load_from_state_dict`` does."""
    return (
        f"size mismatch for {key}: copying a param with shape {value.shape} from "
        f"checkpoint, the shape in current model is {parameter.shape}."
    )


def exception_text(key: str, parameter: Tensor, value: Tensor, error: Exception) -> str:
    """Say it as ``_load_from_state_dict`` does."""
    return (
        f'While copying the parameter named "{key}", whose dimensions in the model '
        f"are {parameter.size()} and whose dimensions in the checkpoint are "
        f"{value.size()}, an exception occurred : {error.args}."
    )
