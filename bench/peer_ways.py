"""The ways to read a checkpoint that are measured, ours and the peers'.

Each in three steps: ``open`` until the tensors' names are known, ``iterate`` over all
tensors, converting each to bfloat16, and ``close``. Packages are imported when a way
is made: two ways may need different packages of the same name.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from checkpoints import (
    MIB,
    load,
    safetensors_checkpoint,
    tensorizer_checkpoint,
    tensors_checkpoint,
)
from original import told_checkout

BFLOAT16 = torch.bfloat16

# How a file of so many tensors of so many elements is made, by its format.
FORMATS = {
    "pt": tensors_checkpoint,
    "safetensors": safetensors_checkpoint,
    "tensorizer": tensorizer_checkpoint,
}


class Way:
    """One way, for one file after the other."""

    title: str
    file_format: str
    package: str  # whose version is told
    has_limit = False  # whether it takes a memory limit
    is_ours = False
    loads_model = False  # into memory that is there before: nothing is iterated over

    def prepare(self, count: int, elements: int) -> None:
        """Make what is there before any of the file is read."""

    def open(self, path: Path, limit_mib: int | None) -> Any:
        raise NotImplementedError

    def iterate(self, opened: Any) -> None:
        convert_all(opened.values())

    def tensors(self, opened: Any) -> Iterator[torch.Tensor]:
        """Iterate without converting, of those ways that can."""
        return iter(opened.values())

    def close(self, opened: Any) -> None:
        """Let go of what the opened one holds, beyond its memory."""


class ModelWay(Way):
    """Loads into a model of bfloat16 parameters."""

    loads_model = True

    def prepare(self, count: int, elements: int) -> None:
        self.model = torch.nn.Module()
        for i in range(count):
            weight = torch.ones(elements, dtype=BFLOAT16)  # not zeros: in memory
            self.model.register_parameter(f"key{i}", torch.nn.Parameter(weight))

    def open(self, path: Path, limit_mib: int | None) -> Any:
        return path, limit_mib

    def close(self, opened: Any) -> None:  # noqa: ARG002
        del self.model


def convert_all(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.to(BFLOAT16)


class OursOpen(Way):
    title = "ckpt_streamer.open, .to()"
    file_format = "pt"
    package = "ckpt_streamer"
    has_limit = True
    is_ours = True

    def __init__(self) -> None:
        self._package = import_module("ckpt_streamer")

    def open(self, path: Path, limit_mib: int | None) -> Any:
        return self._package.open(path, memory_limit_mb=limit_mib)

    def iterate(self, opened: Any) -> None:
        for _name, tensor in opened:
            tensor.to(BFLOAT16)

    def close(self, opened: Any) -> None:
        opened.close()


class OursFused(OursOpen):
    title = "ckpt_streamer.open(dtype=)"

    def open(self, path: Path, limit_mib: int | None) -> Any:
        return self._package.open(path, memory_limit_mb=limit_mib, dtype=BFLOAT16)

    def iterate(self, opened: Any) -> None:
        for _name, _tensor in opened:
            pass


class OursOpenSafetensors(OursOpen):
    file_format = "safetensors"


class OursFusedSafetensors(OursFused):
    file_format = "safetensors"


class OursStream(Way):
    """The same call as the original project's."""

    title = "ckpt_streamer.stream, .to()"
    file_format = "pt"
    package = "ckpt_streamer"
    has_limit = True
    is_ours = True

    def __init__(self) -> None:
        self._stream = import_module("ckpt_streamer").stream

    def open(self, path: Path, limit_mib: int | None) -> Any:
        return load(path), limit_mib

    def iterate(self, opened: Any) -> None:
        state_dict, limit_mib = opened
        for _obj, _key, tensor in self._stream(state_dict, memory_limit_mb=limit_mib):
            tensor.to(BFLOAT16)

    def tensors(self, opened: Any) -> Iterator[torch.Tensor]:
        state_dict, limit_mib = opened
        for _obj, _key, tensor in self._stream(state_dict, memory_limit_mb=limit_mib):
            yield tensor


class OursApply(ModelWay):
    title = "ckpt_streamer.apply_state_dict"
    file_format = "pt"
    package = "ckpt_streamer"
    has_limit = True
    is_ours = True

    def __init__(self) -> None:
        self._apply_state_dict = import_module("ckpt_streamer").apply_state_dict

    def iterate(self, opened: Any) -> None:
        path, limit_mib = opened
        self._apply_state_dict(self.model, path, memory_limit_mb=limit_mib)


class OursApplySafetensors(OursApply):
    file_format = "safetensors"


class Original(OursStream):
    """A checkout of the original project, whose package has our name."""

    title = "the original's stream, .to()"
    package = "the original"
    is_ours = False

    def __init__(self) -> None:
        checkout = told_checkout()
        if not checkout:
            raise ModuleNotFoundError("no checkout of it was given by --original")
        assert "ckpt_streamer" not in sys.modules
        sys.path.insert(0, str(Path(checkout) / "src"))
        super().__init__()


class TorchLoadMapped(Way):
    title = "torch.load(mmap=True), .to()"
    file_format = "pt"
    package = "torch"

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        return load(path)


class TorchLoad(Way):
    title = "torch.load, .to()"
    file_format = "pt"
    package = "torch"

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        return torch.load(path, map_location="cpu", weights_only=True)


class OpenedFile(Way):
    """Gives one tensor after the other: ``open`` returns a file and its names."""

    def iterate(self, opened: Any) -> None:
        file, names = opened
        for name in names:
            file.get_tensor(name).to(BFLOAT16)

    def close(self, opened: Any) -> None:
        opened[0].__exit__(None, None, None)


class SafeOpen(OpenedFile):
    title = "safe_open, get_tensor, .to()"
    file_format = "safetensors"
    package = "safetensors"
    backend: str | None = None

    def __init__(self) -> None:
        self._safe_open = import_module("safetensors").safe_open

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        options = {"backend": self.backend} if self.backend else {}
        file = self._safe_open(path, framework="pt", **options)
        return file.__enter__(), file.offset_keys()


class SafeOpenRead(SafeOpen):
    title = 'safe_open(backend="pread"), .to()'
    backend = "pread"


class LoadFile(Way):
    title = "safetensors load_file, .to()"
    file_format = "safetensors"
    package = "safetensors"

    def __init__(self) -> None:
        self._load_file = import_module("safetensors.torch").load_file

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        return self._load_file(path)


class FastSafetensors(OpenedFile):
    title = "fastsafetensors fastsafe_open, .to()"
    file_format = "safetensors"
    package = "fastsafetensors"

    def __init__(self) -> None:
        self._open = import_module("fastsafetensors").fastsafe_open

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        file = self._open(str(path), device="cpu", nogds=True)
        return file, file.keys()


class FastSafetensorsBatches(Way):
    """With a limit for each batch, one batch at a time, without copies."""

    title = "fastsafetensors max_batch_bytes, .to()"
    file_format = "safetensors"
    package = "fastsafetensors"
    has_limit = True

    def __init__(self) -> None:
        self._loader = import_module("fastsafetensors").ParallelLoader

    def open(self, path: Path, limit_mib: int | None) -> Any:
        assert limit_mib is not None
        return self._loader(
            None,
            [str(path)],
            device="cpu",
            nogds=True,
            use_tqdm_on_load=False,
            queue_size=-1,
            max_batch_bytes=limit_mib * MIB,
            accumulate_resident=False,
            borrowed_tensors=True,
        )

    def iterate(self, opened: Any) -> None:
        with contextlib.closing(opened.iterate_weights()) as weights:
            for _name, tensor in weights:
                tensor.to(BFLOAT16)

    def close(self, opened: Any) -> None:
        opened.close()


class RunaiUnlimited(Way):
    """As it comes; tensors are the caller's own."""

    title = "Run:ai streamer, .to()"
    file_format = "safetensors"
    package = "runai-model-streamer"
    is_owned = True

    def __init__(self) -> None:
        os.environ["RUNAI_STREAMER_LOG_LEVEL"] = "ERROR"
        self._streamer = import_module("runai_model_streamer").SafetensorsStreamer

    def open(self, path: Path, limit_mib: int | None) -> Any:
        if limit_mib is not None:
            os.environ["RUNAI_STREAMER_MEMORY_LIMIT"] = str(limit_mib * MIB)
        streamer = self._streamer().__enter__()
        streamer.stream_file(str(path), owned=self.is_owned)
        return streamer

    def iterate(self, opened: Any) -> None:
        for _name, tensor in opened.get_tensors():
            tensor.to(BFLOAT16)

    def close(self, opened: Any) -> None:
        opened.__exit__(None, None, None)


class Runai(RunaiUnlimited):
    """With its memory limit; tensors are views of its buffers."""

    title = "Run:ai streamer, memory limit, .to()"
    has_limit = True
    is_owned = False


class Tensorizer(Way):
    title = "tensorizer, .to()"
    file_format = "tensorizer"
    package = "tensorizer"
    is_lazy = False

    def __init__(self) -> None:
        self._deserializer = import_module("tensorizer").TensorDeserializer

    def open(self, path: Path, limit_mib: int | None) -> Any:  # noqa: ARG002
        return self._deserializer(str(path), device="cpu", lazy_load=self.is_lazy)

    def close(self, opened: Any) -> None:
        opened.close()


class TensorizerLazy(Tensorizer):
    title = "tensorizer lazy_load, .to()"
    is_lazy = True


class Accelerate(ModelWay):
    title = "accelerate load_checkpoint_in_model"
    file_format = "pt"
    package = "accelerate"

    def __init__(self) -> None:
        self._load = import_module("accelerate").load_checkpoint_in_model

    def iterate(self, opened: Any) -> None:
        path, _ = opened
        self._load(self.model, str(path))


class AccelerateSafetensors(Accelerate):
    file_format = "safetensors"


WAYS: dict[str, type[Way]] = {
    "open": OursOpen,
    "fused": OursFused,
    "stream": OursStream,
    "open_safetensors": OursOpenSafetensors,
    "fused_safetensors": OursFusedSafetensors,
    "apply": OursApply,
    "apply_safetensors": OursApplySafetensors,
    "torch_load_mapped": TorchLoadMapped,
    "torch_load": TorchLoad,
    "original": Original,
    "safe_open": SafeOpen,
    "safe_open_read": SafeOpenRead,
    "load_file": LoadFile,
    "fastsafetensors": FastSafetensors,
    "fastsafetensors_batches": FastSafetensorsBatches,
    "runai_unlimited": RunaiUnlimited,
    "runai": Runai,
    "tensorizer": Tensorizer,
    "tensorizer_lazy": TensorizerLazy,
    "accelerate": Accelerate,
    "accelerate_safetensors": AccelerateSafetensors,
}
