"""Channel groups and their units, as plain data.

All names are qualified names of the dense model and all indices are in its coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from disparse_structured.graph.instrument import Argument

Kind = Literal["channel", "bundle", "head"]
"""channel: one index; bundle: one index repeated over groups, halves or slabs; head: one attention head."""

Attention = Literal["heads", "head_dim"]
"""What of an attention layer is a unit: a whole head, or one index of the head dimension in all heads."""


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

    ``node`` reads its argument ``arg``; ``index`` is int64 ``[units, multiplicity]`` along
    ``dim`` of that argument. A consumer that ``normalizes`` by statistics over the channels (layer norm,
    group norm) hands them on, one that ``averages`` (mean, maximum) does not; the masked twin of both leaves
    removed channels out of the statistics. ``sample`` is the dimension of the argument along which the
    examples of the batch lie and, int64, the number of the example at each of its positions; None where no
    single dimension tells them apart.
    """

    node: str
    arg: Argument
    dim: int
    index: np.ndarray
    normalizes: bool = False
    averages: bool = False
    sample: tuple[int, np.ndarray] | None = None

    @property
    def takes_statistics(self) -> bool:
        """Whether a channel of zeros is something else than no channel."""
        return self.normalizes or self.averages

    @property
    def is_inside(self) -> bool:
        """Whether a fused operator reads the unit between its own steps, by a weight in a list of them."""
        return isinstance(self.arg, tuple) and self.sample is None


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
class RatioConstraint:
    """A count constraint: the kept counts of ``groups`` must be ``t * shares`` for one integer ``t``.

    For example a residual width that ``forward`` divides by a number of heads. Of groups that are
    ``together`` (heads in windows of three sizes), which have the same share, the sum of the kept counts
    must be ``t`` times it.
    """

    groups: tuple[str, ...]
    shares: tuple[int, ...]
    reason: str
    together: tuple[tuple[str, ...], ...] = ()

    @property
    def sides(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """The groups whose kept counts are added up, mostly one alone, and their share."""
        side_of = {name: side for side in self.together for name in side}
        shares = {
            side_of.get(name, (name,)): share for name, share in zip(self.groups, self.shares, strict=True)
        }
        return tuple(shares.items())

    def allows(self, kept: Mapping[str, int]) -> bool:
        """Whether so many units of each group may stay."""
        multiples = {divmod(sum(kept[name] for name in names), share) for names, share in self.sides}
        return len(multiples) == 1 and next(iter(multiples))[1] == 0


@dataclass(frozen=True)
class Pin:
    """Why some dimensions may not change: the operator, the module it ran in, and what it holds.

    ``number`` where a number that ``forward`` computes with does not follow: in the exported graph it does.
    """

    reason: str
    operator: str
    module: str
    parameters: int
    share: float
    number: bool = False


def positions_left(
    groups: Iterable[ChannelGroup], shapes: Mapping[str, tuple[int, ...]], keep: torch.Tensor | np.ndarray
) -> dict[str, dict[int, np.ndarray]]:
    """For each tensor and dimension that shrinks, the positions that stay, int64 ascending.

    ``shapes`` are the dense tensors' by name, ``keep`` is bool ``[units]``.
    """
    gone: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for group in groups:
        removed = ~np.asarray(keep[group.slice], dtype=bool)
        for member in group.members if removed.any() else ():
            gone[member.parameter, member.dim].append(member.index[removed].reshape(-1))
    left: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for (name, dim), found in gone.items():
        left[name][dim] = np.setdiff1d(np.arange(shapes[name][dim]), np.concatenate(found))
    return left


def reach_matrix(groups: tuple[ChannelGroup, ...], tasks: tuple[str, ...]) -> torch.Tensor:
    """``bool [tasks, units]``: which task's output depends on which unit."""
    reach = torch.zeros(len(tasks), sum(group.units for group in groups), dtype=torch.bool)
    for group in groups:
        for row, task in enumerate(tasks):
            reach[row, group.slice] = task in group.reach
    return reach
