"""The figures of streams."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StreamStats:
    """Figures of a stream, as of the call of its ``stats()``.

    Of a :class:`Checkpoint`, those of all its iterations and look-ups: what adds
    up is the sum, of the others it is the most.

    Attributes:
        tensors: All that the stream has.
        tensors_yielded: How many of them have been yielded.
        memory_limit_bytes: The limit.
        windows_entered: How often room was made for further tensors.
        bytes_streamed: What the tensors yielded span, shared memory once.
        bytes_evicted: File pages given back, checked by a second look.
        bytes_prefetched: Read from the disk ahead of the reader, in whole blocks; 0 for
            a file that the kernel has cached.
        bytes_resident: Clean file pages of the tensors that are in memory now.
        peak_bytes_resident: The most of them seen, whenever pages were given back
            or counted.
        bytes_over_limit: How far that is above the limit.
        bytes_written: Pages of the tensors that were written to. They are the
            caller's: never given back, not bounded, in none of the above.
        not_held: What could not be held within the limit, and why, in words; None
            if all was.
        notes: What else there is to know of it, in words; None if there is nothing.
            Tensors on the heap, which nothing bounds; and file systems that are no
            disks. On tmpfs and ramfs, which are memory themselves, what is given back
            leaves this process and stays charged to whoever wrote it; on hugetlbfs, the
            limit bounds nothing; from FUSE, NFS and the like, it is asked for again.
    """

    tensors: int
    memory_limit_bytes: int
    tensors_yielded: int = 0
    windows_entered: int = 0
    bytes_streamed: int = 0
    bytes_evicted: int = 0
    bytes_prefetched: int = 0
    bytes_resident: int = 0
    peak_bytes_resident: int = 0
    bytes_over_limit: int = 0
    bytes_written: int = 0
    not_held: str | None = None
    notes: str | None = None


_SUMS = (
    "tensors_yielded",
    "windows_entered",
    "bytes_streamed",
    "bytes_evicted",
    "bytes_prefetched",
)
_MOST = (
    "bytes_resident",
    "peak_bytes_resident",
    "bytes_over_limit",
    "bytes_written",
)


def combined(whole: StreamStats, part: StreamStats) -> StreamStats:
    """The figures of several streams; tensors and limit are those of the whole."""
    figures: dict[str, int] = {}
    for name in _SUMS:
        figures[name] = getattr(whole, name) + getattr(part, name)
    for name in _MOST:
        figures[name] = max(getattr(whole, name), getattr(part, name))
    return replace(
        whole,
        **figures,
        not_held=whole.not_held or part.not_held,
        notes=whole.notes or part.notes,
    )
