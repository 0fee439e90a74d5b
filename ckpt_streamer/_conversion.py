"""Entries that PyTorch's code reads converted, one at a time."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module

Convert = Callable[[Module, Tensor], Any]


class _Conversion:
    """The conversion of one module's entries."""

    def __init__(self, convert: Convert, module: Module, keys: Collection[str]) -> None:
        self._convert = convert
        self._module = module
        self._keys = keys
        # What an entry was converted to, for an override that loads twice.
        self._results: dict[str, weakref.ref[Any] | None] = {}

    def of(self, key: str, value: Any) -> Any:
        if key not in self._keys or not isinstance(value, Tensor):
            return value
        if key in self._results:
            result = self._results[key]
            if result is None:
                return value
            if (converted := result()) is not None:
                return converted
        converted = self._convert(self._module, value)
        is_same = converted is value or not isinstance(converted, Tensor)
        self._results[key] = None if is_same else weakref.ref(converted)
        return converted


class _ConvertingMixin(dict[str, Any]):
    """Holds what it was given; while there is a conversion, reads as converted.

    A conversion that nobody keeps is gone when PyTorch's code goes on to the next
    entry: a module may hold many.
    """

    conversion: _Conversion | None = None

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value if self.conversion is None else self.conversion.of(key, value)


class _ConvertingDict(_ConvertingMixin):
    pass


class _ConvertingOrderedDict(_ConvertingMixin, OrderedDict[str, Any]):
    pass


def converting(entries: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that can be read converted, with load_state_dict's metadata."""
    if not isinstance(entries, OrderedDict):
        return _ConvertingDict(entries)
    result = _ConvertingOrderedDict(entries)
    result.__dict__.update(entries.__dict__)
    return result


@contextmanager
def converted(
    convert: Convert,
    module: Module,
    entries: dict[str, Any],
    keys_of: Callable[[str], Collection[str]],
) -> Iterator[None]:
    """Let a module's load read converted tensors, and nothing before or after it.

    From a hook on that runs behind all others and behind an override's renaming of
    keys: by then, the entries have the names that the module knows.

    Args:
        convert: Called with the module and a tensor.
        module: Whose load runs inside.
        entries: What :func:`converting` returned.
        keys_of: Tells which keys are to be converted, given the prefix.
    """

    def begin(module: Module, given: Any, prefix: str, *_: object) -> None:
        keys = keys_of(prefix)
        if isinstance(given, _ConvertingMixin):
            if given.conversion is None:
                given.conversion = _Conversion(convert, module, keys)
        else:  # an override's own dict: it ends with the override
            for key in keys:
                if isinstance(given.get(key), Tensor):
                    given[key] = convert(module, given[key])

    # A ScriptModule refuses the public method, and calls such hooks all the same.
    register: Any = Module._register_load_state_dict_pre_hook
    handle = register(module, begin, with_module=True)
    try:
        yield
    finally:
        handle.remove()
        assert isinstance(entries, _ConvertingMixin)
        entries.conversion = None
