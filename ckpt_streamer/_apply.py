"""``Module.load_state_dict`` in bounded physical memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX, _IncompatibleKeys
from torch.overrides import TorchFunctionMode, is_tensor_like

from ckpt_streamer import _ops
from ckpt_streamer._arguments import check_cpu_page_size, memory_limit_bytes_of
from ckpt_streamer._stream import walk

Converter = Callable[[Module, Module, Tensor], Tensor]


def apply_state_dict(
    model: Module,
    state_dict: Mapping[str, Any],
    converter: Converter | None = None,
    strict: bool = True,
    assign: bool = False,
    memory_limit_mb: int = 1024,
    cpu_page_size: int | None = None,
) -> _IncompatibleKeys:
    """Load a state_dict into a model, like ``model.load_state_dict``, but bounded.

    Modules are visited in PyTorch's order, their hooks and
    ``_load_from_state_dict`` overrides run. The file pages of the tensors read
    go back before more than ``memory_limit_mb`` of them are in physical memory,
    and all of them at the end.

    Keys and shapes are checked first: when a key is missing or unexpected under
    ``strict``, or a shape differs, nothing of the model has changed. Where the
    model has load hooks or a module with an override of its own (other
    than batch normalisation's), only they know which keys they accept; there,
    and for shapes under a ``converter``, what can be loaded has been loaded when
    the error is raised, as ``load_state_dict`` does it.

    Args:
        model: The module to load into.
        state_dict: A flat mapping of names to tensors, best views of a
            memory-mapped file.
        converter: Called as ``converter(model, module, tensor)`` for each tensor,
            with the module that owns it; what it returns is loaded instead.
        strict: Whether missing and unexpected keys are an error.
        assign: Whether to put the tensors themselves into the model instead of
            copying their values, as ``load_state_dict(assign=True)`` does. They
            remain views of the file and count against no limit after the return.
        memory_limit_mb: The most of the tensors' file pages to hold in physical
            memory, in MiB.
        cpu_page_size: Accepted for compatibility and not used.

    Returns:
        The missing and unexpected keys.

    Raises:
        TypeError: ``state_dict`` is no mapping, or a number is no ``int``.
        ValueError: ``memory_limit_mb`` or ``cpu_page_size`` is below 1.
        RuntimeError: As ``load_state_dict`` raises it, with its text.
    """
    limit_bytes = memory_limit_bytes_of(memory_limit_mb)
    check_cpu_page_size(cpu_page_size)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
    metadata = getattr(state_dict, "_metadata", None)
    entries: OrderedDict[str, Any] = OrderedDict(state_dict)
    if metadata is not None:
        entries._metadata = metadata  # type: ignore[attr-defined]

    report = _Report(model, strict)
    if not any(_interferes(module) for module in model.modules()):
        expected = _Report(model, strict)
        checked_shapes = converter is None
        _check(model, OrderedDict(entries), "", metadata, expected, checked_shapes)
        expected.raise_if_failed()

    with _EvictingReads(entries, limit_bytes) as reads:
        _load(model, entries, "", _Load(metadata, assign, converter, reads, report))
    report.raise_if_failed()
    return _IncompatibleKeys(report.missing_keys, report.unexpected_keys)


class _Report:
    """What a load found, and the error that PyTorch makes of it."""

    def __init__(self, model: Module, strict: bool) -> None:
        self.model = model
        self.strict = strict
        self.missing_keys: list[str] = []
        self.unexpected_keys: list[str] = []
        self.error_messages: list[str] = []

    def raise_if_failed(self) -> None:
        messages = list(self.error_messages)
        if self.strict:
            for kind, keys in (
                ("Unexpected", self.unexpected_keys),
                ("Missing", self.missing_keys),
            ):
                if keys:
                    names = ", ".join(f'"{key}"' for key in keys)
                    messages.insert(0, f"{kind} key(s) in state_dict: {names}. ")
        if messages:
            raise RuntimeError(
                "Error(s) in loading state_dict for {}:\n\t{}".format(
                    self.model.__class__.__name__, "\n\t".join(messages)
                )
            )


class _EvictingReads(TorchFunctionMode):
    """Keeps the file pages of a state_dict's tensors under a limit.

    Sees every torch function that reads one of them, whoever calls it, and makes
    room for it first. At the end all pages go back.
    """

    def __init__(self, entries: Mapping[str, Any], memory_limit_bytes: int) -> None:
        super().__init__()
        self._handle = _ops.windows(memory_limit_bytes)
        tensors = walk(entries, self._handle).tensors
        self._handle.plan()
        order = self._handle.order().tolist() or range(len(tensors))
        self._tensor_count = len(tensors)
        self._spans = _Spans([tensors[index] for index in order])

    def admit(self, tensor: Tensor) -> None:
        """Make room for one tensor's pages."""
        for position in self._spans.positions_of(tensor):
            self._handle.admit(position)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # attributes: nothing of the data is read
            return func(*args, **kwargs)
        positions = {
            position
            for tensor in _tensors_in(chain(args, kwargs.values()))
            for position in self._spans.positions_of(tensor)
        }
        if len(positions) <= 1:
            for position in positions:
                self._handle.admit(position)
            return func(*args, **kwargs)
        # The call reads all of them, also those that had to go for the others.
        self._handle.release()
        try:
            for position in positions:
                self._handle.admit(position)
            return func(*args, **kwargs)
        finally:
            self._handle.release()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._handle.close(self._tensor_count)


class _Spans:
    """Where tensors lie in memory, to find those that a view belongs to."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        spans = []
        for position, tensor in enumerate(tensors):
            begin, end = _span(tensor)
            if end:
                spans.append((begin, -end, position))
        spans.sort()  # of several with one begin, the smallest is the last
        self._begins = [begin for begin, _, _ in spans]
        self._ends = [-end for _, end, _ in spans]
        self._positions = [position for _, _, position in spans]
        self._highest_ends = list(accumulate(self._ends, max))

    def positions_of(self, tensor: Tensor) -> list[int]:
        """Find the tensor that holds all of this one, or those that hold parts."""
        begin, end = _span(tensor)
        behind = bisect_right(self._begins, begin)
        parts = []
        index = behind
        while index > 0 and self._highest_ends[index - 1] > begin:
            index -= 1
            if self._ends[index] >= end:
                return [self._positions[index]]
            if self._ends[index] > begin:
                parts.append(self._positions[index])
        last = bisect_left(self._begins, end, behind) if end else behind
        return parts + self._positions[behind:last]


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's elements; of a sparse one, of its values."""
    with torch._C.DisableTorchFunction():
        try:
            if tensor.layout is not torch.strided:
                is_coo = tensor.layout is torch.sparse_coo
                tensor = tensor._values() if is_coo else tensor.values()
            begin = tensor.data_ptr()
            if not begin or not tensor.numel():
                return 0, 0
            if tensor.is_contiguous():
                return begin, begin + tensor.nbytes
            last = sum(
                (size - 1) * stride
                for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
            )
            return begin, begin + (last + 1) * tensor.itemsize
        except RuntimeError:  # no memory of its own
            return 0, 0


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield a call's tensors; functions take lists of them as well."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)


def _interferes(module: Module) -> bool:
    """Whether only running a module's load can tell which keys it accepts."""
    load = getattr(module._load_from_state_dict, "__func__", None)
    return bool(
        module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or load not in (Module._load_from_state_dict, _NormBase._load_from_state_dict)
    )


def _local_state(module: Module) -> dict[str, Tensor]:
    """The parameters and buffers of one module that a state_dict holds."""
    buffers = (
        (name, buffer)
        for name, buffer in module._buffers.items()
        if name not in module._non_persistent_buffers_set
    )
    return {
        name: value
        for name, value in chain(module._parameters.items(), buffers)
        if value is not None
    }


def _filled_in_key(
    module: Module, entries: Mapping[str, Any], prefix: str, local_metadata: Any
) -> str | None:
    """The entry that batch norm's load adds by itself, if it will."""
    # batchnorm.py: before version 2 there was no num_batches_tracked.
    if isinstance(module, _NormBase) and module.track_running_stats:
        version = local_metadata.get("version", None)
        key = prefix + "num_batches_tracked"
        if (version is None or version < 2) and key not in entries:
            return key
    return None


def _children(
    module: Module, entries: Mapping[str, Any], prefix: str
) -> Iterator[tuple[Module, dict[str, Any], str]]:
    """Yield each child with its part of the entries and its prefix.

    One pass over the entries for all children; PyTorch makes one for each. A
    part is not held here once yielded: what it was converted to must go when
    the child is done.
    """
    parts: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        if key.startswith(prefix):
            name, dot, _ = key[len(prefix) :].partition(".")
            if dot:
                parts.setdefault(name, {})[key] = value
    for name, child in module._modules.items():
        if child is not None:
            yield child, parts.pop(name, {}), f"{prefix}{name}."


def _check(
    module: Module,
    entries: dict[str, Any],
    prefix: str,
    metadata: Any,
    report: _Report,
    checks_shapes: bool,
) -> None:
    """Find what ``_load_from_state_dict`` would complain about, in its order.

    REQUIRES: no module under this one interferes.
    """
    local_state = _local_state(module)
    local_metadata = {} if metadata is None else metadata.get(prefix[:-1], {})
    filled_in_key = _filled_in_key(module, entries, prefix, local_metadata)
    if filled_in_key is not None:
        entries[filled_in_key] = local_state.get("num_batches_tracked")
    for name, value in local_state.items():
        key = prefix + name
        if key not in entries:
            report.missing_keys.append(key)
        elif checks_shapes:
            _check_shape(key, value, entries[key], report)

    _check_other_keys(module, entries, prefix, local_state, report)
    for child, part, child_prefix in _children(module, entries, prefix):
        _check(child, part, child_prefix, metadata, report, checks_shapes)


def _check_other_keys(
    module: Module,
    entries: dict[str, Any],
    prefix: str,
    local_state: dict[str, Tensor],
    report: _Report,
) -> None:
    extra_state_key = prefix + _EXTRA_STATE_KEY_SUFFIX
    if type(module).set_extra_state is not Module.set_extra_state:
        if extra_state_key not in entries:
            report.missing_keys.append(extra_state_key)
    elif extra_state_key in entries:
        report.unexpected_keys.append(extra_state_key)
    for key in entries:
        if key.startswith(prefix) and key != extra_state_key:
            name, dot, _ = key[len(prefix) :].partition(".")
            if name not in (module._modules if dot else local_state):
                report.unexpected_keys.append(key)


def _check_shape(key: str, parameter: Tensor, value: Any, report: _Report) -> None:
    if not is_tensor_like(value):
        report.error_messages.append(
            f'While copying the parameter named "{key}", expected torch.Tensor or '
            f"Tensor-like object from checkpoint but received {type(value)}"
        )
    elif (
        not torch.nn.parameter.is_lazy(parameter)
        # Before 0.4, scalars were saved as tensors of one element.
        and not (len(parameter.shape) == 0 and tuple(value.shape) == (1,))
        and value.shape != parameter.shape
    ):
        report.error_messages.append(
            f"size mismatch for {key}: copying a param with shape {value.shape} from "
            f"checkpoint, the shape in current model is {parameter.shape}."
        )


class _Load:
    """What stays the same through one load's recursion."""

    def __init__(
        self,
        metadata: Any,
        assign: bool,
        converter: Converter | None,
        reads: _EvictingReads,
        report: _Report,
    ) -> None:
        self.metadata = metadata
        self.assign = assign
        self.converter = converter
        self.reads = reads
        self.report = report


def _load(module: Module, entries: dict[str, Any], prefix: str, load: _Load) -> None:
    """``load_state_dict``'s recursion; the work on each module is PyTorch's."""
    report = load.report
    local_metadata = {} if load.metadata is None else load.metadata.get(prefix[:-1], {})
    if load.assign:
        local_metadata["assign_to_params_buffers"] = load.assign
    filled_in_key = _filled_in_key(module, entries, prefix, local_metadata)
    with _converted(module, entries, filled_in_key, load):
        module._load_from_state_dict(
            entries,
            prefix,
            local_metadata,
            True,
            report.missing_keys,
            report.unexpected_keys,
            report.error_messages,
        )
    for child, part, child_prefix in _children(module, entries, prefix):
        _load(child, part, child_prefix, load)
    incompatible_keys = _IncompatibleKeys(report.missing_keys, report.unexpected_keys)
    for hook in module._load_state_dict_post_hooks.values():
        if hook(module, incompatible_keys) is not None:
            raise AssertionError(
                "Hooks registered with ``register_load_state_dict_post_hook`` are not "
                "expected to return new values, if incompatible_keys need to be "
                "modified, it should be done inplace."
            )


@contextmanager
def _converted(
    module: Module, entries: dict[str, Any], filled_in_key: str | None, load: _Load
) -> Iterator[None]:
    """Let a module's load see converted tensors, and nothing after it.

    By a hook that runs behind all others and behind an override's renaming of
    keys: by then, the entries have the names that the module knows.
    """
    if load.converter is None:
        yield
        return
    converter, root = load.converter, load.report.model
    originals: dict[str, Tensor] = {}

    def convert(
        module: Module, entries: dict[str, Any], prefix: str, *_: object
    ) -> None:
        for name in _local_state(module):
            key = prefix + name
            if key == filled_in_key or key in originals:  # an override may load twice
                continue
            tensor = entries.get(key)
            if isinstance(tensor, Tensor):
                load.reads.admit(tensor)
                originals[key] = tensor
                entries[key] = converter(root, module, tensor)

    handle = module.register_load_state_dict_pre_hook(convert)
    try:
        yield
    finally:
        handle.remove()
        # The children's loads, still to come, would keep what was converted.
        entries.update(originals)
