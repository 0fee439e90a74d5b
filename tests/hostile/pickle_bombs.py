"""Small pickles that ask for much: depth, names, copies, memory."""

from __future__ import annotations

from pathlib import Path

from hostile.files import (
    Opened,
    Refused,
    checkpoint,
    dict_,
    get,
    global_,
    list_,
    opened,
    put,
    refused,
    tensor,
    text,
    tuple_,
)

MANY = 1_000_000


def a_million_nested_lists(folder: Path) -> Opened:
    value = b"]" * MANY + tensor() + b"a" * MANY
    return opened(folder, checkpoint(value)[0], [("0." * 32)])


def a_million_nested_tuples(folder: Path) -> Opened:
    value = tensor() + b"\x85" * MANY
    return opened(folder, checkpoint(value)[0], [("0." * 32)])


def a_million_nested_dicts(folder: Path) -> Opened:
    value = (b"}" + b"N") * MANY + tensor() + b"s" * MANY
    return opened(folder, checkpoint(value)[0], [("None." * 13)[:64]])


def a_million_nested_calls(folder: Path) -> Opened:
    """Each is what the next one calls."""
    value = tuple_(global_("m", "f") + b")R" * MANY, tensor())
    return opened(folder, checkpoint(value)[0], ["1"])


def a_million_nested_states(folder: Path) -> Opened:
    value = (global_("m", "C") + put(1) + b")\x81") + (get(1) + b")\x81") * 200_000
    value += b"b" * 200_000
    return opened(folder, checkpoint(tuple_(value, tensor()))[0], ["1"])


def a_million_marks(folder: Path) -> Refused:
    data, offset = checkpoint(b"(" * MANY)
    return refused(
        folder,
        data,
        "pickle opcode 0x2e (STOP) finds 0 values on the stack, expected 1 in "
        f"'archive/data.pkl' [byte {offset + 2 + MANY}]",
    )


def a_billion_laughs_of_lists(folder: Path) -> Opened:
    """Ten times the last, thirty times over: each list is walked once."""
    value = list_(tensor()) + put(0)
    for i in range(30):
        value = list_(value + get(i) * 9) + put(i + 1)
    return opened(folder, checkpoint(value)[0], [".".join("0" * 31)])


def a_billion_laughs_of_tuples(folder: Path) -> Opened:
    value = tuple_(tensor()) + put(0)
    for i in range(30):
        value = tuple_(value + get(i) * 9) + put(i + 1)
    return opened(folder, checkpoint(value)[0], [".".join("0" * 31)])


def a_billion_laughs_of_keys(folder: Path) -> Opened:
    """Tuples of tuples as a key, whose name would be their repr."""
    key = tuple_(text("lol")) + put(0)
    for i in range(30):
        key = tuple_(key + get(i) * 9) + put(i + 1)
    value = dict_(key, tensor())
    return opened(folder, checkpoint(value)[0], [("((...)" + ", (...)" * 9)[:64]])


def a_memo_of_4_billion(folder: Path) -> Opened:
    """One opcode that a table of keys would give 32 GiB."""
    value = b"Nr\xff\xff\xff\xff0" + dict_(text("w"), tensor())
    return opened(folder, checkpoint(value)[0], ["w"])


def a_million_memo_keys(folder: Path) -> Opened:
    """Far apart and downwards, against a table that grows to the largest."""
    keys = (b"r" + (2**32 - 1 - 4096 * i).to_bytes(4, "little") for i in range(100_000))
    value = b"N" + b"".join(keys) + b"0" + dict_(text("w"), tensor())
    return opened(folder, checkpoint(value)[0], ["w"])


def one_tensor_many_times(folder: Path) -> Opened:
    value = list_(tensor() + put(0) + get(0) * 199_999)
    return opened(folder, checkpoint(value)[0], ["0", "1", "2"], 200_000)


def names_of_gigabytes(folder: Path) -> Refused:
    """A key of 64 KiB around 10,000 nested dicts, each with a tensor."""
    key = text("k" * 65536) + put(1)
    pickle = tensor() + put(0) + b"0" + key + b"0"
    pickle += (b"}(" + text("w") + get(0) + get(1)) * 10_000 + b"}" + b"u" * 10_000
    data, offset = checkpoint(pickle)
    size = len(b"\x80\x02" + pickle + b".")
    return refused(
        folder,
        data,
        f"the slot names add up to more than {2**20 + 64 * size} bytes, expected at "
        f"most 64 for each byte of 'archive/data.pkl' [byte {offset}]",
        NotImplementedError,
    )


def an_int_of_a_megabyte(folder: Path) -> Opened:
    """Whose decimal digits take quadratic time."""
    digits = b"\x8b" + MANY.to_bytes(4, "little") + b"\x7f" * MANY
    value = dict_(text("n"), digits, text("w"), tensor())
    return opened(folder, checkpoint(value)[0], ["w"])


def a_decimal_of_a_megabyte(folder: Path) -> Opened:
    value = dict_(text("n"), b"L" + b"9" * MANY + b"L\n", text("w"), tensor())
    return opened(folder, checkpoint(value)[0], ["w"])


def a_million_appends(folder: Path) -> Opened:
    """Two lists in turn, so that neither's values stand together."""
    value = b"]" + put(1) + b"0]" + put(2) + b"0"
    value += (get(1) + b"Na0" + get(2) + b"Na0") * (MANY // 8)
    value += tuple_(get(1), get(2), tensor())
    return opened(folder, checkpoint(value)[0], ["2"])


def keys_that_collide(folder: Path) -> Opened:
    """Names for a table whose hash an attacker may know: all of one length."""
    keys = b"".join(text(f"{i:016x}") + b"N" for i in range(100_000))
    value = b"}(" + keys + text("w") + tensor() + b"u"
    return opened(folder, checkpoint(value)[0], ["w"])
