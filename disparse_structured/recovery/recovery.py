"""What a recovery is: something that trains the pruned network, without labels, after the refit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.tasks import Task


@dataclass(frozen=True, eq=False)
class Subject:
    """What is pruned.

    Args:
        model: the dense network. A recovery leaves it as it is.
        tasks: what picks each task's part of its output.
        example_inputs: the arguments of one forward pass, marked by which tensors have a batch dimension.
        aside: the inputs that were set aside for the report to measure deviations on, if there were enough.
            A recovery must not learn from them.
        to_inputs: from a batch to the tuple of ``forward``'s arguments; None for the default.
        seed: random seed.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).
    """

    model: nn.Module
    tasks: tuple[Task, ...]
    example_inputs: tuple[Any, ...]
    aside: tuple[tuple[Any, ...], ...] = ()
    to_inputs: ToInputs | None = None
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Student:
    """What pruning made of it.

    Args:
        model: the pruned and refitted network, which a recovery changes in place.
        tasks: what picks each task's part of its output.
        batch: the only number of examples that it takes; None if it takes any.
    """

    model: nn.Module
    tasks: tuple[Task, ...]
    batch: int | None = None


Recover: TypeAlias = Callable[[Student], RecoveryFacts]
"""Changes the weights of a pruned network in place, and says what that did."""


class Recovery(Protocol):
    """Trains a pruned network without labels. Any object with this method will do."""

    def prepare(self, subject: Subject, /) -> Recover:
        """Reads the data and checks it, before anything is pruned, and returns what trains later.

        Raises:
            DisparseError: the data or the dense network cannot be used.
        """
        ...
