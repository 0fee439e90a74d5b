"""Keeps the file pages of a state_dict's tensors under a limit while it is read."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import accumulate, chain, groupby, pairwise
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Bounds
from ckpt_streamer._matches import PLAIN_TENSORS
from ckpt_streamer._stream import walk

# Raises when what is read is no longer what it was.
CheckSource = Callable[[], None]


def no_check() -> None:
    """Of what is in memory, nothing is known."""


class EvictingReads:
    """The tensors of a state_dict, of which no more is resident than the limit.

    A context manager: at its end all pages go back. Whoever reads a tensor says
    so first (:meth:`admit`, :meth:`runs_of`), or is :meth:`watched`.
    """

    def __init__(
        self,
        entries: Mapping[str, Any],
        bounds: Bounds,
        check_source: CheckSource = no_check,
    ) -> None:
        """``check_source`` is called before each window is read.

        Of a budget, a share is taken already: see ``Bounds.taken``.
        """
        self._check_source = check_source
        self._bounds = bounds
        # Of a tensor that is read at once: it may begin in mid-page.
        self._most_bytes = bounds.memory_limit_bytes - PAGESIZE
        self._handle = _ops.windows(
            bounds.memory_limit_bytes, bounds.drop_page_cache, None
        )
        tensors = walk(entries, self._handle).tensors
        self._handle.plan()
        if order := self._handle.order().tolist():
            tensors = [tensors[index] for index in order]
        self._tensors = tensors  # held, so that an id stays that tensor's
        self._window_ends: list[int] = self._handle.window_ends().tolist()
        self.unmapped_bytes = self._handle.unmapped_bytes()
        """Of tensors that are no pages of a mapped file: nothing bounds them."""
        self.fits = len(self._window_ends) <= 1 and (
            self._handle.covered_bytes() <= self._most_bytes
            or not any(map(self.exceeds, tensors))
        )
        """Whether all tensors together keep the limit."""

    def __enter__(self) -> Self:
        if self.fits and self._window_ends:
            self._handle.enter(0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.close(len(self._tensors))

    def watched(self) -> AbstractContextManager[object]:
        """Admit whatever a torch function reads inside, whoever calls it."""
        return nullcontext() if self.fits else _AdmittingMode(self)

    def admit(self, *tensors: Tensor) -> None:
        """Make room for tensors that are read together, or for views of them.

        As far as the limit allows, that is: the pages of the first may have to go
        for those of the last.
        """
        if not self.fits:
            for tensor in tensors:
                for position in self._spans.positions_of(tensor):
                    self._handle.admit(position)

    def exceeds(self, tensor: Tensor) -> bool:
        """Whether a tensor's pages may be more than the limit: it is read in pieces."""
        if type(tensor) not in PLAIN_TENSORS or tensor.layout is not torch.strided:
            return False
        if tensor.is_contiguous():
            return tensor.nbytes > self._most_bytes
        begin, end = _span(tensor)  # a column lies in all pages of its table
        return end - begin > self._most_bytes

    def copy(self, destination: Tensor, source: Tensor) -> None:
        """``destination.copy_(source)``; what exceeds the limit goes in pieces."""
        is_flat = source.is_contiguous() and destination.is_contiguous()
        if destination.device.type == "cpu" or not is_flat:
            bounds = self._bounds
            _ops.copy_(
                destination, source, bounds.memory_limit_bytes, bounds.drop_page_cache
            )
            return
        count = max(1, self._bounds.memory_limit_bytes // 2 // source.itemsize)
        pieces = destination.view(-1).split(count), source.view(-1).split(count)
        for target, piece in zip(*pieces, strict=True):
            target.copy_(piece)
            self.release()

    def stats(self) -> dict[str, int]:
        """Byte counts under the names of StreamStats."""
        return self._handle.stats(len(self._tensors))

    def release(self) -> None:
        """Give all pages back now."""
        self._handle.release()

    def parts_of(self, tensors: Iterable[Tensor]) -> set[int]:
        """Find which of the state_dict's tensors hold these."""
        return {
            position
            for tensor in tensors
            for position in self._spans.positions_of(tensor)
        }

    def admit_parts(self, parts: Iterable[int]) -> None:
        """Make room for what :meth:`parts_of` found."""
        for position in parts:
            self._handle.admit(position)

    def order_of(self, tensors: list[Tensor]) -> list[int] | None:
        """Return in which order to read these, each window of the file once.

        Positions in the list; tensors of one window stay in its order. None where
        its own order does as well.
        """
        if self.fits:
            return None
        windows = self._windows_of(tensors)
        places = [-1 if window is None else window for window in windows]
        if all(left <= right for left, right in pairwise(places)):
            return None
        return sorted(range(len(tensors)), key=places.__getitem__)

    def runs_of(self, tensors: list[Tensor]) -> Iterator[tuple[int, int]]:
        """Yield ``(begin, end)`` of tensors that may be read now, one after another.

        A run ends where another window of the file begins; when the tensors
        come in no order of the file, it is a single tensor.
        """
        if self.fits:
            yield 0, len(tensors)
            return
        windows = self._windows_of(tensors)
        runs = [(window, len(list(run))) for window, run in groupby(windows)]
        is_ordered = len(runs) <= 2 * len(self._window_ends)
        begin = 0
        for window, length in runs:
            if is_ordered and window is not None:
                self._check_source()
                self._handle.enter(window)
                yield begin, begin + length
            else:
                for index in range(begin, begin + length):
                    self.admit(tensors[index])
                    yield index, index + 1
            begin += length

    def _windows_of(self, tensors: list[Tensor]) -> list[int | None]:
        return list(map(self._window_of.get, map(id, tensors)))

    @cached_property
    def _window_of(self) -> dict[int, int]:
        """By the id of a tensor."""
        result = {}
        begin = 0
        for window, end in enumerate(self._window_ends):
            for tensor in self._tensors[begin:end]:
                result[id(tensor)] = window
            begin = end
        return result

    @cached_property
    def _spans(self) -> _Spans:
        return _Spans(self._tensors)


class _AdmittingMode(TorchFunctionMode):
    """Makes room for the tensors that a torch function reads, before it does."""

    def __init__(self, reads: EvictingReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # attributes: nothing of the data is read
            return func(*args, **kwargs)
        reads = self._reads
        if func is Tensor.copy_ and len(args) == 2 and not kwargs:
            destination, source = args
            if type(destination) in PLAIN_TENSORS and reads.exceeds(source):
                reads.admit(source)
                reads.copy(destination, source)
                return destination
        parts = reads.parts_of(_tensors_in(chain(args, kwargs.values())))
        if len(parts) <= 1:
            reads.admit_parts(parts)
            return func(*args, **kwargs)
        # The call reads all of them, also those that had to go for the others.
        reads.release()
        try:
            reads.admit_parts(parts)
            return func(*args, **kwargs)
        finally:
            reads.release()


class _Spans:
    """Where tensors lie in memory, to find those that a view belongs to."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        spans = []
        for position, tensor in enumerate(tensors):
            begin, end = _span(tensor)
            if end:
                spans.append((begin, -end, position))
        spans.sort()  # of several with one begin, the smallest is the last
        self._begins = [begin for begin, _, _ in spans]
        self._ends = [-end for _, end, _ in spans]
        self._positions = [position for _, _, position in spans]
        self._highest_ends = list(accumulate(self._ends, max))

    def positions_of(self, tensor: Tensor) -> list[int]:
        """Find the tensor that holds all of this one, or those that hold parts."""
        begin, end = _span(tensor)
        behind = bisect_right(self._begins, begin)
        parts = []
        index = behind
        while index > 0 and self._highest_ends[index - 1] > begin:
            index -= 1
            if self._ends[index] >= end:
                return [self._positions[index]]
            if self._ends[index] > begin:
                parts.append(self._positions[index])
        last = bisect_left(self._begins, end, behind) if end else behind
        return parts + self._positions[behind:last]


def may_be_in_any_order(targets: list[Tensor], sources: list[Tensor]) -> bool:
    """Whether copies come out the same in any order.

    That is, whether what is written lies in no memory of what is written or read
    besides, but for tied tensors that are given the same. False where that cannot
    be told.
    """
    counts = Counter(map(id, targets))
    tied_copies = set()
    spans = []
    for target, source in zip(targets, sources, strict=True):
        if target.layout is not torch.strided or source.layout is not torch.strided:
            return False
        written, read = _span(target), _span(source)
        if target.numel() and not written[1]:
            return False
        if counts[id(target)] > 1:
            copy = (
                *(id(target), read, source.dtype, source.stride()),
                *(source.is_conj(), source.is_neg()),
            )
            if copy in tied_copies:
                continue
            tied_copies.add(copy)
        spans += [(*written, True), (*read, False)]
    spans.sort()
    written_end = read_end = 0
    for begin, end, is_written in spans:
        if end and (begin < written_end or (is_written and begin < read_end)):
            return False
        if is_written:
            written_end = max(written_end, end)
        else:
            read_end = max(read_end, end)
    return True


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's elements; of a sparse one, of its values."""
    with torch._C.DisableTorchFunction():
        try:
            if tensor.layout is not torch.strided:
                is_coo = tensor.layout is torch.sparse_coo
                tensor = tensor._values() if is_coo else tensor.values()
            begin = tensor.data_ptr()
            if not begin or not tensor.numel():
                return 0, 0
            if tensor.is_contiguous():
                return begin, begin + tensor.nbytes
            last = sum(
                (size - 1) * stride
                for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
            )
            return begin, begin + (last + 1) * tensor.itemsize
        except RuntimeError:  # no memory of its own
            return 0, 0


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield a call's tensors; functions take lists of them as well."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)
