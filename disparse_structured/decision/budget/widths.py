"""What the widths of the groups must respect: floors, rounding and count constraints.

Built once per search; :meth:`Widths.settle` runs at every step of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from disparse_structured.decision.budget.protection import matching
from disparse_structured.decision.budget.uniform import ties
from disparse_structured.errors import PlanError
from disparse_structured.structure.groups import ChannelGroup, RatioConstraint


class WidthRules(Protocol):
    """The part of a budget that is about widths."""

    @property
    def floor(self) -> float:
        """The share of a group that stays."""
        ...

    @property
    def min_width(self) -> int:
        """The fewest units of a group that stay."""
        ...

    @property
    def round_to(self) -> int | Literal["auto"]:
        """What kept counts are multiples of; ``"auto"``: of each group's own ``multiple``."""
        ...

    @property
    def shares(self) -> tuple[tuple[Any, float, float], ...]:
        """Pattern, and the smallest and largest share that may be removed of what it matches."""
        ...

    @property
    def uniform(self) -> bool:
        """Whether groups of one kind keep equally many units."""
        ...


@dataclass(frozen=True, eq=False)
class _Link:
    """One count constraint: ``groups`` keep ``t * shares`` for a ``t`` of ``allowed`` (ascending).

    ``sides`` are the positions in ``groups`` of those whose counts are added up; ``step`` is what the count
    of each group grows by.
    """

    groups: np.ndarray
    sides: tuple[np.ndarray, ...]
    shares: np.ndarray
    step: np.ndarray
    allowed: np.ndarray

    def raise_to(self, counts: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """The smallest counts of ``groups`` that are enough, or the dense ones where none is."""
        own: np.ndarray = counts[self.groups]
        most: np.ndarray = dense[self.groups]
        sums = np.array([own[side].sum() for side in self.sides])
        needed = int(np.max(-(-sums // self.shares)))
        for times in self.allowed[np.searchsorted(self.allowed, needed) :]:
            raised = self._raised(own, most, times * self.shares)
            if raised is not None:
                return raised
        return most

    def _raised(self, own: np.ndarray, most: np.ndarray, sums: np.ndarray) -> np.ndarray | None:
        """``own`` and more, so that the sides have ``sums``; None where steps miss one.

        Within a side the group comes first of which the smallest share is there.
        """
        raised = own.copy()
        for side, total in zip(self.sides, sums, strict=True):
            if len(side) == 1:
                raised[side] = total
                continue
            while raised[side].sum() < total:
                next_one = side[np.argmin(raised[side] / most[side])]
                raised[next_one] += min(self.step[next_one], most[next_one] - raised[next_one])
            if raised[side].sum() > total:
                return None
        return raised


@dataclass(frozen=True, eq=False)
class Widths:
    """Group sizes, the counts they may take, and the order in which units come back.

    Args:
        dense, minimum, step: int64 ``[groups]``: all units, the fewest that may stay, the multiple.
        ends: int64 ``[groups]``, one past the last unit of each group.
        group: int64 ``[units]``, the group of each unit.
        by_importance: int64 ``[units]``, all units, most important first.
        within: int64 ``[units]``, the same order inside each group, groups in their order.
        links: the count constraints, those of uniform widths among them.
        blocks: int64 ``[blocks, groups]``, ones where groups shrink together because widths are uniform.
        surplus: bool ``[units]``, the least important units that must be removed to meet a largest width.
    """

    dense: np.ndarray
    minimum: np.ndarray
    step: np.ndarray
    ends: torch.Tensor
    group: torch.Tensor
    by_importance: torch.Tensor
    within: torch.Tensor
    links: tuple[_Link, ...]
    blocks: np.ndarray
    surplus: torch.Tensor

    @classmethod
    def of(
        cls,
        groups: Sequence[ChannelGroup],
        constraints: Sequence[RatioConstraint],
        rules: WidthRules,
        reach: torch.Tensor,
        by_importance: torch.Tensor,
    ) -> Widths:
        """Widths of ``groups``; ``reach`` is bool ``[tasks, units]``."""
        dense = np.array([group.units for group in groups], dtype=np.int64)
        reached = reach.any(dim=0)
        minimum = np.array(
            [_minimum(group.units, rules, bool(reached[group.start])) for group in groups], dtype=np.int64
        )
        maximum = _apply_shares(rules, groups, dense, minimum)
        step = np.array([_step(group, rules.round_to) for group in groups], dtype=np.int64)
        places = {group.name: place for place, group in enumerate(groups)}
        group = torch.repeat_interleave(torch.arange(len(groups)), torch.from_numpy(dense))
        within = by_importance[group[by_importance].argsort(stable=True)]
        place = torch.arange(len(within)) - torch.from_numpy(dense.cumsum() - dense)[group]
        surplus = torch.zeros(len(within), dtype=torch.bool)
        surplus[within] = place >= torch.from_numpy(maximum)[group]
        uniform = ties(groups) if rules.uniform else ()
        return cls(
            dense=dense,
            minimum=minimum,
            step=step,
            ends=torch.from_numpy(dense.cumsum()),
            group=group,
            by_importance=by_importance,
            within=within,
            links=tuple(_link(each, places, dense, step) for each in (*constraints, *uniform)),
            blocks=_blocks(uniform, places),
            surplus=surplus,
        )

    def settle(self, keep: torch.Tensor) -> torch.Tensor:
        """Return ``keep`` (bool ``[units]``) plus the most important removed units that the rules require.

        Units that the rules do not allow are removed first.
        """
        keep = keep & ~self.surplus
        kept = self.counts(keep)
        missing = torch.from_numpy(self._allowed(kept) - kept)
        if not missing.any():
            return keep
        removed = ~keep[self.within]
        so_far = removed.cumsum(0)
        before = torch.from_numpy((self.dense - kept).cumsum() - (self.dense - kept))
        returns = removed & (so_far - before[self.group] <= missing[self.group])
        settled = keep.clone()
        settled[self.within[returns]] = True
        return settled

    def members(self) -> Sequence[torch.Tensor]:
        """int64 indices of the units of each group, most important first."""
        return torch.split(self.within, self.dense.tolist())

    def counts(self, keep: torch.Tensor) -> np.ndarray:
        """int64 ``[groups]``: how many units ``keep`` leaves in each."""
        upto = keep.cumsum(0)[self.ends - 1].numpy()
        return np.diff(upto, prepend=0)

    def _allowed(self, kept: np.ndarray) -> np.ndarray:
        """The smallest counts, at least ``kept``, that all rules allow."""
        counts = np.maximum(kept, self.minimum)
        counts = np.minimum(-(-counts // self.step) * self.step, self.dense)
        settled = False
        # Raising one group of a constraint may disturb another constraint it is in; counts only grow.
        while not settled:
            settled = True
            for link in self.links:
                raised = link.raise_to(counts, self.dense)
                if not np.array_equal(raised, counts[link.groups]):
                    counts[link.groups] = raised
                    settled = False
        final: np.ndarray = counts
        return final


def _apply_shares(
    rules: WidthRules, groups: Sequence[ChannelGroup], dense: np.ndarray, minimum: np.ndarray
) -> np.ndarray:
    """int64 ``[groups]``: the most units that may be kept; sets ``minimum`` where a share is limited."""
    maximum = dense.copy()
    places = {group.name: place for place, group in enumerate(groups)}
    for pattern, least, most in rules.shares:
        for group in matching(groups, pattern, "shares"):
            place = places[group.name]
            kept_most = math.floor(round(group.units * (1 - least), 9))
            minimum[place] = max(1, math.ceil(round(group.units * (1 - most), 9)))
            maximum[place] = max(kept_most, minimum[place])
    return maximum


def _step(group: ChannelGroup, round_to: int | Literal["auto"]) -> int:
    if group.kind == "head":
        return 1
    return group.multiple if round_to == "auto" else round_to


def _minimum(units: int, rules: WidthRules, reached: bool) -> int:
    # A floor keeps layers useful; a group that no task reads has no use.
    share = math.ceil(rules.floor * units - 1e-9) if reached else 0
    return min(units, max(1, rules.min_width, share))


def _blocks(uniform: Sequence[RatioConstraint], places: dict[str, int]) -> np.ndarray:
    rows = np.eye(len(places), dtype=np.int64)
    leaders = np.ones(len(places), dtype=bool)
    for constraint in uniform:
        first, *others = (places[name] for name in constraint.groups)
        rows[first, others] = 1
        leaders[others] = False
    return rows[leaders]


def _link(constraint: RatioConstraint, places: dict[str, int], dense: np.ndarray, step: np.ndarray) -> _Link:
    unknown = [name for name in constraint.groups if name not in places]
    if unknown:
        raise PlanError(
            f"the count constraint {constraint.reason!r} names group {unknown[0]!r}, which the structure "
            "does not have. This is a fault of the structure; please report it with the model."
        )
    groups = np.array([places[name] for names, _ in constraint.sides for name in names], dtype=np.int64)
    ends = np.cumsum([len(names) for names, _ in constraint.sides])
    sides = tuple(np.split(np.arange(len(groups)), ends[:-1]))
    shares = np.array([share for _, share in constraint.sides], dtype=np.int64)
    most = np.array([dense[groups[side]].sum() for side in sides])
    factors = np.arange(1, int(np.min(most // shares)) + 1, dtype=np.int64)
    counts = factors[:, None] * shares
    alone = np.array([len(side) == 1 for side in sides])
    # How the groups of a sum are rounded is seen when it is shared out.
    steps = np.where(alone, [step[groups[side[0]]] for side in sides], 1)
    fine = (counts % steps == 0) | (counts == most)
    return _Link(groups, sides, shares, step[groups], factors[fine.all(axis=1)])
