"""A network as trained ones are, wide layers whose channels are nearly combinations of a few, and what
tests measure on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from disparse_structured.pipeline import PruningResult
from disparse_structured.pipeline.inputs import Data


class Redundant(nn.Module):
    """Two dense tasks, ``depth`` and ``edges``, on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.wide, self.mid = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 16, 3)
        self.depth, self.edges = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 2, 1)
        with torch.no_grad():
            for layer in (self.wide, self.mid):
                few = layer.weight[:5].flatten(1)
                mix = torch.randn(layer.out_channels, 5) @ few
                layer.weight.copy_((mix + 0.01 * torch.randn_like(mix)).view_as(layer.weight))

    def forward(self, image: Tensor) -> Any:
        features = self.mid(self.wide(self.stem(image)))
        return {"depth": self.depth(features), "edges": self.edges(features)}


class AsTuple(Redundant):
    """The same, as a tuple."""

    def forward(self, image: Tensor) -> Any:
        return tuple(super().forward(image).values())


class Similarity(nn.Module):
    """No weight reads the units: their products are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 12), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.one(x).relu()[:, None], self.other(x).relu()[:, :, None]).flatten(1)


def build(kind: type[nn.Module] = Redundant) -> nn.Module:
    """The network, the same at every call, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return kind().eval()


def images(count: int = 24) -> Tensor:
    """Standard normal images ``[count, 3, 9, 9]``, the first ones the same at every call."""
    return torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(2))[:count]


def set_aside(dense: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs that a refit is measured on."""
    calibration = Data.of(dense, inputs).calibration
    return torch.cat([chunk[0] for chunk in calibration.checks or calibration.chunks])


def deviations(model: nn.Module, dense: nn.Module, inputs: Tensor) -> Mapping[str, float]:
    """``||model - dense|| / ||dense||`` of each entry of a dict of outputs, computed naively."""
    with torch.no_grad():
        found, wanted = model(inputs), dense(inputs)
    return {name: float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}


def deviation(model: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    """The same of the whole output, whatever holds it."""
    with torch.no_grad():
        found, wanted = (
            torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(each(inputs))])
            for each in (model, dense)
        )
    return float((found - wanted).norm() / wanted.norm())


def removed(result: PruningResult) -> dict[str, list[int]]:
    """The units that a plan removes, by group."""
    return {group.name: list(group.removed) for group in result.plan.groups if group.removed}


def macs_left(result: PruningResult) -> float:
    """The multiply-accumulates that are left, as a share of the dense network's."""
    return result.report.costs["macs"].ratio
