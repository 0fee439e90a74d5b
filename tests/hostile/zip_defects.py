"""Defects of the zip container."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import torch

from hostile.files import (
    THREE,
    Opened,
    Record,
    Refused,
    ZipEnd,
    build_zip,
    checkpoint,
    dict_,
    opened,
    refused,
    tensor,
    text,
)

GOOD = dict_(text("w"), tensor())


def good_records() -> list[Record]:
    pickle = b"\x80\x02" + GOOD + b"."
    return [Record(b"archive/data.pkl", pickle), Record(b"archive/data/0", THREE)]


def cut_before_the_end_record(folder: Path) -> Refused:
    made = build_zip(good_records())
    data = made.data[: made.end_offset]
    return refused(
        folder,
        data,
        f"is truncated: no end of central directory record in its last {len(data)} "
        "bytes, expected a whole zip file",
    )


def bytes_behind_the_end(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(suffix=b"more"))
    return refused(
        folder,
        made.data,
        "the end of central directory record is followed by 4 bytes, expected a "
        f"comment of 0 [byte {made.end_offset}]",
    )


def bytes_in_front(folder: Path) -> Refused:
    data = b"#!/bin/sh\n" + checkpoint(GOOD)[0]
    return refused(
        folder,
        data,
        "begins with 23 21 2f 62 69 6e 2f 73 68 0a 50 4b 03 04 14 00, expected a "
        "torch.save, TorchScript or safetensors file [byte 0]",
    )


def more_entries_than_bytes(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(count=0xFFFE))
    size = made.end_offset - made.directory_offset
    return refused(
        folder,
        made.data,
        f"the central directory has 65534 entries in {size} bytes, expected at least "
        f"46 bytes an entry [byte {made.end_offset}]",
    )


def a_zip64_count_of_2_to_the_40(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(count=0xFFFF, zip64_count=2**40))
    size = made.locator_offset - 56 - made.directory_offset
    return refused(
        folder,
        made.data,
        f"the central directory has {2**40} entries in {size} bytes, expected at least "
        f"46 bytes an entry [byte {made.end_offset}]",
    )


def one_entry_more_than_there_is(folder: Path) -> Refused:
    suffix = b"\0" * 46
    made = build_zip(good_records(), ZipEnd(count=3, directory_suffix=suffix))
    return refused(
        folder,
        made.data,
        "found 00 00 00 00, expected a central directory header (50 4b 01 02) "
        f"[byte {made.end_offset - 46}]",
    )


def one_entry_fewer_than_there_are(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(count=1))
    size = made.end_offset - made.central_offsets[1]
    return refused(
        folder,
        made.data,
        f"the central directory has {size} bytes after its last entry, expected none "
        f"[byte {made.central_offsets[1]}]",
    )


def a_directory_past_its_end(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(directory_size=0xFFFFFFF0))
    return refused(
        folder,
        made.data,
        "the central directory has 4294967280 bytes from byte "
        f"{made.directory_offset}, expected it to end in front of its end record at "
        f"byte {made.end_offset} [byte {made.end_offset}]",
    )


def a_name_longer_than_the_directory(folder: Path) -> Refused:
    made = build_zip(good_records())
    data = bytearray(made.data)
    at = made.central_offsets[1]
    struct.pack_into("<H", data, at + 28, 0xFFFF)
    return refused(
        folder,
        bytes(data),
        f"a central directory header has {46 + 0xFFFF} bytes, expected at most the "
        f"remaining {made.end_offset - at} [byte {at}]",
    )


def a_zip64_locator_to_nowhere(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(zip64_count=2, zip64_offset=2**63))
    return refused(
        folder,
        made.data,
        f"the zip64 locator points at byte {2**63}, expected a record of 56 bytes in "
        f"front of the locator [byte {made.locator_offset}]",
    )


def a_zip64_locator_to_another_record(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(zip64_count=2, zip64_offset=0))
    return refused(
        folder,
        made.data,
        "found 50 4b 03 04, expected the zip64 end of central directory record "
        "(50 4b 06 06) [byte 0]",
    )


def two_end_records_that_disagree(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(zip64_count=1))
    return refused(
        folder,
        made.data,
        "the end of central directory record has entry count 2, expected 1 as in its "
        f"zip64 record [byte {made.end_offset}]",
    )


def a_zip64_size_without_a_value(folder: Path) -> Refused:
    extra = struct.pack("<2HI", 1, 4, 0)
    lying = Record(b"archive/data/0", THREE, size=0xFFFFFFFF, central_extra=extra)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "the zip64 extra field of record 'archive/data/0' has 4 bytes, expected 8 for "
        f"each size or offset of all ones [byte {made.central_offsets[1]}]",
    )


def a_zip64_size_of_2_to_the_63(folder: Path) -> Refused:
    extra = struct.pack("<2H2Q", 1, 16, 2**63, 2**63)
    lying = Record(b"archive/data/0", THREE, size=0xFFFFFFFF, central_extra=extra)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        f"the data of record 'archive/data/0' reaches past byte {made.directory_offset}"
        ", expected it to end in front of the central directory "
        f"[byte {made.local_offsets[1]}]",
    )


def a_volume_of_several(folder: Path) -> Refused:
    made = build_zip(good_records(), ZipEnd(disk=3))
    return refused(
        folder,
        made.data,
        "is volume 3 of a multi-volume zip, expected a zip in one file "
        f"[byte {made.end_offset}]",
        NotImplementedError,
    )


def an_encrypted_record(folder: Path) -> Refused:
    made = build_zip([good_records()[0], Record(b"archive/data/0", THREE, flags=1)])
    return refused(
        folder,
        made.data,
        "record 'archive/data/0' is encrypted, expected plain "
        f"[byte {made.central_offsets[1]}]",
        NotImplementedError,
    )


def a_record_twice(folder: Path) -> Refused:
    made = build_zip([*good_records(), Record(b"archive/data/0", b"0" * 16)])
    return refused(
        folder,
        made.data,
        "record 'archive/data/0' is in the central directory twice, expected distinct "
        f"names [byte {made.local_offsets[2]}]",
    )


def another_name_in_the_local_header(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, local_name=b"archive/data/1")
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "the local header has the name 'archive/data/1', expected 'archive/data/0' as "
        f"in the central directory [byte {made.local_offsets[1]}]",
    )


def a_shorter_name_in_the_local_header(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, local_name=b"0")
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "the local header of record 'archive/data/0' has a name of 1 bytes, expected "
        f"14 as in the central directory [byte {made.local_offsets[1]}]",
    )


def another_method_in_the_local_header(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, local_method=8)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "the local header of record 'archive/data/0' has compression method 8, "
        f"expected 0 as in the central directory [byte {made.local_offsets[1]}]",
    )


def no_local_header(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, local_signature=b"ABCD")
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "found 41 42 43 44, expected the local header of record 'archive/data/0' "
        f"(50 4b 03 04) [byte {made.local_offsets[1]}]",
    )


def a_local_header_past_the_end(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, local_offset=0x7FFFFFFF)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        "the local header of record 'archive/data/0' reaches past byte "
        f"{made.directory_offset}, expected it to end in front of the central "
        f"directory [byte {0x7FFFFFFF}]",
    )


def data_past_the_end(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, size=1 << 30)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        f"the data of record 'archive/data/0' reaches past byte {made.directory_offset}"
        ", expected it to end in front of the central directory "
        f"[byte {made.local_offsets[1]}]",
    )


def records_that_overlap(folder: Path) -> Refused:
    first, second = good_records()
    lying = Record(first.name, first.data, size=len(first.data) + 40)
    made = build_zip([lying, second])
    return refused(
        folder,
        made.data,
        "the data of record 'archive/data.pkl' reaches past byte "
        f"{made.local_offsets[1]}, expected it to end in front of record "
        "'archive/data/0' [byte 0]",
    )


def records_at_one_place(folder: Path) -> Refused:
    """The zip bomb of many names for the same bytes."""
    first, second = good_records()
    at = build_zip([first, second]).local_offsets[1]
    lying = Record(b"archive/data/1", THREE, local_offset=at)
    made = build_zip([first, second, lying])
    return refused(
        folder,
        made.data,
        f"the local header of record 'archive/data/0' reaches past byte {at}, expected "
        f"it to end in front of record 'archive/data/1' [byte {at}]",
    )


def a_stored_record_of_two_sizes(folder: Path) -> Refused:
    lying = Record(b"archive/data/0", THREE, size=1 << 20, compressed_size=16)
    made = build_zip([good_records()[0], lying])
    return refused(
        folder,
        made.data,
        f"record 'archive/data/0' is stored in 16 bytes, expected its size of {1 << 20}"
        f" [byte {made.central_offsets[1]}]",
    )


def deflated(folder: Path, name: str) -> tuple[bytes, int]:
    path = folder / "deflated.zip"
    with zipfile.ZipFile(path, "w") as target:
        for record in good_records():
            is_deflated = record.name.decode() == name
            method = zipfile.ZIP_DEFLATED if is_deflated else zipfile.ZIP_STORED
            target.writestr(record.name.decode(), record.data, method)
        offset = target.getinfo(name).header_offset
    return path.read_bytes(), offset


def a_deflated_pickle(folder: Path) -> Refused:
    data, offset = deflated(folder, "archive/data.pkl")
    return refused(
        folder,
        data,
        "record 'archive/data.pkl' is compressed (method 8), expected stored "
        f"[byte {offset}]",
        NotImplementedError,
    )


def a_name_with_a_nul(folder: Path) -> Refused:
    """What a reader of C strings takes for data.pkl."""
    first, second = good_records()
    lying = Record(first.name + b"\0.txt", first.data)
    return refused(
        folder,
        build_zip([lying, second]).data,
        "is a zip file of 2 records ('archive/data.pkl\\x00.txt', 'archive/data/0'), "
        "expected 'archive/data.pkl' as torch.save writes",
        NotImplementedError,
    )


def names_that_climb(folder: Path) -> Opened:
    """Names of records are never paths of files."""
    first, second = good_records()
    climbing = Record(b"archive/../../../../etc/passwd", b"root")
    absolute = Record(b"/etc/passwd", b"root")
    data = build_zip([first, second, climbing, absolute]).data
    return opened(folder, data, ["w"])


def data_descriptors(folder: Path) -> Opened:
    """Local headers without sizes, as torch writes them."""
    records = [
        Record(
            each.name, each.data, flags=8, local_sizes=0, suffix=b"PK\7\x08" + b"0" * 12
        )
        for each in good_records()
    ]
    return opened(folder, build_zip(records).data, ["w"])


def no_records(folder: Path) -> Refused:
    return refused(
        folder,
        build_zip([]).data,
        "is a zip file without records, expected a torch.save, TorchScript or "
        "safetensors file",
    )


def no_pickle(folder: Path) -> Refused:
    data = build_zip([Record(b"a/%d" % i) for i in range(5)]).data
    return refused(
        folder,
        data,
        "is a zip file of 5 records ('a/0', 'a/1', 'a/2', ...), expected 'a/data.pkl' "
        "as torch.save writes",
        NotImplementedError,
    )


def another_byte_order(folder: Path) -> Refused:
    made = build_zip([*good_records(), Record(b"archive/byteorder", b"middle")])
    return refused(
        folder,
        made.data,
        "record 'archive/byteorder' is 'middle', expected 'little' or 'big' "
        f"[byte {made.data_offsets[2]}]",
    )


def a_version_of_the_future(folder: Path) -> Refused:
    made = build_zip([*good_records(), Record(b"archive/version", b"9" * 40)])
    return refused(
        folder,
        made.data,
        f"record 'archive/version' is '{'9' * 32}', expected a file format version of "
        f"at most 10 [byte {made.data_offsets[2]}]",
        NotImplementedError,
    )


def a_comment_full_of_end_records(folder: Path) -> Refused:
    """Each looks like the end; none is."""
    comment = (b"PK\5\6" + b"\0" * 16 + b"\xff\xff") * 2978
    made = build_zip(good_records(), ZipEnd(comment=comment, suffix=b"x"))
    at = len(made.data) - 22 - 1
    return refused(
        folder,
        made.data,
        "the end of central directory record is followed by 1 bytes, expected a "
        f"comment of 65535 [byte {at}]",
    )


def many_records(folder: Path) -> Opened:
    """More records than tensors, which cost their directory and no more."""
    records = [Record(b"archive/%d" % i) for i in range(60_000)]
    return opened(folder, build_zip([*good_records(), *records]).data, ["w"])


def a_zip_in_a_zip(folder: Path) -> Refused:
    inner = folder / "inner.pt"
    torch.save({"w": torch.ones(4)}, inner)
    made = build_zip([Record(b"inner.pt", inner.read_bytes())])
    return refused(
        folder,
        made.data,
        "is a zip file of 1 records ('inner.pt'), expected 'inner.pt/data.pkl' as "
        "torch.save writes",
        NotImplementedError,
    )
