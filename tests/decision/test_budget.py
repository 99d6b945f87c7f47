"""The budget's words, the widths it allows, and the search that meets it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from disparse_structured.decision.arbiters import AnyTask, Ballot, Majority, Quorum, Unanimous, WeightedMean
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.slack import Fits, trade
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.costs import Parameters
from disparse_structured.decision.deciding import decide, make_plan
from disparse_structured.decision.rankings import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
)
from disparse_structured.errors import BudgetError, OptionError, PatternError
from disparse_structured.structure.groups import ChannelGroup, RatioConstraint
from tests.support.synthetic import TASKS, Chain, chain

RANKINGS = [GlobalRanking(), PerCostRanking(), IsomorphicRanking(), LayerRanking()]
ARBITERS = [Unanimous(), Majority(), Quorum(2), AnyTask(), WeightedMean()]


def net(**options: Any) -> Chain:
    """A shared trunk of three layers and one private layer a task."""
    reach = [TASKS, TASKS, TASKS, *[(task,) for task in TASKS]]
    return chain([32, 64, 64, 48, 40, 40], reach=reach, areas=[64, 16, 16, 4, 4, 4], **options)


def share(structure: Chain, keep: torch.Tensor, kind: str = "macs") -> float:
    cost = getattr(structure.cost, kind)
    return float(cost.total(keep) / cost.dense)


# What a budget may say


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "limits one cost, found none"),
        ({"macs": 0.5, "parameters": 0.5}, "limits one cost, found macs and parameters"),
        ({"macs": 0}, "macs=0 would leave no model"),
        ({"macs": -0.5}, "macs=-0.5 would leave no model"),
        ({"macs": 1.0}, r"macs=1\.0 is ambiguous"),
        ({"parameters": 1}, "parameters=1 is ambiguous"),
        ({"macs": 1.5}, "neither a fraction below 1 nor a whole number"),
        ({"macs": float("nan")}, "macs=nan is not a finite number"),
        ({"macs": float("inf")}, "macs=inf is not a finite number"),
        ({"macs": "half"}, "macs='half' is not a finite number"),
        ({"macs": "200%"}, "macs='200%' is not a finite number"),
        ({"macs": "-50%"}, "macs='-50%' is not a finite number"),
        ({"macs": "0%"}, r"macs=0\.0 would leave no model"),
        ({"macs": True}, "macs=True is not a finite number"),
        ({"macs": 0.5, "floor": 1.5}, r"floor must be a share in \[0, 1\], such as 0.1, got 1.5"),
        ({"macs": 0.5, "floor": float("nan")}, "floor must be .*, got nan"),
        ({"macs": 0.5, "min_width": 0}, "min_width must be an integer >= 1, a number of units, got 0"),
        ({"macs": 0.5, "round_to": 2.0}, "round_to must be 'auto' or an integer >= 1"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_at_once(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(BudgetError, match=text):
        Budget(**arguments)


@pytest.mark.parametrize("text", ["50%", " 50.0 % "])
def test_a_fraction_may_be_a_percentage_as_on_the_command_line(text: str) -> None:
    assert Budget(macs=text) == Budget(macs=0.5)
    assert Budget(parameters=text) == Budget(parameters=0.5)
    assert Budget(text, of=Parameters()) == Budget(0.5, of=Parameters())


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        (3, r"shares holds 3\. Pass a dict"),
        ("stem", r"shares holds 'stem'\. Pass a dict"),
        (nn.Sequential(nn.ReLU()), r"shares holds Sequential\("),
        ([("stem",)], r"shares holds \('stem',\)\. Pass a dict"),
    ],
)
def test_shares_of_the_wrong_kind_are_refused_at_once(shares: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Budget(macs=0.5, shares=shares)


def test_the_remedy_is_part_of_the_refusal() -> None:
    with pytest.raises(BudgetError, match=r"fraction between 0 and 1, such as macs=0\.5, or a whole number"):
        Budget(macs=-1)


def test_equal_budgets_are_equal_data() -> None:
    structure = net()
    one, other = (
        make_plan(structure, structure.saliency(), Budget(macs=count))
        for count in (50_000.0, np.int64(50_000))
    )
    assert one.to_json() == other.to_json()
    assert Budget(macs=0.5, protected="stem").protected == ("stem",)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_an_absolute_budget_above_the_dense_cost_is_refused(factor: float) -> None:
    structure = net()
    dense = structure.cost.macs.dense
    with pytest.raises(BudgetError, match=f"not below the dense model's {dense:g} MACs, so there is nothing"):
        decide(structure, structure.saliency(), Budget(macs=int(dense * factor)))


# Where the search lands


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("arbiter", ARBITERS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_the_budget_is_met_within_one_percent_of_dense(ranking: Any, arbiter: Any, kind: str) -> None:
    structure = net()
    for target in (0.8, 0.5, 0.25):
        found = decide(
            structure, structure.saliency(), Budget(**{kind: target}), ranking=ranking, arbiter=arbiter
        )
        assert target - 0.01 <= share(structure, found.keep, kind) <= target


def test_fractions_and_counts_mean_the_same() -> None:
    structure = net()
    dense = structure.cost.macs.dense
    one = decide(structure, structure.saliency(), Budget(macs=0.5))
    other = decide(structure, structure.saliency(), Budget(macs=round(dense * 0.5)))
    assert torch.equal(one.keep, other.keep)


def test_nothing_leaves_that_a_task_wanted_to_keep() -> None:
    structure = net()
    found = decide(structure, structure.saliency(), Budget(macs=0.4))
    asked = (found.votes.keep & structure.reach).any(dim=0)
    assert found.keep[asked].all()
    assert torch.equal(found.votes.keep, ~(structure.reach & (found.votes.standing < found.votes.ratio)))


def test_all_tasks_are_asked_for_the_same_ratio() -> None:
    structure = net()
    votes = decide(structure, structure.saliency(), Budget(macs=0.5)).votes
    for row, reach in zip(votes.keep, structure.reach, strict=True):
        units = int(reach.sum())
        assert abs(int((~row).sum()) - votes.ratio * units) <= 1


@settings(max_examples=30)
@given(factor=st.sampled_from([2.0**-20, 0.5, 32.0, 2.0**40]), task=st.integers(0, 2))
def test_the_loudness_of_a_task_changes_no_decision(factor: float, task: int) -> None:
    structure = net()
    louder = structure.saliency()
    louder[task] *= factor
    for arbiter in ARBITERS:
        one = decide(structure, structure.saliency(), Budget(macs=0.5), arbiter=arbiter)
        other = decide(structure, louder, Budget(macs=0.5), arbiter=arbiter)
        assert torch.equal(one.keep, other.keep)


def test_the_order_of_the_tasks_changes_no_decision() -> None:
    structure = net()
    rows = [2, 0, 1]
    shuffled = dataclasses.replace(
        structure, tasks=tuple(TASKS[row] for row in rows), reach=structure.reach[rows]
    )
    saliency = torch.randint(1, 9, structure.reach.shape).double()
    for arbiter in (Unanimous(), Majority(), AnyTask()):
        one = decide(structure, saliency, Budget(macs=0.5), arbiter=arbiter)
        other = decide(shuffled, saliency[rows], Budget(macs=0.5), arbiter=arbiter)
        assert one.votes.ratio == other.votes.ratio
        assert torch.equal(one.votes.keep[rows], other.votes.keep)


def test_the_least_salient_units_leave_and_the_most_salient_come_back() -> None:
    structure = chain([10, 20], tasks=("seg",))
    saliency = torch.arange(1.0, 31.0)[None]
    keep = decide(structure, saliency, Budget(parameters=0.5, floor=0.0)).keep
    assert not keep[: int((~keep).sum())].any()


def test_between_layers_that_stand_alike_the_more_salient_gets_its_units_back() -> None:
    structure = chain([32, 32, 32, 32], tasks=("seg",))
    saliency = structure.saliency() + 1
    saliency[0, 96:] *= 100
    kept = []
    for target in (0.40, 0.45, 0.5, 0.55):
        keep = decide(structure, saliency, Budget(macs=target, round_to=4), ranking=LayerRanking()).keep
        kept.append(structure.kept(keep))
    assert all(counts["net.layer3"] == max(counts.values()) for counts in kept)
    assert any(counts["net.layer3"] > counts["net.layer1"] for counts in kept)


def test_per_cost_looks_at_the_cost_of_the_budget() -> None:
    """A unit of the last layer is dear in MACs and cheap in parameters."""
    structure = chain([32, 32, 32], areas=[1, 1, 400], tasks=("seg",))
    saliency = structure.saliency() + 10
    kept = {
        kind: structure.kept(
            decide(structure, saliency, Budget(**{kind: 0.5}), ranking=PerCostRanking()).keep
        )
        for kind in ("macs", "parameters")
    }
    assert kept["macs"]["net.layer2"] < 32
    assert kept["parameters"]["net.layer2"] == 32


def test_weights_reach_the_arbiters_that_use_them() -> None:
    structure = chain([16, 16], tasks=("seg", "depth"))
    saliency = torch.stack([torch.arange(32.0), torch.arange(32.0).flip(0)])
    first = decide(structure, saliency, Budget(macs=0.5), arbiter=WeightedMean(), weights=[1, 0]).keep
    alone = decide(chain([16, 16], tasks=("seg",)), saliency[:1], Budget(macs=0.5)).keep
    assert torch.equal(first, alone)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 1.0], [0.0] * 3, [float("nan")] * 3])
def test_weights_must_fit_the_tasks(weights: list[float]) -> None:
    with pytest.raises(OptionError, match=r"weights=.* do not fit the tasks \['seg', 'depth', 'normal'\]"):
        decide(net(), net().saliency(), Budget(macs=0.5), weights=weights)


def test_any_callable_is_an_arbiter_and_must_return_a_decision() -> None:
    def first_task(ballot: Ballot) -> torch.Tensor:
        return ballot.votes[0] & ballot.reach.any(dim=0)

    structure = chain([32, 32])
    found = decide(structure, structure.saliency(), Budget(macs=0.5), arbiter=first_task)
    assert 0.49 <= share(structure, found.keep) <= 0.5
    assert found.keep[found.votes.keep[0]].all()
    with pytest.raises(OptionError, match=r"returned torch.int64 \[64\]"):
        decide(structure, structure.saliency(), Budget(macs=0.5), arbiter=lambda b: b.voters)


def test_units_that_no_task_reaches_go_first_and_alone_if_they_suffice() -> None:
    structure = chain([16, 64, 16], reach=[TASKS, (), TASKS])
    found = decide(structure, structure.saliency(), Budget(macs=0.9))
    assert structure.kept(found.keep) == {"net.layer0": 16, "net.layer1": 1, "net.layer2": 16}
    assert found.votes.keep.all()


def test_protection_holds_against_any_arbiter_and_for_units_that_no_task_reaches() -> None:
    structure = chain([16, 32, 64], reach=[TASKS, (), TASKS])
    budget = Budget(macs=0.5, protected=("net.layer0", "net.layer1"))

    def harsh(ballot: Ballot) -> torch.Tensor:
        return ballot.votes[0] & (torch.arange(ballot.votes.shape[1]) >= 48)

    for arbiter in (*ARBITERS, harsh):
        kept = structure.kept(decide(structure, structure.saliency(), budget, arbiter=arbiter).keep)
        assert (kept["net.layer0"], kept["net.layer1"]) == (16, 32)


def test_the_search_repeats_itself_exactly() -> None:
    structure = net()
    one, other = (decide(structure, structure.saliency(), Budget(macs=0.37, round_to=4)) for _ in range(2))
    assert torch.equal(one.keep, other.keep)
    assert one.votes.ratio == other.votes.ratio


# What the widths must respect


def smallest_legal(
    widths: Sequence[int], at_least: Sequence[int], step: int, links: Sequence[tuple[int, int, int, int]]
) -> list[int]:
    """By counting up: the smallest widths that are multiples and proportional (two groups a link)."""
    counts = [min(w, -(-c // step) * step) for w, c in zip(widths, at_least, strict=True)]

    def legal(count: int, width: int) -> bool:
        return count == width or (count <= width and count % step == 0)

    changed = True
    while changed:
        changed = False
        for a, b, p, q in links:
            t = 1
            while t * p <= widths[a] and t * q <= widths[b]:
                if t * p >= counts[a] and t * q >= counts[b]:
                    if legal(t * p, widths[a]) and legal(t * q, widths[b]):
                        break
                t += 1
            else:
                t = 0
            new = (t * p, t * q) if t else (widths[a], widths[b])
            if new != (counts[a], counts[b]):
                counts[a], counts[b] = new
                changed = True
    return counts


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 24), min_size=3, max_size=3),
    step=st.sampled_from([1, 2, 4, 8]),
    min_width=st.integers(1, 6),
    floor=st.sampled_from([0.0, 0.1, 0.5]),
    shares=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    linked=st.booleans(),
)
def test_the_narrowest_widths_are_the_smallest_legal_ones(
    widths: list[int], step: int, min_width: int, floor: float, shares: tuple[int, int], linked: bool
) -> None:
    links = [(0, 1, *shares), (1, 2, 1, 1)] if linked else []
    names = [f"net.layer{i}" for i in range(3)]
    constraints = tuple(
        RatioConstraint((names[a], names[b]), (p, q), "so says forward") for a, b, p, q in links
    )
    structure = chain(widths, constraints=constraints, fixed=10.0)
    smallest = [min(w, max(1, min_width, math.ceil(floor * w - 1e-9))) for w in widths]
    expected = smallest_legal(widths, smallest, step, links)
    before, least = 3, 10
    for width in expected:
        least, before = least + before * width, width
    budget = Budget(parameters=least - 1, floor=floor, min_width=min_width, round_to=step)
    with pytest.raises(BudgetError, match=f"smallest reachable cost is {least:.4g} parameters"):
        decide(structure, structure.saliency(), budget)
    if least < structure.cost.parameters.dense:
        found = decide(structure, structure.saliency(), dataclasses.replace(budget, limit=least))
        assert list(structure.kept(found.keep).values()) == expected


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda r: type(r).__name__)
def test_floor_min_width_and_rounding_hold_while_the_budget_is_met(ranking: Any) -> None:
    structure = net()
    budget = Budget(macs=0.3, floor=0.25, min_width=11, round_to=4)
    found = decide(structure, structure.saliency(), budget, ranking=ranking)
    for group in structure.groups:
        kept = structure.kept(found.keep)[group.name]
        assert kept % 4 == 0
        assert kept >= max(12, math.ceil(0.25 * group.units))
    assert 0.29 <= share(structure, found.keep) <= 0.3


def test_rounding_stops_at_the_dense_width_and_leaves_heads_alone() -> None:
    structure = chain([10, 9, 64], kinds=["channel", "head", "bundle"])
    found = decide(structure, structure.saliency(), Budget(parameters=0.4, round_to=8))
    kept = structure.kept(found.keep)
    assert kept["net.layer0"] in (8, 10)
    assert kept["net.layer2"] % 8 == 0
    assert any(
        structure.kept(decide(structure, structure.saliency(), Budget(parameters=p, round_to=8)).keep)[
            "net.layer1"
        ]
        not in (8, 9)
        for p in (0.3, 0.4, 0.5)
    )


def test_no_layer_is_emptied_even_where_every_task_calls_it_useless() -> None:
    structure = chain([8, 40, 40])
    saliency = structure.saliency() + 1
    saliency[:, :8] = 0
    kept = structure.kept(decide(structure, saliency, Budget(parameters=0.3, floor=0.0)).keep)
    assert kept["net.layer0"] == 1
    kept = structure.kept(decide(structure, saliency, Budget(parameters=0.3, floor=0.25)).keep)
    assert kept["net.layer0"] == 2


def test_units_given_back_for_a_floor_are_the_most_salient_of_the_removed() -> None:
    structure = chain([8, 64, 64], tasks=("seg",))
    saliency = structure.saliency() + 10
    saliency[0, :8] = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.05, 0.4, 0.01, 0.02])
    keep = decide(structure, saliency, Budget(parameters=0.3, floor=0.3)).keep
    assert keep[:8].nonzero().flatten().tolist() == [0, 2, 5]


def test_counts_in_proportion_stay_in_proportion() -> None:
    tied = RatioConstraint(("net.layer0", "net.layer1"), (1, 2), "forward divides the width by the heads")
    structure = net(constraints=(tied,))
    for target in (0.7, 0.5, 0.2):
        found = decide(structure, structure.saliency(), Budget(macs=target))
        kept = structure.kept(found.keep)
        assert kept["net.layer1"] == 2 * kept["net.layer0"] < 64
        assert target - 0.01 <= share(structure, found.keep) <= target


def test_a_coarse_step_is_made_up_for_by_other_groups() -> None:
    """One step of the tied pair is 12 % of the network; the third layer has to fill the gap."""
    tied = RatioConstraint(("net.layer0", "net.layer1"), (8, 8), "heads of eight")
    structure = chain([32, 32, 256], constraints=(tied,))
    for target in (0.65, 0.5, 0.35):
        found = decide(structure, structure.saliency(), Budget(parameters=target))
        assert structure.kept(found.keep)["net.layer0"] % 8 == 0
        assert target - 0.01 <= share(structure, found.keep, "parameters") <= target


def test_trades_that_come_to_the_same_are_tried_once() -> None:
    """A group of three units gives up all that it can, whether it is asked for two or for four."""
    structure = chain([3, 4, 60, 60])
    first = torch.stack([unit - group.start for group in structure.groups for unit in units(group)])
    widths = Widths.of(
        structure.groups, (), Budget(macs=0.5, round_to=1), structure.reach, torch.arange(structure.units)
    )
    keep, tried = (first < 2) | (first % 2 == 0), Counter[bytes]()

    def cost(kept: torch.Tensor) -> float:
        tried[kept.numpy().tobytes()] += 1
        return float(kept.sum())

    assert torch.equal(trade(keep, first > 0, widths, Fits(cost, target=0, tolerance=0)), keep)
    assert len(tried) > 50
    del tried[keep.numpy().tobytes()]
    assert set(tried.values()) == {1}


def units(group: ChannelGroup) -> torch.Tensor:
    return torch.arange(group.start, group.start + group.units)


@pytest.mark.parametrize("pattern", ["net.layer1", "net.conv1.weight", "net.conv1", "*conv1*", "net.conv[1]"])
def test_protected_layers_keep_their_width(pattern: str) -> None:
    structure = net()
    found = decide(structure, structure.saliency(), Budget(macs=0.5, protected=pattern))
    kept = structure.kept(found.keep)
    assert kept["net.layer1"] == 64
    assert kept["net.layer2"] < 64
    assert found.votes.keep[:, structure.groups[1].slice].all()
    assert 0.49 <= share(structure, found.keep) <= 0.5


def test_a_pattern_that_matches_nothing_names_what_is_close() -> None:
    with pytest.raises(PatternError, match=r"'net.convl' matches no channel group.*Close names: .*net\.conv"):
        decide(net(), net().saliency(), Budget(macs=0.5, protected=("net.conv1", "net.convl")))
    with pytest.raises(PatternError, match=r"'zzz' .*`disparse inspect` lists the names"):
        decide(net(), net().saliency(), Budget(macs=0.5, protected="zzz"))


# How far it can go


def test_an_unreachable_budget_says_how_far_it_can_go_and_what_holds_it() -> None:
    structure = net(fixed=1000.0)
    budget = Budget(macs=0.02, floor=0.2, protected="net.layer2")
    with pytest.raises(BudgetError) as caught:
        decide(structure, structure.saliency(), budget)
    text = str(caught.value)
    assert "the budget macs=0.02" in text
    assert "Limiting factors: floor=0.2 (" in text
    assert "protected=['net.layer2'] (" in text
    assert "min_width" not in text
    assert "the arbiter" not in text
    possible = float(text.partition("Ask for at least ")[2].partition(",")[0])
    assert possible > 0.02
    found = decide(structure, structure.saliency(), dataclasses.replace(budget, limit=possible))
    assert share(structure, found.keep) <= possible
    with pytest.raises(BudgetError):
        decide(structure, structure.saliency(), dataclasses.replace(budget, limit=possible - 0.002))


def test_an_arbiter_that_will_not_remove_is_named() -> None:
    structure = net()
    with pytest.raises(BudgetError, match=r"Limiting factors: the arbiter \("):
        decide(
            structure,
            structure.saliency(),
            Budget(macs=0.5),
            arbiter=lambda ballot: torch.ones(ballot.votes.shape[1], dtype=torch.bool),
        )


def test_a_count_that_was_meant_as_a_percentage_gets_a_hint() -> None:
    with pytest.raises(BudgetError, match=r"A number above 1 is absolute; for a fraction .* 0\.5"):
        decide(net(), net().saliency(), Budget(macs=50))


def test_a_model_without_any_group_cannot_meet_a_budget() -> None:
    structure = chain([], fixed=100.0)
    with pytest.raises(BudgetError, match=r"is 100 MACs, 100.0% of dense.*Nothing can be removed"):
        decide(structure, structure.saliency(), Budget(macs=0.5))


# As a plan


def test_make_plan_writes_down_what_was_asked_and_found() -> None:
    structure = net()
    plan = make_plan(
        structure, structure.saliency(), Budget(macs=0.5), arbiter=Quorum(2), criterion=GlobalRanking, seed=3
    )
    found = decide(structure, structure.saliency(), Budget(macs=0.5), arbiter=Quorum(2))
    assert torch.equal(plan.keep(structure), found.keep)
    assert plan.costs["macs"].after == structure.cost.macs.total(found.keep)
    assert (dict(plan.budget)["cost"], dict(plan.budget)["limit"]) == ("macs", 0.5)
    made = plan.provenance
    named = (made.arbiter, made.ranking, made.criterion)
    assert named == ("Quorum(k=2)", "PerCostRanking()", "GlobalRanking")
    assert (made.seed, made.ratio) == (3, found.votes.ratio)
    again = make_plan(
        structure, structure.saliency(), Budget(macs=0.5), arbiter=Quorum(2), criterion=GlobalRanking, seed=3
    )
    assert plan.to_json() == again.to_json()


def test_names_of_callables_carry_no_addresses() -> None:
    class Stubborn:
        def __call__(self, ballot: Ballot) -> torch.Tensor:
            return Unanimous()(ballot)

    def careful(ballot: Ballot) -> torch.Tensor:
        return Unanimous()(ballot)

    for arbiter, name in ((Stubborn(), "Stubborn"), (careful, "careful")):
        plan = make_plan(net(), net().saliency(), Budget(macs=0.5), arbiter=arbiter)
        assert plan.provenance.arbiter is not None
        assert plan.provenance.arbiter.endswith(name)
