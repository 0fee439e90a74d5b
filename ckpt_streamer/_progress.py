"""How far a load has got, shown or told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from torch import Tensor
from typing_extensions import Self

ProgressFunction = Callable[[int, int], object]


class ByteProgress:
    """Counts bytes that are done. A context manager."""

    def __init__(
        self, progress: bool | ProgressFunction, total_bytes: Callable[[], int]
    ) -> None:
        """Check ``progress``; True shows a bar of tqdm's.

        Args:
            progress: As the functions that have such an argument take it.
            total_bytes: Asked only if anybody wants to know.

        Raises:
            TypeError: ``progress`` is neither a ``bool`` nor callable.
            ImportError: It is True, and tqdm is not installed.
        """
        if not isinstance(progress, bool) and not callable(progress):
            raise TypeError(
                f"progress is {progress!r} ({type(progress).__name__}), expected a "
                "bool or a function of (bytes_done, bytes_total)"
            )
        self.is_on = progress is not False
        self._done_bytes = 0
        self._total_bytes = total_bytes() if self.is_on else 0
        self._tell = None if isinstance(progress, bool) else progress
        self._bar = _bar(self._total_bytes) if progress is True else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:  # what was left out is done as well
            self._advance(self._total_bytes - self._done_bytes)
        if self._bar is not None:
            self._bar.close()

    def set_done(self, done_bytes: int) -> None:
        """Say how many bytes are done by now."""
        if self.is_on:
            self._advance(min(done_bytes, self._total_bytes) - self._done_bytes)

    def _advance(self, count_bytes: int) -> None:
        if count_bytes:
            self._done_bytes += count_bytes
            if self._bar is not None:
                self._bar.update(count_bytes)
            if self._tell is not None:
                self._tell(self._done_bytes, self._total_bytes)


class Progress(ByteProgress):
    """Counts the bytes of a state_dict that are loaded. A context manager."""

    def __init__(
        self, progress: bool | ProgressFunction, tensors: Iterable[object]
    ) -> None:
        """As :class:`ByteProgress` does."""
        super().__init__(progress, lambda: sum(map(_bytes_of, tensors)))

    def add(self, tensor: object) -> None:
        """Count what is loaded or passed over."""
        if self.is_on:
            self.set_done(self._done_bytes + _bytes_of(tensor))


def _bytes_of(value: object) -> int:
    try:
        return value.nbytes if isinstance(value, Tensor) else 0
    except (RuntimeError, ValueError):  # not made yet
        return 0


def _bar(total_bytes: int) -> Any:
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "progress=True shows a bar of tqdm's, which is not installed: pip install "
            "tqdm, or give a function of (bytes_done, bytes_total)"
        ) from error
    return tqdm(total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024)
