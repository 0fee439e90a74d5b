"""Hold whole checkpoints that others have published against torch and safetensors.

Downloads the packages of packages.txt to .cache/real/, through pip, and compares
each checkpoint in them leaf by leaf: names, dtypes, shapes, strides, bytes, which
tensors share a storage, requires_grad. Into the models of some it loads the file
both ways and compares their outputs. No code of a package is run: torch loads
with weights_only=True, and classes that this does not know are stood in for.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from leaves import (  # noqa: E402 - the tests' own modules
    Inert,
    Leaves,
    differences,
    leaf_of,
    leaves_of,
    read_leaves,
)
from public_models import PUBLIC_MODELS, output_differences  # noqa: E402

CACHE = HERE.parent.parent / ".cache" / "real"

# serialization.py: MAGIC_NUMBER as the first pickle of a legacy file.
LEGACY_HEAD = bytes.fromhex("8002 8a0a 6cfc9c46f9206aa85019")


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    maker: str


def read_packages() -> list[Package]:
    pattern = re.compile(r"([\w-]+)==(\S+)\s+# ([^:]+):")
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [
        Package(*match.groups()) for line in lines if (match := pattern.match(line))
    ]


def wheel_of(package: Package) -> Path:
    """Return the package's wheel, downloaded if it is not there yet."""
    stem = re.sub(r"[-_.]+", "[-_.]", package.name)
    pattern = re.compile(f"{stem}-{re.escape(package.version)}-.*whl", re.IGNORECASE)
    for attempt in range(2):
        for path in CACHE.glob("*.whl"):
            if pattern.fullmatch(path.name):
                return path
        if attempt == 0:
            # No other file than the wheel, and nothing is built or run.
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet"),
                    *("--disable-pip-version-check", "--no-deps"),
                    *("--only-binary", ":all:", "--dest", str(CACHE)),
                    f"{package.name}=={package.version}",
                ],
                check=True,
            )
    raise FileNotFoundError(f"pip downloaded no wheel of {package.name}")


def kind_of(path: Path) -> str | None:
    """Return the format of a checkpoint, by its content; None for other files."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(LEGACY_HEAD):
        return "legacy"
    if (
        head[8:9] == b"{"
        and 8 + struct.unpack("<Q", head[:8])[0] <= path.stat().st_size
    ):
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        records = {name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()}
        if "data.pkl" in records:
            return "TorchScript" if "constants.pkl" in records else "torch.save"
    return None


def checkpoints_in(wheel: Path) -> Iterator[tuple[str, str, Path]]:
    """Unpack the checkpoints of a wheel: name, format, path. Copies come once."""
    folder = CACHE / wheel.stem
    seen = set()
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or entry.file_size < 16:
                continue
            path = Path(archive.extract(entry, folder))
            digest = hashlib.blake2b(path.read_bytes()).digest()
            kind = kind_of(path)
            if kind is None or digest in seen:
                path.unlink()
                continue
            seen.add(digest)
            yield entry.filename, kind, path


# References


def load_inert(path: Path) -> tuple[Any, int]:
    """torch.load(weights_only=True), with stand-ins for what it does not know.

    Returns the tree and the number of stand-ins.
    """
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    if zipfile.is_zipfile(path):
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path)):
            stand_ins.append((type("Inert", (Inert,), {}), name))
    with torch.serialization.safe_globals(stand_ins):
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    return tree, len(stand_ins)


def load_saved(path: Path) -> tuple[Leaves, str]:
    tree, stand_in_count = load_inert(path)
    text = "torch.load(weights_only=True)"
    if stand_in_count:
        text += f", {stand_in_count} globals stood in for"
    return leaves_of(tree), text


def load_script(path: Path) -> tuple[Leaves, str]:
    """The two pickles of a TorchScript archive, each as a file of torch.save.

    torch.jit.load gives no way to all attributes and constants; what it does
    give, the state_dict and all buffers, must be among them.
    """
    leaves = []
    for name, root in (("data", ()), ("constants", ("constants",))):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.pt"
            extract_pickle(path, name, part)
            tree, _ = load_inert(part)
        for key, tensor in leaves_of(tree, each_path=True):
            leaves.append((".".join((*root, key)), tensor))
    module = torch.jit.load(path, map_location="cpu")
    by_name = dict(leaves)
    known = {
        **module.state_dict(keep_vars=True),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in known.items():
        if leaf_of(name, tensor.detach()) != leaf_of(name, by_name[name].detach()):
            raise AssertionError(f"the references differ in {name}")
    return leaves, "torch.jit.load, and torch.load of its pickles"


def extract_pickle(archive: Path, name: str, target: Path) -> None:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as made:
        prefix = source.namelist()[0].partition("/")[0]
        made.writestr("part/data.pkl", source.read(f"{prefix}/{name}.pkl"))
        made.writestr("part/version", "3\n")
        for record in source.namelist():
            if record.startswith(f"{prefix}/{name}/"):
                key = record.rpartition("/")[2]
                made.writestr(f"part/data/{key}", source.read(record))


def load_safetensors(path: Path) -> tuple[Leaves, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        leaves = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    # Each is its own: those of the reference may share one storage.
    return [(name, tensor.clone()) for name, tensor in leaves], "safetensors.safe_open"


REFERENCES: dict[str, Callable[[Path], tuple[Leaves, str]]] = {
    "torch.save": load_saved,
    "legacy": load_saved,
    "TorchScript": load_script,
    "safetensors": load_safetensors,
}


# The table


def check(package: Package) -> tuple[int, int]:
    """Compare and print a package's checkpoints; return how many, how many differ."""
    count = failure_count = 0
    for name, kind, path in checkpoints_in(wheel_of(package)):
        theirs, reference = REFERENCES[kind](path)
        try:
            found = differences(read_leaves(str(path)), theirs)
            if name in PUBLIC_MODELS:
                found += output_differences(name, path)
                reference += ", and the outputs of its model"
        except Exception as error:  # any fails this file alone
            found = [f"{type(error).__name__}: {error}"]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for _, tensor in theirs
        }
        print(
            f"{package.name:15} {package.maker:35} {kind:11} {len(theirs):5} "
            f"{sum(storages.values()):11,} {'differs' if found else 'equal':7} "
            f"{name} ({reference})",
            flush=True,
        )
        for text in found[:10]:
            print(f"    {text}")
        count += 1
        failure_count += bool(found)
    if count == 0:
        print(f"{package.name:15} {package.maker:35} has no checkpoint, expected one")
        failure_count += 1
    return count, failure_count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="packages; all, if none is named")
    names = parser.parse_args().names
    # Files of older torch: storages by type, and the TorchScript of their time.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    CACHE.mkdir(parents=True, exist_ok=True)
    print(
        f"{'package':15} {'maker':35} {'format':11} {'leaves':>5} {'bytes':>11} "
        "result  file (reference)"
    )
    packages = [p for p in read_packages() if not names or p.name in names]
    results = [check(package) for package in packages]
    count = sum(count for count, _ in results)
    failure_count = sum(failures for _, failures in results)
    print(f"{len(packages)} makers, {count} checkpoints, {failure_count} failed")
    return 1 if failure_count or not packages else 0


if __name__ == "__main__":
    sys.exit(main())
