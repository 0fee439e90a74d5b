"""Streams in threads, in forked processes, under signals, and at a process's end."""

from __future__ import annotations

import dis
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, make_cold, resident_of
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import Stream, _file_stream, _stream, _windows, stream

SHAPE = (64, 1024)  # 256 KiB
COUNT = 128
LIMIT_MB = 4
SECONDS = 60  # before a process counts as hanging


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 MiB; value ``i`` fills the i-th tensor."""
    path = tmp_path_factory.mktemp("threads") / "model.pt"
    torch.save({f"w{i}": torch.full(SHAPE, float(i)) for i in range(COUNT)}, path)
    return path


def is_right(name: str, tensor: Tensor) -> bool:
    return bool((tensor == float(name[1:])).all())


def in_threads(*bodies: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


# One handle in several threads


def test_a_handle_in_threads_yields_each_tensor_once(path: Path) -> None:
    handle = torch.ops.ckpt_streamer.open(str(path), LIMIT_MB * MIB)
    make_cold(path)
    names: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while True:
            try:
                name, tensor = handle.next()
            except IndexError:
                is_over.set()
                return
            assert is_right(name, tensor)
            names.append(name)

    def look_up() -> None:
        rng = random.Random(1)
        while not is_over.is_set():
            name = f"w{rng.randrange(COUNT)}"
            assert is_right(name, handle.tensor(name))
            assert is_right(name, handle.slice(name, 3, 5))

    def ask() -> None:
        while not is_over.is_set():
            stats = handle.stats()
            assert 0 <= stats["tensors_yielded"] <= COUNT
            handle.bytes_resident()
            handle.release()
            time.sleep(0.001)

    in_threads(read, read, look_up, ask)
    assert sorted(names) == sorted(f"w{i}" for i in range(COUNT))
    assert not handle.has_next()
    assert resident_of(path).clean_bytes == 0


@torch.jit.script
def count_wrong(
    handle: torch.classes.ckpt_streamer.StreamHandle,  # type: ignore[name-defined]
    share: int,
) -> int:
    wrong = 0
    for _ in range(share):
        name, tensor = handle.next()
        if not bool((tensor == float(name[1:])).all()):
            wrong += 1
    return wrong


@torch.jit.script
def count_wrong_in_tasks(path: str, memory_limit_bytes: int, count: int) -> int:
    handle = torch.ops.ckpt_streamer.open(path, memory_limit_bytes)
    first = torch.jit.fork(count_wrong, handle, count // 2)
    second = torch.jit.fork(count_wrong, handle, count // 2)
    wrong: int = torch.jit.wait(first) + torch.jit.wait(second)
    if handle.has_next():
        wrong += 1000
    return wrong


def test_a_handle_in_tasks_of_a_script(path: Path) -> None:
    for _ in range(3):
        assert count_wrong_in_tasks(str(path), LIMIT_MB * MIB, COUNT) == 0
    assert resident_of(path).clean_bytes == 0


# Streams of several threads


def test_streams_of_threads_over_the_same_and_other_files(
    path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(path.read_bytes())
    with ckpt_streamer.open(path, 8) as checkpoint:

        def read(items: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
            for _ in range(2):
                names = []
                for name, tensor in items():
                    assert is_right(name, tensor)
                    names.append(name)
                assert len(names) == COUNT

        def of_stream(source: object, limit_mb: int) -> Iterator[tuple[str, Tensor]]:
            for _, name, tensor in stream(source, limit_mb):  # type: ignore[arg-type]
                yield name, tensor

        in_threads(
            lambda: read(lambda: of_stream(path, 4)),
            lambda: read(lambda: of_stream(load_mapped(path), 32)),
            lambda: read(lambda: of_stream(other, 5)),
            lambda: read(lambda: iter(checkpoint)),
            lambda: read(lambda: ((n, checkpoint[n]) for n in checkpoint.names)),
        )
    assert resident_of(path).clean_bytes == resident_of(other).clean_bytes == 0


def test_a_stream_that_two_threads_ask_at_once_is_an_error(path: Path) -> None:
    """Or each tensor comes once: none is passed over in silence."""

    def read(
        items: Iterator[tuple[object, str, Tensor]], names: list[str], errors: list[str]
    ) -> None:
        try:
            names += [name for _, name, _ in items]
        except RuntimeError as error:
            errors.append(str(error))

    collisions = 0
    for _ in range(30):
        items = stream(path, 1)
        lists: list[list[str]] = [[], []]
        errors: list[str] = []
        in_threads(*(partial(read, items, names, errors) for names in lists))
        collisions += bool(errors)
        assert all("two threads ask a stream" in error for error in errors)
        if not errors:
            assert sorted(lists[0] + lists[1]) == sorted(f"w{i}" for i in range(COUNT))
    assert collisions > 0


@pytest.mark.parametrize("released", [False, True])
def test_a_thread_that_asks_while_an_item_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """Of a tensor that is converted when its turn comes; also after a release."""
    path = tmp_path / "tensors.pt"
    torch.save({f"w{i}": torch.ones(MIB) for i in range(8)}, path)
    items = stream(path, 2 * LIMIT_MB, dtype=torch.bfloat16)
    convert = _file_stream._converted_row
    calls = 0

    def ask() -> None:
        with pytest.raises(RuntimeError, match=r"^two threads ask a stream"):
            next(items)

    def convert_asked(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            if released:
                items.release()
            in_threads(ask)
        return convert(*arguments)

    monkeypatch.setattr(_file_stream, "_converted_row", convert_asked)
    names = [name for _, name, _ in items]
    assert calls >= 2
    assert names == [f"w{i}" for i in range(len(names))]
    assert released or len(names) == 8


def test_releasing_from_another_thread(path: Path) -> None:
    for _ in range(3):
        items = stream(path, LIMIT_MB, dtype=torch.bfloat16)
        is_over = threading.Event()

        def read(
            items: Iterator[tuple[object, str, Tensor]] = items,
            is_over: threading.Event = is_over,
        ) -> None:
            names = []
            for _, name, tensor in items:
                assert is_right(name, tensor)
                names.append(name)
            is_over.set()
            assert names == [f"w{i}" for i in range(COUNT)]

        def release(
            release: Callable[[], None] = items.release,
            is_over: threading.Event = is_over,
        ) -> None:
            while not is_over.is_set():
                release()
                time.sleep(0.0005)

        in_threads(read, release)
    assert resident_of(path).clean_bytes == 0


SMALL, LARGE = 1024, MIB // 2  # elements
KINDS_OF_LOTS = [
    (Path, "_file_stream", SMALL, None),
    (Path, "_file_stream", SMALL, torch.bfloat16),
    (Path, "_file_stream", LARGE, torch.bfloat16),
    (load_mapped, "_stream", SMALL, None),
]


@pytest.fixture(params=KINDS_OF_LOTS)
def make_stream(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Stream]:
    """Make streams whose lots end at every third tensor, in several windows."""
    make_source, module, elements, dtype = request.param
    monkeypatch.setattr(f"ckpt_streamer.{module}._LOT", 3)
    path = tmp_path / "tensors.pt"
    torch.save({f"w{i}": torch.ones(elements) for i in range(20)}, path)
    source = make_source(path)
    return lambda: stream(source, LIMIT_MB, dtype=dtype)


def test_releasing_while_threads_change_often(
    make_stream: Callable[[], Stream],
) -> None:
    for _ in range(4):
        items = make_stream()
        is_over = threading.Event()

        def read(items: Stream = items, is_over: threading.Event = is_over) -> None:
            try:
                for i, (_, name, _) in enumerate(items):
                    assert name == f"w{i}"
                    assert i < items.stats().tensors_yielded <= 20
            finally:
                is_over.set()
            assert i == 19

        def release(items: Stream = items, is_over: threading.Event = is_over) -> None:
            while not is_over.is_set():
                items.release()

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            in_threads(read, release)
        finally:
            sys.setswitchinterval(before)


# After these, the interpreter looks for signals and lets other threads run.
SWITCHES = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")


def act_at(step: int, act: Callable[[], None], read: Callable[[], None]) -> bool:
    """Act at that switch within the streams' Python while reading, if it comes."""
    files = {_windows.__file__, _file_stream.__file__, _stream.__file__}
    before: dict[FrameType, int] = {}  # the last instruction of each frame
    switches = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal switches
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = before.get(frame)
            before[frame] = frame.f_lasti
            if last is not None:
                name = dis.opname[frame.f_code.co_code[last]]
                switches += name.startswith(SWITCHES)
                if name.startswith(SWITCHES) and switches == step:
                    act()
        return trace

    trace_before = sys.gettrace()
    sys.settrace(trace)
    try:
        read()
    finally:
        sys.settrace(trace_before)
    return switches >= step


@pytest.mark.parametrize("way", ["release", "close"])
@pytest.mark.parametrize("who", ["handler", "thread"])
def test_releasing_and_closing_at_any_step(
    make_stream: Callable[[], Stream], tmp_path: Path, way: str, who: str
) -> None:
    for step in count(1, 7):
        items = make_stream()
        names: list[str] = []
        thread = threading.Thread(target=getattr(items, way))

        def act(items: Stream = items, thread: threading.Thread = thread) -> None:
            if who == "handler":
                getattr(items, way)()
            else:
                thread.start()
                thread.join(0.01)  # or until the reader lets go of a lock

        def read(items: Stream = items, names: list[str] = names) -> None:
            for _, name, _ in items:
                names.append(name)
                assert items.stats().tensors_yielded == len(names)
                if len(names) in {5, 13}:
                    items.release()
                if len(names) == 18:
                    items.close()

        acted = act_at(step, act, read)
        if thread.ident is not None:
            thread.join(SECONDS)
        items.close()
        assert names == [f"w{i}" for i in range(len(names))], step
        assert items.stats().tensors_yielded == len(names), step
        assert way == "close" or len(names) == 18, step
        assert resident_of(tmp_path / "tensors.pt").clean_bytes == 0, step
        if not acted:
            break


def test_ctrl_c_within_a_release_loses_nothing(
    make_stream: Callable[[], Stream],
) -> None:
    for step in count(1):
        items = make_stream()
        names = [name for _, name, _ in islice(items, 4)]

        def release(items: Stream = items) -> None:
            with suppress(KeyboardInterrupt):
                items.release()

        interrupted = act_at(step, partial(signal.raise_signal, signal.SIGINT), release)
        names += [name for _, name, _ in items]
        assert names == [f"w{i}" for i in range(20)], step
        if not interrupted:
            break


def test_closing_while_another_thread_reads_and_writes(path: Path) -> None:
    """The reader's stream ends; what it holds and writes stays."""
    rng = random.Random(3)
    for _ in range(20):
        items = stream(path, LIMIT_MB)
        kept: list[tuple[str, Tensor]] = []

        def write(
            items: Iterator[tuple[object, str, Tensor]] = items,
            kept: list[tuple[str, Tensor]] = kept,
        ) -> None:
            for _, name, tensor in items:
                assert is_right(name, tensor)
                tensor.add_(0.5)
                kept.append((name, tensor))

        def close(
            close: Callable[[], None] = items.close, delay: float = rng.random() / 50
        ) -> None:
            time.sleep(delay)
            close()

        in_threads(write, close)
        assert all(bool((t == float(name[1:]) + 0.5).all()) for name, t in kept)
        assert list(items) == []


# Processes


@pytest.mark.parametrize("way", ["op", "stream"])
def test_a_forked_child_reads_on(path: Path, way: str) -> None:
    done = run_python(
        """
        import os, sys, warnings
        import torch
        import ckpt_streamer

        warnings.simplefilter("ignore")
        path, way = sys.argv[1:]
        torch.set_num_threads(1)
        with open(path, "rb") as file:  # so that a thread reads ahead
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if way == "op":
            handle = torch.ops.ckpt_streamer.open(path, 4 << 20)
            def take():
                while handle.has_next():
                    yield handle.next()
            yielded = lambda: handle.stats()["tensors_yielded"]
            written = lambda: handle.stats()["bytes_written"]
        else:
            items = ckpt_streamer.stream(path, 4)
            def take():
                for _, name, tensor in items:
                    yield name, tensor
            yielded = lambda: items.stats().tensors_yielded
            written = lambda: items.stats().bytes_written
        rest = take()
        kept = []
        for _ in range(20):
            name, tensor = next(rest)
            tensor.add_(0.5)
            kept.append((name, tensor))
        before = written()
        child = os.fork()
        names = []
        for name, tensor in rest:
            assert (tensor == float(name[1:])).all(), name
            if child == 0:
                tensor.fill_(-1)  # is not seen in the parent
            names.append(name)
        assert names == [f"w{i}" for i in range(20, 128)], names
        assert yielded() == 128
        for name, tensor in kept:
            assert (tensor == float(name[1:]) + 0.5).all(), name
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        if way == "op":
            assert written() == before, (written(), before)
        """,
        *(path, way),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_does_not_wait_for_workers_of_its_parent(path: Path) -> None:
    done = run_python(
        """
        import os, signal, sys, threading, warnings
        import torch
        import ckpt_streamer

        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        torch.ones(1 << 22).add_(1)  # on several threads
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            is_over = False
            def run():
                while not is_over:
                    pass
            running = threading.Thread(target=run)
            running.start()
            handle = torch.ops.ckpt_streamer.open(sys.argv[1], 4 << 20)
            while handle.has_next():
                handle.next()
            is_over = True
            running.join()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        path,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Dataset(torch.utils.data.Dataset[float]):
    def __init__(self, path: Path) -> None:
        self.checkpoint = ckpt_streamer.open(path, LIMIT_MB)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> float:
        tensor = self.checkpoint[f"w{index}"]
        assert bool((tensor == index).all())
        return float(tensor[0, 0])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_workers_of_a_data_loader_share_a_checkpoint(path: Path) -> None:
    loader = torch.utils.data.DataLoader(
        Dataset(path), batch_size=8, num_workers=2, multiprocessing_context="fork"
    )
    values = [float(value) for batch in loader for value in batch]
    assert values == [float(i) for i in range(COUNT)]


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")
def test_workers_that_are_spawned_are_refused_in_words(path: Path) -> None:
    loader = torch.utils.data.DataLoader(
        Dataset(path), num_workers=1, multiprocessing_context="spawn"
    )
    with pytest.raises(TypeError, match="open the file again with open"):
        next(iter(loader))


# Signals


def test_ctrl_c_at_any_point(path: Path) -> None:
    """No hang, no lost write; the stream goes on, or has ended and given all back."""
    done = run_python(
        """
        import random, signal, sys
        import torch
        import ckpt_streamer
        sys.path.append(sys.argv[2])
        from mapped_checkpoints import resident_of

        path = sys.argv[1]
        rng = random.Random(5)
        caught = 0
        is_armed = False

        def interrupt(number, frame):
            if is_armed:
                raise KeyboardInterrupt

        def run(turn):
            global caught, is_armed
            source = (path, torch.load(path, mmap=True))[turn % 2]
            items = ckpt_streamer.stream(source, 1 + turn % 4)
            kept = []
            interrupts = 0
            while True:
                try:
                    is_armed = interrupts < 3
                    for _, name, tensor in items:
                        kept.append((name, tensor))
                        tensor[0, :] = -5.0
                    is_armed = False
                    break
                except KeyboardInterrupt:
                    interrupts += 1
            caught += interrupts
            if not interrupts:
                assert [name for name, _ in kept] == [f"w{i}" for i in range(128)]
            assert items.stats().tensors_yielded >= len(kept) - interrupts
            items.close()
            assert resident_of(path).clean_bytes == 0
            unwritten = 0
            for name, tensor in kept:
                # The one that was interrupted may not have been written to.
                unwritten += not (tensor[0] == -5).all()
                assert (tensor[1:] == float(name[1:])).all()
            assert unwritten <= interrupts

        # Python cannot raise in the midst of a destructor, and says so.
        sys.unraisablehook = lambda unraisable: None
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.0037)
        for turn in range(30):
            run(turn)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert caught > 10, caught
        """,
        *(path, Path(__file__).parent),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_in_the_loop(path: Path) -> None:
    items = stream(path, LIMIT_MB)

    def fail() -> None:
        for _, name, _ in items:
            if name == "w9":
                raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert [name for _, name, _ in items] == [f"w{i}" for i in range(10, COUNT)]


def test_what_fails_in_mid_stream_ends_it(path: Path, tmp_path: Path) -> None:
    shrinking = tmp_path / "shrinking.pt"
    shrinking.write_bytes(path.read_bytes())
    items = stream(shrinking, LIMIT_MB)
    list(islice(items, 3))
    os.truncate(shrinking, MIB)
    with pytest.raises(ValueError, match="has shrunk"):
        list(items)
    assert list(items) == []
    assert resident_of(shrinking).clean_bytes == 0


# The end of a process

ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "raise LookupError": 1,
    "os._exit(4)": 4,
    "in_thread(False); os._exit(4)": 4,
    "in_thread(True); os.kill(os.getpid(), 15)": -signal.SIGTERM,
    "in_thread(True)": 0,
    "handle = items = None; me = [converted]; me.append(me); gc.disable()": 0,
    "sys.modules['items'] = items; sys.modules['handle'] = handle": 0,
}


def test_a_process_ends_in_mid_stream(path: Path) -> None:
    """Whatever is still open, and a thread that reads ahead still running."""
    done = run_python(
        """
        import gc, json, os, signal, sys, threading, time
        import torch
        import ckpt_streamer

        torch.set_num_threads(1)
        path, ends = sys.argv[1], json.loads(sys.argv[2])
        codes = {}

        def make_cold():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        def read_for_ever():
            while True:
                make_cold()
                for _, _, tensor in ckpt_streamer.stream(path, 4):
                    tensor.sum()

        def in_thread(is_daemon):
            threading.Thread(target=read_for_ever, daemon=is_daemon).start()
            time.sleep(0.1)

        for end in ends:
            child = os.fork()
            if child == 0:
                break
            _, status = os.waitpid(child, 0)
            codes[end] = os.waitstatus_to_exitcode(status)
        else:
            print(json.dumps(codes))
            sys.exit()

        # A child, which ends as a program does.
        signal.alarm(20)
        make_cold()
        items = ckpt_streamer.stream(path, 4)
        handle = torch.ops.ckpt_streamer.open(path, 4 << 20)
        converted = iter(ckpt_streamer.open(path, 4, dtype=torch.bfloat16))
        for _ in range(5):
            kept = next(items), handle.next(), next(converted)
        exec(end)
        """,
        *(path, json.dumps(list(ENDS))),
    )
    codes = json.loads(done.stdout)
    # A daemon thread that is inside torch when Python ends makes torch abort the
    # process, with streams or without.
    if codes["in_thread(True)"] == -signal.SIGABRT:
        codes["in_thread(True)"] = 0
    assert codes == ENDS, done.stderr
    lines = [line for line in done.stderr.splitlines() if line[:1] != " "]
    assert set(lines) <= {
        "Traceback (most recent call last):",
        "LookupError",
        "terminate called without an active exception",
    }
