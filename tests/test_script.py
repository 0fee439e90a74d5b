"""The same loop in TorchScript, in a saved module, and in C++ without Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from ckpt_streamer import library_path

ROOT = Path(__file__).parent.parent


@torch.jit.script
def sum_file(path: str, memory_limit_bytes: int) -> tuple[list[str], Tensor, int]:
    handle = torch.ops.ckpt_streamer.open(path, memory_limit_bytes)
    names: list[str] = []
    total = torch.zeros(1, dtype=torch.float64)
    while handle.has_next():
        name, tensor = handle.next()
        names.append(name)
        total += tensor.to(torch.float64).sum()
    handle.release()
    return names, total, handle.peak_bytes_resident()


@torch.jit.script
def sum_tensors(tensors: dict[str, Tensor], memory_limit_bytes: int) -> Tensor:
    handle = torch.ops.ckpt_streamer.stream(tensors, memory_limit_bytes)
    assert len(handle) == len(tensors)
    total = torch.zeros(1, dtype=torch.float64)
    for _ in range(2):
        handle.reset()
        while handle.has_next():
            total += handle.next()[1].to(torch.float64).sum()
    return total / 2


@torch.jit.script
def convert_file(path: str, memory_limit_bytes: int) -> dict[str, Tensor]:
    handle = torch.ops.ckpt_streamer.open(
        path, memory_limit_bytes, dtype=torch.bfloat16
    )
    converted: dict[str, Tensor] = {}
    while handle.has_next():
        name, tensor = handle.next()
        converted[name] = tensor
    return converted


@torch.jit.script
def look_up(path: str, names: list[str], limit: int) -> tuple[list[str], list[Tensor]]:
    handle = torch.ops.ckpt_streamer.open(
        path, limit, dtype=torch.bfloat16, select=["w1*", "w2"]
    )
    streamed: list[str] = []
    found: list[Tensor] = []
    while handle.has_next():
        streamed.append(handle.next()[0])
        for name in names:
            found.append(handle.tensor(name)[0, :1])
            found.append(handle.slice(name, 3, 5)[:, 0])
    return streamed, found


class Summing(torch.nn.Module):
    """Makes its handle inside a method: a handle itself cannot be saved."""

    def forward(self, path: str, memory_limit_bytes: int) -> Tensor:
        handle = torch.ops.ckpt_streamer.open(path, memory_limit_bytes)
        total = torch.zeros(1, dtype=torch.float64)
        while handle.has_next():
            total += handle.next()[1].to(torch.float64).sum()
        return total


class SummingConverted(torch.nn.Module):
    def forward(self, path: str, memory_limit_bytes: int) -> Tensor:
        handle = torch.ops.ckpt_streamer.open(
            path, memory_limit_bytes, dtype=torch.bfloat16
        )
        total = torch.zeros(1, dtype=torch.float64)
        while handle.has_next():
            tensor = handle.next()[1]
            assert tensor.dtype == torch.bfloat16
            total += tensor.to(torch.float64).sum()
        return total


class Holding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.handle = torch.ops.ckpt_streamer.stream({"a": torch.ones(1)}, MIB)

    def forward(self) -> bool:
        return bool(self.handle.has_next())


EXPECTED = float(256 * 1024 * sum(range(64)))


def test_scripted_open(large_checkpoint: Path) -> None:
    names, total, peak = sum_file(str(large_checkpoint), 8 * MIB)
    assert names == [f"w{i}" for i in range(64)]
    assert float(total) == EXPECTED
    assert 0 < peak <= 8 * MIB
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_scripted_stream(large_checkpoint: Path) -> None:
    assert float(sum_tensors(load_mapped(large_checkpoint), 8 * MIB)) == EXPECTED
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_scripted_conversion(large_checkpoint: Path) -> None:
    converted = convert_file(str(large_checkpoint), 8 * MIB)
    assert resident_of(large_checkpoint).clean_bytes == 0
    for name, tensor in load_mapped(large_checkpoint).items():
        assert torch.equal(converted[name], tensor.to(torch.bfloat16))
    assert len(converted) == 64


def test_scripted_look_ups(large_checkpoint: Path) -> None:
    streamed, found = look_up(str(large_checkpoint), ["w17", "w2"], 8 * MIB)
    assert streamed == ["w1", "w2", *(f"w1{i}" for i in range(10))]
    assert len(found) == 4 * len(streamed)
    for i, tensor in enumerate(found):
        assert tensor.dtype == torch.bfloat16
        assert tensor.tolist() == [17.0 if i % 4 < 2 else 2.0] * (1 + i % 2)
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_scripted_errors_have_the_same_text(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.write_bytes(b"")
    text = f"{path}: is empty, expected a torch.save, TorchScript or safetensors file"
    with pytest.raises(Exception, match="is empty") as eager:
        torch.ops.ckpt_streamer.open(str(path), MIB)
    with pytest.raises(Exception, match="is empty") as scripted:
        sum_file(str(path), MIB)
    assert text in str(eager.value)
    assert text in str(scripted.value)


def test_a_scripted_module_saved_and_loaded(
    large_checkpoint: Path, tmp_path: Path
) -> None:
    torch.jit.script(Summing()).save(tmp_path / "module.pt")
    module = torch.jit.load(tmp_path / "module.pt")
    assert float(module(str(large_checkpoint), 8 * MIB)) == EXPECTED
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_a_module_that_holds_a_handle_cannot_be_saved(tmp_path: Path) -> None:
    module = torch.jit.script(Holding())
    assert module()
    with pytest.raises(Exception, match="a stream cannot be pickled, copied or saved"):
        module.save(tmp_path / "holding.pt")


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C++ program that links libtorch and knows nothing of this library."""
    program = tmp_path_factory.mktemp("consumer") / "read_checkpoint"
    abi = int(torch.compiled_with_cxx11_abi())
    subprocess.run(
        [
            os.environ.get("CXX", "c++"),
            "-std=c++20",
            "-O1",
            f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
            *(flag for path in include_paths() for flag in ("-isystem", path)),
            str(ROOT / "tests/cpp_consumer/read_checkpoint.cpp"),
            *(f"-L{path}" for path in library_paths()),
            *(f"-Wl,-rpath,{path}" for path in library_paths()),
            "-Wl,--no-as-needed",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            "-ldl",
            "-o",
            str(program),
        ],
        check=True,
    )
    return program


def test_a_cpp_program_without_python(
    consumer: Path, large_checkpoint: Path, tmp_path: Path
) -> None:
    torch.jit.script(SummingConverted()).save(tmp_path / "module.pt")
    done = subprocess.run(
        [
            consumer,
            library_path(),
            large_checkpoint,
            str(8 * MIB),
            tmp_path / "module.pt",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = dict(line.split("=") for line in done.stdout.splitlines())
    assert figures["first"] == "w0"
    assert figures["count"] == "64"
    assert float(figures["sum"]) == float(figures["module_sum"]) == EXPECTED
    assert float(figures["converted_sum"]) == EXPECTED
    assert float(figures["copied_sum"]) == EXPECTED
    assert 0 < int(figures["peak_bytes_resident"]) <= 8 * MIB
    assert int(figures["bytes_resident"]) == 0
    assert figures["has_python"] == "0"


def test_a_cpp_program_sees_the_errors(consumer: Path, tmp_path: Path) -> None:
    path = tmp_path / "missing.pt"
    done = subprocess.run(
        [consumer, library_path(), path, "1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{path}: cannot open: No such file or directory" in done.stderr


def test_the_library_needs_no_python() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library_path()],
        capture_output=True,
        text=True,
        check=False,
    )
    if symbols.returncode != 0:
        pytest.skip("needs nm, from binutils")
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    assert not [name for name in names if name.startswith(("Py", "_Py"))]
