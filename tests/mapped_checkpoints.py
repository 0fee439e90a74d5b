"""Checkpoints on disk and exact looks at memory, for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def load_mapped(path: Path) -> dict[str, torch.Tensor]:
    """Load a flat state_dict as views of the mapped file."""
    state_dict = torch.load(path, map_location="cpu", mmap=True)
    assert isinstance(state_dict, dict)
    return state_dict
