"""The entries that a model is loaded from: which mapping, and by which names."""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.nn import Module

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Bounds, is_path
from ckpt_streamer._checkpoint import Checkpoint, open_within
from ckpt_streamer._file_stream import lots_of, names_of
from ckpt_streamer._reads import CheckSource, no_check
from ckpt_streamer._tree import MappingNode, SequenceNode, Tree

_logger = logging.getLogger("ckpt_streamer")

KeyMap = Mapping[str, str | None] | Callable[[str], str | None]

_ATTRIBUTE = "_metadata"


class Metadata:
    """What load_state_dict knows as a state_dict's ``_metadata``: by module, a dict.

    Of a file, made when it is asked for: that takes as long as all else that is
    done with the names of a model of thousands of modules.
    """

    def __init__(self, source: object) -> None:
        """``source`` is what has it as an attribute, if anything has."""
        self._source = source

    @cached_property
    def of_modules(self) -> Any:
        """Return it, None if there is none; for hooks and overrides to change."""
        return getattr(self._source, _ATTRIBUTE, None)

    def may_mention(self, key: str) -> bool:
        """Whether a module's dict may have a key, as far as that is cheaply told."""
        if not isinstance(self._source, MappingNode):
            return self.of_modules is not None
        keys = self._source.keys_within_attribute(_ATTRIBUTE)
        return self.of_modules is not None if keys is None else key in keys


def entries_of(
    source: Any,
    model: Module,
    bounds: Bounds,
    root: str | None,
    prefix: str,
    key_map: KeyMap | None,
) -> tuple[OrderedDict[str, Any], Metadata, CheckSource]:
    """Return what a model is loaded from, and its metadata.

    And a function that raises a ValueError once the file was written to; of a
    mapping in memory, it does nothing.

    Args:
        source: A mapping in memory or in a checkpoint, a :class:`Checkpoint`, or
            what :func:`open` opens. Of the last two, without a ``root``, the
            mapping in it that has the most of the model's keys.
        model: Tells which keys those are.
        bounds: Of what is opened.
        root: Where the entries are, instead; see :func:`entries_at`.
        prefix: What is cut off their keys; see :class:`Renaming`.
        key_map: Renames the rest; see :class:`Renaming`.

    Raises:
        TypeError: It is no mapping, or as :class:`Renaming`.
        KeyError: As :func:`entries_at`.
        ValueError: Several mappings have the most keys, or as :class:`Renaming`.
        OSError, ValueError, NotImplementedError: As :func:`open`.
    """
    renaming = Renaming(prefix, key_map)
    if is_path(source):
        source = open_within(source, bounds)
    is_checkpoint = isinstance(source, Checkpoint)
    if is_checkpoint:
        source = _root_of(source)
    check: CheckSource = no_check
    tree = None
    if isinstance(source, (MappingNode, SequenceNode)):
        tree = source.tree
        check = tree.handle.lookups().check_unchanged
    if root is not None:
        source = entries_at(source, root)
    entries, metadata = (
        _best_entries_in(source, model, renaming)
        if is_checkpoint and root is None
        else _entries_in(source)
    )
    if tree is not None:
        # Looked up, and read from now on as a part of the whole.
        tree.handle.lookups().release()
    if renaming.is_needed:
        entries, metadata = renaming.renamed(entries, metadata)
    return entries, metadata, check


Entries = tuple[OrderedDict[Any, Any], Metadata]


def _entries_in(source: Any) -> Entries:
    """Copy a mapping.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(source, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(source)}.")
    entries: OrderedDict[Any, Any] = (
        source.fresh_entries()
        if isinstance(source, MappingNode)
        else OrderedDict(source)
    )
    return entries, Metadata(source)


def entries_at(source: Any, root: str) -> Mapping[Any, Any]:
    """Find a nested mapping by its keys, joined by dots; by none, the source itself.

    A key that has dots itself goes before keys joined by them.

    Raises:
        KeyError: There is no such key.
        TypeError: It is no mapping.
    """
    for value in _values_at(source, root):
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise TypeError(f"root is {root!r}, of type {kind}, expected a mapping")
        return value
    value, rest = source, root
    while _has(value, key := rest.partition(".")[0]):
        value, rest = _item(value, key), rest.partition(".")[2]
    keys = list(value) if isinstance(value, Mapping) else range(_length(value))
    raise KeyError(f"root is {root!r}, and {key!r} is none of {_some(keys)}")


def _values_at(value: Any, path: str) -> Iterator[Any]:
    """Yield what is at a path of keys joined by dots, the longest first key first."""
    if not path:
        yield value
        return
    end = len(path)
    while end > 0:
        if _has(value, path[:end]):
            yield from _values_at(_item(value, path[:end]), path[end + 1 :])
        end = path.rfind(".", 0, end)


def _has(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value
    return key.isdecimal() and int(key) < _length(value)


def _item(value: Any, key: str) -> Any:
    return value[key] if isinstance(value, Mapping) else value[int(key)]


def _length(value: Any) -> int:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return len(value) if is_list else 0


def _some(keys: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, keys[:8]))
    return f"{shown} and {len(keys) - 8} more" if len(keys) > 8 else shown or "no keys"


class Renaming:
    """By which names the entries of a mapping are loaded.

    Those whose keys do not begin with ``prefix``, and those that ``key_map``
    renames to None, are left out. Keys that are no text stay without a prefix.

    Raises:
        TypeError: ``prefix`` is no ``str``, or ``key_map`` neither callable nor a
            mapping.
    """

    def __init__(self, prefix: str, key_map: KeyMap | None) -> None:
        if not _is_text(prefix):
            raise TypeError(f"prefix is {prefix!r}, expected a str")
        self.is_needed = prefix != "" or key_map is not None
        self._prefix = prefix
        self._new_key_of = _function_of(key_map)

    def new_key_of(self, key: str) -> str | None:
        """Return the new name of a key, None for one that is left out.

        Raises:
            TypeError: ``key_map`` made something else of it.
        """
        prefix = self._prefix
        return self._new_key_of(key[len(prefix) :]) if key.startswith(prefix) else None

    def renamed(self, entries: Mapping[Any, Any], metadata: Metadata) -> Entries:
        """Rename entries, and the metadata of their modules with them.

        Raises:
            TypeError: As :meth:`new_key_of`.
            ValueError: Two keys become one.
        """
        of_modules = metadata.of_modules
        result: OrderedDict[str, Any] = OrderedDict()
        new_metadata: OrderedDict[str, Any] = OrderedDict()
        old_keys: dict[str, str] = {}
        for key, value in entries.items():
            if not isinstance(key, str):
                if not self._prefix:
                    result[key] = value
                continue
            new_key = self.new_key_of(key)
            if new_key is None:
                continue
            if new_key in result:
                raise ValueError(
                    f"{old_keys[new_key]!r} and {key!r} are both renamed to {new_key!r}"
                )
            result[new_key] = value
            old_keys[new_key] = key
            module = key.rpartition(".")[0]
            if of_modules is not None and module in of_modules:
                new_metadata.setdefault(new_key.rpartition(".")[0], of_modules[module])
        if of_modules is not None:
            result._metadata = new_metadata  # type: ignore[attr-defined]
        return result, Metadata(result)

    def tried(self, keys: Iterable[Any]) -> list[Any]:
        """Return what each key becomes, None also where ``key_map`` fails.

        It may have been made for the keys of another mapping.
        """
        result = []
        for key in keys:
            try:
                result.append(self.new_key_of(key) if isinstance(key, str) else None)
            except Exception:  # anybody's code
                result.append(None)
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


# Which mapping of a file it is


def _root_of(checkpoint: Checkpoint) -> MappingNode | SequenceNode:
    """Return what a file holds.

    Raises:
        TypeError: That is nothing that a mapping could be in.
    """
    root = checkpoint.root
    if not isinstance(root, (MappingNode, SequenceNode)):
        what = "one tensor" if isinstance(root, Tensor) else repr(root)
        raise TypeError(
            f"{checkpoint.paths[0]}: holds {what}, expected a mapping of names to "
            "tensors, as a model's state_dict() is"
        )
    return root


def _best_entries_in(
    root: MappingNode | SequenceNode, model: Module, renaming: Renaming
) -> Entries:
    """Copy the mapping of a file that has the most of a model's keys.

    Raises:
        TypeError: There is no mapping.
        ValueError: As :func:`_best_mapping`.
    """
    if isinstance(root, MappingNode):
        entries, metadata = _entries_in(root)
        if not set(map(type, entries.values())) & {MappingNode, SequenceNode}:
            return entries, metadata
        best = _best_mapping(root, model, renaming)
        return (entries, metadata) if best is None else _entries_in(best)
    return _entries_in(_best_mapping(root, model, renaming) or root)


def _best_mapping(
    root: MappingNode | SequenceNode, model: Module, renaming: Renaming
) -> MappingNode | None:
    """Find the mapping below the root that has the most of a model's keys.

    None if no other has more of them than the root. Mappings inside objects do not
    count.

    Cost: a look at the keys of all tensors, some 0.2 microseconds each; nothing if
    the root has all the model's keys.

    Raises:
        ValueError: Several have the most.
    """
    names: set[str] = set()
    _add_names(model, "", names)
    if isinstance(root, MappingNode):
        keys = renaming.tried(root) if renaming.is_needed else root
        if names.issubset(keys):
            return None
    tree = root.tree
    slots = tree.handle.slots_under(root.node)
    counts, positions = _matching_containers(tree, slots, names, renaming)
    most = counts.pop(root.node, 0)
    best: dict[str, MappingNode] = {}
    for node, count in sorted(counts.items(), key=itemgetter(1), reverse=True):
        if count < most or (count == most and not best):
            break
        path = _path_of(slots, positions[node], tree)
        for found in _values_at(root, path):  # nothing inside an object
            if isinstance(found, MappingNode) and found.node == node:
                best[path], most = found, count
    if not best:
        return None
    if len(best) > 1:
        *others, last = map(repr, sorted(best))
        raise ValueError(
            f"{tree.name}: {', '.join(others)} and {last} each have {most} of the "
            f"model's {len(names)} keys, expected one mapping that has the most; say "
            "which by root="
        )
    [(path, mapping)] = best.items()
    _logger.info(
        "%s: taking the entries from root=%r, which has %d of the model's %d keys",
        *(tree.name, path, most, len(names)),
    )
    return mapping


def _add_names(module: Module, prefix: str, names: set[str]) -> None:
    """Add the keys of a model's parameters and buffers. No code of it is run."""
    skipped = module._non_persistent_buffers_set
    for name, parameter in module._parameters.items():
        if parameter is not None:
            names.add(prefix + name)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in skipped:
            names.add(prefix + name)
    for name, child in module._modules.items():
        if child is not None:
            _add_names(child, f"{prefix}{name}.", names)


def _matching_containers(
    tree: Tree, slots: _ops.SlotList, names: set[str], renaming: Renaming
) -> tuple[dict[int, int], dict[int, int]]:
    """Count the model's keys that each container has tensors of.

    By the container's node; with the position of one of the slots.
    """
    counts: defaultdict[int, int] = defaultdict(int)
    positions: dict[int, int] = {}
    for begin, end in lots_of(len(slots)):
        keys = tree.keys_of(slots.keys(begin, end))
        if renaming.is_needed:
            keys = renaming.tried(keys)
        nodes = slots.containers(begin, end).tolist()
        if len(nodes) == 1 and names.isdisjoint(keys):
            continue
        nodes *= (end - begin) // len(nodes)
        for position, (node, key) in enumerate(zip(nodes, keys, strict=True), begin):
            if key in names:
                counts[node] += 1
                positions[node] = position
    return counts, positions


def _path_of(slots: _ops.SlotList, position: int, tree: Tree) -> str:
    """The dotted keys of the container that holds a slot."""
    [name] = names_of(slots, position, position + 1)
    [key] = tree.keys_of(slots.keys(position, position + 1))
    return name[: -len(key) - 1]
