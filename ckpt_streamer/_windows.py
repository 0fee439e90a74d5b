"""Iterating over tensors window by window, as far as all streams do it alike."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat, starmap
from operator import length_hint
from threading import Lock, RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from torch import Tensor
from typing_extensions import Self

from ckpt_streamer._stats import StreamStats

if TYPE_CHECKING:
    from ckpt_streamer import _ops


class _Taken:
    """What is left of a list that is taken from its end."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __length_hint__(self) -> int:
        return len(self._values)


class _Finished(Iterator[Any]):
    """Takes rows from the end of a list, and makes an item of each."""

    def __init__(
        self, rows: list[tuple[Any, ...]], finish: Callable[[tuple[Any, ...]], Any]
    ) -> None:
        self._rows = rows
        self.finish = finish

    def __next__(self) -> Any:
        rows = self._rows
        if not rows:
            raise StopIteration
        item = self.finish(rows[-1])
        # Neither of these two is a place where Python looks for signals.
        del rows[-1]
        return item

    def take_rows(self) -> list[tuple[Any, ...]]:
        """Take what is to come, in its order; this is at its end then."""
        rows = self._rows[::-1]
        self._rows.clear()
        return rows


class State(ABC):
    """What a stream and its running generator share.

    Apart from the Stream itself, so that no cycle keeps a dropped stream, and
    the memory it holds, until the next garbage collection.
    """

    def __init__(self, handle: _ops.WindowHandle, tensor_count: int) -> None:
        self.handle = handle
        self.tensor_count = tensor_count
        self.is_closed = False
        self._final_count: int | None = None
        self._is_ended = False
        self.was_released = False  # since the last window was entered
        # Of the lot that is out: where it ends, its lists, and what of it is
        # still to come. They change together: any thread may release.
        self._lock = RLock()
        self._lot_end = 0
        self._lists: tuple[list[Any], ...] = ()
        self._rest: Iterator[Any] | _Taken = iter(())
        self._items: Iterator[Any] = iter(())

    @property
    def yielded_count(self) -> int:
        return self._lot_end - length_hint(self._rest)

    @property
    def is_in_mid_lot(self) -> bool:
        with self._lock:
            return not self.was_released and length_hint(self._rest) > 0

    def enter(self, window: int) -> int:
        """Make a window live, and return its end."""
        # In this order: another thread may release meanwhile.
        self.was_released = False
        return self.handle.enter(window)

    @abstractmethod
    def lots(self, window: int, begin: int, end: int) -> Iterator[Iterator[Any]]:
        """Yield the items of a window, one lot after the other, by put_out()."""

    def put_out(
        self, end: int, tensors: list[Tensor], *beside: list[Any] | repeat[Any]
    ) -> Iterator[Any]:
        """Iterate over the lot that ends at a position; the lists are given up."""
        rest = iter(tensors)
        return self._put_out(end, tensors, rest, rest, beside)

    def put_out_unfinished(
        self,
        end: int,
        tensors: list[Tensor],
        *beside: list[Any] | repeat[Any],
        finish: Callable[[tuple[Any, ...]], Any],
    ) -> Iterator[Any]:
        """Do what :meth:`put_out_owned` does, but make each item by a call.

        Of what is beside each tensor, and the tensor. What a call does not return
        from, as for Ctrl-C, is to come again.
        """
        rows = list(zip(*beside, tensors, strict=False))
        with self._lock:
            self._lot_end = end
            return self._put_out_rows(rows, finish)

    def _put_out_rows(
        self, rows: list[Any], finish: Callable[[tuple[Any, ...]], Any]
    ) -> Iterator[Any]:
        rows.reverse()
        self._lists = (rows,)
        self._rest = _Taken(rows)
        self._items = _Finished(rows, finish)
        return self._items

    def put_out_owned(
        self, end: int, tensors: list[Tensor], *beside: list[Any] | repeat[Any]
    ) -> Iterator[Any]:
        """Do that, and let go of each tensor as it goes: they own their memory."""
        tensors.reverse()
        pops = starmap(tensors.pop, repeat((), len(tensors)))
        return self._put_out(end, tensors, pops, _Taken(tensors), beside)

    def _put_out(
        self,
        end: int,
        tensors: list[Tensor],
        iterator: Iterator[Tensor],
        rest: Iterator[Tensor] | _Taken,
        beside: tuple[list[Any] | repeat[Any], ...],
    ) -> Iterator[Any]:
        items = zip(*beside, iterator, strict=False)
        with self._lock:
            self._lot_end = end
            self._lists = (
                *(each for each in beside if isinstance(each, list)),
                tensors,
            )
            self._rest = rest
            self._items = items
        return items

    def check_unchanged(self) -> None:
        """Raise a ValueError if what was streamed has been written to meanwhile."""
        if not self.is_closed:
            self.handle.check_unchanged()

    def release(self) -> None:
        """Give back all pages; what is to come of the lot is held back."""
        with self._lock:
            if isinstance(self._items, _Finished):
                self._put_out_rows(self._items.take_rows(), self._items.finish)
            else:
                rest = list(self._items)
                self._lists = (rest,)
                self._rest = self._items = iter(rest)
            self.was_released = True
        self.handle.release()

    def take_rest(self) -> Iterator[Any] | None:
        """Iterate over what was held back, if anything was."""
        with self._lock:
            return self._items if length_hint(self._rest) else None

    def stats(self) -> StreamStats:
        """See TensorStream.stats()."""
        return StreamStats(
            tensors=self.tensor_count,
            tensors_yielded=self.yielded_count,
            **self.handle.stats(self.yielded_count),
            not_held=self.handle.not_held() or None,
            notes=self.handle.notes() or None,
        )

    def close(self) -> None:
        if self._is_ended:
            return
        # Ctrl-C may end this anywhere; the next call goes on from there.
        self.is_closed = True
        if self._final_count is None:
            self._final_count = self.yielded_count
        self.handle.close(self._final_count)
        # The iterators over these lists end here, also in mid-window.
        for each in self._lists:
            each.clear()
        self._lot_end, self._rest = self._final_count, iter(())
        self._is_ended = True


def windows(state: State) -> Iterator[Iterator[Any]]:
    """Yield the items of one lot after the other, evicting in between.

    Whatever ends it gives back all pages, also Ctrl-C.
    """
    try:
        yield from _lots_of_windows(state)
    except Exception:
        if not state.is_closed:
            raise
        # Another thread has closed the stream meanwhile: this is its end.
    finally:
        if not sys.is_finalizing():
            state.close()


def _lots_of_windows(state: State) -> Iterator[Iterator[Any]]:
    begin = 0
    for window in count():
        if state.is_closed:
            return
        if begin == state.tensor_count:
            break
        end = state.enter(window)
        for items in state.lots(window, begin, end):
            if state.was_released:  # between two lots
                state.enter(window)
            yield items
            while (rest := state.take_rest()) is not None:
                state.enter(window)  # after a release in mid-lot
                yield rest
        begin = end
    state.check_unchanged()


class _OneAtATime(Iterator[Iterator[Any]]):
    """Goes through windows for one thread at a time.

    itertools.chain lets go of what is left of a window when another thread that
    had asked as well is given the next one: an error, for one of them at least.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._windows = windows(state)
        self._lock = Lock()
        self._is_shared = False

    def __next__(self) -> Iterator[Any]:
        if not self._lock.acquire(blocking=False):
            self._is_shared = True
            raise RuntimeError(_SHARED)
        try:
            self._is_shared = self._is_shared or self._state.is_in_mid_lot
            if self._is_shared:
                raise RuntimeError(_SHARED)
            items = next(self._windows)
        finally:
            self._lock.release()
        if self._is_shared:
            raise RuntimeError(_SHARED)
        return items


_SHARED = (
    "two threads ask a stream for a tensor at once, expected one at a time: a stream "
    "for each thread, or torch.ops.ckpt_streamer.open, whose next() any may call"
)


ItemT = TypeVar("ItemT")


class TensorStream(chain[ItemT], Generic[ItemT]):
    """What the iterators over tensors under a memory limit have in common."""

    # chain is the base because its iteration runs in C: a __next__ in Python
    # would cost a small tensor a tenth of its conversion.
    _state: State
    _MADE_BY: ClassVar[str]

    @classmethod
    def of(cls, state: State) -> Self:
        """Make the stream of a state."""
        result = cls.from_iterable(_OneAtATime(state))
        assert isinstance(result, cls)
        result._state = state
        return result

    def __init__(self, *_: object) -> None:  # not called by from_iterable()
        raise TypeError(f"a {type(self).__name__} is made by {self._MADE_BY}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration and give back all file pages. Idempotent."""
        self._state.close()

    def release(self) -> None:
        """Give back all file pages now and go on. Idempotent.

        Tensors stay valid.
        """
        self._state.release()

    def stats(self) -> StreamStats:
        """Return the stream's figures so far; after the end, the final ones.

        Cost: a look at the page tables of all tensors.
        """
        return self._state.stats()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it stands for this "
            f"process's memory; make a new one with {self._MADE_BY}"
        )
