"""Tensors that the user's own code reads although they are larger than the limit, or
were passed before.

How soon the watcher comes depends on how loaded the machine is: what is asserted
here holds on any; the figures themselves are in bench/limits.py.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from memory_peaks import peaks_of

import ckpt_streamer
from ckpt_streamer import stream

SIZE_MIB = 256
WRITER_SECONDS = float(os.environ.get("CKPT_STREAMER_WRITER_SECONDS", "4"))


@pytest.fixture(scope="module")
def big_tensor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.pt"
    tensor = torch.arange(SIZE_MIB * MIB // 4, dtype=torch.int32)
    torch.save({"big": tensor, "small": torch.ones(5)}, path)
    return path


def big_of(path: Path, limit_mb: int) -> Iterator[torch.Tensor]:
    """Yield the tensor while its stream is open, its window live."""
    with stream(load_mapped(path), limit_mb) as items:
        for _, key, val in items:
            if key == "big":
                yield val


def comes_to_hold(path: Path, limit_bytes: int) -> bool:
    for _ in range(20_000):
        if resident_of(path).clean_bytes <= limit_bytes:
            return True
        time.sleep(0.001)
    return False


def read_slowly(big: torch.Tensor) -> int:
    total = 0
    for part in big.split(MIB):
        total += int(part.sum())
        time.sleep(0.004)
    return total


def evicted_after_reading(way: str, path: Path, limit_mb: int) -> int:
    """Read the tensor in one of the ways to have it, and return bytes_evicted."""
    expected = SIZE_MIB * MIB // 4 * (SIZE_MIB * MIB // 4 - 1) // 2
    if way == "op":
        handle = torch.ops.ckpt_streamer.open(str(path), limit_mb * MIB)
        assert read_slowly(handle.next()[1]) == expected
        return int(handle.bytes_evicted())
    if way == "look_up":
        with ckpt_streamer.open(path, limit_mb) as checkpoint:
            assert read_slowly(checkpoint["big"]) == expected
            return checkpoint.stats().bytes_evicted
    if way == "open":
        with ckpt_streamer.open(path, limit_mb) as checkpoint:
            tensors = iter(checkpoint)
            assert read_slowly(next(tensors)[1]) == expected
            return checkpoint.stats().bytes_evicted
    with stream(load_mapped(path), limit_mb) as items:
        assert read_slowly(next(items)[2]) == expected
        return items.stats().bytes_evicted


@pytest.mark.parametrize("way", ["open", "look_up", "stream", "op"])
@pytest.mark.parametrize("limit_mb", [16, 64])
def test_a_slow_reader_stays_near_the_limit(
    big_tensor: Path, way: str, limit_mb: int
) -> None:
    evicted: list[int] = []

    def read() -> None:
        evicted.append(evicted_after_reading(way, big_tensor, limit_mb))

    peak_bytes, _ = peaks_of(read)
    assert evicted[0] >= (SIZE_MIB - limit_mb) * MIB
    # Twice the limit: of a machine that is loaded.
    assert peak_bytes <= 2 * limit_mb * MIB
    assert resident_of(big_tensor).clean_bytes == 0


def test_what_is_read_is_given_back(big_tensor: Path) -> None:
    for big in big_of(big_tensor, 16):
        for _ in range(2):
            big.sum()
            assert comes_to_hold(big_tensor, 16 * MIB)
        assert int(big[-1]) == big.numel() - 1
    assert resident_of(big_tensor).clean_bytes == 0


def test_a_fast_reader_is_told_of(big_tensor: Path) -> None:
    with ckpt_streamer.open(big_tensor, 16) as checkpoint:
        big = checkpoint["big"]
        big.sum()
        stats = checkpoint.stats()
    assert 0 < stats.peak_bytes_resident <= (SIZE_MIB + 2) * MIB
    assert stats.bytes_over_limit == max(0, stats.peak_bytes_resident - 16 * MIB)
    assert (stats.not_held is None) == (stats.bytes_over_limit == 0)


def test_nothing_is_watched_without_a_tensor_above_the_limit(
    big_tensor: Path, large_checkpoint: Path
) -> None:
    def thread_count() -> int:
        return len(os.listdir("/proc/self/task"))

    load_mapped(large_checkpoint)["w0"].sum()  # torch's own threads
    before = thread_count()
    for _ in stream(load_mapped(large_checkpoint), 1024):
        assert thread_count() == before
    for _ in big_of(big_tensor, 16):
        assert thread_count() == before + 1
    assert thread_count() == before


@pytest.mark.parametrize("way", ["stream", "op"])
@pytest.mark.parametrize("limit_mb", [4, 8, 32])
def test_kept_tensors_that_are_read_again(
    large_checkpoint: Path, limit_mb: int, way: str
) -> None:
    state_dict = load_mapped(large_checkpoint)
    kept = list(state_dict.values())
    if way == "stream":
        items = stream(state_dict, limit_mb)
        for _ in range(len(kept)):
            next(items)
        release = items.release
    else:
        handle = torch.ops.ckpt_streamer.stream(state_dict, limit_mb * MIB)
        while handle.has_next():
            handle.next()
        release = handle.release
    for _ in range(3):
        for i, tensor in enumerate(kept):
            assert (tensor == i).all()
        assert comes_to_hold(large_checkpoint, limit_mb * MIB)
    release()
    assert resident_of(large_checkpoint).clean_bytes == 0
    for tensor in kept:
        tensor.sum()
    assert resident_of(large_checkpoint).clean_bytes >= 64 * MIB


def has_single_faults() -> bool:
    """Whether userfaultfd is there, with UFFD_FEATURE_WP_ASYNC (Linux 6.7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 323, "aarch64": 282}.get(platform.machine(), -1)
    descriptor = libc.syscall(number, os.O_CLOEXEC | 1)
    if descriptor < 0:
        return False
    try:
        fcntl.ioctl(descriptor, 0xC018AA3F, struct.pack("QQQ", 0xAA, 1 << 15, 0))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


SMALL_COUNT = 2048
SMALL_ELEMENTS = 16 * 1024  # 64 KiB each: 128 MiB


@pytest.fixture(scope="module")
def small_tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pt"
    ones = torch.ones(SMALL_ELEMENTS)
    torch.save({f"w{i}": ones * i for i in range(SMALL_COUNT)}, path)
    return path


@pytest.mark.parametrize("way", ["stream", "open", "op"])
@pytest.mark.parametrize("limit_mb", [16, 64])
def test_of_small_kept_tensors_only_what_is_read_comes_back(
    small_tensors: Path, limit_mb: int, way: str
) -> None:
    """As long as the stream is open: all at once, and never 2 MiB around each."""
    if not has_single_faults():
        pytest.skip("no userfaultfd, or an old one: small tensors are only watched")
    kept = []
    if way == "op":
        handle = torch.ops.ckpt_streamer.open(str(small_tensors), limit_mb * MIB)
        while handle.has_next():
            kept.append(handle.next()[1])
        release = handle.release
    else:
        items = stream(
            load_mapped(small_tensors) if way == "stream" else small_tensors, limit_mb
        )
        for _ in range(SMALL_COUNT):  # the last window stays live
            kept.append(next(items)[2])
        release = items.release
    passed = kept[: SMALL_COUNT // 2 : 16]
    before_bytes = resident_of(small_tensors).clean_bytes
    values = [int(tensor[SMALL_ELEMENTS // 2]) for tensor in passed]
    assert values == list(range(0, SMALL_COUNT // 2, 16))
    came_bytes = resident_of(small_tensors).clean_bytes - before_bytes
    assert came_bytes == len(passed) * os.sysconf("SC_PAGE_SIZE")
    release()
    assert resident_of(small_tensors).clean_bytes == 0
    assert [int(tensor[0]) for tensor in passed] == values
    # As before the stream.
    assert resident_of(small_tensors).clean_bytes > came_bytes


def test_converting_in_pieces_needs_no_watcher(big_tensor: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    with ckpt_streamer.open(big_tensor, 64, dtype=torch.float64) as checkpoint:
        for _ in checkpoint:
            assert len(os.listdir("/proc/self/task")) <= before + 1
        stats = checkpoint.stats()
    assert stats.bytes_over_limit == 0


def test_a_file_that_another_process_has_mapped_as_well(big_tensor: Path) -> None:
    """Reclaim passes over its pages."""
    code = """
    import mmap, sys
    with open(sys.argv[1], "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    touched = sum(mapping[i] for i in range(0, len(mapping), 4096))
    print("ready", flush=True)
    sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(code), big_tensor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        for big in big_of(big_tensor, 16):
            big.sum()
            assert comes_to_hold(big_tensor, 16 * MIB)
        other.communicate(b"")
    assert other.returncode == 0


def test_a_forked_child_watches_from_its_next_call_on(big_tensor: Path) -> None:
    code = """
    import os, sys
    import torch
    import ckpt_streamer

    torch.set_num_threads(1)
    with ckpt_streamer.open(sys.argv[1], 16) as checkpoint:
        big = checkpoint["big"]
        child = os.fork()
        if child == 0:
            assert len(os.listdir("/proc/self/task")) == 1
            big = checkpoint.tensor("big")
            assert len(os.listdir("/proc/self/task")) == 2
            assert int(big[-1]) == len(big) - 1
            big.sum()
            checkpoint.close()
            assert len(os.listdir("/proc/self/task")) == 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), big_tensor], check=True
    )


# The limit yields to writes, and that is told.
@pytest.mark.filterwarnings(r"ignore:ckpt_streamer. \d+ bytes came on top:UserWarning")
@pytest.mark.parametrize("limit_mb", [1, 16, 64])
def test_no_write_of_any_thread_is_lost(big_tensor: Path, limit_mb: int) -> None:
    """Threads write marks all over the tensors while they are streamed.

    ``make check-writers`` does it for ten minutes.
    """
    stop_at = time.monotonic() + WRITER_SECONDS / 3
    rounds = 0
    while time.monotonic() < stop_at or rounds == 0:
        state_dict = load_mapped(big_tensor)
        big = state_dict["big"]
        generator = torch.Generator().manual_seed(rounds)
        stride = int(torch.randint(61, 1999, (), generator=generator))
        is_over = threading.Event()

        def write(worker: int, big: torch.Tensor = big, stride: int = stride) -> None:
            # Neighbours of other threads', on the same pages.
            for part in big.view(-1).chunk(64):
                marks = part[worker::stride]
                marks.neg_()
                assert bool((marks <= 0).all())

        def read(big: torch.Tensor = big, is_over: threading.Event = is_over) -> None:
            while not is_over.is_set():
                big.sum()

        writers = [threading.Thread(target=write, args=(i,)) for i in range(3)]
        reader = threading.Thread(target=read)
        with stream(state_dict, limit_mb) as items:
            next(items)
            next(items)
            for thread in (reader, *writers):
                thread.start()
            for thread in writers:
                thread.join()
            is_over.set()
            reader.join()
        expected = torch.arange(big.numel(), dtype=torch.int32)
        for part, whole in zip(expected.chunk(64), big.chunk(64), strict=True):
            for worker in range(3):
                part[worker::stride].neg_()
            assert torch.equal(part, whole)
        rounds += 1
