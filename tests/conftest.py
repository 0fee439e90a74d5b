"""Shared fixtures."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with
# them all processes that they make.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 tensors of 1 MiB; value ``i`` fills the i-th."""
    path = tmp_path_factory.mktemp("large") / "large.pt"
    shape = (256, 1024)
    torch.save({f"w{i}": torch.full(shape, float(i)) for i in range(64)}, path)
    return path


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user, or sets a cgroup's limit")
