"""TorchScript archives without reading their tensors."""

from __future__ import annotations

import torch

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Path, paths_of
from ckpt_streamer._checkpoint import raise_os_error


def jit_load(
    path: Path,
    map_location: torch.device | str | None = None,
    *,
    verify: bool = False,
) -> torch.jit.ScriptModule:
    """Load a TorchScript archive, like ``torch.jit.load``, by mapping its tensors.

    Parameters, buffers and the constants of its code, which are the weights of a
    frozen module, are the file's own pages: nothing of them is read before it is
    used, the system can evict what was, and they count against no limit. Writing to
    one never reaches the file. What is not aligned to its elements in the file, as
    other programs than torch write it, is copied.

    Args:
        path: A file that ``torch.jit.save`` wrote.
        map_location: Where tensors go, as for ``torch.jit.load``. Those that go
            elsewhere than to the CPU are copied there.
        verify: Whether tensors are held against their checksums, for which all of
            them are read.

    Returns:
        What ``torch.jit.load`` returns.

    Raises:
        TypeError: ``path`` is not the path of a file.
        FileNotFoundError, PermissionError, IsADirectoryError: As for any file.
        ValueError: The file is damaged, or no TorchScript archive.
        NotImplementedError: Something in it is not supported, or it has no
            checksums to ``verify``.
        RuntimeError: As ``torch.jit.load``, for its code.

    Example:
        >>> model = torch.jit.script(torch.nn.Linear(2, 2))
        >>> torch.jit.save(model, "linear.pt")
        >>> torch.equal(jit_load("linear.pt").weight, model.weight)
        True
    """
    [name] = paths_of([path])
    device = None if map_location is None else torch.device(map_location)
    try:
        module = _ops.jit_load(name, device, bool(verify))
    except (RuntimeError, ValueError) as error:
        raise_os_error(error)
        raise
    wrapped: torch.jit.ScriptModule = torch.jit._recursive.wrap_cpp_module(module)
    return wrapped
