"""``load_state_dict``'s recursion in linear time, its reads admitted."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.module import _IncompatibleKeys
from torch.overrides import is_tensor_like

from ckpt_streamer import _ops
from ckpt_streamer._arguments import Bounds
from ckpt_streamer._changes import Changes
from ckpt_streamer._check import (
    Report,
    check,
    children_of,
    exception_text,
    filled_in_key_of,
    local_state_of,
    not_a_tensor_text,
    quoted,
    size_mismatch_text,
)
from ckpt_streamer._conversion import converted, converting
from ckpt_streamer._matches import ASSIGN, Matches, interferes, match
from ckpt_streamer._progress import Progress
from ckpt_streamer._reads import CheckSource, EvictingReads, may_be_in_any_order
from ckpt_streamer._source import Metadata

_logger = logging.getLogger("ckpt_streamer")

Converter = Callable[[Module, Module, Tensor], Tensor]

# Of tensors that are copied by one call.
_LOT = 512


class StateDictLoad:
    """One load: what stays the same through its recursion, and what it found."""

    def __init__(
        self,
        model: Module,
        entries: OrderedDict[str, Any],
        metadata: Metadata,
        check_source: CheckSource,
        converter: Converter | None,
        strict: bool,
        assign: bool,
        bounds: Bounds,
        progress: Progress,
        has_shapes: bool,
    ) -> None:
        self._model = model
        self._entries = entries
        self._check_source = check_source
        self._metadata = metadata
        self._converter = converter
        self._strict = strict
        self._assign = assign
        self._bounds = bounds
        self._progress = progress
        # Whether the entries have the shapes that are loaded, whatever converts them.
        self._has_shapes = has_shapes
        self._report = Report(model, strict)
        # Of those loaded without PyTorch's own code.
        self._loaded_keys: list[str] = []

    def run(self) -> _IncompatibleKeys:
        """Check what can be checked, load, and report as load_state_dict does.

        Raises:
            RuntimeError: As load_state_dict raises it. If the model is changed all
                the same, the text ends with the keys.
        """
        report = self._report
        matches = self._match(self._model, self._entries, "")
        if matches is None:
            if (of_modules := self._metadata.of_modules) is not None:
                self._entries._metadata = of_modules  # type: ignore[attr-defined]
            self._check_first()
            changed_keys = Changes(self._model).keys
        else:
            keys_in_order = matches.keys

            def changed_keys() -> list[str]:
                loaded = set(self._loaded_keys)
                return [key for key in keys_in_order if key in loaded]

        self._reads = EvictingReads(self._entries, self._bounds, self._check_source)
        self._warn_of_unmapped()
        try:
            with self._reads, self._progress:
                if matches is None:
                    self._load(self._model, self._convertible(self._entries), "")
                else:
                    self._load_matches(matches)
                self._check_source()
        except Exception as error:
            if hasattr(error, "add_note") and (keys := changed_keys()):
                error.add_note(_changed_text(keys))
            raise
        if (text := report.text()) is not None:
            if keys := changed_keys():
                text += f"\n\t{_changed_text(keys)}"
            raise RuntimeError(text)
        self._tell_stats()
        return _IncompatibleKeys(report.missing_keys, report.unexpected_keys)

    def _warn_of_unmapped(self) -> None:
        unmapped_bytes = self._reads.unmapped_bytes
        limit_bytes = self._bounds.memory_limit_bytes
        if unmapped_bytes > limit_bytes:
            _warn(
                f"{unmapped_bytes} bytes of the state_dict are no pages of a mapped "
                f"file, so that the limit of {limit_bytes} bytes does not "
                'bound them: load it by torch.load(path, map_location="cpu", '
                "mmap=True), or give the path instead (what is not aligned in its file "
                "is copied all the same)"
            )

    def _tell_stats(self) -> None:
        stats = self._reads.stats()
        _logger.debug(
            "%s: loaded %d bytes, at most %d of the file at once, %d given back",
            type(self._model).__name__,
            *(stats["bytes_streamed"], stats["peak_bytes_resident"]),
            stats["bytes_evicted"],
        )
        over_bytes = stats["bytes_over_limit"]
        # Below this, limits hold to within what one fault may map.
        fault_bytes = _ops.fault_extent_bytes()
        is_exact = self._bounds.memory_limit_bytes >= 2 * fault_bytes
        if over_bytes > (0 if is_exact else fault_bytes):
            _warn(
                f"{over_bytes} bytes of the file more than the limit of "
                f"{stats['memory_limit_bytes']} bytes were in memory at once: a hook, "
                "an override or a converter may have read more than that in one call"
            )

    def _check_first(self) -> None:
        """Raise what the load would report, if only PyTorch's own code has a say."""
        if any(interferes(module) for module in self._model.modules()):
            return
        expected = Report(self._model, self._strict)
        entries = OrderedDict(self._entries)
        metadata = self._metadata.of_modules
        check(self._model, entries, "", metadata, expected, self._has_shapes)
        if (text := expected.text()) is not None:
            raise RuntimeError(text)

    def _match(
        self, module: Module, entries: dict[str, Any], prefix: str
    ) -> Matches | None:
        if (
            torch.__future__.get_swap_module_params_on_conversion()
            or torch._C._len_torch_function_stack()  # somebody looks at each call
        ):
            return None
        is_noted = self._assign or self._metadata.may_mention(ASSIGN)
        metadata = self._metadata.of_modules if is_noted else None
        return match(module, entries, prefix, metadata, self._assign, self._has_shapes)

    def _load(self, module: Module, entries: dict[str, Any], prefix: str) -> None:
        """``load_state_dict``'s recursion; the work on each module is PyTorch's.

        But for whole subtrees where that is nothing but copying.
        """
        matches = self._match(module, entries, prefix) if prefix else None
        if matches is not None:
            self._load_matches(matches)
            return
        report, metadata = self._report, self._metadata.of_modules
        local_metadata = {} if metadata is None else metadata.get(prefix[:-1], {})
        if self._assign:
            local_metadata[ASSIGN] = self._assign
        filled_in_key = filled_in_key_of(module, entries, prefix, local_metadata)
        with (
            self._reads.watched(),
            self._converted(module, entries, filled_in_key),
        ):
            module._load_from_state_dict(
                entries,
                prefix,
                local_metadata,
                True,
                report.missing_keys,
                report.unexpected_keys,
                report.error_messages,
            )
        if self._progress.is_on:
            for name in local_state_of(module):
                self._progress.add(self._entries.get(prefix + name))
        for child, part, child_prefix in children_of(module, entries, prefix):
            self._load(child, self._convertible(part), child_prefix)
        if not module._load_state_dict_post_hooks:
            return
        keys = _IncompatibleKeys(report.missing_keys, report.unexpected_keys)
        with self._reads.watched():
            for hook in module._load_state_dict_post_hooks.values():
                if hook(module, keys) is not None:
                    raise AssertionError(
                        "Hooks registered with ``register_load_state_dict_post_hook`` "
                        "are not expected to return new values, if incompatible_keys "
                        "need to be modified, it should be done inplace."
                    )

    def _convert(self, module: Module, tensor: Tensor) -> Tensor:
        assert self._converter is not None
        self._reads.admit(tensor)
        return self._converter(self._model, module, tensor)

    def _convertible(self, entries: dict[str, Any]) -> dict[str, Any]:
        return entries if self._converter is None else converting(entries)

    @contextmanager
    def _converted(
        self, module: Module, entries: dict[str, Any], filled_in_key: str | None
    ) -> Iterator[None]:
        if self._converter is None:
            yield
            return

        def keys_of(prefix: str) -> set[str]:
            keys = {prefix + name for name in local_state_of(module)}
            return keys - {filled_in_key}

        with converted(self._convert, module, entries, keys_of):
            yield

    # Plain modules, all at once

    def _load_matches(self, matches: Matches) -> None:
        for local_metadata in matches.local_metadata:
            local_metadata[ASSIGN] = self._assign
        if self._converter is not None:
            with self._reads.watched():
                for index, tensor in enumerate(matches.tensors):
                    # Without a name of its own: to be freed before the next.
                    self._load_match(
                        matches, index, self._convert(matches.modules[index], tensor)
                    )
                    self._progress.add(tensor)
        elif self._assign:
            for index, tensor in enumerate(matches.tensors):
                self._load_match(matches, index, tensor)
                self._progress.add(tensor)
        else:
            self._copy_matches(matches)

    def _copy_matches(self, matches: Matches) -> None:
        """Copy them, in the file's order where that is another than the modules'.

        That makes no difference, unless they share memory. What is said of failures
        is in the modules' order.
        """
        order = self._reads.order_of(matches.tensors)
        if order is None or not may_be_in_any_order(
            matches.parameters, matches.tensors
        ):
            order = list(range(len(matches.tensors)))
        else:
            matches = matches.reordered(order)
        failures: list[tuple[int, str]] = []
        with torch.no_grad():
            for begin, end in self._reads.runs_of(matches.tensors):
                for at in range(begin, end, _LOT):
                    lot = slice(at, min(at + _LOT, end))
                    if not self._copy_at_once(matches, lot):
                        failed = self._copy_each(matches, lot)
                        failures += [(order[index], text) for index, text in failed]
        self._report.error_messages += [text for _, text in sorted(failures)]

    def _copy_at_once(self, matches: Matches, lot: slice) -> bool:
        """Copy a lot of tensors in half the time, if nothing is said on the way.

        False if that cannot be, or an exception came: it is not known of which.
        """
        tensors = matches.tensors[lot]
        if self._progress.is_on or (
            not self._reads.fits and any(map(self._reads.exceeds, tensors))
        ):
            return False
        try:
            torch._foreach_copy_(matches.parameters[lot], tensors)
        except Exception:
            return False
        self._loaded_keys += matches.keys[lot]
        return True

    def _copy_each(self, matches: Matches, lot: slice) -> list[tuple[int, str]]:
        """Return which failed, by their places in the matches, and why."""
        failures = []
        for index in range(lot.start, lot.stop):
            key, parameter, tensor = (
                matches.keys[index],
                matches.parameters[index],
                matches.tensors[index],
            )
            try:
                if not self._reads.fits and self._reads.exceeds(tensor):
                    self._reads.copy(parameter, tensor)
                else:
                    parameter.copy_(tensor)
            except Exception as error:
                failures.append((index, exception_text(key, parameter, tensor, error)))
            else:
                self._loaded_keys.append(key)
            if self._progress.is_on:
                self._progress.add(tensor)
        return failures

    def _load_match(self, matches: Matches, index: int, value: Tensor) -> None:
        """Do what ``_load_from_state_dict`` does with one plain parameter."""
        key, module, name = (
            matches.keys[index],
            matches.modules[index],
            matches.names[index],
        )
        parameter: Tensor = matches.members[index][name]
        messages = self._report.error_messages
        if not is_tensor_like(value):
            messages.append(not_a_tensor_text(key, value))
            return
        if len(parameter.shape) == 0 and value.shape == (1,):
            value = value[0]
        if value.shape != parameter.shape:
            messages.append(size_mismatch_text(key, value, parameter))
            return
        try:
            with torch.no_grad():
                if not self._assign:
                    parameter.copy_(value)
                else:
                    if isinstance(parameter, Parameter):
                        if isinstance(value, Parameter):
                            value.requires_grad_(parameter.requires_grad)
                        else:
                            value = Parameter(value, parameter.requires_grad)
                    setattr(module, name, value)
        except Exception as error:
            messages.append(exception_text(key, parameter, value, error))
        else:
            self._loaded_keys.append(key)


def _warn(text: str) -> None:
    """Warn the caller of apply_state_dict()."""
    warnings.warn(f"ckpt_streamer: {text}", UserWarning, stacklevel=5)


def _changed_text(keys: list[str]) -> str:
    return f"Changed key(s) in the model: {quoted(keys)}. "
