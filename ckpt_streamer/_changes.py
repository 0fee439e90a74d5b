"""Which parameters and buffers a load has changed, for the text of its error."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.nn import Module

# A tensor's id, how often it was written to, and where its elements are.
_Mark = tuple[int, int | None, int | None]


class Changes:
    """A model's tensors at one moment, to be compared with those at another.

    Holds none of them: what is replaced in the meantime is freed. Nor weakly, which
    would keep torch.utils.swap_tensors from working.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._before = {key: _mark(tensor) for key, tensor in _tensors_of(model)}

    def keys(self) -> list[str]:
        """Return the names of those that were written to, replaced or added."""
        return [
            key
            for key, tensor in _tensors_of(self._model)
            if self._before.get(key) != _mark(tensor)
        ]


def _tensors_of(model: Module) -> chain[tuple[str, Tensor]]:
    return chain(
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )


def _mark(tensor: Tensor) -> _Mark:
    with torch._C.DisableTorchFunction():
        try:
            version = tensor._version
        except RuntimeError:  # an inference tensor
            version = None
        try:
            address = tensor.data_ptr()  # swapped tensors may have equal versions
        except RuntimeError:  # of no memory of its own, or not made yet
            address = None
    return id(tensor), version, address
