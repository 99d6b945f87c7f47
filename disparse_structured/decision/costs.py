"""Costs: what a budget can limit, and what plans and reports list.

A :class:`Cost` is a name, a unit, and a way to a :class:`CostModel` of a given structure. Any object with
these members is one. It needs no registration: ``Budget(0.5, of=cost)`` limits it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from disparse_structured.decision.contracts import CostModel, PrunableStructure
from disparse_structured.structure.counting import count_macs, count_parameters

__all__ = ["STANDARD", "Cost", "CostModel", "MACs", "Parameters", "distinct"]


class Cost(Protocol):
    """Something that a network has less of once it is narrower."""

    @property
    def name(self) -> str:
        """The key in plans, reports and files, such as ``"macs"``; one word in lower case."""
        ...

    @property
    def unit(self) -> str:
        """What follows a number in a sentence, such as ``"MACs"`` or ``"ms"``."""
        ...

    def on(self, structure: Any, /) -> CostModel:
        """The cost of ``structure``, a :class:`~disparse_structured.structure.Structure`, by kept units."""
        ...

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> float | None:
        """The cost counted or measured on a model itself, for reports; None where that is not possible."""
        ...


@dataclass(frozen=True)
class MACs:
    """Multiply-accumulates per forward pass of one example.

    Convolutions, linear layers, matrix products, attention and recurrent layers count; element-wise work
    does not. Layers that read a number of rows that depends on the data, such as experts, are predicted with
    the rows that the dense network has on the example inputs, and counted with those of the pruned network.

    >>> import disparse_structured as ds
    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> structure = ds.analyse(model, zeros(2, 4), [ds.Task("out", ())])
    >>> MACs().on(structure).dense
    60.0
    >>> MACs().count(model, (zeros(2, 4),))
    60
    """

    @property
    def name(self) -> str:
        """``"macs"``."""
        return "macs"

    @property
    def unit(self) -> str:
        """``"MACs"``."""
        return "MACs"

    def on(self, structure: PrunableStructure, /) -> CostModel:
        """The analytic number of MACs."""
        return structure.cost.macs

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> int:
        """MACs as PyTorch's own counter sees them in one forward pass."""
        return count_macs(model, example_inputs)


@dataclass(frozen=True)
class Parameters:
    """The number of parameters; tied ones count once.

    >>> import disparse_structured as ds
    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> cost = Parameters().on(ds.analyse(model, zeros(2, 4), [ds.Task("out", ())]))
    >>> cost.dense
    72.0
    >>> keep = zeros(10).bool()
    >>> keep[:5] = True  # five of the ten hidden units
    >>> cost.total(keep), cost.marginal(keep)[0].item()
    (37.0, 7.0)
    """

    @property
    def name(self) -> str:
        """``"parameters"``."""
        return "parameters"

    @property
    def unit(self) -> str:
        """``"parameters"``."""
        return "parameters"

    def on(self, structure: PrunableStructure, /) -> CostModel:
        """The analytic number of parameters."""
        return structure.cost.parameters

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> int:
        """The parameters that the model holds."""
        return count_parameters(model)


STANDARD: tuple[Cost, ...] = (MACs(), Parameters())
"""The costs that every plan and every report lists."""


def distinct(costs: Iterable[Cost]) -> tuple[Cost, ...]:
    """:data:`STANDARD` and ``costs``, one a name; of two with one name, the latter."""
    return tuple({cost.name: cost for cost in (*STANDARD, *costs)}.values())
