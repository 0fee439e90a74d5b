"""The same loop in TorchScript and in a saved module."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor

from ckpt_streamer import library_path


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
