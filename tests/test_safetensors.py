"""safetensors files, held against the package that defines them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from mapped_checkpoints import MIB
from torch import Tensor

import ckpt_streamer  # noqa: F401 - registers the ops

OPEN = torch.ops.ckpt_streamer.open
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float4_e2m1fn_x2,
    torch.int16,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.uint32,
    torch.float32,
    torch.complex64,
    torch.float64,
    torch.int64,
    torch.uint64,
]


def read_all(path: Path) -> dict[str, Tensor]:
    handle = OPEN(str(path), 64 * MIB)
    items = {}
    while handle.has_next():
        name, tensor = handle.next()
        assert name not in items
        items[name] = tensor
    return items


def reference(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        tensor = ours[name]
        assert tensor.dtype == expected.dtype
        assert tensor.shape == expected.shape
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % tensor.element_size() == 0
        assert as_bytes(tensor.reshape(-1)) == as_bytes(expected.reshape(-1))


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    data = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def write(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "matrix": random_tensor(dtype, (3, 4), 1),
        "vector": random_tensor(dtype, (6,), 2),
        "empty": random_tensor(dtype, (0, 2), 3),
    }
    if dtype != torch.float4_e2m1fn_x2:
        tensors["scalar"] = random_tensor(dtype, (), 4)
    safetensors.torch.save_file(tensors, path)
    assert_same(read_all(path), reference(path))


def test_the_reference_has_no_other_dtype() -> None:
    known = {str(dtype) for dtype in safetensors.torch._SIZE}
    assert known == {str(dtype) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_dtypes_that_torch_does_not_have(tmp_path: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [4], "data_offsets": [0, 3]}
    path = write(tmp_path / "m", json.dumps({"w": entry}), b"123")
    assert len(safetensors.deserialize(path.read_bytes())) == 1
    with pytest.raises(NotImplementedError) as error:
        OPEN(str(path), MIB)
    assert str(error.value).startswith(
        f"{path}: tensor 'w' has the dtype {dtype}, which torch does not have; "
        "expected one that it has in the header [byte 14]"
    )


# The header's length decides where the data begin.
@pytest.mark.parametrize("padding", range(9))
def test_unaligned_data_are_copied_aligned(tmp_path: Path, padding: int) -> None:
    tensors = {
        f"{dtype}": random_tensor(dtype, (3,), 1)
        for dtype in (torch.uint8, torch.int16, torch.float32, torch.complex64)
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path)
    file = path.read_bytes()
    size = struct.unpack("<Q", file[:8])[0]
    write(path, file[8 : 8 + size].rstrip() + b" " * padding, file[8 + size :])
    assert_same(read_all(path), tensors)


def test_old_files_are_in_any_order(tmp_path: Path) -> None:
    header = {
        "b": {"dtype": "F64", "shape": [1], "data_offsets": [3, 11]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "c": {"dtype": "I16", "shape": [1, 1], "data_offsets": [11, 13]},
    }
    path = write(tmp_path / "m", json.dumps(header), bytes(range(13)))
    ours = read_all(path)
    assert list(ours) == ["a", "b", "c"]
    assert_same(ours, safetensors.torch.load(path.read_bytes()))


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(4)}, path)
    before = path.read_bytes()
    tensor = read_all(path)["w"]
    assert tensor.untyped_storage().nbytes() == 16
    tensor.add_(1)
    assert path.read_bytes() == before


@examples(150)
@given(
    entries=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([dtype for dtype in DTYPES if dtype.itemsize > 1]),
            st.lists(st.integers(0, 3), max_size=4),
        ),
        max_size=6,
    ),
    # Neither tensors nor metadata: the reference writes no JSON.
    metadata=st.none()
    | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1),
)
def test_any_file_is_read_as_the_reference_does(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[str, tuple[torch.dtype, list[int]]],
    metadata: dict[str, str] | None,
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    tensors = {
        name: random_tensor(dtype, tuple(shape), i)
        for i, (name, (dtype, shape)) in enumerate(entries.items())
    }
    safetensors.torch.save_file(tensors, path, metadata)
    assert_same(read_all(path), tensors)


T = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
U = '{"dtype":"U8","shape":[2],"data_offsets":[2,4]}'
D = b"1234"


def with_fields(fields: str) -> str:
    return '{"w":{' + fields + "}}"


REFUSED: dict[str, tuple[str | bytes, bytes]] = {
    "nothing": ("", b""),
    "null": ("null", b""),
    "array": ("[]", b""),
    "trailing characters": (f'{{"a":{T}}}x', D),
    "trailing NUL": (f'{{"a":{T}}}\0', D),
    "trailing comma": (f'{{"a":{T},}}', D),
    "byte order mark": ("\ufeff{}", b""),
    "not UTF-8": (b'{"\xff":' + T.encode() + b"}", D),
    "control character": (f'{{"a\x01":{T}}}', D),
    "unknown escape": (f'{{"a\\x":{T}}}', D),
    "lone surrogate": (f'{{"\\ud800":{T}}}', D),
    "leading zero": (with_fields('"dtype":"U8","shape":[01],"data_offsets":[0,1]'), D),
    "no dtype": (with_fields('"shape":[1],"data_offsets":[0,4]'), D),
    "no shape": (with_fields('"dtype":"F32","data_offsets":[0,4]'), D),
    "no offsets": (with_fields('"dtype":"F32","shape":[1]'), D),
    "dtype twice": (
        with_fields('"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]'),
        D,
    ),
    "dtype null": (with_fields('"dtype":null,"shape":[1],"data_offsets":[0,4]'), D),
    "dtype unknown": (with_fields('"dtype":"f32","shape":[1],"data_offsets":[0,4]'), D),
    "float size": (with_fields('"dtype":"F32","shape":[1.0],"data_offsets":[0,4]'), D),
    "negative size": (
        with_fields('"dtype":"F32","shape":[-1],"data_offsets":[0,4]'),
        D,
    ),
    "negative zero": (
        with_fields('"dtype":"U8","shape":[-0],"data_offsets":[0,0]'),
        b"",
    ),
    "text size": (with_fields('"dtype":"F32","shape":["1"],"data_offsets":[0,4]'), D),
    "size of 2^64": (
        with_fields('"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4]'),
        D,
    ),
    "product of 2^65": (
        with_fields(
            '"dtype":"U8","shape":[18446744073709551615,2,0],"data_offsets":[0,0]'
        ),
        b"",
    ),
    "three offsets": (
        with_fields('"dtype":"F32","shape":[1],"data_offsets":[0,4,4]'),
        D,
    ),
    "one offset": (with_fields('"dtype":"F32","shape":[1],"data_offsets":[0]'), D),
    "end before begin": (
        with_fields('"dtype":"F32","shape":[1],"data_offsets":[4,0]'),
        D,
    ),
    "hole at the begin": (
        with_fields('"dtype":"F32","shape":[1],"data_offsets":[4,8]'),
        D + D,
    ),
    "bytes behind the end": (f'{{"a":{T}}}', D + b"x"),
    "bytes missing": (f'{{"a":{T}}}', b"123"),
    "overlap": (f'{{"a":{T},"b":{U}}}', D),
    "same bytes": (f'{{"a":{T},"b":{T}}}', D),
    "wrong size": (with_fields('"dtype":"F32","shape":[2],"data_offsets":[0,4]'), D),
    "half a byte": (with_fields('"dtype":"F4","shape":[3],"data_offsets":[0,1]'), b"x"),
    "metadata of numbers": (f'{{"__metadata__":{{"a":1}},"a":{T}}}', D),
    "metadata of text": (f'{{"__metadata__":"a","a":{T}}}', D),
    "metadata twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{T}}}', D),
    "too deep": (
        with_fields(
            '"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":' + "[" * 200 + "]" * 200
        ),
        D,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_reference_refuses_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.safetensors", *REFUSED[name])
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(path.read_bytes())
    with pytest.raises(ValueError, match="expected") as error:
        OPEN(str(path), MIB)
    assert str(error.value).startswith(f"{path}: ")


# What the format's own text forbids, and the reference lets pass.
@pytest.mark.parametrize(
    "header",
    [
        f' {{"a":{T}}}',
        f'{{"a":{T},"a":{T}}}',
        f'{{"__metadata__":{{"a":"","a":""}},"a":{T}}}',
        '{"a":["F32",[1],[0,4]]}',
    ],
)
def test_stricter_than_the_reference(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "m.safetensors", header, D)
    assert len(safetensors.deserialize(path.read_bytes())) == 1
    with pytest.raises(ValueError, match="expected"):
        OPEN(str(path), MIB)


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a":{T}}} \t\r\n ',
        f'{{"a\\/\\ud83d\\ude00\\u0000":{T}}}',
        f'{{"":{T}}}',
        f'{{"__metadata__":null,"a":{T}}}',
        with_fields('"dtype":"F32","x":{"y":[1,1]},"shape":[1],"data_offsets":[0,4]'),
        with_fields('"dtype":"U8","shape":[2,2,1,1],"data_offsets":[0,4]'),
    ],
)
def test_as_lenient_as_the_reference(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "m.safetensors", header, D)
    assert_same(read_all(path), safetensors.torch.load(path.read_bytes()))


@examples(300)
@given(data=st.data())
def test_mutants_are_refused_when_the_reference_refuses_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = bytearray(
        safetensors.torch.save(
            {"a": torch.ones(2), "b\u00e9": torch.ones(1, 3).bfloat16()}, {"k": "v"}
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, len(file) - 15))
        file[at] = data.draw(st.sampled_from(b'{}[]",:0123459-. \\uabF\xc3\xff'))
    path = tmp_path_factory.mktemp("mutant") / "m.safetensors"
    path.write_bytes(file)
    try:
        theirs: Any = safetensors.torch.load(bytes(file))
    except (safetensors.SafetensorError, KeyError, OverflowError, ValueError):
        theirs = None
    try:
        ours: Any = read_all(path)
    except (ValueError, NotImplementedError):
        return
    if theirs is not None:
        assert_same(ours, theirs)
    else:  # a dtype that the package's Python half does not map
        assert safetensors.deserialize(bytes(file))
