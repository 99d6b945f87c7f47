"""Widths at which convolutions are fast: which groups have them, and that budgets round to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds

IMAGES = torch.rand(8, 3, 16, 16)


class Net(nn.Module):
    """Wide, middle, narrow and tiny convolutions, a gate over one position, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle = nn.Conv2d(3, 128, 3, stride=4), nn.Conv2d(128, 48, 1)
        self.depthwise, self.narrow = nn.Conv2d(48, 48, 3, groups=48), nn.Conv2d(48, 20, 1)
        self.tiny = nn.Conv2d(20, 12, 1)
        self.squeeze, self.excite = nn.Conv2d(48, 32, 1), nn.Conv2d(32, 48, 1)
        self.hidden, self.head = nn.Linear(12, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.wide(x).relu()).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.tiny(self.narrow(self.depthwise(y).relu()).relu()).mean((2, 3))
        return self.head(self.hidden(y).relu())


def test_only_channels_of_convolved_maps_have_a_multiple() -> None:
    structure = ds.analyse(Net().eval(), IMAGES[:2])

    assert {group.name: group.multiple for group in structure.groups} == {
        "wide": 16,
        "middle": 8,
        "narrow": 4,
        "tiny": 1,
        "squeeze": 1,
        "hidden": 1,
    }


class Shuffled(nn.Module):
    """Each unit of ``up`` is four channels of it, and one channel of ``last``."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.last = nn.Conv2d(3, 128, 1), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.pixel_shuffle(self.up(x), 2))


def test_a_unit_of_several_channels_is_counted_by_the_layer_that_has_the_fewest() -> None:
    (group,) = ds.analyse(Shuffled().eval(), IMAGES[:2]).groups
    assert (group.units, group.multiple) == (32, 8)


class Grouped(nn.Module):
    """Each unit of ``first`` is one channel in each of four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=4)
        self.last = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_a_unit_of_several_channels_everywhere_has_a_smaller_multiple() -> None:
    groups = ds.analyse(Grouped().eval(), IMAGES[:2]).groups
    assert [(group.units, group.multiple) for group in groups] == [(16, 2), (16, 2)]


@pytest.mark.parametrize("method", [ds.DiSparse(), ds.Compensated(rounds=1)])
def test_by_default_a_budget_rounds_to_them(method: ds.DiSparse | ds.Compensated) -> None:
    model = ds.prune(Net().eval(), IMAGES, macs=0.5, method=method, refit=None).model

    assert model.get_submodule("wide").out_channels % 16 == 0
    assert model.get_submodule("middle").out_channels % 8 == 0
    assert model.get_submodule("narrow").out_channels % 4 == 0


def test_rounding_can_be_turned_off_or_chosen() -> None:
    structure = ds.analyse(Net().eval(), IMAGES[:2])
    scores = torch.rand(1, structure.units, generator=torch.Generator().manual_seed(0))

    def kept(**rules: int) -> list[int]:
        plan = ds.plan(structure, scores, ds.Budget(macs=0.5, **rules))
        return [group.units - len(plan.removals.get(group.name, ())) for group in structure.groups]

    assert any(count % 4 for count in kept(round_to=1)[:3])
    assert all(count % 6 == 0 or count == 128 for count in kept(round_to=6)[:2])


def test_an_error_names_it_where_it_is_in_the_way() -> None:
    structure = ds.analyse(Net().eval(), IMAGES[:2])
    budget = ds.Budget(macs=0.02, floor=0.0)
    with pytest.raises(ds.errors.BudgetError, match=r"round_to=auto \(\d+\.\d% without it\)"):
        ds.plan(structure, torch.rand(1, structure.units), budget)
