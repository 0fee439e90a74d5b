"""Pickles that are broken, or that contradict the storages beside them."""

from __future__ import annotations

from pathlib import Path

from hostile.files import (
    HERE,
    Record,
    Refused,
    call,
    checkpoint,
    dict_,
    get,
    global_,
    integer,
    integers,
    list_,
    put,
    refused,
    refused_pickle,
    storage,
    tensor,
    text,
    tuple_,
    wrong_tensor,
)

# Bytes that are no pickle


def an_empty_pickle(folder: Path) -> Refused:
    made, offset = checkpoint(b"\x80\x02")
    data = made.replace(b"\x80\x02", b"\x80\x02")
    return refused(
        folder,
        data,
        "the pickle ends after 2 bytes, expected a STOP opcode in 'archive/data.pkl' "
        f"[byte {offset + 2}]",
    )


def no_stop(folder: Path) -> Refused:
    made, offset = checkpoint(b"\x80\x02" + dict_(text("w"), tensor()))
    size = len(b"\x80\x02" + dict_(text("w"), tensor()))
    return refused(
        folder,
        made,
        f"the pickle ends after {size} bytes, expected a STOP opcode in "
        f"'archive/data.pkl' [byte {offset + size}]",
    )


def a_byte_that_is_no_opcode(folder: Path) -> Refused:
    return refused_pickle(
        folder, b"N" + HERE + b"\xff", "found byte 0xff, expected a pickle opcode"
    )


def protocol_6(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"\x80\x02" + HERE + b"\x80\x06N.",
        "pickle protocol 6 is not supported, expected at most 5",
        NotImplementedError,
    )


def an_empty_stack(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"R",
        "pickle opcode 0x52 (REDUCE) finds 0 values on the stack, expected 2",
    )


def a_value_below_the_mark(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"]N(" + HERE + b"a",
        "pickle opcode 0x61 (APPEND) finds 0 values on the stack, expected 2",
    )


def no_mark(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"NN" + HERE + b"t",
        "pickle opcode 0x74 (TUPLE) finds no mark on the stack, expected one",
    )


def a_memo_that_was_not_stored(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"N" + put(0) + b"N" + put(1) + HERE + get(7),
        "pickle opcode 0x68 (BINGET) asks for memo 7, expected one of the 2 stored so "
        "far",
    )


def a_memo_key_that_is_no_number(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"N" + HERE + b"p-1\n",
        "pickle opcode 0x70 (PUT) has the key '-1', expected a number",
    )


def a_frame_of_2_to_the_63(folder: Path) -> Refused:
    pickle = b"\x80\x04" + HERE + b"\x95" + (2**63).to_bytes(8, "little") + b"N."
    return refused_pickle(
        folder,
        pickle,
        f"pickle opcode 0x95 (FRAME) has {2**63} bytes, expected at most the remaining "
        "2",
    )


def a_text_of_2_to_the_64(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"\x8d" + b"\xff" * 8 + b"text",
        f"pickle opcode 0x8d (BINUNICODE8) needs {2**64 - 1} more bytes, expected at "
        "most the remaining 5",
    )


def bytes_of_4_gib(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"B\xff\xff\xff\xffdata",
        "pickle opcode 0x42 (BINBYTES) needs 4294967295 more bytes, expected at most "
        "the remaining 5",
    )


def a_long_of_negative_size(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"\x8b\xff\xff\xff\xff1",
        "pickle opcode 0x8b (LONG4) has the size -1, expected 0 or more",
    )


def a_line_without_an_end(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"cposix",
        "pickle opcode 0x63 (GLOBAL) needs a line, expected a newline in front of the "
        "end",
    )


def an_int_that_is_no_number(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"I__import__('os')\n",
        "pickle opcode 0x49 (INT) has the number '__import__('os')', expected decimal "
        "digits",
    )


def a_string_without_quotes(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"Sexec()\n",
        "pickle opcode 0x53 (STRING) has the string 'exec()', expected it in quotes",
    )


def a_global_named_by_a_number(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        text("os") + integer(1) + HERE + b"\x93",
        "pickle opcode 0x93 (STACK_GLOBAL) finds an int as part of a name, expected a "
        "string",
    )


def a_call_without_a_tuple(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        global_("os", "system") + text("id") + HERE + b"R",
        "pickle opcode 0x52 (REDUCE) finds a string as arguments, expected a tuple",
    )


def a_class_that_is_not_there(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"(" + HERE + b"o",
        "pickle opcode 0x6f (OBJ) finds no class above the mark, expected one",
    )


def items_for_a_tuple(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b")(N" + HERE + b"e",
        "pickle opcode 0x65 (APPENDS) adds to a tuple, expected a list or an object",
    )


def entries_for_a_module(folder: Path) -> Refused:
    """sys.modules['os'] = 1"""
    return refused_pickle(
        folder,
        global_("sys", "modules") + text("os") + integer(1) + HERE + b"s",
        "pickle opcode 0x73 (SETITEM) adds to a global, expected a dict or an object",
    )


def a_state_for_a_class(folder: Path) -> Refused:
    """torch.nn.Module.__dict__ is what this would change."""
    return refused_pickle(
        folder,
        global_("torch.nn", "Module") + b"}" + HERE + b"b",
        "pickle opcode 0x62 (BUILD) sets the state of a global, expected an object",
    )


def a_key_without_a_value(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        b"}(" + text("a") + HERE + b"u",
        "pickle opcode 0x75 (SETITEMS) finds 1 keys and values, expected as many keys "
        "as values",
    )


def an_extension(folder: Path) -> Refused:
    """Of copyreg's registry: a callable by its number."""
    return refused_pickle(
        folder,
        HERE + b"\x82\x01",
        "pickle opcode 0x82 (EXT1) refers to something outside the pickle, expected a "
        "pickle that is whole",
        NotImplementedError,
    )


def an_extension_of_4_bytes(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"\x84\xff\xff\xff\x7f",
        "pickle opcode 0x84 (EXT4) refers to something outside the pickle, expected a "
        "pickle that is whole",
        NotImplementedError,
    )


def a_buffer_from_elsewhere(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        HERE + b"\x97",
        "pickle opcode 0x97 (NEXT_BUFFER) refers to something outside the pickle, "
        "expected a pickle that is whole",
        NotImplementedError,
    )


# Storages


def bad_storage(folder: Path, made: bytes, what: str) -> Refused:
    return refused_pickle(folder, wrong_tensor(storage=made), f"tensor 'w' {what}")


def a_persistent_id_that_is_a_string(folder: Path) -> Refused:
    return bad_storage(
        folder,
        HERE + b"Pstorage\n",
        "has the persistent id 'storage', expected ('storage', type, key, location, "
        "count)",
    )


def a_persistent_id_of_two(folder: Path) -> Refused:
    return bad_storage(
        folder,
        tuple_(text("storage"), text("0")) + HERE + b"Q",
        "has the persistent id ('storage', '0'), expected ('storage', type, key, "
        "location, count)",
    )


def a_persistent_id_of_a_module(folder: Path) -> Refused:
    """What torch imported sources from, before 1.6."""
    return bad_storage(
        folder,
        storage(kind="module"),
        "has the persistent id ('module', torch.FloatStorage, '0', 'cpu', 4), expected "
        "('storage', type, key, location, count)",
    )


def a_persistent_id_made_by_a_call(folder: Path) -> Refused:
    return bad_storage(
        folder,
        call(global_("os", "system"), text("id")) + HERE + b"Q",
        "has the persistent id <os.system object>, expected ('storage', type, key, "
        "location, count)",
    )


def a_storage_made_by_a_call(folder: Path) -> Refused:
    return bad_storage(
        folder,
        call(global_("os", "system"), text("id")),
        "has the storage <os.system object>, expected a persistent id",
    )


def a_storage_without_a_record(folder: Path) -> Refused:
    return bad_storage(
        folder,
        storage(key="1"),
        "has the storage '1', expected a record 'archive/data/1'",
    )


def a_storage_that_climbs(folder: Path) -> Refused:
    return bad_storage(
        folder,
        storage(key="../../etc/passwd"),
        "has the storage '../../etc/passwd', expected a record "
        "'archive/data/../../etc/passwd'",
    )


def a_storage_of_another_size(folder: Path) -> Refused:
    return bad_storage(
        folder,
        storage(count=5),
        "has a storage of 5 float32, expected the 16 bytes of record 'archive/data/0'",
    )


def a_storage_of_2_to_the_62(folder: Path) -> Refused:
    """Times four bytes: 2^64, which is 0."""
    return bad_storage(
        folder,
        storage(count=2**62),
        f"has a storage of {2**62} float32, expected the 16 bytes of record "
        "'archive/data/0'",
    )


def a_storage_of_negative_size(folder: Path) -> Refused:
    return bad_storage(
        folder,
        storage(count=-4),
        "has the storage size -4, expected an int of 0 or more",
    )


def a_storage_of_a_function(folder: Path) -> Refused:
    return refused_pickle(
        folder,
        wrong_tensor(storage=storage(global_("os", "system"))),
        "tensor 'w' has the storage type os.system, expected a storage of plain "
        "numbers",
        NotImplementedError,
    )


def a_storage_of_two_types(folder: Path) -> Refused:
    other = storage(global_("torch", "IntStorage"))
    value = dict_(text("v"), tensor()) + text("w") + wrong_tensor(storage=other) + b"s"
    return refused_pickle(
        folder,
        value,
        "tensor 'w.w' has a storage of int32 in record 'archive/data/0', expected "
        "float32 as before",
    )


def a_deflated_storage(folder: Path) -> Refused:
    deflated = b"\x63\x60\x40\x00\x00"
    lying = Record(b"archive/data/0", deflated, 8, size=16, compressed_size=5)
    data, _ = checkpoint(wrong_tensor(storage=storage()), [lying])
    offset = data.index(b"archive/data/0", data.index(b"byteorder")) - 30
    return refused(
        folder,
        data,
        "record 'archive/data/0' of tensor 'w' is compressed (method 8), expected "
        f"stored [byte {offset}]",
        NotImplementedError,
    )


# Tensors


def bad_tensor(
    folder: Path,
    what: str,
    error: type[Exception] = ValueError,
    **arguments: bytes,
) -> Refused:
    return refused_pickle(
        folder, wrong_tensor(**arguments), f"tensor 'w' {what}", error
    )


def a_tensor_past_its_storage(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "reaches to byte 20 of record 'archive/data/0', expected at most its 16 bytes",
        sizes=integers(5),
    )


def an_offset_past_its_storage(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "reaches to byte 32 of record 'archive/data/0', expected at most its 16 bytes",
        offset=integer(4),
    )


def an_offset_of_2_to_the_62(folder: Path) -> Refused:
    """In bytes, 2^64 and a little: inside the storage, if it wraps around."""
    return bad_tensor(
        folder,
        "reaches to byte 2^64 of record 'archive/data/0', expected at most its 16 "
        "bytes",
        offset=integer(2**62),
        sizes=integers(2),
    )


def a_negative_offset(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "has the storage offset -1, expected an int of 0 or more",
        offset=integer(-1),
    )


def an_offset_beyond_64_bits(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        f"has the storage offset {2**70}, expected an int of 0 or more",
        offset=integer(2**70),
    )


def a_negative_size(folder: Path) -> Refused:
    return bad_tensor(
        folder, "has the size -4, expected an int of 0 or more", sizes=integers(-4)
    )


def a_negative_stride(folder: Path) -> Refused:
    return bad_tensor(
        folder, "has the stride -1, expected an int of 0 or more", strides=integers(-1)
    )


def sizes_whose_product_wraps_to_0(folder: Path) -> Refused:
    """2^33 * 2^33, all of them the same element."""
    return bad_tensor(
        folder,
        "has sizes whose product overflows, expected less than 2^63 bytes",
        sizes=integers(2**33, 2**33),
        strides=integers(0, 0),
    )


def a_stride_that_wraps_to_0(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "reaches to byte 2^64 of record 'archive/data/0', expected at most its 16 "
        "bytes",
        sizes=integers(5),
        strides=integers(2**62),
    )


def fewer_strides_than_sizes(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "has 2 sizes and 1 strides, expected as many",
        sizes=integers(2, 2),
    )


def sixty_five_dimensions(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "has 65 sizes, expected at most 64",
        NotImplementedError,
        sizes=integers(*[1] * 65),
        strides=integers(*[1] * 65),
    )


def sizes_that_are_a_text(folder: Path) -> Refused:
    return bad_tensor(
        folder, "has the sizes '4', expected a tuple of ints", sizes=text("4")
    )


def a_size_made_by_a_call(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "has the size <os.system object>, expected an int of 0 or more",
        sizes=tuple_(call(global_("os", "system"), text("id"))),
    )


def a_requires_grad_that_is_no_bool(folder: Path) -> Refused:
    return bad_tensor(
        folder,
        "has the requires_grad 1, expected a bool",
        requires_grad=integer(1),
    )


def metadata_that_is_no_dict(folder: Path) -> Refused:
    return bad_tensor(
        folder, "has the metadata <object>, expected a dict", metadata=list_()
    )


def too_few_arguments(folder: Path) -> Refused:
    rebuild = global_("torch._utils", "_rebuild_tensor_v2")
    return refused_pickle(
        folder,
        dict_(text("w"), rebuild + b")" + HERE + b"R"),
        "tensor 'w' is torch._utils._rebuild_tensor_v2 with 0 arguments, expected 6 or "
        "7",
    )


def a_parameter_of_a_text(folder: Path) -> Refused:
    rebuild = global_("torch._utils", "_rebuild_parameter")
    arguments = tuple_(text("data"), b"\x88", b"}")
    return refused_pickle(
        folder,
        dict_(text("w"), rebuild + arguments + HERE + b"R"),
        "tensor 'w' is a parameter of 'data', expected a parameter of a tensor",
    )


# Dicts


def a_key_twice(folder: Path) -> Refused:
    """Of which one reader takes the first value, and another the last."""
    data, offset = checkpoint(dict_(text("w"), tensor(), text("w"), tensor()))
    return refused(
        folder,
        data,
        "the dict '' has the key 'w' twice, expected distinct keys in "
        f"'archive/data.pkl' [byte {offset}]",
    )


def keys_that_are_equal_numbers(folder: Path) -> Refused:
    data, offset = checkpoint(dict_(integer(1), tensor(), b"\x88", tensor()))
    return refused(
        folder,
        data,
        "the dict '' has the key '1' twice, expected distinct keys in "
        f"'archive/data.pkl' [byte {offset}]",
    )


def a_key_that_is_not_utf_8(folder: Path) -> Refused:
    data, offset = checkpoint(dict_(b"X\x02\0\0\0\xff\xfe", tensor()))
    return refused(
        folder,
        data,
        "the key '\\xff\\xfe' in '' is not UTF-8, expected a string in "
        f"'archive/data.pkl' [byte {offset}]",
    )
