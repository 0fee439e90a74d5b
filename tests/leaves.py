"""The leaves of a checkpoint, as open() names them, and what tells two apart."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ckpt_streamer  # noqa: F401 - registers the ops

MIB = 1024 * 1024

# Names may repeat: {"a.b": t, "a": {"b": u}}.
Leaves = list[tuple[str, Tensor]]


class Inert:
    """What stands for a class or function that is not to be run.

    Keeps what it would have been made from, so that a walk finds the tensors in
    it: items and entries under their keys, arguments and state without a name.
    """

    parts: list[Any]
    items: list[Any]
    entries: dict[Any, Any]

    # Not __init__, which a pickle need not call.
    def __new__(cls, *args: Any, **keyword_args: Any) -> Inert:
        self = super().__new__(cls)
        self.parts, self.items, self.entries = [args, keyword_args], [], {}
        return self

    def __setstate__(self, state: Any) -> None:
        # (__dict__, __slots__): what copyreg pickles of classes with slots.
        is_pair = isinstance(state, tuple) and len(state) == 2
        if is_pair and all(isinstance(part, dict | None) for part in state):
            self.parts += [part for part in state if part]
        else:
            self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        self.items.extend(values)


def read_leaves(path: str | list[str]) -> Leaves:
    """Read all that torch.ops.ckpt_streamer.open yields."""
    handle = torch.ops.ckpt_streamer.open(path, 64 * MIB)
    leaves = []
    while handle.has_next():
        leaves.append(handle.next())
    return leaves


def leaves_of(tree: Any, each_path: bool = False) -> Leaves:
    """Walk a loaded checkpoint.

    A container that is reached twice is walked once, under its first path; with
    ``each_path`` under each, but not inside itself.
    """
    leaves: Leaves = []
    walked: set[int] = set()

    def visit(value: Any, name: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            leaves.append((".".join(name), value))
            return
        # Unequal to any other while it is open, or for good: it is kept alive.
        if id(value) in walked or not isinstance(value, dict | list | tuple | Inert):
            return
        walked.add(id(value))
        for part, inner in parts_of(value):
            visit(inner, (*name, *part))
        if each_path:
            walked.remove(id(value))

    visit(tree, ())
    return leaves


def parts_of(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        yield from (((str(key),), inner) for key, inner in value.items())
    elif isinstance(value, Inert):
        yield from parts_of(value.entries)
        yield from parts_of(value.items)
        yield from (((), part) for part in value.parts)
    else:
        yield from (((str(i),), inner) for i, inner in enumerate(value))


@dataclass(frozen=True, order=True)
class Leaf:
    """All that can be told of a tensor, its storage's bytes by their hash."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    requires_grad: bool
    bits: tuple[bool, bool]  # conj, neg
    storage_bytes: int
    storage_hash: str


def leaf_of(name: str, tensor: Tensor) -> Leaf:
    storage = tensor.untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8).set_(storage)
    return Leaf(
        name,
        str(tensor.dtype),
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
        tensor.requires_grad,
        (tensor.is_conj(), tensor.is_neg()),
        storage.nbytes(),
        hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).hexdigest(),
    )


def differences(ours: Leaves, theirs: Leaves) -> list[str]:
    """Tell how two lists of leaves differ, in any order; nothing if they do not."""
    our_leaves = [leaf_of(*item) for item in ours]
    their_leaves = [leaf_of(*item) for item in theirs]
    found = [
        f"only ours: {leaf}"
        for leaf in sorted((Counter(our_leaves) - Counter(their_leaves)).elements())
    ]
    found += [
        f"only theirs: {leaf}"
        for leaf in sorted((Counter(their_leaves) - Counter(our_leaves)).elements())
    ]
    if not found and sharing(ours, our_leaves) != sharing(theirs, their_leaves):
        found.append("other tensors share their storages")
    found += [
        f"not aligned: {name}"
        for name, tensor in ours
        if tensor.data_ptr() % tensor.element_size()
    ]
    return found


def sharing(items: Leaves, leaves: list[Leaf]) -> Counter[tuple[Leaf, ...]]:
    """Group the leaves by their storages. Without bytes there is none to share."""
    groups: dict[int, list[Leaf]] = defaultdict(list)
    for (_, tensor), leaf in zip(items, leaves, strict=True):
        if leaf.storage_bytes:
            groups[tensor.untyped_storage().data_ptr()].append(leaf)
    return Counter(tuple(sorted(group)) for group in groups.values())
