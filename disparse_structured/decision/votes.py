"""Each task's own selection: from the scores of one task to its vote on every unit that it reaches.

A task ranks only the units it reaches, as if the other heads did not exist, under the same ratio as
every other task (DiSparse, Sun et al., CVPR 2022). How layers compete inside one task is the choice of a
:class:`~disparse_structured.decision.rankings.Ranking`. Everything here is pure; all vectors are flat over
the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from disparse_structured.decision.rankings import Ranking, RankingContext
from disparse_structured.errors import OptionError


@dataclass(frozen=True, eq=False)
class Votes:
    """What every task chose at one ratio.

    Args:
        keep: bool ``[tasks, units]``; True where the task does not reach the unit or may not choose.
        ratio: the share of its own units that each task gives up.
        standing: float64 ``[tasks, units]``, from which the votes at any other ratio follow.
    """

    keep: torch.Tensor
    ratio: float
    standing: torch.Tensor


def vote(standing: torch.Tensor, mask: torch.Tensor, ratio: float) -> Votes:
    """The votes at ``ratio``: remove where ``standing < ratio`` inside ``mask`` ``[tasks, units]``.

    The units removed at one ratio are removed at every larger one.
    """
    return Votes(keep=~(mask & (standing < ratio)), ratio=ratio, standing=standing)


def normalize(saliency: torch.Tensor, reach: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
    """Each task's saliency divided by its sum over the units that task reaches (DiSparse, CVPR 2022).

    Args:
        saliency: ``[tasks, units]``, finite and >= 0; what lies outside ``reach`` is ignored.
        reach: bool ``[tasks, units]``.
        tasks: names, for the error.

    Returns:
        float64 ``[tasks, units]``, 0 outside ``reach``; a task with nothing but zeros stays at zeros.

    Raises:
        OptionError: another shape, or a value that is negative, NaN or infinite.
    """
    if saliency.is_complex() or saliency.is_meta or saliency.layout is not torch.strided:
        raise OptionError("the saliency is complex, sparse or on the meta device. Pass dense real numbers.")
    if saliency.shape != reach.shape:
        raise OptionError(
            f"the saliency has shape {tuple(saliency.shape)}, expected [tasks, units] = "
            f"{tuple(reach.shape)}. Return one row per task and one value per unit."
        )
    scores = saliency.detach().to(device="cpu", dtype=torch.float64).masked_fill(~reach, 0.0)
    for name, row in zip(tasks, scores, strict=True):
        bad = ~torch.isfinite(row) | (row < 0)
        if bad.any():
            unit = int(bad.nonzero()[0])
            raise OptionError(
                f"task {name!r}: the saliency of {int(bad.sum())} units is not a finite number >= 0 "
                f"(first: unit {unit}, {float(row[unit])}). Check the criterion and the task's loss."
            )
    # By the largest first: the sum of finite saliencies may overflow.
    largest = scores.amax(dim=1, keepdim=True) if scores.shape[1] else scores.new_zeros(len(scores), 1)
    scores = scores / largest.masked_fill(largest == 0, 1.0)
    total = scores.sum(dim=1, keepdim=True)
    return scores / total.masked_fill(total == 0, 1.0)


def standings(
    scores: torch.Tensor, mask: torch.Tensor, ranking: Ranking, context: RankingContext
) -> torch.Tensor:
    """Every task ranked by itself: float64 ``[tasks, units]``, 1 outside ``mask``.

    Raises:
        OptionError: the ranking returned something else.
    """
    return torch.stack([standing(row, own, ranking, context) for row, own in zip(scores, mask, strict=True)])


def standing(
    scores: torch.Tensor, mask: torch.Tensor, ranking: Ranking, context: RankingContext
) -> torch.Tensor:
    """One ranking's checked answer: float64 ``[units]``, 1 outside ``mask``; see :func:`standings`."""
    found = ranking(scores, mask, context)
    name = type(ranking).__name__
    if not isinstance(found, torch.Tensor) or found.shape != scores.shape or not found.is_floating_point():
        is_tensor = isinstance(found, torch.Tensor)
        what = f"{found.dtype} {list(found.shape)}" if is_tensor else type(found).__name__
        raise OptionError(
            f"the ranking {name} returned {what}, expected floating point [units] = {list(scores.shape)}."
        )
    inside = found[mask]
    if not bool(((inside >= 0) & (inside < 1)).all()):
        raise OptionError(
            f"the ranking {name} returned standings outside [0, 1). A standing is the share of the "
            "competing units that are removed before this one: rank / number of units."
        )
    return found.to(torch.float64).masked_fill(~mask, 1.0)
