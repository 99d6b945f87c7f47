"""Publication-style figures of relatedness. They need matplotlib (the extra ``figures``)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disparse_structured.errors import DisparseError
from disparse_structured.relatedness.published import PUBLISHED, counterpart
from disparse_structured.relatedness.result import Relatedness
from disparse_structured.report.figures import require

_INK, _FAINT, _GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Okabe and Ito's colors, distinguishable with any color vision.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ((0, (1, 1.2)), (0, (4, 1.6)), (0, (4, 1.4, 1, 1.4)))
_LAYERS_NAMED = 40
_FONT = 9


def draw_layers(path: str | os.PathLike[str], results: Sequence[Relatedness], *, title: str = "") -> None:
    """Writes a PNG: IoU by layer, one curve per result, with its band over the seeds and its watershed.

    Weight-level results on a trunk with ResNet-34's layer names are shown with the published curves.

    Args:
        path: the file; it is replaced only once the new one is complete.
        results: results with the same layers, for example before and after training.

    Raises:
        DisparseError: matplotlib is missing, there is no result, or their layers differ.
    """
    require()
    _check_alike(results)
    first = results[0]
    figure, canvas = _figure(max(6.4, min(12.0, 2.6 + 0.24 * len(first.layers))), 4.4)
    axes = figure.add_subplot()
    x = np.arange(len(first.layers))
    for number, found in enumerate(results):
        _curve(axes, x, found, number)
    for number, found in enumerate(results):
        _watershed(axes, found, number, len(results))
    if first.level == "weight":
        _published(axes, first)
    _dress_layers(axes, results)
    axes.set_title(
        title or f"Overlap of what {_listed(first.tasks)} keep",
        loc="left",
        fontsize=12,
        weight="bold",
        color=_INK,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=_FONT, frameon=False, labelcolor=_INK)
    _save(canvas, path)


def draw_affinity(path: str | os.PathLike[str], found: Relatedness, *, title: str = "") -> None:
    """Writes a PNG: the dendrogram of the tasks over their affinity matrix (mean IoU over the seeds).

    Args:
        path: the file; it is replaced only once the new one is complete.

    Raises:
        DisparseError: matplotlib is missing.
    """
    require()
    count = len(found.tasks)
    side = 1.5 + 0.62 * count
    figure, canvas = _figure(side + 1.4, 1.38 * side)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 2.6), width_ratios=(20, 1), hspace=0.04, wspace=0.06)
    tree, matrix, bar = (figure.add_subplot(grid[place]) for place in ((0, 0), (1, 0), (1, 1)))
    merges = found.dendrogram
    order = [found.tasks.index(task) for task in merges[-1].members]
    _tree(tree, found, order)
    values = np.array(found.affinity)[np.ix_(order, order)]
    shown = np.where(np.eye(count, dtype=bool), np.nan, values)
    low, high = np.nanmin(shown), np.nanmax(shown)
    margin = max(0.1, 0.15 * (high - low))
    image = matrix.imshow(shown, cmap="YlGnBu", vmin=max(0.0, low - margin), vmax=min(1.0, high + margin))
    matrix.set_facecolor(_GRID)
    matrix.set_aspect("auto")  # its columns line up with the tree's leaves
    names = [found.tasks[place] for place in order]
    matrix.set_xticks(range(count), names, rotation=35, ha="right", fontsize=_FONT)
    matrix.set_yticks(range(count), names, fontsize=_FONT)
    for row, column in zip(*np.where(~np.isnan(shown)), strict=True):
        dark = image.norm(shown[row, column]) > 0.6
        color = "white" if dark else _INK
        matrix.text(
            column, row, f"{shown[row, column]:.3f}", ha="center", va="center", fontsize=_FONT, color=color
        )
    matrix.spines[:].set_visible(False)
    matrix.tick_params(length=0, colors=_INK)
    figure.colorbar(image, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=_FONT - 1, colors=_INK, length=2)
    bar.set_ylabel(f"IoU of kept {found.level}s", fontsize=_FONT, color=_INK)
    name = ", ".join(part for part in (f"{found.level} level", found.moment) if part)
    tree.set_title(title or f"Task affinity, {name}", loc="left", fontsize=12, weight="bold", color=_INK)
    _save(canvas, path)


def _curve(axes: Any, x: Any, found: Relatedness, number: int) -> None:
    """Mean and range over the runs, with gaps at layers where no task keeps anything."""
    color = _COLORS[number % len(_COLORS)]
    runs = np.array([[np.nan if v is None else v for v in run.layers] for run in found.runs], dtype=float)
    mean, side = np.array(found.iou), _shortcuts(found)
    name = found.moment or found.level
    if len(runs) > 1:
        low, high = np.fmin.reduce(runs), np.fmax.reduce(runs)
        axes.fill_between(x[~side], low[~side], high[~side], color=color, alpha=0.18, linewidth=0)
    style = {"color": color, "marker": "o", "markersize": 3.4, "zorder": 3}
    axes.plot(x[~side], mean[~side], linewidth=1.8, label=f"{name}: total {found.total:.3f}", **style)
    axes.plot(x[side], mean[side], linewidth=0, markerfacecolor="white", **style)
    chance = np.array(found.by_chance)[~side]
    style = {"color": color, "linewidth": 0.9, "alpha": 0.55}
    axes.plot(x[~side], chance, label=f"by chance: {found.chance:.3f}", **style)


def _watershed(axes: Any, found: Relatedness, number: int, of: int) -> None:
    """A dashed line, and a band where most resamples put it. Lines at the same place alternate dashes."""
    mark = found.watershed
    if mark is None:
        return
    color = _COLORS[number % len(_COLORS)]
    dashes = (4 * number, (4, 4 * (of - 1) or 2))
    name = f"watershed {found.moment}".rstrip()
    style = {"color": color, "linewidth": 1.2, "linestyle": dashes, "zorder": 2}
    axes.axvline(mark.position - 0.5, label=f"{name}: {_short(mark.layer)}", **style)
    if mark.low != mark.high:
        names = [layer.name for layer in found.layers]
        span = names.index(mark.low) - 0.7, names.index(mark.high) - 0.3
        axes.axvspan(*span, color=color, alpha=0.08, linewidth=0)


def _published(axes: Any, found: Relatedness) -> None:
    """The published curves, where most layers have a counterpart."""
    known = [counterpart(layer.name) for layer in found.layers]
    places = [place for place, name in enumerate(known) if name and not _shortcuts(found)[place]]
    if 2 * len(places) < len(known):
        return
    for each, dash in zip(PUBLISHED, _DASHES, strict=True):
        values = [each.by_layer[known[place] or ""] for place in places]
        label = f"published, {each.dataset}: {each.total:.3f}"
        axes.plot(places, values, color=_FAINT, linewidth=1.1, linestyle=dash, label=label, zorder=1)


def _shortcuts(found: Relatedness) -> Any:
    """Bool ``[layers]``: shortcuts' projections, drawn hollow and left out of the curve, as in the paper."""
    return np.array(
        [any(word in layer.name for word in ("downsample", "shortcut")) for layer in found.layers]
    )


def _dress_layers(axes: Any, results: Sequence[Relatedness]) -> None:
    first = results[0]
    names = [_short(layer.name) for layer in first.layers]
    step = -(-len(names) // _LAYERS_NAMED)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90)
    axes.set_ylim(-0.02, _top(results))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(f"IoU of kept {first.level}s", fontsize=_FONT, color=_INK)
    said = [f"{1 - first.ratio:.1%} kept by every task"]
    if max(len(found.runs) for found in results) > 1:
        said.append("bands: all seeds")
    if _shortcuts(first).any():
        said.append("hollow: shortcuts")
    axes.set_xlabel(f"layer, in order of execution\n({'; '.join(said)})", fontsize=_FONT, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=_FONT)
    axes.tick_params(axis="x", labelsize=_FONT - 2)


def _top(results: Sequence[Relatedness]) -> float:
    """The upper end of the axis: the next multiple of 0.2, so that small values stay legible."""
    drawn = [value for found in results for run in found.runs for value in (*run.layers, *run.by_chance)]
    highest = max((value for value in drawn if value is not None), default=1.0)
    return 0.02 + min(1.0, math.ceil(5 * highest) / 5)


def _tree(axes: Any, found: Relatedness, order: Sequence[int]) -> None:
    """The dendrogram, leaves above the matrix's columns."""
    center: dict[tuple[str, ...], float] = {
        (found.tasks[place],): float(column) for column, place in enumerate(order)
    }
    height = dict.fromkeys(center, 0.0)
    for merge in found.dendrogram:
        left, right = merge.left, merge.right
        x = [center[left], center[left], center[right], center[right]]
        axes.plot(
            x, [height[left], merge.distance, merge.distance, height[right]], color=_COLORS[0], linewidth=1.5
        )
        center[merge.members], height[merge.members] = (x[0] + x[2]) / 2, merge.distance
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.set_ylim(0, max(height.values()) * 1.08 or 1.0)
    axes.set_xticks([])
    axes.set_ylabel("1 \N{MINUS SIGN} IoU", fontsize=_FONT, color=_INK)
    axes.tick_params(labelsize=_FONT - 1, colors=_INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(_FAINT)


def _check_alike(results: Sequence[Relatedness]) -> None:
    if not results:
        raise DisparseError("there is no result to draw. Pass at least one.")
    first = results[0]
    for found in results[1:]:
        if found.layers != first.layers or found.level != first.level:
            raise DisparseError(
                f"{found.moment or 'a result'} has other layers or another level than "
                f"{first.moment or 'the first one'}. Draw results of one model and level together."
            )


def _short(name: str) -> str:
    """A layer's name without the usual prefixes of trunks."""
    for prefix in ("backbone.", "net.", "trunk."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".weight")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 5 else f"{len(names)} tasks"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    return figure, FigureCanvasAgg(figure)  # no display and no pyplot, whose global state is the caller's


def _save(canvas: Any, path: str | os.PathLike[str]) -> None:
    path = Path(path)
    draft = path.with_name(f".{path.name}.draft")
    canvas.print_figure(draft, dpi=160, format="png", bbox_inches="tight", pad_inches=0.12)
    os.replace(draft, path)
