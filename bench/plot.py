"""Draws the figures in bench/results/ as bench/plots/*.png. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from environment import PLOTS, read_rows
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MIB = 1024 * 1024

# Okabe and Ito's colours, told apart by colour-blind readers as well.
PLAIN = "#D55E00"
BOUNDED = "#0072B2"
NEUTRAL = "#555555"

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
                colour = BOUNDED if row["limit_bytes"] else PLAIN
                _draw_curve(file_axes, row, "file_bytes", colour)
                _draw_curve(anon_axes, row, "anon_bytes", colour)
                if row["limit_bytes"]:
                    _draw_limit(file_axes, row["limit_bytes"] / MIB)
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
    axes.plot(row["seconds"], mebibytes, color=colour, linewidth=1.4, label=row["way"])
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
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def main() -> None:
    demo = read_rows("demo")
    if demo:
        print(draw_rss(demo, PLOTS / "rss.png"))
    iterate = read_rows("iterate")
    if iterate:
        timed = [row for row in iterate if "threads" in row]
        print(draw_ratios(timed, PLOTS / "iterate.png"))


if __name__ == "__main__":
    main()
