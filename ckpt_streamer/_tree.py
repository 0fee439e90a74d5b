"""The values of a checkpoint file as a tree that is made on demand.

Nothing in the file is imported or run: what it would have made by a call is an
:class:`OpaqueObject`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import (
    Callable,
    ItemsView,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import Any, ClassVar, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Bounds

try:
    import numpy
except ImportError:  # torch works without it, and so do we
    np: Any = None
else:
    np = numpy

_LOT = 2048
_SHOWN_KEYS = 6

# What a handle's kinds() says; see csrc/ops/checkpoint_handle.h.
_LIST, _DICT, _TENSOR = 1, 2, 3


class Tree:
    """The values of one open checkpoint.

    Equal nodes are the same Python object for as long as it lives; numbers,
    texts and plain tuples are made anew each time.
    """

    def __init__(self, handle: _ops.Checkpoint, bounds: Bounds) -> None:
        paths = handle.paths()
        self.name = paths[0]
        self.bounds = bounds
        self.may_repeat_names = len(paths) > 1
        self._handle: _ops.Checkpoint | None = handle
        self._alive: WeakValueDictionary[int, Any] = WeakValueDictionary()

    @property
    def handle(self) -> _ops.Checkpoint:
        if self._handle is None:
            raise ValueError(f"{self.name}: the checkpoint is closed")
        return self._handle

    @property
    def is_closed(self) -> bool:
        return self._handle is None

    def close(self) -> None:
        self._handle = None

    def read_only(self) -> str:
        return (
            f"{self.name}: the values of an open checkpoint are read-only, expected "
            "what is to be changed in a dict or list of your own"
        )

    def tensor(self, name: str) -> Tensor:
        """Make the tensor of a dotted name, in the dtype of the checkpoint.

        Raises:
            KeyError: There is none of that name.
            ValueError: There are several.
        """
        return self._named(name, self.handle.tensor(name))

    def slice(self, name: str, begin: int, end: int) -> Tensor:
        """Make a part of the tensor of a dotted name, likewise.

        Raises:
            IndexError: There is no such part.
            TypeError: A number is no integer.
            KeyError, ValueError: As :meth:`tensor`.
        """
        handle = self.handle  # an error once closed
        begin, end = index(begin), index(end)
        if not all(-(2**63) <= each < 2**63 for each in (begin, end)):
            raise IndexError(
                f"slice [{begin}, {end}) of the tensor {name!r}, expected one within "
                "its first dimension"
            )
        return self._named(name, handle.slice(name, begin, end))

    def _named(self, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise KeyError(f"{self.name} has no tensor {name!r}")
        return tensor

    def value(self, node: int) -> Any:
        alive = self._alive.get(node)
        if alive is not None:
            return alive
        return self._made(node, self.handle.values([node])[0])

    def values(self, nodes: list[int]) -> Iterator[Any]:
        """Make the values lot by lot."""
        return map(self._made, nodes, self._given(nodes))

    def fresh_values(self, nodes: list[int]) -> list[Any]:
        """Make all the values, and tensors anew: those of equal nodes are one.

        For whoever takes a whole mapping: to note each tensor for later look-ups
        takes three times as long as to make it.
        """
        values = list(self._given(nodes))
        if set(map(type, values)) != {Tensor}:
            values = [
                value if isinstance(value, Tensor) else self._made(node, value)
                for node, value in zip(nodes, values, strict=True)
            ]
        if len(set(nodes)) == len(nodes):
            return values
        firsts: dict[int, Any] = {}
        return [
            firsts.setdefault(node, value)
            for node, value in zip(nodes, values, strict=True)
        ]

    def _given(self, nodes: list[int]) -> Iterator[Any]:
        """What the handle gives for nodes, as many at once as a look-up may hold."""
        begin = 0
        while begin < len(nodes):
            given = self.handle.values(nodes[begin : begin + _LOT])
            begin += len(given)
            yield from given

    def items(self, node: int) -> list[int]:
        """The nodes of a sequence's or object's items, or of a dict's values."""
        return list(self.handle.items(node).tolist())

    def keys(self, node: int) -> list[Any]:
        """The keys of a dict or object, each something that can be a key."""
        return self.keys_of(self.handle.keys(node))

    def keys_of(self, given: str | list[str] | Tensor) -> list[Any]:
        """Make keys of what a handle gave: texts or nodes, -1 for no key."""
        if not isinstance(given, Tensor):
            return _ops.texts(given)
        nodes = given.tolist()
        values = self.values([node for node in nodes if node >= 0])
        return [hashable(next(values)) if node >= 0 else None for node in nodes]

    def parts(self, node: int) -> list[int]:
        return self.handle.parts(node)

    def plain(self, node: int) -> Any:
        """Make a value whose dicts and lists are the caller's to change."""
        made: dict[int, Any] = {}
        unfilled = self._add_plain([node], made)
        while unfilled:  # all of one depth at once: a look-up for each is dear
            counts, nodes, keys = (
                each.tolist() for each in self.handle.children(unfilled)
            )
            deeper = self._add_plain(nodes, made)
            distinct_keys = [key for key in dict.fromkeys(keys) if key >= 0]
            key_of: dict[int, Any] = {-1: None}
            key_of.update(
                zip(
                    distinct_keys,
                    map(hashable, self.values(distinct_keys)),
                    strict=True,
                )
            )
            entries = zip(
                map(key_of.__getitem__, keys), map(made.__getitem__, nodes), strict=True
            )
            for container, count in zip(unfilled, counts, strict=True):
                target = made[container]
                own = islice(entries, count)
                if isinstance(target, dict):
                    target.update(own)
                else:
                    target.extend(value for _key, value in own)
            unfilled = deeper
        return made[node]

    def keys_within(self, node: int) -> set[Any] | None:
        """The keys of all dicts in a dict of dicts, which are not made; else None."""
        nodes = [node]
        for _ in range(2):
            if set(self.handle.kinds(nodes).tolist()) - {_DICT}:
                return None
            _, values, keys = (each.tolist() for each in self.handle.children(nodes))
            nodes = values
        return set(map(hashable, self.values([key for key in set(keys) if key >= 0])))

    def values_but_tensors(self, nodes: list[int]) -> list[Any]:
        """Make the values of those that are no tensors, of which nothing is read."""
        kinds = self.handle.kinds(nodes).tolist()
        pairs = zip(nodes, kinds, strict=True)
        return list(self.values([node for node, kind in pairs if kind != _TENSOR]))

    def _add_plain(self, nodes: list[int], made: dict[int, Any]) -> list[int]:
        """Make the values that are not made yet; return the nodes of empty ones."""
        new = [node for node in dict.fromkeys(nodes) if node not in made]
        leaves = []
        unfilled = []
        for node, kind in zip(new, self.handle.kinds(new).tolist(), strict=True):
            if kind not in {_LIST, _DICT}:
                leaves.append(node)
                continue
            made[node] = [] if kind == _LIST else {}
            unfilled.append(node)
        made.update(zip(leaves, self.values(leaves), strict=True))
        return unfilled

    def _made(self, node: int, item: Any) -> Any:
        """Make a Python value of what the handle gave for a node."""
        if isinstance(item, tuple):
            return self._MAKERS[item[0]](self, node, *item[1:])
        if isinstance(item, Tensor):
            return self._alive.setdefault(node, item)
        return item

    def _kept(self, made: Any) -> Any:
        return self._alive.setdefault(made.node, made)

    def _make_int(self, _: int, text: str) -> int:
        return int(text, 0)

    def _make_bytes(self, _: int, latin1: str) -> bytes:
        return latin1.encode("latin-1")

    def _make_array(
        self,
        _: int,
        dtype: str,
        sizes: list[int],
        is_scalar: bool,
        is_fortran_order: bool,
        latin1: str,
    ) -> Any:
        data = latin1.encode("latin-1")
        if np is None:
            return OpaqueArray(dtype, tuple(sizes), is_fortran_order, data)
        order: Any = "F" if is_fortran_order else "C"
        array: Any = np.ndarray(tuple(sizes), np.dtype(dtype), data, order=order)
        return array[()] if is_scalar else array

    def _make_global(self, _: int, name: str) -> Any:
        # Names, not code: torch's own constants are what they were.
        module, _dot, attribute = name.rpartition(".")
        value = getattr(torch, attribute, None) if module == "torch" else None
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return value
        return OpaqueGlobal(name)

    def _make_tuple(self, node: int, count: int, is_plain: bool) -> Any:
        if is_plain:
            return tuple(self.values(self.items(node)))
        return self._kept(SequenceNode(self, node, "tuple", count))

    def _make_set(self, node: int, count: int, is_plain: bool) -> Any:
        if is_plain:
            try:
                return frozenset(self.values(self.items(node)))
            except TypeError:  # numpy arrays among them
                pass
        return self._kept(SequenceNode(self, node, "set", count))

    def _make_list(self, node: int, count: int, _: bool) -> SequenceNode:
        made: SequenceNode = self._kept(SequenceNode(self, node, "list", count))
        return made

    def _make_dict(self, node: int, count: int, type_name: str) -> MappingNode:
        made: MappingNode = self._kept(MappingNode(self, node, type_name, count))
        return made

    def _make_object(self, node: int, type_name: str) -> OpaqueObject:
        made: OpaqueObject = self._kept(OpaqueObject(self, node, type_name))
        return made

    # By what the handle calls them; see csrc/ops/node_values.h.
    _MAKERS: ClassVar[dict[str, Callable[..., Any]]] = {
        "int": _make_int,
        "bytes": _make_bytes,
        "array": _make_array,
        "global": _make_global,
        "tuple": _make_tuple,
        "set": _make_set,
        "list": _make_list,
        "dict": _make_dict,
        "object": _make_object,
    }


def hashable(value: Any) -> Any:
    """The value, or what stands for it as a key if it cannot be one."""
    try:
        hash(value)
    except TypeError:
        return OpaqueGlobal(f"<{type(value).__name__} as a key>")
    return value


@dataclass(frozen=True)
class OpaqueGlobal:
    """A class or function that a file names, and that was not looked up.

    Attributes:
        name: Its module and name, ``"package.module.Name"``.
    """

    name: str

    def __repr__(self) -> str:
        return f"<global {self.name}>"


class OpaqueObject:
    """An object that a file would have made by calling something.

    Nothing was imported or run to show it. Its parts are values of the
    checkpoint's tree, tensors among them, made when they are asked for. Compares
    by identity.

    ``object[key]`` looks in :attr:`entries`, then in :attr:`items`.
    """

    __slots__ = ("__weakref__", "_held", "_parts", "_tree", "node", "type_name")

    def __init__(self, tree: Tree, node: int, type_name: str) -> None:
        self._tree = tree
        self._parts: tuple[int, ...] | None = None
        self._held: dict[str, Any] = {}
        self.node = node
        self.type_name = type_name
        """Module and name of its class, ``"argparse.Namespace"``."""

    @property
    def tree(self) -> Tree:
        """For this package alone."""
        return self._tree

    @property
    def callable(self) -> Any:
        """What would be called to make it, mostly an :class:`OpaqueGlobal`."""
        return self._part("callable", 0, None)

    @property
    def args(self) -> Sequence[Any]:
        """The arguments of that call."""
        args: Sequence[Any] = self._part("args", 1, ())
        return args

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of that call."""
        kwargs: Mapping[str, Any] = self._part("kwargs", 2, {})
        return kwargs

    @property
    def state(self) -> Any:
        """What its ``__dict__`` or ``__setstate__`` would be given, or None."""
        return self._part("state", 3, None)

    @property
    def items(self) -> Sequence[Any]:
        """What it holds as a list or set would."""
        if "items" not in self._held:
            count = len(self._tree.items(self.node))
            self._held["items"] = SequenceNode(self._tree, self.node, "list", count)
        items: Sequence[Any] = self._held["items"]
        return items

    @property
    def entries(self) -> Mapping[Any, Any]:
        """What it holds as a dict would."""
        if "entries" not in self._held:
            self._held["entries"] = EntriesNode(self._tree, self.node)
        entries: Mapping[Any, Any] = self._held["entries"]
        return entries

    def __getitem__(self, key: Any) -> Any:
        if key is None:  # what holds a tensor as its whole state
            return self.state
        if key in self.entries:
            return self.entries[key]
        if isinstance(key, int) and key < len(self.items):
            return self.items[key]
        raise KeyError(key)

    def _part(self, name: str, position: int, absent: Any) -> Any:
        if name not in self._held:
            if self._parts is None:
                self._parts = tuple(self._tree.parts(self.node))
            node = self._parts[position]
            self._held[name] = absent if node < 0 else self._tree.value(node)
        return self._held[name]

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NO_PICKLING)

    def __repr__(self) -> str:
        return f"<opaque {self.type_name} object>"


@dataclass(frozen=True)
class OpaqueArray:
    """A numpy array or scalar, where numpy is not installed.

    Attributes:
        dtype: numpy's name of its elements, ``"<f8"``.
        shape: Its sizes; none for a scalar.
        is_fortran_order: Whether the first dimension is the innermost.
        data: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    is_fortran_order: bool
    data: bytes


_NO_PICKLING = (
    "a value of an open checkpoint cannot be pickled or copied: it stands for what "
    "is in the file; take the plain values and tensors out of it"
)


class MappingNode(Mapping[Any, Any]):
    """A dict of the file: read-only, its values made when they are asked for.

    What the file keeps beside the dict's items, such as ``_metadata`` of a
    module's state_dict, are its attributes.
    """

    __slots__ = (
        "__weakref__",
        "_attributes",
        "_count",
        "_held",
        "_nodes",
        "_repeated",
        "_tree",
        "node",
        "type_name",
    )

    def __init__(self, tree: Tree, node: int, type_name: str, count: int) -> None:
        self._tree = tree
        self._count = count
        self._attributes: dict[str, Any] | None = None
        self._held: dict[int, Any] = {}  # the containers: their look-ups are dear
        self._nodes: dict[Any, int] | None = None
        self._repeated: frozenset[Any] = frozenset()
        self.node = node
        self.type_name = type_name

    @property
    def tree(self) -> Tree:
        """For this package alone."""
        return self._tree

    def nodes(self) -> dict[Any, int]:
        """The nodes of the values, by key."""
        if self._nodes is None:
            keys = self._tree.keys(self.node)
            self._nodes = dict(zip(keys, self._value_nodes(), strict=True))
            if len(self._nodes) < len(keys):
                counts = Counter(keys)
                self._repeated = frozenset(
                    key for key, count in counts.items() if count > 1
                )
        return self._nodes

    def _value_nodes(self) -> list[int]:
        return self._tree.items(self.node)

    def __getitem__(self, key: Any) -> Any:
        node = self.nodes()[key]
        if key in self._repeated:
            self._tree.tensor(key)  # says that it is repeated
        return self._value(node)

    def _value(self, node: int) -> Any:
        held = self._held.get(node)
        return self._keep(node, self._tree.value(node)) if held is None else held

    def _keep(self, node: int, value: Any) -> Any:
        if isinstance(value, (MappingNode, SequenceNode, OpaqueObject)):
            self._held[node] = value
        return value

    def __iter__(self) -> Iterator[Any]:
        return iter(self.nodes())

    def __len__(self) -> int:
        return len(self.nodes()) if self._tree.may_repeat_names else self._count

    def __contains__(self, key: object) -> bool:
        return key in self.nodes()

    def items(self) -> ItemsView[Any, Any]:
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def fresh_entries(self) -> OrderedDict[Any, Any]:
        """Copy the items, tensors made anew."""
        nodes = self._unique_nodes()
        values = self._tree.fresh_values(list(nodes.values()))
        return OrderedDict(zip(nodes, values, strict=True))

    def _unique_nodes(self) -> dict[Any, int]:
        nodes = self.nodes()
        for key in self._repeated:
            self[key]  # fails
        return nodes

    def made_values(self) -> Iterator[Any]:
        """Make the values, many at once."""
        nodes = list(self._unique_nodes().values())
        for node, value in zip(nodes, self._tree.values(nodes), strict=True):
            yield value if isinstance(value, Tensor) else self._keep(node, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._attributes is None:
            self._attributes = self._read_attributes()
        try:
            return self._attributes[name]
        except KeyError:
            raise AttributeError(
                f"a {self.type_name} of {self._tree.name} has no attribute {name!r}"
            ) from None

    def keys_within_attribute(self, name: str) -> set[Any] | None:
        """The keys of all dicts in an attribute that is a dict of dicts; else None.

        Takes a tenth of the time of making them.
        """
        state = self._tree.parts(self.node)[3]
        if self._attributes is not None or state < 0:
            return None
        attributes = self._tree.value(state)
        if not isinstance(attributes, MappingNode) or name not in attributes:
            return None
        return self._tree.keys_within(attributes.nodes()[name])

    def _read_attributes(self) -> dict[str, Any]:
        state = self._tree.parts(self.node)[3]
        attributes: dict[str, Any] = {}
        if state >= 0:
            value = self._tree.value(state)
            is_pair = isinstance(value, SequenceNode) and value.kind == "tuple"
            # With __slots__: the __dict__, and the slots.
            for node in value.nodes() if is_pair else [state]:
                part = self._tree.plain(node)
                if isinstance(part, Mapping):
                    attributes.update(part)
        return attributes

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(self._tree.read_only())

    def __delitem__(self, key: Any) -> NoReturn:
        raise TypeError(self._tree.read_only())

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NO_PICKLING)

    def __repr__(self) -> str:
        shown = ", ".join(repr(key) for key in islice(self, _SHOWN_KEYS))
        more = ", ..." if len(self) > _SHOWN_KEYS else ""
        kind = "" if self.type_name == "dict" else f" ({self.type_name})"
        return f"<read-only mapping{kind} of {len(self)}: {shown}{more}>"


class EntriesNode(MappingNode):
    """The entries of an object that is like a dict."""

    __slots__ = ()

    def __init__(self, tree: Tree, node: int) -> None:
        super().__init__(tree, node, "dict", len(tree.keys(node)))

    def _value_nodes(self) -> list[int]:
        return list(self._tree.handle.entry_values(self.node).tolist())

    def _read_attributes(self) -> dict[str, Any]:
        return {}


class _Items(ItemsView[Any, Any]):
    """The items of a mapping, made many at once."""

    _mapping: MappingNode

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(self._mapping, self._mapping.made_values(), strict=True)


class _Values(ValuesView[Any]):
    """The values of a mapping, made many at once."""

    _mapping: MappingNode

    def __iter__(self) -> Iterator[Any]:
        return self._mapping.made_values()


class SequenceNode(Sequence[Any]):
    """A list, tuple or set of the file: read-only, its items made on demand.

    A set is in the order of the file.
    """

    __slots__ = ("__weakref__", "_count", "_held", "_nodes", "_tree", "kind", "node")

    def __init__(self, tree: Tree, node: int, kind: str, count: int) -> None:
        self._tree = tree
        self._count = count
        self._held: dict[int, Any] = {}
        self._nodes: list[int] | None = None
        self.kind = kind
        self.node = node

    @property
    def tree(self) -> Tree:
        """For this package alone."""
        return self._tree

    def nodes(self) -> list[int]:
        """The nodes of the items."""
        if self._nodes is None:
            self._nodes = self._tree.items(self.node)
        return self._nodes

    def __getitem__(self, index: Any) -> Any:
        chosen = self.nodes()[index]
        if isinstance(chosen, list):
            made = list(self._made(chosen))
            return tuple(made) if self.kind == "tuple" else made
        held = self._held.get(chosen)
        return next(self._made([chosen])) if held is None else held

    def _made(self, nodes: list[int]) -> Iterator[Any]:
        for node, value in zip(nodes, self._tree.values(nodes), strict=True):
            if isinstance(value, (MappingNode, SequenceNode, OpaqueObject)):
                self._held[node] = value
            yield value

    def __iter__(self) -> Iterator[Any]:
        return self._made(self.nodes())

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        kind: object = type(other).__name__
        if isinstance(other, SequenceNode):
            kind = other.kind
        elif not isinstance(other, (list, tuple)):
            return NotImplemented
        return (
            kind == self.kind
            and len(other) == len(self)
            and all(one == another for one, another in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TypeError(self._tree.read_only())

    def __delitem__(self, index: Any) -> NoReturn:
        raise TypeError(self._tree.read_only())

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NO_PICKLING)

    def __repr__(self) -> str:
        return f"<read-only {self.kind} of {len(self)}>"
