"""Costs as objects, and the search under costs that do not fall with every unit."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import disparse_structured as ds
from disparse_structured.cli.views import pruning_report
from disparse_structured.decision.arbiters import Unanimous
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.unit_costs import unit_costs
from disparse_structured.decision.contracts import PrunableStructure
from disparse_structured.decision.costs import STANDARD, MACs, Parameters, distinct
from disparse_structured.decision.deciding import decide, make_plan
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import GlobalRanking, LayerRanking, PerCostRanking
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.structure.groups import ChannelGroup, RatioConstraint
from tests.support.synthetic import chain

RANKINGS = [GlobalRanking(), PerCostRanking(), LayerRanking()]


@dataclass(frozen=True)
class Stairs:
    """A latency: each group takes ``prices[group][kept - 1]`` ms, the rest of the network ``fixed`` ms."""

    prices: tuple[tuple[float, ...], ...]
    fixed: float = 0.0
    name: str = "latency"
    unit: str = "ms"

    def on(self, structure: PrunableStructure) -> OnGroups:
        return OnGroups(self, structure.groups)

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        return None


@dataclass(frozen=True, eq=False)
class OnGroups:
    """Stairs bound to groups; the marginal cost is exactly what removing one more unit saves."""

    stairs: Stairs
    groups: tuple[ChannelGroup, ...]

    @property
    def dense(self) -> float:
        return self._price([group.units for group in self.groups])

    def total(self, keep: torch.Tensor) -> float:
        return self._price(self._widths(keep))

    def marginal(self, keep: torch.Tensor) -> torch.Tensor:
        widths = self._widths(keep)
        saved = []
        for group, price, width in zip(self.groups, self.stairs.prices, widths, strict=True):
            step = price[width - 1] - price[width - 2] if width > 1 else 0.0
            saved += [float(step)] * group.units
        return torch.tensor(saved, dtype=torch.float64)

    def _widths(self, keep: torch.Tensor) -> list[int]:
        return [int(keep[group.slice].sum()) for group in self.groups]

    def _price(self, widths: Sequence[int]) -> float:
        prices = zip(self.stairs.prices, widths, strict=True)
        return self.stairs.fixed + sum(float(price[width - 1]) for price, width in prices)


def ceil_steps(widths: Sequence[int], step: int, prices: Sequence[float]) -> Stairs:
    """Every started block of ``step`` units of a group costs its price."""
    return Stairs(
        tuple(
            tuple(price * -(-kept // step) for kept in range(1, width + 1))
            for width, price in zip(widths, prices, strict=True)
        )
    )


@st.composite
def staircases(draw: st.DrawFn, bumpy: bool = False) -> Stairs:
    """Up to four groups with prices of whole milliseconds, mostly flat; ``bumpy`` ones also fall."""
    rises = st.sampled_from([0, 0, 0, 1, 5, *([-4] if bumpy else [])])
    prices = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(rises, min_size=1, max_size=20))
        level, price = 10, []
        for rise in steps:
            level = max(1, level + rise)
            price.append(float(level))
        prices.append(tuple(price))
    return Stairs(tuple(prices), fixed=float(draw(st.integers(0, 5))))


def network(stairs: Stairs, **options: Any) -> Any:
    return chain([len(price) for price in stairs.prices], **options)


# The objects


def test_the_two_standard_costs_are_the_analytic_ones_and_count_themselves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    inputs = (torch.randn(2, 3, 8, 8),)
    structure = ds.analyse(model, inputs, [ds.Task("out", ())])
    for cost, name, unit in ((MACs(), "macs", "MACs"), (Parameters(), "parameters", "parameters")):
        assert (cost.name, cost.unit) == (name, unit)
        assert cost.count(model, inputs) == cost.on(structure).dense
    assert structure.cost.macs.dense == 36 * 6 * 27 + 16 * 4 * 54
    assert structure.cost.parameters.dense == 6 * 27 + 6 + 4 * 54 + 4
    assert MACs() == MACs() != Parameters()


def test_of_two_costs_with_one_name_the_given_one_counts() -> None:
    stairs, other = Stairs(((1.0,),)), Stairs(((1.0,),), name="macs")
    assert distinct([]) == STANDARD == (MACs(), Parameters())
    assert distinct([stairs, MACs()]) == (MACs(), Parameters(), stairs)
    assert distinct([other]) == (other, Parameters())


@pytest.mark.parametrize("module", ["costs", "budget.limits", "deciding"])
def test_the_examples_in_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"disparse_structured.decision.{module}"))
    assert found.attempted > 0
    assert found.failed == 0


# A budget of any cost


def test_a_budget_says_which_cost_it_limits() -> None:
    stairs = Stairs(((1.0, 2.0),))
    assert Budget(0.5, of=MACs()) == Budget(macs=0.5)
    assert Budget(0.5, of=Parameters()) == Budget(parameters=0.5)
    assert str(Budget(12.5, of=stairs)) == "latency=12.5"
    facts = dict(Budget(0.5, of=stairs).facts())
    assert (facts["cost"], facts["limit"]) == ("latency", 0.5)
    assert facts["of"] == repr(stairs)


class Nameless:
    name = "latency"
    unit = "ms"


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0.5,), {}, r"limit=0.5 and of=None does not say which cost it limits. Use Budget\(macs=0.5\)"),
        ((), {"macs": 0.5, "of": MACs()}, r"macs=0.5 and of=MACs\(\) names its cost twice"),
        ((0.5,), {"macs": 0.5}, "limits one cost, found limit and macs"),
        ((0.5,), {"of": MACs}, r"of must be an object, got the class MACs. Create one: MACs\(\)"),
        ((0.5,), {"of": "macs"}, r"of='macs' is not a cost: it has no name and no unit and no on"),
        (
            (0.5,),
            {"of": Nameless()},
            r"is not a cost: it has no on and no count. Pass an object such as MACs",
        ),
        (
            (-1,),
            {"of": MACs()},
            "macs=-1 would leave no model. .* or a number above 1 in the unit of the cost",
        ),
    ],
)
def test_a_budget_without_one_clear_cost_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OptionError, match=text):
        Budget(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": {"macs": 0.5}}, r"budget must be a Budget, got {'macs': 0.5}"),
        ({"budget": Budget}, "budget must be an object, got the class Budget"),
        (
            {"arbiter": Unanimous},
            r"arbiter must be an object, got the class Unanimous. Create one",
        ),
        ({"arbiter": "unanimous"}, r"arbiter must be callable, got 'unanimous'. Pass an object such as Unan"),
        ({"ranking": GlobalRanking}, r"ranking must be an object, got the class GlobalRanking"),
    ],
)
def test_a_choice_of_the_wrong_kind_is_refused_as_an_option(options: dict[str, Any], text: str) -> None:
    structure = chain([4, 4])
    arguments = {"budget": Budget(macs=0.5)} | options
    with pytest.raises(OptionError, match=text) as refused:
        decide(structure, structure.saliency(), **arguments)
    assert isinstance(refused.value, ValueError)


def test_marginal_costs_of_another_shape_are_refused() -> None:
    structure = chain([2, 2])
    model = OnGroups(Stairs(((1.0, 2.0),)), structure.groups[:1])
    with pytest.raises(OptionError, match=r"OnGroups.marginal returned \[2\], expected .* the 4 units"):
        unit_costs(model, torch.ones(4, dtype=torch.bool), structure.groups[:1])


# What a unit costs on a staircase


def test_the_marginal_cost_is_the_unit_cost_where_the_cost_is_not_a_staircase() -> None:
    structure = chain([8, 8, 8], areas=[4, 2, 1])
    dense = torch.ones(24, dtype=torch.bool)
    for cost in (structure.cost.macs, structure.cost.parameters):
        assert torch.equal(unit_costs(cost, dense, structure.groups), cost.marginal(dense))


def test_on_a_staircase_a_unit_costs_its_share_of_the_steepest_fall_of_its_group() -> None:
    """The first group is flat to 4 units, where it falls by 12; the second has just begun a step."""
    stairs = Stairs(((2, 2, 2, 2, 14, 14, 14, 14), (1, 2, 2, 2, 5), (3, 3, 3)))
    structure = network(stairs)
    costs = unit_costs(stairs.on(structure), torch.ones(16, dtype=torch.bool), structure.groups)
    assert costs.tolist() == [12 / 4] * 8 + [3.0] * 5 + [0.0] * 3
    left = torch.ones(16, dtype=torch.bool)
    left[[0, 1]] = False
    costs = unit_costs(stairs.on(structure), left, structure.groups)
    assert costs.tolist() == [12 / 2] * 8 + [3.0] * 5 + [0.0] * 3


def test_per_cost_sees_what_a_step_is_worth_where_no_single_unit_saves_anything() -> None:
    stairs = ceil_steps([32, 32], 8, [8.0, 1.0])
    structure = network(stairs, tasks=("seg",))
    assert not stairs.on(structure).marginal(torch.ones(64, dtype=torch.bool)).any()
    saliency = 10 + structure.saliency()
    kept = structure.kept(decide(structure, saliency, Budget(0.6, of=stairs)).keep)
    assert kept == {"net.layer0": 16, "net.layer1": 32}


def test_a_cost_without_any_step_is_decided_by_scores_alone() -> None:
    stairs = Stairs(((3,) * 8, (4,) * 8))
    structure = network(stairs)
    with pytest.raises(
        BudgetError, match=r"latency=0\.5 .*smallest reachable cost is 7 ms, 100\.0% of dense"
    ):
        decide(structure, structure.saliency(), Budget(0.5, of=stairs))


# Where the search lands on a staircase


def assert_nothing_comes_back_for_free(stairs: Stairs, structure: Any, keep: torch.Tensor) -> None:
    cost = stairs.on(structure)
    for unit in (~keep).nonzero().flatten().tolist():
        more = keep.clone()
        more[unit] = True
        assert cost.total(more) > cost.total(keep)


@settings(max_examples=150, deadline=None)
@given(
    stairs=st.one_of(staircases(), staircases(bumpy=True)),
    share=st.sampled_from([0.3, 0.5, 0.7, 0.9]),
    data=st.data(),
)
def test_the_result_fits_and_holds_no_removal_that_saves_nothing(
    stairs: Stairs, share: float, data: st.DataObject
) -> None:
    """Else the error names the smallest cost there is, and that much can be had."""
    structure = network(stairs)
    cost = stairs.on(structure)
    least = stairs.fixed + sum(min(price) for price in stairs.prices)
    budget = Budget(share, of=stairs, floor=0.0)
    ranking = data.draw(st.sampled_from(RANKINGS))
    try:
        keep = decide(structure, structure.saliency(), budget, ranking=ranking).keep
    except BudgetError as error:
        named = re.search(r"smallest reachable cost is (\S+) ms", str(error))
        assert named
        assert float(named[1]) == least > share * cost.dense
        if 1 < least < cost.dense:
            keep = decide(structure, structure.saliency(), Budget(least, of=stairs, floor=0.0)).keep
            assert cost.total(keep) == least
    else:
        assert least <= cost.total(keep) <= share * cost.dense
        assert_nothing_comes_back_for_free(stairs, structure, keep)


@settings(max_examples=60, deadline=None)
@given(stairs=staircases(), shares=st.tuples(st.floats(0.2, 0.95), st.floats(0.2, 0.95)))
def test_a_smaller_budget_asks_for_no_smaller_ratio_and_costs_no_more(
    stairs: Stairs, shares: tuple[float, float]
) -> None:
    structure = network(stairs)
    cost, (low, high) = stairs.on(structure), sorted(shares)
    try:
        less, more = (
            decide(structure, structure.saliency(), Budget(share, of=stairs, floor=0.0))
            for share in (low, high)
        )
    except BudgetError:
        return
    assert less.votes.ratio >= more.votes.ratio
    assert not (less.votes.keep & ~more.votes.keep).any()
    assert cost.total(less.keep) <= cost.total(more.keep)


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda r: type(r).__name__)
def test_widths_end_at_the_top_of_a_step(ranking: Any) -> None:
    widths = [40, 64, 32]
    stairs = ceil_steps(widths, 8, [3.0, 2.0, 5.0])
    structure = network(stairs)
    for share in (0.4, 0.6, 0.8):
        keep = decide(structure, structure.saliency(), Budget(share, of=stairs), ranking=ranking).keep
        assert all(width % 8 == 0 for width in structure.kept(keep).values())
        assert stairs.on(structure).total(keep) <= share * stairs.on(structure).dense


def test_count_constraints_and_rounding_hold_on_a_staircase() -> None:
    tied = RatioConstraint(("net.layer0", "net.layer1"), (1, 2), "forward divides the width by the heads")
    stairs = ceil_steps([16, 32, 32], 8, [3.0, 2.0, 5.0])
    structure = network(stairs, constraints=(tied,))
    for share in (0.5, 0.7):
        kept = structure.kept(
            decide(structure, structure.saliency(), Budget(share, of=stairs, round_to=4)).keep
        )
        assert kept["net.layer1"] == 2 * kept["net.layer0"]
        assert all(width % 4 == 0 for width in kept.values())


def test_where_narrower_is_slower_a_wider_layer_meets_the_budget() -> None:
    """One unit takes 9 ms, 2 to 4 take 20 but for 3, which takes 4."""
    stairs = Stairs(((9, 20, 4, 20),))
    structure = network(stairs, tasks=("seg",))
    found = decide(structure, structure.saliency(), Budget(5, of=stairs))
    assert structure.kept(found.keep) == {"net.layer0": 3}
    with pytest.raises(BudgetError, match=r"latency=3 .* smallest reachable cost is 4 ms, 20\.0% of dense"):
        decide(structure, structure.saliency(), Budget(3, of=stairs))


def test_the_error_names_what_keeps_a_bumpy_cost_up() -> None:
    stairs = Stairs(((9, 2, 30, 4, 20), (6, 6, 6, 6, 6)))
    structure = network(stairs)
    budget = Budget(0.3, of=stairs, min_width=3)
    with pytest.raises(BudgetError) as refused:
        decide(structure, structure.saliency(), budget)
    assert "smallest reachable cost is 10 ms, 38.5% of dense" in str(refused.value)
    assert "Limiting factors: min_width=3 (30.8% without it)." in str(refused.value)


# In plans and reports


def test_a_plan_under_another_cost_predicts_it_and_is_read_where_it_is_unknown() -> None:
    stairs = ceil_steps([16, 16], 8, [3.0, 2.0])
    structure = network(stairs)
    plan = make_plan(structure, structure.saliency(), Budget(0.6, of=stairs), method="DiSparse")
    assert list(plan.costs) == ["latency", "macs", "parameters"]
    change = plan.costs["latency"]
    assert (change.before, change.unit) == (10.0, "ms")
    assert change.after == stairs.on(structure).total(plan.keep(structure)) <= 6
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.provenance.method == "DiSparse"
    assert f"latency (ms)  10 → {change.after:g}" in str(again)
    assert json.loads(plan.to_json())["budget"]["cost"] == "latency"


def test_a_plan_with_a_group_left_whole_predicts_the_costs_that_it_is_given() -> None:
    stairs = ceil_steps([16, 16], 8, [3.0, 2.0])
    structure = network(stairs)
    plan = make_plan(structure, structure.saliency(), Budget(0.6, of=stairs))
    changed = next(iter(plan.removals))
    assert list(plan.without(structure, [changed]).costs) == ["macs", "parameters"]
    rest = plan.without(structure, [changed], distinct([stairs]))
    assert rest.costs["latency"].after == stairs.on(structure).total(rest.keep(structure))
    assert rest.costs["macs"].after > plan.costs["macs"].after


def test_a_report_lists_every_cost_and_is_read_where_one_is_unknown() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    stairs = ceil_steps([16], 8, [2.5])
    result = ds.prune(model, torch.randn(8, 6), [ds.Task("out", ())], budget=Budget(0.5, of=stairs))
    costs = result.report.costs
    assert set(costs) == {"macs", "parameters", "latency"}
    assert (costs["latency"].dense, costs["latency"].predicted, costs["latency"].counted) == (5.0, 2.5, None)
    assert costs["latency"].ratio == 0.5
    assert costs["macs"].counted == costs["macs"].predicted == 8 * 6 + 8 * 2
    document = json.loads(result.report.to_json())
    shown = str(pruning_report(document, "report.json"))
    assert re.search(r"latency \(ms\) +5 +2\.5 +50\.0%", shown)
    assert re.search(r"MACs +128 +64 +50\.0%", shown)
