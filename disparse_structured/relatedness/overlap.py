"""Kept sets of several tasks, and how far they overlap.

An *item* is what a task keeps or gives up: a unit or a single weight. Items lie in *layers*, in order of
execution, and a task may reach a layer or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from disparse_structured.errors import TaskError
from disparse_structured.relatedness.result import Layer, Matrix, SeedRun

_RANKED = 200_000
"""Beyond this many items, an evenly spaced sample is ranked; its correlation is exact to about 0.002."""


@dataclass(frozen=True, eq=False)
class KeptSets:
    """What every task keeps, as if it were the only one.

    Args:
        tasks: names of the rows.
        layers: names and item counts; the items lie one layer after the other.
        reach: bool ``[tasks, layers]``.
        keep: bool ``[tasks, items]``; False in layers that the task does not reach.
        scores: floating point ``[tasks, items]``, >= 0, by which the items were chosen.
    """

    tasks: tuple[str, ...]
    layers: tuple[Layer, ...]
    reach: torch.Tensor
    keep: torch.Tensor
    scores: torch.Tensor

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Every layer's position and the slice of its items."""
        start = 0
        for position, layer in enumerate(self.layers):
            yield position, slice(start, start + layer.size)
            start += layer.size


def shared_layers(sets: KeptSets) -> tuple[Layer, ...]:
    """The layers that at least two tasks reach; raises :class:`TaskError` if there is none."""
    found = tuple(sets.layers[i] for i in range(len(sets.layers)) if int(sets.reach[:, i].sum()) > 1)
    if not found:
        raise TaskError(
            f"the tasks {', '.join(sets.tasks)} share nothing: no layer is reached by two of them. "
            "Relatedness is a property of tasks on one trunk; give at least two that share one."
        )
    return found


def overlap(sets: KeptSets, seed: int = 0) -> SeedRun:
    """Intersection over union of the tasks' kept sets, layer by layer, in total and for each pair.

    ``|items that all tasks keep| / |items that any task keeps|`` over the layers that at least two tasks
    reach, among the tasks that reach them (Sun et al., "DiSparse", CVPR 2022, §5). Where tasks keep large
    shares of a layer, much is in common by chance, which is given too. A layer of which no task keeps
    anything has no value (None). Raises :class:`TaskError` if no layer is shared.
    """
    shared_layers(sets)
    values: list[float | None] = []
    chances: list[float | None] = []
    both = either = 0
    expected = np.zeros(2)
    for position, span in sets.spans():
        rows = sets.reach[:, position]
        if int(rows.sum()) < 2:
            continue
        kept = sets.keep[rows, span]
        common, union = int(kept.all(dim=0).sum()), int(kept.any(dim=0).sum())
        values.append(common / union if union else None)
        both, either = both + common, either + union
        drawn = _by_chance(kept)
        chances.append(float(drawn[0] / drawn[1]) if union else None)
        expected += drawn
    return SeedRun(
        seed=seed,
        total=both / either if either else None,
        chance=float(expected[0] / expected[1]) if either else None,
        layers=tuple(values),
        by_chance=tuple(chances),
        affinity=_pairs(sets, _iou),
        correlation=_pairs(sets, _correlation),
    )


def keep_top(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Bool ``[items]``: the largest ``1 - ratio`` of ``scores``, at least one; the first of equal scores win.

    An item with score 0 is never kept: otherwise the tasks would agree on whatever comes first.
    """
    count = max(1, round((1 - ratio) * len(scores)))
    threshold = scores.topk(count).values[-1]
    keep = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    keep[ties[: count - int(keep.sum())]] = True
    return keep & (scores > 0)


def _by_chance(kept: torch.Tensor) -> NDArray[np.float64]:
    """Expected size of intersection and union if every task kept as many of these items, drawn at random.

    ``kept`` is bool ``[tasks, items]``.
    """
    share = kept.double().mean(dim=1)
    drawn = torch.stack([share.prod(), 1 - (1 - share).prod()]) * kept.shape[1]
    return np.asarray(drawn)


_OfPair = Callable[[KeptSets, int, int, torch.Tensor], float]
"""A number for two rows over the items where bool ``[items]`` is True."""


def _pairs(sets: KeptSets, of: _OfPair) -> Matrix:
    """``of`` every two tasks over the items that both reach; 0 for tasks that share nothing."""
    count = len(sets.tasks)
    sizes = torch.tensor([layer.size for layer in sets.layers])
    matrix = np.eye(count)
    for a in range(count):
        for b in range(a + 1, count):
            items = torch.repeat_interleave(sets.reach[a] & sets.reach[b], sizes)
            matrix[a, b] = matrix[b, a] = of(sets, a, b, items) if items.any() else 0.0
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _iou(sets: KeptSets, a: int, b: int, items: torch.Tensor) -> float:
    union = int(((sets.keep[a] | sets.keep[b]) & items).sum())
    return int((sets.keep[a] & sets.keep[b] & items).sum()) / union if union else 0.0


def _correlation(sets: KeptSets, a: int, b: int, items: torch.Tensor) -> float:
    """Spearman's rank correlation of the scores; 0 where one task scores everything alike."""
    places = items.nonzero().squeeze(1)
    places = places[:: -(-len(places) // _RANKED)]
    ranks = [rankdata(sets.scores[row][places].numpy()) for row in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
