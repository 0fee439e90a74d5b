"""The C++ program that reads and converts the same bytes, beside the ways."""

from __future__ import annotations

import json
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import NamedTuple

from programs import compiled


class FloorKind(NamedTuple):
    title: str
    read_by: str
    converted_by: str


FLOORS = {
    f"floor_{read_by}_{converted_by}": FloorKind(
        f"C++ floor: {read_by}, {text}", read_by, converted_by
    )
    for read_by in ("mmap", "pread")
    for converted_by, text in (("torch", "torch's conversion"), ("loop", "plain loop"))
}


class Floor:
    """One such program, for one file, waiting to be asked for passes."""

    def __init__(self, name: str, path: Path, threads: int) -> None:
        program = compiled("floor", "-O3", "-march=native")
        spans_path = path.with_name(f"{path.name}.spans")
        spans_path.write_bytes(b"".join(struct.pack("=QQ", *s) for s in spans(path)))
        self._process = subprocess.Popen(
            [program, path, spans_path, *FLOORS[name][1:], str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds_of_pass(self) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the floor ended with code {self._process.wait()}")
        return float(line)

    def close(self) -> None:
        self._process.communicate()


def spans(path: Path) -> list[tuple[int, int]]:
    """Return the offset and the bytes of each tensor, in the order of the file."""
    of_format = _spans_safetensors if path.suffix == ".safetensors" else _spans_zip
    return sorted(of_format(path))


def _spans_zip(path: Path) -> list[tuple[int, int]]:
    found = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if Path(entry.filename).parent.name == "data":
                file.seek(entry.header_offset + 26)
                name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
                begin = entry.header_offset + 30 + name_bytes + extra_bytes
                found.append((begin, entry.file_size))
    return found


def _spans_safetensors(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    data = 8 + header_bytes
    offsets = [entry["data_offsets"] for entry in header.values()]
    return [(data + begin, end - begin) for begin, end in offsets]
