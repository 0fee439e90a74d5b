"""Streams of a checkpoint file's tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Bounds
from ckpt_streamer._stats import StreamStats, combined
from ckpt_streamer._windows import State, TensorStream

if TYPE_CHECKING:
    from ckpt_streamer._tree import Tree

Select = str | Sequence[str] | Callable[[str], object]

# What is made at once: the tensors of a lot fit a cache, and one look-up of its
# names costs each of them next to nothing.
_LOT = 2048


class FileState(State):
    """Of tensors of a file, made lot by lot."""

    def __init__(
        self,
        slots: _ops.SlotList,
        bounds: Bounds,
        dtype: torch.dtype | None,
    ) -> None:
        handle = slots.windows(
            bounds.memory_limit_bytes, dtype, bounds.drop_page_cache, bounds.budget
        )
        super().__init__(handle, len(slots))
        self._slots = slots
        self._dtype = dtype

    def lots(self, window: int, begin: int, end: int) -> Iterator[None]:
        while begin < end and not self.is_closed:
            if self.was_released:
                self.enter(window)  # a conversion reads before it is asked for
            lot_end = min(begin + _LOT, end)
            if self._dtype is not None:
                tensors, is_left = self._slots.converted(begin, lot_end, self.handle)
                lot_end = begin + len(tensors)
                beside = self._beside(begin, lot_end)
                if is_left:
                    # No method of this, which would refer to itself: see State.
                    finish = partial(_converted_row, self.handle.convert)
                    self.put_out_unfinished(
                        lot_end, tensors, is_left, *beside, finish=finish
                    )
                else:
                    self.put_out_owned(lot_end, tensors, *beside)
            else:
                tensors = self._slots.tensors(begin, lot_end)
                beside = self._beside(begin, lot_end)
                self.put_out(lot_end, tensors, *beside)
            yield
            begin = lot_end

    @abstractmethod
    def _beside(self, begin: int, end: int) -> tuple[list[Any] | repeat[Any], ...]:
        """What comes in front of each tensor."""


def _converted_row(
    convert: Callable[[Tensor], Tensor], row: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Convert the tensor of a row, if it begins with True: that was left to do."""
    is_left, *beside, tensor = row
    return (*beside, convert(tensor) if is_left else tensor)


class Figures:
    """Those of several streams, together."""

    def __init__(self, tensors: int, memory_limit_bytes: int) -> None:
        self.stats = StreamStats(tensors, memory_limit_bytes)

    def add(self, stats: StreamStats) -> None:
        while True:
            before = self.stats
            total = combined(before, stats)
            if self.stats is before:  # else another thread has added meanwhile
                self.stats = total
                return


class NamedState(FileState):
    """Of (name, tensor)."""

    def __init__(
        self,
        slots: _ops.SlotList,
        bounds: Bounds,
        dtype: torch.dtype | None,
        ended: Figures,
    ) -> None:
        """Add the figures to those that have ended, at the end."""
        super().__init__(slots, bounds, dtype)
        self._ended = ended
        self._is_counted = False

    def close(self) -> None:
        super().close()
        if self._is_counted:
            return
        stats = self.stats()  # Ctrl-C in here: the next call counts them
        if not self._is_counted:
            self._is_counted = True
            self._ended.add(stats)

    def _beside(self, begin: int, end: int) -> tuple[list[Any]]:
        return (names_of(self._slots, begin, end),)


class PlacedState(FileState):
    """Of (obj, key, tensor)."""

    def __init__(
        self,
        tree: Tree,
        slots: _ops.SlotList,
        bounds: Bounds,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(slots, bounds, dtype)
        self._tree = tree
        # Held: a container's look-ups are dear to make again for each lot.
        self._containers: dict[int, Any] = {}

    def _beside(
        self, begin: int, end: int
    ) -> tuple[list[Any] | repeat[Any], list[Any]]:
        keys = self._tree.keys_of(self._slots.keys(begin, end))
        nodes = self._slots.containers(begin, end).tolist()
        if len(nodes) == 1 < end - begin and nodes[0] >= 0:
            return repeat(self._container(nodes[0])), keys
        containers = []
        for i, node in enumerate(nodes * ((end - begin) // len(nodes))):
            if node >= 0:
                containers.append(self._container(node))
            else:  # the root, or itself a key
                here = begin + i, begin + i + 1
                [name], [tensor] = (
                    names_of(self._slots, *here),
                    self._slots.tensors(*here),
                )
                keys[i] = name
                containers.append(MappingProxyType({name: tensor}))
        return containers, keys

    def _container(self, node: int) -> Any:
        container = self._containers.get(node)
        if container is None:
            container = self._containers[node] = self._tree.value(node)
        return container

    def close(self) -> None:
        super().close()
        self._containers.clear()


class NamedStream(TensorStream[tuple[str, Tensor]]):
    """An iterator of ``(name, tensor)`` over a :class:`Checkpoint`.

    It keeps the checkpoint's limit as a :class:`Stream` does, and has the same
    methods.
    """

    _MADE_BY = "iter(checkpoint)"


def names_of(slots: _ops.SlotList, begin: int, end: int) -> list[str]:
    """The dotted names of slots, of at least one."""
    return _ops.texts(slots.names(begin, end))


def selected(slots: _ops.SlotList, select: Select | None) -> _ops.SlotList:
    """Narrow slots down by their dotted names.

    Raises:
        TypeError: ``select`` is neither patterns nor a function.
        ValueError: A pattern matches no name.
    """
    if select is None:
        return slots
    if isinstance(select, str):
        return slots.matching([select])
    if isinstance(select, (list, tuple)) and all(isinstance(x, str) for x in select):
        return slots.matching(select)
    if not callable(select):
        raise TypeError(
            f"select is {select!r} ({type(select).__name__}), expected a pattern of "
            "names, a list of patterns, or a function of a name"
        )
    positions = [
        begin + i
        for begin, end in lots_of(len(slots))
        for i, name in enumerate(names_of(slots, begin, end))
        if select(name)
    ]
    return slots.at(torch.tensor(positions, dtype=torch.int64, device="cpu"))


def lots_of(count: int) -> Iterator[tuple[int, int]]:
    """Cut positions into lots that are best asked for at once."""
    for begin in range(0, count, _LOT):
        yield begin, min(begin + _LOT, count)
