"""Installing as a user does, and what is said when it cannot work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from importlib.metadata import requires
from pathlib import Path

import torch

import ckpt_streamer

ROOT = Path(__file__).parent.parent


def test_the_tests_run_against_the_installed_package() -> None:
    folder = Path(ckpt_streamer.__file__).parent
    assert folder != ROOT / "ckpt_streamer"
    assert (folder / "py.typed").exists()
    assert Path(ckpt_streamer.library_path()) == folder / "lib/libckpt_streamer.so"


def test_the_torch_that_it_was_compiled_for_is_required() -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"torch=={minor}.*" in (requires("ckpt_streamer") or [])


def test_another_torch_is_told(tmp_path: Path) -> None:
    folder = Path(ckpt_streamer.__file__).parent
    shutil.copytree(folder, tmp_path / "ckpt_streamer")
    (tmp_path / "ckpt_streamer/lib/compiled_for_torch.txt").write_text("2.7.1+cpu")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import ckpt_streamer"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "ImportError: ckpt_streamer was compiled for torch 2.7.1+cpu, and this is "
        f"torch {torch.__version__}; install ckpt_streamer again, without pip's "
        "cache: pip install --no-cache-dir --force-reinstall --no-deps"
    ) in done.stderr


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


FREE_THREADED = "import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1; "


def test_free_threaded_python_is_refused() -> None:
    for code, text in (
        (
            "import ckpt_streamer",
            "ImportError: ckpt_streamer does not support free-threaded builds of "
            "Python: its iterators rely on the global interpreter lock; use the "
            "ordinary build of the same version",
        ),
        (
            "import runpy; runpy.run_path('setup.py')",
            "ckpt_streamer does not support free-threaded builds of Python, of which "
            f"this is one ({sys.prefix}). Use the ordinary build of the same version.",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", FREE_THREADED + code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == text


def link_setuptools(folder: Path) -> Path:
    folder.mkdir()
    packages = Path(next(p for p in sys.path if Path(p, "setuptools").is_dir()))
    for name in ("setuptools", "_distutils_hack"):
        (folder / name).symlink_to(packages / name)
    return folder
