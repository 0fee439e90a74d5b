"""Streaming a state_dict that is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class Slots:
    """Every (container, key) of a tree that holds a tensor, in traversal order.

    Three lists of equal length; ``containers[i][keys[i]] is tensors[i]``.
    """

    __slots__ = ("containers", "keys", "tensors")

    def __init__(self) -> None:
        self.containers: list[Any] = []
        self.keys: list[Any] = []
        self.tensors: list[Any] = []

    def permute(self, order: list[int]) -> None:
        """Reorder the slots; ``order[i]`` is the present index of the i-th."""
        take = itemgetter(*order)  # of two or more: one item is always in order
        self.containers = list(take(self.containers))
        self.keys = list(take(self.keys))
        self.tensors = list(take(self.tensors))


def walk(root: Any) -> Slots:
    """List the tensors in nested mappings, lists, tuples and namedtuples.

    Every container is walked once, at its first place; cycles are fine. Other
    leaves (numbers, strings, sets, modules, ...) are passed over.
    """
    slots = Slots()
    # Holding the containers keeps an id from being used again for another one.
    seen: dict[int, Any] = {id(root): root}
    stack = [_entries(root, slots)]
    while stack:
        for container, key, value in stack[-1]:
            if isinstance(value, Tensor):
                slots.containers.append(container)
                slots.keys.append(key)
                slots.tensors.append(value)
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                seen[id(value)] = value
                stack.append(_entries(value, slots))
                break
        else:
            stack.pop()
    return slots


def _entries(container: Any, slots: Slots) -> Iterator[tuple[Any, Any, Any]]:
    """Iterate over a container's (container, key, value).

    One that holds nothing but tensors goes into the slots at once, which takes
    a tenth of the time.
    """
    keys: Iterable[Any]
    values: Sequence[Any]
    if isinstance(container, Mapping):
        keys, values = list(container.keys()), list(container.values())
        if len(keys) != len(values):  # a multidict, or one that changes by itself
            items = list(container.items())
            keys, values = [key for key, _ in items], [value for _, value in items]
    else:
        keys, values = range(len(container)), container
    if _PLAIN_TENSORS.issuperset(map(type, values)):
        slots.containers += repeat(container, len(values))
        slots.keys += keys
        slots.tensors += values
        return iter(())
    return zip(repeat(container), keys, values)


class _State:
    """What a stream and its running generator share.

    Apart from the Stream itself, so that no cycle keeps a dropped stream, and
    the memory it holds, until the next garbage collection.
    """

    def __init__(self, slots: Slots, memory_limit_bytes: int) -> None:
        self.slots = slots
        self.tensor_count = len(slots.tensors)
        self.handle = _ops.plan(slots.tensors, memory_limit_bytes)
        order = self.handle.order().tolist()
        if order:
            slots.permute(order)
        self.window_ends: list[int] = self.handle.window_ends().tolist()
        self.tensors = iter(slots.tensors)
        self.items = zip(slots.containers, slots.keys, self.tensors, strict=False)
        self.is_closed = False
        self._yielded_count_at_close = 0

    @property
    def yielded_count(self) -> int:
        if self.is_closed:
            return self._yielded_count_at_close
        return self.tensor_count - length_hint(self.tensors)

    def close(self) -> None:
        if not self.is_closed:
            self._yielded_count_at_close = self.yielded_count
            self.is_closed = True
            self.handle.close(self._yielded_count_at_close)
            # The iterators over these lists end here, also in mid-window.
            self.slots.tensors.clear()
            self.slots.containers.clear()
            self.slots.keys.clear()


def _windows(state: _State) -> Iterator[Iterator[StreamItem]]:
    """Yield the items of one window after the other, evicting in between."""
    passed_begin = begin = 0
    # Looked up once: with the caches full of tensor data, it takes as long again
    # as the call.
    enter = state.handle.enter
    for window, end in enumerate(state.window_ends):
        if state.is_closed:
            return
        # A tensor that the caller has replaced must not live on in here.
        state.slots.tensors[passed_begin:begin] = repeat(None, begin - passed_begin)
        enter(window)
        yield islice(state.items, end - begin)
        passed_begin, begin = begin, end
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
        self._state.handle.release()

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
    state = _State(walk(state_dict), limit_bytes)
    result = Stream.from_iterable(_windows(state))
    assert isinstance(result, Stream)
    result._state = state
    return result
