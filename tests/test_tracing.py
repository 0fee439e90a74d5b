"""Compilers, exporters, other threads and processes: all work, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from streaming_dataset import Names
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ckpt_streamer
from ckpt_streamer import StreamHandle
from ckpt_streamer._op_types import CheckpointWriter

MIB = 1024 * 1024
ops = torch.ops.ckpt_streamer
NOT_TRACED = (
    "ops of ckpt_streamer that read or write files, or make streams, are not traced, "
    "as the graph would hold what the file has now: call them outside of it"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(4), "b": torch.full((3,), 2.0)}, path)
    return str(path)


def sum_of(path: str, x: Tensor) -> Tensor:
    stream = ops.open(path, MIB)
    total = x * 2
    while stream.has_next():
        total = total + stream.next()[1].sum()
    return total


def load_and_double(path: str, x: Tensor) -> Tensor:
    ops.load_into({"a": x}, path, MIB)
    return x * 2


def write_and_double(path: str, x: Tensor) -> Tensor:
    writer = ops.create(path + ".safetensors", {"x": x}, MIB)
    writer.write("x", x)
    writer.finish()
    return x * 2


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("function", [sum_of, load_and_double, write_and_double])
def test_compile_breaks_the_graph(function: object, path: str) -> None:
    assert callable(function)
    compiled = torch.compile(function, backend="eager")
    for value in (1.0, 5.0):
        torch.save({"a": torch.full((4,), value), "b": torch.ones(3)}, path)
        assert torch.equal(
            compiled(path, torch.zeros(4)), function(path, torch.zeros(4))
        )
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=NOT_TRACED):
        torch.compile(function, backend="eager", fullgraph=True)(path, torch.zeros(4))


def test_compile_breaks_the_graph_at_a_handle_that_is_given(path: str) -> None:
    def function(stream: StreamHandle, writer: CheckpointWriter, x: Tensor) -> Tensor:
        result: Tensor = x * 2 + stream.next()[1].sum()
        writer.write("x", result)
        return result + 1

    target = path + ".safetensors"
    for _ in range(2):
        writer = ops.create(target, {"x": torch.ones(4)}, MIB)
        compiled = torch.compile(function, backend="eager")
        result = compiled(ops.open(path, MIB), writer, torch.ones(4))
        assert torch.equal(result, torch.full((4,), 7.0))
        writer.finish()
        written = ops.open(target, MIB).next()[1]
        assert torch.equal(written, torch.full((4,), 6.0))


@pytest.mark.parametrize("function", [sum_of, load_and_double, write_and_double])
@pytest.mark.parametrize("strict", [False, True])
def test_export_says_why_not(function: object, strict: bool, path: str) -> None:
    class Exported(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert callable(function)
            result: Tensor = function(path, x.clone())
            return result

    with pytest.raises(Exception, match=NOT_TRACED):
        torch.export.export(Exported(), (torch.zeros(4),), strict=strict)


def test_fake_tensors_are_refused(path: str) -> None:
    with torch._subclasses.FakeTensorMode():
        parameter = torch.zeros(4)
        calls: list[Callable[[], object]] = [
            lambda: ops.open(path, MIB),
            lambda: ops.open([path], MIB),
            lambda: ops.stream({"a": parameter}, MIB),
            lambda: ops.load_into({"a": parameter}, path, MIB),
            lambda: ops.load_into({"a": parameter}, [path], MIB),
            lambda: ops.create(path, {"a": parameter}, MIB),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=NOT_TRACED):
                call()


def copy_and_double(destination: Tensor, source: Tensor) -> Tensor:
    result: Tensor = ops.copy_(destination.clone(), source, MIB) * 2
    return result


def test_copy_is_traced(path: str) -> None:
    source = torch.load(path, mmap=True)["a"]
    expected = torch.full((4,), 2.0)
    compiled = torch.compile(copy_and_double, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(4), source), expected)

    class Exported(nn.Module):
        def forward(self, destination: Tensor, source: Tensor) -> Tensor:
            return copy_and_double(destination, source)

    exported = torch.export.export(Exported(), (torch.zeros(4), source))
    assert torch.equal(exported.module()(torch.zeros(4), source), expected)
    on_meta = ops.copy_(torch.zeros(4, device="meta"), source, MIB)
    assert on_meta.is_meta
    torch.library.opcheck(ops.copy_.default, (torch.zeros(4), torch.ones(4), MIB))


def test_opcheck_of_the_others(path: str) -> None:
    utilities = ("test_schema", "test_autograd_registration")
    checked = torch.library.opcheck(
        ops.load_into.default,
        ({"a": torch.zeros(4)}, path, MIB),
        test_utils="test_autograd_registration",
    )
    assert set(checked.values()) == {"SUCCESS"}
    for op, arguments in (
        (ops.open.default, (path, MIB)),
        (ops.open.paths, ([path], MIB)),
        (ops.stream.default, ({"a": torch.ones(2)}, MIB)),
    ):
        checked = torch.library.opcheck(op, arguments, test_utils=utilities)
        assert set(checked.values()) == {"SUCCESS"}


class Streaming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, path: str) -> Tensor:
        stream = torch.ops.ckpt_streamer.open(path, 1048576)
        other = torch.ops.ckpt_streamer.open(path, 1048576)
        total = self.weight + 0
        while stream.has_next():
            total = total + stream.next()[1].sum()
        result: Tensor = total + other.next()[1]
        torch.ops.ckpt_streamer.load_into({"a": result}, path, 1048576)
        return result


@pytest.mark.parametrize("passes", ["freeze", "optimize_for_inference"])
def test_optimised_scripts_keep_their_streams(passes: str, path: str) -> None:
    scripted = torch.jit.script(Streaming().eval())
    optimised = getattr(torch.jit, passes)(scripted)
    for value in (1.0, 5.0):
        torch.save({"a": torch.full((4,), value), "b": torch.ones(3)}, path)
        for _ in range(3):
            assert torch.equal(optimised(path), torch.full((4,), value))


def test_interpreters_in_many_threads(path: str) -> None:
    scripted = torch.jit.script(Streaming().eval())
    shared = ops.open([path] * 100, MIB)

    def take_all(_: int) -> int:
        count = 0
        while True:
            try:
                shared.next()
            except IndexError:
                return count
            count += 1

    with ThreadPoolExecutor(8) as pool:
        for total in pool.map(lambda _: scripted(path), range(100)):
            assert torch.equal(total, torch.ones(4))
        assert sum(pool.map(take_all, range(8))) == len(shared) == 200


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start: str, path: str) -> None:
    if start == "fork":  # a handle of the parent's as well
        ops.open(path, MIB).next()
    loader = DataLoader(
        Names(path), num_workers=2, batch_size=None, multiprocessing_context=start
    )
    assert sorted(loader) == ["0 a 4", "0 b 6", "1 a 4", "1 b 6"]


def test_inference_mode(path: str) -> None:
    with torch.inference_mode():
        _, tensor = ops.open(path, MIB).next()
        assert torch.equal(tensor * 2, torch.full((4,), 2.0))
        scripted = torch.jit.script(Streaming().eval())
        assert torch.equal(scripted(path), torch.ones(4))
    assert ckpt_streamer.ops.stream({"a": tensor}, MIB).next()[1] is not None
