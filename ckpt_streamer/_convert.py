"""Checkpoint files made of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ckpt_streamer import _ops
from ckpt_streamer._arguments import (
    Bounds,
    Path,
    bounds_of,
    check_dtype,
    one_path_of,
)
from ckpt_streamer._checkpoint import Checkpoint, open
from ckpt_streamer._file_stream import Select, lots_of, names_of, selected
from ckpt_streamer._progress import ByteProgress, ProgressFunction
from ckpt_streamer._sizes import bytes_of
from ckpt_streamer._writer import os_errors

Rename = Mapping[str, str | None] | Callable[[str], str | None]
Converter = Callable[[str, Tensor], Tensor]

# Written in one call, so that progress is told and Ctrl-C heard in between.
_CALL_BYTES = 16 * 1024 * 1024


def convert(
    source: Path | Sequence[Path] | Checkpoint,
    target: Path,
    dtype: torch.dtype | None = None,
    select: Select | None = None,
    rename: Rename | None = None,
    shard_size: int | str | None = None,
    memory_limit_mb: int = 1024,
    progress: bool | ProgressFunction = False,
    *,
    converter: Converter | None = None,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    tied: str = "error",
    opaque: str = "error",
    verify: bool = False,
    drop_page_cache: bool = False,
) -> list[str]:
    """Write the tensors of a checkpoint to another file, in bounded memory.

    Nothing in the source is executed. What is at the target stays until the new
    file is whole and on the disk, whatever happens; it may be the source itself.

    Written as ``torch.save``'s file, a source of one file keeps its tree of values,
    with its dicts, lists and numbers, and its tensors stay tied, and views of one
    another. With ``rename``, in several files, and as safetensors, what is written
    are the tensors under their dotted names.

    Args:
        source: What :func:`open` takes, or what it has returned.
        target: The file; its end says the format (``.safetensors``, or ``.pt``,
            ``.pth``, ``.bin`` or ``.ckpt``), unless ``format`` does. With
            ``shard_size``, what the files are named after; see :func:`create`.
        dtype: Floating-point tensors are converted to it, bit for bit as
            ``.to(dtype)`` does it. Of a :class:`Checkpoint`, its own by default.
        select: Which tensors are written; see :func:`open`. Those that are not are
            missing from the tree's dicts, and None in its lists.
        rename: Their names in the target: a function of the name, or a mapping of
            patterns to names, of which the first that matches counts. What ``*``
            stands for in the pattern takes the place of ``*`` in the name. None
            leaves a tensor out.
        shard_size: The most bytes of tensors in one file, as a number or a text like
            ``"5GB"``; see :func:`create`.
        memory_limit_mb: The most of the source's pages to hold in physical memory, in
            MiB. What is being converted and written takes some 10 MiB beside it, the
            list of tensors some hundred bytes for each.
        progress: True shows a bar of tqdm's; a function is told
            ``(bytes_done, bytes_total)`` of the target.
        converter: A function of name and tensor that returns what is written
            instead, before ``dtype``. It is called twice: with a tensor on the meta
            device, to learn the dtype and shape of what it returns, and then with the
            tensor itself. What it returns is let go of when it is written. Tensors
            that were tied are no longer.
        format: ``"safetensors"`` or ``"torch"``.
        metadata: Texts for the header of a safetensors file, instead of those that
            the source has (``{"format": "pt"}`` if it has none); or for
            ``torch.save``'s dict of names and tensors, beside those.
        tied: What becomes of tensors that overlap in memory, where the format cannot
            say so; see :func:`create`.
        opaque: What becomes of values of the tree that only Python could write, such
            as objects and numpy arrays: ``"error"``, or ``"drop"`` to leave them out.
        verify: Hold the source's records against their checksums; see :func:`open`.
        drop_page_cache: Give the kernel's cached copy of the target back as it is
            written.

    Returns:
        The files that were written; of several, their index first.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: As :func:`open`; two tensors come to the same name; ``tied``
            forbids; the converter returns something else than it did at first; or
            ``metadata`` is given for a tree that is kept.
        NotImplementedError: As :func:`open`; a tensor is sparse, quantized or nested,
            or of a dtype that the format does not have; a value is opaque.
        OSError: The system refuses, as for lack of space.

    Example:
        >>> import tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"model": {"weight": torch.ones(2, 2)}}, folder + "/a.pt")
        >>> target = folder + "/a.safetensors"
        >>> rename = {"model.*": "*"}
        >>> files = convert(folder + "/a.pt", target, torch.bfloat16, rename=rename)
        >>> with open(target) as checkpoint:
        ...     [(name, tensor.dtype) for name, tensor in checkpoint]
        [('weight', torch.bfloat16)]
    """
    bounds = bounds_of(memory_limit_mb)
    check_dtype(dtype)
    path = one_path_of(target)
    shard_bytes = 0 if shard_size is None else bytes_of("shard_size", shard_size)
    if converter is not None and not callable(converter):
        raise TypeError(
            f"converter is {converter!r} ({type(converter).__name__}), expected None "
            "or a function of a name and a tensor"
        )
    if not isinstance(source, Checkpoint):
        with open(source, memory_limit_mb, select=select, verify=verify) as checkpoint:
            return convert(
                checkpoint,
                path,
                dtype,
                None,
                rename,
                shard_size,
                memory_limit_mb,
                progress,
                converter=converter,
                format=format,
                metadata=metadata,
                tied=tied,
                opaque=opaque,
                drop_page_cache=drop_page_cache,
            )
    bounds = bounds.within(source.tree.bounds)
    dtype = dtype or source.dtype
    slots, names = _renamed(selected(source.slots, select), rename)
    is_flat = _is_flat(source)
    keeps_tree = not is_flat and rename is None and not shard_bytes
    if format == "safetensors" or path.lower().endswith(".safetensors"):
        keeps_tree = False
        texts = dict(source.tree.handle.texts()) or {"format": "pt"}
    else:
        texts = {}
        if keeps_tree and metadata is not None:
            raise ValueError(
                f"{path}: metadata is given, and the tree of values is kept, expected "
                "metadata for a safetensors file, or for tensors under new names"
            )
    with bounds.taken() as taken:
        templates = None
        if converter is not None:
            templates = _templates(slots, names, path, converter)
        with os_errors():
            writer = _ops.create_from_slots(
                slots,
                names,
                templates,
                keeps_tree,
                path,
                taken.memory_limit_bytes,
                format,
                dtype,
                texts if metadata is None else dict(metadata),
                shard_bytes,
                tied,
                opaque,
                drop_page_cache,
            )
        del templates
        try:
            with ByteProgress(progress, writer.size_bytes) as bar, os_errors():
                _write(writer, slots, names, converter, taken, bar)
                return writer.finish()
        finally:
            writer.close()


def _is_flat(checkpoint: Checkpoint) -> bool:
    """Whether its tree is a dict of names and tensors, and nothing else."""
    handle = checkpoint.tree.handle
    slots = handle.slots()
    if handle.leaves() is not None or not len(slots):
        return False
    containers = slots.containers(0, len(slots)).tolist()
    return bool(containers == [handle.root()])


def _renamed(
    slots: _ops.SlotList, rename: Rename | None
) -> tuple[_ops.SlotList, list[str]]:
    """Give slots their new names, and leave out those that get none."""
    names = [name for lot in lots_of(len(slots)) for name in names_of(slots, *lot)]
    if rename is None:
        return slots, names
    function = _renaming(rename)
    renamed = [function(name) for name in names]
    for name, new in zip(names, renamed, strict=True):
        if new is not None and not isinstance(new, str):
            raise TypeError(
                f"rename gives {new!r} ({type(new).__name__}) for {name!r}, expected a "
                "name or None"
            )
    kept = [i for i, new in enumerate(renamed) if new is not None]
    if len(kept) < len(names):
        slots = slots.at(torch.tensor(kept, dtype=torch.int64, device="cpu"))
    return slots, [new for new in renamed if new is not None]


def _renaming(rename: Rename) -> Callable[[str], str | None]:
    if callable(rename):
        return rename
    if not isinstance(rename, Mapping):
        raise TypeError(
            f"rename is {rename!r} ({type(rename).__name__}), expected None, a "
            "function of a name, or a mapping of patterns to names"
        )
    rules = []
    for pattern, name in rename.items():
        stars = pattern.count("*")
        if name is not None and name.count("*") > stars:
            raise ValueError(
                f"rename maps {pattern!r} to {name!r}, expected no more '*' than the "
                "pattern has"
            )
        text = "(.*)".join(map(re.escape, pattern.split("*")))
        rules.append((re.compile(text, re.DOTALL), name))

    def function(name: str) -> str | None:
        for pattern, new in rules:
            if (match := pattern.fullmatch(name)) is not None:
                if new is None:
                    return None
                parts = new.split("*")
                taken = (*match.groups(), *[""] * len(parts))
                return parts[0] + "".join(
                    text + part for text, part in zip(taken, parts[1:], strict=False)
                )
        return name

    return function


def _templates(
    slots: _ops.SlotList, names: list[str], path: str, converter: Converter
) -> list[Tensor]:
    """Learn what a converter returns, from tensors without data."""
    templates = _ops.without_data(slots, names, path)
    with torch.no_grad():
        for i, name in enumerate(names):
            made = _converted(converter, name, templates[i])
            templates[i] = made if made.is_meta else _without_data(made)
    return templates


def _without_data(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        return torch.empty_like(tensor, device="meta")
    meta = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
    )
    if tensor.is_conj():
        meta = meta.conj()
    return torch._neg_view(meta) if tensor.is_neg() else meta


def _converted(converter: Converter, name: str, tensor: Tensor) -> Tensor:
    made = converter(name, tensor)
    if not isinstance(made, Tensor):
        raise TypeError(
            f"the converter returned {made!r} ({type(made).__name__}) for {name!r}, "
            "expected a tensor"
        )
    return made


def _write(
    writer: _ops.Writer,
    slots: _ops.SlotList,
    names: list[str],
    converter: Converter | None,
    bounds: Bounds,
    bar: ByteProgress,
) -> None:
    windows = slots.windows(
        bounds.memory_limit_bytes, None, bounds.drop_page_cache, None
    )
    begin = 0
    try:
        for window, window_end in enumerate(windows.window_ends().tolist()):
            windows.enter(window)
            while begin < window_end:
                lot_end = min(begin + _LOT, window_end)
                tensors = slots.tensors(begin, lot_end)
                if converter is not None:
                    _write_converted(writer, names, converter, begin, tensors, bar)
                else:
                    _write_lot(writer, begin, tensors, bar)
                begin = lot_end
                del tensors
    finally:
        windows.close(begin)


_LOT = 2048


def _write_lot(
    writer: _ops.Writer, begin: int, tensors: list[Tensor], bar: ByteProgress
) -> None:
    first, size_bytes = 0, 0
    for i, tensor in enumerate(tensors):
        size_bytes += tensor.nbytes
        if size_bytes >= _CALL_BYTES or i + 1 == len(tensors):
            writer._write_from(begin + first, tensors[first : i + 1])
            bar.set_done(writer.bytes_written())
            first, size_bytes = i + 1, 0


def _write_converted(
    writer: _ops.Writer,
    names: list[str],
    converter: Converter,
    begin: int,
    tensors: list[Tensor],
    bar: ByteProgress,
) -> None:
    with torch.no_grad():
        for i, tensor in enumerate(tensors, begin):
            made = _converted(converter, names[i], tensor)
            writer._write_from(i, [made])
            del made
            bar.set_done(writer.bytes_written())
