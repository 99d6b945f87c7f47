"""Some tasks matter more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from disparse_structured.decision.arbiters.ballot import Ballot
from disparse_structured.decision.arbiters.by_name import by_task, checked_numbers
from disparse_structured.decision.arbiters.weighing import weigh


@dataclass(frozen=True)
class Priority:
    """The tasks' damage is added up by weight, ranked once, and cut at the common ratio.

    Damage is added as it is, in the unit that the scores came in; :class:`WeightedMean` adds shares of each
    task's own sum instead. A unit that no task reaches is removed. ``weights`` of the ballot are not read.

    Args:
        weights: by the name of the task, >= 0; tasks that are not named weigh 1.

    Raises:
        OptionError: a weight is negative or not a finite number.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_numbers(self.weights, "Priority", "weight", zero=True))

    def __call__(self, ballot: Ballot) -> torch.Tensor:
        """Bool ``[units]``, True = keep.

        Raises:
            TaskError: a weight names an unknown task.
        """
        return weigh(ballot, by_task(self.weights, ballot.tasks, 1.0, "Priority")).keep
