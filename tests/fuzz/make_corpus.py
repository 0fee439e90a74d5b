"""Makes the seed corpus of the fuzz targets from small files of every format.

    .venv/bin/python tests/fuzz/make_corpus.py

What is there already stays: findings of earlier runs are kept beside the seeds.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from torch import Tensor, nn

CORPUS = Path(__file__).parent / "corpus"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("kept", torch.ones(2, dtype=torch.float16))
        self.plain = torch.arange(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.plain.sum()
        return result


def write(target: str, name: str, data: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def trees() -> dict[str, Any]:
    base = torch.arange(6.0)
    return {
        "state": nn.Linear(2, 3).state_dict(),
        "tied": {"a": base, "b": base[2:4], "c": [base.view(2, 3).t()]},
        "parameter": [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1), False)],
        "dtypes": {
            str(dtype): torch.zeros(2, dtype=dtype)
            for dtype in (torch.bool, torch.bfloat16, torch.complex64, torch.int8)
        },
        "plain": {
            "numbers": [1, -2, 2.5, 10**30, True, None],
            "texts": ("text", b"bytes", "\u00fc"),
            3: {1, 2},
            "ordered": collections.OrderedDict(a=1),
            "default": collections.defaultdict(list, a=[torch.ones(1)]),
        },
        "module": Model(),
        "optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1).state_dict(),
        "arrays": {"array": numpy.arange(3), "scalar": numpy.float64(2)},
        "bare": torch.ones(2),
        "empty": {},
        "sparse": torch.eye(2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "lazy": torch.ones(2, dtype=torch.complex64).conj(),
        "unsigned": torch.ones(2, dtype=torch.uint16),
    }


def saved(tree: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()


def write_checkpoints() -> None:
    for name, tree in trees().items():
        data = saved(tree)
        write("index", f"{name}.pt", data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            write("pickle", name, archive.read("archive/data.pkl"))
        old = saved(tree, _use_new_zipfile_serialization=False)
        write("legacy", name, old)
        write("index", f"{name}.old.pt", old)
    for protocol in range(6):
        tree = trees()["plain"]
        write("pickle", f"protocol{protocol}", pickle.dumps(tree, protocol))
        if protocol > 0:
            options = {
                "pickle_protocol": protocol,
                "_use_new_zipfile_serialization": False,
            }
            write("legacy", f"protocol{protocol}", saved(tree, **options))
    write("zip", "torch.pt", saved(trees()["tied"]))


def write_old_views() -> None:
    """As torch before 0.4 wrote views of storages."""

    class StorageId:
        parts = ("storage", torch.FloatStorage, "7", "cpu", 4, ("8", 1, 2))

    class OldTensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor, (StorageId(), 0, (2,), (1,))

    class OldPickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.parts if isinstance(obj, StorageId) else None

    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    OldPickler(file, protocol=2).dump({"view": OldTensor()})
    pickle.dump(["7"], file, protocol=2)
    file.write(struct.pack("<q4f", 4, 0, 1, 2, 3))
    write("legacy", "view", file.getvalue())


def write_archives() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(Model())
        file = io.BytesIO()
        torch.jit.save(script, file)
        write("index", "script.pt", file.getvalue())
        write("zip", "script.pt", file.getvalue())
        write("index", "mobile.ptl", script._save_to_buffer_for_lite_interpreter())
    for name, compression in {
        "stored": zipfile.ZIP_STORED,
        "deflated": zipfile.ZIP_DEFLATED,
    }.items():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.comment = b"comment"
            archive.writestr("a/data.pkl", pickle.dumps({}, 2))
            with archive.open("a/data/0", "w", force_zip64=True) as record:
                record.write(bytes(16))
        write("zip", name, file.getvalue())
        write("index", name, file.getvalue())
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    write("zip", "empty", file.getvalue())


def write_safetensors() -> None:
    tensors = {
        "a": torch.arange(4.0).view(2, 2),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(1),
        "empty": torch.empty(0, 2),
    }
    data = safetensors.torch.save(tensors, {"format": "pt", "k": "\u00fc"})
    write("safetensors", "tensors", data)
    write("index", "tensors.safetensors", data)
    write("safetensors", "none", safetensors.torch.save({}))
    for dtype in ("F8_E4M3", "F8_E5M2", "F4", "C64", "U16", "BOOL", "F64"):
        bits = {"F4": 4, "C64": 64, "U16": 16, "F64": 64}.get(dtype, 8)
        size = 2 * bits // 8
        fields = {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}
        header = json.dumps({"x": fields}).encode()
        write(
            "safetensors",
            dtype,
            struct.pack("<Q", len(header)) + header + bytes(size),
        )
    # Shards '1' and '2' behind their index.
    shards = [
        safetensors.torch.save({name: torch.ones(2)}, {"format": "pt"})
        for name in ("a", "b")
    ]
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "1", "b": "2"}}
    write(
        "index",
        "shards",
        b"\n--file--\n".join([json.dumps(index).encode(), *shards]),
    )


def write_foreign_files() -> None:
    for name, data in {
        "gguf": b"GGUF\x03\0\0\0",
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "npy": b"\x93NUMPY\x01\0",
        "pickle": pickle.dumps(1, 4),
        "onnx": b"\x08\x08\x12\x07pytorch",
        "graph": b"\x0a\x10\x0a\x01x\x12\x05Const",
        "msgpack": b"\x81\xa1a\x01",
        "text": b"hello",
    }.items():
        write("index", name, data)


if __name__ == "__main__":
    torch.manual_seed(0)
    write_checkpoints()
    write_old_views()
    write_archives()
    write_safetensors()
    write_foreign_files()
