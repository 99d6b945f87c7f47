"""Small structures made by hand: a chain of layers, each as wide as its channel group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from disparse_structured.structure.groups import (
    ChannelGroup,
    Kind,
    Member,
    Pin,
    RatioConstraint,
    reach_matrix,
)

TASKS = ("seg", "depth", "normal")


@dataclass(frozen=True, eq=False)
class ChainCost:
    """Layer i costs ``areas[i] * kept(i) * kept(i - 1)``."""

    widths: tuple[int, ...]
    areas: tuple[int, ...]
    fixed: float

    @property
    def dense(self) -> float:
        return self.total(torch.ones(sum(self.widths), dtype=torch.bool))

    def marginal(self, keep: torch.Tensor) -> torch.Tensor:
        left = [int(part.sum()) for part in torch.split(keep, list(self.widths))]
        every = []
        for i, width in enumerate(self.widths):
            before = left[i - 1] if i else 3
            after = self.areas[i + 1] * left[i + 1] if i + 1 < len(left) else 0
            every += [float(self.areas[i] * before + after)] * width
        return torch.tensor(every, dtype=torch.float64)

    def total(self, keep: torch.Tensor) -> float:
        before, total = 3, self.fixed
        for area, part in zip(self.areas, torch.split(keep, list(self.widths)), strict=True):
            total += area * before * int(part.sum())
            before = int(part.sum())
        return float(total)


@dataclass(frozen=True)
class ChainCosts:
    """MACs grow with the areas, parameters do not."""

    macs: ChainCost
    parameters: ChainCost


@dataclass(frozen=True, eq=False)
class Chain:
    groups: tuple[ChannelGroup, ...]
    tasks: tuple[str, ...]
    reach: torch.Tensor
    constraints: tuple[RatioConstraint, ...]
    fingerprint: str
    cost: ChainCosts
    unclaimed: frozenset[str] = frozenset()
    graph_only: float = 0.0
    pinned: tuple[Pin, ...] = ()

    @property
    def units(self) -> int:
        return self.reach.shape[1]

    def kept(self, keep: torch.Tensor) -> dict[str, int]:
        return {group.name: int(keep[group.slice].sum()) for group in self.groups}

    def bound_to(self, names: Iterable[str]) -> set[str]:
        found, before = set(names), set[str]()
        while found != before:
            before = set(found)
            for constraint in self.constraints:
                if found & set(constraint.groups):
                    found |= set(constraint.groups)
        return found

    def saliency(self, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.reach.shape, dtype=torch.float64, generator=generator) * self.reach


def chain(
    widths: Sequence[int],
    *,
    reach: Sequence[Sequence[str]] | None = None,
    tasks: tuple[str, ...] = TASKS,
    kinds: Sequence[Kind] | None = None,
    areas: Sequence[int] | None = None,
    constraints: tuple[RatioConstraint, ...] = (),
    fixed: float = 0.0,
) -> Chain:
    """Groups ``net.layer0`` …; every task reaches all of them unless ``reach`` says otherwise."""
    reach = reach if reach is not None else [tasks] * len(widths)
    groups, start = [], 0
    for i, width in enumerate(widths):
        groups.append(
            ChannelGroup(
                name=f"net.layer{i}",
                units=width,
                members=(Member(f"net.conv{i}.weight", 0, np.arange(width)[:, None]),),
                consumers=(),
                reach=tuple(reach[i]),
                kind=kinds[i] if kinds else "channel",
                start=start,
            )
        )
        start += width
    return Chain(
        groups=tuple(groups),
        tasks=tasks,
        reach=reach_matrix(tuple(groups), tasks),
        constraints=constraints,
        fingerprint="c0ffee" * 8,
        cost=ChainCosts(
            macs=ChainCost(tuple(widths), tuple(areas or [1] * len(widths)), fixed),
            parameters=ChainCost(tuple(widths), (1,) * len(widths), fixed),
        ),
    )
