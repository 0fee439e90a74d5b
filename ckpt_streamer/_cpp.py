"""Where C++ programs and extensions find the library and its headers."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def include_paths() -> list[str]:
    """Return the directories of ``<ckpt_streamer/stream.h>``.

    For ``include_dirs`` of ``torch.utils.cpp_extension.CppExtension``, or
    ``extra_include_paths`` of its ``load()``; torch's own are not among them.
    """
    return [str(_PACKAGE / "include")]


def library_paths() -> list[str]:
    """Return the directories of the library that ``-lckpt_streamer`` names.

    For ``library_dirs`` of ``CppExtension``. A Python extension finds it at run time
    if ``ckpt_streamer`` has been imported before; a program, if they are in its
    run path.
    """
    return [str(_PACKAGE / "lib")]


def cmake_prefix_path() -> str:
    """Return what ``CMAKE_PREFIX_PATH`` needs for ``find_package(ckpt_streamer)``.

    The target is ``ckpt_streamer::ckpt_streamer``. torch is found with it, where pip
    has installed both side by side.
    """
    return str(_PACKAGE / "share/cmake")
