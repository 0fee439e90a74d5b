"""apply_state_dict(assign=True): the file's pages, or copies of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from load_outcomes import identity
from mapped_checkpoints import MIB, load_mapped, resident_of
from memory_peaks import peaks_of
from random_models import VALUES
from test_apply_memory import no_hook
from test_apply_twins import value_of
from torch import Tensor, nn

from ckpt_streamer import apply_state_dict
from ckpt_streamer._arguments import Bounds
from ckpt_streamer._reads import EvictingReads

COUNT = 64


def meta_model() -> nn.Module:
    with torch.device("meta"):
        layers = [nn.Linear(1024, 256, bias=False) for _ in range(COUNT)]
        return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def layers_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 1 MiB each, all elements of the i-th being i."""
    path = tmp_path_factory.mktemp("layers") / "layers.pt"
    shape = (256, 1024)
    layers = {f"{i}.weight": torch.full(shape, float(i)) for i in range(COUNT)}
    torch.save({"state_dict": layers, "epoch": 1}, path)
    return path


def layers_of(path: Path) -> dict[str, Tensor]:
    loaded: dict[str, Any] = load_mapped(path)
    layers: dict[str, Tensor] = loaded["state_dict"]
    return layers


# The file's own pages


@pytest.mark.parametrize("has_hook", [False, True])
def test_a_meta_model_is_loaded_from_a_path_without_a_copy(
    layers_path: Path, has_hook: bool
) -> None:
    model = meta_model()
    if has_hook:
        model.register_load_state_dict_pre_hook(no_hook)
    keys = apply_state_dict(model, layers_path, assign=True, memory_limit_mb=4)
    assert not keys.missing_keys
    assert resident_of(layers_path).clean_bytes == 0
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert_layers(model, torch.float32)
    # It is read where it lies, and counts against no limit.
    assert resident_of(layers_path).clean_bytes >= COUNT * MIB
    weight = model.get_parameter("3.weight")
    assert weight.requires_grad
    with torch.no_grad():
        weight.add_(1)
    assert (weight == 4).all()
    assert (layers_of(layers_path)["3.weight"] == 3).all()


def assert_layers(model: nn.Module, dtype: torch.dtype) -> None:
    for i, parameter in enumerate(model.parameters()):
        assert parameter.dtype == dtype
        assert (parameter == i).all()


# Copies


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("has_hook", [False, True])
def test_copies_take_the_memory_of_the_parameters(
    layers_path: Path, has_hook: bool, dtype: torch.dtype | None
) -> None:
    models: list[nn.Module] = []

    def load() -> None:
        model = meta_model()
        if has_hook:
            model.register_load_state_dict_pre_hook(no_hook)
        options: Any = {"copy": True, "dtype": dtype}
        apply_state_dict(model, layers_path, assign=True, memory_limit_mb=8, **options)
        models.append(model)

    load()
    models.clear()
    file_bytes, anonymous_bytes = peaks_of(load)
    [model] = models
    final_bytes = sum(parameter.nbytes for parameter in model.parameters())
    assert final_bytes == COUNT * 256 * 1024 * (dtype or torch.float32).itemsize
    # Whatever else of libraries is touched meanwhile counts as well.
    assert file_bytes <= 8 * MIB + MIB // 2
    assert anonymous_bytes <= final_bytes + 8 * MIB
    assert_layers(model, dtype or torch.float32)
    assert resident_of(layers_path).clean_bytes == 0


def test_a_tensor_of_sixteen_limits_is_copied_within_it(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    torch.save({"weight": torch.ones(16 * MIB)}, path)
    models: list[nn.Module] = []

    def load() -> None:
        parameter = nn.Parameter(torch.ones(16 * MIB, device="meta"))
        models[:] = [nn.Module()]
        models[0].register_parameter("weight", parameter)
        apply_state_dict(
            *(models[0], path), assign=True, dtype=torch.half, memory_limit_mb=4
        )

    load()
    models.clear()
    file_bytes, anonymous_bytes = peaks_of(load)
    weight = models[0].get_parameter("weight")
    assert weight.dtype == torch.half
    assert (weight == 1).all()
    assert file_bytes <= 4 * MIB + MIB // 2
    assert anonymous_bytes <= weight.nbytes + 8 * MIB
    assert resident_of(path).clean_bytes == 0


def test_copies_to_a_device_go_in_pieces() -> None:
    source, limit_bytes = torch.arange(1000.0), 1024
    seen: list[int] = []

    class OfADevice(Tensor):
        """Says that it is elsewhere."""

        device = torch.device("meta")

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.__name__ == "copy_":
                seen.append(args[1].numel())
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    destination = torch.zeros(1000).as_subclass(OfADevice)
    with EvictingReads({"source": source}, Bounds(limit_bytes)) as reads:
        reads.copy(destination, source)
    assert torch.equal(destination.as_subclass(Tensor), source)
    assert seen == [128] * 7 + [104]


def test_copies_of_one_tensor_are_one(tmp_path: Path) -> None:
    path = tmp_path / "tied.pt"
    weight = torch.arange(4.0).view(2, 2)
    saved = {
        "0.weight": weight,
        "0.bias": torch.ones(2),
        "1.weight": weight.view(2, 2),
        "1.bias": weight[1],
        "2.weight": weight.t(),
        "2.bias": torch.ones(2),
        "steps": torch.tensor(3),
    }
    torch.save(saved, path)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        model.register_buffer("steps", torch.tensor(0))
    apply_state_dict(model, path, assign=True, dtype=torch.half)
    one, other, turned = (model.get_parameter(f"{i}.weight") for i in range(3))
    assert one.data_ptr() == other.data_ptr()
    assert one.untyped_storage().nbytes() == 4 * 2
    for key, value in saved.items():
        mine = model.state_dict()[key]
        assert torch.equal(mine, value.to(mine.dtype))
    assert turned.dtype == torch.half
    assert model.get_buffer("steps").dtype == torch.int64


def test_what_a_hook_makes_in_one_place_is_not_taken_for_one() -> None:
    """The memory of what is let go of is used again for the next."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))

    def make(_module: nn.Module, entries: Any, prefix: str, *_: Any) -> None:
        key = prefix + "weight"
        entries[key] = entries[key] * 2

    for layer in model:
        layer.register_load_state_dict_pre_hook(make)
    state_dict = {f"{i}.weight": torch.full((64, 64), float(i)) for i in range(8)}
    apply_state_dict(model, state_dict, assign=True, copy=True)
    for i, parameter in enumerate(model.parameters()):
        assert (parameter == 2 * i).all()


def test_what_is_written_between_two_copies_is_in_the_second() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(2)))
    weight = torch.zeros(2, 2)

    def add(*_: Any) -> None:
        weight.add_(1)

    for layer in model:
        layer.register_load_state_dict_pre_hook(add)
    state_dict = {"0.weight": weight, "1.weight": weight}
    apply_state_dict(model, state_dict, assign=True, copy=True)
    assert [int(parameter[0, 0]) for parameter in model.parameters()] == [1, 2]


def test_what_a_converter_made_is_not_copied_again() -> None:
    model = nn.Linear(2, 2)
    made: list[Tensor] = []

    def double(_root: nn.Module, _module: nn.Module, tensor: Tensor) -> Tensor:
        made.append(tensor * 2)
        return made[-1]

    state_dict = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    apply_state_dict(model, state_dict, double, assign=True, copy=True)
    assert model.weight.data_ptr() == made[0].data_ptr()
    apply_state_dict(model, state_dict, double, assign=True, dtype=torch.half)
    assert model.weight.dtype == torch.half
    assert (model.weight == 2).all()
    apply_state_dict(model, state_dict, identity, assign=True, copy=True)
    assert model.weight.data_ptr() != state_dict["weight"].data_ptr()
    with pytest.raises(RuntimeError, match=r"expected torch\.Tensor"):
        apply_state_dict(model, state_dict, lambda *_: None, assign=True, copy=True)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("kind", sorted(VALUES))
@pytest.mark.parametrize("dtype", [None, torch.half], ids=str)
def test_copies_are_what_is_assigned_without_them(
    kind: str, dtype: torch.dtype | None
) -> None:
    def loaded(value: Any, **options: Any) -> Any:
        model = nn.Linear(2, 2, bias=False).requires_grad_(False)
        model.register_buffer("steps", torch.zeros(2))
        state_dict = {"weight": value, "steps": torch.ones(2)}
        try:
            apply_state_dict(model, state_dict, assign=True, strict=False, **options)
        except RuntimeError as error:
            return str(error)
        return model

    value = VALUES[kind]()
    model = loaded(value, copy=True, dtype=dtype)
    if isinstance(model, str):
        assert model == loaded(value)
        return
    expected = value
    if dtype is not None and value.is_floating_point():
        with torch.no_grad():
            expected = value.to(dtype)
    twin = loaded(expected)
    assert value_of(model.weight) == value_of(twin.weight)
    assert model.steps.dtype == (dtype or torch.float32)
    if value.layout is torch.strided and value.data_ptr():
        assert model.weight.data_ptr() != value.data_ptr()
        # Of its own, without what a view does not show.
        assert model.weight.untyped_storage().nbytes() == model.weight.nbytes


def test_copies_check_shapes_first_and_go_to_a_device() -> None:
    model = nn.Linear(2, 2)
    state_dict = {"weight": torch.ones(2, 2), "bias": torch.ones(3)}
    with pytest.raises(RuntimeError, match="size mismatch for bias") as caught:
        apply_state_dict(model, state_dict, assign=True, device="meta")
    assert "Changed" not in str(caught.value)
    state_dict["bias"] = torch.ones(2)
    apply_state_dict(model, state_dict, assign=True, device="meta")
    assert model.weight.is_meta


@pytest.mark.parametrize(
    "options", [{"copy": True}, {"dtype": torch.half}, {"device": "cpu"}]
)
def test_copies_are_for_assign(options: Any) -> None:
    with pytest.raises(ValueError, match="for assign") as caught:
        apply_state_dict(nn.Linear(1, 1), {}, **options)
    assert str(caught.value) == (
        "copy, dtype and device are for assign=True; without it, the values are "
        "copied into the model's own parameters"
    )


@pytest.mark.parametrize(
    ("dtype", "error", "text"),
    [
        (
            "half",
            TypeError,
            "dtype is 'half' (str), expected None or a floating-point torch.dtype",
        ),
        (
            torch.int8,
            ValueError,
            "dtype is torch.int8, expected a floating-point dtype",
        ),
    ],
)
def test_bad_dtype(dtype: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        apply_state_dict(nn.Linear(1, 1), {}, assign=True, dtype=dtype)
    assert str(caught.value) == text
