"""What votes, budget and plan need of the structure and its cost, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
import torch

from disparse_structured.structure.groups import ChannelGroup, RatioConstraint

CostKind = Literal["macs", "parameters"]


class CostModel(Protocol):
    """The analytic cost of a set of kept units, ``keep`` bool ``[units]``."""

    def macs(self, keep: torch.Tensor, /) -> float:
        """Multiply-accumulates per forward of one sample."""
        ...

    def parameters(self, keep: torch.Tensor, /) -> float:
        """Number of parameters."""
        ...

    def unit_cost(self, kind: CostKind, keep: torch.Tensor | None = None, /) -> torch.Tensor | np.ndarray:
        """Float64 ``[units]``: what removing one unit from ``keep`` (from the dense model) saves."""
        ...


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
        """Groups that only outputs which no task claims depend on; nobody can vote on them."""
        ...

    @property
    def graph_only(self) -> float:
        """The share of the parameters that lies in slices that only numbers in ``forward`` pin."""
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
    def cost(self) -> CostModel:
        """The analytic cost."""
        ...

    def bound_to(self, names: Iterable[str], /) -> set[str]:
        """``names`` and every group that a count constraint ties to one of them."""
        ...
