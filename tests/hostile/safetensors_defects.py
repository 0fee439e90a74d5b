"""Defects of safetensors files. HERE in a header is the byte that is named."""

from __future__ import annotations

import struct
from pathlib import Path

from hostile.files import HERE, Opened, Refused, opened, refused

W = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'
DATA = b"\0\0\x80\x3f"


def safetensors_file(
    folder: Path,
    header: str | bytes,
    what: str,
    data: bytes = DATA,
    error: type[Exception] = ValueError,
) -> Refused:
    """A file whose error ends in where HERE is, in the header."""
    written = header if isinstance(header, bytes) else header.encode()
    offset = 8 + max(written.find(HERE), 0)
    written = written.replace(HERE, b"")
    file = struct.pack("<Q", len(written)) + written + data
    return refused(folder, file, f"{what} in the header [byte {offset}]", error)


def of_w(fields: str) -> str:
    return '{"w":' + HERE.decode() + "{" + fields + "}}"


def a_header_past_the_end(folder: Path) -> Refused:
    return refused(
        folder,
        struct.pack("<Q", 50_000_000) + b'{"w":{}}',
        "has a header of 50000000 bytes, expected at most the 8 behind its size "
        "[byte 0]",
    )


def a_header_of_2_to_the_64(folder: Path) -> Refused:
    return refused(
        folder,
        b"\xff" * 8 + b'{"w":{}}',
        f"has a header of {2**64 - 1} bytes, expected at most 100000000 [byte 0]",
    )


def a_header_that_is_cut(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        '{"w":{"dtype":"F32"' + HERE.decode(),
        "found the end, expected ',' or '}'",
    )


def a_header_of_a_million_arrays(folder: Path) -> Refused:
    arrays = "[" * 126 + HERE.decode() + "[" * 1_000_000
    return safetensors_file(
        folder,
        '{"w":{"x":' + arrays + "}}",
        "found nesting deeper than 128, expected at most that",
    )


def a_header_that_is_not_utf_8(folder: Path) -> Refused:
    return safetensors_file(
        folder, b'{"' + HERE + b'\xff":{}}', "found the byte ff, expected UTF-8"
    )


def safetensors_names_twice(folder: Path) -> Refused:
    entry = "{" + W + "}"
    header = f'{{"w":{entry},"w":{HERE.decode()}{entry}}}'
    return safetensors_file(
        folder, header, "has the tensor 'w' twice, expected distinct names"
    )


def safetensors_that_overlap(folder: Path) -> Refused:
    other = '"dtype":"U8","shape":[2],"data_offsets":[2,4]'
    header = f'{{"w":{{{W}}},"v":{HERE.decode()}{{{other}}}}}'
    return safetensors_file(
        folder,
        header,
        "tensor 'v' begins at byte 2 of the data, expected byte 4, where 'w' ends",
    )


def safetensors_with_a_hole(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"F32","shape":[1],"data_offsets":[4,8]'),
        "tensor 'w' begins at byte 4 of the data, expected byte 0, where the data "
        "begins",
        DATA * 2,
    )


def safetensors_with_bytes_behind(folder: Path) -> Refused:
    header = "{" + f'"w":{{{W}}}' + "}"
    size = 8 + len(header) + len(DATA)
    return refused(
        folder,
        struct.pack("<Q", len(header)) + header.encode() + DATA + b"secret",
        f"the last tensor ends at byte {size}, expected byte {size + 6}, the file's "
        f"end [byte {size}]",
    )


def safetensors_past_the_end(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]'),
        "tensor 'w' ends at byte 1099511627776 of the data, expected at most its 4 "
        "bytes",
    )


def safetensors_that_end_before_they_begin(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"F32","shape":[1],"data_offsets":[4,0]'),
        "tensor 'w' ends at byte 0 of the data, expected at or behind byte 4, where it "
        "begins",
    )


def safetensors_of_another_size(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"F32","shape":[2],"data_offsets":[0,4]'),
        "tensor 'w' has 4 bytes, expected the 8 of its shape and dtype F32",
    )


def safetensors_whose_product_wraps(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]'),
        "tensor 'w' has sizes whose product overflows, expected less than 2^64 bits",
        b"",
    )


def safetensors_without_elements_of_large_sizes(folder: Path) -> Refused:
    """No byte, and strides beyond 2^63."""
    return safetensors_file(
        folder,
        of_w('"dtype":"U8","shape":[0,4294967296,4294967295],"data_offsets":[0,0]'),
        "tensor 'w' has no element and sizes whose product overflows, expected less "
        "than 2^63",
        b"",
        NotImplementedError,
    )


def safetensors_of_a_negative_size(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w(f'"dtype":"F32","shape":[{HERE.decode()}-1],"data_offsets":[0,4]').replace(
            HERE.decode(), "", 1
        ),
        "found '-1', expected an integer from 0 to 2^64 - 1 as a size of tensor 'w'",
    )


def safetensors_of_sixty_five_dimensions(folder: Path) -> Refused:
    sizes = ",".join("1" * 65)
    return safetensors_file(
        folder,
        of_w(f'"dtype":"F32","shape":[{sizes}],"data_offsets":[0,4]'),
        "tensor 'w' has more than 64 dimensions, expected at most as many",
        error=NotImplementedError,
    )


def safetensors_without_a_dtype(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"shape":[1],"data_offsets":[0,4]'),
        "tensor 'w' has no 'dtype', expected dtype, shape and data_offsets",
    )


def safetensors_of_an_unknown_dtype(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        of_w('"dtype":"os.system","shape":[1],"data_offsets":[0,4]'),
        "tensor 'w' has the dtype 'os.system', expected one of BOOL, F4, F6_E2M3, "
        "F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, "
        "U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64",
    )


def safetensors_metadata_of_numbers(folder: Path) -> Refused:
    return safetensors_file(
        folder,
        f'{{"__metadata__":{{"a":{HERE.decode()}1}}}}',
        "found a number, expected a string as the value of the metadata 'a'",
        b"",
    )


def safetensors_names_that_climb(folder: Path) -> Opened:
    """A name is only a name."""
    header = '{"../../etc/passwd\\u0000":{' + W + "}}"
    file = struct.pack("<Q", len(header)) + header.encode() + DATA
    return opened(folder, file, ["../../etc/passwd\0"])


def safetensors_of_a_megabyte_of_spaces(folder: Path) -> Opened:
    header = '{"w":{' + W + "}}" + " " * (1 << 20)
    file = struct.pack("<Q", len(header)) + header.encode() + DATA
    return opened(folder, file, ["w"])
