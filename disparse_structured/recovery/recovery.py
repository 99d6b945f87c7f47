"""The interface of a recovery, which trains the pruned network without labels after the refit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.tasks import Task


@dataclass(frozen=True, eq=False)
class Subject:
    """The network that is pruned, and how to call it.

    Args:
        model: the dense network. A recovery leaves it as it is.
        tasks: they pick their parts of its output.
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
    """The pruned network.

    Args:
        model: the pruned and refitted network, which a recovery changes in place.
        tasks: they pick their parts of its output.
        batch: the number of examples in a batch, if it is fixed; None if it is free.
    """

    model: nn.Module
    tasks: tuple[Task, ...]
    batch: int | None = None


Recover: TypeAlias = Callable[[Student], RecoveryFacts]
"""Changes the weights of a pruned network in place, and returns facts about it."""


class Recovery(Protocol):
    """Trains a pruned network without labels. Any object with this method will do."""

    def prepare(self, subject: Subject, /) -> Recover:
        """Reads and checks the data before anything is pruned, and returns the function that trains later.

        Raises:
            DisparseError: the data or the dense network cannot be used.
        """
        ...


@runtime_checkable
class Timed(Protocol):
    """A recovery that says how long it takes, for an estimate before the run."""

    def seconds(self, one_pass: float, /) -> float:
        """Return about how many seconds training takes if a forward pass of one input takes ``one_pass``."""
        ...
