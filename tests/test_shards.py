"""Checkpoints in several files: by their index, and as a list of paths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mapped_checkpoints import MIB
from torch import Tensor

import ckpt_streamer  # noqa: F401 - registers the ops

OPEN = torch.ops.ckpt_streamer.open

A, B, C = torch.arange(5.0), torch.ones(3, 4), torch.arange(7)


def read_all(path: str | Path | list[str]) -> list[tuple[str, Tensor]]:
    handle = OPEN(str(path) if isinstance(path, Path) else path, 64 * MIB)
    items = []
    while handle.has_next():
        items.append(handle.next())
    return items


def write_index(path: Path, weight_map: Mapping[str, str]) -> Path:
    path.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2)
    )
    return path


def sharded(folder: Path) -> Path:
    """Two shards of safetensors and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    first = "model-00001-of-00002.safetensors"
    second = "model-00002-of-00002.safetensors"
    safetensors.torch.save_file({"a": A, "c": C}, folder / first, {"format": "pt"})
    safetensors.torch.save_file({"b": B}, folder / second, {"format": "pt"})
    return write_index(
        folder / "model.safetensors.index.json", {"b": second, "a": first, "c": first}
    )


def assert_items(
    items: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]
) -> None:
    assert [name for name, _ in items] == [name for name, _ in expected]
    for (_, tensor), (_, value) in zip(items, expected, strict=True):
        assert tensor.dtype == value.dtype
        assert torch.equal(tensor, value)


def test_shards_are_streamed_in_file_order(tmp_path: Path) -> None:
    # safetensors puts the widest elements first.
    assert_items(read_all(sharded(tmp_path)), [("c", C), ("a", A), ("b", B)])


def test_shards_of_torch_save(tmp_path: Path) -> None:
    torch.save({"a": A, "tied": A}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": B}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = write_index(
        tmp_path / "pytorch_model.bin.index.json",
        {
            "a": "pytorch_model-00001-of-00002.bin",
            "tied": "pytorch_model-00001-of-00002.bin",
            "b": "pytorch_model-00002-of-00002.bin",
        },
    )
    items = read_all(index)
    assert_items(items, [("a", A), ("tied", A), ("b", B)])
    assert items[0][1].data_ptr() == items[1][1].data_ptr()


def test_an_index_without_a_folder_in_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = sharded(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in read_all(index.name)] == ["c", "a", "b"]


def test_shards_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    safetensors.torch.save_file({"a": A}, tmp_path / "parts/1.safetensors")
    index = write_index(tmp_path / "index.json", {"a": "parts/1.safetensors"})
    assert_items(read_all(index), [("a", A)])


def test_the_cache_of_hugging_face(tmp_path: Path) -> None:
    """Index and shards are symbolic links into blobs/, which knows no names."""
    files = tmp_path / "files"
    index = sharded(files)
    blobs = tmp_path / "models--m/blobs"
    snapshot = tmp_path / "models--m/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(files.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert_items(read_all(snapshot / index.name), [("c", C), ("a", A), ("b", B)])


def test_the_limit_holds_over_all_shards(tmp_path: Path) -> None:
    weight_map = {}
    for i in range(8):
        name = f"{i}.safetensors"
        tensors = {f"{i}.{j}": torch.full((MIB // 4,), i * 8.0 + j) for j in range(8)}
        safetensors.torch.save_file(tensors, tmp_path / name)
        weight_map.update(dict.fromkeys(tensors, name))
    handle = OPEN(str(write_index(tmp_path / "i.json", weight_map)), 8 * MIB)
    names = []
    total = 0.0
    while handle.has_next():
        name, tensor = handle.next()
        names.append(name)
        total += float(tensor.sum())
        assert handle.bytes_resident() <= 8 * MIB
    assert names == [f"{i}.{j}" for i in range(8) for j in range(8)]
    assert total == sum(range(64)) * MIB / 4
    assert handle.bytes_streamed() == 64 * MIB
    assert handle.bytes_resident() == 0
    assert 0 < handle.peak_bytes_resident() <= 8 * MIB


def test_tensors_outlive_their_handle(tmp_path: Path) -> None:
    items = read_all(sharded(tmp_path))
    assert_items(items, [("c", C), ("a", A), ("b", B)])


def test_a_shard_that_shrinks_is_seen(tmp_path: Path) -> None:
    handle = OPEN(str(sharded(tmp_path)), 64 * MIB)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, 50)
    with pytest.raises(ValueError, match="shrunk") as error:
        handle.next()
    assert str(error.value).startswith(
        f"{shard}: the file has shrunk to 50 bytes since it was opened, expected {size}"
    )


def expect_error(path: Path | list[str], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        read_all(path)
    assert str(error.value).split("\nException raised", maxsplit=1)[0] == text


@pytest.mark.parametrize(
    ("shard", "found"),
    [
        ("../x.safetensors", "has a '..' part"),
        ("/x.safetensors", "is absolute"),
        ("", "is empty"),
    ],
)
def test_shards_stay_in_the_directory(tmp_path: Path, shard: str, found: str) -> None:
    safetensors.torch.save_file({"a": A}, tmp_path / "x.safetensors")
    (tmp_path / "d").mkdir()
    index = tmp_path / "d/i.json"
    index.write_text(f'{{"weight_map":{{"a":"{shard}"}}}}')
    expect_error(
        index,
        ValueError,
        f"{index}: has the shard '{shard}', which {found}; expected a path inside "
        "the index's directory [byte 19]",
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i.json", {"a": "x.safetensors"})
    expect_error(
        index,
        RuntimeError,
        f"{tmp_path}/x.safetensors: cannot open: No such file or directory",
    )


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    first = "model-00001-of-00002.safetensors"
    second = "model-00002-of-00002.safetensors"
    write_index(index, {"a": first, "b": second, "d": second})
    expect_error(
        index,
        ValueError,
        f"{index}: shard '{second}' has no tensor 'd', expected it there as "
        "'weight_map' says",
    )
    write_index(index, {"a": second, "b": first})
    expect_error(
        index,
        ValueError,
        f"{index}: shard '{first}' has the tensor 'a', expected it in '{second}' as "
        "'weight_map' says",
    )


def test_a_list_of_paths_is_one_stream(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": A}, tmp_path / "z.safetensors")
    torch.save([B, A], tmp_path / "y.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("z.safetensors", "y.pt", "x.pt")]
    items = read_all([*paths, paths[0]])
    assert [name for name, _ in items] == ["a", "0", "1", "weight", "bias", "a"]
    assert_items(items[:3], [("a", A), ("0", B), ("1", A)])
    assert_items(items[-1:], [("a", A)])


def test_a_list_of_paths_in_torchscript(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / "a.pt")
    torch.save({"b": B}, tmp_path / "b.pt")

    @torch.jit.script
    def names(paths: list[str]) -> list[str]:
        handle = torch.ops.ckpt_streamer.open(paths, 1048576)
        result: list[str] = []
        while handle.has_next():
            result.append(handle.next()[0])
        return result

    assert names([str(tmp_path / "b.pt"), str(tmp_path / "a.pt")]) == ["b", "a"]


def test_bad_lists_of_paths(tmp_path: Path) -> None:
    expect_error(
        [],
        ValueError,
        "the list of paths is empty, expected the path of a checkpoint file",
    )
    index = sharded(tmp_path)
    expect_error(
        [str(index)],
        NotImplementedError,
        f"{index}: is JSON, such as an index of shards, which is not read; expected a "
        "torch.save, TorchScript or safetensors file",
    )
    with pytest.raises(ValueError, match="memory_limit_bytes is 0"):
        OPEN([str(index)], 0)


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    expect_error(
        fifo, ValueError, f"{fifo}: is not a regular file, expected a checkpoint file"
    )
    zero = Path("/dev/zero")
    expect_error(
        zero, ValueError, "/dev/zero: is not a regular file, expected a checkpoint file"
    )
    index = write_index(tmp_path / "i.json", {"a": "fifo"})
    expect_error(
        index, ValueError, f"{fifo}: is not a regular file, expected a checkpoint file"
    )


def test_directories_and_urls_are_named(tmp_path: Path) -> None:
    expect_error(
        tmp_path, ValueError, f"{tmp_path}: is a directory, expected a checkpoint file"
    )
    folder = tmp_path / "model"
    sharded(folder)
    expect_error(
        folder,
        ValueError,
        f"{folder}: is a directory, expected the path of the "
        "'model.safetensors.index.json' in it",
    )
    (tmp_path / ".metadata").touch()
    expect_error(
        tmp_path,
        NotImplementedError,
        f"{tmp_path}: is the directory of a distributed checkpoint, which is not "
        "read; expected a torch.save, TorchScript or safetensors file",
    )
    url = "https://huggingface.co/gpt2/resolve/main/model.safetensors"
    expect_error(
        [url],
        NotImplementedError,
        f"{url}: is a URL (https), which is not read; expected the path of a local "
        "file",
    )
