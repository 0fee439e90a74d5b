"""Makes the checkpoint files that are measured, once, in .cache/."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from language_model import Config, LanguageModel

MIB = 1024 * 1024
CACHE = Path(__file__).resolve().parent.parent / ".cache"


def load(path: Path) -> dict[str, torch.Tensor]:
    """Load a checkpoint as views of its mapped file."""
    state_dict: dict[str, torch.Tensor] = torch.load(
        path, map_location="cpu", mmap=True, weights_only=True
    )
    return state_dict


def tensors_checkpoint(count: int, elements: int) -> Path:
    """Return a file of ``count`` f32 tensors of ``elements`` random numbers."""
    path = CACHE / f"tensors-{count}x{elements}.pt"
    return _made(path, _save_tensors, count, elements)


def model_checkpoint(config: Config) -> Path:
    """Return a file with the state_dict of a language model."""
    return _made(CACHE / f"{config.name}.pt", _save_model, config)


def saved_checkpoint(name: str, state_dict: Callable[[], object]) -> Path:
    """Return a file of a state_dict that this process makes."""
    path = CACHE / f"{name}.pt"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(state_dict(), partial)
        partial.rename(path)
    return path


def _save_tensors(path: Path, count: int, elements: int) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {f"key{i}": torch.randn(elements, generator=generator) for i in range(count)},
        path,
    )


def _save_model(path: Path, config: Config) -> None:
    torch.manual_seed(0)
    # The parameters are the only copy of the weights: torch.save writes from them.
    torch.save(LanguageModel(config).state_dict(), path)


def _made(path: Path, save: Callable[..., None], *args: Any) -> Path:
    """Let a process of its own save the file, so that its memory ends with it."""
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"making {path.name} ...", file=sys.stderr)
        # Renamed when complete: an interrupted run leaves no half checkpoint.
        partial = path.with_suffix(".partial")
        process = multiprocessing.get_context("spawn").Process(
            target=save, args=(partial, *args)
        )
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"could not make {path}: code {process.exitcode}")
        partial.rename(path)
    return path
