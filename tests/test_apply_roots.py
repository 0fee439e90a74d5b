"""apply_state_dict() from a file that holds more than one model's entries."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from load_outcomes import assert_same_state, call_count, outcome_of, shifted, torch_load
from torch import nn

import ckpt_streamer
from ckpt_streamer import apply_state_dict
from ckpt_streamer._matches import ASSIGN


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


STATE = shifted(make_model().state_dict())
OTHER = shifted(STATE)
FEW = {"0.weight": torch.full((3, 2), 7.0)}
# Moments of each parameter, as Adam keeps them, by its number.
OPTIMIZER = {
    "state": {
        i: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 2), "weight": FEW}
        for i in range(4)
    },
    "param_groups": [{"lr": 0.1, "params": [0, 1, 2, 3]}],
}


def prefixed(prefix: str, state_dict: Any = STATE) -> OrderedDict[str, Any]:
    return OrderedDict((prefix + key, value) for key, value in state_dict.items())


def load(tree: Any, folder: Path, **options: Any) -> nn.Module:
    model = make_model()
    torch.save(tree, folder / "file.pt")
    apply_state_dict(model, folder / "file.pt", **options)
    return model


def assert_loaded(model: nn.Module, state_dict: Any = STATE) -> None:
    expected = make_model()
    expected.load_state_dict(state_dict)
    assert_same_state(model, expected)


@pytest.mark.parametrize(
    ("tree", "root"),
    [
        (
            {
                "epoch": 3,
                "state_dict": STATE,
                "optimizer_states": [OPTIMIZER],
                "lr_schedulers": [],
                "hyper_parameters": {"width": 3},
            },
            "state_dict",
        ),
        ({"ema": FEW, "model": STATE}, "model"),
        ({"model": STATE, "ema": {**prefixed("module."), **FEW}}, "model"),
        (
            {"train": {"step": 5, "nets": {"net": STATE, "other": FEW}}},
            "train.nets.net",
        ),
        ({"models": [FEW, {"net": STATE}]}, "models.1.net"),
        ([OPTIMIZER, STATE], "1"),
        ({"a.b": {"c.d": STATE}, "a": FEW}, "a.b.c.d"),
        # Some keys at the top, more below.
        ({**FEW, "rest": STATE}, "rest"),
    ],
)
def test_the_mapping_with_the_most_keys_is_taken(
    tree: Any, root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckpt_streamer")
    assert_loaded(load(tree, tmp_path))
    [record] = caplog.records
    assert record.name == "ckpt_streamer"
    assert record.getMessage() == (
        f"{tmp_path / 'file.pt'}: taking the entries from root={root!r}, which has 7 "
        "of the model's 7 keys"
    )
    assert_loaded(load(tree, tmp_path, root=root))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "tree",
    [
        STATE,
        {**STATE, "ema": OTHER},
        # As many at the top as below.
        {**FEW, "below": {**FEW, "0.bias": 1}},
    ],
)
def test_the_top_goes_before_what_has_no_more(
    tree: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckpt_streamer")
    model = load(tree, tmp_path, strict=False)
    expected = make_model()
    expected.load_state_dict(tree, strict=False)
    assert_same_state(model, expected)
    assert not caplog.records


def test_a_tie_is_an_error(tmp_path: Path) -> None:
    tree = {"step": 5, "model": STATE, "ema": OTHER, "few": FEW, "nets": [OTHER]}
    with pytest.raises(ValueError, match="each have") as caught:
        load(tree, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'file.pt'}: 'ema' and 'model' each have 7 of the model's 7 keys, "
        "expected one mapping that has the most; say which by root="
    )
    tree["nets"] = [copy.deepcopy(OTHER)]
    with pytest.raises(ValueError, match=r"'ema', 'model' and 'nets\.0' each have"):
        load(tree, tmp_path)
    assert_loaded(load(tree, tmp_path, root="ema"), OTHER)


def test_one_mapping_under_two_keys_is_no_tie(tmp_path: Path) -> None:
    assert_loaded(load({"model": STATE, "best": STATE}, tmp_path))


@pytest.mark.parametrize("tree", [{"x": {"y": torch.ones(1)}}, {"x": {}}, {}])
def test_nothing_that_matches_is_torchs_error_about_the_top(
    tree: Any, tmp_path: Path
) -> None:
    torch.save(tree, tmp_path / "file.pt")
    ours = outcome_of(apply_state_dict, make_model(), tmp_path / "file.pt")
    assert ours.error is RuntimeError
    assert ours == outcome_of(torch_load, make_model(), tree)


def test_an_empty_root_is_the_top(tmp_path: Path) -> None:
    tree = {"state_dict": STATE}
    torch.save(tree, tmp_path / "file.pt")
    ours = outcome_of(apply_state_dict, make_model(), tmp_path / "file.pt", root="")
    assert ours == outcome_of(torch_load, make_model(), tree)


def test_a_state_dict_in_memory_is_taken_as_it_is() -> None:
    tree = {"state_dict": STATE}
    ours = outcome_of(apply_state_dict, make_model(), tree)
    assert ours.error is RuntimeError
    assert ours == outcome_of(torch_load, make_model(), tree)


def test_of_a_checkpoint_and_of_a_part_of_one(tmp_path: Path) -> None:
    torch.save({"nets": {"net": STATE}}, tmp_path / "file.pt")
    with ckpt_streamer.open(tmp_path / "file.pt") as checkpoint:
        model = make_model()
        apply_state_dict(model, checkpoint)
        assert_loaded(model)
        model = make_model()
        apply_state_dict(model, checkpoint["nets"]["net"])
        assert_loaded(model)
        # A part is what was chosen already.
        with pytest.raises(RuntimeError, match="Missing key"):
            apply_state_dict(model, checkpoint["nets"])


def test_renamed_keys_are_those_that_count(tmp_path: Path) -> None:
    parallel = prefixed("module.")
    tree = {"model": parallel, "ema": {**FEW, "0.bias": torch.ones(3)}}
    assert_loaded(load(tree, tmp_path, prefix="module."))
    tree = {"net": {"first.weight": STATE["0.weight"]}, "few": {"a.b": torch.ones(1)}}
    model = load(tree, tmp_path, key_map={"first.weight": "0.weight"}, strict=False)
    assert torch.equal(model.get_parameter("0.weight"), STATE["0.weight"])
    names = {f"net.{key}": key for key in STATE}
    tree = {"optimizer": OPTIMIZER, "model": prefixed("module.net.")}
    # It fails on all other keys.
    model = load(tree, tmp_path, prefix="module.", key_map=lambda key: names[key])
    assert_loaded(model)


def test_metadata_of_the_mapping_come_along(tmp_path: Path) -> None:
    old = shifted(STATE)
    del old["1.num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        load({"state_dict": old, "epoch": 1}, tmp_path)
    old._metadata["1"]["version"] = 1  # type: ignore[attr-defined]
    load({"state_dict": old, "epoch": 1}, tmp_path)


class OfModules(nn.Module):
    """Pickled as an object, whose mappings have a Linear's keys."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)


def test_mappings_inside_objects_do_not_count(tmp_path: Path) -> None:
    state_dict = {"weight": torch.full((3, 2), 4.0)}
    torch.save({"whole": OfModules(), "net": state_dict}, tmp_path / "file.pt")
    model = nn.Linear(2, 3, bias=False)
    apply_state_dict(model, tmp_path / "file.pt")
    assert (model.weight == 4).all()


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        (torch.ones(2), "one tensor"),
        (nn.Linear(2, 3), "<opaque torch.nn.modules.linear.Linear object>"),
        (5, "5"),
    ],
    ids=["tensor", "module", "int"],
)
def test_a_file_that_holds_no_mapping(tree: Any, what: str, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "file.pt")
    for root in (None, "state_dict"):
        with pytest.raises(TypeError) as caught:
            apply_state_dict(make_model(), tmp_path / "file.pt", root=root)
        assert str(caught.value) == (
            f"{tmp_path / 'file.pt'}: holds {what}, expected a mapping of names to "
            "tensors, as a model's state_dict() is"
        )


def test_a_list_without_a_mapping_that_matches(tmp_path: Path) -> None:
    torch.save([{"x": torch.ones(1)}], tmp_path / "file.pt")
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like, got"):
        apply_state_dict(make_model(), tmp_path / "file.pt")


def test_a_model_without_keys_takes_the_top(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "file.pt")
    with pytest.raises(RuntimeError, match=r'Unexpected key.*: "model"'):
        apply_state_dict(nn.ReLU(), tmp_path / "file.pt")


def test_other_mappings_cost_no_call_for_each_key(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(512)))
    layers = model.state_dict()
    fewer = {key: layers[key] for key in list(layers)[1:]}

    def calls_with(other_count: int) -> int:
        others = {f"other{i}": dict(fewer) for i in range(other_count)}
        torch.save({**others, "net": layers}, tmp_path / "file.pt")
        return call_count(lambda: apply_state_dict(model, tmp_path / "file.pt"))

    assert calls_with(17) <= calls_with(1) + 16 * 64


# What a file says of its modules, which is made only where PyTorch asks for it


class Asking(nn.Sequential):
    """Looks at the metadata of all, as an override may."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any
    ) -> None:
        self.seen = (state_dict._metadata, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_an_override_sees_the_metadata_of_the_file(tmp_path: Path) -> None:
    model = Asking(*make_model().children())
    torch.save(STATE, tmp_path / "file.pt")
    apply_state_dict(model, tmp_path / "file.pt")
    of_all, of_it = model.seen
    assert dict(of_all) == dict(STATE._metadata)  # type: ignore[attr-defined]
    assert of_it is of_all[""]
    assert_loaded(model)


def noted(note: Any) -> OrderedDict[str, Any]:
    """A state_dict whose metadata hold something else for a module."""
    result = shifted(STATE)
    result._metadata["1"] = note  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize(
    "note",
    [{"version": 2, ASSIGN: True}, {ASSIGN: False}, {"version": 1}, 5, None, [ASSIGN]],
    ids=str,
)
def test_metadata_that_decide_how_a_module_is_loaded(note: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(noted(note), path)
    ours, twin = make_model(), make_model()
    before = [id(parameter) for parameter in (*ours.parameters(), *ours.buffers())]
    outcome = outcome_of(apply_state_dict, ours, path)
    assert outcome == outcome_of(torch_load, twin, noted(note))
    if outcome.error is not None:  # with torch, in the midst of the load
        assert_same_state(ours, make_model())
        return
    assert_same_state(ours, twin)
    after = [id(parameter) for parameter in (*ours.parameters(), *ours.buffers())]
    is_assigned = isinstance(note, dict) and note.get(ASSIGN, False)
    assert (before != after) == is_assigned


@pytest.mark.parametrize("metadata", [5, {"0": 5}, [1], ()], ids=str)
def test_metadata_of_another_form(metadata: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    entries = shifted(STATE)
    entries._metadata = metadata  # type: ignore[attr-defined]
    torch.save(entries, path)
    ours, twin = make_model(), make_model()
    outcome = outcome_of(apply_state_dict, ours, path)
    assert outcome == outcome_of(torch_load, twin, entries)
