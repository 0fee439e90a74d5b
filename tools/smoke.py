"""Uses the installed package as one would, without anything that is for tests.

    python smoke.py TORCH

TORCH is the release that it must run with; installing the package must not have
brought another.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

import torch

import ckpt_streamer

MIB = 1024 * 1024


@torch.jit.script
def total(path: str, memory_limit_bytes: int) -> float:
    stream = torch.ops.ckpt_streamer.open(path, memory_limit_bytes)
    result = 0.0
    while stream.has_next():
        result += float(stream.next()[1].double().sum())
    return result


def mapped(part: str) -> set[str]:
    """The files in the process whose names have this in them."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return {path for path in paths if part in Path(path).name}


def check_one_of_each_library() -> None:
    """Two copies of torch, or of the library, would each have ops of their own."""
    package = Path(ckpt_streamer.__file__).parent
    assert Path(sys.prefix) in package.parents, package
    assert list(package.rglob("*.so*")) == [package / "lib/libckpt_streamer.so"]
    assert mapped("ckpt_streamer") == {str(package / "lib/libckpt_streamer.so")}
    for name in ("libc10", "libtorch_cpu"):
        beside = Path(torch.__file__).parent / f"lib/{name}.so"
        # A copy that auditwheel puts into a wheel is libc10-1234abcd.so.
        assert mapped(f"{name}.") | mapped(f"{name}-") == {str(beside)}
    assert not package.with_name("ckpt_streamer.libs").exists()


def check_use(folder: Path) -> None:
    path = str(folder / "model.ckpt")
    tensors = {f"w{index}": torch.full((MIB,), float(index)) for index in range(16)}
    torch.save({"state_dict": tensors}, path)
    expected = float(MIB * sum(range(16)))

    with ckpt_streamer.open(path, memory_limit_mb=8) as checkpoint:
        read = {name: float(tensor.double().sum()) for name, tensor in checkpoint}
        stats = checkpoint.stats()
    assert sum(read.values()) == expected
    assert 0 < stats.peak_bytes_resident <= 8 * MIB, stats
    assert total(path, 8 * MIB) == expected

    model = torch.nn.ParameterDict({name: torch.zeros(MIB) for name in tensors})
    missing, unexpected = ckpt_streamer.apply_state_dict(model, path)
    assert not missing
    assert not unexpected
    assert all(torch.equal(model[name], tensors[name]) for name in tensors)

    converted = folder / "half.safetensors"
    command = Path(sys.executable).with_name("ckpt-streamer")
    subprocess.run(
        [command, "convert", path, converted, "--dtype", "bfloat16", "--quiet"],
        check=True,
    )
    assert total(str(converted), 8 * MIB) == expected


def check_files() -> None:
    [headers], [libraries] = (
        ckpt_streamer.include_paths(),
        ckpt_streamer.library_paths(),
    )
    for path in (
        *(Path(headers) / "ckpt_streamer/stream.h", Path(libraries)),
        Path(ckpt_streamer.cmake_prefix_path())
        / "ckpt_streamer/ckpt_streamerConfig.cmake",
    ):
        assert path.exists(), path


def main() -> None:
    release = torch.__version__.split("+")[0]
    assert release == sys.argv[1], f"torch {release}, expected {sys.argv[1]}"
    required = ".".join(release.split(".")[:2])
    assert f"torch=={required}.*" in (requires("ckpt_streamer") or [])
    with tempfile.TemporaryDirectory() as folder:
        check_use(Path(folder))
    check_files()
    check_one_of_each_library()
    print(f"works with torch {torch.__version__}: {ckpt_streamer.library_path()}")


if __name__ == "__main__":
    main()
