"""Channel groups and their units, as plain data.

All names are qualified names of the dense model, and all indices use its numbering.
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
"""The unit of an attention layer: a whole head, or one index of the head dimension in all heads."""


@dataclass(frozen=True, eq=False)
class Member:
    """The slices of one parameter or buffer that shrink with the group.

    ``index`` is int64 ``[units, multiplicity]``: the positions along ``dim`` that unit ``u`` owns. ``reads``
    if ``dim`` is the one along which a weight is multiplied with the layer's input.
    """

    parameter: str
    dim: int
    index: np.ndarray
    reads: bool = False


@dataclass(frozen=True, eq=False)
class Consumer:
    """A place of the graph where a removed unit is no longer read.

    ``node`` reads its argument ``arg``; ``index`` is int64 ``[units, multiplicity]`` along
    ``dim`` of that argument. A consumer that ``normalizes`` by statistics over the channels (layer norm,
    group norm) passes them on; one that ``averages`` (mean, maximum) does not. In the masked twin, the
    statistics of both exclude removed channels. ``sample`` is the batch dimension of the argument and, int64,
    the number of the example at each of its positions; None if no single dimension separates the examples.
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
        """Whether a channel of zeros differs from a removed channel."""
        return self.normalizes or self.averages

    @property
    def is_inside(self) -> bool:
        """Whether a fused operator reads the unit internally, through a weight in a list."""
        return isinstance(self.arg, tuple) and self.sample is None


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """All parameter slices that must shrink together.

    ``start`` is the position of the group's first unit in the flat vectors over all units that
    saliency, votes and arbitration work on. ``attributes`` are slices of plain tensors that modules hold,
    such as a position table; they shrink too. A runtime's convolutions are fast where the number of kept
    units is a multiple of ``multiple``, see :mod:`.multiples`.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    reach: tuple[str, ...]
    kind: Kind
    start: int
    attributes: tuple[Member, ...] = ()
    multiple: int = 1

    @property
    def slice(self) -> slice:
        """The slice of the group's units in a flat ``[units]`` vector."""
        return slice(self.start, self.start + self.units)


@dataclass(frozen=True)
class RatioConstraint:
    """A count constraint: the kept counts of ``groups`` must be ``t * shares`` for one integer ``t``.

    An example is a residual width that ``forward`` divides by a number of heads. Groups that are
    ``together`` (heads in windows of three sizes) have the same share, and the sum of their kept counts
    must be ``t`` times it.
    """

    groups: tuple[str, ...]
    shares: tuple[int, ...]
    reason: str
    together: tuple[tuple[str, ...], ...] = ()

    @property
    def sides(self) -> tuple[tuple[tuple[str, ...], int], ...]:
        """The groups whose kept counts are summed, usually just one, and their share."""
        side_of = {name: side for side in self.together for name in side}
        shares = {
            side_of.get(name, (name,)): share for name, share in zip(self.groups, self.shares, strict=True)
        }
        return tuple(shares.items())

    def allows(self, kept: Mapping[str, int]) -> bool:
        """Check whether these numbers of kept units satisfy the constraint."""
        multiples = {divmod(sum(kept[name] for name in names), share) for names, share in self.sides}
        return len(multiples) == 1 and next(iter(multiples))[1] == 0


DATA_DEPENDENT = "a size depends on the data"
"""The reason of a :class:`Pin` by an operator that reads or returns a tensor of such a size."""


@dataclass(frozen=True)
class Pin:
    """Why some dimensions cannot change: the operator, the module it ran in, and what it pins.

    ``number`` if a number that ``forward`` computes with does not follow; in the exported graph it does.
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
    """List the kept positions of each tensor and dimension that shrinks, int64 ascending.

    ``shapes`` holds the dense tensors' shapes by name; ``keep`` is bool ``[units]``.
    """
    gone: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for group in groups:
        removed = ~np.asarray(keep[group.slice], dtype=bool)
        for member in (*group.members, *group.attributes) if removed.any() else ():
            gone[member.parameter, member.dim].append(member.index[removed].reshape(-1))
    left: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for (name, dim), found in gone.items():
        left[name][dim] = np.setdiff1d(np.arange(shapes[name][dim]), np.concatenate(found))
    return left


def reach_matrix(groups: tuple[ChannelGroup, ...], tasks: tuple[str, ...]) -> torch.Tensor:
    """Build bool ``[tasks, units]``: which task's output depends on which unit."""
    reach = torch.zeros(len(tasks), sum(group.units for group in groups), dtype=torch.bool)
    for group in groups:
        for row, task in enumerate(tasks):
            reach[row, group.slice] = task in group.reach
    return reach
