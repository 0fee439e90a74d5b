"""The models that are loaded, and the files of their state_dicts."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import saved_checkpoint
from torch import nn


def wide_model(count: int) -> nn.Module:
    """Many modules in one container, over which load_state_dict is quadratic."""
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def nested_model(outer: int, inner: int) -> nn.Module:
    return nn.Sequential(*(wide_model(inner) for _ in range(outer)))


def large_model(size_mib: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Weights of 16 MiB in float32, 8 KiB each beside them in small ones."""
    layers = size_mib // 16
    return nn.Sequential(*(nn.Linear(2048, 2048, dtype=dtype) for _ in range(layers)))


def single_model(size_mib: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One weight and nothing else."""
    return nn.Linear(1024, size_mib * 256, bias=False, dtype=dtype)


def large_checkpoint(size_mib: int) -> Path:
    """Return a file of a large_model() in float32."""
    return saved_checkpoint(
        f"linear-{size_mib}", lambda: large_model(size_mib).state_dict()
    )


def single_checkpoint(size_mib: int) -> Path:
    """Return a file of a single_model() in float32."""
    return saved_checkpoint(
        f"single-{size_mib}", lambda: single_model(size_mib).state_dict()
    )
