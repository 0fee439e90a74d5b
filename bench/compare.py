"""Compare two result files of the same benchmark; say what got worse beyond noise.

    compare.py OLD.json NEW.json

A ratio is worse when its 95% interval lies wholly on the worse side of the old one's,
a peak of memory when all runs are more than a MiB above all old ones, and a way when
it cannot read what it could. Times in seconds are compared with --seconds only:
another hour, or another machine, is no noise. Exits with 1 if anything got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratios import Ratio, paired_ratio

MIB = 1024 * 1024
# What a row is about, of the benchmarks together; the rest is what was measured.
IDENTITY = (
    *("kind", "what", "case", "file", "task", "model", "tensors", "elements"),
    *("size_mib", "tensor_mib", "way", "format", "peer", "of", "limit_mib"),
    *("limit_mb", "limit_bytes", "threads", "cold", "beside"),
)
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Figure:
    """Something measured, and the interval that it lies in; less is better."""

    text: str
    low: float
    high: float
    slack: float = 0.0

    def is_worse_than(self, old: Figure) -> bool:
        return self.low > old.high + self.slack


def key_of(row: dict[str, Any]) -> Key:
    return tuple((name, row[name]) for name in IDENTITY if name in row)


def figures_of(row: dict[str, Any], with_seconds: bool) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if isinstance(row.get("ratio"), dict):
        figures["ratio"] = _ratio_figure(
            Ratio(**row["ratio"]), bool(row.get("more_is_better"))
        )
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        is_peak = name.startswith("peak_") and name.endswith("_bytes")
        if (is_peak or name == "charge_bytes") and None not in values:
            mib = [each / MIB for each in values]
            text = f"{max(mib):.1f} MiB"
            figures[name] = Figure(text, min(mib), max(mib), slack=1)
        elif with_seconds and name.endswith("_seconds") and len(values) > 1:
            spread = paired_ratio(values, [1.0] * len(values))
            figures[name] = _ratio_figure(spread, False)
    return figures


def _ratio_figure(ratio: Ratio, more_is_better: bool) -> Figure:
    text = f"{ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    if more_is_better:
        return Figure(text, -ratio.high, -ratio.low)
    return Figure(text, ratio.low, ratio.high)


def changes(
    old: list[dict[str, Any]], new: list[dict[str, Any]], with_seconds: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield what is worse, better, or not measured any more, and in which words."""
    new_rows = {key_of(row): row for row in new}
    cannot = {
        _without_kind(key_of(row)): row["reason"]
        for row in new
        if row.get("kind") == "cannot"
    }
    for row in old:
        key = key_of(row)
        if row.get("kind") == "cannot":
            continue
        if key not in new_rows:
            reason = cannot.get(_without_kind(key))
            if reason:
                yield "worse", f"{_name(key)}: cannot any more: {reason}"
            else:
                yield "gone", f"{_name(key)}: not measured any more"
            continue
        before = figures_of(row, with_seconds)
        after = figures_of(new_rows[key], with_seconds)
        for name in before.keys() & after.keys():
            text = f"{_name(key)}: {name} {before[name].text}, now {after[name].text}"
            if after[name].is_worse_than(before[name]):
                yield "worse", text
            elif before[name].is_worse_than(after[name]):
                yield "better", text


def _without_kind(key: Key) -> Key:
    return tuple(part for part in key if part[0] != "kind")


def _name(key: Key) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else str(value)
        for name, value in key
        if value is not None
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Say what about the machine, the versions and the run is another."""
    for name in sorted((old.keys() | new.keys()) - {"commit"}):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)}, now {new.get(name)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--seconds", action="store_true", help="compare times as well")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    for text in differences(old["environment"], new["environment"]):
        print(f"not the same: {text}")
    found = list(changes(old["rows"], new["rows"], options.seconds))
    for verdict, text in found:
        print(f"{verdict}: {text}")
    worse = sum(verdict == "worse" for verdict, _ in found)
    rows = {key_of(row) for row in old["rows"]} & {key_of(row) for row in new["rows"]}
    print(f"{worse} figures of {len(rows)} rows got worse beyond noise.")
    if not rows:
        print("The files have no row in common.", file=sys.stderr)
        return 2
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
