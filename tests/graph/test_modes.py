"""What train mode adds: it is found behind decorators, and the pruned network still trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.structure import analyse

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as many libraries put around ``forward``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Parts(nn.Module):
    """A head with a hidden layer that runs in train mode only, on what the trunk computes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 24), nn.Linear(24, 2)
        self.extra = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))


class Auxiliary(Parts):
    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x).relu()
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


class Decorated(Parts):
    @logged
    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x).relu()
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


class DecoratedTwice(Parts):
    @logged
    @logged
    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x).relu()
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


@pytest.mark.parametrize("kind", [Auxiliary, Decorated, DecoratedTwice])
def test_a_head_for_training_follows_the_trunk_and_keeps_its_own_width(kind: type[Parts]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    structure = analyse(model, X[:2])
    scores = torch.rand(1, structure.units, generator=torch.Generator().manual_seed(1))
    plan = ds.plan(structure, scores, ds.Budget(macs=0.5))

    done = ds.apply(model, plan, structure)

    kept = done.model.trunk.out_features
    assert structure.train_mode
    assert done.refused == ()
    assert kept <= 12
    assert [tuple(layer.weight.shape) for layer in (done.model.extra[0], done.model.extra[2])] == [
        (12, kept),
        (3, 12),
    ]
    assert [tuple(output.shape) for output in done.model.train()(X)] == [(8, 2), (8, 3)]
