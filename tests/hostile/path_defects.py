"""Paths that are no files, or files of something else."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

from hostile.files import Refused, refused

EXPECTED = "expected a torch.save, TorchScript or safetensors file"


def a_fifo(folder: Path) -> Refused:
    path = folder / "fifo"
    os.mkfifo(path)
    return Refused(path, f"{path}: is not a regular file, expected a checkpoint file")


def a_socket(folder: Path) -> Refused:
    path = folder / "socket"
    # Paths of sockets are short: it is bound by a relative one.
    here = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
    finally:
        os.chdir(here)
    return Refused(
        path, f"{path}: cannot open: No such device or address", RuntimeError
    )


def an_endless_device(folder: Path) -> Refused:
    path = folder / "zero"
    path.symlink_to("/dev/zero")
    return Refused(path, f"{path}: is not a regular file, expected a checkpoint file")


def a_file_of_the_kernel(folder: Path) -> Refused:
    """Of size 0, with bytes."""
    path = folder / "version"
    path.symlink_to("/proc/version")
    return Refused(path, f"{path}: is empty, {EXPECTED}")


def a_folder(folder: Path) -> Refused:
    return Refused(folder, f"{folder}: is a directory, expected a checkpoint file")


def a_link_to_itself(folder: Path) -> Refused:
    path = folder / "link"
    path.symlink_to(path)
    return Refused(
        path, f"{path}: cannot open: Too many levels of symbolic links", RuntimeError
    )


def a_path_with_a_nul(folder: Path) -> Refused:
    (folder / "file").write_bytes(b"x")
    shown = f"{folder / 'file'}\\x00.pt"
    return Refused(
        folder / "file\0.pt",
        f"{shown}: the path holds a NUL character, expected a file's name",
    )


def an_empty_file(folder: Path) -> Refused:
    return refused(folder, b"", f"is empty, {EXPECTED}")


def a_file_of_one_byte(folder: Path) -> Refused:
    return refused(folder, b"P", f"begins with 50, {EXPECTED} [byte 0]")


def a_sparse_terabyte(folder: Path) -> Refused:
    path = folder / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return Refused(
        path, f"{path}: begins with {' '.join(['00'] * 16)}, {EXPECTED} [byte 0]"
    )


def a_plain_pickle(folder: Path) -> Refused:
    return refused(
        folder,
        pickle.dumps({"w": 1}, 4),
        f"is a plain pickle, which is not read; {EXPECTED}",
        NotImplementedError,
    )
