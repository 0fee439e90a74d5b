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


class _Rest:
    """What is left of lists that are taken from their ends, and of iterators."""

    def __init__(self, *parts: list[Any] | Iterator[Any] | _Rest) -> None:
        self._parts = parts

    def __length_hint__(self) -> int:
        return sum(map(length_hint, self._parts))


class _Finished(Iterator[Any]):
    """Takes rows from the end of a list, and makes an item of each."""

    def __init__(
        self, rows: list[tuple[Any, ...]], finish: Callable[[tuple[Any, ...]], Any]
    ) -> None:
        self.rows = rows
        self.finish = finish
        self.is_over = False

    def __next__(self) -> Any:
        rows = self.rows
        if self.is_over or not rows:
            raise StopIteration
        try:
            item = self.finish(rows[-1])
        except Exception:
            if self.is_over:  # it comes again, or the stream was closed meanwhile
                raise StopIteration from None
            raise
        if not rows:  # closed
            raise StopIteration
        # Neither of these two is a place where Python looks for signals.
        del rows[-1]
        return item


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
        # Of the lot that is out: where it ends, its lists, what of it is held
        # back, and what is still to come. They change together, and with windows:
        # any thread may release or close. What they let go of may run anybody's
        # code, and is let go of after the lock.
        self._lock = RLock()
        self._lot_end = 0
        self._lists: tuple[list[Any], ...] = ()
        self._held: list[Any] = []
        self._rest: Iterator[Any] | _Rest = iter(())
        self._items: Iterator[Any] = iter(())

    @property
    def yielded_count(self) -> int:
        with self._lock:
            return self._lot_end - length_hint(self._rest)

    @property
    def is_in_mid_lot(self) -> bool:
        with self._lock:
            return not self.was_released and length_hint(self._rest) > 0

    def enter(self, window: int) -> int:
        """Make a window live, and return its end."""
        with self._lock:
            self.was_released = False
            return self.handle.enter(window)

    @abstractmethod
    def lots(self, window: int, begin: int, end: int) -> Iterator[None]:
        """Put out a window lot by lot, yielding at each; take_rest() has its items."""

    def put_out(
        self, end: int, tensors: list[Tensor], *beside: list[Any] | repeat[Any]
    ) -> None:
        """Put out the lot that ends at a position; the lists are given up."""
        rest = iter(tensors)
        items = zip(*beside, rest, strict=False)
        self._put_out(end, items, rest, tensors, *beside)

    def put_out_unfinished(
        self,
        end: int,
        tensors: list[Tensor],
        *beside: list[Any] | repeat[Any],
        finish: Callable[[tuple[Any, ...]], Any],
    ) -> None:
        """Do what :meth:`put_out_owned` does, but make each item by a call.

        Of what is beside each tensor, and the tensor. What a call does not return
        from, as for Ctrl-C, is to come again.
        """
        rows = list(zip(*beside, tensors, strict=False))
        rows.reverse()
        self._put_out(end, _Finished(rows, finish), _Rest(rows), rows)

    def put_out_owned(
        self, end: int, tensors: list[Tensor], *beside: list[Any] | repeat[Any]
    ) -> None:
        """Do that, and let go of each tensor as it goes: they own their memory."""
        tensors.reverse()
        pops = starmap(tensors.pop, repeat((), len(tensors)))
        items = zip(*beside, pops, strict=False)
        self._put_out(end, items, _Rest(tensors), tensors, *beside)

    def _put_out(
        self,
        end: int,
        items: Iterator[Any],
        rest: Iterator[Any] | _Rest,
        *lists: list[Any] | repeat[Any],
    ) -> None:
        with self._lock:
            if self.is_closed:
                return
            before = self._lists, self._held, self._items
            self._lot_end = end
            self._lists = tuple([each for each in lists if isinstance(each, list)])
            self._held = []
            self._rest = rest
            self._items = items
        del before

    def check_unchanged(self) -> None:
        """Raise a ValueError if what was streamed has been written to meanwhile."""
        if not self.is_closed:
            self.handle.check_unchanged()

    def release(self) -> None:
        """Give back all pages; what is to come of the lot is held back."""
        with self._lock:
            before = self._held, self._items
            self._hold_back()
            self.handle.release()
        del before

    def _hold_back(self) -> None:
        """End the iterator that is out; take_rest() has what was to come of it.

        Nothing is lost where Ctrl-C ends this, nor where the garbage collector
        runs a finaliser that does the same.
        """
        self.was_released = True
        out = self._items
        if isinstance(out, _Finished):
            # What is being made still comes from there, if the call returns.
            self._items = _Finished(out.rows, out.finish)
            out.is_over = True
        else:
            held: list[Any] = []
            rest = iter(held)
            self._rest = _Rest(rest, self._rest)
            items = self._items = chain(rest, out)
            held.extend(out)  # at once for other threads, as it runs in C
            if self._items is items:
                self._held, self._rest, self._items = held, rest, rest

    def take_rest(self, window: int) -> Iterator[Any] | None:
        """Iterate over what is to come of the lot, if anything is."""
        with self._lock:
            # A handler of a signal may release in enter().
            while self.was_released and length_hint(self._rest):
                if self.is_closed:
                    return None
                self.enter(window)
            return self._items if length_hint(self._rest) else None

    def stats(self) -> StreamStats:
        """See TensorStream.stats()."""
        yielded_count = self.yielded_count
        return StreamStats(
            tensors=self.tensor_count,
            tensors_yielded=yielded_count,
            **self.handle.stats(yielded_count),
            not_held=self.handle.not_held() or None,
            notes=self.handle.notes() or None,
        )

    def close(self) -> None:
        if self._is_ended:
            return
        # Ctrl-C may end this anywhere; the next call goes on from there.
        self.is_closed = True
        with self._lock:
            if self._final_count is None:
                self._hold_back()
                self._final_count = self.yielded_count
        self.handle.close(self._final_count)
        # The iterators over these lists end here, also in mid-window.
        for each in (*self._lists, self._held):
            each.clear()
        with self._lock:
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
        for _ in state.lots(window, begin, end):
            while (items := state.take_rest(window)) is not None:
                yield items
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
