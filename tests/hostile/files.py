"""Zip files that can be told to lie, and pickles put together from expressions.

A pickle expression is the opcodes that push one value. ``HERE`` in one marks the
byte that an error must name, and is taken out again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = b"<HERE>"


# What a generator makes


@dataclass(frozen=True)
class Refused:
    """A file that cannot be opened."""

    path: Path | list[Path]
    message: str  # the error's first line
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Opened:
    """A file that is read as if nothing were in it but its tensors."""

    path: Path
    names: list[str]  # of the first three tensors, cut to 64 characters
    count: int = 1


Generator = Callable[[Path], Refused | Opened]


def refused(
    folder: Path, data: bytes, what: str, error: type[Exception] = ValueError
) -> Refused:
    """A file whose error is its path and ``what``."""
    path = folder / "hostile.pt"
    path.write_bytes(data)
    return Refused(path, f"{path}: {what}", error)


def opened(folder: Path, data: bytes, names: list[str], count: int = 1) -> Opened:
    path = folder / "hostile.pt"
    path.write_bytes(data)
    return Opened(path, names, count)


# Zip


@dataclass(frozen=True)
class Record:
    """A record. What is not set is what a correct writer writes."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    size: int | None = None
    compressed_size: int | None = None
    local_name: bytes | None = None
    local_method: int | None = None
    local_sizes: int | None = None
    local_extra: bytes = b""
    local_signature: bytes = b"PK\3\4"
    local_offset: int | None = None
    central_extra: bytes = b""
    central_signature: bytes = b"PK\1\2"
    suffix: bytes = b""  # behind the data


@dataclass(frozen=True)
class ZipEnd:
    """The end of the central directory, likewise."""

    disk: int = 0
    count: int | None = None
    directory_size: int | None = None
    directory_offset: int | None = None
    directory_suffix: bytes = b""
    comment: bytes = b""
    suffix: bytes = b""
    zip64_count: int | None = None  # with a zip64 record, if set
    zip64_signature: bytes = b"PK\6\6"
    zip64_offset: int | None = None


@dataclass
class ZipFile:
    data: bytes = b""
    local_offsets: list[int] = field(default_factory=list)
    data_offsets: list[int] = field(default_factory=list)
    central_offsets: list[int] = field(default_factory=list)
    directory_offset: int = 0
    locator_offset: int = 0
    end_offset: int = 0


def given(value: int | None, usual: int) -> int:
    return usual if value is None else value


def build_zip(records: Iterable[Record], end: ZipEnd = ZipEnd()) -> ZipFile:
    made = ZipFile()
    directory_parts = []
    directory_size = 0
    parts = []
    position = 0
    records = list(records)
    for record in records:
        made.local_offsets.append(position)
        name = record.name if record.local_name is None else record.local_name
        local_size = given(record.local_sizes, len(record.data))
        header = record.local_signature + struct.pack(
            "<5H3I2H",
            *(20, record.flags, given(record.local_method, record.method), 0, 0),
            *(0, local_size, local_size, len(name), len(record.local_extra)),
        )
        part = header + name + record.local_extra
        made.data_offsets.append(position + len(part))
        parts += [part, record.data, record.suffix]
        size = given(record.size, len(record.data))
        entry = record.central_signature + struct.pack(
            "<6H3I5H2I",
            *(20, 20, record.flags, record.method, 0, 0),
            *(0, given(record.compressed_size, size), size),
            *(len(record.name), len(record.central_extra), 0, 0, 0, 0),
            given(record.local_offset, position),
        )
        entry += record.name + record.central_extra
        made.central_offsets.append(directory_size)
        directory_parts.append(entry)
        directory_size += len(entry)
        position += len(part) + len(record.data) + len(record.suffix)
    directory = b"".join([*directory_parts, end.directory_suffix])
    made.directory_offset = position
    made.central_offsets = [position + offset for offset in made.central_offsets]
    parts.append(directory)
    position += len(directory)
    count = given(end.count, len(records))
    size = given(end.directory_size, len(directory))
    offset = given(end.directory_offset, made.directory_offset)
    if end.zip64_count is not None:
        record64 = end.zip64_signature + struct.pack(
            "<Q2H2I4Q",
            *(44, 45, 45, 0, 0, end.zip64_count, end.zip64_count, size, offset),
        )
        made.locator_offset = position + len(record64)
        locator = struct.pack("<IQI", 0, given(end.zip64_offset, position), 1)
        parts += [record64, b"PK\6\7" + locator]
        position = made.locator_offset + 20
    made.end_offset = position
    parts.append(
        b"PK\5\6"
        + struct.pack(
            "<4H2IH", end.disk, 0, count, count, size, offset, len(end.comment)
        )
        + end.comment
        + end.suffix
    )
    made.data = b"".join(parts)
    return made


# Pickles

THREE = struct.pack("<4f", 1, 2, 3, 4)  # the bytes of the storage '0'


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tuple_(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def list_(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def dict_(*keys_and_values: bytes) -> bytes:
    return b"}(" + b"".join(keys_and_values) + b"u"


def call(callable_: bytes, *args: bytes) -> bytes:
    return callable_ + tuple_(*args) + b"R"


def put(key: int) -> bytes:
    return b"q" + bytes([key])


def get(key: int) -> bytes:
    return b"h" + bytes([key])


def integers(*values: int) -> bytes:
    return tuple_(*map(integer, values))


def storage(
    type_: bytes = global_("torch", "FloatStorage"),
    key: str = "0",
    count: int = 4,
    kind: str = "storage",
) -> bytes:
    return (
        tuple_(text(kind), type_, text(key), text("cpu"), integer(count)) + HERE + b"Q"
    )


@dataclass(frozen=True)
class Rebuild:
    """The arguments of torch._utils._rebuild_tensor_v2: all four floats."""

    storage: bytes = field(default_factory=lambda: storage().replace(HERE, b""))
    offset: bytes = integer(0)
    sizes: bytes = integers(4)
    strides: bytes = integers(1)
    requires_grad: bytes = b"\x89"
    hooks: bytes = call(global_("collections", "OrderedDict"))
    metadata: bytes = b""

    def pickled(self) -> bytes:
        args = [self.storage, self.offset, self.sizes, self.strides]
        args += [self.requires_grad, self.hooks, self.metadata]
        here = b"" if HERE in b"".join(args) else HERE
        function = global_("torch._utils", "_rebuild_tensor_v2")
        return function + tuple_(*args) + here + b"R"


def tensor() -> bytes:
    return Rebuild().pickled().replace(HERE, b"")


def wrong_tensor(**arguments: bytes) -> bytes:
    """{'w': a tensor with these arguments}"""
    return dict_(text("w"), replace(Rebuild(), **arguments).pickled())


def checkpoint(
    value: bytes, records: Iterable[Record] | None = None, end: ZipEnd = ZipEnd()
) -> tuple[bytes, int]:
    """A zip file of torch.save; returns it and where HERE is in it."""
    pickle = value if value.startswith(b"\x80") else b"\x80\x02" + value + b"."
    at = max(pickle.find(HERE), 0)
    if records is None:
        records = [Record(b"archive/data/0", THREE)]
    made = build_zip(
        [
            Record(b"archive/data.pkl", pickle.replace(HERE, b"")),
            Record(b"archive/byteorder", b"little"),
            *records,
            Record(b"archive/version", b"3\n"),
        ],
        end,
    )
    return made.data, made.data_offsets[0] + at


def refused_pickle(
    folder: Path, value: bytes, what: str, error: type[Exception] = ValueError
) -> Refused:
    """A zip file whose pickle is in error at HERE."""
    data, offset = checkpoint(value)
    what = f"{what} in 'archive/data.pkl' [byte {offset}]"
    return refused(folder, data, what, error)
