"""C++ programs and extensions, built from the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import torch.utils.cpp_extension
from cpp_programs import (
    ROOT,
    bare_environment,
    build_program,
    configure,
    exported_functions,
    libraries_of,
    run,
    tool,
)
from mapped_checkpoints import MIB

import ckpt_streamer

EXAMPLES = ROOT / "examples"
EXPECTED = float(256 * 1024 * sum(range(64)))


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp_consumer")
    return build_program(ROOT / "tests/cpp_consumer", folder)


def figures_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_all_is_in_the_package() -> None:
    folder = Path(ckpt_streamer.__file__).parent
    assert folder != ROOT / "ckpt_streamer"
    [headers] = ckpt_streamer.include_paths()
    assert folder in Path(headers).parents
    names = ("stream", "load", "jit", "write", "export", "torch_version")
    for header in (f"{name}.h" for name in names):
        assert (Path(headers) / "ckpt_streamer" / header).exists()
    [libraries] = ckpt_streamer.library_paths()
    assert Path(ckpt_streamer.library_path()).parent == Path(libraries)


def test_streaming(consumer: Path, large_checkpoint: Path) -> None:
    figures = figures_of(run(consumer, "stream", large_checkpoint, 8 * MIB))
    assert float(figures["sum"]) == EXPECTED
    assert figures["count"] == "64"
    assert figures["left_at"] == "w0"
    assert float(figures["rest"]) == EXPECTED
    assert figures["rest_count"] == "63"
    assert float(figures["looked_up"]) == 3 * 256 * 1024
    assert float(figures["slice"]) == 3 * 2 * 1024
    assert figures["size"] == figures["tensors"] == figures["tensors_yielded"] == "64"
    assert int(figures["limit"]) == 8 * MIB
    assert int(figures["bytes_streamed"]) == 64 * MIB
    assert figures["bytes_resident"] == "0"
    assert 0 < int(figures["peak"]) <= 8 * MIB
    assert figures["not_held"] == ""
    assert figures["yielded_by_both"] == "2"
    assert float(figures["copied"]) == 5 * 256 * 1024


def test_loading_into_a_module(
    consumer: Path, large_checkpoint: Path, tmp_path: Path
) -> None:
    class Holding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w3 = torch.nn.Parameter(torch.zeros(256, 1024, dtype=torch.double))
            self.register_buffer("w4", torch.zeros(256, 1024))
            self.register_buffer("x", torch.zeros(1))

        def forward(self) -> torch.Tensor:
            return self.w3

    torch.jit.script(Holding()).save(tmp_path / "module.pt")
    arguments = ("load", large_checkpoint, 8 * MIB, tmp_path / "module.pt")
    done = run(consumer, *arguments)
    figures = figures_of(done)
    assert float(figures["w3"]) == 3 * 256 * 1024
    assert float(figures["w4"]) == 4 * 256 * 1024
    assert figures["missing"] == "x"
    assert done.stdout.count("unexpected=w") == 62
    strict = run(consumer, *arguments, "strict")
    assert strict.returncode == 1
    assert f"{large_checkpoint}: missing 'x', unexpected 'w0', 'w1'" in strict.stderr


def test_writing(consumer: Path, large_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.safetensors"
    figures = figures_of(run(consumer, "write", large_checkpoint, 8 * MIB, target))
    written = safetensors.torch.load_file(target)
    expected = torch.load(large_checkpoint)
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[name].to(torch.float16)), name
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"made by": "C++"}
    assert figures["files"] == str(target)
    assert int(figures["size_bytes"]) == target.stat().st_size
    assert int(figures["bytes_written"]) == 32 * MIB
    assert 0 < int(figures["peak"]) <= 8 * MIB

    # Left without finish(): nothing of it is there.
    assert figures["before"] == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "half.safetensors",
        *("tied-00001-of-00002.pt", "tied-00002-of-00002.pt", "tied.pt.index.json"),
    ]
    tied = torch.load(tmp_path / "tied-00001-of-00002.pt")
    assert tied["a"].data_ptr() == tied["b"].data_ptr()
    assert figures["tied_files"] == str(tmp_path / "tied.pt.index.json")


def test_errors_of_writing_are_those_of_python(consumer: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "new.safetensors")
    nowhere = str(tmp_path / "none/new.safetensors")
    texts = figures_of(run(consumer, "write_errors", target, nowhere))
    ops, ones = torch.ops.ckpt_streamer, torch.ones(2)
    writer = ops.create(target, {"a": ones}, MIB)
    for name, call in {
        "no_limit": lambda: ops.create(target, {"a": ones}, 0),
        "no_format": lambda: ops.create(target, {"a": ones}, MIB, format="x"),
        "no_tied": lambda: ops.create(target, {"a": ones}, MIB, tied="x"),
        "tied": lambda: ops.create(target, {"a": ones, "b": ones}, MIB),
        "sparse": lambda: ops.create(target, {"a": ones.to_sparse()}, MIB),
        "nowhere": lambda: ops.create(nowhere, {"a": ones}, MIB),
        "undeclared": lambda: writer.write("x", ones),
        "shape": lambda: writer.write("a", torch.ones(3)),
        "unfinished": writer.finish,
    }.items():
        with pytest.raises(Exception, match=r".") as raised:
            call()
        assert str(raised.value).split("\nException raised")[0] == texts[name], name
    writer.close()
    with pytest.raises(ValueError, match="the writer is closed") as raised:
        writer.size_bytes()
    assert str(raised.value) == texts["closed"]
    assert texts["no_writer"].startswith(
        "expected a torch.classes.ckpt_streamer.CheckpointWriter, found "
        "__torch__.torch.classes.ckpt_streamer.StreamHandle"
    )
    assert not list(tmp_path.iterdir())


def test_no_python_in_the_process(consumer: Path) -> None:
    names = libraries_of(consumer)
    assert "libckpt_streamer.so" in names
    assert not [name for name in names if "python" in name]


def test_the_ops_are_there_for_a_program_that_only_names_them(consumer: Path) -> None:
    done = run(consumer.with_name("ops_only"))
    assert done.stdout.startswith("ckpt_streamer::load_into(Dict(str, Tensor)")


def test_errors_are_those_of_python(
    consumer: Path, large_checkpoint: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.pt"
    texts = figures_of(run(consumer, "errors", large_checkpoint, missing))
    path, ops = str(large_checkpoint), torch.ops.ckpt_streamer
    stream = ops.open(path, MIB)
    while stream.has_next():
        stream.next()
    for name, call in {
        "missing_file": lambda: ops.open(str(missing), MIB),
        "no_limit": lambda: ops.open(path, 0),
        "no_match": lambda: ops.open(path, MIB, select=["x"]),
        "integer_dtype": lambda: ops.open(path, MIB, dtype=torch.int32),
        "no_tensor": lambda: stream.tensor("x"),
        "slice": lambda: stream.slice("w0", 1, 999),
        "past_the_end": stream.next,
    }.items():
        with pytest.raises(Exception, match=r".") as raised:
            call()
        assert str(raised.value) == texts[name], name
    assert texts["no_stream"] == (
        "expected a torch.classes.ckpt_streamer.StreamHandle, found int"
    )


def test_only_the_interface_is_exported() -> None:
    assert exported_functions() == {
        *(
            f"ckpt_streamer::v1::{name}"
            for name in (
                "copy_",
                "create",
                "jit_load",
                "load_into",
                "open",
                "state_of",
                "stream",
                "default_memory_limit_bytes",
            )
        ),
        *(
            f"ckpt_streamer::v1::Stream::{name}"
            for name in (
                *("Stream", "~Stream", "operator=", "has_next", "next", "tensor"),
                *("slice", "release", "reset", "size", "stats"),
                *("to_ivalue", "from_ivalue"),
            )
        ),
        *(
            f"ckpt_streamer::v1::MemoryBudget::{name}"
            for name in (
                *("MemoryBudget", "~MemoryBudget", "operator="),
                *("limit_bytes", "bytes_held", "to_ivalue", "from_ivalue"),
            )
        ),
        *(
            f"ckpt_streamer::v1::CheckpointWriter::{name}"
            for name in (
                *("CheckpointWriter", "~CheckpointWriter", "operator=", "write"),
                *("size_bytes", "bytes_written", "finish", "close"),
                *("to_ivalue", "from_ivalue"),
            )
        ),
    }


def test_each_header_compiles_by_itself(tmp_path: Path) -> None:
    [folder] = ckpt_streamer.include_paths()
    for header in sorted(Path(folder).glob("ckpt_streamer/*.h")):
        source = tmp_path / f"{header.stem}.cpp"
        source.write_text(f"#include <ckpt_streamer/{header.name}>\n")
        compiled = compile_only(source)
        assert compiled.returncode == 0, compiled.stderr


def compile_only(source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    torch_folders = torch.utils.cpp_extension.include_paths()
    return subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only"),
            *("-Wall", "-Wextra", "-Werror"),
            *flags,
            *(f"-I{path}" for path in ckpt_streamer.include_paths()),
            *(flag for path in torch_folders for flag in ("-isystem", path)),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_headers_of_another_torch_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "user.cpp"
    source.write_text("#include <ckpt_streamer/stream.h>\n")
    other = tmp_path / "ckpt_streamer/torch_version.h"
    other.parent.mkdir()
    other.write_text(
        "#define CKPT_STREAMER_TORCH_VERSION_MAJOR 2\n"
        "#define CKPT_STREAMER_TORCH_VERSION_MINOR 7\n"
    )
    compiled = compile_only(source, f"-I{tmp_path}")
    assert compiled.returncode != 0
    assert "ckpt_streamer was compiled for another torch" in compiled.stderr


def test_cmake_tells_another_torch(tmp_path: Path) -> None:
    package = tmp_path / "ckpt_streamer"
    shutil.copytree(Path(ckpt_streamer.__file__).parent, package)
    (package / "lib/compiled_for_torch.txt").write_text("2.7.1+cpu")
    cmake = Path(ckpt_streamer.cmake_prefix_path()).relative_to(
        Path(ckpt_streamer.__file__).parent
    )
    torch_cmake = torch.utils.cmake_prefix_path
    done = configure(
        EXAMPLES / "read_checkpoint",
        tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={package / cmake};{torch_cmake}",
    )
    assert done.returncode != 0
    text = " ".join(done.stderr.split())
    assert "ckpt_streamer was compiled for torch 2.7.1+cpu, and this is torch" in text
    assert torch.__version__.split("+")[0] in text


# The examples


def test_example_read_checkpoint(tmp_path: Path) -> None:
    program = build_program(EXAMPLES / "read_checkpoint", tmp_path / "build")
    assert not [name for name in libraries_of(program) if "python" in name]
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "n": torch.tensor(7)},
        path,
    )
    done = run(program, path, 1)
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    table = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert table[:3] == [
        ["name", "dtype", "shape", "mean"],
        ["state_dict.w", "Float", "[2, 3]", "2.500000"],
        ["n", "Long", "[]", "7.000000"],
    ]
    assert table[3][0].startswith("2 tensors, 32 bytes, at most ")
    missing = run(program, tmp_path / "none.ckpt")
    assert missing.returncode == 1
    assert missing.stderr == (
        f"{tmp_path}/none.ckpt: cannot open: No such file or directory\n"
    )


def test_example_extension_compiled_when_needed(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, -4.5]), "n": torch.tensor([3])}, tmp_path / "m")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "extension/compile_and_run.py", tmp_path / "m"],
        env={
            **bare_environment(),
            "PATH": f"{Path(tool('ninja')).parent}:{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a: 4.5\n"


def test_example_extension_as_a_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES / "extension", source)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [library] = (tmp_path / "lib").glob("checkpoint_statistics*.so")
    corrupt = tmp_path / "empty.pt"
    corrupt.touch()
    code = f"""
import torch
import ckpt_streamer

torch.ops.load_library({str(library)!r})
try:
    torch.ops.checkpoint_statistics.largest({str(corrupt)!r}, 1 << 20)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (
        f"{corrupt}: is empty, expected a torch.save, TorchScript or safetensors file\n"
    ), done.stderr


def test_example_scripted_server(tmp_path: Path) -> None:
    program = build_program(EXAMPLES / "scripted_server", tmp_path / "build")
    assert not [name for name in libraries_of(program) if "python" in name]
    archive, checkpoint = tmp_path / "model.pt", tmp_path / "weights.ckpt"
    export = EXAMPLES / "scripted_server/export_model.py"
    subprocess.run([sys.executable, export, archive, checkpoint], check=True)
    missing = tmp_path / "none.ckpt"
    done = run(
        program,
        archive,
        64,
        stdin=f"1 2 3 4\nload {missing}\nload {checkpoint}\n1 2 3 4\n",
    )
    before, error, *rest = done.stdout.splitlines()
    while rest[0] != "loaded":  # the rest of TorchScript's trace
        error += "\n" + rest.pop(0)
    assert f"{missing}: cannot open: No such file or directory" in error
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
    )
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    output = model(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    assert [float(word) for word in rest[1].split()] == pytest.approx(output, rel=1e-4)
    assert before != rest[1]
