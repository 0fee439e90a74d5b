"""Pickles that run code in Python's pickle run nothing here."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest

from hostile.child import open_in_child, run_in_child
from hostile.files import HERE, checkpoint
from hostile.malicious_pickles import TRICKS, Trick


class Lenient(pickle.Unpickler):
    """Python's own, with any storage for the tensor."""

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return lambda *args: args
        return super().find_class(module, name)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda each: each.__name__)
def test_nothing_runs(tmp_path: Path, trick: Trick) -> None:
    canary = tmp_path / "canary"
    value = trick(f"touch {shlex.quote(str(canary))}")
    data, _ = checkpoint(value)
    path = tmp_path / "malicious.pt"
    path.write_bytes(data)
    outcome = open_in_child(path)
    assert (outcome.error, outcome.message) == (None, "")
    assert (outcome.names, outcome.count) == (["w"], 1)
    assert not canary.exists()

    # The trick is one: pickle runs it.
    program = value if value.startswith(b"\x80") else b"\x80\x02" + value + b"."
    source = tmp_path / "program.pkl"
    source.write_bytes(program.replace(HERE, b""))

    def unpickle() -> None:
        with source.open("rb") as file:
            Lenient(file).load()

    run_in_child(unpickle)
    assert canary.exists()
