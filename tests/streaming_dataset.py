"""A data set whose workers each stream a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset, get_worker_info

import ckpt_streamer  # registers the ops


class Names(IterableDataset[str]):
    """Of the tensors, with the worker's number and the sum of each."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        worker = get_worker_info()
        assert worker is not None
        stream = ckpt_streamer.ops.open(self.path, 1 << 20)
        while stream.has_next():
            name, tensor = stream.next()
            yield f"{worker.id} {name} {tensor.sum():g}"
