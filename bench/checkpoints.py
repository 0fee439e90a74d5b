"""Makes the checkpoint files that are measured, once, in .cache/."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
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


def legacy_checkpoint(count: int, elements: int) -> Path:
    """Return the same as torch wrote it before 1.6."""
    return _made(CACHE / f"legacy-{count}x{elements}.pt", _save_legacy, count, elements)


def script_checkpoint(count: int, elements: int) -> Path:
    """Return the same as the buffers of a TorchScript module."""
    return _made(CACHE / f"script-{count}x{elements}.pt", _save_script, count, elements)


def safetensors_checkpoint(count: int, elements: int) -> Path:
    """Return the same as a safetensors file."""
    path = CACHE / f"tensors-{count}x{elements}.safetensors"
    return _made(path, _save_safetensors, count, elements, 0)


def tensorizer_checkpoint(count: int, elements: int) -> Path:
    """Return the same in tensorizer's own format.

    Raises:
        ImportError: tensorizer is not installed.
        RuntimeError: It cannot write so many tensors.
    """
    path = CACHE / f"tensors-{count}x{elements}.tensors"
    return _made(path, _save_tensorizer, tensors_checkpoint(count, elements))


def repeated_checkpoint(count: int, elements: int) -> Path:
    """Return a file of ``count`` f32 tensors with the same random numbers.

    Making it needs the memory of one of them: the others would not fit.
    """
    path = CACHE / f"repeated-{count}x{elements}.pt"
    return _made(path, _save_repeated, count, elements)


def sharded_checkpoint(count: int, elements: int) -> Path:
    """Return the index of the same in four safetensors files."""
    stem = f"sharded-{count}x{elements}"
    weight_map = {}
    quarter = count // 4
    for begin in range(0, count, quarter):
        path = CACHE / f"{stem}-shard{begin:06}.safetensors"
        _made(path, _save_safetensors, quarter, elements, begin)
        weight_map.update({f"key{begin + i}": path.name for i in range(quarter)})
    index = CACHE / f"{stem}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


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


def remove_checkpoints(count: int, elements: int) -> None:
    """Remove the files of so many tensors, of all formats."""
    for path in CACHE.glob(f"*-{count}x{elements}.*"):
        path.unlink()


def _save_tensors(path: Path, count: int, elements: int) -> None:
    torch.save(_tensors(count, elements), path)


def _save_legacy(path: Path, count: int, elements: int) -> None:
    torch.save(_tensors(count, elements), path, _use_new_zipfile_serialization=False)


def _save_script(path: Path, count: int, elements: int) -> None:
    module = torch.nn.Module()
    for name, tensor in _tensors(count, elements).items():
        module.register_buffer(name, tensor)
    torch.jit.save(torch.jit.script(module), path)


def _save_safetensors(path: Path, count: int, elements: int, begin: int) -> None:
    safetensors.torch.save_file(_tensors(count, elements, begin), path)


def _save_tensorizer(path: Path, source: Path) -> None:
    serializer = import_module("tensorizer").TensorSerializer(str(path))
    serializer.write_state_dict(load(source))
    serializer.close()


def _save_repeated(path: Path, count: int, elements: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(torch.randn(elements).numpy().tobytes())
        file.flush()
        # Each a mapping of its own, and so a storage of its own to torch.save.
        maps = [
            mmap.mmap(file.fileno(), elements * 4, access=mmap.ACCESS_COPY)
            for _ in range(count)
        ]
    tensors = [torch.frombuffer(each, dtype=torch.float32) for each in maps]
    torch.save({f"key{i}": tensor for i, tensor in enumerate(tensors)}, path)


def _tensors(count: int, elements: int, begin: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(begin)
    return {
        f"key{begin + i}": torch.randn(elements, generator=generator)
        for i in range(count)
    }


def _save_model(path: Path, config: Config) -> None:
    torch.manual_seed(0)
    # The parameters are the only copy of the weights: torch.save writes from them.
    torch.save(LanguageModel(config).state_dict(), path)


def _made(path: Path, save: Callable[..., None], *args: Any) -> Path:
    """Let a process of its own save the file, so that its memory ends with it.

    What is raised there is raised here.
    """
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"making {path.name} ...", file=sys.stderr)
        # Renamed when complete: an interrupted run leaves no half checkpoint.
        partial = path.with_suffix(".partial")
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=context) as processes:
                processes.submit(save, partial, *args).result()
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return path
