"""Minimax, Priority and Tolerance: their laws, oracles that try everything, what the search gives them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from disparse_structured.decision.arbiters import (
    Arbiter,
    Ballot,
    Minimax,
    Priority,
    Tolerance,
    Unanimous,
    WeightedMean,
    arbitrate,
)
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.decision.rankings import LayerRanking
from disparse_structured.decision.votes import normalize
from disparse_structured.errors import TaskError
from tests.support.ballots import ballot_with, names, reordered
from tests.support.synthetic import chain

EVERY: list[Arbiter] = [
    Minimax(),
    Priority(),
    Priority({"task0": 3}),
    Tolerance({"task0": 2}),
    Tolerance({"task0": 3, "task1": 1.5}),
]


def ballot_of(damage: torch.Tensor, ratio: float, reach: torch.Tensor | None = None) -> Ballot:
    damage = damage.to(torch.float64)
    reach = torch.ones_like(damage, dtype=torch.bool) if reach is None else reach
    return ballot_with(reach, normalize(damage, reach, names(len(damage))), damage * reach, ratio)


@st.composite
def ballots(draw: st.DrawFn, tasks: int | None = None, most: int = 16, dense: bool = False) -> Ballot:
    rows = tasks or draw(st.integers(2, 5))
    units = draw(st.integers(1, most))

    def matrix(elements: st.SearchStrategy[object]) -> torch.Tensor:
        row = st.lists(elements, min_size=units, max_size=units)
        return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))

    reach = matrix(st.just(True) if dense else st.booleans())
    return ballot_of(matrix(st.integers(0, 9)), draw(st.floats(0, 1)), reach)


def at(ballot: Ballot, ratio: float) -> Ballot:
    return ballot_of(ballot.damage, ratio, ballot.reach)


def cost(ballot: Ballot, keep: torch.Tensor) -> torch.Tensor:
    """What a decision costs each task, float64 [tasks]."""
    return (ballot.damage * ~keep).sum(dim=1)


def cut(ballot: Ballot, weights: list[float]) -> torch.Tensor:
    """The cut of one weighting, by a loop."""
    total = [
        sum(w * float(d) for w, d in zip(weights, column, strict=True)) for column in ballot.damage.T.tolist()
    ]
    reached = [unit for unit in range(len(total)) if ballot.reach[:, unit].any()]
    order = sorted(reached, key=lambda unit: (total[unit], unit))
    keep = torch.zeros(len(total), dtype=torch.bool)
    for place, unit in enumerate(order):
        keep[unit] = place / len(order) >= ballot.ratio
    return keep


def every_weighting_of_two(ballot: Ballot) -> Iterator[torch.Tensor]:
    """All cuts of two tasks' weighted damage: one weight between every two at which units trade places."""
    first, second = ballot.damage.tolist()
    trades = {0.0, 1.0}
    for a, b in itertools.combinations(range(len(first)), 2):
        one, other = first[a] - first[b], second[a] - second[b]
        if one * other < 0:
            trades.add(other / (other - one))
    places = sorted(trades)
    for low, high in itertools.pairwise(places):
        if high - low > 1e-9:
            yield cut(ballot, [(low + high) / 2, 1 - (low + high) / 2])


def every_decision(ballot: Ballot, gone: int) -> Iterator[torch.Tensor]:
    units = ballot.reach.shape[1]
    for chosen in itertools.combinations(range(units), gone):
        keep = torch.ones(units, dtype=torch.bool)
        keep[list(chosen)] = False
        yield keep


@pytest.mark.parametrize("arbiter", EVERY, ids=repr)
@settings(max_examples=40)
@given(ballot=ballots(), data=st.data())
def test_task_order_does_not_matter(arbiter: Arbiter, ballot: Ballot, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(ballot.reach))))
    assert torch.equal(arbiter(ballot), arbiter(reordered(ballot, list(rows))))


@pytest.mark.parametrize("rows", list(itertools.permutations(range(3))))
def test_not_even_the_last_bit_of_a_sum_depends_on_the_order(rows: tuple[int, ...]) -> None:
    """0.1 + 0.2 + 0.3 is more than 0.3 + 0.2 + 0.1; the first of equals goes."""
    ballot = ballot_of(torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]], dtype=torch.float64), 0.5)
    assert Priority()(reordered(ballot, list(rows))).tolist() == [False, True]


@pytest.mark.parametrize("arbiter", EVERY, ids=repr)
@settings(max_examples=40)
@given(ballot=ballots())
def test_as_many_go_as_the_ratio_says_and_what_nobody_reaches(arbiter: Arbiter, ballot: Ballot) -> None:
    keep = arbitrate(arbiter, ballot)
    reached = ballot.reach.any(dim=0)
    assert not keep[~reached].any()
    places = [place / max(1, int(reached.sum())) for place in range(int(reached.sum()))]
    assert int((reached & ~keep).sum()) == sum(place < ballot.ratio for place in places)


@pytest.mark.parametrize("arbiter", EVERY, ids=repr)
@settings(max_examples=30)
@given(ballot=ballots())
def test_the_ballot_stays_as_it_was_and_the_answer_the_same(arbiter: Arbiter, ballot: Ballot) -> None:
    before = ballot.damage.clone()
    first = arbiter(ballot)
    arbiter(at(ballot, 0.5))
    assert torch.equal(arbiter(ballot), first)
    assert torch.equal(ballot.damage, before)


@pytest.mark.parametrize(
    "arbiter", [Minimax(), Priority(), Priority({"task0": 3}), Tolerance({"task0": 2})], ids=repr
)
@settings(max_examples=40)
@given(ballot=ballots(tasks=1))
def test_one_task_alone_gets_what_it_voted_for(arbiter: Arbiter, ballot: Ballot) -> None:
    assert torch.equal(arbiter(ballot), Unanimous()(ballot))


@pytest.mark.parametrize("arbiter", EVERY, ids=repr)
@settings(max_examples=60)
@given(ballot=ballots(most=8, dense=True))
def test_no_decision_of_the_same_size_is_better_for_all(arbiter: Arbiter, ballot: Ballot) -> None:
    found = cost(ballot, keep := arbiter(ballot))
    for other in every_decision(ballot, int((~keep).sum())):
        its = cost(ballot, other)
        assert not ((its <= found).all() and (its < found).any())


@settings(max_examples=60)
@given(ballot=ballots(most=12, dense=True), data=st.data())
def test_every_weighting_saves_the_same_cost_within_one_unit(ballot: Ballot, data: st.DataObject) -> None:
    """Otherwise the gentlest weighting is the one that removes the cheapest units."""
    units = ballot.damage.shape[1]
    costs = data.draw(st.lists(st.integers(1, 50), min_size=units, max_size=units))
    ballot = dataclasses.replace(ballot, unit_cost=torch.tensor(costs, dtype=torch.float64))
    wanted = ballot.ratio * sum(costs)
    for arbiter in (Priority(), Priority({"task0": 1000}), Priority({"task1": 1000}), Minimax()):
        saved = float(ballot.unit_cost[~arbiter(ballot)].sum())
        assert wanted - 1e-9 <= saved <= wanted + max(costs) + 1e-9


def test_units_that_cost_nothing_are_removed_at_the_last_ratio() -> None:
    ballot = ballot_of(torch.tensor([[1, 2, 3], [3, 2, 1]]), 1.0)
    for costs in ([0, 5, 0], [0, 0, 0]):
        free = dataclasses.replace(ballot, unit_cost=torch.tensor(costs, dtype=torch.float64))
        assert not Minimax()(free).any()


@settings(max_examples=60)
@given(ballot=ballots(tasks=2))
def test_of_two_tasks_no_weighting_leaves_the_worse_one_better_than_minimax(ballot: Ballot) -> None:
    found = float(cost(ballot, Minimax()(ballot)).max())
    best = min(float(cost(ballot, keep).max()) for keep in every_weighting_of_two(ballot))
    assert found <= best


@settings(max_examples=60)
@given(ballot=ballots(most=8, dense=True))
def test_minimax_is_within_one_unit_per_task_of_the_best_of_all_decisions(ballot: Ballot) -> None:
    """Cuts of one ranking cannot mix: the gap to all decisions is what single units weigh."""
    found = cost(ballot, keep := Minimax()(ballot))
    best = min(float(cost(ballot, other).max()) for other in every_decision(ballot, int((~keep).sum())))
    single = float(ballot.damage.max())
    assert best <= float(found.max()) <= best + single * len(ballot.damage)


@pytest.mark.parametrize("tasks", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_on_smooth_curves_minimax_is_within_three_percent_of_the_bound(tasks: int, seed: int) -> None:
    """Any weighting bounds the worst task from below, for decisions of that size: by its weighted mean."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    loudness = 10 ** (2 * uniform(tasks, 1))
    ballot = ballot_of(loudness * uniform(tasks, 1500) ** (1 + 3 * uniform(tasks, 1)), 0.4)
    found = float(cost(ballot, Minimax()(ballot)).max())

    logs, bound = torch.zeros(tasks, dtype=torch.float64), 0.0
    for turn in range(1, 400):  # the subgradient method, slowly
        weights = torch.softmax(logs, 0)
        damage = cost(ballot, cut_fast(ballot, weights))
        bound = max(bound, float(weights @ damage))
        logs += 4 / math.sqrt(turn) * (damage / damage.max() - 1)

    assert bound <= found <= 1.03 * bound


def cut_fast(ballot: Ballot, weights: torch.Tensor) -> torch.Tensor:
    return ballot.rerank(weights @ ballot.damage, ballot.reach.any(dim=0)) >= ballot.ratio


def test_minimax_helps_the_task_that_a_plain_sum_would_sacrifice() -> None:
    ballot = ballot_of(torch.tensor([[3, 4, 5, 0, 0, 0], [0, 0, 0, 6, 7, 8]]), 0.5)
    assert cost(ballot, Priority()(ballot)).tolist() == [12, 0]
    assert cost(ballot, Minimax()(ballot)).tolist() == [7, 6]


def test_minimax_and_priority_hear_how_loud_a_task_is_and_unanimity_does_not() -> None:
    damage = torch.tensor([[1, 4, 9, 16, 25, 36], [36, 25, 16, 9, 4, 1]])
    ballot = ballot_of(damage, 0.5)
    louder = ballot_of(damage * torch.tensor([[100], [1]]), 0.5)
    for arbiter in (Minimax(), Priority(), Tolerance({"task0": 3})):
        assert arbiter(louder).tolist() == [False] * 3 + [True] * 3
    assert Minimax()(ballot).tolist() != Minimax()(louder).tolist()
    assert Unanimous()(ballot).tolist() == Unanimous()(louder).tolist()
    assert WeightedMean()(ballot).tolist() == WeightedMean()(louder).tolist()


@pytest.mark.parametrize("arbiter", [Minimax(), Priority(), Priority({"task0": 3})], ids=repr)
@settings(max_examples=40)
@given(ballot=ballots(), scale=st.sampled_from([2.0**-20, 0.25, 1024.0]))
def test_the_unit_of_damage_does_not_matter(arbiter: Arbiter, ballot: Ballot, scale: float) -> None:
    assert torch.equal(arbiter(ballot), arbiter(ballot_of(ballot.damage * scale, ballot.ratio, ballot.reach)))


@settings(max_examples=40)
@given(ballot=ballots(), weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=2, max_size=2))
def test_priority_agrees_with_a_loop(ballot: Ballot, weights: list[float]) -> None:
    arbiter = Priority(dict(zip(("task1", "task0"), weights, strict=True)))
    ones = [1.0] * (len(ballot.tasks) - 2)
    assert torch.equal(arbiter(ballot), cut(ballot, [*reversed(weights), *ones]))


@settings(max_examples=40)
@given(ballot=ballots(), ratio=st.floats(0, 1))
def test_priority_removes_more_and_more_as_the_ratio_grows(ballot: Ballot, ratio: float) -> None:
    low, high = sorted((ballot, at(ballot, ratio)), key=lambda one: one.ratio)
    arbiter = Priority({"task1": 2})
    assert not (arbiter(high) & ~arbiter(low)).any()


@settings(max_examples=40)
@given(ballot=ballots(), weight=st.sampled_from([2.0, 8.0, 64.0]))
def test_a_task_of_higher_priority_never_fares_worse(ballot: Ballot, weight: float) -> None:
    """By exchange: what gets dearer for one task is not removed at its cost."""
    plain, dear = Priority()(ballot), Priority({"task0": weight})(ballot)
    assert cost(ballot, dear)[0] <= cost(ballot, plain)[0]


@settings(max_examples=60)
@given(ballot=ballots(), limit=st.floats(0.5, 6))
def test_a_limit_is_respected_wherever_its_task_alone_could_respect_it(ballot: Ballot, limit: float) -> None:
    least = float(cost(ballot, cut(ballot, [1.0] + [0.0] * (len(ballot.tasks) - 1)))[0])
    found = float(cost(ballot, Tolerance({"task0": limit})(ballot))[0])
    assert found <= max(limit**2, least)


@settings(max_examples=60)
@given(ballot=ballots(tasks=2, dense=True), share=st.floats(0.1, 0.9))
def test_within_its_limit_no_weighting_has_a_smaller_total(ballot: Ballot, share: float) -> None:
    least, plain = (float(cost(ballot, cut(ballot, weights))[0]) for weights in ([1.0, 0.0], [1.0, 1.0]))
    assume(least < plain)
    limit = math.sqrt(least + share * (plain - least))
    totals = [
        float(cost(ballot, keep).sum())
        for keep in every_weighting_of_two(ballot)
        if cost(ballot, keep)[0] <= limit * limit
    ]
    assert float(cost(ballot, Tolerance({"task0": limit})(ballot)).sum()) <= min(totals)


@settings(max_examples=40)
@given(ballot=ballots())
def test_limits_that_nobody_comes_near_leave_the_plain_sum(ballot: Ballot) -> None:
    assert torch.equal(Tolerance({"task0": 1e3, "task1": 1e3})(ballot), Priority()(ballot))


@settings(max_examples=40)
@given(ballot=ballots(tasks=2), limit=st.floats(1e-3, 0.5))
def test_limits_out_of_reach_share_the_excess(ballot: Ballot, limit: float) -> None:
    assume(bool((cost(ballot, Minimax()(ballot)) > 0.25).any()))
    found = cost(ballot, Tolerance({"task0": limit, "task1": limit})(ballot))
    assert float(found.max()) == float(cost(ballot, Minimax()(ballot)).max())


def test_a_tolerance_keeps_within_its_limit_at_the_others_expense() -> None:
    damage = torch.tensor([[3, 4, 5, 0, 0, 0], [0, 0, 0, 6, 7, 8], [0, 0, 1, 0, 0, 0]])
    ballot = ballot_of(damage, 0.5)
    assert cost(ballot, Tolerance({"task0": 3.6})(ballot)).tolist() == [12, 0, 1]
    assert cost(ballot, Tolerance({"task0": 3})(ballot)).tolist() == [7, 6, 0]
    assert cost(ballot, Tolerance({"task0": 1})(ballot)).tolist() == [0, 21, 0]
    assert cost(ballot, Tolerance({"task0": 3.6, "task2": 0.5})(ballot)).tolist() == [7, 6, 0]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda: Priority({"depth": -1}), r"Priority: the weight of 'depth' is -1. Give a number at least 0"),
        (lambda: Priority({"depth": math.nan}), "the weight of 'depth' is nan"),
        (lambda: Priority([1.0, 2.0]), r"Priority needs a weight by task, such as .*; found \[1.0, 2.0\]"),
        (lambda: Tolerance({"depth": 0}), "Tolerance: the limit of 'depth' is 0. Give a number above 0"),
        (lambda: Tolerance({"depth": math.inf}), "the limit of 'depth' is inf"),
        (lambda: Tolerance({"depth": "1 %"}), "the limit of 'depth' is '1 %'"),
        (lambda: Tolerance({}), "a limit for at least one task"),
    ],
)
def test_numbers_that_will_not_do_are_refused(rule: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule()


@pytest.mark.parametrize("rule", [Priority({"depht": 2}), Tolerance({"depht": 2})], ids=repr)
def test_a_name_that_is_no_task_is_refused(rule: Arbiter) -> None:
    message = rf"{type(rule).__name__} names 'depht'; the tasks are \['task0', 'task1'\]"
    with pytest.raises(TaskError, match=message):
        rule(ballot_of(torch.ones(2, 3), 0.5))


def test_the_search_hands_over_damage_as_it_came_and_the_names() -> None:
    structure = chain([4, 6], reach=[("seg", "depth"), ("depth",)], tasks=("seg", "depth"))
    saliency = 5 + 100 * structure.saliency()
    seen: list[Ballot] = []

    def arbiter(ballot: Ballot) -> torch.Tensor:
        seen.append(ballot)
        return Unanimous()(ballot)

    decide(structure, saliency, Budget(macs=0.6), arbiter=arbiter)

    assert seen
    for ballot in seen:
        assert ballot.tasks == ("seg", "depth")
        assert torch.equal(ballot.damage, saliency * structure.reach)


@pytest.mark.parametrize("arbiter", [Minimax(), Priority({"depth": 9}), Tolerance({"depth": 1})], ids=repr)
@pytest.mark.parametrize("options", [{}, {"round_to": 4}, {"floor": 0.4}], ids=str)
def test_the_search_lands_on_its_budget(arbiter: Arbiter, options: dict[str, float]) -> None:
    structure = chain([48, 64, 64, 80], areas=[16, 8, 4, 1])
    for seed in range(3):
        found = decide(structure, structure.saliency(seed) ** 3, Budget(macs=0.5, **options), arbiter=arbiter)
        share = structure.cost.macs.total(found.keep) / structure.cost.macs.dense
        assert 0.48 <= share <= 0.5


def test_the_search_damages_the_worst_task_less_with_minimax_and_a_limited_one_less_with_tolerance() -> None:
    structure = chain([60, 60, 60], areas=[4, 2, 1])
    damage = structure.saliency() ** 3 * torch.tensor([[30.0], [3.0], [1.0]])

    def of(arbiter: Arbiter) -> list[float]:
        keep = decide(structure, damage, Budget(macs=0.5), arbiter=arbiter, ranking=LayerRanking()).keep
        return (damage * ~keep).sum(dim=1).tolist()

    unanimous, minimax, tolerant = of(Unanimous()), of(Minimax()), of(Tolerance({"normal": 0.8}))
    assert max(minimax) < 0.8 * max(unanimous)
    assert tolerant[2] <= 0.64 < min(unanimous[2], minimax[2])
