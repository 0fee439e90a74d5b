"""Builds the one extension: a shared object that torch loads as a library of ops.

It includes no Python.h and has no Python symbol, so the same file serves Python
and C++ programs. Set DEBUG=1 for an unoptimised build with assertions.
"""

import importlib
import os
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

# The extension must be compiled against the very torch that will load it. A
# build in isolation does not see the environment's packages: look there.
try:
    importlib.import_module("torch")
except ImportError:
    sys.path.append(sysconfig.get_path("platlib"))
    try:
        importlib.import_module("torch")
    except ImportError:
        raise SystemExit(
            "ckpt_streamer is compiled against the torch of this environment "
            f"({sys.prefix}), and there is none. Install torch first "
            "(https://pytorch.org/get-started), then run this command again; if "
            "torch is elsewhere on the path, add --no-build-isolation."
        ) from None

import torch
from torch.utils.cpp_extension import BuildExtension, CppExtension

PLATFORM = "macos" if sys.platform == "darwin" else "linux"
SOURCES = [
    "csrc/base/bfloat16.cpp",
    "csrc/base/crc32.cpp",
    "csrc/base/error.cpp",
    f"csrc/os/available_memory_{PLATFORM}.cpp",
    f"csrc/os/backing_file_{PLATFORM}.cpp",
    "csrc/os/file_posix.cpp",
    f"csrc/os/file_time_{PLATFORM}.cpp",
    "csrc/os/mapped_file_posix.cpp",
    *(["csrc/os/move_away_linux.cpp"] if PLATFORM == "linux" else []),
    f"csrc/os/page_cache_{PLATFORM}.cpp",
    f"csrc/os/page_out_{PLATFORM}.cpp",
    f"csrc/os/residency_{PLATFORM}.cpp",
    f"csrc/os/threads_{PLATFORM}.cpp",
    "csrc/os/threads_posix.cpp",
    "csrc/format/checkpoint_files.cpp",
    "csrc/format/checkpoint_index.cpp",
    "csrc/format/checksums.cpp",
    "csrc/format/flat_walk.cpp",
    "csrc/format/json.cpp",
    "csrc/format/known_formats.cpp",
    "csrc/format/legacy_storages.cpp",
    "csrc/format/memory_pieces.cpp",
    "csrc/format/name_glob.cpp",
    "csrc/format/name_index.cpp",
    "csrc/format/safetensors.cpp",
    "csrc/format/shard_index.cpp",
    "csrc/format/slot_finder.cpp",
    "csrc/format/slot_names.cpp",
    "csrc/format/source_reader.cpp",
    "csrc/format/text.cpp",
    "csrc/format/tree_walks.cpp",
    "csrc/format/zip_directory.cpp",
    "csrc/format/numpy_values.cpp",
    "csrc/format/pickle_context.cpp",
    "csrc/format/pickle_extent.cpp",
    "csrc/format/pickle_machine.cpp",
    "csrc/format/pickle_globals.cpp",
    "csrc/format/pickle_storages.cpp",
    "csrc/format/pickle_text.cpp",
    "csrc/format/tensor_arguments.cpp",
    "csrc/format/tensor_rebuild.cpp",
    "csrc/format/tensor_tree.cpp",
    "csrc/format/torch_archive.cpp",
    "csrc/format/torch_legacy.cpp",
    "csrc/format/torch_script.cpp",
    "csrc/format/torch_zip.cpp",
    "csrc/format/value_text.cpp",
    "csrc/format/value_tree.cpp",
    "csrc/format/value_walk.cpp",
    "csrc/format/zip_storages.cpp",
    "csrc/format/open_index.cpp",
    "csrc/plan/window.cpp",
    "csrc/stream/read_ahead.cpp",
    "csrc/stream/window_streamer.cpp",
    "csrc/ops/checkpoint_handle.cpp",
    "csrc/ops/checkpoint_tensors.cpp",
    "csrc/ops/composed_tensors.cpp",
    "csrc/ops/conversion.cpp",
    "csrc/ops/copy_under_limit.cpp",
    "csrc/ops/default_limit.cpp",
    "csrc/ops/dict_source.cpp",
    "csrc/ops/file_source.cpp",
    "csrc/ops/limit_warning.cpp",
    "csrc/ops/live_storages.cpp",
    "csrc/ops/mapped_files.cpp",
    "csrc/ops/node_values.cpp",
    "csrc/ops/other_writers.cpp",
    "csrc/ops/piecewise_copy.cpp",
    "csrc/ops/register_ops.cpp",
    "csrc/ops/slot_list.cpp",
    "csrc/ops/storage_holders.cpp",
    "csrc/ops/stream_handle.cpp",
    "csrc/ops/stream_stats.cpp",
    "csrc/ops/strided_view.cpp",
    "csrc/ops/tensor_memory.cpp",
    "csrc/ops/verified_records.cpp",
    "csrc/ops/partial_reads.cpp",
    "csrc/ops/window_handle.cpp",
]
HEADERS = sorted(str(path) for path in Path("csrc").glob("*/*.h"))

DEBUG = os.environ.get("DEBUG") == "1"

if sys.platform == "win32":
    raise SystemExit("ckpt_streamer needs a POSIX system (Linux, macOS or WSL).")


class BuildLibrary(BuildExtension):
    """Notes beside the library which torch it was compiled for."""

    def run(self) -> None:
        super().run()
        library = Path(self.get_ext_fullpath("ckpt_streamer._C"))
        note = library.with_name("compiled_for_torch.txt")
        note.write_text(torch.__version__)


setup(
    ext_modules=[
        CppExtension(
            name="ckpt_streamer._C",
            sources=SOURCES,
            depends=HEADERS,
            include_dirs=[str(Path("csrc").resolve())],
            extra_compile_args=[
                "-std=c++20",
                "-fvisibility=hidden",
                *(["-O0", "-g"] if DEBUG else ["-O2", "-DNDEBUG"]),
                "-Wall",
                "-Wextra",
            ],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary.with_options(no_python_abi_suffix=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
