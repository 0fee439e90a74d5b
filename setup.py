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
    "csrc/base/byte_ranges.cpp",
    "csrc/base/crc32.cpp",
    "csrc/base/error.cpp",
    f"csrc/os/available_memory_{PLATFORM}.cpp",
    f"csrc/os/backing_file_{PLATFORM}.cpp",
    "csrc/os/file_posix.cpp",
    "csrc/os/heap_posix.cpp",
    f"csrc/os/file_system_{PLATFORM}.cpp",
    f"csrc/os/file_time_{PLATFORM}.cpp",
    "csrc/os/mapped_file_posix.cpp",
    *(["csrc/os/move_away_linux.cpp"] if PLATFORM == "linux" else []),
    f"csrc/os/output_file_{PLATFORM}.cpp",
    "csrc/os/output_file_posix.cpp",
    f"csrc/os/page_cache_{PLATFORM}.cpp",
    f"csrc/os/page_out_{PLATFORM}.cpp",
    "csrc/os/path_checks_posix.cpp",
    f"csrc/os/residency_{PLATFORM}.cpp",
    f"csrc/os/single_faults_{PLATFORM}.cpp",
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
    "csrc/format/name_prefix.cpp",
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
    "csrc/stream/backing_files.cpp",
    "csrc/stream/cache_dropper.cpp",
    "csrc/stream/fault_advice.cpp",
    "csrc/stream/live_ranges.cpp",
    "csrc/stream/map_ahead.cpp",
    "csrc/stream/memory_budget.cpp",
    "csrc/stream/own_reads.cpp",
    "csrc/stream/read_ahead.cpp",
    "csrc/stream/watcher.cpp",
    "csrc/stream/window_streamer.cpp",
    "csrc/write/checkpoint_writer.cpp",
    "csrc/write/file_format.cpp",
    "csrc/write/file_layout.cpp",
    "csrc/write/file_writer.cpp",
    "csrc/write/pickle_writer.cpp",
    "csrc/write/plan.cpp",
    "csrc/write/safetensors_layout.cpp",
    "csrc/write/text_buffer.cpp",
    "csrc/write/zip_layout.cpp",
    "csrc/ops/checkpoint_handle.cpp",
    "csrc/ops/checkpoint_tensors.cpp",
    "csrc/ops/composed_tensors.cpp",
    "csrc/ops/conversion.cpp",
    "csrc/ops/copy_under_limit.cpp",
    "csrc/ops/default_limit.cpp",
    "csrc/ops/dict_source.cpp",
    "csrc/ops/file_memory.cpp",
    "csrc/ops/file_source.cpp",
    "csrc/ops/jit_load.cpp",
    "csrc/ops/limit_warning.cpp",
    "csrc/ops/live_storages.cpp",
    "csrc/ops/load_into.cpp",
    "csrc/ops/mapped_files.cpp",
    "csrc/ops/memory_budget.cpp",
    "csrc/ops/node_values.cpp",
    "csrc/ops/other_writers.cpp",
    "csrc/ops/piecewise_copy.cpp",
    "csrc/ops/register_ops.cpp",
    "csrc/ops/result_memory.cpp",
    "csrc/ops/scalar_types.cpp",
    "csrc/ops/slot_list.cpp",
    "csrc/ops/storage_holders.cpp",
    "csrc/ops/stream_handle.cpp",
    "csrc/ops/stream_stats.cpp",
    "csrc/ops/strided_view.cpp",
    "csrc/ops/tensor_memory.cpp",
    "csrc/ops/verified_records.cpp",
    "csrc/ops/partial_reads.cpp",
    "csrc/ops/window_handle.cpp",
    "csrc/ops/written_elements.cpp",
    "csrc/ops/writer_handle.cpp",
    "csrc/api/budget.cpp",
    "csrc/api/jit.cpp",
    "csrc/api/load.cpp",
    "csrc/api/stream.cpp",
    "csrc/api/write.cpp",
]
PUBLIC = Path("ckpt_streamer/include")
HEADERS = sorted(map(str, [*Path("csrc").glob("*/*.h"), *PUBLIC.glob("*/*.h")]))
EXPORTS = "csrc/api/exports.map"

# Beside torch, as pip installs both: a program that links or loads the library
# finds torch's libraries through it.
LINK_FLAGS = {
    "linux": [
        "-Wl,-soname,libckpt_streamer.so",
        "-Wl,-rpath,$ORIGIN/../../torch/lib",
        f"-Wl,--version-script={EXPORTS}",
    ],
    "macos": [
        "-Wl,-install_name,@rpath/libckpt_streamer.so",
        "-Wl,-rpath,@loader_path/../../torch/lib",
    ],
}[PLATFORM]

# What is compiled needs the minor release that it was compiled for (see _ops.py); the
# source distribution, which setuptools describes by this as well, needs no certain one.
RELEASE = ".".join(torch.__version__.split(".")[:2])
TORCH = "torch>=2.13" if "sdist" in sys.argv else f"torch=={RELEASE}.*"

LIBRARY = "ckpt_streamer.lib.libckpt_streamer"
DEBUG = os.environ.get("DEBUG") == "1"

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit(
        "ckpt_streamer does not support free-threaded builds of Python, of which this "
        f"is one ({sys.prefix}). Use the ordinary build of the same version."
    )

if sys.platform == "win32":
    raise SystemExit("ckpt_streamer needs a POSIX system (Linux, macOS or WSL).")


class BuildLibrary(BuildExtension):
    """Notes beside the library, and for those who link it, which torch it is for."""

    def run(self) -> None:
        library = Path(self.get_ext_fullpath(LIBRARY)).resolve()
        package = library.parent.parent
        version = self.distribution.get_version()
        write(library.with_name("compiled_for_torch.txt"), torch.__version__)
        major, minor = RELEASE.split(".")
        write(
            package / "include/ckpt_streamer/torch_version.h",
            "// The torch that the library was compiled for.\n"
            "#pragma once\n\n"
            f"#define CKPT_STREAMER_TORCH_VERSION_MAJOR {major}\n"
            f"#define CKPT_STREAMER_TORCH_VERSION_MINOR {minor}\n",
        )
        write(
            package / "share/cmake/ckpt_streamer/ckpt_streamerConfigVersion.cmake",
            f'set(PACKAGE_VERSION "{version}")\n'
            "if(PACKAGE_VERSION VERSION_GREATER_EQUAL PACKAGE_FIND_VERSION)\n"
            "  set(PACKAGE_VERSION_COMPATIBLE TRUE)\n"
            "endif()\n"
            "if(PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION)\n"
            "  set(PACKAGE_VERSION_EXACT TRUE)\n"
            "endif()\n",
        )
        self.include_dirs.append(str(package / "include"))
        super().run()

    def build_extensions(self) -> None:
        # Programs link with it: macOS takes a library for that, not a bundle.
        self.compiler.linker_so = [
            "-dynamiclib" if flag == "-bundle" else flag
            for flag in self.compiler.linker_so
        ]
        super().build_extensions()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:  # or what includes it is compiled
        path.write_text(text)


setup(
    install_requires=[TORCH, "click>=8.1", "tqdm"],
    ext_modules=[
        CppExtension(
            name=LIBRARY,
            sources=SOURCES,
            depends=[*HEADERS, EXPORTS],
            include_dirs=[str(Path("csrc").resolve()), str(PUBLIC.resolve())],
            extra_compile_args=[
                "-std=c++20",
                "-fvisibility=hidden",
                *(["-O0", "-g"] if DEBUG else ["-O2", "-DNDEBUG"]),
                "-Wall",
                "-Wextra",
            ],
            extra_link_args=[*LINK_FLAGS, *([] if DEBUG else ["-Wl,-S"])],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary.with_options(no_python_abi_suffix=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
