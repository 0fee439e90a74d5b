"""Describes the results of peers.py as Markdown, and says which claims hold.

Measures nothing. ``--quick`` describes those of quick runs. ``--readme`` puts the
shorter tables between their marks in the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from environment import QUICK_RESULTS, RESULTS, read_result

MIB = 1024 * 1024
README = RESULTS.parent.parent / "README.md"
# The tables that it has, each of one limit.
README_LIMITS_MIB = {
    "peers-large-warm": 64,
    "peers-small-warm": 64,
    "peers-huge-cold": 64,
}
Row = dict[str, Any]


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def key_of(row: Row) -> tuple[Any, ...]:
    return row["way"], row["limit_mib"]


def describe_case(result: Row, limit_mib: int | None = None) -> Iterator[str]:
    """Give a table of one case, a line for each way, of all that was measured.

    With ``limit_mib`` only what has this limit or none, and of the floor only torch's
    conversion.
    """
    rows = result["rows"]
    if limit_mib is not None:
        rows = [
            row
            for row in rows
            if row["limit_mib"] in {None, limit_mib}
            and not ("floor" in row["way"] and "loop" in row["way"])
        ]
    run = result["environment"]["run"]
    first = rows[0]
    state = "cold" if first["case"].endswith("-cold") else "warm"
    yield (
        f"**{first['file']}, {state}** ({first['threads']} thread of torch's; medians "
        f"of {run['rounds']} rounds{', quick' if run['quick'] else ''})"
    )
    yield ""
    yield (
        "| | file | limit | open | iterate | sum | peak | anonymous | file pages | "
        "cgroup |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    memory = {key_of(row): row for row in of_kind(rows, "memory")}
    for row in of_kind(rows, "time"):
        yield _line(row, memory.get(key_of(row)))
    for row in of_kind(rows, "cannot"):
        yield f"| {_name(row)} | {row['format']} | | cannot: {row['reason']} |"
    yield ""


def _line(row: Row, memory: Row | None) -> str:
    sums = [
        a + b for a, b in zip(row["open_seconds"], row["iterate_seconds"], strict=True)
    ]
    limit = f"{row['limit_mib']} MiB" if row["limit_mib"] else ""
    cells = [_name(row), row["format"], limit]
    if row["way"].startswith(("floor", "apply", "accelerate")):
        cells += ["", ""]  # one step
    else:
        cells += [_seconds(row["open_seconds"]), _seconds(row["iterate_seconds"])]
    cells.append(_seconds(sums))
    for name in ("peak_bytes", "peak_anon_bytes", "peak_file_bytes", "charge_bytes"):
        values = memory[name] if memory else [None]
        cells.append("" if None in values else f"{max(values) / MIB:.0f}")
    return f"| {' | '.join(cells)} |"


def _name(row: Row) -> str:
    is_ours = row["title"].startswith("ckpt_streamer")
    return f"**{row['title']}**" if is_ours else str(row["title"])


def _seconds(values: list[float]) -> str:
    return f"{median(values):.3f}"


# What is claimed: its text, the file, and what was found, with whether it holds.
Finding = tuple[str, bool]


def claims(results: dict[str, Row]) -> Iterator[str]:
    """Say of each claim whether it holds, by the results that there are."""
    for text, name, find in _CLAIMS:
        result = results.get(name)
        if result is None:
            yield f"- not measured: {text}"
            continue
        findings = list(find(result["rows"]))
        for found, holds in findings:
            yield f"- {'holds' if holds else '**falls short**'}: {text}: {found}"
        if not findings:
            yield f"- not measured: {text}"


def _ratios(rows: list[Row], ways: Iterable[str], of: str) -> list[Row]:
    return [
        row for row in of_kind(rows, "ratio") if row["way"] in ways and row["of"] == of
    ]


def _text(row: Row) -> str:
    ratio = row["ratio"]
    limit = f", {row['limit_mib']} MiB" if row["limit_mib"] else ""
    return (
        f"{row['title']}{limit}, of {row['peer_title']}: {ratio['mean']:.3f} "
        f"({ratio['low']:.3f} to {ratio['high']:.3f})"
    )


def _against(
    ways: tuple[str, ...], peer: str, holds: Callable[[Row], bool]
) -> Callable[[list[Row]], Iterator[Finding]]:
    def find(rows: list[Row]) -> Iterator[Finding]:
        for row in _ratios(rows, ways, "iterate"):
            if row["peer"] == peer:
                yield _text(row), holds(row["ratio"])

    return find


def _fused_is_not_slower(rows: list[Row]) -> Iterator[Finding]:
    times = {key_of(row): row["iterate_seconds"] for row in of_kind(rows, "time")}
    for (way, limit_mib), seconds in times.items():
        plain = times.get((way.replace("fused", "open"), limit_mib))
        if way.startswith("fused") and plain:
            ratio = median(a / b for a, b in zip(seconds, plain, strict=True))
            yield f"{way}, {limit_mib} MiB: {ratio:.3f} (median of pairs)", ratio <= 1


def _fastest_by_two(rows: list[Row]) -> Iterator[Finding]:
    """Against the best peer of each format; the floor is none."""
    for way in ("open", "fused", "open_safetensors", "fused_safetensors"):
        found = [
            row
            for row in _ratios(rows, [way], "total")
            if not row["peer"].startswith("floor")
        ]
        if found:
            nearest = max(found, key=lambda row: float(row["ratio"]["mean"]))
            yield _text(nearest), nearest["ratio"]["high"] <= 0.5


def _peak_above(extra: Callable[[Row], float]) -> Callable[[list[Row]], Any]:
    def find(rows: list[Row]) -> Iterator[Finding]:
        for row in of_kind(rows, "memory"):
            if row["limit_mib"] and row["way"] in _STREAMS:
                peak_mib = max(row["peak_bytes"]) / MIB
                bar_mib = row["limit_mib"] + extra(row)
                yield (
                    f"{row['title']} ({row['format']}), {row['limit_mib']} MiB: "
                    f"{peak_mib:.1f} of {bar_mib:.1f} MiB",
                    peak_mib <= bar_mib,
                )

    return find


def _smallest(rows: list[Row]) -> Iterator[Finding]:
    memory = [row for row in of_kind(rows, "memory") if row["limit_mib"] in {None, 8}]
    peers = [
        row
        for row in memory
        if row["way"] not in _STREAMS and not row["way"].startswith("apply")
    ]
    if not peers:
        return
    best = min(peers, key=lambda row: int(max(row["peak_bytes"])))
    best_mib = max(best["peak_bytes"]) / MIB
    for row in memory:
        if row["way"] in _STREAMS:
            peak_mib = max(row["peak_bytes"]) / MIB
            yield (
                f"{row['title']} ({row['format']}): {peak_mib:.1f} MiB, the best peer "
                f"({best['title']}) {best_mib:.1f} MiB",
                peak_mib <= best_mib,
            )


_STREAMS = ("open", "fused", "stream", "open_safetensors", "fused_safetensors")
_PLAIN = "torch_load_mapped"
_CLAIMS: list[tuple[str, str, Callable[[list[Row]], Iterator[Finding]]]] = [
    (
        "4 GiB, warm, iterating is at most 1.02 of plain mmap, the interval below 1.05",
        "peers-huge-warm",
        _against(
            ("open", "stream"), _PLAIN, lambda r: r["mean"] <= 1.02 and r["high"] < 1.05
        ),
    ),
    (
        "4 GiB, warm, iterating is at most 1.1 of the floor with torch's conversion",
        "peers-huge-warm",
        _against(("open", "stream"), "floor_mmap_torch_pt", lambda r: r["mean"] <= 1.1),
    ),
    (
        "fused conversion is not slower than the caller's",
        "peers-huge-warm",
        _fused_is_not_slower,
    ),
    (
        "4 GiB, cold, iterating is not slower than plain mmap",
        "peers-huge-cold",
        _against(("open", "stream"), _PLAIN, lambda r: r["low"] <= 1),
    ),
    (
        "262,144 tensors, open and iterate: twice as fast as the best peer",
        "peers-small-warm",
        _fastest_by_two,
    ),
    (
        "256 tensors of 4 MiB: the peak is at most the limit and 16 MiB",
        "peers-large-warm",
        _peak_above(lambda _: 16),
    ),
    ("at a limit of 8 MiB the smallest peak of all", "peers-large-warm", _smallest),
    (
        "262,144 tensors: the peak is at most the limit, 200 bytes each, and 16 MiB",
        "peers-small-warm",
        _peak_above(lambda row: 200 * row["tensors"] / MIB + 16),
    ),
]


def write_into(path: Path, results: dict[str, Row]) -> None:
    """Replace what is between the marks of each table in a Markdown file.

    A table, and the picture that plot.py draws of all limits.
    """
    text = path.read_text()
    for name, limit_mib in README_LIMITS_MIB.items():
        begin, end = f"<!-- table {name} -->\n", f"<!-- end of {name} -->"
        if name in results and begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            table = "\n".join(describe_case(results[name], limit_mib))
            picture = f"![Time and memory of all ways](bench/plots/{name}.png)"
            text = f"{before}{begin}{table}\n{picture}\n{end}{after}"
    path.write_text(text)


def results_in(folder: Path, is_quick: bool) -> dict[str, Row]:
    names = [path.stem for path in sorted(folder.glob("peers-*.json"))]
    found = {name: read_result(name, is_quick) for name in names}
    return {name: result for name, result in found.items() if result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--readme", action="store_true", help="write the README's")
    options = parser.parse_args()
    is_quick = options.quick
    results = results_in(QUICK_RESULTS if is_quick else RESULTS, is_quick)
    if options.readme:
        write_into(README, results)
        return
    for result in results.values():
        print("\n".join(describe_case(result)))
    print("\n".join(claims(results)))


if __name__ == "__main__":
    main()
