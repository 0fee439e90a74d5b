"""Draws the figures in bench/results/ as bench/plots/*.png. Measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from environment import (
    PLOTS,
    QUICK_PLOTS,
    QUICK_RESULTS,
    RESULTS,
    read_result,
    read_rows,
)
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from ratios import standard_error

MIB = 1024 * 1024

# Okabe and Ito's colours, told apart by colour-blind readers as well.
PLAIN = "#D55E00"
BOUNDED = "#0072B2"
ORIGINAL = "#009E73"
FUSED = "#56B4E9"
ANONYMOUS = "#E69F00"
NEUTRAL = "#555555"
# The same way has the same colour and mark in all figures.
COLOURS = {
    "torch_load_mapped": PLAIN,
    "original": ORIGINAL,
    "stream": BOUNDED,
    "open": "#CC79A7",
    "fused": FUSED,
}
MARKERS = {
    "torch_load_mapped": "s",
    "original": "^",
    "stream": "o",
    "open": "D",
    "fused": "v",
}

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "axes.edgecolor": NEUTRAL,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def draw_rss(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draw resident memory over time, a column for each task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.subplots(
            2,
            len(tasks),
            sharex="col",
            sharey="row",
            squeeze=False,
            height_ratios=[3, 2],
        )
        for column, task in enumerate(tasks):
            of_task = [row for row in rows if row["task"] == task]
            file_axes, anon_axes = axes[0, column], axes[1, column]
            for row in of_task:
                bounded = BOUNDED if row["limit_bytes"] else PLAIN
                colour = COLOURS.get(row["way"], bounded)
                _draw_curve(file_axes, row, "file_bytes", colour)
                _draw_curve(anon_axes, row, "anon_bytes", colour)
            for limit_bytes in {row["limit_bytes"] for row in of_task} - {None}:
                _draw_limit(file_axes, limit_bytes / MIB)
            file_axes.set_title(task, fontweight="bold")
            file_axes.legend(loc="upper left")
            anon_axes.set_xlabel("time (s)")
        for each in axes.flat:
            each.set_xlim(left=0)
            each.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("file-backed resident memory (MiB)")
        axes[1, 0].set_ylabel("anonymous (MiB)")
        return _save(figure, path)


def draw_ratios(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draw each case's time relative to the plain way, a panel for each file."""
    files = list(dict.fromkeys(row["file"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows if row["limit_mib"]))
    # The control in grey, then in the order of the rows.
    colours = {"control": NEUTRAL, **dict(zip(ways, (BOUNDED, PLAIN), strict=False))}
    counts = [sum(row["file"] == file for row in rows) for file in files]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.5 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots(
            len(files), 1, sharex=True, squeeze=False, height_ratios=counts
        )
        for each, file in zip(axes.flat, files, strict=True):
            of_file = [row for row in rows if row["file"] == file]
            of_file.sort(key=lambda row: (row["threads"], row["limit_mib"] or 0))
            for position, row in enumerate(of_file):
                _draw_ratio(each, position, row["ratio"], colours[row["way"]])
            each.set_yticks(range(len(of_file)), [_label(row) for row in of_file])
            each.set_ylim(len(of_file) - 0.5, -0.5)
            each.grid(visible=False, axis="y")
            each.axvline(1, color="black", linewidth=1)
            each.set_title(file, fontweight="bold")
        axes[-1, 0].set_xlabel(
            "time relative to state_dict.items(): geometric mean and 95% interval "
            "(less is faster)"
        )
        return _save(figure, path)


def draw_access(rows: list[dict[str, Any]], path: Path, note: str) -> Path:
    """Draw the time to iterate by the file's size, and how it is to plain mmap's."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 6.5), layout="constrained")
        times, ratios = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for row in _by_way(rows):
            of_way = [each for each in rows if each["way"] == row["way"]]
            times.errorbar(
                [each["size_mib"] for each in of_way],
                [each["mean_seconds"] * 1000 for each in of_way],
                [each["standard_error_seconds"] * 1000 for each in of_way],
                **_marks(row),
            )
            _draw_ratio_line(ratios, of_way)
        times.set_title(f"Iterating over 1024 tensors\n{note}", fontsize=11)
        times.set_yscale("log")
        _number_log_axis(times.yaxis)
        times.set_ylabel("time (ms), with standard error")
        times.legend(loc="upper left")
        _size_axis(ratios, rows)
        return _save(figure, path)


def draw_many(rows: list[dict[str, Any]], path: Path, note: str) -> Path:
    """Draw opening and iterating of many tensors apart, and their sum."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots(1, 3, sharex=True, sharey=True)
        steps = {"opening": ["open"], "iterating": ["iterate"]}
        steps["both"] = ["open", "iterate"]
        for each, (title, names) in zip(axes, steps.items(), strict=True):
            for way in _by_way(rows):
                of_way = [row for row in rows if row["way"] == way["way"]]
                passes = [
                    [sum(parts) for parts in zip(*_steps(row, names), strict=True)]
                    for row in of_way
                ]
                each.errorbar(
                    [row["size_mib"] for row in of_way],
                    [fmean(seconds) for seconds in passes],
                    [standard_error(seconds) for seconds in passes],
                    **_marks(way),
                )
            each.set_title(title, fontweight="bold")
            each.set_yscale("log")
            _number_log_axis(each.yaxis)
            _size_axis(each, rows)
        axes[0].set_ylabel("time (s), with standard error")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(f"Tensors of 1024 elements, {note}", x=0.01, ha="left")
        return _save(figure, path)


def draw_peers(rows: list[dict[str, Any]], path: Path, note: str) -> Path:
    """Draw each way's time and its peaks of memory, a line each."""
    times = [row for row in rows if row["kind"] == "time"]
    memory = {
        (row["way"], row["limit_mib"]): row for row in rows if row["kind"] == "memory"
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.6 + 0.24 * len(times)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for position, row in enumerate(times):
            is_ours = row["title"].startswith("ckpt_streamer")
            seconds = [
                sum(both)
                for both in zip(*_steps(row, ["open", "iterate"]), strict=True)
            ]
            left.errorbar(
                fmean(seconds),
                position,
                xerr=standard_error(seconds),
                color=BOUNDED if is_ours else NEUTRAL,
                marker="o" if is_ours else "s",
                capsize=2,
            )
            peaks = memory.get((row["way"], row["limit_mib"]))
            if peaks:
                anon, file = (
                    max(peaks[f"peak_{kind}_bytes"]) / MIB for kind in ("anon", "file")
                )
                right.barh(position, anon, color=ANONYMOUS, height=0.7)
                right.barh(
                    position, file, left=anon, color=FUSED, height=0.7, hatch="//"
                )
            if row["limit_mib"]:
                limit = row["limit_mib"]
                right.plot([limit] * 2, [position - 0.5, position + 0.5], color="black")
        left.set_yticks(
            range(len(times)), [_peer_label(row) for row in times], fontsize=8
        )
        left.set_ylim(len(times) - 0.5, -0.5)
        left.set_xscale("log")
        _number_log_axis(left.xaxis)
        left.set_xlabel("opening and iterating (s), with standard error")
        left.set_title(f"{times[0]['file']}, {note}", fontweight="bold")
        right.set_xlabel("peak above the idle process (MiB)")
        right.set_title("memory: anonymous, file-backed (hatched)", fontweight="bold")
        right.plot([], [], color="black", label="limit")
        right.legend(loc="lower right")
        return _save(figure, path)


def _steps(row: dict[str, Any], names: list[str]) -> list[list[float]]:
    return [row[f"{name}_seconds"] for name in names]


def _by_way(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row of each way."""
    return list({row["way"]: row for row in reversed(rows)}.values())[::-1]


def _marks(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "color": COLOURS[row["way"]],
        "marker": MARKERS[row["way"]],
        "label": row["title"],
        "linewidth": 1.4,
        "markersize": 5,
        "capsize": 3,
    }


def _draw_ratio_line(axes: Axes, rows: list[dict[str, Any]]) -> None:
    compared = [row for row in rows if "ratio" in row]
    if not compared:
        return
    means = [row["ratio"]["mean"] for row in compared]
    lows = [row["ratio"]["mean"] - row["ratio"]["low"] for row in compared]
    highs = [row["ratio"]["high"] - row["ratio"]["mean"] for row in compared]
    sizes = [row["size_mib"] for row in compared]
    axes.errorbar(sizes, means, [lows, highs], **_marks(compared[0]))
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylabel("relative to plain mmap\n(95% interval)")


def _size_axis(axes: Axes, rows: list[dict[str, Any]]) -> None:
    sizes = sorted({row["size_mib"] for row in rows})
    axes.set_xscale("log", base=2)
    labels = [
        f"{size // 1024} GiB" if size >= 1024 else f"{size} MiB" for size in sizes
    ]
    axes.set_xticks(sizes, labels)
    axes.set_xlabel("size of the file")


def _number_log_axis(axis: Axis) -> None:
    """Number it as one reads it: 0.05, 0.1, 0.2."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _peer_label(row: dict[str, Any]) -> str:
    limit = f", {row['limit_mib']} MiB" if row["limit_mib"] else ""
    return f"{row['title']} [{row['format']}]{limit}"


def _draw_ratio(
    axes: Axes, position: int, ratio: dict[str, float], colour: str
) -> None:
    axes.plot([ratio["low"], ratio["high"]], [position] * 2, color=colour, linewidth=2)
    axes.plot(ratio["mean"], position, "o", color=colour)
    axes.annotate(
        f"{ratio['mean']:.2f}",
        (ratio["mean"], position),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def _label(row: dict[str, Any]) -> str:
    limit = f"{row['limit_mib']} MiB" if row["limit_mib"] else "plain again"
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['way']}, {limit}, {threads}"


def _draw_curve(axes: Axes, row: dict[str, Any], name: str, colour: str) -> None:
    mebibytes = [value / MIB for value in row[name]]
    axes.plot(
        row["seconds"],
        mebibytes,
        color=colour,
        linewidth=1.4,
        label=row.get("title", row["way"]),
    )
    axes.fill_between(row["seconds"], mebibytes, color=colour, alpha=0.12, linewidth=0)


def _draw_limit(axes: Axes, limit_mib: float) -> None:
    axes.axhline(limit_mib, color="black", linestyle=(0, (5, 3)), linewidth=1)
    axes.annotate(
        f"limit {limit_mib:.0f} MiB",
        (1, limit_mib),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
    )


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_all(is_quick: bool) -> Iterator[Path]:
    plots = QUICK_PLOTS if is_quick else PLOTS
    demo = read_rows("demo", is_quick)
    if demo:
        yield draw_rss(demo, plots / "rss.png")
    iterate = read_rows("iterate", is_quick)
    if iterate:
        timed = [row for row in iterate if "threads" in row]
        yield draw_ratios(timed, plots / "iterate.png")
    memory = read_rows("figure-1", is_quick)
    if memory:
        yield draw_rss(memory, plots / "figure-1.png")
    for name, draw in {"figure-2": draw_access, "figure-3": draw_many}.items():
        result = read_result(name, is_quick)
        if result:
            note = _note(name, result["environment"]["run"])
            yield draw(result["rows"], plots / f"{name}.png", note)
    for path in sorted((QUICK_RESULTS if is_quick else RESULTS).glob("peers-*.json")):
        result = read_result(path.stem, is_quick)
        if result:
            run = result["environment"]["run"]
            state = "cold" if path.stem.endswith("-cold") else "warm"
            note = f"{state}, {run['rounds']} rounds"
            yield draw_peers(result["rows"], plots / f"{path.stem}.png", note)


def _note(name: str, run: dict[str, Any]) -> str:
    rounds = f"{run['many_rounds']} rounds"
    if name == "figure-2":
        rounds = f"{run['access_rounds']} rounds of {run['access_passes']} passes"
        if run["access_rounds_of_largest"] != run["access_rounds"]:
            rounds += f" ({run['access_rounds_of_largest']} of the largest)"
    quick = ", quick run" if run["quick"] else ""
    return f"limit {run['limit_mib']} MiB, {rounds}{quick}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="those of quick runs")
    for path in draw_all(parser.parse_args().quick):
        print(path)


if __name__ == "__main__":
    main()
