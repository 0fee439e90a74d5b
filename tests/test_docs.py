"""The reference documentation is built without warnings, and no public name lacks."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cpp_programs import ROOT, exported_functions
from sphinx.util.inventory import InventoryFile

import ckpt_streamer

# For the package's own use, or what itertools.chain has.
NOT_PUBLIC = {
    *("Checkpoint.slots", "Checkpoint.tree"),
    *("OpaqueObject.node", "OpaqueObject.tree"),
    *("Stream.from_iterable", "Stream.of"),
}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The Python names that the documentation describes."""
    folder = tmp_path_factory.mktemp("docs")
    built = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going"),
            *("-d", folder / "doctrees", ROOT / "docs", folder / "html"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    inventory = InventoryFile.loads((folder / "html/objects.inv").read_bytes(), uri="")
    return {name for names in inventory.data.values() for name in names}


def members_of(cls: type) -> Iterator[str]:
    fields = getattr(cls, "__dataclass_fields__", {})
    for name in {*dir(cls), *fields}:
        if name[0] != "_" and f"{cls.__name__}.{name}" not in NOT_PUBLIC:
            yield name


def test_every_python_name_is_described(described: set[str]) -> None:
    names = {f"ckpt_streamer.{name}" for name in ckpt_streamer.__all__}
    for name in ckpt_streamer.__all__:
        if inspect.isclass(cls := getattr(ckpt_streamer, name)):
            names |= {f"ckpt_streamer.{name}.{member}" for member in members_of(cls)}
    assert names - described == set()


def test_every_op_and_method_is_described(described: set[str], tmp_path: Path) -> None:
    ops = torch.ops.ckpt_streamer
    names = {
        "ckpt_streamer.Ops." + schema.name.removeprefix("ckpt_streamer::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("ckpt_streamer::")
    }
    tensors = {"a": torch.ones(1)}
    for prefix, handle in (
        ("ckpt_streamer.StreamHandle.", ops.stream(tensors, 1)),
        (
            "ckpt_streamer._op_types.CheckpointWriter.",
            ops.create(str(tmp_path / "a.pt"), tensors, 1),
        ),
    ):
        names |= {prefix + name for name in handle._method_names()}
    public = {
        name
        for name in names
        if not name.rpartition(".")[2].startswith("_") or name.endswith(".__len__")
    }
    assert len(public) > 20
    assert public - described == set()


# Types and constants; functions are seen in the library.
CPP_NAMES = re.compile(
    r"^(?:struct|class) (?:CKPT_STREAMER_API )?([\w:]+)(?= \{)"
    r"|^inline constexpr \w+ (\w+)",
    re.MULTILINE,
)


def test_every_cpp_name_is_described() -> None:
    [folder] = ckpt_streamer.include_paths()
    headers = {path.name: path for path in Path(folder).glob("ckpt_streamer/*.h")}
    for internal in ("export.h", "torch_version.h"):
        del headers[internal]
    chapter = (ROOT / "docs/cpp.md").read_text()
    names = set()
    for name, header in headers.items():
        source = f"../ckpt_streamer/include/ckpt_streamer/{name}"
        assert f"{{literalinclude}} {source}\n" in chapter
        names |= {a or b for a, b in CPP_NAMES.findall(header.read_text())}
    assert {"Stream", "Stream::Iterator", "kDefaultMemoryLimitBytes"} <= names
    for symbol in exported_functions():
        *_, cls, name = symbol.split("::")
        if name not in {cls, f"~{cls}", "operator="}:
            names.add(name)
    assert "to_ivalue" in names
    assert names - set(re.findall(r"`([\w:]+)`", chapter)) == set()
