"""The watershed: the layer at which the tasks' kept sets part, by a stated rule, with its uncertainty.

The rule: layers in order of execution are cut once, such that two constant values, one before the cut and
one from it on, leave the least squared error of the layers' IoU, every layer weighted by its number of
items. The watershed is the first layer after the cut. Where IoU does not fall at the cut, there is none.

DiSparse (Sun et al., CVPR 2022, §5) names the layer by looking at the curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Split:
    """One cut of one sequence.

    Args:
        position: the first layer after the cut.
        before, after: weighted mean IoU on both sides.
        explained: share of the weighted variance that the two means explain, in 0..1.
    """

    position: int
    before: float
    after: float
    explained: float


@dataclass(frozen=True)
class Watershed:
    """The cut of the mean IoU over all runs.

    Args:
        layer: the first layer after the cut, ``position`` its place among the layers.
        before, after, explained: as in :class:`Split`.
        support: layer -> share of bootstrap resamples of the runs whose cut lies there, largest first;
            empty with a single run, which says nothing about uncertainty.
        low, high: the layers between which the cut lies in 90 % of the resamples.
    """

    layer: str
    position: int
    before: float
    after: float
    explained: float
    support: tuple[tuple[str, float], ...]
    low: str
    high: str


def split(values: Sequence[float | None], sizes: Sequence[int]) -> Split | None:
    """The best cut of ``values``, weighted by ``sizes``; layers without a value (None) are skipped.

    The first of equally good cuts. None if there are fewer than two values, or if they do not fall.
    """
    present = [place for place, value in enumerate(values) if value is not None]
    if len(present) < 2:
        return None
    x = np.array([values[place] for place in present], dtype=np.float64)
    w = np.array([sizes[place] for place in present], dtype=np.float64)
    left, right = _means(x, w), _means(x[::-1], w[::-1])[::-1]
    weight = w.cumsum()
    # Least squared error is most variance between the two sides.
    between = weight[:-1] * (weight[-1] - weight[:-1]) / weight[-1] * (left[:-1] - right[1:]) ** 2
    cut = int(between.argmax())
    if not left[cut] > right[cut + 1]:
        return None
    total = float((w * (x - left[-1]) ** 2).sum())
    return Split(present[cut + 1], float(left[cut]), float(right[cut + 1]), float(between[cut] / total))


def watershed(
    layers: Sequence[str], sizes: Sequence[int], runs: Sequence[Sequence[float | None]], seed: int = 0
) -> Watershed | None:
    """The cut of the runs' mean; its uncertainty by bootstrap over the runs.

    Args:
        layers, sizes: name and number of items of every layer, in order of execution.
        runs: IoU by layer, one sequence per run (seed).

    None if the mean has no cut.
    """
    table = np.array([[np.nan if value is None else value for value in run] for run in runs], dtype=float)
    found = split(_mean(table), sizes)
    if found is None:
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    cuts: list[int] = []
    for _ in range(RESAMPLES if len(runs) > 1 else 0):
        drawn = split(_mean(table[generator.integers(len(runs), size=len(runs))]), sizes)
        if drawn is not None:
            cuts.append(drawn.position)
    counted = Counter(cuts)
    support = tuple(
        (layers[place], times / RESAMPLES)
        for place, times in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    )
    low, high = (
        int(np.quantile(cuts, q, method="nearest")) if cuts else found.position for q in (0.05, 0.95)
    )
    return Watershed(
        layers[found.position],
        found.position,
        found.before,
        found.after,
        found.explained,
        support,
        layers[low],
        layers[high],
    )


def _means(x: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean of every prefix of ``x``."""
    return np.asarray((w * x).cumsum() / w.cumsum())


def _mean(table: NDArray[np.float64]) -> list[float | None]:
    """Mean over the runs that have a value."""
    known = ~np.isnan(table)
    sums, counts = np.where(known, table, 0.0).sum(axis=0), known.sum(axis=0)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
