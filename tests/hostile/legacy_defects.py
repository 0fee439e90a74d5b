"""Defects of the format of torch.save before 1.6."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

from hostile.files import (
    HERE,
    THREE,
    Refused,
    dict_,
    global_,
    integer,
    refused,
    text,
    tuple_,
    wrong_tensor,
)

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
SYS_INFO = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
KEYS = pickle.dumps(["0"], 2)
DATA = struct.pack("<Q", 4) + THREE
OBJECT = len(MAGIC + VERSION + SYS_INFO)  # where the object's pickle begins


def storage(
    type_: bytes = global_("torch", "FloatStorage"),
    key: bytes = text("0"),
    count: int = 4,
    view: bytes = b"N",
) -> bytes:
    parts = tuple_(text("storage"), type_, key, text("cpu"), integer(count), view)
    return parts + HERE + b"Q"


def legacy(
    value: bytes | None = None,
    version: bytes = VERSION,
    sys_info: bytes = SYS_INFO,
    keys: bytes = KEYS,
    data: bytes = DATA,
) -> tuple[bytes, int]:
    """A file and where HERE is in it."""
    if value is None:
        value = wrong_tensor(storage=storage().replace(HERE, b"")).replace(HERE, b"")
    value = b"\x80\x02" + value + b"."
    at = max(value.find(HERE), 0)
    value = value.replace(HERE, b"")
    head = MAGIC + version + sys_info
    return head + value + keys + data, len(head) + at


def bad_legacy(
    folder: Path,
    value: bytes,
    what: str,
    error: type[Exception] = ValueError,
    keys: bytes = KEYS,
) -> Refused:
    data, offset = legacy(value, keys=keys)
    return refused(folder, data, f"{what} [byte {offset}]", error)


def end_of_legacy_pickles(keys: bytes = KEYS) -> int:
    return len(legacy(keys=keys, data=b"")[0])


def legacy_of_another_version(folder: Path) -> Refused:
    data, _ = legacy(version=pickle.dumps(1002, 2))
    return refused(
        folder,
        data,
        f"the protocol version is 1002, expected 1001 [byte {len(MAGIC)}]",
        NotImplementedError,
    )


def legacy_version_that_is_a_call(folder: Path) -> Refused:
    version = b"\x80\x02cos\nsystem\n(X\x02\0\0\0idtR."
    data, _ = legacy(version=version)
    return refused(
        folder,
        data,
        "the protocol version is <os.system object>, expected 1001 "
        f"[byte {len(MAGIC)}]",
    )


def legacy_of_big_endian(folder: Path) -> Refused:
    data, _ = legacy(sys_info=pickle.dumps({"little_endian": False}, 2))
    return refused(
        folder,
        data,
        "was saved on a big-endian machine ('little_endian' of the sys_info is False), "
        f"expected little-endian [byte {len(MAGIC + VERSION)}]",
        NotImplementedError,
    )


def legacy_sys_info_that_is_no_dict(folder: Path) -> Refused:
    data, _ = legacy(sys_info=pickle.dumps("little", 2))
    return refused(
        folder,
        data,
        f"the sys_info is 'little', expected a dict [byte {len(MAGIC + VERSION)}]",
    )


def legacy_without_an_object(folder: Path) -> Refused:
    data = MAGIC + VERSION + SYS_INFO
    return refused(
        folder,
        data,
        f"the file ends at byte {len(data)} inside a pickle, expected a STOP opcode in "
        f"'object' [byte {OBJECT}]",
    )


def legacy_with_a_text_of_2_to_the_64(folder: Path) -> Refused:
    value = b"\x8d" + b"\xff" * 8
    data, offset = legacy(value)
    return refused(
        folder,
        data,
        f"the file ends at byte {len(data)} inside a pickle, expected a STOP opcode in "
        f"'object' [byte {offset}]",
    )


def legacy_keys_that_are_no_list(folder: Path) -> Refused:
    data, _ = legacy(keys=pickle.dumps({"0": 1}, 2))
    offset = end_of_legacy_pickles(keys=b"")
    return refused(
        folder,
        data,
        f"the storage keys are <object>, expected a list [byte {offset}]",
    )


def legacy_keys_twice(folder: Path) -> Refused:
    data, _ = legacy(keys=pickle.dumps(["0", "0"], 2))
    offset = end_of_legacy_pickles(keys=b"")
    return refused(
        folder,
        data,
        "the list of storage keys has '0' twice, expected distinct keys "
        f"[byte {offset}]",
    )


def a_million_legacy_keys(folder: Path) -> Refused:
    """Keys of storages that no tensor has, each an allocation to a naive reader."""
    keys = pickle.dumps(["0", *map(str, range(1, 100_000))], 2)
    data, _ = legacy(keys=keys)
    offset = end_of_legacy_pickles(keys) + len(DATA)
    return refused(
        folder,
        data,
        "storage '1' is in the list of storage keys but in no persistent id, expected "
        f"its type and size [byte {offset}]",
    )


def a_legacy_id_of_two(folder: Path) -> Refused:
    value = tuple_(text("storage"), text("0")) + HERE + b"Q"
    return bad_legacy(
        folder,
        dict_(text("w"), value),
        "found the persistent id ('storage', '0'), expected ('storage', type, key, "
        "location, count, view)",
    )


def a_legacy_storage_of_a_function(folder: Path) -> Refused:
    return bad_legacy(
        folder,
        dict_(text("w"), storage(global_("os", "system"))),
        "storage '0' is of the type os.system, expected a storage of plain numbers",
        NotImplementedError,
    )


def a_legacy_storage_without_a_key(folder: Path) -> Refused:
    data, offset = legacy(
        wrong_tensor(storage=storage(key=text("1"))), keys=pickle.dumps([], 2), data=b""
    )
    return refused(
        folder,
        data,
        "tensor 'w' has the storage '1', expected one in the list of storage keys in "
        f"'object' [byte {offset}]",
    )


def a_legacy_storage_of_2_to_the_62(folder: Path) -> Refused:
    return bad_legacy(
        folder,
        dict_(text("w"), storage(count=2**62)),
        f"storage '0' has the size {2**62}, expected a number of elements",
    )


def a_legacy_storage_past_the_end(folder: Path) -> Refused:
    value = dict_(text("w"), storage(count=2**40).replace(HERE, b""))
    data, _ = legacy(value)
    offset = len(data) - len(DATA)
    return refused(
        folder,
        data,
        f"the file has 24 bytes left for storage '0', expected at least 8 + {2**42} "
        f"[byte {offset}]",
    )


def a_legacy_storage_of_another_count(folder: Path) -> Refused:
    data, _ = legacy(data=struct.pack("<q", -1) + THREE)
    offset = len(data) - len(DATA)
    return refused(
        folder,
        data,
        "storage '0' has -1 elements, expected the 4 that its persistent id says "
        f"[byte {offset}]",
    )


def a_legacy_storage_of_two_sizes(folder: Path) -> Refused:
    first = storage().replace(HERE, b"")
    return bad_legacy(
        folder,
        dict_(text("v"), first, text("w"), storage(count=3)),
        "storage '0' has 12 bytes, expected 16 as before",
    )


def a_legacy_view_past_its_storage(folder: Path) -> Refused:
    view = tuple_(text("v"), integer(3), integer(2))
    return bad_legacy(
        folder,
        dict_(text("w"), storage(view=view)),
        "view 'v' has the offset 3 and the size 2, expected both inside the 16 bytes "
        "of storage '0'",
    )


def a_legacy_view_that_wraps(folder: Path) -> Refused:
    view = tuple_(text("v"), integer(2**61), integer(2**61))
    return bad_legacy(
        folder,
        dict_(text("w"), storage(view=view)),
        f"view 'v' has the offset {2**61} and the size {2**61}, expected both inside "
        "the 16 bytes of storage '0'",
    )


def a_legacy_view_with_the_key_of_a_storage(folder: Path) -> Refused:
    view = tuple_(text("0"), integer(0), integer(2))
    return bad_legacy(
        folder,
        dict_(text("w"), storage(view=view)),
        "view '0' of storage '0' has the key of a storage, expected one of its own",
    )
