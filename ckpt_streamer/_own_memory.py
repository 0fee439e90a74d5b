"""Copies to assign instead of a file's pages: in another dtype, on a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Module
from torch.nn.parameter import is_lazy

from ckpt_streamer._arguments import check_dtype
from ckpt_streamer._load import Converter
from ckpt_streamer._matches import PLAIN_TENSORS


class OwnMemory:
    """A converter that copies what another one, if any, returns.

    Floating-point tensors get the dtype. Entries that are one tensor's memory
    become one copy. What the other converter has made is copied only to change it.
    Not differentiable.
    """

    def __init__(
        self,
        converter: Converter | None,
        dtype: torch.dtype | None,
        device: torch.device | str | int | None,
    ) -> None:
        """Check the arguments.

        Raises:
            TypeError: ``dtype`` is no dtype.
            ValueError: It is not of floating-point numbers.
            RuntimeError: There is no such ``device``.
        """
        check_dtype(dtype)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}, expected a floating-point dtype")
        self._converter = converter
        self._dtype = dtype
        self._device = None if device is None else torch.device(device)
        # By where they were copied from. A storage is held weakly, which keeps its
        # id from being used again, and its memory not.
        self._copies: dict[tuple[Any, ...], tuple[StorageWeakRef, Tensor]] = {}

    def __call__(self, root: Module, module: Module, tensor: Tensor) -> Tensor:
        given = tensor
        if self._converter is not None:
            given = self._converter(root, module, tensor)
        if not isinstance(given, Tensor) or is_lazy(given):
            return given
        dtype = self._dtype if given.is_floating_point() else None
        with torch.no_grad():
            if given.is_meta:
                return given.to(dtype=dtype)
            if given is not tensor and not _share_memory(given, tensor):
                return given.to(device=self._device, dtype=dtype)
            if type(given) in PLAIN_TENSORS and given.layout is torch.strided:
                return self._copied(given, dtype)
            return given.to(device=self._device, dtype=dtype, copy=True)

    def _copied(self, given: Tensor, dtype: torch.dtype | None) -> Tensor:
        storage = StorageWeakRef(given.untyped_storage())
        place = (
            *(storage.cdata, given.storage_offset(), given.dtype),
            *(given.shape, given.stride(), given.is_conj(), given.is_neg()),
            None if given.is_inference() else given._version,
        )
        if place not in self._copies:
            # Not by to(): copy_ alone is read in pieces, if need be.
            copy = torch.empty_like(given, dtype=dtype, device=self._device)
            self._copies[place] = storage, copy.copy_(given)
        return self._copies[place][1]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    try:
        addresses = [x.untyped_storage().data_ptr() for x in (one, other)]
    except (NotImplementedError, RuntimeError):  # not of one storage each
        return True
    return addresses[0] == addresses[1]
