"""Pareto plots: ΔT against the MACs that are left."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import FAINT, GRAY, INK, OURS, style
from benchmarks.tables.cells import Cell, Row
from benchmarks.tables.problems import TITLES
from benchmarks.tables.settings import Scale
from benchmarks.tables.views import DELTA, line
from disparse_structured.report.figures import require

# Okabe and Ito's colors.
_RIVALS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a4fbf")
_MARKS = "osD^vP"
NAMED = 5
"""How many baselines of a panel have a color and a name each; the others are gray."""


def pareto(
    path: Path, scale: Scale, dataset: str, regimes: Mapping[str, Iterable[str]], rows: Mapping[Cell, Row]
) -> bool:
    """One panel for each regime, one line for each method: mean ΔT over the seeds, with the standard
    deviation.

    ``regimes`` maps each regime to its methods. Our methods, whose names begin with ``disparse``, are drawn
    over the others. Where no method has results at two shares, nothing is written and False is returned.
    """
    require()
    from matplotlib.figure import Figure

    lines: dict[str, dict[str, Points]] = {}
    for regime, methods in regimes.items():
        drawn = {name: _points(scale, dataset, name, rows) for name in methods}
        if any(len(points) > 1 for points in drawn.values()):
            lines[regime] = {name: points for name, points in drawn.items() if points}
    if not lines:
        return False
    figure = Figure(figsize=(4.3 * len(lines) + 0.4, 5.4), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for ax, (regime, found) in zip(axes, lines.items(), strict=True):
        _panel(ax, regime, found)
    _axis(axes, [value for found in lines.values() for points in found.values() for _, value, _ in points])
    axes[0].set_ylabel("ΔT against the dense network, %", color=INK)
    figure.suptitle(
        f"{TITLES[dataset]}: what the tasks pay ({scale.name} scale, mean ± std over {scale.seeds} "
        f"seed{'s' if scale.seeds > 1 else ''})",
        color=INK,
        fontsize=12,
        x=0.01,
        ha="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return True


Points = list[tuple[float, float, float]]
"""Share of the MACs left in percent, mean and standard deviation of ΔT."""


def _points(scale: Scale, dataset: str, name: str, rows: Mapping[Cell, Row]) -> Points:
    points = []
    for removed in scale.removed:
        found = line(rows, [Cell(dataset, name, removed, seed) for seed in range(scale.seeds)])
        values = found.values(DELTA)
        macs = [row.macs for row in found.rows if row.macs is not None]
        if values and macs:
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            points.append((100 * statistics.fmean(macs), statistics.fmean(values), std))
    return sorted(points)


def _panel(ax: Any, regime: str, lines: Mapping[str, Points]) -> None:
    names = {name: name.partition("/")[2] for name in lines}
    ours = [name for name in lines if names[name].startswith("disparse")]
    # The best over all shares have names.
    others = sorted((name for name in lines if name not in ours), key=lambda name: -_mean(lines[name]))
    for place, name in enumerate(others[NAMED:]):
        label = f"{len(others) - NAMED} others" if place == 0 else None
        x, y, _ = zip(*lines[name], strict=True)
        ax.plot(x, y, color=GRAY, lw=1, marker=".", ms=4, label=label, zorder=1)
    for place, name in enumerate(others[:NAMED]):
        marks = {"color": _RIVALS[place], "marker": _MARKS[place], "ms": 4.5, "lw": 1.3, "zorder": 2}
        _drawn(ax, lines[name], names[name], marks)
    for place, name in enumerate(ours):
        marks = {
            "color": OURS,
            "marker": "o",
            "ms": 6,
            "lw": 2.4,
            "zorder": 3,
            "ls": "-" if place == 0 else "--",
        }
        _drawn(ax, lines[name], names[name], marks)
    ax.axhline(0, color=FAINT, lw=1, ls=":", zorder=0)
    ax.set_title(regime, color=INK, fontsize=11, loc="left")
    ax.set_xlabel("MACs left, % of the dense network", color=INK)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: ("others" in labels[i], not labels[i].startswith("dis")))
    shown = {labels[i]: handles[i] for i in order}
    ax.legend(
        shown.values(),
        shown.keys(),
        loc="upper left",
        bbox_to_anchor=(0, -0.14),
        ncols=2,
        fontsize=8.5,
        frameon=False,
    )


def _drawn(ax: Any, points: Points, label: str, marks: Mapping[str, Any]) -> None:
    x, y, deviation = zip(*points, strict=True)
    ax.errorbar(x, y, yerr=deviation, label=label, capsize=2, elinewidth=0.9, **marks)


def _axis(axes: Sequence[Any], values: Sequence[float]) -> None:
    """Symmetric-logarithmic where a method collapses, so that the good ones can still be told apart."""
    lowest, highest = min(values), max(*values, 0.0)
    for ax in axes:
        if lowest < -30:
            ax.set_yscale("symlog", linthresh=10, linscale=1.4)
            levels = (10, 5, 0, -5, -10, -20, -50, -100, -200)
            ticks = [tick for tick in levels if 1.2 * lowest < tick < highest + 2]
            ax.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
            ax.yaxis.set_minor_locator(_no_ticks())
            ax.set_ylim(1.2 * lowest, highest + 3)
        ax.set_xticks([10, 30, 50])
        style(ax)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _mean(points: Points) -> float:
    return statistics.fmean(mean for _, mean, _ in points)
