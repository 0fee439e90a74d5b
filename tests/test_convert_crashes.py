"""A conversion that ends badly loses nothing and leaves nothing half."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB

import ckpt_streamer
from ckpt_streamer import convert

HERE = Path(__file__).parent


def source_of(folder: Path, mebibytes: int) -> Path:
    """A file of tensors of 1 MiB; value i fills the i-th."""
    path = folder / "source.pt"
    shape = (256, 1024)
    torch.save({f"w{i}": torch.full(shape, float(i)) for i in range(mebibytes)}, path)
    return path


def assert_whole(path: Path, dtype: torch.dtype, mebibytes: int) -> None:
    with ckpt_streamer.open(path, verify=True) as checkpoint:
        assert len(checkpoint) == mebibytes
        for name, tensor in checkpoint:
            assert tensor.dtype == dtype
            assert (tensor == int(name[1:])).all()


def test_killed_at_any_moment(tmp_path: Path) -> None:
    count, mebibytes = 50, 24
    source = source_of(tmp_path, mebibytes)
    target = tmp_path / "target.pt"
    target.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, HERE / "killed_conversions.py", source, target, "50", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == count
    # After each kill the target has the size of the old file or of the new one.
    convert(source, tmp_path / "whole.pt", torch.bfloat16)
    sizes = {(tmp_path / "whole.pt").stat().st_size, source.stat().st_size}
    assert {size for _, size in results} <= sizes
    statuses = [status for status, _ in results]
    assert set(statuses) <= {0, -signal.SIGKILL}
    assert statuses.count(-signal.SIGKILL) >= 10
    (tmp_path / "whole.pt").unlink()
    new = target.stat().st_size < source.stat().st_size
    assert_whole(target, torch.bfloat16 if new else torch.float32, mebibytes)
    assert_whole(source, torch.float32, mebibytes)
    # Between two system calls at its very end a file has a name beside the target.
    left = [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    assert len(left) <= 1
    assert len(list(tmp_path.iterdir())) == 2 + len(left)


def test_interrupted_at_any_moment(tmp_path: Path) -> None:
    source = source_of(tmp_path, 64)
    target = tmp_path / "target.safetensors"
    code = (
        "import sys, torch, ckpt_streamer\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    ckpt_streamer.convert(sys.argv[1], sys.argv[2], torch.float64)\n"
        "    print('done', flush=True)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(source), str(target)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.stdout.readline() == b"done\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        begin = time.perf_counter()
        _, errors = child.communicate(timeout=20)
        assert time.perf_counter() - begin < 10
    assert b"KeyboardInterrupt" in errors
    assert_whole_safetensors(target, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "source.pt",
        "target.safetensors",
    ]


def assert_whole_safetensors(path: Path, mebibytes: int) -> None:
    with ckpt_streamer.open(path) as checkpoint:
        assert len(checkpoint) == mebibytes
        for name, tensor in checkpoint:
            assert (tensor == int(name[1:])).all()


@pytest.fixture(params=["tmpfs", "ext2"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; ext2 cannot reserve space, so that it fills up."""
    request.getfixturevalue("as_root")
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    else:
        if (
            shutil.which("mkfs.ext2", path=os.environ["PATH"] + ":/sbin:/usr/sbin")
            is None
        ):
            pytest.skip("there is no mkfs.ext2")
        image = tmp_path / "image"
        image.write_bytes(bytes(8 * MIB))
        subprocess.run(["mkfs.ext2", "-q", "-F", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a {request.param}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk(small_disk: Path, suffix: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, 16)
    target = small_disk / f"target{suffix}"
    old = source_of(small_disk, 1).rename(target).read_bytes()
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(OSError, match="No space left on device") as error:
        convert(source, target)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(target)
    assert target.read_bytes() == old
    assert {path.name for path in small_disk.iterdir()} - {"lost+found"} == {
        target.name
    }
    assert shutil.disk_usage(small_disk).free >= free
    # What fits is written there all the same.
    convert(source, target, select=["w1", "w2"])
    assert target.read_bytes() != old


def test_several_files_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    source = source_of(tmp_path, 16)
    with pytest.raises(OSError, match="No space left on device"):
        convert(source, small_disk / "m.safetensors", shard_size="2MiB")
    assert {path.name for path in small_disk.iterdir()} <= {"lost+found"}


@pytest.mark.usefixtures("as_root")
def test_read_only_targets(tmp_path: Path) -> None:
    folder = Path(tmp_path.parent.parent.parent, f"read-only-{os.getpid()}")
    folder.mkdir()
    try:
        source = source_of(folder, 1)
        (folder / "file.pt").write_text("old")
        (folder / "file.pt").chmod(0o444)
        (folder / "shut").mkdir()
        (folder / "shut").chmod(0o555)
        folder.chmod(0o777)
        os.seteuid(65534)
        for target in (folder / "file.pt", folder / "shut/new.pt"):
            with pytest.raises(PermissionError) as error:
                convert(source, target)
            assert error.value.strerror == "cannot write: Permission denied"
            assert error.value.filename == str(target)
        os.seteuid(0)
        assert (folder / "file.pt").read_text() == "old"
        assert not list((folder / "shut").iterdir())
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_the_mode_is_that_of_the_file_or_the_umask(tmp_path: Path) -> None:
    source = source_of(tmp_path, 1)
    target = tmp_path / "target.pt"
    before = os.umask(0o027)
    try:
        convert(source, target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o600)
    convert(source, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.usefixtures("as_root")
def test_files_with_names_where_there_are_no_others() -> None:
    """Without /proc, a file that has no name cannot be given one."""
    program = HERE.parent / ".cache/cpp/run_tests"
    subprocess.run(
        ["make", "--no-print-directory", "-j2", "cpp-tests"],
        cwd=HERE.parent,
        capture_output=True,
        check=True,
    )
    listed = subprocess.run(
        [program, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    names = [
        name
        for name in listed
        if name.startswith("an_output_file") and "page_cache" not in name
    ]
    assert len(names) >= 6
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide, "sh", program, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"cannot hide /proc: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
