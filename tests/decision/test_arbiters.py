"""Every rule against a loop over units, and the laws that hold between rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disparse_structured.decision.arbiters import (
    AnyTask,
    Arbiter,
    Ballot,
    Majority,
    Quorum,
    Unanimous,
    WeightedMean,
    arbitrate,
)
from disparse_structured.errors import OptionError
from tests.support.ballots import ballot_with, reordered

VOTING: list[Arbiter] = [Unanimous(), AnyTask(), Majority(), Quorum(1), Quorum(2), Quorum(9)]
EVERY = [*VOTING, WeightedMean()]


def label(arbiter: Arbiter) -> str:
    return repr(arbiter)


def ballot_of(
    reach: torch.Tensor, scores: torch.Tensor, ratio: float, weights: torch.Tensor | None = None
) -> Ballot:
    scores = scores * reach
    return ballot_with(reach, scores, scores, ratio, weights)


@st.composite
def ballots(draw: st.DrawFn) -> Ballot:
    tasks, units = draw(st.integers(1, 5)), draw(st.integers(1, 16))

    def matrix(elements: st.SearchStrategy[object]) -> list[list[object]]:
        row = st.lists(elements, min_size=units, max_size=units)
        return draw(st.lists(row, min_size=tasks, max_size=tasks))

    reach = torch.tensor(matrix(st.booleans()), dtype=torch.bool)
    scores = torch.tensor(matrix(st.integers(0, 9)), dtype=torch.float64)
    weights = draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 4.0]), min_size=tasks, max_size=tasks))
    return ballot_of(reach, scores, draw(st.floats(0, 1)), torch.tensor(weights, dtype=torch.float64))


def votes_on(ballot: Ballot, unit: int) -> list[bool]:
    """The votes of the tasks that reach the unit, True = remove."""
    return [
        not bool(ballot.votes[task, unit])
        for task in range(len(ballot.reach))
        if bool(ballot.reach[task, unit])
    ]


def naive_mean(ballot: Ballot) -> list[bool]:
    means, reached = [], []
    for unit in range(ballot.reach.shape[1]):
        rows = [task for task in range(len(ballot.reach)) if ballot.reach[task, unit]]
        weight = sum(float(ballot.weights[task]) for task in rows)
        total = sum(float(ballot.weights[task]) * float(ballot.scores[task, unit]) for task in rows)
        means.append(total / weight if weight else 0.0)
        reached.append(bool(rows))
    order = sorted((mean, unit) for unit, mean in enumerate(means) if reached[unit])
    gone = {unit for rank, (_, unit) in enumerate(order) if rank / len(order) < ballot.ratio}
    return [reached[unit] and unit not in gone for unit in range(len(means))]


ORACLES: list[tuple[Arbiter, Callable[[list[bool]], bool]]] = [
    (Unanimous(), all),
    (AnyTask(), lambda votes: any(votes) or not votes),
    (Majority(), lambda votes: votes.count(True) > votes.count(False) or not votes),
    (Quorum(1), lambda votes: votes.count(True) >= min(1, len(votes))),
    (Quorum(2), lambda votes: votes.count(True) >= min(2, len(votes))),
    (Quorum(4), lambda votes: votes.count(True) >= min(4, len(votes))),
]


@pytest.mark.parametrize(("arbiter", "goes"), ORACLES, ids=[repr(arbiter) for arbiter, _ in ORACLES])
@settings(max_examples=40)
@given(ballot=ballots())
def test_voting_rules_agree_with_a_loop(
    arbiter: Arbiter, goes: Callable[[list[bool]], bool], ballot: Ballot
) -> None:
    expected = [not goes(votes_on(ballot, unit)) for unit in range(ballot.reach.shape[1])]
    assert arbitrate(arbiter, ballot).tolist() == expected


@settings(max_examples=40)
@given(ballot=ballots())
def test_weighted_mean_agrees_with_a_loop(ballot: Ballot) -> None:
    assert arbitrate(WeightedMean(), ballot).tolist() == naive_mean(ballot)


@pytest.mark.parametrize("arbiter", EVERY, ids=label)
@settings(max_examples=40)
@given(ballot=ballots(), data=st.data())
def test_task_order_does_not_matter(arbiter: Arbiter, ballot: Ballot, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(ballot.reach))))
    assert torch.equal(arbiter(ballot), arbiter(reordered(ballot, list(rows))))


@pytest.mark.parametrize("arbiter", [Unanimous(), AnyTask(), Quorum(1)], ids=label)
@settings(max_examples=40)
@given(ballot=ballots(), data=st.data())
def test_a_duplicated_task_changes_nothing(arbiter: Arbiter, ballot: Ballot, data: st.DataObject) -> None:
    twin = data.draw(st.integers(0, len(ballot.reach) - 1))
    doubled = reordered(ballot, [*range(len(ballot.reach)), twin])
    assert torch.equal(arbiter(ballot), arbiter(doubled))


@pytest.mark.parametrize("arbiter", [Majority(), WeightedMean()], ids=label)
@settings(max_examples=40)
@given(ballot=ballots())
def test_all_tasks_doubled_change_nothing_where_numbers_count(arbiter: Arbiter, ballot: Ballot) -> None:
    assert torch.equal(arbiter(ballot), arbiter(reordered(ballot, [*range(len(ballot.reach))] * 2)))


def test_one_task_doubled_does_change_a_majority() -> None:
    """The counter-example that keeps Majority out of the law above."""
    reach = torch.ones(2, 1, dtype=torch.bool)
    split = dataclasses.replace(
        ballot_of(reach, torch.ones(2, 1, dtype=torch.float64), 0.5), votes=torch.tensor([[True], [False]])
    )
    assert Majority()(split).tolist() == [True]
    assert Majority()(reordered(split, [0, 1, 1])).tolist() == [False]


@settings(max_examples=40)
@given(ballot=ballots(), data=st.data())
def test_with_votes_fixed_another_task_never_removes_more_of_what_was_reached(
    ballot: Ballot, data: st.DataObject
) -> None:
    some = data.draw(st.sets(st.integers(0, len(ballot.reach) - 1), min_size=1))
    fewer = reordered(ballot, sorted(some))
    reached = fewer.reach.any(dim=0)
    assert not (~Unanimous()(ballot) & Unanimous()(fewer) & reached).any()


@settings(max_examples=40)
@given(ballot=ballots())
def test_unanimous_majority_any_remove_more_and_more(ballot: Ballot) -> None:
    unanimous, majority, some = (~arbiter(ballot) for arbiter in (Unanimous(), Majority(), AnyTask()))
    assert not (unanimous & ~majority).any()
    assert not (majority & ~some).any()


@settings(max_examples=40)
@given(ballot=ballots(), k=st.integers(1, 6))
def test_a_larger_quorum_removes_less_and_ends_at_unanimity(ballot: Ballot, k: int) -> None:
    assert not (Quorum(k)(ballot) & ~Quorum(k + 1)(ballot)).any()
    assert torch.equal(Quorum(len(ballot.reach))(ballot), Unanimous()(ballot))
    assert torch.equal(Quorum(1)(ballot), AnyTask()(ballot))


@pytest.mark.parametrize("arbiter", EVERY, ids=label)
@settings(max_examples=40)
@given(ballot=ballots(), ratio=st.floats(0, 1))
def test_decisions_are_nested_in_the_ratio(arbiter: Arbiter, ballot: Ballot, ratio: float) -> None:
    other = ballot_of(ballot.reach, ballot.scores, ratio, ballot.weights)
    low, high = sorted((ballot, other), key=lambda one: one.ratio)
    assert not (arbiter(high) & ~arbiter(low)).any()


@pytest.mark.parametrize("arbiter", VOTING, ids=label)
@settings(max_examples=40)
@given(ballot=ballots())
def test_private_units_follow_their_one_voter_and_dead_units_go(arbiter: Arbiter, ballot: Ballot) -> None:
    keep = arbiter(ballot)
    private = ballot.voters == 1
    own = (ballot.votes & ballot.reach).any(dim=0)
    assert torch.equal(keep[private], own[private])
    assert not keep[ballot.voters == 0].any()


@pytest.mark.parametrize("arbiter", VOTING, ids=label)
@settings(max_examples=40)
@given(ballot=ballots(), data=st.data())
def test_the_loudness_of_a_task_changes_no_vote(
    arbiter: Arbiter, ballot: Ballot, data: st.DataObject
) -> None:
    task = data.draw(st.integers(0, len(ballot.reach) - 1))
    louder = ballot.scores.clone()
    louder[task] *= data.draw(st.sampled_from([1e-6, 0.5, 20.0, 1e6]))
    assert torch.equal(arbiter(ballot), arbiter(ballot_of(ballot.reach, louder, ballot.ratio)))


def test_weights_move_the_weighted_mean() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    reach = torch.ones(2, 2, dtype=torch.bool)
    for weights, expected in (([2.0, 1.0], [True, False]), ([1.0, 2.0], [False, True])):
        ballot = ballot_of(reach, scores, 0.5, torch.tensor(weights, dtype=torch.float64))
        assert WeightedMean()(ballot).tolist() == expected


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda b: b.votes, r"torch.bool \[2, 3\]"),
        (lambda b: b.votes[0].long(), r"torch.int64 \[3\]"),
        (lambda b: [True] * 3, "list"),
    ],
)
def test_what_is_no_decision_is_refused(answer: Arbiter, found: str) -> None:
    ballot = ballot_of(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.float64), 0.5)
    with pytest.raises(
        OptionError, match=rf"returned {found}, expected torch.bool \[3\]: one decision per unit"
    ):
        arbitrate(answer, ballot)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_quorum_is_a_number_of_votes(k: int) -> None:
    with pytest.raises(ValueError, match="a number of votes, an integer >= 1, got"):
        Quorum(k)
