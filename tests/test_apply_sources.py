"""apply_state_dict(): where the entries are, and by which names."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from load_outcomes import assert_same_state, shifted
from torch import nn

from ckpt_streamer import apply_state_dict


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def assert_loaded(model: nn.Module, state_dict: Any) -> None:
    expected = make_model()
    expected.load_state_dict(state_dict)
    assert_same_state(model, expected)


STATE = shifted(make_model().state_dict())


def with_prefix(prefix: str) -> OrderedDict[str, Any]:
    """The entries as those of a larger model."""
    result = OrderedDict((prefix + key, value) for key, value in STATE.items())
    metadata = {
        (prefix + name).rstrip("."): each
        for name, each in STATE._metadata.items()  # type: ignore[attr-defined]
    }
    result._metadata = metadata  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize(
    ("root", "tree"),
    [
        ("state_dict", {"state_dict": STATE, "epoch": 3}),
        ("model.ema", {"model": {"ema": STATE, "other": {}}}),
        ("model.ema", {"model.ema": STATE, "model": {"ema": {}}}),
        ("models.1.net", {"models": [{}, {"net": STATE}]}),
    ],
)
def test_root(root: str, tree: dict[str, Any]) -> None:
    model = make_model()
    apply_state_dict(model, tree, root=root)
    assert_loaded(model, STATE)


def test_root_of_a_file(tmp_path: Path) -> None:
    model = make_model()
    torch.save({"model": {"net": with_prefix("module.")}}, tmp_path / "net.pt")
    apply_state_dict(model, tmp_path / "net.pt", root="model.net", prefix="module.")
    assert_loaded(model, STATE)


def test_a_root_that_is_not_there() -> None:
    tree = {"model": {f"k{i}": i for i in range(10)}, "list": [1, 2]}
    for root, error, text in (
        ("net", KeyError, "root is 'net', and 'net' is none of 'model', 'list'"),
        (
            "model.net",
            KeyError,
            "root is 'model.net', and 'net' is none of 'k0', 'k1', 'k2', 'k3', 'k4', "
            "'k5', 'k6', 'k7' and 2 more",
        ),
        ("list.2", KeyError, "root is 'list.2', and '2' is none of 0, 1"),
        ("model.k1.x", KeyError, "root is 'model.k1.x', and 'x' is none of no keys"),
        ("model.k1", TypeError, "root is 'model.k1', of type int, expected a mapping"),
    ):
        with pytest.raises(error) as caught:
            apply_state_dict(make_model(), tree, root=root)
        assert caught.value.args == (text,)


def test_prefix_is_cut_off_and_the_rest_left_out() -> None:
    model = make_model()
    entries = with_prefix("module.")
    entries["optimizer"] = torch.ones(1)
    apply_state_dict(model, entries, prefix="module.")
    assert_loaded(model, STATE)


@pytest.mark.parametrize("is_function", [False, True])
def test_key_map(is_function: bool) -> None:
    names = {"weight": "0.weight", "b": "0.bias", "stray": None}
    entries = OrderedDict(
        weight=STATE["0.weight"],
        stray=torch.ones(1),
        b=STATE["0.bias"],
    )
    entries |= {key: value for key, value in STATE.items() if key.startswith("1.")}
    key_map = (lambda key: names.get(key, key)) if is_function else names
    model = make_model()
    apply_state_dict(model, entries, key_map=key_map)
    assert_loaded(model, STATE)


def test_prefix_comes_before_key_map_and_root_before_both() -> None:
    model = make_model()
    tree = {"net": with_prefix("module.")}
    seen = []

    def key_map(key: str) -> str:
        seen.append(key)
        return key

    apply_state_dict(model, tree, root="net", prefix="module.", key_map=key_map)
    assert_loaded(model, STATE)
    assert seen == list(STATE)


def test_metadata_are_renamed() -> None:
    # Batch norm asks for num_batches_tracked from version 2 on.
    entries = with_prefix("module.")
    del entries["module.1.num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        apply_state_dict(make_model(), entries, prefix="module.")
    entries._metadata["module.1"]["version"] = 1  # type: ignore[attr-defined]
    apply_state_dict(make_model(), entries, prefix="module.")


def test_two_keys_that_become_one() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="are both") as caught:
        apply_state_dict(model, STATE, key_map={"0.bias": "0.weight"})
    text = "'0.weight' and '0.bias' are both renamed to '0.weight'"
    assert str(caught.value) == text
    assert_same_state(model, make_model())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prefix": 5}, "prefix is 5, expected a str"),
        ({"key_map": 5}, "key_map is 5, expected a mapping of keys or a function"),
        (
            {"key_map": lambda _key: 7},
            "key_map renames '0.weight' to 7 (int), expected a str, or None to leave "
            "it out",
        ),
    ],
)
def test_bad_names(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        apply_state_dict(make_model(), STATE, **options)
    assert str(caught.value) == text
