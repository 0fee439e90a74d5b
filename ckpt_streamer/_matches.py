"""Which entry goes to which parameter, where a load holds no surprises."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import attrgetter, ne
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _NormBase

ASSIGN = "assign_to_params_buffers"  # in a module's metadata: what load_state_dict sets
_TORCHS_LOADS = (Module._load_from_state_dict, _NormBase._load_from_state_dict)
_MEMBERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
PLAIN_TENSORS = frozenset({Tensor, Parameter})


class Matches:
    """Parameters and buffers in the order of their load, each with its entry.

    Parallel lists. ``members[i][names[i]]`` is what module ``modules[i]`` holds,
    ``tensors[i]`` the entry, ``keys[i]`` its key. ``parameters`` is empty when
    assigning: what is replaced must be free to go.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.modules: list[Module] = []
        self.members: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.parameters: list[Tensor] = []
        self.tensors: list[Tensor] = []
        # Of the modules passed, where load_state_dict notes ``assign``.
        self.local_metadata: list[dict[str, Any]] = []

    def reordered(self, order: list[int]) -> Matches:
        """Return the same in another order: first what is at ``order[0]`` here."""
        result = Matches()
        result.local_metadata = self.local_metadata
        for name in ("keys", "modules", "members", "names", "parameters", "tensors"):
            values = getattr(self, name)
            setattr(result, name, [values[index] for index in order])
        return result


def interferes(module: Module) -> bool:
    """Whether only running a module's load can tell which keys it accepts."""
    load = getattr(module._load_from_state_dict, "__func__", None)
    return bool(
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or load not in _TORCHS_LOADS
    )


def match(
    root: Module,
    entries: Mapping[str, Any],
    prefix: str,
    metadata: Any,
    assign: bool,
    needs_shapes: bool,
) -> Matches | None:
    """Pair all that a module and those below it hold with the entries.

    None unless they match one to one and ``Module.load_state_dict`` could do
    nothing with them but copy (or assign) one after the other: plain
    modules without hooks, plain tensors, with ``needs_shapes`` of equal shapes.
    What this says no to is not wrong, only for PyTorch's own code to judge.

    Cost: linear in the modules and entries, a fifth of running PyTorch's code.
    """
    matcher = _Matcher(entries, metadata, assign)
    matches = matcher.matches
    keys = matches.keys
    try:
        if not matcher.visit(root, prefix) or len(keys) != len(entries):
            return None
        tensors: list[Any] = list(map(entries.__getitem__, keys))
        if "." in "".join(matches.names):  # unexpected, says PyTorch
            return None
    except (AttributeError, KeyError, TypeError):  # not initialised, or strange names
        return None
    parameters = matches.parameters
    if (
        len(set(keys)) < len(keys)
        or not PLAIN_TENSORS.issuperset(map(type, chain(tensors, parameters)))
        or (not assign and any(map(_is_meta, parameters)))
        or (
            needs_shapes and any(map(ne, map(_shape, tensors), map(_shape, parameters)))
        )
    ):
        return None
    matches.tensors = tensors
    if assign:
        parameters.clear()  # what is replaced must be free to go
    return matches


_shape = attrgetter("shape")
_is_meta = attrgetter("is_meta")


class _Matcher:
    def __init__(self, entries: Mapping[str, Any], metadata: Any, assign: bool) -> None:
        self.matches = Matches()
        self._entries = entries
        self._metadata = metadata
        self._assign = assign
        # Of each type, whether it is plain, and whether it is a batch norm.
        self._types: dict[type[Module], tuple[bool, bool]] = {}

    def visit(self, module: Module, prefix: str) -> bool:
        """Match a module and those below it; False if that is not for us."""
        kind = type(module)
        if kind not in self._types:
            is_plain = _is_plain_type(kind, self._assign)
            self._types[kind] = is_plain, issubclass(kind, _NormBase)
        is_plain, is_norm = self._types[kind]
        state = module.__dict__
        if (
            not is_plain
            or state["_load_state_dict_pre_hooks"]
            or state["_load_state_dict_post_hooks"]
            or "_load_from_state_dict" in state
        ):
            return False
        if self._metadata is not None:
            local_metadata = self._metadata.get(prefix[:-1], {})
            if self._assign:
                self.matches.local_metadata.append(local_metadata)
            elif ASSIGN in local_metadata:
                return False
        if members := state["_parameters"]:
            self._take_all(module, members, prefix, ())
        if members := state["_buffers"]:
            skipped = state["_non_persistent_buffers_set"]
            self._take_all(module, members, prefix, skipped)
        if (
            is_norm
            and state["track_running_stats"]
            and prefix + "num_batches_tracked" not in self._entries
        ):
            return False  # would be filled in
        for name, child in state["_modules"].items():
            if child is not None and (
                "." in name or not self.visit(child, f"{prefix}{name}.")
            ):
                return False
        return True

    def _take_all(
        self, module: Module, members: dict[str, Any], prefix: str, skipped: Any
    ) -> None:
        matches = self.matches
        for name, parameter in members.items():
            if parameter is not None and name not in skipped:
                matches.keys.append(prefix + name)
                matches.modules.append(module)
                matches.members.append(members)
                matches.names.append(name)
                matches.parameters.append(parameter)


def _is_plain_type(kind: type[Module], assign: bool) -> bool:
    return (
        kind._load_from_state_dict in _TORCHS_LOADS
        and kind.set_extra_state is Module.set_extra_state
        and (not assign or kind.__setattr__ is Module.__setattr__)
        and kind.__getattribute__ is Module.__getattribute__
        and not any(hasattr(kind, name) for name in _MEMBERS)  # as ScriptModule's
    )
