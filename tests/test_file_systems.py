"""What holds on file systems that are no disks is looked up and told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, cached_share, load_mapped, resident_of

import ckpt_streamer
from ckpt_streamer import stream

COUNT = 32
LIMIT_MB = 8

ON_TMPFS = (
    r"^\d+ bytes are mapped from a file system that is memory itself \(tmpfs, ramfs\): "
    "what is given back leaves this process, and stays charged to whoever wrote it$"
)

# Says of each file that it lies on the file system of that number.
FAKE = r"""
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/vfs.h>

int fstatfs(int descriptor, struct statfs* status) {
  int (*next)(int, struct statfs*) = dlsym(RTLD_NEXT, "fstatfs");
  int result = next(descriptor, status);
  status->f_type = strtol(getenv("FAKE_FILE_SYSTEM"), NULL, 0);
  return result;
}
"""

PROGRAM = """
import sys, ckpt_streamer
with ckpt_streamer.stream(sys.argv[1], 8) as tensors:
    for _, _, tensor in tensors:
        tensor.sum()
stats = tensors.stats()
assert stats.not_held is None, stats
handle = ckpt_streamer.ops.open(sys.argv[1], 8 << 20)
handle.next()
assert handle.notes() == (stats.notes or ""), handle.notes()
print(stats.notes)
"""


def save(path: Path) -> None:
    torch.save({f"w{i}": torch.full((MIB // 4,), float(i)) for i in range(COUNT)}, path)


@pytest.fixture
def on_tmpfs() -> Iterator[Path]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("there is no /dev/shm")
    path = folder / f"{uuid.uuid4()}.ckpt"
    save(path)
    yield path
    path.unlink()


def test_on_tmpfs_the_limit_holds_for_this_process(on_tmpfs: Path) -> None:
    state_dict = load_mapped(on_tmpfs)
    with stream(state_dict, LIMIT_MB) as tensors:
        for i, (_, _, tensor) in enumerate(tensors):
            assert bool((tensor == i).all())
            assert resident_of(on_tmpfs).clean_bytes <= LIMIT_MB * MIB
        stats = tensors.stats()
    assert stats.not_held is None
    assert stats.bytes_evicted >= (COUNT - LIMIT_MB) * MIB
    assert stats.notes is not None
    with pytest.raises(AssertionError, match=ON_TMPFS):
        raise AssertionError(stats.notes)
    assert resident_of(on_tmpfs).clean_bytes == 0
    with ckpt_streamer.open(on_tmpfs, LIMIT_MB) as checkpoint:
        assert float(checkpoint.tensor("w3")[0]) == 3
        assert checkpoint.stats().notes == stats.notes
    assert checkpoint.stats().notes == stats.notes


def test_on_tmpfs_the_cache_is_the_file(on_tmpfs: Path) -> None:
    with ckpt_streamer.open(on_tmpfs, LIMIT_MB, drop_page_cache=True) as checkpoint:
        for _, tensor in checkpoint:
            tensor.sum()
        not_held = checkpoint.stats().not_held
    assert not_held is not None
    assert "bytes stayed in the kernel's cache" in not_held
    assert "as tmpfs is" in not_held
    assert cached_share(on_tmpfs) == 1


def test_on_a_disk_there_is_nothing_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "disk.ckpt"
    save(path)
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind in {"tmpfs", "ramfs", "fuseblk", "nfs"}:
        pytest.skip(f"{tmp_path} is on {kind}")
    with stream(path, LIMIT_MB) as tensors:
        for _ in tensors:
            pass
    assert tensors.stats().notes is None


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake")
    source, library = folder / "fake.c", folder / "fake.so"
    source.write_text("#define _GNU_SOURCE\n" + FAKE)
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True
    )
    save(folder / "file.ckpt")
    return library


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("0x01021994", "memory itself (tmpfs, ramfs)"),
        ("0x858458f6", "memory itself (tmpfs, ramfs)"),
        ("0x958458f6", "hugetlbfs"),
        ("0x65735546", "that others serve (FUSE, NFS and the like)"),
        ("0x6969", "that others serve (FUSE, NFS and the like)"),
        ("0xff534d42", "that others serve (FUSE, NFS and the like)"),
        ("0x01021997", "that others serve (FUSE, NFS and the like)"),
        ("0xef53", "None"),  # ext4
    ],
)
def test_each_kind_is_told(fake: Path, number: str, expected: str) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            textwrap.dedent(PROGRAM),
            fake.parent / "file.ckpt",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_PRELOAD": str(fake), "FAKE_FILE_SYSTEM": number},
    )
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def test_tensors_that_nothing_bounds_are_told() -> None:
    heap = {"a": torch.ones(1000), "b": torch.ones(24)}
    with stream(heap, LIMIT_MB) as tensors:
        for _ in tensors:
            pass
    assert tensors.stats().notes == (
        "4096 bytes of the tensors are no pages of a mapped file: nothing bounds them"
    )
    handle = ckpt_streamer.ops.stream(heap, LIMIT_MB * MIB)
    assert handle.notes() == tensors.stats().notes
