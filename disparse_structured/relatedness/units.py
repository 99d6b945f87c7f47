"""Kept sets of units: the votes of the pruning engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.rankings import LayerRanking, Ranking, ranking_context
from disparse_structured.decision.votes import normalize, standings, vote
from disparse_structured.relatedness.overlap import KeptSets
from disparse_structured.relatedness.result import Layer
from disparse_structured.scoring import Criterion, score
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import ChannelGroup, Structure

UNIT_RATIO = 0.5
"""The share of units that every task gives up by default. At the paper's 0.922, whole layers are missing
from every task's set, and nothing remains to compare."""


def unit_sets(
    model: nn.Module,
    structure: Structure,
    data: Iterable[Any],
    *,
    ratio: float = UNIT_RATIO,
    criterion: Criterion | None = None,
    ranking: Ranking | None = None,
    to_inputs: ToInputs | None = None,
    seed: int = 0,
    max_batches: int | None = None,
) -> KeptSets:
    """What every task votes to keep of the units it reaches, if it gives up ``ratio`` of them.

    Args:
        structure: what :func:`disparse_structured.analyse` reads from ``model``; a layer is a channel group.
        criterion: :class:`~disparse_structured.scoring.criteria.Fisher` by default. SNIP sums a
            unit's gradients over all samples before it takes the absolute value: on NYU-v2 its sets
            agreed no better than by chance.
        ranking: each layer by itself by default, so that all layers lose the same share and their IoU can be
            compared; with layers in competition, some are kept whole, others lost, by every task alike.

    Raises what :func:`disparse_structured.scoring.score` raises.
    """
    found = score(
        model, structure, data, criterion or Fisher(), to_inputs=to_inputs, seed=seed, max_batches=max_batches
    )
    scores = normalize(found.scores, structure.reach, structure.tasks)
    cost = structure.cost.macs.marginal(torch.ones(structure.units, dtype=torch.bool))
    context = ranking_context(structure.groups, cost)
    standing = standings(scores, structure.reach, ranking or LayerRanking(), context)
    keep = vote(standing, structure.reach, ratio).keep & structure.reach
    groups = _in_order(structure)
    order = torch.cat([torch.arange(group.start, group.slice.stop) for group in groups])
    return KeptSets(
        structure.tasks,
        tuple(Layer(group.name, group.units) for group in groups),
        structure.reach[:, [group.start for group in groups]],
        keep[:, order],
        scores[:, order],
    )


def _in_order(structure: Structure) -> list[ChannelGroup]:
    """The groups by the place where ``forward`` first uses a parameter that makes their units."""
    captured = structure.capture
    place = {node: number for number, node in enumerate(captured.graph.nodes)}
    first = {
        captured.tensors[node.name]: min(place[user] for user in node.users)
        for node in captured.graph.find_nodes(op="placeholder")
        if node.name in captured.tensors and node.users
    }
    return sorted(
        structure.groups,
        key=lambda group: min(
            (first.get(m.parameter, len(place)) for m in group.members), default=len(place)
        ),
    )
