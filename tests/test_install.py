"""Installing as a user does, and what is said when it cannot work."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import ckpt_streamer

ROOT = Path(__file__).parent.parent


def test_the_tests_run_against_the_installed_package() -> None:
    folder = Path(ckpt_streamer.__file__).parent
    assert folder != ROOT / "ckpt_streamer"
    assert (folder / "py.typed").exists()
    assert Path(ckpt_streamer.library_path()) == folder / "_C.so"


def test_without_torch_the_build_says_what_to_do(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    done = subprocess.run(
        [
            tmp_path / "bare/bin/python",
            "-c",
            "import runpy; runpy.run_path('setup.py')",
        ],
        cwd=ROOT,
        env={
            # setuptools, but no torch.
            "PYTHONPATH": str(link_setuptools(tmp_path / "only_setuptools")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "ckpt_streamer is compiled against the torch of this environment "
        f"({tmp_path / 'bare'}), and there is none. Install torch first"
    ) in done.stderr


def link_setuptools(folder: Path) -> Path:
    folder.mkdir()
    packages = Path(next(p for p in sys.path if Path(p, "setuptools").is_dir()))
    for name in ("setuptools", "_distutils_hack"):
        (folder / name).symlink_to(packages / name)
    return folder
