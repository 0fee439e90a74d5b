"""Memory, asserted exactly: the limit holds, nothing is lost, nothing else moves."""

from __future__ import annotations

import hashlib
import queue
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, cached_share, load_mapped, resident_of
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import stream


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_python(code: str, *arguments: object) -> str:
    """Run code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("limit_mb", [4, 8, 31, 32, 48, 1024])
@pytest.mark.parametrize("way", ["stream", "op"])
def test_the_limit_holds_at_every_tensor(
    large_checkpoint: Path, limit_mb: int, way: str
) -> None:
    state_dict = load_mapped(large_checkpoint)
    sum(val.sum() for val in state_dict.values())  # resident from before
    peak = 0
    if way == "stream":
        for _, _, val in stream(state_dict, limit_mb):
            assert not val.isnan().any()
            peak = max(peak, resident_of(large_checkpoint).clean_bytes)
    else:
        handle = torch.ops.ckpt_streamer.stream(state_dict, limit_mb * MIB)
        while handle.has_next():
            assert not handle.next()[1].isnan().any()
            peak = max(peak, resident_of(large_checkpoint).clean_bytes)
        assert handle.peak_bytes_resident() == peak
    assert 0 < peak <= limit_mb * MIB
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_many_small_tensors(tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    torch.save({f"k{i}": torch.full((1024,), float(i)) for i in range(8192)}, path)
    state_dict = load_mapped(path)
    for i, (_, key, val) in enumerate(stream(state_dict, 4)):
        assert float(val[1023]) == float(key[1:])
        if i % 100 == 0:
            assert resident_of(path).clean_bytes <= 4 * MIB
    assert resident_of(path).clean_bytes == 0


def test_a_tensor_above_the_limit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    torch.save({"big": torch.ones(8 * MIB // 4), "small": torch.ones(5)}, path)
    with stream(load_mapped(path), 4) as items:
        for _, _, val in items:
            val.sum()
        stats = items.stats()
    # How much of it was resident at once depends on how soon the watcher came.
    assert 0 < stats.peak_bytes_resident < 8 * MIB + 8192
    assert stats.bytes_over_limit == max(0, stats.peak_bytes_resident - 4 * MIB)
    if stats.bytes_over_limit:
        assert stats.not_held == (
            f"{stats.bytes_over_limit} bytes came on top before pages were given back: "
            "a tensor is larger than the limit, or tensors were read again after their "
            "window"
        )
    else:
        assert stats.not_held is None
    assert resident_of(path).clean_bytes == 0


def test_a_storage_counts_once_however_many_tensors_view_it(tmp_path: Path) -> None:
    path = tmp_path / "views.pt"
    base = torch.arange(3.0 * MIB / 4).reshape(768, 1024)
    views = {
        "base": base,
        "transposed": base.t(),
        "strided": base[::2],
        "expanded": base[:1].expand(100_000, 1024),
        "tied": base,
    }
    torch.save(views, path)
    state_dict = load_mapped(path)
    items = stream(state_dict, 4)
    for _, key, val in items:
        assert torch.equal(val[:768, :3], views[key][:768, :3])
        assert resident_of(path).clean_bytes <= 4 * MIB
    assert items.stats().bytes_streamed == 3 * MIB


def test_writes_are_never_lost(large_checkpoint: Path) -> None:
    before = digest(large_checkpoint)
    state_dict = load_mapped(large_checkpoint)
    for i in range(0, 64, 3):
        state_dict[f"w{i}"].neg_()
    for _ in range(2):
        for _, key, val in stream(state_dict, 4):
            i = int(key[1:])
            assert (val == (-i if i % 3 == 0 else i)).all()
    assert resident_of(large_checkpoint).written_bytes >= 22 * MIB
    assert resident_of(large_checkpoint).clean_bytes == 0
    for i in range(64):
        assert (state_dict[f"w{i}"] == (-i if i % 3 == 0 else i)).all()
    assert digest(large_checkpoint) == before


def test_writes_through_the_stream_are_never_lost(large_checkpoint: Path) -> None:
    before = digest(large_checkpoint)
    state_dict = load_mapped(large_checkpoint)
    for _, _, val in stream(state_dict, 4):
        val[::7] += 1000
    for i in range(64):
        expected = torch.full((256, 1024), float(i))
        expected[::7] += 1000
        assert torch.equal(state_dict[f"w{i}"], expected)
    assert digest(large_checkpoint) == before


@pytest.mark.parametrize("way", ["stream", "op"])
def test_writes_of_another_thread_are_never_lost(
    large_checkpoint: Path, way: str
) -> None:
    """Each tensor is negated by a worker while the stream passes its window."""
    for _ in range(5):
        state_dict = load_mapped(large_checkpoint)
        passed: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()

        def negate(tensors: queue.SimpleQueue[Tensor | None] = passed) -> None:
            while (tensor := tensors.get()) is not None:
                tensor.neg_()

        worker = threading.Thread(target=negate)
        worker.start()
        if way == "stream":
            for _, _, val in stream(state_dict, 4):
                val.sum()
                passed.put(val)
        else:
            handle = torch.ops.ckpt_streamer.stream(state_dict, 4 * MIB)
            while handle.has_next():
                passed.put(handle.next()[1])
        passed.put(None)
        worker.join()
        assert all((state_dict[f"w{i}"] == -i).all() for i in range(64))


def test_writes_of_a_thread_started_in_mid_window_are_never_lost(
    large_checkpoint: Path,
) -> None:
    for _ in range(5):
        state_dict = load_mapped(large_checkpoint)
        items = stream(state_dict, 1024)
        next(items)
        tensors = list(state_dict.values())
        for tensor in tensors:
            tensor.sum()
        worker = threading.Thread(target=lambda ts=tensors: [t.neg_() for t in ts])
        worker.start()
        while worker.is_alive():
            items.release()
            tensors[-1][::7].sum()
        worker.join()
        assert all((state_dict[f"w{i}"] == -i).all() for i in range(64))


@torch.jit.script
def write_over_and_over(tensors: list[Tensor], stride: int) -> int:
    for start in range(stride):
        for tensor in tensors:
            tensor.view(-1)[start::stride].fill_(7.0)
    return stride


# Called from Python, torch.jit.fork() waits for the end.
@torch.jit.script
def start_writing(tensors: list[Tensor], stride: int) -> torch.jit.Future[int]:
    return torch.jit.fork(  # type: ignore[no-any-return]
        write_over_and_over, tensors, stride
    )


def test_writes_of_a_forked_script_are_never_lost(large_checkpoint: Path) -> None:
    for _ in range(3):
        state_dict = load_mapped(large_checkpoint)
        tensors = list(state_dict.values())
        writer = start_writing(tensors, 64)
        passes = 0
        while not writer.done():
            for _, _, val in stream(state_dict, 4):
                val[0].sum()
            passes += 1
        assert passes > 0
        assert all(bool((tensor == 7.0).all()) for tensor in tensors)


@pytest.mark.parametrize("limit_mb", [4, 8, 31, 32])
@pytest.mark.parametrize("way", ["stream", "op"])
def test_the_limit_holds_after_a_release_in_mid_window(
    large_checkpoint: Path, limit_mb: int, way: str
) -> None:
    state_dict = load_mapped(large_checkpoint)
    sum(val.sum() for val in state_dict.values())
    names = []
    peak = 0

    def read(name: str, tensor: Tensor) -> None:
        nonlocal peak
        assert not tensor.isnan().any()
        names.append(name)
        peak = max(peak, resident_of(large_checkpoint).clean_bytes)

    if way == "stream":
        items = stream(state_dict, limit_mb)
        for _, key, val in items:
            read(key, val)
            if len(names) % 3 == 1:
                items.release()
                assert resident_of(large_checkpoint).clean_bytes == 0
                assert items.stats().tensors_yielded == len(names)
    else:
        handle = torch.ops.ckpt_streamer.stream(state_dict, limit_mb * MIB)
        while handle.has_next():
            read(*handle.next())
            if len(names) % 3 == 1:
                handle.release()
                assert resident_of(large_checkpoint).clean_bytes == 0
    assert names == list(state_dict)
    assert 0 < peak <= limit_mb * MIB


@pytest.mark.parametrize("way", ["stream", "op"])
def test_tensors_given_other_memory_in_mid_stream(
    large_checkpoint: Path, way: str
) -> None:
    state_dict = load_mapped(large_checkpoint)
    sums = {key: val.double().sum().item() for key, val in state_dict.items()}

    def move_all() -> None:
        for val in state_dict.values():
            val.share_memory_()
        # Unmapped by now, or it would not be left alone for a good reason.
        assert resident_of(large_checkpoint).clean_bytes == 0

    streamed: dict[str, float] = {}

    def read(key: str, val: Tensor) -> None:
        if len(streamed) == 5:
            move_all()
        streamed[key] = val.double().sum().item()

    def read_all() -> int:
        if way == "stream":
            items = stream(state_dict, 8)
            for _, key, val in items:
                read(key, val)
            return items.stats().bytes_resident
        handle = torch.ops.ckpt_streamer.stream(state_dict, 8 * MIB)
        while handle.has_next():
            read(*handle.next())
        return int(handle.bytes_resident())

    with pytest.warns(UserWarning, match="given other memory in mid-stream"):
        assert read_all() == 0
    assert streamed == sums


@pytest.mark.parametrize("way", ["stream", "op"])
def test_tensors_of_a_file_opened_here_given_other_memory(
    large_checkpoint: Path, way: str
) -> None:
    """The stream holds the file itself, so that there is nothing to let go of."""
    with ckpt_streamer.open(large_checkpoint) as checkpoint:
        assert isinstance(checkpoint.root, Mapping)
        state_dict = dict(checkpoint.root)
    del checkpoint
    state_dict["w9"][0, 0] = 123.0
    sums = {key: val.double().sum().item() for key, val in state_dict.items()}
    streamed: dict[str, float] = {}

    def read(key: str, val: Tensor) -> None:
        if len(streamed) == 5:
            for each in state_dict.values():
                each.share_memory_()
            assert resident_of(large_checkpoint).clean_bytes > 0
        streamed[key] = val.double().sum().item()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "stream":
            for _, key, val in stream(state_dict, 8):
                read(key, val)
        else:
            handle = torch.ops.ckpt_streamer.stream(state_dict, 8 * MIB)
            while handle.has_next():
                read(*handle.next())
        assert resident_of(large_checkpoint).clean_bytes == 0
    assert streamed == sums


def test_replacing_every_tensor_keeps_the_mapping_until_the_end(
    large_checkpoint: Path,
) -> None:
    state_dict = load_mapped(large_checkpoint)
    expected = {key: val.half() for key, val in state_dict.items()}
    for obj, key, val in stream(state_dict, 4):
        obj[key] = val.half()
        del val
    assert all(torch.equal(state_dict[key], expected[key]) for key in expected)
    assert str(large_checkpoint) not in Path("/proc/self/maps").read_text()


def test_what_is_read_after_a_release_is_told(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    items = stream(state_dict, 4)
    next(items)
    items.release()
    for val in state_dict.values():
        val.sum()
    list(items)
    assert items.stats().bytes_over_limit >= 59 * MIB


def test_heap_tensors_survive() -> None:
    weights = {f"w{i}": torch.full((MIB // 4,), float(i)) for i in range(32)}
    for _ in range(2):
        for _, key, val in stream(weights, 1):
            assert (val == float(key[1:])).all()
    assert all((weights[f"w{i}"] == i).all() for i in range(32))


def test_shared_and_file_backed_shared_tensors_survive(tmp_path: Path) -> None:
    path = tmp_path / "shared.bin"
    path.write_bytes(bytes(4 * MIB))
    file_backed = torch.from_file(str(path), shared=True, size=MIB)
    in_shm = torch.zeros(MIB).share_memory_()
    for val in (file_backed, in_shm):
        val.fill_(7)
    list(stream({"a": file_backed, "b": in_shm}, 1))
    assert (file_backed == 7).all()
    assert (in_shm == 7).all()


def test_a_heap_tensor_between_two_mapped_files_survives(tmp_path: Path) -> None:
    """One reservation filled with: file, anonymous memory, the same file."""
    path = tmp_path / "raw.bin"
    size = 4 * MIB
    path.write_bytes(bytes(range(256)) * (size // 256))
    run_python(
        """
        import ctypes, mmap, os, sys
        import torch
        from ckpt_streamer import stream

        path, size = sys.argv[1], int(sys.argv[2])
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [
            ctypes.c_long
        ]
        FIXED, WRITE = 0x10, mmap.PROT_READ | mmap.PROT_WRITE
        ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = libc.mmap(None, 3 * size, WRITE, ANONYMOUS, -1, 0)
        fd = os.open(path, os.O_RDONLY)
        for at in (base, base + 2 * size):
            private = mmap.MAP_PRIVATE | FIXED
            assert libc.mmap(at, size, WRITE, private, fd, 0) == at

        def tensor(at, dtype=torch.uint8):
            buffer = (ctypes.c_uint8 * size).from_address(at)
            return torch.frombuffer(buffer, dtype=dtype)

        left, middle, right = (tensor(base + i * size) for i in range(3))
        middle.fill_(9)
        expected = left.clone()
        for limit in (1, 5, 64):
            tree = {"right": right, "middle": middle, "left": left}
            for obj, key, val in stream(tree, limit):
                val.sum()
        assert (middle == 9).all()
        assert torch.equal(left, expected) and torch.equal(right, expected)
        """,
        path,
        size,
    )


def test_a_forked_child_streams_its_own_memory(large_checkpoint: Path) -> None:
    run_python(
        """
        import os, sys, warnings
        import torch
        from ckpt_streamer import stream

        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        state_dict = torch.load(sys.argv[1], mmap=True)
        items = stream(state_dict, 8)
        next(items)
        child = os.fork()
        if child == 0:
            for val in state_dict.values():
                val += 1000
            for obj, key, val in items:
                assert (val == 1000 + int(key[1:])).all(), key
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        large_checkpoint,
    )


@pytest.mark.usefixtures("as_root")
def test_another_users_file_as_an_unprivileged_user(large_checkpoint: Path) -> None:
    """Reading is all that user may do; eviction works all the same."""
    large_checkpoint.chmod(0o644)
    large_checkpoint.parent.chmod(0o755)
    printed = run_python(
        """
        import ctypes, os, sys
        import torch
        from ckpt_streamer import stream

        path = sys.argv[1]
        folder = os.open(os.path.dirname(path), os.O_RDONLY)  # the way there is root's
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        # A change of user makes /proc/self unreadable; a program started by that
        # user does not have this.
        PR_SET_DUMPABLE = 4
        assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
        path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        assert not os.access(path, os.W_OK) and os.stat(path).st_uid != os.getuid()
        state_dict = torch.load(path, mmap=True)
        with stream(state_dict, 8) as items:
            for obj, key, val in items:
                assert (val == int(key[1:])).all()
            stats = items.stats()
        print(stats.bytes_evicted, stats.peak_bytes_resident)
        """,
        large_checkpoint,
    )
    evicted, peak = map(int, printed.split())
    assert evicted >= 64 * MIB
    assert peak <= 8 * MIB


@pytest.mark.usefixtures("as_root")
def test_unreadable_page_tables_are_told(large_checkpoint: Path) -> None:
    """After a change of user, /proc/self/pagemap cannot be opened."""
    large_checkpoint.chmod(0o644)
    printed = run_python(
        """
        import os, sys, warnings
        import torch
        from ckpt_streamer import stream

        state_dict = torch.load(sys.argv[1], mmap=True)
        os.setuid(65534)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with stream(state_dict, 8) as items:
                for obj, key, val in items:
                    assert (val == int(key[1:])).all()
                stats = items.stats()
        print(stats.bytes_evicted, stats.bytes_over_limit)
        print(*[str(warning.message).splitlines()[0] for warning in caught], sep="|")
        """,
        large_checkpoint,
    )
    figures, messages = printed.splitlines()
    evicted, over_limit = map(int, figures.split())
    assert evicted == 0
    assert over_limit >= 48 * MIB
    assert len(messages.split("|")) == 1
    assert "bytes of file pages could not be given back (Permission denied)" in messages
    assert f"the memory limit of {8 * MIB} bytes is not held" in messages


def test_locked_pages_are_told(large_checkpoint: Path) -> None:
    """mlock()ed clean pages cannot be dropped: the drop's error is reported."""
    printed = run_python(
        """
        import ctypes, os, sys, warnings
        import torch
        from ckpt_streamer import stream

        # Read-only first: locking writable private memory would copy it.
        state_dict = torch.load(sys.argv[1], mmap=True)
        libc = ctypes.CDLL(None, use_errno=True)
        begin = state_dict["w0"].data_ptr() // 4096 * 4096
        size = ctypes.c_size_t(32 << 20)
        assert libc.mprotect(ctypes.c_void_p(begin), size, 1) == 0
        if libc.mlock(ctypes.c_void_p(begin), size) != 0:
            print("no mlock")
            sys.exit()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(stream(state_dict, 8))
        print(*[str(warning.message).splitlines()[0] for warning in caught], sep="|")
        """,
        large_checkpoint,
    )
    if printed == "no mlock\n":
        pytest.skip("this user may not lock 32 MiB of memory")
    assert "could not be given back (Invalid argument)" in printed


def test_the_page_cache_is_kept(large_checkpoint: Path) -> None:
    for _, _, val in stream(load_mapped(large_checkpoint), 8):
        val.sum()
    assert cached_share(large_checkpoint) > 0.95


def test_many_threads_stream_the_same_file(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    failures: list[str] = []

    def work() -> None:
        for _, key, val in stream(state_dict, 8):
            if not bool((val == float(key[1:])).all()):
                failures.append(key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert resident_of(large_checkpoint).clean_bytes == 0
