"""Iterating over tensors window by window, as far as all streams do it alike."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, repeat, starmap
from operator import length_hint
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from torch import Tensor
from typing_extensions import Self

from ckpt_streamer._stats import StreamStats

if TYPE_CHECKING:
    from ckpt_streamer import _ops


_SHARED = (
    "two threads ask a stream for a tensor at once, expected one at a time: a stream "
    "for each thread, or torch.ops.ckpt_streamer.open, whose next() any may call"
)


class _Rest:
    """What is to come of several parts."""

    def __init__(self, *parts: list[Any] | Iterator[Any] | _Rest) -> None:
        self._parts = parts

    def __length_hint__(self) -> int:
        return sum(map(length_hint, self._parts))


class _Lot(ABC):
    """Items that are put out together.

    Whatever interrupts these methods (another thread, a handler of a signal, a
    finaliser, Ctrl-C) finds nothing lost, and what was begun can be begun again.
    """

    def __init__(self, end: int, rest: list[Any] | Iterator[Any] | _Rest) -> None:
        self.end = end  # the position behind the last
        self.rest = rest  # its length_hint() is how many are to come

    @property
    def is_busy(self) -> bool:
        """Whether an item is being made."""
        return False

    @abstractmethod
    def items(self) -> Iterator[Any]:
        """Iterate over what is to come. Any iterator made before has ended."""

    @abstractmethod
    def successor(self) -> _Lot:
        """Make a lot of what is to come; until it takes over, that comes from here."""

    @abstractmethod
    def take_over(self) -> None:
        """End the iterator over the lot that this is the successor of."""

    @abstractmethod
    def close(self) -> None:
        """Let nothing more come; take_over() was called."""

    @abstractmethod
    def clear(self) -> None:
        """Let go of everything."""


class _TensorLot(_Lot):
    """Tensors, which come from an iterator, and what is beside each."""

    def __init__(
        self,
        end: int,
        tensors: list[Tensor],
        source: Iterator[Tensor],
        rest: list[Any] | Iterator[Any] | _Rest,
        beside: Sequence[list[Any] | repeat[Any]],
    ) -> None:
        super().__init__(end, rest)
        self._tensors = tensors
        self._source = source
        self._beside = beside
        # Where it was put out, these are still referred to: they have to be empty
        # when it is over.
        self._given: Sequence[list[Any] | repeat[Any]] = (tensors, *beside)
        self._taken: Iterator[Tensor] = iter(tensors)  # the source after take_over()
        self._before: _TensorLot | None = None

    def items(self) -> Iterator[Any]:
        to_come = length_hint(self.rest)
        self._beside = [
            each[len(each) - to_come :] if isinstance(each, list) else each
            for each in self._beside
        ]
        return zip(*self._beside, self._source, strict=False)

    def successor(self) -> _TensorLot:
        held: list[Tensor] = []
        taken = iter(held)
        source, rest = chain(taken, self._source), _Rest(taken, self.rest)
        result = _TensorLot(self.end, held, source, rest, self._beside)
        result._given = self._given
        result._taken = taken
        result._before = self
        return result

    def take_over(self) -> None:
        if self._before is not None:
            # One step for everybody else: in C, and it makes no objects on the way.
            self._tensors.extend(self._before._source)
            self._source = self.rest = self._taken
            self._before = None

    def close(self) -> None:
        """Do nothing: no iterator is out."""

    def clear(self) -> None:
        for each in (*self._given, *self._beside, self._tensors):
            if isinstance(each, list):
                each.clear()


class _Finished(Iterator[Any]):
    """Takes rows from the end of a list, and makes an item of each."""

    def __init__(
        self, rows: list[tuple[Any, ...]], finish: Callable[[tuple[Any, ...]], Any]
    ) -> None:
        self._rows = rows
        self._finish = finish
        self.is_busy = False
        self.is_over = False
        self.is_closed = False

    def __next__(self) -> Any:
        if self.is_over or not self._rows:
            raise StopIteration
        if self.is_busy:
            raise RuntimeError(_SHARED)
        self.is_busy = True
        try:
            item = self._finish(self._rows[-1])
            # From here to the end, no handler and no other thread runs.
            if not self.is_closed:
                del self._rows[-1]
                return item
        except RuntimeError:  # as of what is called on closed handles
            if not self.is_closed:
                raise
        finally:
            self.is_busy = False
        raise StopIteration


class _RowLot(_Lot):
    """Rows, of which an item each is made when its turn comes."""

    def __init__(
        self,
        end: int,
        rows: list[tuple[Any, ...]],
        finish: Callable[[tuple[Any, ...]], Any],
        out: _Finished | None = None,
    ) -> None:
        super().__init__(end, rows)
        self._rows = rows
        self._finish = finish
        self._out = out

    @property
    def is_busy(self) -> bool:
        return self._out is not None and self._out.is_busy

    def items(self) -> Iterator[Any]:
        self._out = _Finished(self._rows, self._finish)
        return self._out

    def successor(self) -> _RowLot:
        return _RowLot(self.end, self._rows, self._finish, self._out)

    def take_over(self) -> None:
        """End it; an item that is being made still comes from there."""
        if self._out is not None:
            self._out.is_over = True

    def close(self) -> None:
        if self._out is not None:
            self._out.is_closed = True

    def clear(self) -> None:
        self._rows.clear()


def _no_item(_: tuple[Any, ...]) -> NoReturn:
    raise AssertionError


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
        # Around what changes the lot that is out and makes windows live: any
        # thread may release or close. What a lot lets go of may run anybody's
        # code, and is let go of after it.
        self._lock = RLock()
        self._lot: _Lot = _RowLot(0, [], _no_item)

    @property
    def yielded_count(self) -> int:
        with self._lock:
            while self._final_count is None:
                lot = self._lot
                result = lot.end - length_hint(lot.rest)
                if self._lot is lot:  # else a handler has replaced it meanwhile
                    return result
            return self._final_count

    @property
    def is_in_mid_lot(self) -> bool:
        with self._lock:
            return self._lot.is_busy or (
                length_hint(self._lot.rest) > 0 and not self.was_released
            )

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
        source = iter(tensors)
        self._put_out(_TensorLot(end, tensors, source, source, beside))

    def put_out_owned(
        self, end: int, tensors: list[Tensor], *beside: list[Any] | repeat[Any]
    ) -> None:
        """Do what :meth:`put_out` does, but let go of each tensor as it goes.

        For those that own their memory. After a release, they go with the lot.
        """
        tensors.reverse()
        source = starmap(tensors.pop, repeat((), len(tensors)))
        self._put_out(_TensorLot(end, tensors, source, tensors, beside))

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
        for each in (tensors, *beside):
            if isinstance(each, list):
                each.clear()
        self._put_out(_RowLot(end, rows, finish))

    def _put_out(self, lot: _Lot) -> None:
        with self._lock:
            before, self._lot = self._lot, lot
        del before

    def check_unchanged(self) -> None:
        """Raise a ValueError if what was streamed has been written to meanwhile."""
        if not self.is_closed:
            self.handle.check_unchanged()

    def release(self) -> None:
        """Give back all pages; what is to come of the lot is held back."""
        with self._lock:
            before = self._lot
            if self._final_count is None:
                self._hold_back()
            self.handle.release()
        del before

    def _hold_back(self) -> None:
        """End the iterator that is out: take_rest() has what was to come of it."""
        self.was_released = True
        while True:
            lot = self._lot
            successor = lot.successor()
            # From one to the other, no handler or finaliser does the same.
            if self._lot is lot:
                self._lot = successor
                break
        successor.take_over()

    def take_rest(self, window: int) -> Iterator[Any] | None:
        """Iterate over what is to come of the lot, if anything is."""
        with self._lock:
            while not self.is_closed:
                lot = self._lot
                if not length_hint(lot.rest):
                    if self._lot is lot:  # no handler has released meanwhile
                        break
                elif self.was_released:
                    self.enter(window)
                else:
                    items = lot.items()
                    if self._lot is lot:
                        return items
            return None

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
        # Ctrl-C may end this anywhere; the next call goes on from there.
        self.is_closed = True
        if not self._is_ended:
            with self._lock:
                before = self._lot
                if self._final_count is None:
                    self._hold_back()
                    self._lot.close()
                    self._final_count = self.yielded_count
            del before
            self.handle.close(self._final_count)
            self._is_ended = True
        # It may have been put out after that.
        self._lot.clear()


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
        self._is_busy = False
        self._is_shared = False

    def __next__(self) -> Iterator[Any]:
        if self._is_busy:
            self._is_shared = True
            raise RuntimeError(_SHARED)
        self._is_busy = True
        try:
            self._is_shared = self._is_shared or self._state.is_in_mid_lot
            if not self._is_shared:
                items = next(self._windows)
                if not self._is_shared:
                    return items
        except BaseException:  # Ctrl-C: nobody will ask again
            self._state.close()
            raise
        finally:
            self._is_busy = False
        raise RuntimeError(_SHARED)


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
