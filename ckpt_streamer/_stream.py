"""Streaming a state_dict that is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from operator import itemgetter, length_hint
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor
from typing_extensions import Self

from ckpt_streamer import _ops
from ckpt_streamer._arguments import check_cpu_page_size, memory_limit_bytes_of

StreamItem = tuple[Any, Any, Tensor]

_PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


# A tensor is looked at several times on its way into a window: lots whose
# objects fit a cache take half the time.
_LOT = 2048


class Slots:
    """Every (container, key) of a tree that holds a tensor, in traversal order.

    Three lists of equal length; ``containers[i][keys[i]] is tensors[i]``. All
    tensors, in this order, are added to a handle on the way.
    """

    def __init__(self, handle: _ops.WindowHandle) -> None:
        self.containers: list[Any] = []
        self.keys: list[Any] = []
        self.tensors: list[Any] = []
        self._handle = handle
        self._added_count = 0

    def append(self, container: Any, key: Any, tensor: Tensor) -> None:
        self.containers.append(container)
        self.keys.append(key)
        self.tensors.append(tensor)
        if len(self.tensors) - self._added_count >= _LOT:
            self.flush()

    def take_head(self, container: Any, keys: list[Any], values: list[Any]) -> int:
        """Append the head of the entries that is plain tensors, lot by lot.

        Returns its length. The lists are the callee's from now on.
        """
        self.flush()
        count = len(values)
        for begin in range(0, count, _LOT):
            lot = values[begin : begin + _LOT]
            if not _PLAIN_TENSORS.issuperset(map(type, lot)):
                count = begin
                break
            _ops.add(self._handle, lot)
        if count and not self.tensors and count == len(values):
            self.keys, self.tensors = keys, values
        else:
            self.keys += islice(keys, count)
            self.tensors += islice(values, count)
        self.containers += repeat(container, count)
        self._added_count = len(self.tensors)
        return count

    def flush(self) -> None:
        """Add the tensors that were appended to the handle."""
        if self._added_count < len(self.tensors):
            _ops.add(self._handle, self.tensors[self._added_count :])
            self._added_count = len(self.tensors)

    def permute(self, order: list[int]) -> None:
        """Reorder the slots; ``order[i]`` is the present index of the i-th."""
        take = itemgetter(*order)  # of two or more: one item is always in order
        self.containers = list(take(self.containers))
        self.keys = list(take(self.keys))
        self.tensors = list(take(self.tensors))


def walk(root: Any, handle: _ops.WindowHandle) -> Slots:
    """List the tensors in nested mappings, lists, tuples and namedtuples.

    Every container is walked once, at its first place; cycles are fine. Other
    leaves (numbers, strings, sets, modules, ...) are passed over. The tensors
    are added to the handle.
    """
    slots = Slots(handle)
    # Holding the containers keeps an id from being used again for another one.
    seen: dict[int, Any] = {id(root): root}
    stack = [_entries(root, slots)]
    while stack:
        for container, key, value in stack[-1]:
            if isinstance(value, Tensor):
                slots.append(container, key, value)
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                seen[id(value)] = value
                stack.append(_entries(value, slots))
                break
        else:
            stack.pop()
    slots.flush()
    return slots


def _entries(container: Any, slots: Slots) -> Iterator[tuple[Any, Any, Any]]:
    """Iterate over a container's (container, key, value).

    A head that holds nothing but tensors goes into the slots at once, which
    takes a tenth of the time.
    """
    if isinstance(container, Mapping):
        keys, values = list(container.keys()), list(container.values())
        if len(keys) != len(values):  # a multidict, or one that changes by itself
            items = list(container.items())
            keys, values = [key for key, _ in items], [value for _, value in items]
    else:
        values = list(container)
        keys = list(range(len(values)))
    rest = zip(repeat(container), keys, values)
    taken_count = slots.take_head(container, keys, values)
    if taken_count == len(values):
        return iter(())
    return islice(rest, taken_count, None)


class _State:
    """What a stream and its running generator share.

    Apart from the Stream itself, so that no cycle keeps a dropped stream, and
    the memory it holds, until the next garbage collection.
    """

    def __init__(self, root: Any, memory_limit_bytes: int) -> None:
        self.handle = _ops.windows(memory_limit_bytes)
        self.slots = walk(root, self.handle)
        self.tensor_count = len(self.slots.tensors)
        self.handle.plan()
        order = self.handle.order().tolist()
        if order:
            self.slots.permute(order)
        self.window_ends: list[int] = self.handle.window_ends().tolist()
        self.is_closed = False
        # Of the window that is out: where it ends, its lists, and what of it is
        # still to come.
        self._window_end = 0
        self._lists: tuple[list[Any], ...] = ()
        self._rest: Iterator[Any] = iter(())
        self._items: Iterator[StreamItem] = iter(())

    @property
    def yielded_count(self) -> int:
        return self._window_end - length_hint(self._rest)

    def items_of(self, begin: int, end: int) -> Iterator[StreamItem]:
        """Iterate over a window's slots, and forget them here.

        A tensor that the caller replaces must not live on past its window.
        """
        window = slice(begin, end)
        slots = self.slots
        containers, keys = slots.containers[window], slots.keys[window]
        tensors = slots.tensors[window]
        slots.keys[window] = slots.tensors[window] = [None] * (end - begin)
        self._window_end = end
        self._lists = (containers, keys, tensors)
        self._rest = iter(tensors)
        self._items = zip(containers, keys, self._rest, strict=False)
        return self._items

    def hold_back_rest(self) -> None:
        """End the iteration of the window that is out before its end."""
        rest = list(self._items)
        self._lists = (rest,)
        self._rest = self._items = iter(rest)

    def take_rest(self) -> Iterator[StreamItem] | None:
        """Iterate over what was held back, if anything was."""
        return self._items if length_hint(self._rest) else None

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            yielded_count = self.yielded_count
            self.handle.close(yielded_count)
            # The iterators over these lists end here, also in mid-window.
            for each in self._lists:
                each.clear()
            self._window_end, self._rest = yielded_count, iter(())
            self.slots.tensors.clear()
            self.slots.containers.clear()
            self.slots.keys.clear()


def _windows(state: _State) -> Iterator[Iterator[StreamItem]]:
    """Yield the items of one window after the other, evicting in between."""
    begin = 0
    # Looked up once: with the caches full of tensor data, it takes as long again
    # as the call.
    enter = state.handle.enter
    for window, end in enumerate(state.window_ends):
        if state.is_closed:
            return
        enter(window)
        yield state.items_of(begin, end)
        while (rest := state.take_rest()) is not None:
            enter(window)  # after a release in mid-window
            yield rest
        begin = end
    state.close()


class Stream(chain[StreamItem]):
    """An iterator of ``(obj, key, val)`` that keeps file pages under a limit.

    Made by :func:`stream`. ``val`` is always the tensor that the caller's tree
    holds: ``obj[key] is val``.

    At most ``memory_limit_mb`` of the streamed tensors' file pages are in
    physical memory at any instant, as long as no single tensor is larger. They
    all go back when the iteration ends, on :meth:`close`, at the end of a
    ``with`` block, and when the stream is dropped, as a ``for`` loop does with
    a stream it was given directly, also on ``break`` or an exception. Tensors
    that were kept stay valid: their bytes are read from the file again when
    touched, and count against no limit once the stream is closed.

    Not thread-safe. It cannot be pickled or copied.
    """

    # chain is the base because its iteration runs in C: a __next__ in Python
    # would cost a small tensor a tenth of its conversion.
    _state: _State

    def __init__(self, *_: object) -> None:  # not called by from_iterable()
        raise TypeError("a Stream is made by stream()")

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
        state = self._state
        state.hold_back_rest()
        state.handle.release()

    def stats(self) -> dict[str, int]:
        """Return the stream's figures so far; after the end, the final ones.

        All are bytes, but for the counts ``tensors`` and ``tensors_yielded``:

        - ``memory_limit_bytes``: the limit.
        - ``bytes_streamed``: spanned by the tensors yielded, shared memory once.
        - ``bytes_evicted``: file pages given back, checked by a second look.
        - ``bytes_resident``: clean file pages of the tensors in memory now.
        - ``peak_bytes_resident``: the most of them seen at a window's end.
        - ``bytes_over_limit``: how far that is above the limit.
        - ``bytes_written``: pages of the tensors that were written to. They are
          the caller's: never given back, not bounded, not in the figures above.

        Cost: a look at the page tables of all tensors.
        """
        state = self._state
        figures = dict(state.handle.figures(state.yielded_count))
        return {
            "tensors": state.tensor_count,
            "tensors_yielded": state.yielded_count,
            **figures,
        }

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Stream cannot be pickled or copied: it stands for this process's "
            "memory; make a new one with stream()"
        )


def stream(
    state_dict: Mapping[Any, Any] | Sequence[Any],
    memory_limit_mb: int = 1024,
    cpu_page_size: int | None = None,
) -> Stream:
    """Iterate over the tensors of a checkpoint in bounded physical memory.

    Meant for tensors that are views of a memory-mapped file, as
    ``torch.load(path, map_location="cpu", mmap=True)`` makes them. Tensors in
    other memory (heap, shared, another device) are yielded all the same, and
    their memory is left alone. Pages that were written to are never dropped.

    Tensors come in the order of their storages' addresses, then of their offsets
    in it, then of the tree: for one file, in file order. Those without memory
    here (empty, meta, sparse, other devices) come first.

    Args:
        state_dict: Mappings, lists, tuples and namedtuples in any nesting, with
            tensors at the leaves; others are passed over. Each (container, key)
            is yielded once, a tied tensor under each of its keys. A container
            reached twice is walked once. The keys of sequences are indices. It
            is walked at the call: later changes of the containers do not show.
        memory_limit_mb: The most of the tensors' file pages to hold in physical
            memory, in MiB.
        cpu_page_size: Accepted for compatibility and not used: the system knows
            its page size.

    Returns:
        A :class:`Stream` of ``(obj, key, val)``: ``val`` is the tensor and
        ``obj[key] is val``.

    Raises:
        TypeError: ``state_dict`` is no container, or a number is no ``int``.
        ValueError: ``memory_limit_mb`` or ``cpu_page_size`` is below 1.

    Example:
        >>> weights = {"weight": torch.ones(2, 2), "step": 7}
        >>> for obj, key, val in stream(weights, memory_limit_mb=64):
        ...     print(key, val.shape, obj[key] is val)
        weight torch.Size([2, 2]) True
    """
    limit_bytes = memory_limit_bytes_of(memory_limit_mb)
    check_cpu_page_size(cpu_page_size)
    if not isinstance(state_dict, (Mapping, list, tuple)):
        raise TypeError(
            f"state_dict is of type {type(state_dict).__name__}, expected a "
            "mapping, list or tuple of tensors"
        )
    state = _State(state_dict, limit_bytes)
    result = Stream.from_iterable(_windows(state))
    assert isinstance(result, Stream)
    result._state = state
    return result
