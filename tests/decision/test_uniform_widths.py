"""A uniform budget: layers of one kind keep equally many units, whatever decides, and the budget is met."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.pipeline import Compensated, DiSparse, Iterative, Method
from disparse_structured.structure import Structure


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """Three blocks of one kind with very different weights, and one layer that is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.alone, self.near, self.far = nn.Linear(12, 16), nn.Linear(16, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return {"near": self.near(self.alone(x).relu()), "far": self.far(x)}


@functools.cache
def network() -> tuple[Net, Tensor, Structure]:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for scale, block in zip((0.2, 1.0, 4.0), model.blocks, strict=True):
            block.down.weight[:, ::2] *= scale
    inputs = torch.randn(32, 6)
    return model, inputs, ds.analyse(model, inputs[:2])


def widths(plan: ds.Plan) -> dict[str, int]:
    return {group.name: group.kept for group in plan.groups}


def of_the_blocks(plan: ds.Plan) -> set[int]:
    return {kept for name, kept in widths(plan).items() if name.startswith("blocks") and name.endswith("up")}


@pytest.mark.parametrize(
    "method", [Compensated(), DiSparse(), Iterative()], ids=lambda each: type(each).__name__
)
def test_one_width_for_a_kind_and_own_units_whatever_the_method(method: Method) -> None:
    model, inputs, structure = network()

    loose = ds.prune(model, inputs, macs=0.6, method=method, structure=structure)
    tied = ds.prune(
        model, inputs, budget=ds.Budget(macs=0.6, uniform=True), method=method, structure=structure
    )

    assert len(of_the_blocks(loose.plan)) > 1
    assert len(of_the_blocks(tied.plan)) == 1
    assert 0.57 <= tied.report.costs["macs"].ratio <= 0.6
    removed = {group.removed for group in tied.plan.groups if group.name.endswith("up")}
    assert len(removed) > 1
    assert tied.model.blocks[0].up.out_features == tied.model.blocks[2].up.out_features


@pytest.mark.parametrize("fraction", [0.3, 0.45, 0.7, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("arbiter", [ds.arbiters.Unanimous(), ds.arbiters.Minimax()], ids=repr)
def test_it_holds_for_any_scores_and_meets_the_budget(
    fraction: float, seed: int, arbiter: ds.arbiters.Arbiter
) -> None:
    structure = network()[2]
    scores = torch.rand(2, structure.units, generator=torch.Generator().manual_seed(seed)) ** 4

    plan = ds.plan(structure, scores, ds.Budget(macs=fraction, uniform=True), arbiter=arbiter)

    assert len(of_the_blocks(plan)) == 1
    assert plan.costs["macs"].after <= fraction * plan.costs["macs"].before


def test_it_goes_together_with_the_other_rules_about_widths() -> None:
    structure = network()[2]
    scores = torch.rand(2, structure.units, generator=torch.Generator().manual_seed(0))

    rounded = ds.plan(structure, scores, ds.Budget(macs=0.6, uniform=True, round_to=4))
    protected = ds.plan(structure, scores, ds.Budget(macs=0.92, uniform=True, protected="blocks.1.up"))

    assert of_the_blocks(rounded) <= {4, 8, 12, 16, 20}
    assert len(of_the_blocks(rounded)) == 1
    assert of_the_blocks(protected) == {20}


def test_without_it_a_plan_is_the_same_as_ever_and_does_not_mention_it() -> None:
    structure = network()[2]
    scores = torch.rand(2, structure.units, generator=torch.Generator().manual_seed(0))

    plan = ds.plan(structure, scores, ds.Budget(macs=0.6))

    assert plan.to_json() == ds.plan(structure, scores, ds.Budget(macs=0.6, uniform=False)).to_json()
    assert "uniform" not in plan.to_json()
    assert dict(ds.plan(structure, scores, ds.Budget(macs=0.6, uniform=True)).budget)["uniform"] is True


def test_it_is_named_where_it_limits_the_budget_and_refused_if_it_is_no_truth_value() -> None:
    structure = network()[2]
    scores = torch.ones(2, structure.units)

    with pytest.raises(BudgetError, match=r"uniform=True \(\d+.\d% without it\)"):
        ds.plan(structure, scores, ds.Budget(macs=0.2, uniform=True, protected="blocks.1.up"))
    with pytest.raises(OptionError, match="uniform must be True or False, got 'mlp'"):
        ds.Budget(macs=0.5, uniform="mlp")  # type: ignore[arg-type]
