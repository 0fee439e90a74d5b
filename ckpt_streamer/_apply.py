"""``Module.load_state_dict`` in bounded physical memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import _IncompatibleKeys

from ckpt_streamer._arguments import (
    Path,
    bounds_of,
    check_cpu_page_size,
)
from ckpt_streamer._budget import MemoryBudget
from ckpt_streamer._checkpoint import Checkpoint
from ckpt_streamer._load import Converter, StateDictLoad
from ckpt_streamer._own_memory import OwnMemory
from ckpt_streamer._progress import Progress, ProgressFunction
from ckpt_streamer._source import KeyMap, entries_of
from ckpt_streamer._tree import MappingNode, SequenceNode


def apply_state_dict(
    model: Module,
    state_dict: Mapping[str, Any] | Path | Sequence[Path] | Checkpoint,
    converter: Converter | None = None,
    strict: bool = True,
    assign: bool = False,
    memory_limit_mb: int | None = 1024,
    cpu_page_size: int | None = None,
    *,
    root: str | None = None,
    prefix: str = "",
    key_map: KeyMap | None = None,
    copy: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
    progress: bool | ProgressFunction = False,
    drop_page_cache: bool = False,
    budget: MemoryBudget | None = None,
) -> _IncompatibleKeys:
    """Load a state_dict into a model, like ``model.load_state_dict``, but bounded.

    Modules are visited in PyTorch's order, their hooks and
    ``_load_from_state_dict`` overrides run, in time that is linear in the number
    of modules. The file pages of the tensors read go back before more than
    ``memory_limit_mb`` of them are in physical memory, and all of them at the end.

    Keys and shapes are checked first: when a key is missing or unexpected under
    ``strict``, or a shape differs, nothing of the model has changed. Where the
    model has load hooks or a module with an override of its own (other
    than batch normalisation's), only they know which keys they accept; there,
    for shapes under a ``converter``, and for what fails in copying, what can be
    loaded has been loaded when the error is raised, as ``load_state_dict`` does it.
    The error then names the keys that were changed (as a note, if it is a
    hook's or a converter's own).

    Args:
        model: The module to load into.
        state_dict: A flat mapping of names to tensors, best views of a
            memory-mapped file; or the path of a checkpoint file that holds one, a
            list of paths, a :class:`Checkpoint`, or a part of one. Of a file, the
            mapping in it that has the most of the names of the model's parameters
            and buffers, the outermost one if no other has more; which, says a line
            of the logger ``ckpt_streamer`` at level INFO.
        converter: Called as ``converter(model, module, tensor)``, once for each
            tensor, with the module that owns it; what it returns is loaded
            instead, and held no longer than until the next is loaded. Tensors
            that an override loads itself, without PyTorch's
            ``_load_from_state_dict``, are not converted.
        strict: Whether missing and unexpected keys are an error.
        assign: Whether to put the tensors themselves into the model instead of
            copying their values, as ``load_state_dict(assign=True)`` does, which is
            how to load a model on the meta device. They remain views of the file,
            which the system can evict, and count against no limit after the return.
        memory_limit_mb: The most of the tensors' file pages to hold in physical
            memory, in MiB; None for what fits the machine, as :func:`open` chooses it.
            For a :class:`Checkpoint`, its own limit holds as well.
        cpu_page_size: Accepted for compatibility and not used.
        root: Where in ``state_dict`` the entries are: keys joined by dots, as
            ``"state_dict"``; ``""`` for the outermost mapping of a file, whatever
            else it holds.
        prefix: What the keys to load begin with, and lose: ``"module."`` of a
            parallel model's. Other entries are left out.
        key_map: Renames keys, after ``prefix`` is cut off: a function of the key, or
            a mapping, which leaves as they are the keys that it does not have.
            None leaves an entry out. The modules' metadata are renamed as well.
        copy: With ``assign``, whether to assign copies in memory of their own. They
            take the memory of the model's final parameters, and no more than the
            limit beside it. Entries that are one tensor's memory become one copy.
        dtype: With ``assign``, the dtype of such copies of floating-point tensors.
        device: With ``assign``, where such copies are made.
        progress: Whether to show a bar of tqdm's, which has to be installed; or a
            function that is called as ``progress(bytes_done, bytes_total)`` after
            each tensor, or module, of the state_dict that is loaded, and at the
            end.
        drop_page_cache: Whether the limit is for the kernel's copy of the file as
            well: see :func:`open`. A :class:`Checkpoint`'s own holds, too.
        budget: A limit shared with streams, of which half of what is left is taken for
            the call, ``memory_limit_mb`` at most. A :class:`Checkpoint`'s own by
            default; it cannot be another one.

    Returns:
        The missing and unexpected keys.

    Raises:
        TypeError: ``state_dict`` is no mapping, a number is no ``int``, or another
            argument of another type.
        ImportError: ``progress`` is True, and tqdm is not installed.
        ValueError: ``memory_limit_mb`` or ``cpu_page_size`` is below 1, ``budget`` has
            no room left, ``state_dict`` is of a :class:`Checkpoint` that has another
            budget, two keys are renamed to one, several mappings of a file have
            the most of the model's keys, ``dtype`` is no floating-point one, or
            ``copy``, ``dtype`` or ``device`` is given without ``assign``.
        KeyError: There is no such ``root``.
        OSError, ValueError, NotImplementedError: As :func:`open`, for a path; a
            ValueError as well if the file is written to meanwhile.
        RuntimeError: As ``load_state_dict`` raises it, with its text, then the keys
            changed all the same, if any.
    """
    bounds = bounds_of(memory_limit_mb, drop_page_cache, budget)
    check_cpu_page_size(cpu_page_size)
    copies = copy or dtype is not None or device is not None
    if copies and not assign:
        raise ValueError(
            "copy, dtype and device are for assign=True; without it, the values are "
            "copied into the model's own parameters"
        )
    has_shapes = converter is None
    if copies:
        converter = OwnMemory(converter, dtype, device)
    if isinstance(state_dict, (Checkpoint, MappingNode, SequenceNode)):
        bounds = bounds.within(state_dict.tree.bounds)
    with bounds.taken() as taken:
        entries, metadata, check = entries_of(
            state_dict, model, taken, root, prefix, key_map
        )
        bar = Progress(progress, entries.values())
        return StateDictLoad(
            *(model, entries, metadata, check, converter, strict, assign),
            *(taken, bar, has_shapes),
        ).run()
