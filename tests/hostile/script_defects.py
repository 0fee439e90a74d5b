"""Defects of TorchScript archives."""

from __future__ import annotations

from pathlib import Path

from hostile.files import (
    HERE,
    THREE,
    Record,
    Refused,
    build_zip,
    dict_,
    get,
    global_,
    integer,
    put,
    refused,
    storage,
    tensor,
    text,
    tuple_,
    wrong_tensor,
)

EMPTY = b"\x80\x02)."
CLASS = global_("__torch__", "Module")


def script(
    state: bytes, constants: bytes = EMPTY, others: list[Record] | None = None
) -> tuple[bytes, int]:
    """An archive of a module with this state, and where HERE is in it."""
    pickle = b"\x80\x02" + CLASS + b")\x81" + state + b"b."
    at = max(pickle.find(HERE), 0)
    if others is None:
        others = [Record(b"model/data/0", THREE)]
    made = build_zip(
        [
            Record(b"model/data.pkl", pickle.replace(HERE, b"")),
            Record(b"model/code/__torch__.py", b"import os; os.system('id')"),
            Record(b"model/constants.pkl", constants),
            *others,
            Record(b"model/version", b"3\n"),
        ]
    )
    return made.data, made.data_offsets[0] + at


def script_without_a_module(folder: Path) -> Refused:
    made = build_zip(
        [Record(b"model/constants.pkl", EMPTY), Record(b"model/version", b"3")]
    )
    return refused(
        folder,
        made.data,
        "is a TorchScript archive without 'model/data.pkl', expected one as "
        "torch.jit.save writes",
    )


def script_before_1_4(folder: Path) -> Refused:
    made = build_zip(
        [Record(b"model/model.json", b"{}"), Record(b"model/version", b"1")]
    )
    return refused(
        folder,
        made.data,
        "is a TorchScript archive from before torch 1.4 (it has 'model/model.json'), "
        "which is not read; expected one of a later torch",
        NotImplementedError,
    )


def script_of_a_future_version(folder: Path) -> Refused:
    made = build_zip(
        [
            Record(b"model/data.pkl", EMPTY),
            Record(b"model/constants.pkl", EMPTY),
            Record(b"model/version", b"11"),
        ]
    )
    return refused(
        folder,
        made.data,
        "record 'model/version' is '11', expected a file format version of at most 10 "
        f"[byte {made.data_offsets[2]}]",
        NotImplementedError,
    )


def script_without_a_storage(folder: Path) -> Refused:
    data, offset = script(wrong_tensor(storage=storage(key="7")))
    return refused(
        folder,
        data,
        "tensor 'w' has the storage '7', expected a record 'model/data/7' in "
        f"'model/data.pkl' [byte {offset}]",
    )


def script_with_broken_constants(folder: Path) -> Refused:
    data, _ = script(dict_(text("w"), tensor()), b"\x80\x02(.")
    offset = data.index(b"\x80\x02(.") + 3
    return refused(
        folder,
        data,
        "pickle opcode 0x2e (STOP) finds 0 values on the stack, expected 1 in "
        f"'model/constants.pkl' [byte {offset}]",
    )


def script_modules_that_unfold(folder: Path) -> Refused:
    """Each module has the last one twice: 2^30 names for one tensor."""
    value = CLASS + b")\x81" + dict_(text("w"), tensor()) + b"b" + put(0)
    depth = 30
    for i in range(depth):
        value = (
            CLASS
            + b")\x81"
            + dict_(text("a"), value, text("b"), get(i))
            + b"b"
            + put(i + 1)
        )
    data, offset = script(dict_(text("m"), value))
    values = 501  # of the pickle, 260 of which are in any
    return refused(
        folder,
        data,
        f"the shared containers unfold to more than {64 * values} values, expected at "
        f"most 64 for each of the {values} in 'model/data.pkl' [byte {offset}]",
        NotImplementedError,
    )


def script_with_a_call(folder: Path) -> Refused:
    """A storage that a call of Python would make."""
    call = global_("os", "system") + tuple_(text("id")) + b"R"
    data, offset = script(wrong_tensor(storage=call, offset=integer(0)))
    return refused(
        folder,
        data,
        "tensor 'w' has the storage <os.system object>, expected a persistent id in "
        f"'model/data.pkl' [byte {offset}]",
    )
