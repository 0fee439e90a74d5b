"""MemoryBudget: what several streams hold resident together stays within one limit."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import MemoryBudget, apply_state_dict, stream

COUNT = 96
LIMIT_MB = 24


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of 96 tensors of 1 MiB."""
    folder = tmp_path_factory.mktemp("budget")
    paths = folder / "a.ckpt", folder / "b.ckpt"
    for number, path in enumerate(paths):
        tensors = {
            f"w{i}": torch.full((MIB // 4,), float(2 * i + number))
            for i in range(COUNT)
        }
        torch.save(tensors, path)
    return paths


def zeros() -> torch.nn.Module:
    """A model that either is loaded into."""
    model = torch.nn.Module()
    for i in range(COUNT):
        model.register_buffer(f"w{i}", torch.zeros(MIB // 4))
    return model


def resident(*paths: Path) -> int:
    return sum(resident_of(path).clean_bytes for path in paths)


class Sides(torch.nn.Module):
    """Merges two checkpoints, as scripted code does."""

    def __init__(self, budget: Any) -> None:
        super().__init__()
        self.budget = budget

    def forward(self, a: str, b: str) -> float:
        limit_bytes = 1 << 40
        first = torch.ops.ckpt_streamer.open(a, limit_bytes, budget=self.budget)
        second = torch.ops.ckpt_streamer.open(b, limit_bytes, budget=self.budget)
        total = 0.0
        while first.has_next():
            total += float((first.next()[1] - second.next()[1]).sum().item())
        return total

    @torch.jit.export
    def held(self) -> int:
        return int(self.budget.bytes_held())


def pairs_of_open(paths: tuple[Path, Path], budget: MemoryBudget) -> Iterator[Any]:
    with (
        ckpt_streamer.open(paths[0], None, budget=budget) as first,
        ckpt_streamer.open(paths[1], None, budget=budget) as second,
    ):
        for (name, one), (other_name, other) in zip(first, second, strict=True):
            assert name == other_name
            yield one, other


def pairs_of_stream(paths: tuple[Path, Path], budget: MemoryBudget) -> Iterator[Any]:
    streams = [stream(load_mapped(path), budget=budget) for path in paths]
    for (_, _, one), (_, _, other) in zip(*streams, strict=True):
        yield one, other


def pairs_of_look_ups(paths: tuple[Path, Path], budget: MemoryBudget) -> Iterator[Any]:
    with (
        ckpt_streamer.open(paths[0], budget=budget) as first,
        ckpt_streamer.open(paths[1], budget=budget) as second,
    ):
        for name, one in first:
            yield one, second.tensor(name)


def pairs_of_ops(paths: tuple[Path, Path], budget: MemoryBudget) -> Iterator[Any]:
    first, second = (
        ckpt_streamer.ops.open(str(path), 1 << 40, budget=budget) for path in paths
    )
    while first.has_next():
        yield first.next()[1], second.next()[1]
    assert not second.has_next()


@pytest.mark.parametrize(
    "pairs", [pairs_of_open, pairs_of_stream, pairs_of_look_ups, pairs_of_ops]
)
@pytest.mark.parametrize("limit_mb", [12, LIMIT_MB, 160])
def test_two_checkpoints_side_by_side(
    paths: tuple[Path, Path],
    limit_mb: int,
    pairs: Callable[[tuple[Path, Path], MemoryBudget], Iterator[Any]],
) -> None:
    budget = MemoryBudget(limit_mb)
    peak = held = count = 0
    for one, other in pairs(paths, budget):
        assert torch.equal(other - one, torch.ones_like(one))
        assert float(one[0]) == 2 * count
        count += 1
        held = max(held, budget.bytes_held())
        now = resident(*paths)
        assert now <= budget.bytes_held()
        peak = max(peak, now)
    assert count == COUNT
    assert 0 < peak <= held <= limit_mb * MIB
    del one, other
    assert budget.bytes_held() == 0
    assert resident(*paths) == 0


def test_stats_of_a_share(paths: tuple[Path, Path]) -> None:
    budget = MemoryBudget(LIMIT_MB)
    with ckpt_streamer.open(paths[0], 1024, budget=budget) as checkpoint:
        for _, tensor in checkpoint:
            tensor.sum()
        stats = checkpoint.stats()
    assert stats.memory_limit_bytes == LIMIT_MB * MIB
    assert 0 < stats.peak_bytes_resident <= LIMIT_MB // 2 * MIB
    assert (stats.bytes_over_limit, stats.not_held) == (0, None)
    # The smaller of both limits holds.
    with ckpt_streamer.open(paths[0], 6, budget=budget) as checkpoint:
        for _, tensor in checkpoint:
            tensor.sum()
            assert budget.bytes_held() <= 6 * MIB
        assert checkpoint.stats().memory_limit_bytes == 6 * MIB
        assert checkpoint.stats().not_held is None


def test_a_tensor_above_its_share_is_told(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    torch.save({"w": torch.ones(40 * MIB // 4), "v": torch.ones(MIB)}, path)
    budget = MemoryBudget(16)
    with stream(path, budget=budget) as tensors:
        for _, _, tensor in tensors:
            tensor.clone()
            assert budget.bytes_held() <= 16 * MIB
        stats = tensors.stats()
    assert (stats.bytes_over_limit == 0) == (stats.not_held is None)
    # Converted, it is read in pieces: nothing is above the share.
    with stream(path, budget=budget, dtype=torch.bfloat16) as tensors:
        for _, _, tensor in tensors:
            assert tensor.dtype == torch.bfloat16
            assert resident(path) <= budget.bytes_held() <= 16 * MIB
        assert tensors.stats().not_held is None


@pytest.mark.parametrize("budget_mib", [5, 12])
def test_streams_that_convert_need_little_more(
    paths: tuple[Path, Path], budget_mib: int
) -> None:
    budget = MemoryBudget(budget_mib)
    sides = [
        stream(path, budget=budget, dtype=torch.bfloat16)
        for path in paths[: budget_mib // 5]
    ]
    for i, items in enumerate(zip(*sides, strict=True)):
        for number, (_, _, val) in enumerate(items):
            assert (val == torch.tensor(2.0 * i + number).bfloat16()).all()
    assert i == COUNT - 1


def test_streams_of_one_file_share_its_pages(paths: tuple[Path, Path]) -> None:
    state_dict = load_mapped(paths[0])
    budget = MemoryBudget(LIMIT_MB)
    streams = [stream(state_dict, budget=budget) for _ in range(2)]
    for (_, key, one), (_, other_key, other) in zip(*streams, strict=True):
        assert key == other_key
        assert one is other
        one.sum()
        assert resident(paths[0]) <= budget.bytes_held() <= LIMIT_MB * MIB
    for each in streams:
        assert each.stats().not_held is None
    assert resident(paths[0]) == 0


def test_what_another_stream_reads_is_not_evicted(paths: tuple[Path, Path]) -> None:
    state_dict = load_mapped(paths[0])
    slow = iter(stream(state_dict, LIMIT_MB))
    held = [next(slow)[2] for _ in range(8)]
    for tensor in held:
        tensor.sum()
    with stream(state_dict, LIMIT_MB) as fast:
        for _, _, tensor in fast:
            tensor.sum()
            now = resident(paths[0])
            assert 8 * MIB <= now <= 2 * LIMIT_MB * MIB
        stats = fast.stats()
    assert stats.peak_bytes_resident <= LIMIT_MB * MIB
    assert stats.not_held is None
    assert 8 * MIB <= resident(paths[0]) <= LIMIT_MB * MIB
    del slow, held, tensor
    assert resident(paths[0]) == 0


def test_threads(paths: tuple[Path, Path]) -> None:
    budget = MemoryBudget(64)
    errors: list[BaseException] = []
    peaks: list[int] = []

    def read(path: Path) -> None:
        try:
            for _ in range(3):
                with ckpt_streamer.open(path, budget=budget) as checkpoint:
                    for _, tensor in checkpoint:
                        tensor.sum()
                        peaks.append(budget.bytes_held())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(path,)) for path in paths * 2]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peaks.append(resident(*paths))
    for thread in threads:
        thread.join()
    assert not errors
    assert max(peaks) <= 64 * MIB
    assert budget.bytes_held() == 0


def test_a_scripted_module_is_saved_with_its_budget(paths: tuple[Path, Path]) -> None:
    budget = MemoryBudget(LIMIT_MB)
    module = torch.jit.script(Sides(budget))
    assert module(*map(str, paths)) == -COUNT * MIB // 4
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert loaded(*map(str, paths)) == -COUNT * MIB // 4
    assert loaded.budget.limit_bytes() == LIMIT_MB * MIB
    assert loaded.held() == module.held() == 0
    assert resident(*paths) == 0


@pytest.mark.parametrize(
    "copied",
    [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy],
)
def test_a_deep_copy_is_a_budget_of_the_same_limit(
    paths: tuple[Path, Path], copied: Callable[[Any], Any]
) -> None:
    budget = MemoryBudget(LIMIT_MB)
    with stream(paths[0], budget=budget) as tensors:
        next(tensors)
        assert budget.bytes_held() > 0
        other = copied(budget)
        assert isinstance(other, MemoryBudget)
        assert other.limit_bytes() == LIMIT_MB * MIB
        assert other.bytes_held() == 0


def test_a_budget_without_room_says_so(paths: tuple[Path, Path]) -> None:
    budget = MemoryBudget(8)
    with (
        stream(paths[0], budget=budget) as first,
        stream(paths[0], budget=budget) as second,
    ):
        next(first), next(second)
        late = stream(paths[1], budget=budget)
        with pytest.raises(
            ValueError,
            match=r"^the memory budget of 8388608 bytes has 0 left, expected 4194304 "
            "for a further stream: the others hold the rest until they go on to their "
            r"next tensors, end, or are released$",
        ):
            next(late)
        op = ckpt_streamer.ops.open(str(paths[1]), 1 << 30, budget=budget)
        with pytest.raises(ValueError, match="has 0 left"):
            op.next()
        with pytest.raises(ValueError, match="has 0 left"):
            apply_state_dict(torch.nn.Module(), paths[1], budget=budget, strict=False)
        first.release()
        assert op.next()[0] == "w0"  # goes on where it was
        with pytest.raises(ValueError, match="has 0 left"):
            list(first)


def test_apply_within_a_budget(paths: tuple[Path, Path]) -> None:
    model = zeros()
    budget = MemoryBudget(LIMIT_MB)
    seen: list[int] = []

    def note(*_: object) -> None:
        seen.append(budget.bytes_held())
        assert resident(paths[1]) <= budget.bytes_held()

    with stream(paths[0], budget=budget) as other:
        next(other)[2].sum()
        apply_state_dict(model, paths[1], budget=budget, progress=note)
        others = budget.bytes_held()
        parameters = dict(model.named_buffers())
        ckpt_streamer.ops.load_into(parameters, str(paths[1]), 1 << 40, budget=budget)
    assert float(model.get_buffer("w3")[0]) == 7
    assert others < max(seen) <= LIMIT_MB * MIB
    assert budget.bytes_held() == 0


@pytest.mark.parametrize("is_part", [False, True])
def test_apply_within_a_checkpoints_own_limit_and_budget(
    paths: tuple[Path, Path], is_part: bool
) -> None:
    model = zeros()
    budget = MemoryBudget(LIMIT_MB)
    seen: list[tuple[int, int]] = []

    def note(*_: object) -> None:
        seen.append((resident(paths[1]), budget.bytes_held()))

    with ckpt_streamer.open(paths[1], 8, budget=budget) as checkpoint:
        source = checkpoint.root if is_part else checkpoint
        apply_state_dict(model, source, progress=note)
        assert budget.bytes_held() == 0
    with ckpt_streamer.open(paths[1], 8) as checkpoint:  # of no budget
        source = checkpoint.root if is_part else checkpoint
        apply_state_dict(model, source, progress=note, budget=budget)
    assert float(model.get_buffer("w3")[0]) == 7
    assert len(seen) == 2 * COUNT
    assert all(0 < now <= held <= 8 * MIB for now, held in seen)
    assert budget.bytes_held() == 0
    assert resident(paths[1]) == 0


def test_arguments(paths: tuple[Path, Path]) -> None:
    budget, other = MemoryBudget(64), MemoryBudget(64)
    with pytest.raises(ValueError, match="limit_mb is 3, expected an int >= 4"):
        MemoryBudget(3)
    with pytest.raises(TypeError, match=r"limit_mb is 4\.5 \(float\), expected an int"):
        MemoryBudget(4.5)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="limit_bytes is 1, expected a budget of at least 4194304"
    ):
        torch.classes.ckpt_streamer.MemoryBudget(1)
    with pytest.raises(TypeError, match=r"budget is 64 \(int\), expected None or a "):
        ckpt_streamer.open(paths[0], budget=64)  # type: ignore[arg-type]
    text = "budget is another one than the checkpoint's own, expected the same or None"
    with ckpt_streamer.open(paths[0], budget=budget) as checkpoint:
        with pytest.raises(ValueError, match=f"^{text}$"):
            stream(checkpoint, budget=other)
        for source in (checkpoint, checkpoint.root):
            with pytest.raises(ValueError, match=f"^{text}$"):
                apply_state_dict(zeros(), source, budget=other)
    assert not isinstance(7, MemoryBudget)


def test_tensors_on_the_heap_take_nothing() -> None:
    budget = MemoryBudget(4)
    tensors: dict[str, Tensor] = {"a": torch.ones(4 * MIB), "b": torch.ones(4 * MIB)}
    for _, _, tensor in stream(tensors, budget=budget):
        assert budget.bytes_held() == 0
        tensor.sum()
