"""Indexes of shards that lie, and shards that are no shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from hostile.files import HERE, Opened, Refused, refused


def index_file(folder: Path, content: str) -> tuple[Path, int]:
    """An index beside a shard that has 'w'; returns where HERE is in it."""
    save_file({"w": torch.ones(2)}, folder / "shard.safetensors")
    path = folder / "model.safetensors.index.json"
    offset = max(content.find(HERE.decode()), 0)
    path.write_text(content.replace(HERE.decode(), ""))
    return path, offset


def refused_index(
    folder: Path,
    content: str,
    what: str,
    error: type[Exception] = ValueError,
    has_place: bool = True,
) -> Refused:
    path, offset = index_file(folder, content)
    place = f" [byte {offset}]" if has_place else ""
    return Refused(path, f"{path}: {what}{place}", error)


def refused_shard(folder: Path, shard: str, found: str) -> Refused:
    """A shard whose name leads out of the folder."""
    content = '{"weight_map":{"w":' + HERE.decode() + json.dumps(shard) + "}}"
    shown = shard.replace("\0", "\\x00")
    return refused_index(
        folder,
        content,
        f"has the shard '{shown}', which {found}; expected a path inside the index's "
        "directory",
    )


def a_shard_that_climbs(folder: Path) -> Refused:
    return refused_shard(folder, "../../etc/passwd", "has a '..' part")


def a_shard_that_climbs_from_within(folder: Path) -> Refused:
    return refused_shard(folder, "a/../../etc/passwd", "has a '..' part")


def an_absolute_shard(folder: Path) -> Refused:
    return refused_shard(folder, "/etc/passwd", "is absolute")


def a_shard_with_a_nul(folder: Path) -> Refused:
    return refused_shard(folder, "shard.safetensors\0.txt", "holds a NUL character")


def a_shard_without_a_name(folder: Path) -> Refused:
    return refused_shard(folder, "", "is empty")


def a_shard_that_is_missing(folder: Path) -> Refused:
    path, _ = index_file(folder, '{"weight_map":{"w":"no.safetensors"}}')
    shard = folder / "no.safetensors"
    return Refused(
        path, f"{shard}: cannot open: No such file or directory", RuntimeError
    )


def a_shard_that_is_a_fifo(folder: Path) -> Refused:
    path, _ = index_file(folder, '{"weight_map":{"w":"fifo"}}')
    os.mkfifo(folder / "fifo")
    return Refused(
        path, f"{folder / 'fifo'}: is not a regular file, expected a checkpoint file"
    )


def a_shard_that_is_the_index(folder: Path) -> Refused:
    """Which would be read for ever."""
    path, _ = index_file(folder, '{"weight_map":{"w":"model.safetensors.index.json"}}')
    return Refused(
        path,
        f"{path}: is JSON, such as an index of shards, which is not read; expected a "
        "torch.save, TorchScript or safetensors file",
        NotImplementedError,
    )


def a_shard_without_its_tensor(folder: Path) -> Refused:
    return refused_index(
        folder,
        '{"weight_map":{"w":"shard.safetensors","v":"shard.safetensors"}}',
        "shard 'shard.safetensors' has no tensor 'v', expected it there as "
        "'weight_map' says",
        has_place=False,
    )


def a_tensor_in_another_shard(folder: Path) -> Refused:
    save_file({"v": torch.ones(2)}, folder / "zother.safetensors")
    return refused_index(
        folder,
        '{"weight_map":{"v":"zother.safetensors","w":"zother.safetensors",'
        '"x":"shard.safetensors"}}',
        "shard 'shard.safetensors' has the tensor 'w', expected it in "
        "'zother.safetensors' as 'weight_map' says",
        has_place=False,
    )


def an_index_without_shards(folder: Path) -> Refused:
    return refused_index(
        folder,
        '{"weight_map":' + HERE.decode() + "{}}",
        "has an empty 'weight_map', expected a shard for each tensor",
    )


def an_index_without_a_map(folder: Path) -> Refused:
    return refused_index(
        folder,
        '{"metadata":{}}',
        "is a JSON object without 'weight_map', expected an index of shards",
    )


def an_index_with_two_maps(folder: Path) -> Refused:
    shards = '{"w":"shard.safetensors"}'
    return refused_index(
        folder,
        f'{{"weight_map":{shards},"weight_map":{HERE.decode()}{shards}}}',
        "has 'weight_map' twice, expected it once",
    )


def an_index_with_a_tensor_twice(folder: Path) -> Refused:
    return refused_index(
        folder,
        f'{{"weight_map":{HERE.decode()}{{"w":"shard.safetensors","w":"shard.safetensors"}}}}',
        "has the tensor 'w' twice in 'weight_map', expected distinct names",
    )


def an_index_of_numbers(folder: Path) -> Refused:
    return refused_index(
        folder,
        '{"weight_map":{"w":' + HERE.decode() + "1}}",
        "found a number, expected a string as the shard of tensor 'w' in the index of "
        "shards",
    )


def an_index_of_a_million_objects(folder: Path) -> Refused:
    opening = '{"a":'
    return refused_index(
        folder,
        opening * 128 + HERE.decode() + opening * 200_000,
        "found nesting deeper than 128, expected at most that in the index of shards",
    )


def shards_in_folders_and_links(folder: Path) -> Opened:
    """What is allowed: a folder below, and a link as in Hugging Face's cache."""
    path, _ = index_file(folder, '{"weight_map":{"w":"below/shard.safetensors"}}')
    (folder / "below").mkdir()
    (folder / "below" / "shard.safetensors").symlink_to(folder / "shard.safetensors")
    return Opened(path, ["w"])


def a_list_with_a_broken_file(folder: Path) -> Refused:
    """The second file's error names the second."""
    save_file({"w": torch.ones(2)}, folder / "good.safetensors")
    broken = refused(folder, b"", "is empty")
    assert isinstance(broken.path, Path)
    return Refused(
        [folder / "good.safetensors", broken.path],
        f"{broken.path}: is empty, expected a torch.save, TorchScript or safetensors "
        "file",
    )
