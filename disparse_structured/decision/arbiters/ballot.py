"""What an arbiter is given, and what it must return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from disparse_structured.errors import OptionError


@dataclass(frozen=True, eq=False)
class Ballot:
    """Everything that is known once the tasks have voted at one ratio.

    Args:
        votes: bool ``[tasks, units]``, True = keep; True where the task does not reach the unit.
        reach: bool ``[tasks, units]``, which task's output depends on which unit.
        scores: float64 ``[tasks, units]``, >= 0, each task's row divided by its sum; 0 outside reach.
        ratio: the share of its own units that each task was asked to give up.
        rerank: ``(scores [units], mask [units]) -> standing [units]`` by the ranking in force: the share of
            the competing units that are removed before this one (1 outside the mask).
        weights: float64 ``[tasks]``, >= 0.
        damage: float64 ``[tasks, units]``, >= 0, the saliency as it came; 0 outside reach. It is what
            removing each unit adds to its task's loss; with ``Compensated``'s scores, to the squared
            relative deviation of its output.
        unit_cost: float64 ``[units]``, what removing each unit saves, in the budget's own cost.
        tasks: their names.
    """

    votes: torch.Tensor
    reach: torch.Tensor
    scores: torch.Tensor
    ratio: float
    rerank: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    weights: torch.Tensor
    damage: torch.Tensor
    unit_cost: torch.Tensor
    tasks: tuple[str, ...]

    @property
    def voters(self) -> torch.Tensor:
        """int64 ``[units]``: how many tasks reach the unit."""
        return self.reach.sum(dim=0)

    @property
    def removals(self) -> torch.Tensor:
        """int64 ``[units]``: how many tasks that reach the unit vote to remove it."""
        return (self.reach & ~self.votes).sum(dim=0)


class Arbiter(Protocol):
    """Turns the votes of the tasks that reach a unit into one decision.

    Any callable of this signature is an arbiter. It returns bool ``[units]``, True = keep. A rule under
    which the kept set shrinks as the ratio grows lets the budget search land on its target.
    """

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """The decision on every unit, bool ``[units]``."""
        ...


def arbitrate(arbiter: Arbiter, ballot: Ballot) -> torch.Tensor:
    """The arbiter's decision, bool ``[units]``, True = keep.

    Raises:
        OptionError: the arbiter returned anything else.
    """
    keep = arbiter(ballot)
    units = ballot.votes.shape[1]
    if isinstance(keep, torch.Tensor) and keep.dtype == torch.bool and keep.shape == (units,):
        return keep
    found = f"{keep.dtype} {list(keep.shape)}" if isinstance(keep, torch.Tensor) else type(keep).__name__
    raise OptionError(
        f"the arbiter {arbiter!r} returned {found}, expected torch.bool [{units}]: "
        "one decision per unit, True = keep."
    )
