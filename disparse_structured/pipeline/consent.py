"""Which layers of an ONNX file may be INT8: votes on measured damage, and measurements of the whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from disparse_structured.decision.arbiters import Arbiter, Ballot
from disparse_structured.decision.arbiters.ballot import arbitrate
from disparse_structured.pipeline.paying import Paying

Deviations = Mapping[str, float]
"""By task, how far its output moved, relative in the Euclidean norm."""

_TINY = torch.finfo(torch.float64).tiny


@dataclass(eq=False)
class Consent:
    """The search for the largest set of layers that no task objects to.

    A layer that alone exceeds a task's limit stays float. Of the others, the arbiter chooses as many as
    requested, with layers as units and squared deviations as scores.

    Args:
        damage: by layer, what it alone does to each task.
        gain: by layer, how often it multiplies.
        limits: by task.
        arbiter: decides between tasks.
        measure: the deviations with some layers in INT8 together.
    """

    damage: Mapping[str, Deviations]
    gain: Mapping[str, int]
    limits: Deviations
    arbiter: Arbiter
    measure: Callable[[Collection[str]], Deviations]
    measured: int = field(default=0, init=False)

    @property
    def willing(self) -> list[str]:
        """The layers that alone exceed no limit."""
        return [layer for layer, own in self.damage.items() if used(own, self.limits) <= 1]

    def layers(self) -> tuple[str, ...]:
        """The layers to quantize, ranked by damage per multiplication."""
        return self._most(self.willing, self.gain)

    def faster(self, paying: Paying) -> tuple[tuple[str, ...], frozenset[str]]:
        """The layers to quantize, and those that stay float because INT8 would cost time in their place.

        Layers are ranked by damage per millisecond saved. If INT8 saves no time anywhere, layers are chosen
        as by :meth:`layers`: the file is then written for its size.
        """
        willing = self.willing
        fast = paying.kept(willing)
        if not fast:
            return self.layers(), frozenset()
        layers = self._most(fast, paying.won(fast))
        still = paying.kept(layers)  # a layer whose neighbors are float may no longer save time
        if len(still) < len(layers):
            self.measured += 1
            if not still or used(self.measure(still), self.limits) > 1:
                still = layers
        return still, frozenset(willing).difference(fast) | frozenset(layers).difference(still)

    def _most(self, willing: Sequence[str], gain: Mapping[str, float]) -> tuple[str, ...]:
        """As many of ``willing`` as all tasks tolerate, by bisection over the share asked of the arbiter."""
        best: tuple[str, ...] = ()
        passed, failed = 0, len(willing) + 1
        asked = len(willing)
        while failed - passed > 1:
            chosen = self._chosen(willing, gain, asked / len(willing))
            self.measured += 1
            if used(self.measure(chosen), self.limits) <= 1:
                best, passed = chosen, asked
            else:
                failed = asked
            asked = (passed + failed) // 2
        return best

    def _chosen(self, willing: Sequence[str], gain: Mapping[str, float], ratio: float) -> tuple[str, ...]:
        """What the arbiter makes INT8 if every task is asked for this share of its layers."""
        rows = [[self.damage[layer][task] ** 2 for layer in willing] for task in self.limits]
        damage = torch.tensor(rows, dtype=torch.float64)
        worth = torch.tensor([max(gain[layer], _TINY) for layer in willing], dtype=torch.float64)

        def standing(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            """The share of the layers of ``mask`` with the least damage for what they gain."""
            order = torch.argsort(torch.where(mask, scores / worth, torch.inf), stable=True)
            found = torch.empty_like(scores)
            found[order] = torch.arange(len(order), dtype=scores.dtype) / max(int(mask.sum()), 1)
            return torch.where(mask, found, 1.0)

        reach = damage > 0
        standings = torch.stack([standing(row, own) for row, own in zip(damage, reach, strict=True)])
        ballot = Ballot(
            votes=~reach | (standings >= ratio),
            reach=reach,
            scores=damage / damage.sum(dim=1, keepdim=True).clamp_min(_TINY),
            ratio=ratio,
            rerank=standing,
            weights=damage.new_ones(len(damage)),
            damage=damage,
            unit_cost=torch.ones_like(worth),
            tasks=tuple(self.limits),
        )
        keep = arbitrate(self.arbiter, ballot)
        return tuple(layer for layer, kept in zip(willing, keep.tolist(), strict=True) if not kept)


def used(found: Deviations, limits: Deviations) -> float:
    """The largest share of a limit that is used; above 1 it is passed.

    >>> used({"depth": 0.03, "label": 0.01}, {"depth": 0.05, "label": 0.05})
    0.6
    """
    return max(found[task] / limit for task, limit in limits.items())
