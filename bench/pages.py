"""A file's pages: those in this process's page tables and those in the cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22  # linux/mman.h
_READ_BYTES = 128 * 1024  # as cat


def resident_bytes(path: Path) -> int:
    """Return how much of a file this process has mapped in, exactly.

    Rss less Anonymous, over all mappings of the file.
    """
    return _smaps_bytes(path, b"Rss:") - _smaps_bytes(path, b"Anonymous:")


def huge_page_bytes(path: Path) -> int:
    """Return how much of a file is mapped as huge pages when all of it is mapped."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    with mapping:
        drop_resident(path)  # of others
        mapping.madvise(mmap.MADV_HUGEPAGE)
        mapping.madvise(_MADV_POPULATE_READ)
        return _smaps_bytes(path, b"FilePmdMapped:")


def _smaps_bytes(path: Path, field: bytes) -> int:
    """Sum up a field of /proc/self/smaps over all mappings of a file.

    Read no further than needed: all of it takes tens of milliseconds.
    """
    name = os.fsencode(path.resolve()) + b"\n"
    remaining = sum(1 for _ in _mappings(path))
    kilobytes = 0
    is_of_file = False
    with open("/proc/self/smaps", "rb") as smaps:
        for line in smaps:
            words = line.split()
            if not words[0].endswith(b":"):  # the first line of a mapping
                if remaining == 0:
                    break
                is_of_file = line.endswith(name)
                remaining -= is_of_file
            elif is_of_file and words[0] == field:
                kilobytes += int(words[1])
    return kilobytes * 1024


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    name = str(path.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(name):
            begin, _, end = line.split(maxsplit=1)[0].partition("-")
            yield int(begin, 16), int(end, 16)


def cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache, in whole pages."""
    with (
        path.open("rb") as file,
        # Only what could be written to has an address in ctypes.
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping,
    ):
        page_count = -(-len(mapping) // mmap.PAGESIZE)
        is_cached = ctypes.create_string_buffer(page_count)
        first = ctypes.c_char.from_buffer(mapping)
        result = _LIBC.mincore(ctypes.addressof(first), len(mapping), is_cached)
        del first  # or the mapping cannot be closed
        if result != 0:
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        return is_cached.raw.count(1) * mmap.PAGESIZE


def drop_resident(path: Path) -> None:
    """Unmap all pages of a file from this process; the page cache keeps them.

    Not by a stream's release(): one would advise the kernel how to map the file,
    and that is a part of what is measured.

    REQUIRES: nobody has written to the mappings.
    """
    for begin, end in _mappings(path):
        if _LIBC.madvise(begin, end - begin, _MADV_DONTNEED) != 0:
            raise OSError(ctypes.get_errno(), "madvise", str(path))


def warm(path: Path) -> None:
    """Put a file into the page cache, by the same steps whatever was there.

    Written back, dropped from the cache, read from front to end: the kernel's
    readahead then fills the cache with large folios, which a file that was just
    written may not have. They need contiguous memory, so free memory is
    compacted first, where this user may.

    REQUIRES: no process has pages of the file mapped in; those cannot be dropped.
    """
    make_cold(path)
    with suppress(OSError):
        Path("/proc/sys/vm/compact_memory").write_text("1")
    read_through(path)


# What of each file was mapped as huge pages when it had just been warmed.
_HUGE_BYTES: dict[Path, int] = {}


def keep_warm(path: Path) -> None:
    """Warm a file unless it is as warm() left it when this process last called it.

    The kernel reclaims cached pages as it sees fit, and what is read in again may
    lie in smaller folios, which cost more to map. Takes milliseconds where nothing
    has changed.

    REQUIRES: as warm().
    """
    if (
        path in _HUGE_BYTES
        and cached_bytes(path) >= path.stat().st_size
        and huge_page_bytes(path) >= _HUGE_BYTES[path] * 0.98
    ):
        return
    warm(path)
    _HUGE_BYTES[path] = huge_page_bytes(path)


def make_cold(path: Path) -> None:
    """Write a file back and drop it from the page cache.

    REQUIRES: no process has pages of the file mapped in; those stay.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_through(path: Path, read_bytes: int = _READ_BYTES) -> None:
    """Read a file from front to end, so many bytes at a time.

    Of a file that was not cached, larger reads leave a larger part, at its
    beginning, in small folios.
    """
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(read_bytes)
        while file.readinto(buffer):
            pass
