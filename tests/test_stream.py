"""stream(): what is yielded, in which order, and how it ends."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from torch import Tensor

from ckpt_streamer import Stream, stream

Point = namedtuple("Point", ["x", "y"])


def keys_of(items: Stream) -> list[Any]:
    return [key for _, key, _ in items]


def one_storage(*sizes: int) -> list[Tensor]:
    """Tensors side by side in one storage: their order is their offset's."""
    return list(torch.arange(float(sum(sizes))).split(list(sizes)))


# What is yielded


def test_items_are_the_callers_own_objects() -> None:
    weights = {"a": torch.ones(3), "b": torch.zeros(2)}
    for obj, key, val in stream(weights):
        assert obj is weights
        assert obj[key] is val


def test_nested_containers_and_other_leaves() -> None:
    a, b, c, d, e = one_storage(1, 2, 3, 4, 5)
    tree: dict[Any, Any] = {
        "list": [a, "text", {"deep": b}],
        7: (c, None, {1, 2}, torch.nn.Linear(1, 1)),
        "point": Point(d, 1.5),
        "other": UserDict({"e": e}),
        "empty": {},
        "size": torch.Size([1, 2]),
    }
    items = list(stream(tree))
    assert [(key, val.numel()) for _, key, val in items] == [
        (0, 1),
        ("deep", 2),
        (0, 3),
        (0, 4),
        ("e", 5),
    ]
    assert all(obj[key] is val for obj, key, val in items)
    assert items[3][0] is tree["point"]


def test_every_slot_is_yielded_once() -> None:
    tied = torch.ones(4)
    inner = {"weight": tied}
    tree = {"a": tied, "b": tied, "inner": inner, "again": inner, "list": [tied]}
    slots = [(id(obj), key) for obj, key, _ in stream(tree)]
    assert slots == [
        (id(tree), "a"),
        (id(tree), "b"),
        (id(inner), "weight"),
        (id(tree["list"]), 0),
    ]


def test_cycles_end() -> None:
    tree: dict[str, Any] = {"t": torch.ones(1)}
    tree["self"] = tree
    tree["list"] = [tree, torch.ones(2)]
    tree["list"].append(tree["list"])
    assert len(list(stream(tree))) == 2


def test_a_deep_tree_needs_no_recursion() -> None:
    tree: dict[str, Any] = {"t": torch.ones(1)}
    for _ in range(20_000):
        tree = {"inner": tree}
    assert keys_of(stream(tree)) == ["t"]
    while "inner" in tree:  # freeing it recursively would overflow the stack
        tree = tree["inner"]


def test_mappings_are_walked_by_their_own_keys() -> None:
    class Lazy(Mapping[str, Tensor]):
        def __init__(self) -> None:
            self.made = {"x": torch.ones(1), "y": torch.ones(2)}

        def __getitem__(self, key: str) -> Tensor:
            return self.made[key]

        def __iter__(self) -> Iterator[str]:
            return iter(self.made)

        def __len__(self) -> int:
            return len(self.made)

    lazy = Lazy()
    assert {key for obj, key, val in stream(lazy) if obj[key] is val} == {"x", "y"}


@pytest.mark.parametrize(
    "empty", [{}, [], (), OrderedDict(), {"n": 1}, {"a": {"b": []}}]
)
def test_trees_without_tensors(empty: Any) -> None:
    items = stream(empty)
    assert list(items) == []
    assert items.stats().tensors == 0


def test_parameters_keep_their_identity() -> None:
    model = torch.nn.Linear(2, 3)
    held = dict(model.named_parameters())
    assert {id(val) for _, _, val in stream(held)} == {id(p) for p in held.values()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_plain_memory_are_yielded_untouched() -> None:
    class Wrapper(Tensor):
        pass

    odd: dict[str, Tensor] = {
        "meta": torch.empty(2, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.5, 0, torch.qint8),
        "subclass": torch.ones(2).as_subclass(Wrapper),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5.0),
        "bits": torch.ones(3, dtype=torch.complex64).conj(),
    }
    odd["nested"] = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert {key for obj, key, val in stream(odd, 1) if obj[key] is val} == set(odd)


def test_lazy_parameters_are_yielded() -> None:
    """A subclass whose torch functions raise."""
    lazy = torch.nn.LazyLinear(2).state_dict()
    assert keys_of(stream(lazy)) == ["weight", "bias"]


# In which order


def test_order_is_storage_then_offset_then_traversal() -> None:
    first, second, third = one_storage(5, 6, 7)
    tree = {"c": third, "a": first, "twin": first, "b": second, "whole": first[:2]}
    assert keys_of(stream(tree)) == ["a", "twin", "whole", "b", "c"]


def test_tensors_without_memory_come_first_in_traversal_order() -> None:
    tree = {
        "plain": torch.ones(3),
        "sparse": torch.eye(2).to_sparse(),
        "empty": torch.empty(0),
        "meta": torch.empty(1, device="meta"),
    }
    assert keys_of(stream(tree)) == ["sparse", "empty", "meta", "plain"]


def test_a_mapped_file_is_read_in_file_order(tmp_path: Path) -> None:
    names = [f"k{i}" for i in range(50)]
    torch.save({name: torch.ones(100) for name in names}, tmp_path / "x.pt")
    loaded = load_mapped(tmp_path / "x.pt")
    shuffled = {name: loaded[name] for name in sorted(names, key=hash)}
    assert keys_of(stream(shuffled)) == names


# How it ends


def test_stream_is_an_iterator() -> None:
    items = stream({"a": torch.ones(1), "b": torch.ones(1)})
    assert iter(items) is items
    next(items)
    next(items)
    with pytest.raises(StopIteration):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_close_ends_the_iteration(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    with stream(state_dict, 8) as items:
        for _, _, val in items:
            val.sum()
            items.close()
        assert list(items) == []
    assert items.stats().tensors_yielded == 1
    assert resident_of(large_checkpoint).clean_bytes == 0
    items.close()
    items.release()


def test_a_stream_closed_before_its_start_is_empty() -> None:
    with stream({"a": torch.ones(1)}) as items:
        pass
    assert list(items) == []
    assert items.stats().tensors_yielded == 0


def test_pages_go_back_at_the_end(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    for _, _, val in stream(state_dict, 16):
        val.sum()
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_pages_go_back_on_an_exception(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    count = 0
    with pytest.raises(KeyError):  # noqa: PT012
        for _, _, val in stream(state_dict, 16):
            val.sum()
            count += 1
            if count == 7:
                raise KeyError
    assert resident_of(large_checkpoint).clean_bytes == 0


def test_pages_go_back_when_the_stream_is_dropped(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    gc.disable()  # by reference counting alone
    try:
        items = stream(state_dict, 16)
        next(items)[2].sum()
        assert resident_of(large_checkpoint).clean_bytes > 0
        del items
        assert resident_of(large_checkpoint).clean_bytes == 0
        for _, _, val in stream(state_dict, 16):
            val.sum()
            break
        assert resident_of(large_checkpoint).clean_bytes == 0
    finally:
        gc.enable()


def test_release_goes_on(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    count = 0
    with stream(state_dict, 16) as items:
        for _, key, val in items:
            assert (val == float(key[1:])).all()
            items.release()
            items.release()
            assert resident_of(large_checkpoint).clean_bytes == 0
            count += 1
    assert count == 64


@pytest.mark.parametrize("position", [1, 2047, 2048, 2049, 4096, 4999])
def test_release_and_close_in_a_window_of_many(tmp_path: Path, position: int) -> None:
    path = tmp_path / "tensors.pt"
    torch.save({f"k{i}": torch.full((100,), i) for i in range(5000)}, path)
    state_dict = load_mapped(path)
    items = stream(state_dict, 16)
    for i, (_, key, val) in enumerate(items, 1):
        assert (val == int(key[1:])).all()
        if i == position:
            items.release()
            assert resident_of(path).clean_bytes == 0
            assert items.stats().tensors_yielded == i
    assert i == 5000
    assert items.stats().windows_entered == 2
    assert resident_of(path).clean_bytes == 0
    items = stream(state_dict, 16)
    for _ in range(position):
        next(items)[2].sum()
    items.close()
    assert items.stats().tensors_yielded == position
    assert list(items) == []
    assert resident_of(path).clean_bytes == 0


def test_kept_tensors_stay_valid(large_checkpoint: Path) -> None:
    kept = [val for _, _, val in stream(load_mapped(large_checkpoint), 8)]
    for i, val in enumerate(kept):
        assert (val == i).all()


def test_replaced_tensors_of_a_window_of_many_are_let_go() -> None:
    weights = {f"w{i}": torch.ones(1) for i in range(10_000)}
    alive = [weakref.ref(val) for val in weights.values()]
    for i, (obj, key, val) in enumerate(stream(weights)):
        obj[key] = val.to(torch.bfloat16)
        del val
        if i % 1000 == 999:
            assert sum(ref() is not None for ref in alive) <= len(alive) - i + 2048


def test_replaced_tensors_are_let_go() -> None:
    weights = {f"w{i}": torch.ones(MIB // 4) for i in range(8)}
    alive = [weakref.ref(val) for val in weights.values()]
    most_alive_at_last = 0
    for obj, key, val in stream(weights, memory_limit_mb=4):
        obj[key] = val.to(torch.bfloat16)
        del val
        most_alive_at_last = sum(ref() is not None for ref in alive)
    assert most_alive_at_last <= 4


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_cannot_be_copied(duplicate: Any) -> None:
    items = stream({"a": torch.ones(1)})
    with pytest.raises(TypeError, match="a Stream cannot be pickled or copied"):
        duplicate(items)


def test_a_stream_is_made_by_stream() -> None:
    with pytest.raises(TypeError, match=r"^a Stream is made by stream\(\)$"):
        Stream([])


def test_stats(large_checkpoint: Path) -> None:
    state_dict = load_mapped(large_checkpoint)
    state_dict["w3"][0, 0] = 1.0
    items = stream(state_dict, 16)
    for _ in range(10):
        next(items)[2].sum()
    stats = items.stats()
    assert stats.tensors == 64
    assert stats.tensors_yielded == 10
    assert stats.bytes_streamed == 10 * MIB
    resident = resident_of(large_checkpoint)
    assert stats.bytes_resident == resident.clean_bytes > 0
    assert stats.bytes_written == resident.written_bytes > 0
    for _, _, val in items:
        val.sum()
    stats = items.stats()
    assert stats.memory_limit_bytes == 16 * MIB
    assert stats.tensors_yielded == 64
    assert stats.bytes_streamed == 64 * MIB
    assert 0 < stats.peak_bytes_resident <= 16 * MIB
    assert stats.bytes_evicted > 63 * MIB
    assert stats.bytes_over_limit == stats.bytes_resident == 0
    assert stats.windows_entered >= 5
    assert stats.not_held is None
    with pytest.raises(FrozenInstanceError):
        stats.tensors = 0  # type: ignore[misc]


# Arguments


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "True (bool)"),
        (1.0, TypeError, "1.0 (float)"),
        (float("nan"), TypeError, "nan (float)"),
        ("64", TypeError, "'64' (str)"),
        (0, ValueError, "memory_limit_mb is 0,"),
        (-3, ValueError, "memory_limit_mb is -3,"),
        (2**63, ValueError, f"memory_limit_mb is {2**63},"),
    ],
)
def test_bad_memory_limit(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        stream({}, memory_limit_mb=value)
    assert text in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (False, TypeError, "cpu_page_size is False (bool), expected None or an int"),
        (4096.0, TypeError, "cpu_page_size is 4096.0 (float), expected None or an"),
        (0, ValueError, "cpu_page_size is 0, expected None or an int >= 1 (bytes)"),
        (-1, ValueError, "cpu_page_size is -1, expected None or an int >= 1"),
    ],
)
def test_bad_page_size(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        stream({}, cpu_page_size=value)
    assert text in str(caught.value)


@pytest.mark.parametrize("page_size", [None, 1, 4096, 65536])
def test_page_size_is_accepted_and_not_used(page_size: int | None) -> None:
    assert keys_of(stream({"a": torch.ones(1)}, 1, page_size)) == ["a"]


@pytest.mark.parametrize("bad", [b"x.pt", None, 5, {1}, torch.ones(1)])
def test_bad_state_dict(bad: Any) -> None:
    with pytest.raises(TypeError) as caught:
        stream(bad)
    assert str(caught.value) == (
        f"state_dict is of type {type(bad).__name__}, expected a mapping, list or "
        "tuple of tensors, or the path of a checkpoint file"
    )
