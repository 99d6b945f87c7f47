"""What costs, votes, budgets and plans need of a structure, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch

from disparse_structured.checks import check_object
from disparse_structured.structure.groups import ChannelGroup, Pin, RatioConstraint


class CostModel(Protocol):
    """One cost of one network as a function of the kept units; ``keep`` is bool ``[units]``, True = kept.

    The cost need not fall with every unit. It may be a staircase, flat over whole ranges of widths, and a
    narrower layer may even cost more.
    """

    @property
    def dense(self) -> float:
        """The cost of the dense network, finite and >= 0."""
        ...

    def total(self, keep: torch.Tensor, /) -> float:
        """The cost of the network with the units of ``keep``, finite and >= 0."""
        ...

    def marginal(self, keep: torch.Tensor, /) -> torch.Tensor:
        """float64 ``[units]``: what removing one unit from ``keep`` saves, to first order.

        It may be 0 for any number of units. Where it is 0 for all units of a group, the search measures
        with :meth:`total` how far the group has to shrink before the cost falls.
        """
        ...


class AnalyticCosts(Protocol):
    """The costs that follow from the shapes of the network."""

    @property
    def macs(self) -> CostModel:
        """Multiply-accumulates per forward pass of one example."""
        ...

    @property
    def parameters(self) -> CostModel:
        """Number of parameters."""
        ...


@runtime_checkable
class PrunableStructure(Protocol):
    """What votes, budget and plan read of a model's structure."""

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All channel groups, in the order of the flat unit vectors."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names."""
        ...

    @property
    def reach(self) -> torch.Tensor:
        """Bool ``[tasks, units]``."""
        ...

    @property
    def unclaimed(self) -> frozenset[str]:
        """Groups that only outputs which no task claims depend on; no task can vote on them."""
        ...

    @property
    def pinned(self) -> tuple[Pin, ...]:
        """Why dimensions cannot shrink, largest share of the parameters first."""
        ...

    @property
    def graph_only(self) -> float:
        """The share of the parameters in slices that are pinned only by numbers in ``forward``."""
        ...

    @property
    def constraints(self) -> tuple[RatioConstraint, ...]:
        """Count constraints between groups."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the dense model's architecture, hexadecimal."""
        ...

    @property
    def cost(self) -> AnalyticCosts:
        """The analytic costs."""
        ...

    def bound_to(self, names: Iterable[str], /) -> set[str]:
        """``names`` and every group that a count constraint ties to one of them."""
        ...


def check_prunable(structure: object) -> None:
    """Raises :class:`~disparse_structured.errors.OptionError` unless ``structure`` is a structure."""
    check_object(
        "structure",
        structure,
        PrunableStructure,
        "what analyse() returned",
        "Pass analyse(model, example_inputs, tasks).",
    )
