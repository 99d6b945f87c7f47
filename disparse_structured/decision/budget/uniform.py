"""Which channel groups are the same place of repeated layers, and scores under which these keep one width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from disparse_structured.structure.groups import ChannelGroup, RatioConstraint


def ties(groups: Sequence[ChannelGroup]) -> tuple[RatioConstraint, ...]:
    """One count constraint for every kind of group that occurs more than once, in the order of ``groups``.

    Groups are of one kind if they have equally many units and their parameters' names differ only in numbers,
    as in ``layers.0.mlp.up.weight`` and ``layers.7.mlp.up.weight``.
    """
    kinds = defaultdict(list)
    for group in groups:
        kinds[_kind(group)].append(group.name)
    return tuple(
        RatioConstraint(tuple(names), (1,) * len(names), "uniform=True gives layers of one kind one width")
        for names in kinds.values()
        if len(names) > 1
    )


def shared_scores(scores: torch.Tensor, groups: Sequence[ChannelGroup], tasks: Sequence[str]) -> torch.Tensor:
    """``scores``, ``[tasks, units]``, such that each task asks for one width in all groups of a kind.

    The k-th smallest score of a task in a group becomes the mean of the k-th smallest in all groups of that
    kind that the task reaches. The order within a group stays, and so does what one width costs in all of
    these groups together.
    """
    named = {group.name: group for group in groups}
    scores = scores.clone()
    for tie in ties(groups):
        for row, task in enumerate(tasks):
            reached = [named[name].slice for name in tie.groups if task in named[name].reach]
            if reached:
                own = torch.stack([scores[row, each] for each in reached])
                ascending, order = own.sort(dim=1, stable=True)
                for each, shared in zip(
                    reached, own.scatter(1, order, ascending.mean(dim=0).expand_as(own)), strict=True
                ):
                    scores[row, each] = shared
    return scores


def _kind(group: ChannelGroup) -> Hashable:
    members = frozenset(
        (_without_numbers(member.parameter), member.dim, member.index.shape[1]) for member in group.members
    )
    return group.kind, group.units, members


def _without_numbers(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
