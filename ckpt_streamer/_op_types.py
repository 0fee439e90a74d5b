"""Types of the ops and of their class, for editors and type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ckpt_streamer._budget import MemoryBudget


class StreamHandle(Protocol):
    """``torch.classes.ckpt_streamer.StreamHandle``: named tensors under a limit.

    All methods may be called from several threads; each call is atomic. Tensors
    outlive the handle: touched again, they are read from the file again, and count
    against no limit. Scripted code sees each error as a ``RuntimeError`` with the same
    text.
    """

    def has_next(self) -> bool:
        """Whether there is another tensor; once there is none, all pages go back."""

    def next(self) -> tuple[str, Tensor]:
        """Return the next name and tensor, in the order of the files.

        Raises:
            IndexError: Past the end.
            ValueError: A file has shrunk since it was opened, or a record is not
                what its checksum says and the stream verifies.
        """

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name, within the limit; the stream stays.

        Raises:
            ValueError: No tensor has the name, or several do; as :meth:`next`.
        """

    def slice(self, name: str, begin: int, end: int) -> Tensor:
        """Return ``tensor(name)[begin:end]``, of which only that part is read.

        Raises:
            ValueError: As :meth:`tensor`, or it has no dimensions.
            IndexError: Unless ``0 <= begin <= end``, the latter within its first size.
        """

    def release(self) -> None:
        """Give back all pages now; tensors stay valid."""

    def reset(self) -> None:
        """Start from the first tensor again, memory released."""

    def __len__(self) -> int:
        """The number of tensors, each name counted."""

    def bytes_streamed(self) -> int:
        """What the tensors yielded span, shared memory once."""

    def bytes_evicted(self) -> int:
        """File pages given back."""

    def bytes_resident(self) -> int:
        """Clean file pages of the tensors that are in memory now."""

    def peak_bytes_resident(self) -> int:
        """The most of them seen, whenever pages were given back or counted."""

    def stats(self) -> dict[str, int]:
        """All figures, by the names of :class:`StreamStats`."""

    def not_held(self) -> str:
        """What could not be held within the limit, and why; empty if all was."""

    def notes(self) -> str:
        """What else there is to know of it: see :class:`StreamStats`."""


class CheckpointWriter(Protocol):
    """``torch.classes.ckpt_streamer.CheckpointWriter``: a file that is written."""

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor that was declared, in any order, each once.

        Raises:
            ValueError: The name was not declared, or with another shape or dtype; it
                is written already; or it is declared as a view of what it is not.
        """

    def size_bytes(self) -> int:
        """The size of the files when they are finished."""

    def bytes_written(self) -> int:
        """Bytes of elements written so far."""

    def finish(self) -> list[str]:
        """Put the files in their places and return them, an index first.

        Raises:
            ValueError: A tensor is not written yet.
        """

    def close(self) -> None:
        """Leave nothing of it, unless it is finished. Idempotent."""


class Ops(Protocol):
    """``torch.ops.ckpt_streamer``."""

    @overload
    def open(
        self,
        path: str,
        memory_limit_bytes: int,
        *,
        dtype: torch.dtype | None = None,
        verify: bool = False,
        select: Sequence[str] | None = None,
        drop_page_cache: bool = False,
        budget: MemoryBudget | None = None,
    ) -> StreamHandle: ...
    @overload
    def open(
        self,
        paths: Sequence[str],
        memory_limit_bytes: int,
        *,
        dtype: torch.dtype | None = None,
        verify: bool = False,
        select: Sequence[str] | None = None,
        drop_page_cache: bool = False,
        budget: MemoryBudget | None = None,
    ) -> StreamHandle:
        """Open a checkpoint, or several as one stream, to iterate over its tensors.

        Raises:
            ValueError: The file is damaged, the limit not positive, the dtype not a
                floating-point one, or a pattern matches no name.
            NotImplementedError: The file is of a kind that is not read, or has no
                checksums to ``verify``.
            RuntimeError: The system refuses to read it.
        """

    def stream(
        self,
        tensors: dict[str, Tensor],
        memory_limit_bytes: int,
        *,
        dtype: torch.dtype | None = None,
        drop_page_cache: bool = False,
        budget: MemoryBudget | None = None,
    ) -> StreamHandle:
        """Stream tensors in memory, in the order of their memory.

        Raises:
            ValueError: The limit is not positive, or the dtype not a floating-point
                one.
        """

    def copy_(
        self,
        destination: Tensor,
        source: Tensor,
        memory_limit_bytes: int,
        *,
        drop_page_cache: bool = False,
    ) -> Tensor:
        """``destination.copy_(source)``, a source in a mapped file within the limit.

        Raises:
            ValueError: The limit is not positive.
            RuntimeError: As ``Tensor.copy_``.
        """

    def create(
        self,
        path: str,
        tensors: dict[str, Tensor],
        memory_limit_bytes: int,
        *,
        format: str | None = None,
        metadata: dict[str, str] | None = None,
        shard_size_bytes: int = 0,
        tied: str = "error",
        drop_page_cache: bool = False,
    ) -> CheckpointWriter:
        """Begin a file of these names, dtypes and shapes; see ``create()``.

        Raises:
            ValueError: The limit is not positive, the format cannot hold a tensor, or
                tensors share memory and ``tied`` does not say what to do.
            RuntimeError: The system refuses to write it.
        """

    def default_memory_limit_bytes(self) -> int:
        """The limit that fits the machine and the container at the moment."""

    @overload
    def load_into(
        self,
        parameters: dict[str, Tensor],
        path: str,
        memory_limit_bytes: int,
        *,
        prefix: str | None = None,
        strict: bool = False,
        verify: bool = False,
        drop_page_cache: bool = False,
        budget: MemoryBudget | None = None,
    ) -> tuple[list[str], list[str]]: ...
    @overload
    def load_into(
        self,
        parameters: dict[str, Tensor],
        paths: Sequence[str],
        memory_limit_bytes: int,
        *,
        prefix: str | None = None,
        strict: bool = False,
        verify: bool = False,
        drop_page_cache: bool = False,
        budget: MemoryBudget | None = None,
    ) -> tuple[list[str], list[str]]:
        """Copy each tensor of a file into the parameter of its name.

        Names and shapes are checked before anything is copied.

        Returns:
            The names of parameters that the file does not have, and of tensors that
            ``parameters`` does not have.

        Raises:
            ValueError: Another shape than the parameter's, a parameter on the meta
                device, a name that several tensors have, several prefixes with which
                most parameters are found, or, with ``strict``, missing and unexpected
                names; as :meth:`open`.
            NotImplementedError, RuntimeError: As :meth:`open`.
        """
