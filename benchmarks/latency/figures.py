"""Plots: predicted against measured times, and the speed-up of every variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.figures import FAINT, GRAY, INK, OURS, style
from benchmarks.latency.cells import Row
from benchmarks.latency.variants import VARIANTS
from disparse_structured.report.figures import require

_COLORS = (OURS, "#0072b2", "#56b4e9", "#009e73", "#a06c9e", GRAY)


def predicted(path: Path, rows: Sequence[Row]) -> bool:
    """Random plans of each network: predicted and measured share of the dense time; whether there are any."""
    found = [row for row in rows if row.plans]
    if not found:
        return False
    require()
    from matplotlib.figure import Figure

    columns = min(5, len(found))
    height = -(-len(found) // columns)
    canvas = Figure(figsize=(2.6 * columns, 2.6 * height), layout="constrained")
    axes = canvas.subplots(height, columns, squeeze=False)
    for place, ax in enumerate(axes.flat):
        if place >= len(found):
            ax.set_visible(False)
            continue
        row = found[place]
        measured, told = ([plan[key] for plan in row.plans] for key in ("share", "predicted"))
        most = 1.05 * max(*measured, *told)
        ax.fill_between([0, most], [0, 0.9 * most], [0, 1.1 * most], color=GRAY, alpha=0.4, lw=0)
        ax.scatter(measured, told, s=14, color=OURS)
        ax.set_xlim(0, most)
        ax.set_ylim(0, most)
        ax.set_title(row.cell.model, loc="left", color=INK, fontsize=9)
        style(ax)
        if place % columns == 0:
            ax.set_ylabel("predicted / dense", color=INK)
        if place + columns >= len(found):
            ax.set_xlabel("measured / dense", color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)
    return True


def speeds(path: Path, rows: Sequence[Row]) -> bool:
    """The speed-up of each variant with one thread and one image; whether there are any."""
    found = [row for row in rows if row.points and row.cell.first]
    if not found:
        return False
    require()
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(max(7.0, 1.2 * len(found) + 2), 3.4), layout="constrained")
    ax = canvas.subplots()
    wide = 0.8 / len(VARIANTS)
    for number, (name, color) in enumerate(zip(VARIANTS, _COLORS, strict=True)):
        bars = [(place, row.points[name]["share"]) for place, row in enumerate(found) if name in row.points]
        ax.bar(
            [place + (number - len(VARIANTS) / 2 + 0.5) * wide for place, _ in bars],
            [1 / share for _, share in bars],
            0.9 * wide,
            color=color,
            label=name,
        )
    ax.axhline(1, color=FAINT, lw=1, ls=":")
    ax.set_xticks(range(len(found)), [row.cell.model for row in found], rotation=20, ha="right", fontsize=8)
    ax.set_ylabel("times as fast as dense", color=INK)
    style(ax)
    ax.legend(ncols=len(VARIANTS), fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)
    return True


PLOTS: Sequence[tuple[str, Callable[[Path, Sequence[Row]], bool], str]] = (
    (
        "latency-speed.png",
        speeds,
        "![Speed-up of each variant](latency-speed.png)",
    ),
    (
        "latency-predicted.png",
        predicted,
        "Predicted times against measured ones, within 10 % in the gray band:\n\n"
        "![Predicted against measured times](latency-predicted.png)",
    ),
)
"""File, what draws it, and how the page shows it."""
