"""What a refit did, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn


@dataclass(frozen=True)
class LayerFacts:
    """How one layer was repaired.

    Args:
        layer: its weight (of a batch norm its running mean), by qualified name.
        features: unknowns of each output channel.
        rows: examples times positions that were fitted on.
        before, after: root of the summed squared difference from the dense network's pre-activation at the
            kept outputs, relative to that pre-activation, on data that was not fitted on; what was wrong
            in earlier layers has been repaired in both.
    """

    layer: str
    features: int
    rows: int
    before: float
    after: float


class Skipped(NamedTuple):
    """A layer that reads or writes something else now and was left as it is, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class RefitFacts:
    """What a refit did.

    Args:
        method: its name and settings.
        samples: examples that were used, those set aside included.
        checked: examples set aside, on which alone ``before`` and ``after`` are measured; 0 if there were
            too few to set any aside, and they are measured on the fitted ones.
        layers: in the order of their repair.
        before, after: per task the relative deviation ``||masked - dense||_2 / ||dense||_2`` of the masked
            network's outputs with the dense weights, and with the refitted ones.
    """

    method: str
    samples: int
    checked: int
    layers: tuple[LayerFacts, ...]
    skipped: tuple[Skipped, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Refit:
    """``model`` has the dense shapes; :func:`disparse_structured.surgery.apply` cuts it."""

    model: nn.Module
    facts: RefitFacts
