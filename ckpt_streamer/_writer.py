"""Checkpoints that are written tensor by tensor."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

from torch import Tensor
from typing_extensions import Self

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Path, memory_limit_bytes_of, one_path_of
from ckpt_streamer._sizes import bytes_of


class CheckpointWriter:
    """A checkpoint on its way to the disk. Made by :func:`create`.

    As a context manager, it is finished at the end of the ``with`` block, and left
    without a trace if an exception ends it. Until then, whatever is at the path
    stays as it is.

    It can be neither pickled nor copied.
    """

    def __init__(self, handle: _ops.Writer, path: str) -> None:
        self._handle = handle
        self.path = path
        """Where it will be."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.finish()
        else:
            self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor that was declared under the name.

        In any order, each once. Its elements are written in the declared dtype:
        floating-point ones are converted, bit for bit as ``.to(dtype)`` does it, in
        pieces of 4 MiB. One that shares its memory with another that is written
        already, and was declared so, is passed over.

        Raises:
            ValueError: The name was not declared, the shape or dtype is another,
                the tensor was written before, it is no view of the memory that it
                was declared as a view of, or the writer is finished.
            OSError: The system refuses, as for lack of space.
        """
        with os_errors():
            self._handle.write(name, tensor)

    def finish(self) -> list[str]:
        """Have the disk keep the files, and put them in their places.

        Returns:
            The files; of several, their index first.

        Raises:
            ValueError: Not all tensors are written, or the writer is finished.
            OSError: The system refuses.
        """
        with os_errors():
            return self._handle.finish()

    def close(self) -> None:
        """Leave nothing, unless it is finished. Idempotent."""
        self._handle.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a CheckpointWriter cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<CheckpointWriter {self.path!r}>"


class os_errors:  # noqa: N801 - reads as a function
    """Raises what Python's own functions do where the system refuses."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if type(exc_value) is RuntimeError:
            path, colon, text = str(exc_value).partition(": cannot write")
            number = _NUMBERS.get(text.rpartition(": ")[2].partition("\n")[0])
            if colon and number is not None:
                text = "cannot write" + text.partition("\n")[0]
                raise OSError(number, text, path) from None
        if type(exc_value) is ValueError:
            path, colon, text = str(exc_value).partition(": is a directory")
            if colon and os.path.isdir(path):
                text = "is a directory" + text
                raise IsADirectoryError(errno.EISDIR, text, path) from None


_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


def create(
    path: Path,
    tensors: Mapping[str, Tensor],
    memory_limit_mb: int = 1024,
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | str | None = None,
    tied: str = "error",
    drop_page_cache: bool = False,
) -> CheckpointWriter:
    """Begin a checkpoint that is written tensor by tensor.

    What it will hold is declared by tensors like those: of each, name, dtype,
    shape, and with which others it shares memory. Tensors on the meta device will
    do; nothing of them is read or kept.

    Args:
        path: The file to write, or, of several files, what they are named after:
            ``model-00001-of-00002.safetensors``, and so on, and
            ``model.safetensors.index.json``. It is written under no name, or under
            another one beside it where the file system has no such files.
        tensors: What will be written, in the order of the file.
        memory_limit_mb: The most of one tensor's file pages to hold, in MiB, where
            a tensor in a mapped file is larger; see ``torch.ops.ckpt_streamer.copy_``.
        format: ``"safetensors"`` or ``"torch"``, which is ``torch.save``'s; else the
            end of the path says it: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin``
            or ``.ckpt``.
        metadata: Texts to keep beside the tensors: in the header of a safetensors
            file, or as further entries of ``torch.save``'s dict.
        shard_size: The most bytes of tensors in one file, as a number or a text like
            ``"5GB"``; else all are in one. A tensor may be larger.
        tied: Of tensors that overlap in memory, where the format cannot say so
            (safetensors): ``"error"``, ``"copy"`` to write each, or ``"once"`` to
            write those that are the same view once, under the first name, and to
            note the others in the metadata. ``torch.save``'s format keeps them tied.
        drop_page_cache: Give the kernel's cached copy of what is written back
            behind it.

    Returns:
        A :class:`CheckpointWriter`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The format is not known, names hold a NUL or are no UTF-8, or
            ``tied`` forbids.
        NotImplementedError: A tensor is sparse, quantized or nested, or of a dtype
            that the format does not have.
        OSError: The system refuses: no space, no permission, no such folder, or
            one of several files is there already.

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> weight = torch.randn(2, 2)
        >>> declared = torch.empty(2, 2, dtype=torch.bfloat16, device="meta")
        >>> with create(path, {"weight": declared}) as writer:
        ...     writer.write("weight", weight)
        >>> from safetensors.torch import load_file
        >>> torch.equal(load_file(path)["weight"], weight.to(torch.bfloat16))
        True
    """
    limit_bytes = memory_limit_bytes_of(memory_limit_mb)
    target = one_path_of(path)
    with os_errors():
        handle = _ops.create(
            target,
            dict(tensors),
            limit_bytes,
            format=format,
            metadata=None if metadata is None else dict(metadata),
            shard_size_bytes=(
                0 if shard_size is None else bytes_of("shard_size", shard_size)
            ),
            tied=tied,
            drop_page_cache=drop_page_cache,
        )
    return CheckpointWriter(handle, target)
