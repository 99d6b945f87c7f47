"""Channel groups and their units, as plain data.

All names are qualified names of the dense model and all indices are in its coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Kind = Literal["channel", "bundle", "head"]
"""channel: one index; bundle: one index repeated over groups, halves or slabs; head: one attention head."""


@dataclass(frozen=True, eq=False)
class Member:
    """A slice family of one parameter or buffer that shrinks with the group.

    ``index`` is int64 ``[units, multiplicity]``: the positions along ``dim`` that unit ``u`` owns.
    """

    parameter: str
    dim: int
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Consumer:
    """A place of the graph where a removed unit stops being read.

    ``node`` reads its argument number ``arg``; ``index`` is int64 ``[units, multiplicity]`` along
    ``dim`` of that argument. A ``normalises`` consumer computes statistics over the channels it reads
    (layer norm, group norm): its masked twin leaves removed channels out of the statistics. ``sample`` is
    the dimension of the argument along which the examples of the batch lie and, int64, the number of the
    example at each of its positions; None where no single dimension tells them apart.
    """

    node: str
    arg: int
    dim: int
    index: np.ndarray
    normalises: bool = False
    sample: tuple[int, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """All parameter slices that must shrink together.

    ``start`` is the position of the group's first unit in the flat vectors over all units that
    saliency, votes and arbitration work on.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    reach: tuple[str, ...]
    kind: Kind
    start: int

    @property
    def slice(self) -> slice:
        """Where the group's units lie in a flat ``[units]`` vector."""
        return slice(self.start, self.start + self.units)


@dataclass(frozen=True)
class Proportion:
    """A count constraint: the kept counts of ``groups`` must be ``t * shares`` for one integer ``t``.

    For example a residual width that ``forward`` divides by a number of heads.
    """

    groups: tuple[str, ...]
    shares: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Freeze:
    """Why some dimensions may not change: the operator, the module it ran in, and what it holds."""

    reason: str
    operator: str
    module: str
    parameters: int
    share: float


def reach_matrix(groups: tuple[ChannelGroup, ...], tasks: tuple[str, ...]) -> torch.Tensor:
    """``bool [tasks, units]``: which task's output depends on which unit."""
    reach = torch.zeros(len(tasks), sum(group.units for group in groups), dtype=torch.bool)
    for group in groups:
        for row, task in enumerate(tasks):
            reach[row, group.slice] = task in group.reach
    return reach
