"""Checkpoints on disk and exact looks at memory, for the tests."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

MIB = 1024 * 1024


@dataclass(frozen=True)
class Resident:
    """What is in physical memory of one file's mappings, from smaps."""

    clean_bytes: int
    written_bytes: int


def resident_of(path: Path) -> Resident:
    """Read ``Rss - Anonymous`` and ``Anonymous`` of a file's mappings."""
    rss_kib = anonymous_kib = 0
    inside = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            name, _, value = line.partition(":")
            if " " in name:  # "begin-end perms offset dev inode path"
                inside = line.rstrip().endswith(f" {path}")
            elif inside and name == "Rss":
                rss_kib += int(value.split()[0])
            elif inside and name == "Anonymous":
                anonymous_kib += int(value.split()[0])
    return Resident((rss_kib - anonymous_kib) * 1024, anonymous_kib * 1024)


def resident_pages_of(tensor: torch.Tensor) -> list[int]:
    """Which pages of a tensor's memory this process has mapped, from 0 on."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    first = tensor.data_ptr() // page_bytes
    end = (tensor.data_ptr() + tensor.nbytes - 1) // page_bytes + 1
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(8 * first)
        entries = memoryview(pagemap.read(8 * (end - first))).cast("Q")
    return [page for page, entry in enumerate(entries) if entry >> 63]


def load_mapped(path: Path) -> dict[str, torch.Tensor]:
    """Load a flat state_dict as views of the mapped file."""
    state_dict = torch.load(path, map_location="cpu", mmap=True)
    assert isinstance(state_dict, dict)
    return state_dict


def cached_share(path: Path) -> float:
    """Return the share of a file's pages in the page cache, by mincore."""
    size = path.stat().st_size
    view = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    states = (ctypes.c_ubyte * (size // mmap.PAGESIZE + 1))()
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(view.data_ptr())
    assert libc.mincore(address, ctypes.c_size_t(size), states) == 0
    return sum(state & 1 for state in states) / len(states)


def make_cold(path: Path) -> None:
    """Drop a file from the page cache; pages that are mapped and touched stay."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    for _ in range(20):  # pages that are in use elsewhere at the moment stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_share(path) == 0:
            break
        time.sleep(0.05)
    os.close(descriptor)
    if cached_share(path) > 0.5:
        pytest.skip(f"the file system of {path} keeps files in memory")
