"""Pareto plots: what is left of a network against the MACs that are left, one panel a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import FAINT, INK, OURS, style
from benchmarks.no_training.methods import Family
from benchmarks.no_training.results import Figure, Point, Results
from disparse_structured.report.figures import require


@dataclass(frozen=True)
class Line:
    """The best of some families, under one name."""

    name: str
    families: tuple[Family, ...]
    color: str
    width: float = 1.6


# Okabe and Ito's colors.
LINES = (
    Line("best stock", ("stock",), "#0072b2"),
    Line("folding", ("folding",), "#a06c9e"),
    Line("GRAIL", ("grail",), "#009e73"),
    Line("ours", ("ours",), OURS, 2.6),
)


def pareto(
    path: Path, results: Results, figure: Figure, label: str, *, most: bool, floor: float | None = None
) -> bool:
    """Draws every network that has rows; at each share, a line shows its best method there.

    Args:
        path: the PNG to write.
        figure: the number of a row that is drawn.
        label: the label of the axis.
        most: whether more is better.
        floor: the lower end of the panels, at most; lines leave them there.

    Returns:
        Whether the file was written: not where no line has two points.
    """
    require()
    from matplotlib.figure import Figure as Canvas

    networks = [name for name in results.networks if _lines(results, figure, name, most)]
    if not networks:
        return False
    columns = min(3, len(networks))
    rows = -(-len(networks) // columns)
    canvas = Canvas(figsize=(4.1 * columns + 0.4, 3.3 * rows + 0.3), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False)
    for place, ax in enumerate(axes.flat):
        if place >= len(networks):
            ax.set_visible(False)
            continue
        _panel(ax, _lines(results, figure, networks[place], most), floor)
        ax.set_title(networks[place], loc="left", color=INK, fontsize=11)
        if place % columns == 0:
            ax.set_ylabel(label, color=INK)
        if place + columns >= len(networks):
            ax.set_xlabel("MACs left, % of the dense network", color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)
    return True


def _lines(results: Results, figure: Figure, network: str, most: bool) -> list[tuple[Line, list[Point]]]:
    found = ((line, results.curve(figure, network, line.families, most)) for line in LINES)
    return [(line, points) for line, points in found if len(points) > 1]


def _panel(ax: Any, lines: Sequence[tuple[Line, list[Point]]], floor: float | None) -> None:
    for line, points in lines:
        x = [100.0, *(100 * point.macs for point in points)]
        y = [0.0, *(point.value for point in points)]
        ax.plot(x, y, color=line.color, lw=line.width, marker="o", ms=2.2 * line.width, clip_on=True)
    values = [point.value for _, points in lines for point in points]
    low, high = min(*values, 0.0), max(*values, 0.0)
    low = low if floor is None else max(low, floor)
    room = 0.06 * (high - low)
    ax.set_ylim(low - room, high + room)
    ax.set_xlim(101, 6)  # room for the names
    _name_lines(ax, lines, low, high)
    ax.axhline(0, color=FAINT, lw=1, ls=":", zorder=0)
    ax.set_xticks([100, 80, 65, 50, 40, 30])
    style(ax)


def _name_lines(ax: Any, lines: Sequence[tuple[Line, list[Point]]], low: float, high: float) -> None:
    """Writes each line's name at its end, moved where names would overlap."""
    gap = 0.075 * (high - low)
    ends = sorted(((max(p[-1].value, low), line, p) for line, p in lines), key=lambda end: end[2][-1].value)
    heights = [value for value, _, _ in ends]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    limit = high
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], limit)
        limit = heights[place] - gap
    for height, (_, line, points) in zip(heights, ends, strict=True):
        below = points[-1].value < low
        x = 100 * points[-1].macs - 1.5
        text = f"{line.name} ({points[-1].value:.0f})".replace("-", "−") if below else line.name
        ax.text(x, height, text, color=line.color, va="center", fontsize=9, fontweight="bold")
