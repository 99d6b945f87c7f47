"""What train mode adds: it is found behind decorators, and the pruned network still trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
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


@pytest.mark.parametrize(
    "drawn",
    [
        lambda x: x.new_empty(len(x), 1).bernoulli_(0.9),  # the drop path of timm
        lambda x: torch.randint(2, (len(x), 1)),
        lambda x: nn.functional.gumbel_softmax(x, dim=0) + torch.zeros_like(x).normal_(),
        lambda x: torch.normal(0.0, 1.0, x.shape) + torch.randint_like(x, 2) + torch.poisson(x.abs()),
        lambda x: torch.distributions.Normal(0.0, 1.0).sample(x.shape),
    ],
)
def test_random_numbers_of_train_mode_pin_nothing(drawn: Callable[[Tensor], Tensor]) -> None:
    class Dropping(Parts):
        def forward(self, x: Tensor) -> Any:
            x = self.trunk(x).relu()
            return (self.head(x * drawn(x)), self.extra(x)) if self.training else self.head(x)

    structure = analyse(Dropping().eval(), X[:2])

    assert [(group.name, group.units) for group in structure.groups] == [("trunk", 24)]


@pytest.mark.parametrize("kind", [Auxiliary, Decorated, DecoratedTwice])
def test_a_head_for_training_follows_the_trunk_and_keeps_its_own_width(kind: type[Parts]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    structure = analyse(model, X[:2])
    scores = torch.rand(1, structure.units, generator=torch.Generator().manual_seed(1))
    plan = ds.plan(structure, scores, ds.Budget(macs=0.5))

    done = ds.apply(model, plan, structure)

    kept = done.model.trunk.out_features
    assert structure.train_factor == 1
    assert done.refused == ()
    assert kept <= 12
    assert [tuple(layer.weight.shape) for layer in (done.model.extra[0], done.model.extra[2])] == [
        (12, kept),
        (3, 12),
    ]
    assert [tuple(output.shape) for output in done.model.train()(X)] == [(8, 2), (8, 3)]


class Masking(nn.Module):
    """Hides random positions of a sequence behind a learned vector, in train mode only."""

    def __init__(self, hides: Callable[[Masking, Tensor], Tensor]) -> None:
        super().__init__()
        self.hides = hides
        self.trunk, self.mix, self.head = nn.Linear(6, 24), nn.Linear(24, 16), nn.Linear(16, 2)
        self.hidden, self.shift = nn.Parameter(torch.rand(24)), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        if self.training:
            x = self.hides(self, x)
        return self.head(self.mix(x).relu())


def by_assignment(net: Masking, x: Tensor) -> Tensor:
    mask = torch.from_numpy(np.random.rand(*x.shape[:2]) < 0.5)  # noqa: NPY002 (as models do)
    x[mask] = net.hidden
    return x


def by_where(net: Masking, x: Tensor) -> Tensor:
    return torch.where(torch.rand(x.shape[:2])[..., None] < 0.5, net.hidden, x)


def by_position(net: Masking, x: Tensor) -> Tensor:
    x[:, torch.randperm(x.shape[1])[:2]] = net.hidden
    return x


def along_channels(net: Masking, x: Tensor) -> Tensor:
    x[:, :, torch.arange(24) % 5 == 0] = 0
    x[torch.rand(x.shape[:2]) < 0.5] = net.hidden
    return x


def by_data(net: Masking, x: Tensor) -> Tensor:
    """Computes lengths from values, which no export can follow."""
    for row, length in enumerate((x.mean((1, 2)) > 0).long().tolist()):
        x[row, : length + 1] = net.hidden
    return x


def with_layers_dropped_at_random(net: Masking, x: Tensor) -> Tensor:
    if torch.rand([]) < 0.5:
        x = x + 1
    return by_assignment(net, x)


@pytest.mark.parametrize("hides", [by_assignment, by_where, by_position, with_layers_dropped_at_random])
def test_a_vector_that_only_train_mode_reads_follows_its_width(
    hides: Callable[[Masking, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model = Masking(hides).eval()
    data = torch.randn(16, 5, 6, generator=torch.Generator().manual_seed(0))

    result = ds.prune(model, data, macs=0.5, refit=None)
    small: Any = result.model

    assert result.report.refused == ()
    assert small.hidden.shape == (small.trunk.out_features,)
    assert small.trunk.out_features < 24
    assert small.shift.shape == (16,)  # nothing reads it in either mode
    positions = [(model.trunk.weight == row).all(1).nonzero().item() for row in small.trunk.weight]
    assert torch.equal(small.hidden, model.hidden[positions])
    small.train()(data).sum().backward()
    assert small.hidden.grad.abs().sum() > 0


def test_what_no_export_can_follow_in_train_mode_stays_whole_and_trains() -> None:
    torch.manual_seed(0)
    data = torch.randn(16, 5, 6, generator=torch.Generator().manual_seed(0))
    result = ds.prune(Masking(by_data).eval(), data, macs=0.7, refit=None)
    (refused,) = result.report.refused

    assert refused.group == "trunk"
    assert "with train mode, it raises RuntimeError" in refused.reason
    result.model.train()(data).sum().backward()


def test_a_mask_along_the_width_itself_pins_it() -> None:
    torch.manual_seed(0)
    data = torch.randn(16, 5, 6, generator=torch.Generator().manual_seed(0))
    result = ds.prune(Masking(along_channels).eval(), data, macs=0.7, refit=None)

    assert result.model.trunk.out_features == 24
    result.model.train()(data).sum().backward()


class LargeOnly(nn.Module):
    """An auxiliary head whose kernel does not fit the maps of small images."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 24, 3, stride=4), nn.Linear(24, 2)
        self.extra = nn.Sequential(nn.Conv2d(24, 12, 9), nn.ReLU(), nn.Conv2d(12, 3, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x).relu()
        found = self.head(x.mean((2, 3)))
        return (found, self.extra(x).mean((2, 3))) if self.training else found


def test_a_head_of_train_mode_that_needs_larger_images_follows_too() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 3, 20, 20, generator=torch.Generator().manual_seed(0))

    result = ds.prune(LargeOnly().eval(), images, macs=0.5, refit=None)

    assert result.model.trunk.out_channels == result.model.extra[0].in_channels < 24
    assert "train mode at the size 40x40" in result.report.verification.beyond
    assert result.model.train()(torch.rand(2, 3, 64, 64))[1].shape == (2, 3)
