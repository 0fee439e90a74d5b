"""verify=True: records are held against their CRC-32."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mapped_checkpoints import MIB
from torch import Tensor

import ckpt_streamer

OPEN = torch.ops.ckpt_streamer.open


def read_all(handle: Any) -> list[tuple[str, Tensor]]:
    result = []
    while handle.has_next():
        result.append(handle.next())
    return result


def record(path: Path, name: str) -> tuple[int, int]:
    """Where a record's bytes begin in the file, and the checksum that it has."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = path.read_bytes()
    at = info.header_offset
    lengths = [int.from_bytes(data[at + i : at + i + 2], "little") for i in (26, 28)]
    return at + 30 + sum(lengths), info.CRC


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    result = tmp_path / "x.pt"
    torch.save({"a": torch.arange(1000), "b": torch.zeros(3 * MIB // 4)}, result)
    return result


@pytest.mark.parametrize("limit", [1, 4096, MIB, 64 * MIB])
def test_a_good_file(path: Path, limit: int) -> None:
    items = read_all(OPEN(str(path), limit, verify=True))
    assert [name for name, _ in items] == ["a", "b"]
    assert torch.equal(items[0][1], torch.arange(1000))


def test_a_bad_record_is_told_before_its_first_tensor(path: Path) -> None:
    begin, crc = record(path, "x/data/1")
    flip(path, begin + 2 * MIB)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(path).read("x/data/1")
    # Not asked, not looked at.
    assert len(read_all(OPEN(str(path), MIB))) == 2
    handle = OPEN(str(path), MIB, verify=True)
    assert handle.next()[0] == "a"
    for _ in range(2):
        with pytest.raises(ValueError, match="CRC-32") as caught:
            handle.next()
        text = str(caught.value)
        assert text.startswith(f"{path}: record 'x/data/1' has the CRC-32 0x")
        assert f", expected 0x{crc:08x} as the zip's directory says" in text
        assert f"[byte {begin}]" in text


def test_no_page_is_touched_for_it(path: Path) -> None:
    """What was verified is not what is resident."""
    handle = OPEN(str(path), 64 * MIB, verify=True)
    handle.next()
    handle.next()
    assert handle.bytes_resident() == 0


def test_a_bad_pickle_is_told_on_opening(path: Path) -> None:
    begin, crc = record(path, "x/data.pkl")
    at = path.read_bytes().index(b"\x01\x00\x00\x00b", begin)
    flip(path, at + 4)  # the key 'b' becomes 'c'
    assert [name for name, _ in read_all(OPEN(str(path), MIB))] == ["a", "c"]
    with pytest.raises(ValueError, match=f"expected 0x{crc:08x} as the zip's") as error:
        OPEN(str(path), MIB, verify=True)
    assert f"{path}: record 'x/data.pkl' has the CRC-32 0x" in str(error.value)


def test_torchscript_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    assert len(read_all(OPEN(str(path), MIB, verify=True))) == 2
    begin, _ = record(path, "x/constants.pkl")
    flip(path, begin)
    with pytest.raises(ValueError, match=r"x/constants\.pkl"):
        OPEN(str(path), MIB, verify=True)


def test_several_files(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save([torch.ones(5)], other)
    paths = [str(path), str(other)]
    assert len(read_all(OPEN(paths, MIB, verify=True))) == 3
    begin, _ = record(other, "other/data/0")
    flip(other, begin + 19)
    with pytest.raises(ValueError, match=f"{other}: record 'other/data/0' has"):
        read_all(OPEN(paths, MIB, verify=True))


def save_without_checksums(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save([torch.ones(2)], path)
    finally:
        torch.serialization.set_crc32_options(True)


FORMATS = {
    "safetensors": lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path),
    "legacy": lambda path: torch.save(
        [torch.ones(2)], path, _use_new_zipfile_serialization=False
    ),
    "zip without": save_without_checksums,
}


@pytest.mark.parametrize("save", FORMATS.values(), ids=list(FORMATS))
def test_files_without_checksums_say_so(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "x"
    save(path)
    assert len(read_all(OPEN(str(path), MIB))) == 1
    with pytest.raises(NotImplementedError) as caught:
        OPEN(str(path), MIB, verify=True)
    assert str(caught.value).startswith(
        f"{path}: has no checksums to verify; expected a zip archive of torch.save or "
        "torch.jit.save that was saved with them"
    )


def test_unaligned_records(path: Path, tmp_path: Path) -> None:
    rezipped = tmp_path / "rezipped.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(rezipped, "w") as target:
        target.writestr("x/odd", "odd")
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert len(read_all(OPEN(str(rezipped), MIB, verify=True))) == 2
    begin, _ = record(rezipped, "x/data/0")
    flip(rezipped, begin)
    with pytest.raises(ValueError, match="x/data/0"):
        read_all(OPEN(str(rezipped), MIB, verify=True))


def test_a_checkpoint_in_python(path: Path) -> None:
    begin, _ = record(path, "x/data/1")
    flip(path, begin)
    with ckpt_streamer.open(path, verify=True) as checkpoint:
        assert torch.equal(checkpoint["a"], torch.arange(1000))
        for _ in range(2):
            with pytest.raises(ValueError, match="x/data/1"):
                checkpoint["b"]
        with pytest.raises(ValueError, match="x/data/1"):
            list(checkpoint)
    with ckpt_streamer.open(path) as checkpoint:
        assert len(list(checkpoint)) == 2
    begin, _ = record(path, "x/data.pkl")
    flip(path, begin + path.read_bytes()[begin:].index(b"cpu"))
    with pytest.raises(ValueError, match=r"x/data\.pkl"):
        ckpt_streamer.open(path, verify=True)


def open_verified(path: str) -> int:
    handle = torch.ops.ckpt_streamer.open(path, 1048576, verify=True)
    return len(handle)


def test_in_torchscript(path: Path) -> None:
    assert torch.jit.script(open_verified)(str(path)) == 2
