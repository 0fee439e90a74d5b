"""The entries that a model is loaded from: which mapping, and by which names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

KeyMap = Mapping[str, str | None] | Callable[[str], str | None]


def entries_at(source: Mapping[Any, Any], root: str) -> Mapping[Any, Any]:
    """Find a nested mapping by its keys, joined by dots.

    A key that has dots itself goes before keys joined by them.

    Raises:
        KeyError: There is no such key.
        TypeError: It is no mapping.
    """
    value: Any = source
    rest = root
    while rest:
        key = rest if _has(value, rest) else rest.partition(".")[0]
        if not _has(value, key):
            keys = list(value) if isinstance(value, Mapping) else range(_length(value))
            raise KeyError(f"root is {root!r}, and {key!r} is none of {_some(keys)}")
        rest = rest[len(key) + 1 :]
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise TypeError(f"root is {root!r}, of type {kind}, expected a mapping")
    return value


def _has(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value
    return key.isdecimal() and int(key) < _length(value)


def _length(value: Any) -> int:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return len(value) if is_list else 0


def _some(keys: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, keys[:8]))
    return f"{shown} and {len(keys) - 8} more" if len(keys) > 8 else shown or "no keys"


def renamed(
    entries: Mapping[Any, Any], prefix: str, key_map: KeyMap | None
) -> OrderedDict[str, Any]:
    """Rename entries, and the metadata of their modules with them.

    Those whose keys do not begin with ``prefix``, and those that ``key_map``
    renames to None, are left out.

    Raises:
        TypeError: ``prefix`` is no ``str``, ``key_map`` neither callable nor a
            mapping, or its result neither a ``str`` nor None.
        ValueError: Two keys become one.
    """
    if not _is_text(prefix):
        raise TypeError(f"prefix is {prefix!r}, expected a str")
    new_key_of = _function_of(key_map)
    metadata = getattr(entries, "_metadata", None)
    result: OrderedDict[str, Any] = OrderedDict()
    new_metadata: OrderedDict[str, Any] = OrderedDict()
    old_keys: dict[str, str] = {}
    for key, value in entries.items():
        if not isinstance(key, str):
            if not prefix:
                result[key] = value
            continue
        new_key = new_key_of(key[len(prefix) :]) if key.startswith(prefix) else None
        if new_key is None:
            continue
        if new_key in result:
            raise ValueError(
                f"{old_keys[new_key]!r} and {key!r} are both renamed to {new_key!r}"
            )
        result[new_key] = value
        old_keys[new_key] = key
        module = key.rpartition(".")[0]
        if metadata is not None and module in metadata:
            new_metadata.setdefault(new_key.rpartition(".")[0], metadata[module])
    if metadata is not None:
        result._metadata = new_metadata  # type: ignore[attr-defined]
    return result


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _function_of(key_map: KeyMap | None) -> Callable[[str], str | None]:
    if key_map is None:
        return lambda key: key
    if isinstance(key_map, Mapping):
        names = key_map
        rename: Callable[[str], Any] = lambda key: names.get(key, key)  # noqa: E731
    elif callable(key_map):
        rename = key_map
    else:
        raise TypeError(
            f"key_map is {key_map!r}, expected a mapping of keys or a function"
        )

    def new_key_of(key: str) -> str | None:
        new_key = rename(key)
        if new_key is not None and not isinstance(new_key, str):
            raise TypeError(
                f"key_map renames {key!r} to {new_key!r} ({type(new_key).__name__}), "
                "expected a str, or None to leave it out"
            )
        return new_key

    return new_key_of
