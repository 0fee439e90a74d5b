"""What is in a checkpoint, whether it is sound, and how two of them differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ckpt_streamer import _ops
from ckpt_streamer._checkpoint import Checkpoint
from ckpt_streamer._file_stream import lots_of, names_of
from ckpt_streamer._tree import MappingNode, OpaqueGlobal, OpaqueObject, SequenceNode

KINDS = (
    "strided",
    "quantized",
    "sparse",
    "nested",
    "meta",
    "array",
    "uninitialized",
)

# Elements that are looked at together.
_PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor.

    Attributes:
        name: Its dotted name.
        kind: ``"strided"`` for an ordinary one; else one of :data:`KINDS`.
        dtype: torch's name of it, without the module.
        shape: Its sizes; none for a nested tensor.
        size_bytes: Of the file, that its elements span.
        storage: The number of its storage; -1 without one. Equal numbers are the
            same memory.
        file: The number of its file.
        begin: Where in it its bytes begin.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    storage: int
    file: int
    begin: int


def entries_of(checkpoint: Checkpoint) -> Iterator[Entry]:
    """Describe the tensors, in the order of the stream, without making any."""
    slots = checkpoint.slots
    for begin, end in lots_of(len(slots)):
        dtypes, table, all_sizes = slots.describe(begin, end)
        sizes = all_sizes.tolist()
        at = 0
        rows = zip(
            names_of(slots, begin, end),
            _ops.texts(dtypes),
            table.tolist(),
            strict=True,
        )
        for name, dtype, (kind, dims, storage, file, first, last) in rows:
            shape = tuple(sizes[at : at + dims])
            at += dims
            yield Entry(
                name, KINDS[kind], dtype, shape, last - first, storage, file, first
            )


def sharing_of(entries: list[Entry]) -> dict[str, str]:
    """Tell of each tensor that overlaps with an earlier one with which."""
    shared: dict[str, str] = {}
    last: dict[int, Entry] = {}
    order = sorted(
        (entry for entry in entries if entry.storage >= 0 and entry.size_bytes),
        key=lambda entry: (entry.storage, entry.begin),
    )
    for entry in order:
        before = last.get(entry.storage)
        if before is not None and entry.begin < before.begin + before.size_bytes:
            shared[entry.name] = before.name
        if (
            before is None
            or entry.begin + entry.size_bytes > before.begin + before.size_bytes
        ):
            last[entry.storage] = entry
    return shared


def calls_of(checkpoint: Checkpoint) -> Counter[str]:
    """Count what unpickling would have called or imported, by its name.

    Of torch's own makers of tensors and the plain containers of Python, nothing. No
    tensor is read.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    tree = checkpoint.tree
    left = [checkpoint.root]
    while left:
        value = left.pop()
        if isinstance(value, OpaqueGlobal):
            found[value.name] += 1
            continue
        if isinstance(value, (MappingNode, SequenceNode, OpaqueObject)):
            if value.node in seen:
                continue
            seen.add(value.node)
        if isinstance(value, OpaqueObject):
            nodes = [node for node in tree.parts(value.node)[:4] if node >= 0]
            nodes += tree.items(value.node)
            nodes += tree.handle.entry_values(value.node).tolist()
            left += tree.values_but_tensors(nodes)
            left += [key for key in value.entries if isinstance(key, OpaqueGlobal)]
        elif isinstance(value, MappingNode):
            if value.type_name not in {"dict", "collections.OrderedDict"}:
                found[value.type_name] += 1
            left += tree.values_but_tensors(list(value.nodes().values()))
            left += [key for key in value if isinstance(key, OpaqueGlobal)]
        elif isinstance(value, SequenceNode):
            left += tree.values_but_tensors(value.nodes())
        elif isinstance(value, (tuple, frozenset)):
            left += list(value)
        elif isinstance(value, dict):
            left += list(value.values())
    return found


@dataclass
class Health:
    """What looking at every number of a checkpoint has found.

    Attributes:
        tensors: How many there are.
        elements: Of them all, of floating-point and complex tensors.
        nan: How many numbers are NaN, by the tensor's name.
        infinite: How many are infinite, likewise.
        has_checksums: Whether the file's records have checksums, all of which were
            right.
    """

    tensors: int = 0
    elements: int = 0
    nan: dict[str, int] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)
    has_checksums: bool = False


def look_at(checkpoint: Checkpoint, done: Callable[[int], object]) -> Health:
    """Count NaNs and infinities; ``done`` is told the bytes that were looked at.

    Tensors larger than the limit come last, and are read some rows at a time: it
    holds as long as a single row does not exceed it.
    """
    health = Health()

    def look(name: str, tensor: Tensor) -> None:
        for values in _number_pieces(tensor):
            health.elements += values.numel()
            for found, count in (
                (health.nan, values.isnan().sum()),
                (health.infinite, values.isinf().sum()),
            ):
                if count:
                    found[name] = found.get(name, 0) + int(count)
        done(bytes_of_tensor(tensor))

    entries = list(entries_of(checkpoint))
    health.tensors = len(entries)
    large = _large_names(checkpoint, entries)
    for name, tensor in _iterate_without(checkpoint, entries, large):
        look(name, tensor)
    for entry in entries:
        if entry.name in large:
            for begin, end in _row_ranges(entry, checkpoint.memory_limit_bytes):
                look(entry.name, checkpoint.slice(entry.name, begin, end))
    return health


def _large_names(checkpoint: Checkpoint, entries: list[Entry]) -> set[str]:
    """Find the tensors that are to be read by rows, to keep the limit."""
    counts = Counter(entry.name for entry in entries)
    return {
        entry.name
        for entry in entries
        if entry.size_bytes > checkpoint.memory_limit_bytes // 2
        and entry.kind == "strided"
        and entry.shape
        and counts[entry.name] == 1
    }


def _iterate_without(
    checkpoint: Checkpoint, entries: list[Entry], names: Set[str]
) -> Iterator[tuple[str, Tensor]]:
    if not names:
        return iter(checkpoint)
    others = [i for i, entry in enumerate(entries) if entry.name not in names]
    positions = torch.tensor(others, dtype=torch.int64, device="cpu")
    return checkpoint.iterate(checkpoint.slots.at(positions))


def _row_ranges(entry: Entry, limit_bytes: int) -> Iterator[tuple[int, int]]:
    row_count = entry.shape[0]
    at_once = max(1, limit_bytes // 2 * row_count // entry.size_bytes)
    for begin in range(0, row_count, at_once):
        yield begin, min(begin + at_once, row_count)


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is one block of numbers."""
    return tensor.layout == torch.strided and not (
        tensor.is_quantized or tensor.is_nested or tensor.is_meta
    )


def bytes_of_tensor(tensor: Tensor) -> int:
    try:
        return tensor.nbytes
    except (RuntimeError, NotImplementedError):
        return 0


def _number_pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the numbers of a tensor, some at a time; none of integers."""
    if tensor.is_nested:
        for each in tensor.unbind():
            yield from _number_pieces(each)
        return
    if tensor.is_sparse:
        tensor = tensor._values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return
    for part in pieces_of(tensor):
        if part.dtype.itemsize == 1:
            if part.dtype == torch.float4_e2m1fn_x2:  # which has neither
                return
            yield part.to(torch.float32)
        else:
            yield part


def pieces_of(tensor: Tensor, is_flat: bool | None = None) -> Iterator[Tensor]:
    """Cut a strided tensor into parts, in row-major order.

    Tensors of one shape are cut alike, if ``is_flat`` is the same: whether they are
    contiguous, and are to be cut anywhere.
    """
    if is_flat is None:
        is_flat = tensor.is_contiguous()
    count = tensor.numel()
    if count <= _PIECE_ELEMENTS:
        yield tensor
    elif is_flat:
        yield from tensor.view(-1).split(_PIECE_ELEMENTS)
    else:
        dim = next(i for i, size in enumerate(tensor.shape) if size > 1)
        rows = max(1, _PIECE_ELEMENTS * tensor.shape[dim] // count)
        for part in tensor.split(rows, dim):
            yield from pieces_of(part, False)


@dataclass(frozen=True)
class Difference:
    """How one name differs in two checkpoints.

    Attributes:
        name: The dotted name.
        what: ``"only in the first"``, ``"only in the second"``, ``"shape"``,
            ``"dtype"`` or ``"values"``.
        text: Both sides, in words.
    """

    name: str
    what: str
    text: str


def differences_of(
    first: Checkpoint, second: Checkpoint, done: Callable[[int], object]
) -> Iterator[Difference]:
    """Compare two checkpoints, name by name, bit by bit.

    Tensors of equal shapes and other dtypes have their values compared as well,
    as float64 numbers. Those larger than the limit come last, as in look_at().
    """
    both = [list(entries_of(each)) for each in (first, second)]
    ours, theirs = ({entry.name: entry for entry in entries} for entries in both)
    for name, entry in theirs.items():
        if name not in ours:
            yield Difference(name, "only in the second", _described(entry))
    large = _large_names(first, both[0]) | _large_names(second, both[1])
    large = {
        name for name in large if _are_comparable(ours.get(name), theirs.get(name))
    }
    for name, tensor in _iterate_without(first, both[0], large):
        entry, other = ours[name], theirs.get(name)
        if other is None:
            yield Difference(name, "only in the first", _described(entry))
        elif not _are_comparable(entry, other):
            text = f"{_described(entry)} and {_described(other)}"
            yield Difference(name, "shape", text)
        else:
            pairs = iter([(tensor, second.tensor(name))])
            yield from _differences_between(entry, other, pairs)
        done(bytes_of_tensor(tensor))
    for entry in both[0]:
        name = entry.name
        if name in large:
            other = theirs[name]
            limit_bytes = min(first.memory_limit_bytes, second.memory_limit_bytes)
            widest = max(entry, other, key=lambda each: each.size_bytes)
            pairs = (
                (first.slice(name, *rows), second.slice(name, *rows))
                for rows in _row_ranges(widest, limit_bytes)
            )
            yield from _differences_between(entry, other, pairs)
            done(entry.size_bytes)


def _are_comparable(entry: Entry | None, other: Entry | None) -> bool:
    if entry is None or other is None:
        return False
    return entry.shape == other.shape and entry.kind == other.kind


def _differences_between(
    entry: Entry, other: Entry, pairs: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[Difference]:
    """Compare tensors of one name and shape, given whole or part by part."""
    if entry.dtype != other.dtype:
        yield Difference(entry.name, "dtype", f"{entry.dtype} and {other.dtype}")
    found = _values_differ(pairs, math.prod(entry.shape))
    if found is not None:
        yield Difference(entry.name, "values", found)


def _described(entry: Entry) -> str:
    kind = "" if entry.kind == "strided" else f"{entry.kind} "
    return f"{kind}{entry.dtype} {list(entry.shape)}"


def _values_differ(
    pairs: Iterator[tuple[Tensor, Tensor]], element_count: int
) -> str | None:
    """Say how the values of two tensors of one shape differ, if they do."""
    count, largest = 0, 0.0
    for one, other in pairs:
        if not _is_dense(one):
            return None if _equal_whole(one, other) else "not equal"
        is_flat = one.is_contiguous() and other.is_contiguous()
        with torch.no_grad():
            pieces = pieces_of(one, is_flat), pieces_of(other, is_flat)
            for left, right in zip(*pieces, strict=True):
                if left.dtype == right.dtype and _same_bits(left, right):
                    continue
                differ, distance = _distance(left, right)
                count += differ
                largest = max(largest, distance)
    if not count:
        return None
    how = f"by {largest:.3g} at most" if largest else "in their bits alone"
    return f"{count} of {element_count} differ, {how}"


def _same_bits(left: Tensor, right: Tensor) -> bool:
    ones, others = (_flat(each).view(torch.uint8) for each in (left, right))
    return torch.equal(ones, others)


def _flat(tensor: Tensor) -> Tensor:
    """Its numbers in row-major order, as they would be written."""
    return tensor.resolve_conj().resolve_neg().contiguous().view(-1)


def _distance(left: Tensor, right: Tensor) -> tuple[int, float]:
    """Count the elements that differ, and tell the largest distance between two.

    Of one dtype they differ if their bits do: float64 is the same for many int64, and
    zeros of either sign and all NaNs are one number.
    """
    left, right = _flat(left), _flat(right)
    is_one_dtype = left.dtype == right.dtype
    ones, others = _wide(left, right)
    if is_one_dtype:
        words = (
            each.view(torch.uint8).view(-1, each.dtype.itemsize)
            for each in (left, right)
        )
        differ = torch.ne(*words).any(1)
    else:
        differ = (ones != others) & ~(ones.isnan() & others.isnan())
    count = int(differ.sum())
    if not count:
        return 0, 0.0
    ones, others = ones[differ], others[differ]
    distances = (ones - others).abs()
    if is_one_dtype and left.dtype in {torch.int64, torch.uint64}:
        exact = left.view(torch.int64)[differ] - right.view(torch.int64)[differ]
        is_near = distances < 2.0**62  # there, the difference has not wrapped around
        distances = torch.where(is_near, exact.abs().to(torch.float64), distances)
    if not ones.is_complex():
        distances[ones.isnan() & others.isnan()] = 0
    return count, float(distances.nan_to_num(nan=float("inf")).max())


def _wide(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The elements as numbers that can be told from one another."""
    is_complex = left.is_complex() or right.is_complex()
    dtype = torch.complex128 if is_complex else torch.float64
    ones, others = (
        # Two numbers in a byte, which torch cannot convert.
        each.view(torch.uint8) if each.dtype == torch.float4_e2m1fn_x2 else each
        for each in (left, right)
    )
    return ones.to(dtype), others.to(dtype)


def _equal_whole(one: Any, other: Any) -> bool:
    if one.is_meta:
        return bool(other.is_meta)
    if one.is_quantized:
        is_equal = torch.equal(one.int_repr(), other.int_repr())
        return is_equal and not _distance(one.dequantize(), other.dequantize())[0]
    if one.is_nested:
        both = one.unbind(), other.unbind()
        return len(both[0]) == len(both[1]) and all(
            left.shape == right.shape and not _distance(left, right)[0]
            for left, right in zip(*both, strict=True)
        )
    if (
        one.is_sparse
        and other.is_sparse
        and torch.equal(one._indices(), other._indices())
    ):  # made dense, it would lose the sign of a zero
        return not _distance(one._values(), other._values())[0]
    return not _distance(one.to_dense(), other.to_dense())[0]
