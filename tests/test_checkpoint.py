"""ckpt_streamer.open and Checkpoint; streams and loads that are given a file."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import enum
import io
import os
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mapped_checkpoints import MIB, load_mapped, resident_of
from safetensors.torch import save_file
from torch import Tensor

import ckpt_streamer
from ckpt_streamer import (
    Checkpoint,
    OpaqueGlobal,
    OpaqueObject,
    apply_state_dict,
    stream,
)

BASE = torch.arange(12.0)


class Colour(enum.Enum):
    RED = 1


class Point(collections.namedtuple("Point", "x y")):
    __slots__ = ()


class Attributed(OrderedDict[str, Tensor]):
    pass


class SlottedDict(dict[str, Any]):
    __slots__ = ("more", "weight")

    more: Any
    weight: Tensor


class SlottedAttributed(SlottedDict):
    pass


class ListLike(list[Any]):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Tensor, b: int) -> None:
        self.a, self.b = a, b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def opened(path: Path, value: Any, memory_limit_mb: int = 64) -> Checkpoint:
    torch.save(value, path)
    return ckpt_streamer.open(path, memory_limit_mb)


def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# Streaming.


def test_iterating_yields_names_and_tensors_in_file_order(path: Path) -> None:
    value = {"state_dict": {"a.w": BASE, "b": BASE[2:5]}, "c": [torch.ones(2), 7]}
    checkpoint = opened(path, value)
    assert len(checkpoint) == 3
    assert checkpoint.names == ["state_dict.a.w", "state_dict.b", "c.0"]
    items = list(checkpoint)
    assert [name for name, _ in items] == checkpoint.names
    assert torch.equal(items[0][1], BASE)
    assert torch.equal(items[1][1], BASE[2:5])
    assert storage(items[0][1]) == storage(items[1][1])
    # Again, and twice at once.
    pairs = list(zip(checkpoint, checkpoint, strict=True))
    assert all(one[0] == other[0] for one, other in pairs)
    assert [one[0] for one, _ in pairs] == checkpoint.names


def test_many_tensors_come_in_lots(path: Path) -> None:
    count = 5000
    checkpoint = opened(path, {f"k{i}": torch.tensor([i]) for i in range(count)})
    for i, (name, tensor) in enumerate(checkpoint):
        assert name == f"k{i}"
        assert tensor.item() == i
    assert i == count - 1
    assert list(checkpoint.keys()) == [f"k{i}" for i in range(count)]
    assert [value.item() for value in checkpoint.root.values()] == list(range(count))


def test_names_with_newlines_stay_whole(path: Path) -> None:
    value = {"a\nb": torch.ones(1), "": torch.ones(2), "c": {"\n": torch.ones(3)}}
    checkpoint = opened(path, value)
    assert checkpoint.names == ["a\nb", "", "c.\n"]
    assert list(checkpoint.keys()) == ["a\nb", "", "c"]
    assert [key for _, key, _ in stream(path)] == ["a\nb", "", "\n"]


def test_the_limit_holds_for_iterations(large_checkpoint: Path) -> None:
    for _ in range(2):
        checkpoint = ckpt_streamer.open(large_checkpoint, memory_limit_mb=8)
        for i, (name, tensor) in enumerate(checkpoint):
            assert name == f"w{i}"
            assert float(tensor.sum()) == i * tensor.numel()
            assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
        assert resident_of(large_checkpoint).clean_bytes == 0
    stats = checkpoint.stats()
    assert stats.tensors == 64
    assert stats.bytes_streamed == 64 * MIB
    assert 0 < stats.peak_bytes_resident <= 8 * MIB
    assert stats.bytes_over_limit == 0


def test_the_limit_holds_for_streams_of_a_path(large_checkpoint: Path) -> None:
    items = stream(large_checkpoint, memory_limit_mb=8)
    for _obj, _key, val in items:
        val.sum()
        assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
    assert items.stats().bytes_streamed == 64 * MIB
    assert resident_of(large_checkpoint).clean_bytes == 0


def look_up(checkpoint: Checkpoint, name: str) -> Tensor:
    value: Tensor = checkpoint[name]
    return value


@pytest.mark.parametrize("look_up", [look_up, Checkpoint.tensor])
def test_the_limit_holds_for_look_ups(
    large_checkpoint: Path, look_up: Callable[[Checkpoint, str], Tensor]
) -> None:
    with ckpt_streamer.open(large_checkpoint, memory_limit_mb=8) as checkpoint:
        for i in reversed(range(64)):
            assert look_up(checkpoint, f"w{i}").sum() == i * MIB / 4
            assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
        assert checkpoint.stats().bytes_resident > 0
    assert resident_of(large_checkpoint).clean_bytes == 0


@pytest.mark.parametrize("name", ["values", "items"])
def test_the_limit_holds_for_the_values_of_a_mapping(
    large_checkpoint: Path, name: str
) -> None:
    with ckpt_streamer.open(large_checkpoint, memory_limit_mb=8) as checkpoint:
        for i, item in enumerate(getattr(checkpoint.root, name)()):
            tensor = item if name == "values" else item[1]
            assert tensor.sum() == i * MIB / 4
            assert resident_of(large_checkpoint).clean_bytes <= 8 * MIB
    assert i == 63


@pytest.mark.parametrize("position", [0, 1, 5, 63])
def test_release_in_mid_iteration(large_checkpoint: Path, position: int) -> None:
    checkpoint = ckpt_streamer.open(large_checkpoint, memory_limit_mb=16)
    seen = []
    for i, (name, tensor) in enumerate(checkpoint):
        seen.append(name)
        tensor.sum()
        if i == position:
            checkpoint.release()
            assert resident_of(large_checkpoint).clean_bytes == 0
        assert resident_of(large_checkpoint).clean_bytes <= 16 * MIB
    assert seen == checkpoint.names


def test_release_at_the_end_of_a_lot(path: Path) -> None:
    checkpoint = opened(path, {f"k{i}": torch.tensor([i]) for i in range(4100)})
    names = []
    for name, _ in checkpoint:
        names.append(name)
        if len(names) in {2047, 2048, 2049, 4096, 4100}:
            checkpoint.release()
    assert names == checkpoint.names


def test_a_dropped_iteration_gives_back_and_counts(large_checkpoint: Path) -> None:
    checkpoint = ckpt_streamer.open(large_checkpoint, memory_limit_mb=16)
    for _, tensor in checkpoint:
        tensor.sum()
        break
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert checkpoint.stats().bytes_streamed == MIB
    iterator = iter(checkpoint)
    next(iterator)[1].sum()
    assert checkpoint.stats().bytes_streamed == 2 * MIB
    del iterator
    assert checkpoint.stats().bytes_streamed == 2 * MIB
    assert checkpoint.stats().bytes_resident == 0


def test_close_ends_everything(large_checkpoint: Path) -> None:
    checkpoint = ckpt_streamer.open(large_checkpoint)
    iterator = iter(checkpoint)
    kept = next(iterator)[1]
    root = checkpoint.root
    looked_up = root["w5"]
    kept.sum(), looked_up.sum()
    checkpoint.close()
    checkpoint.close()
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert list(iterator) == []
    assert (kept == 0).all()
    assert (looked_up == 5).all()
    stats = checkpoint.stats()
    assert stats.bytes_streamed == MIB
    assert stats.bytes_resident == 0
    assert stats.bytes_evicted >= 2 * MIB
    assert len(checkpoint) == 64
    closed: list[Callable[[], object]] = [
        lambda: list(checkpoint),
        lambda: checkpoint["w0"],
        lambda: checkpoint.tensor("w0"),
        lambda: checkpoint.names,
        lambda: checkpoint.metadata,
        lambda: root["w6"],
        lambda: stream(checkpoint),
        lambda: stream(root),
        checkpoint.release,
    ]
    for use in closed:
        with pytest.raises(
            ValueError, match=f"^{large_checkpoint}: the checkpoint is "
        ):
            use()


def test_tensors_outlive_the_checkpoint_and_the_mapping_does_not(path: Path) -> None:
    checkpoint = opened(path, {"a": BASE, "b": BASE + 1})
    [(_, a), (_, b)] = checkpoint
    tree = weakref.ref(checkpoint.root)
    del checkpoint
    assert tree() is None
    os.unlink(path)
    assert torch.equal(a, BASE)
    del a
    assert torch.equal(b, BASE + 1)
    del b
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_written_tensor_stays_written_and_the_file_as_it_was(path: Path) -> None:
    checkpoint = opened(path, {"a": torch.zeros(5000), "b": torch.ones(5000)})
    before = path.read_bytes()
    for _, tensor in checkpoint:
        tensor.add_(5)
    checkpoint.release()
    assert (checkpoint["a"] == 5).all()
    assert (checkpoint["b"] == 6).all()
    assert path.read_bytes() == before


def test_a_file_that_shrinks_is_an_error(large_checkpoint: Path, path: Path) -> None:
    path.write_bytes(large_checkpoint.read_bytes())
    checkpoint = ckpt_streamer.open(path, memory_limit_mb=8)
    iterator = iter(checkpoint)
    next(iterator)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    shrunk = f"{path}: the file has shrunk to {size // 2} bytes since it was opened"
    with pytest.raises(ValueError, match=shrunk):
        list(iterator)
    with pytest.raises(ValueError, match=shrunk):
        checkpoint["w0"]
    with pytest.raises(ValueError, match=shrunk):
        checkpoint.tensor("w0")


# The tree.


def test_the_tree_is_what_torch_load_returns(path: Path) -> None:
    value: dict[Any, Any] = {
        "none": None,
        "flags": [True, False],
        "ints": [0, -1, 2**31, -(2**63), 2**63, 10**40, -(10**40)],
        "floats": [0.5, float("inf"), -0.0],
        "complex": 1 - 2j,
        "text": "\u00e4\u6f22\U0001f600\x00",
        "bytes": bytes(range(256)),
        "tuple": (1, ("a", None), ()),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "set": {1, 2},
        "frozenset": frozenset(["x"]),
        "empty": [{}, [], (), set(), OrderedDict()],
        "nested": {"list": [[BASE, 3], (BASE, [4])]},
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2]),
        0: "zero",
        (1, "a"): "tuple",
        None: "none",
        1.5: "float",
        b"b": "bytes",
        frozenset([1]): "frozenset",
    }
    with opened(path, value) as checkpoint:
        assert list(checkpoint.keys()) == list(value)
        for key in value.keys() - {"nested", "default", "counter", "deque", "empty"}:
            assert checkpoint[key] == value[key]
            assert key in checkpoint
        assert checkpoint["empty"] == [{}, [], (), frozenset(), {}]
        assert checkpoint["default"] == {"a": [1]}
        assert checkpoint["counter"] == {"a": 2, "b": 1}
        assert checkpoint["deque"] == [1, 2]
        nested = checkpoint["nested"]["list"]
        assert isinstance(nested, Sequence)
        assert nested[0][1] == 3
        assert nested[1][1] == [4]
        assert torch.equal(nested[1][0], BASE)
        assert checkpoint.get("missing") is None
        assert checkpoint.get("missing", 5) == 5
        assert "missing" not in checkpoint
        with pytest.raises(KeyError, match=r"^'missing'$"):
            checkpoint["missing"]


def test_equal_nodes_are_one_object_and_tensors_share_as_in_the_file(
    path: Path,
) -> None:
    inner = {"w": BASE}
    checkpoint = opened(path, {"a": inner, "b": inner, "c": [BASE, BASE[3:]]})
    assert checkpoint["a"] is checkpoint["b"]
    assert checkpoint["a"] is checkpoint["a"]
    tensor = checkpoint["a"]["w"]
    assert tensor is checkpoint["c"][0]
    assert storage(tensor) == storage(checkpoint["c"][1])
    address = tensor.data_ptr()
    alive = weakref.ref(tensor)
    del tensor
    assert alive() is None
    assert checkpoint["a"]["w"].data_ptr() == address


def test_containers_are_read_only_mappings_and_sequences(path: Path) -> None:
    checkpoint = opened(path, {"a": {"w": BASE, "x": 1}, "b": [BASE, 1, 2, 3]})
    a, b = checkpoint["a"], checkpoint["b"]
    changes: list[Callable[[], None]] = [
        lambda: a.__setitem__("w", 1),
        lambda: a.__delitem__("w"),
        lambda: b.__setitem__(0, 1),
        lambda: b.__delitem__(0),
    ]
    assert isinstance(a, Mapping)
    assert list(a) == ["w", "x"]
    assert len(a) == 2
    assert dict(a)["x"] == 1
    assert [key for key, _ in a.items()] == ["w", "x"]
    assert isinstance(b, Sequence)
    assert len(b) == 4
    assert b[1:3] == [1, 2]
    assert b[-1] == 3
    assert list(b)[1:] == [1, 2, 3]
    assert list(reversed(b))[:2] == [3, 2]
    read_only = f"^{path}: the values of an open checkpoint are read-only, expected "
    for change in changes:
        with pytest.raises(TypeError, match=read_only):
            change()
    with pytest.raises(IndexError):
        b[4]
    for copied in (a, b):
        with pytest.raises(
            TypeError, match=r"^a value of an open checkpoint cannot be"
        ):
            pickle.dumps(copied)
        with pytest.raises(
            TypeError, match=r"^a value of an open checkpoint cannot be"
        ):
            copy.deepcopy(copied)


def test_sequences_compare_as_lists_and_tuples_do(path: Path) -> None:
    checkpoint = opened(path, {"l": [1, [2]], "m": [1, [2]], "t": ([1],)})
    assert checkpoint["l"] == [1, [2]]
    assert checkpoint["l"] == checkpoint["m"]
    assert checkpoint["l"] != [1, [3]]
    assert checkpoint["l"] != (1, [2])
    assert checkpoint["l"] != 5
    assert checkpoint["t"] == ([1],)
    assert checkpoint["t"] != [[1]]
    with pytest.raises(TypeError, match=r"^unhashable type"):
        hash(checkpoint["l"])


def test_cycles_are_walked_once(path: Path) -> None:
    value: dict[str, Any] = {"w": BASE}
    value["self"] = value
    loop: list[Any] = [BASE]
    loop.append(loop)
    value["loop"] = loop
    checkpoint = opened(path, value)
    assert checkpoint["self"]["self"] is checkpoint.root
    assert checkpoint["loop"][1] is checkpoint["loop"]
    assert checkpoint.names == ["w", "loop.0"]
    assert [key for _, key, _ in stream(checkpoint["loop"])] == ["w", 0] or [
        key for _, key, _ in stream(checkpoint["loop"])
    ] == [0]
    assert dict(checkpoint.metadata) == {}


def test_attributes_of_a_dict_come_along(path: Path) -> None:
    value = Attributed(w=BASE)
    value.note = "kept"  # type: ignore[attr-defined]
    value.more = {"list": [1, {"x": (2,)}]}  # type: ignore[attr-defined]
    checkpoint = opened(path, {"plain": {}, "state": value, "module": model()})
    state = checkpoint["state"]
    assert state.note == "kept"
    assert state.more == {"list": [1, {"x": (2,)}]}
    state.more["list"].append(5)  # the caller's own
    assert state.more["list"][-1] == 5
    with pytest.raises(AttributeError, match=f"of {path} has no attribute 'other'$"):
        _ = state.other
    with pytest.raises(
        AttributeError, match=r"^a dict of .* no attribute '_metadata'$"
    ):
        _ = checkpoint["plain"]._metadata


@pytest.mark.parametrize("kind", [SlottedDict, SlottedAttributed])
def test_attributes_in_slots_come_along(path: Path, kind: type[SlottedDict]) -> None:
    value = kind(w=BASE)
    value.more = {"list": [1, {"x": (2,)}]}
    value.weight = BASE
    if kind is SlottedAttributed:
        value.note = "in the __dict__"  # type: ignore[attr-defined]
    root = opened(path, value).root
    assert list(root) == ["w"]
    assert root.more == {"list": [1, {"x": (2,)}]}
    root.more["list"].append(5)  # the caller's own
    assert root.more["list"][-1] == 5
    assert torch.equal(root.weight, BASE)
    assert root.weight.data_ptr() == root["w"].data_ptr()
    if kind is SlottedAttributed:
        assert root.note == "in the __dict__"
    with pytest.raises(AttributeError, match=f"of {path} has no attribute 'other'$"):
        _ = root.other


def test_objects_are_not_made(path: Path) -> None:
    value = {
        "namespace": argparse.Namespace(lr=0.1, w=BASE),
        "point": Point(BASE, 2),
        "when": datetime.date(2020, 1, 2),
        "colour": Colour.RED,
        "slotted": Slotted(BASE, 3),
        "list": ListLike([BASE, 4]),
        "class": argparse.ArgumentParser,
        "module": torch.nn.Linear(2, 2),
    }
    checkpoint = opened(path, value)
    namespace = checkpoint["namespace"]
    assert isinstance(namespace, OpaqueObject)
    assert namespace.type_name == "argparse.Namespace"
    assert namespace.state["lr"] == 0.1
    assert torch.equal(namespace.state["w"], BASE)
    assert repr(namespace) == "<opaque argparse.Namespace object>"
    assert namespace is checkpoint["namespace"]
    assert len({namespace, namespace}) == 1
    with pytest.raises(KeyError, match=r"^'lr'$"):
        namespace["lr"]
    with pytest.raises(TypeError, match=r"^a value of an open checkpoint cannot be"):
        copy.copy(namespace)

    point = checkpoint["point"]
    assert point.type_name == f"{__name__}.Point"
    assert torch.equal(point.args[0], BASE)
    assert point.args[1] == 2
    assert point.kwargs == {}
    assert point.state is None
    assert checkpoint["when"].args == (b"\x07\xe4\x01\x02",)
    assert checkpoint["colour"].type_name == f"{__name__}.Colour"
    assert checkpoint["colour"].args == (1,)
    assert checkpoint["colour"].callable == OpaqueGlobal(f"{__name__}.Colour")
    slots = checkpoint["slotted"].state
    assert slots[0] is None
    assert slots[1]["b"] == 3
    assert torch.equal(slots[1]["a"], BASE)
    assert torch.equal(checkpoint["list"].items[0], BASE)
    assert checkpoint["list"][1] == 4
    assert checkpoint["class"] == OpaqueGlobal("argparse.ArgumentParser")
    assert repr(checkpoint["class"]) == "<global argparse.ArgumentParser>"
    parameters = checkpoint["module"].state["_parameters"]
    assert parameters["weight"].requires_grad
    assert "module._parameters.weight" in checkpoint.names


def test_an_object_as_a_key_is_found_by_itself(path: Path) -> None:
    checkpoint = opened(path, {Colour.RED: 1, (Colour.RED, 2): 3})
    colour, pair = checkpoint.keys()
    assert isinstance(colour, OpaqueObject)
    assert checkpoint[colour] == 1
    assert pair[0] is colour
    assert checkpoint[pair] == 3


def test_a_root_that_is_no_dict(path: Path) -> None:
    checkpoint = opened(path, BASE)
    assert [name for name, _ in checkpoint] == [""]
    assert torch.equal(checkpoint[""], BASE)
    assert torch.equal(checkpoint.tensor(""), BASE)
    assert list(checkpoint.keys()) == [""]
    assert "" in checkpoint
    assert "x" not in checkpoint
    assert checkpoint.get("x") is None
    [(obj, key, val)] = stream(path)
    assert key == ""
    assert storage(obj[key]) == storage(val)

    checkpoint = opened(path, [BASE, 2])
    assert checkpoint[1] == 2
    assert checkpoint.get(9, "absent") == "absent"
    with pytest.raises(TypeError, match=f"^{path}: holds <read-only list of 2.*>, exp"):
        checkpoint.keys()


def test_metadata_is_all_but_the_tensors(path: Path) -> None:
    shared = [1, 2]
    value = {
        "epoch": 3,
        "state": {"w": BASE, "version": None},
        "betas": (0.9, 0.99),
        "list": [shared, shared, {"x": {5}}],
        "namespace": argparse.Namespace(w=BASE),
        "empty": {},
        0: "int",
        "0": "text",
    }
    checkpoint = opened(path, value)
    metadata = dict(checkpoint.metadata)
    assert metadata.pop("namespace") is checkpoint["namespace"]
    assert metadata == {
        "epoch": 3,
        "state.version": None,
        "betas": (0.9, 0.99),
        "list.0.0": 1,
        "list.0.1": 2,
        "list.2.x": {5},
        "0": "int",
    }
    with pytest.raises(TypeError):
        checkpoint.metadata["epoch"] = 4  # type: ignore[index]
    assert dict(opened(path, {"w": BASE}).metadata) == {}


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.w": BASE, "b": torch.ones(2)}, path, {"format": "pt", "a.w": "x"})
    checkpoint = ckpt_streamer.open(path)
    assert dict(checkpoint.metadata) == {"format": "pt", "a.w": "x"}
    assert sorted(checkpoint.keys()) == ["a.w", "b"]
    assert torch.equal(checkpoint["a.w"], BASE)
    assert dict(iter(checkpoint)).keys() == {"a.w", "b"}


# Look-ups by name.


def test_a_name_that_repeats_is_named_with_its_paths(path: Path) -> None:
    value = {"a.b": BASE, "a": {"b": BASE + 1}, 0: torch.ones(1), "0": torch.ones(2)}
    checkpoint = opened(path, value)
    assert sorted(checkpoint.names) == ["0", "0", "a.b", "a.b"]
    assert len(list(checkpoint)) == 4
    assert torch.equal(checkpoint["a"]["b"], BASE + 1)
    with pytest.raises(ValueError, match="tensors of the name") as raised:
        checkpoint.tensor("a.b")
    assert str(raised.value) == (
        f"{path}: has 2 tensors of the name 'a.b', ['a.b'] and ['a']['b'], expected "
        "the name of one"
    )
    with pytest.raises(ValueError, match=r"name '0', \[0\] and \['0'\], expected"):
        checkpoint.tensor("0")
    with pytest.raises(KeyError, match=f"{path} has no tensor 'missing'"):
        checkpoint.tensor("missing")


def test_names_may_repeat_between_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.pt", "two.pt", "three.pt")]
    for i, path in enumerate(paths):
        torch.save({"w": torch.tensor([i]), f"only{i}": torch.tensor([i])}, path)
    checkpoint = ckpt_streamer.open(paths)
    assert checkpoint.names == ["w", "only0", "w", "only1", "w", "only2"]
    assert [tensor.item() for _, tensor in checkpoint] == [0, 0, 1, 1, 2, 2]
    assert list(checkpoint.keys()) == ["w", "only0", "only1", "only2"]
    assert len(checkpoint.root) == 4
    assert checkpoint["only1"].item() == 1
    repeated = (
        f"{paths[0]}: has 3 tensors of the name 'w', ['w'] of {paths[0]} and ['w'] of "
        f"{paths[1]} and ['w'] of {paths[2]}, expected the name of one"
    )
    for look_up in (
        lambda: checkpoint["w"],
        lambda: checkpoint.tensor("w"),
        lambda: list(checkpoint.root.values()),
    ):
        with pytest.raises(ValueError, match="tensors of the name") as raised:
            look_up()
        assert str(raised.value) == repeated
    assert [val.item() for _, _, val in stream(paths)] == [0, 0, 1, 1, 2, 2]
    assert repr(checkpoint).startswith(
        f"<Checkpoint {str(paths[0])!r} and 2 more: 6 tensors, 48 bytes; "
    )


# Where a state_dict stands.


def test_stream_of_a_path(path: Path) -> None:
    value = {"state_dict": {"a": BASE, "b": BASE[2:]}, "l": [torch.ones(1), (BASE,)]}
    torch.save(value, path)
    items = list(stream(path))
    assert [key for _, key, _ in items] == ["a", 0, "b", 0]
    for obj, key, val in items:
        twin = obj[key]
        assert storage(twin) == storage(val)
        assert twin.shape == val.shape
        assert twin.stride() == val.stride()
        assert torch.equal(twin, val)
        with pytest.raises(TypeError, match="are read-only"):
            obj[key] = val
    assert items[0][0] is items[2][0]
    val = items[0][2]
    address = storage(val)
    obj, key, _ = items[0]
    del items, val
    twin = obj[key]
    val = obj[key]
    assert storage(twin) == storage(val)
    assert address  # of a storage that is gone by now


def test_the_same_as_a_stream_of_what_torch_load_returns(path: Path) -> None:
    torch.save({"m": model().state_dict(), "x": [BASE, {"y": BASE[1:]}]}, path)
    mapped = load_mapped(path)
    theirs = list(stream(mapped))
    ours = list(stream(path))
    assert [key for _, key, _ in ours] == [key for _, key, _ in theirs]
    for (_, _, mine), (_, _, other) in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_stream_keeps_the_streams_interface_for_files(large_checkpoint: Path) -> None:
    with stream(str(large_checkpoint), 16) as items:
        for obj, key, _ in items:
            assert isinstance(obj, Mapping)
            if key == "w3":
                items.release()
            if key == "w9":
                break
        assert items.stats().tensors_yielded == 10
        assert items.stats().tensors == 64
    assert list(items) == []
    with pytest.raises(TypeError, match=r"^a Stream cannot be pickled or copied"):
        pickle.dumps(items)


def test_stream_of_a_part(path: Path) -> None:
    shared = {"s": torch.ones(1)}
    value = {
        "a": {"w": BASE, "shared": shared},
        "b": {"w": BASE + 1, "shared": shared},
        "ns": argparse.Namespace(w=BASE + 2, l=[BASE + 3]),
        "l": [BASE + 4, 1],
    }
    checkpoint = opened(path, value)

    def firsts(part: Any) -> list[tuple[Any, float]]:
        return [(key, float(val[0])) for _, key, val in stream(part)]

    assert firsts(checkpoint["a"]) == [("w", 0), ("s", 1)]
    assert sorted(firsts(checkpoint["b"])) == [("s", 1), ("w", 1)]
    assert firsts(checkpoint["ns"]) == [("w", 2), (0, 3)]
    assert firsts(checkpoint["l"]) == [(0, 4)]
    assert len(firsts(checkpoint)) == 6
    # Beside the caller's own.
    mixed = list(
        stream({"mine": torch.zeros(1), "a": checkpoint["a"], "l": [checkpoint["l"]]})
    )
    assert sorted(str(key) for _, key, _ in mixed) == ["0", "mine", "s", "w"]


def test_tensors_in_objects_come_with_what_holds_them(path: Path) -> None:
    value = {
        "point": Point(BASE, BASE + 1),
        "list": ListLike([BASE + 2]),
        "slotted": Slotted(BASE + 3, 1),
        "set": {BASE + 4},
        BASE + 5: "a key itself",
    }
    torch.save(value, path)
    found = {}
    for obj, key, val in stream(path):
        assert torch.equal(obj[key], val)
        assert storage(obj[key]) == storage(val)
        found[float(val[0])] = key
    assert {number: found[number] for number in (0, 1, 2, 3, 4)} == {
        0: 0,
        1: 1,
        2: 0,
        3: "a",
        4: 0,
    }
    assert len(found) == 6


def test_the_smaller_limit_holds(large_checkpoint: Path) -> None:
    checkpoint = ckpt_streamer.open(large_checkpoint, memory_limit_mb=16)
    for part in (checkpoint, checkpoint.root):
        assert stream(part).stats().memory_limit_bytes == 16 * MIB
        assert stream(part, 8).stats().memory_limit_bytes == 8 * MIB


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_and_apply_take_it(path: Path, assign: bool) -> None:
    source = model()
    source(torch.randn(3, 4))
    checkpoint = opened(path, {"state_dict": source.state_dict(), "epoch": 1})
    state_dict = checkpoint["state_dict"]
    assert state_dict._metadata == source.state_dict()._metadata  # type: ignore[attr-defined]

    def equal(target: torch.nn.Module) -> bool:
        own, wanted = target.state_dict(), source.state_dict()
        return own.keys() == wanted.keys() and all(
            torch.equal(own[key], wanted[key]) for key in wanted
        )

    target = model()
    missing, unexpected = target.load_state_dict(state_dict, assign=assign)
    assert not missing
    assert not unexpected
    assert equal(target)
    target = model()
    apply_state_dict(target, state_dict, assign=assign)
    assert equal(target)
    torch.save(source.state_dict(), path)
    for whole in (path, str(path), ckpt_streamer.open(path)):
        target = model()
        apply_state_dict(target, whole, assign=assign)
        assert equal(target)


# Opening.


def test_repr_says_what_it_is(path: Path) -> None:
    value: dict[Any, Any] = {f"k{i}": BASE for i in range(7)}
    checkpoint = opened(path, value)
    size = checkpoint._storage_bytes
    assert repr(checkpoint) == (
        f"<Checkpoint {str(path)!r}: 7 tensors, {size} bytes; <read-only mapping of 7: "
        "'k0', 'k1', 'k2', 'k3', 'k4', 'k5', ...>>"
    )
    checkpoint.close()
    assert repr(checkpoint) == (
        f"<Checkpoint {str(path)!r}: 7 tensors, {size} bytes; closed>"
    )
    checkpoint = opened(path, OrderedDict(w=torch.zeros(3 * MIB // 4)))
    assert "1 tensors, 3.0 MiB" in repr(checkpoint)
    assert "mapping (collections.OrderedDict) of 1: 'w'>" in repr(checkpoint)
    assert repr(opened(path, BASE)).endswith(": 1 tensors, 48 bytes; one>")


def test_a_checkpoint_is_true_and_not_copied(path: Path) -> None:
    checkpoint = opened(path, {})
    assert checkpoint
    assert len(checkpoint) == 0
    assert list(checkpoint) == []
    with pytest.raises(TypeError, match=r"^a Checkpoint cannot be pickled or copied"):
        pickle.dumps(checkpoint)
    with pytest.raises(TypeError, match=r"^a NamedStream cannot be pickled or copied"):
        copy.copy(iter(checkpoint))
    with pytest.raises(TypeError, match=r"^a NamedStream is made by iter\(checkpoint"):
        type(iter(checkpoint))()


def test_what_is_no_path(path: Path) -> None:
    with pytest.raises(TypeError, match=r"^path is 5 \(int\), expected the path of a"):
        ckpt_streamer.open(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"\(BytesIO\), an open file; expected the pat"):
        ckpt_streamer.open(io.BytesIO())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^path is None \(NoneType\), expected"):
        ckpt_streamer.open([str(path), None])  # type: ignore[list-item]
    with pytest.raises(
        ValueError, match=r"^path is 'a\\x00b', expected a name without"
    ):
        ckpt_streamer.open("a\0b")
    with pytest.raises(
        ValueError, match=r"^path is 'a\\udcff', expected the name of a"
    ):
        ckpt_streamer.open("a\udcff")
    with pytest.raises(ValueError, match="paths"):
        ckpt_streamer.open([])
    with pytest.raises(NotImplementedError, match="is a URL"):
        ckpt_streamer.open("https://example.org/model.pt")
    with pytest.raises(TypeError, match=r"^memory_limit_mb is 1.5 \(float\), expected"):
        ckpt_streamer.open(path, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^memory_limit_mb is 0, expected"):
        ckpt_streamer.open(path, 0)
    with pytest.raises(TypeError, match=r"^state_dict is of type int, expected a m"):
        stream(5)  # type: ignore[arg-type]


def test_files_that_cannot_be_opened(tmp_path: Path, path: Path) -> None:
    for use in (ckpt_streamer.open, stream):
        with pytest.raises(FileNotFoundError) as missing:
            use(path)
        assert missing.value.filename == str(path)
        with pytest.raises(IsADirectoryError) as directory:
            use(tmp_path)
        assert directory.value.filename == str(tmp_path)
        assert "is a directory, expected a checkpoint file" in str(directory.value)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=f"^{path}: begins with "):
        ckpt_streamer.open(path)
    with pytest.raises(NotADirectoryError):
        ckpt_streamer.open(path / "x")


@pytest.mark.parametrize("name", ["a: b", "a: cannot open: b", "a: is a directory"])
def test_colons_in_names_of_files_that_cannot_be_opened(
    tmp_path: Path, name: str
) -> None:
    for use in (ckpt_streamer.open, ckpt_streamer.jit_load):
        with pytest.raises(FileNotFoundError) as missing:
            use(tmp_path / name)
        assert missing.value.filename == str(tmp_path / name)
    (tmp_path / name).mkdir()
    for use in (ckpt_streamer.open, ckpt_streamer.jit_load):
        with pytest.raises(IsADirectoryError) as directory:
            use(tmp_path / name)
        assert directory.value.filename == str(tmp_path / name)
        assert str(directory.value.strerror).startswith("is a directory, expected ")


@pytest.mark.usefixtures("as_root")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    torch.save({}, path)
    path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError) as refused:
            ckpt_streamer.open(path)
    finally:
        os.seteuid(0)
    assert refused.value.filename == str(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {}, "weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(FileNotFoundError) as missing:
        ckpt_streamer.open(index)
    assert missing.value.filename == str(tmp_path / "gone.safetensors")
