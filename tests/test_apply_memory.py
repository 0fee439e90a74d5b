"""apply_state_dict(): the limit, and what is let go when."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from load_outcomes import (
    ExtraState,
    hook_counts,
    identity,
)
from mapped_checkpoints import MIB, load_mapped, resident_of
from memory_peaks import peaks_of
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ckpt_streamer import apply_state_dict
from ckpt_streamer import open as open_checkpoint

# The first COUNT tensors of the large checkpoint.
COUNT = 16


def load_flat(path: Path) -> dict[str, Tensor]:
    state_dict = load_mapped(path)
    return {f"w{i}": state_dict[f"w{i}"] for i in range(COUNT)}


def load_grouped(path: Path) -> dict[str, Tensor]:
    state_dict = load_mapped(path)
    return {f"{i // 4}.w{i % 4}": state_dict[f"w{i}"] for i in range(COUNT)}


def flat_model() -> nn.Module:
    """One module that holds all of the tensors."""
    model = nn.Module()
    for i in range(COUNT):
        model.register_parameter(f"w{i}", nn.Parameter(torch.zeros(256, 1024)))
    return model


def grouped_model(group_count: int = COUNT // 4) -> nn.Sequential:
    """Modules of 4 of the tensors each."""
    model = nn.Sequential()
    for _ in range(group_count):
        group = nn.Module()
        for j in range(4):
            group.register_parameter(f"w{j}", nn.Parameter(torch.zeros(256, 1024)))
        model.append(group)
    return model


def joining_model(
    watch: PeakWatch, join: Callable[[list[Tensor]], Tensor]
) -> nn.Module:
    """One parameter made of 4 of the tensors in each module."""
    model = nn.Sequential()

    def fuse(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        parts = [entries.pop(f"{prefix}w{j}") for j in range(4)]
        entries[prefix + "weight"] = join(parts)
        watch.look()

    for _ in range(COUNT // 4):
        layer = nn.Linear(1024, 1024, bias=False)
        layer.register_load_state_dict_pre_hook(fuse)
        model.append(layer)
    return model


def fail_after(count: int) -> Callable[[Any, Any, Tensor], Tensor]:
    left = iter(range(count))

    def convert(_root: Any, _module: Any, tensor: Tensor) -> Tensor:
        tensor.sum()
        return tensor if next(left, None) is not None else fail_always()

    return convert


class PeakWatch(TorchFunctionMode):
    """Looks at a file's resident pages after every function that reads tensors."""

    READING = frozenset({"cat", "concat", "copy_", "repeat", "sum"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.peak_bytes = 0

    def look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, resident_of(self.path).clean_bytes)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__ in self.READING:
            self.look()
        return result

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if exception == (None, None, None):
            assert self.peak_bytes > 0
            assert resident_of(self.path).clean_bytes == 0


@pytest.mark.parametrize("limit_mb", [2, 8])
@pytest.mark.parametrize("is_flat", [False, True])
def test_copying_keeps_the_limit(
    large_checkpoint: Path, is_flat: bool, limit_mb: int
) -> None:
    state_dict = (load_flat if is_flat else load_grouped)(large_checkpoint)
    model = flat_model() if is_flat else grouped_model()
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=limit_mb)
    assert watch.peak_bytes <= limit_mb * MIB
    for i, weight in enumerate(model.parameters()):
        assert (weight == i).all()


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_converters_see_the_limit_kept(
    large_checkpoint: Path, assign: bool, is_flat: bool
) -> None:
    state_dict = (load_flat if is_flat else load_grouped)(large_checkpoint)
    for tensor in state_dict.values():  # what is resident from before goes first
        tensor.sum()
    assert resident_of(large_checkpoint).clean_bytes >= COUNT * MIB
    model = flat_model() if is_flat else grouped_model()

    def convert(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        watch.look()
        tensor.sum()
        return tensor

    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, convert, assign=assign, memory_limit_mb=8)
    assert watch.peak_bytes <= 8 * MIB


def test_load_hooks_see_the_limit_kept(large_checkpoint: Path) -> None:
    model = grouped_model()
    watch = PeakWatch(large_checkpoint)

    def read_all(_module: nn.Module, entries: Any, *_: Any) -> None:
        for tensor in entries.values():
            tensor.sum()

    for module in model.modules():
        module.register_load_state_dict_pre_hook(read_all)
        module.register_load_state_dict_post_hook(lambda *_: watch.look())
    with watch:
        apply_state_dict(model, load_grouped(large_checkpoint), memory_limit_mb=8)
    assert watch.peak_bytes <= 8 * MIB


@pytest.mark.parametrize(
    "join", [torch.cat, lambda parts: torch.concat(tensors=tuple(parts))]
)
@pytest.mark.parametrize("limit_mb", [5, 9])
def test_hooks_that_join_tensors_keep_the_limit(
    large_checkpoint: Path, limit_mb: int, join: Callable[[list[Tensor]], Tensor]
) -> None:
    with PeakWatch(large_checkpoint) as watch:
        model = joining_model(watch, join)
        state_dict = load_grouped(large_checkpoint)
        apply_state_dict(model, state_dict, memory_limit_mb=limit_mb)
    assert watch.peak_bytes <= limit_mb * MIB
    assert model.get_parameter("3.weight")[::256, 0].tolist() == [12, 13, 14, 15]


def test_more_than_the_limit_in_one_call_goes_back_after_it(
    large_checkpoint: Path,
) -> None:
    with PeakWatch(large_checkpoint) as watch:
        model = joining_model(watch, torch.cat)
        state_dict = load_grouped(large_checkpoint)
        with pytest.warns(UserWarning, match="of the file more than the limit"):
            apply_state_dict(model, state_dict, memory_limit_mb=2)
    # The four tensors of one call and what a fault maps beyond each.
    assert watch.peak_bytes <= 8 * MIB


def test_hooks_that_split_tensors_keep_the_limit(large_checkpoint: Path) -> None:
    # All first halves are read, then all second ones.
    model = nn.Module()
    halves = [f"{half}{i}" for half in "ab" for i in range(COUNT)]
    for name in halves:
        model.register_parameter(name, nn.Parameter(torch.zeros(128, 1024)))

    def split(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        for i in range(COUNT):
            parts = entries.pop(f"{prefix}w{i}").chunk(2)
            entries[f"{prefix}a{i}"], entries[f"{prefix}b{i}"] = parts

    model.register_load_state_dict_pre_hook(split)
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, load_flat(large_checkpoint), memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((model.get_parameter(f"b{i}") == i).all() for i in range(COUNT))


def test_views_at_one_address_keep_the_limit(large_checkpoint: Path) -> None:
    model = flat_model()
    state_dict = load_flat(large_checkpoint)
    for i in range(COUNT):
        model.register_parameter(f"v{i}", nn.Parameter(torch.zeros(1)))
        state_dict[f"v{i}"] = state_dict[f"w{i}"][0, :1]
    with PeakWatch(large_checkpoint) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB


@pytest.mark.parametrize(
    "converter",
    [None, lambda _root, _module, x: x.view(2, -1)[1:].repeat(2, 1).view(-1)],
)
def test_views_of_one_storage_keep_the_limit(tmp_path: Path, converter: Any) -> None:
    path = tmp_path / "one_storage.pt"
    flat = torch.arange(16.0).repeat_interleave(MIB // 4)
    torch.save({f"w{i}": part for i, part in enumerate(flat.split(MIB // 4))}, path)
    state_dict = load_mapped(path)
    assert len({t.untyped_storage().data_ptr() for t in state_dict.values()}) == 1
    model = nn.Module()
    for name in state_dict:
        model.register_parameter(name, nn.Parameter(torch.zeros(MIB // 4)))
    with PeakWatch(path) as watch:
        apply_state_dict(model, state_dict, converter, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((model.get_parameter(f"w{i}") == i).all() for i in range(16))


def name_of(i: int) -> str:
    """The name of a parameter; sorted by names, neighbours are none any more."""
    return f"w{i * 37 % 1024:04}"


def save_by_name(path: Path, count: int) -> None:
    """Tensors of 64 KiB, each of its number, in the order of their names."""
    tensors = {name_of(i): torch.full((16384,), float(i)) for i in range(count)}
    if path.suffix == ".safetensors":
        save_file(tensors, path)  # sorts them itself
    else:
        torch.save(dict(sorted(tensors.items())), path)


STATS = r"Module: loaded \d+ bytes, at most (\d+) of the file at once, (\d+) given back"


def model_of(parameters: list[Tensor]) -> nn.Module:
    model = nn.Module()
    for i, value in enumerate(parameters):
        made = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
        model.register_parameter(name_of(i), made)
    return model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_file_in_another_order_than_the_model_is_read_once(
    tmp_path: Path, suffix: str, is_tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"by_name{suffix}"
    save_by_name(path, 1024)
    model = model_of([torch.zeros(16384) for _ in range(1024)])
    entries: Any = path
    if is_tied:  # and given the same, as a state_dict of tied parameters does
        model.register_parameter("tied", model.get_parameter(name_of(5)))
        with open_checkpoint(path) as checkpoint:
            assert isinstance(checkpoint.root, Mapping)
            entries = dict(checkpoint.root)
        entries["tied"] = entries[name_of(5)].detach()
    with caplog.at_level("DEBUG", "ckpt_streamer"):
        apply_state_dict(model, entries, memory_limit_mb=16)
    words = re.fullmatch(STATS, caplog.messages[-1])
    assert words
    peak_bytes, evicted_bytes = map(int, words.groups())
    assert peak_bytes <= 16 * MIB
    # What faults map at the edges of windows is read twice.
    assert evicted_bytes <= 1.2 * path.stat().st_size
    assert all((model.get_parameter(name_of(i)) == i).all() for i in range(1024))


def tied_twice(_state_dict: dict[str, Tensor]) -> list[Tensor]:
    ties = [nn.Parameter(torch.zeros(16384)) for _ in range(128)]
    return [ties[i // 2] for i in range(256)]


def overlapping(_state_dict: dict[str, Tensor]) -> list[Tensor]:
    memory = torch.zeros(128 * 16384 + 64)
    return [memory[16384 * (i // 2) + i % 2 :][:16384] for i in range(256)]


def tied_and_sparse(_state_dict: dict[str, Tensor]) -> list[Tensor]:
    ties = [nn.Parameter(torch.zeros(16384).to_sparse()) for _ in range(128)]
    return [ties[i // 2] for i in range(256)]


def entries_themselves(state_dict: dict[str, Tensor]) -> list[Tensor]:
    return list(state_dict.values())


@pytest.mark.filterwarnings("ignore:.*no pages of a mapped file")  # sparse entries
@pytest.mark.parametrize(
    "make", [tied_twice, overlapping, tied_and_sparse, entries_themselves]
)
def test_what_shares_memory_is_copied_in_torchs_order(
    tmp_path: Path, make: Callable[[dict[str, Tensor]], list[Tensor]]
) -> None:
    path = tmp_path / "by_name.pt"
    save_by_name(path, 256)
    found = []
    for load in (
        lambda model, entries: apply_state_dict(model, entries, memory_limit_mb=4),
        nn.Module.load_state_dict,
    ):
        state_dict = load_mapped(path)
        model = model_of(make(state_dict))
        entries = {name_of(i): state_dict[name_of(i)] for i in range(256)}
        if make is tied_and_sparse:
            entries = {key: entry.to_sparse() for key, entry in entries.items()}
        load(model, entries)
        values = [parameter.to_dense() for parameter in model.parameters()]
        found.append([value[[0, -1]].tolist() for value in values])
    assert found[0] == found[1]


def test_failures_are_told_in_the_order_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "by_name.pt"
    save_by_name(path, 256)
    state_dict = load_mapped(path)
    failing = [3, 100, 201]
    for i in failing:
        state_dict[name_of(i)] = torch.empty(16384, device="meta")
    parameters = [torch.zeros(16384) for _ in range(256)]
    model = model_of(parameters)
    with pytest.raises(RuntimeError) as failure:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    *lines, last = str(failure.value).splitlines()[1:]
    assert [line.split('"')[1] for line in lines] == [name_of(i) for i in failing]
    copied = [i for i in range(256) if i not in failing]
    assert last.split('"')[1::2] == [name_of(i) for i in copied]
    assert all((parameters[i] == i).all() for i in copied)


def test_sparse_tensors_keep_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    size = MIB // 8
    indices = torch.arange(size).unsqueeze(0)
    saved = {
        f"s{i}": torch.sparse_coo_tensor(
            indices.clone(), torch.ones(size), (size,), check_invariants=True
        )
        for i in range(8)
    }
    torch.save(saved, path)
    with torch.sparse.check_sparse_tensor_invariants(True):
        state_dict = load_mapped(path)
    model = nn.Module()
    for name in saved:
        model.register_buffer(name, torch.zeros(size).to_sparse())
    with PeakWatch(path) as watch:
        apply_state_dict(model, state_dict, memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert all((buffer.to_dense() == 1).all() for buffer in model.buffers())


def test_extra_state_is_read_under_the_limit(tmp_path: Path) -> None:
    class Tables(ExtraState):
        def set_extra_state(self, state: Any) -> None:
            self.extra = [float(table.sum()) for table in state["tables"]]

    path = tmp_path / "extra.pt"
    tables = [torch.full((MIB // 4,), float(i)) for i in range(16)]
    torch.save({"weight": torch.ones(2), "_extra_state": {"tables": tables}}, path)
    model = Tables()
    with PeakWatch(path) as watch:
        apply_state_dict(model, load_mapped(path), memory_limit_mb=4)
    assert watch.peak_bytes <= 4 * MIB
    assert model.extra == [i * MIB / 4 for i in range(16)]


@pytest.mark.parametrize("converter", [None, identity])
def test_writes_to_the_state_dict_are_kept(
    large_checkpoint: Path, converter: Any
) -> None:
    state_dict = load_flat(large_checkpoint)
    state_dict["w5"][7, 9] = 123.0
    state_dict["w15"].fill_(-1.0)
    model = flat_model()

    def write(_module: nn.Module, entries: Any, *_: Any) -> None:
        entries["w10"].add_(1000.0)

    model.register_load_state_dict_pre_hook(write)
    apply_state_dict(model, state_dict, converter, memory_limit_mb=2)
    assert model.get_parameter("w5")[7, 9] == state_dict["w5"][7, 9] == 123
    assert state_dict["w5"].sum() == 123 + 5 * (256 * 1024 - 1)
    assert (model.get_parameter("w15") == -1).all()
    assert (state_dict["w15"] == -1).all()
    assert (model.get_parameter("w10") == 1010).all()
    assert (state_dict["w10"] == 1010).all()
    assert (state_dict["w11"] == 11).all()
    assert resident_of(large_checkpoint).written_bytes >= 2 * MIB


def test_a_refused_state_dict_is_not_read(large_checkpoint: Path) -> None:
    state_dict = load_flat(large_checkpoint)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        apply_state_dict(flat_model(), {**state_dict, "more": torch.ones(1)})
    assert resident_of(large_checkpoint).clean_bytes == 0


def no_hook(*_: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("way", "dtype", "limit_mb"),
    [
        ("plain", torch.float32, 4),
        ("plain", torch.bfloat16, 32),  # a file of 512 MiB
        ("hook", torch.bfloat16, 4),
        ("converter", torch.bfloat16, 4),
        ("one of many", torch.bfloat16, 4),
        ("column", torch.float32, 4),  # few elements, in all of its pages
        ("column with a hook", torch.bfloat16, 4),
    ],
)
def test_a_tensor_of_sixteen_limits_keeps_the_limit(
    way: str, dtype: torch.dtype, limit_mb: int, tmp_path: Path
) -> None:
    path = tmp_path / "large.pt"
    size = 16 * limit_mb * MIB // 4
    state_dict: dict[str, Tensor] = {"weight": torch.ones(size)}
    if way == "one of many":
        state_dict["bias"] = torch.ones(MIB)
    if "column" in way:
        state_dict["weight"] = state_dict["weight"].view(-1, 1024)[:, 0]
    torch.save(state_dict, path)
    model = nn.Module()
    for name, tensor in state_dict.items():
        model.register_parameter(name, nn.Parameter(torch.zeros_like(tensor).to(dtype)))
    state_dict = load_mapped(path)
    if "hook" in way:
        model.register_load_state_dict_pre_hook(no_hook)
    converter = identity if way == "converter" else None

    def load() -> None:
        apply_state_dict(model, state_dict, converter, memory_limit_mb=limit_mb)

    load()  # threads, their stacks and all code are there
    for parameter in model.parameters():
        parameter.detach().zero_()
    file_bytes, anonymous_bytes = peaks_of(load)
    assert file_bytes <= limit_mb * MIB
    assert anonymous_bytes <= MIB
    assert resident_of(path).clean_bytes == 0
    assert all((parameter == 1).all() for parameter in model.parameters())


def test_a_model_is_loaded_within_the_limit_in_another_dtype(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    saved = {f"{i}.weight": torch.full((1024, 2048), float(i)) for i in range(64)}
    torch.save(saved, path)  # 512 MiB
    del saved
    model = nn.Sequential(
        *(nn.Linear(2048, 1024, bias=False, dtype=torch.bfloat16) for _ in range(64))
    )
    state_dict = load_mapped(path)

    def load() -> None:
        apply_state_dict(model, state_dict, memory_limit_mb=32)

    load()
    file_bytes, anonymous_bytes = peaks_of(load)
    assert file_bytes <= 32 * MIB
    assert anonymous_bytes <= MIB
    assert resident_of(path).clean_bytes == 0
    for i, parameter in enumerate(model.parameters()):
        assert (parameter == i).all()


class LetGoCheck:
    """A converter that counts how many converted tensors are alive at once."""

    def __init__(self) -> None:
        self.results: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def __call__(self, _root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        result = tensor.clone()
        self.results.append(weakref.ref(result))
        alive = sum(1 for each in self.results if each() is not None)
        self.most_alive = max(self.most_alive, alive)
        return result


# A hook has PyTorch's code load a module: it lets go of one tensor when it has the
# next.
@pytest.mark.parametrize(("has_hook", "most_alive"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("is_flat", [False, True])
def test_a_converted_tensor_lives_no_longer_than_its_load(
    large_checkpoint: Path, is_flat: bool, has_hook: bool, most_alive: int
) -> None:
    state_dict = (load_flat if is_flat else load_grouped)(large_checkpoint)
    model = flat_model() if is_flat else grouped_model()
    if has_hook:
        for module in model.modules():
            module.register_load_state_dict_pre_hook(no_hook)
    check = LetGoCheck()
    gc.disable()  # by reference counting alone
    try:
        apply_state_dict(model, state_dict, check)
    finally:
        gc.enable()
    assert len(check.results) == COUNT
    assert check.most_alive == most_alive
    assert all(each() is None for each in check.results)


def test_what_is_assigned_replaces_the_old_at_once() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    old = [weakref.ref(parameter) for parameter in model.parameters()]
    alive: list[int] = []

    def count(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        alive.append(sum(1 for each in old if each() is not None))
        return tensor.clone()

    gc.disable()
    try:
        apply_state_dict(model, model.state_dict(), count, assign=True)
    finally:
        gc.enable()
    assert alive == list(range(16, 0, -1))


def test_assigned_views_of_the_file_stay_valid(large_checkpoint: Path) -> None:
    state_dict = load_flat(large_checkpoint)
    model = flat_model()
    apply_state_dict(model, state_dict, assign=True, memory_limit_mb=8)
    assert resident_of(large_checkpoint).clean_bytes == 0
    for i in range(COUNT):
        weight = model.get_parameter(f"w{i}")
        assert weight.data_ptr() == state_dict[f"w{i}"].data_ptr()
        assert (weight == i).all()


def fail_always(*_: Any) -> Any:
    raise KeyError("on purpose")


@pytest.mark.parametrize("where", ["pre hook", "post hook", "override", "converter"])
def test_exceptions_leave_no_hooks_and_no_pages(
    where: str, large_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dict = load_grouped(large_checkpoint)
    model = grouped_model()
    converter = fail_after(10) if where == "converter" else identity
    if where == "pre hook":
        model[3].register_load_state_dict_pre_hook(fail_always)
    elif where == "post hook":
        model[3].register_load_state_dict_post_hook(fail_always)
    elif where == "override":
        monkeypatch.setattr(model[3], "_load_from_state_dict", fail_always)
    before = hook_counts(model)
    with pytest.raises(KeyError, match="on purpose"):
        apply_state_dict(model, state_dict, converter, memory_limit_mb=8)
    assert hook_counts(model) == before
    assert resident_of(large_checkpoint).clean_bytes == 0
    assert "_load_from_state_dict" not in vars(model[2])
    loaded = bool((model.get_parameter("2.w3") == 11).all())
    assert loaded == (where != "converter")
    assert torch.overrides._get_current_function_mode() is None
