"""Each task's own selection: rankings against naive loops, and the laws of votes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disparse_structured.decision.rankings import (
    GlobalRanking,
    IsomorphicRanking,
    LayerRanking,
    PerCostRanking,
    RankingContext,
    ranking_context,
)
from disparse_structured.decision.votes import normalize, standing, standings, vote
from disparse_structured.errors import OptionError
from disparse_structured.structure.groups import Member
from tests.support.synthetic import chain

RANKINGS = [GlobalRanking(), PerCostRanking(), IsomorphicRanking(), LayerRanking()]


@st.composite
def contests(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, RankingContext]:
    """Scores with ties, a mask, and a context of up to four groups."""
    units = draw(st.integers(1, 24))

    def vector(elements: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(elements, min_size=units, max_size=units))

    scores = torch.tensor(vector(st.integers(0, 5)), dtype=torch.float64)
    mask = torch.tensor(vector(st.booleans()), dtype=torch.bool)
    group = torch.tensor(sorted(vector(st.integers(0, 3))))
    return (
        scores,
        mask,
        RankingContext(
            group=group,
            isomorphic=group // 2,
            unit_cost=torch.tensor(vector(st.sampled_from([0.0, 1.0, 2.0, 4.0])), dtype=torch.float64),
        ),
    )


def naive_standing(
    ranking: object, scores: torch.Tensor, mask: torch.Tensor, context: RankingContext
) -> list[float]:
    """The definition, unit by unit: the share of the competitors that go before this one."""
    paid = [c for c in context.unit_cost.tolist() if c > 0]
    result = []
    for unit in range(len(scores)):
        if not mask[unit]:
            result.append(1.0)
            continue
        rivals, before = 0, 0
        for other in range(len(scores)):
            if isinstance(ranking, LayerRanking) and context.group[other] != context.group[unit]:
                continue
            if (
                isinstance(ranking, IsomorphicRanking)
                and context.isomorphic[other] != context.isomorphic[unit]
            ):
                continue
            if not mask[other]:
                continue
            keys = []
            for one in (other, unit):
                key = float(scores[one])
                if isinstance(ranking, PerCostRanking):
                    key /= max(float(context.unit_cost[one]), min(paid, default=1.0))
                keys.append((key, one))
            rivals += 1
            before += keys[0] < keys[1]
        result.append(before / rivals)
    return result


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda r: type(r).__name__)
@settings(max_examples=60)
@given(contest=contests())
def test_rankings_agree_with_the_naive_definition(
    ranking: object, contest: tuple[torch.Tensor, torch.Tensor, RankingContext]
) -> None:
    scores, mask, context = contest
    assert standing(scores, mask, ranking, context).tolist() == naive_standing(ranking, scores, mask, context)


@settings(max_examples=60)
@given(contest=contests(), ratios=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_votes_are_nested_in_the_ratio_and_ask_for_their_share(
    contest: tuple[torch.Tensor, torch.Tensor, RankingContext], ratios: list[float]
) -> None:
    scores, mask, context = contest
    low, high = sorted(ratios)
    own = mask[None]
    standing_of = standings(scores[None], own, GlobalRanking(), context)
    fewer, more = vote(standing_of, own, low).keep, vote(standing_of, own, high).keep
    assert not (more & ~fewer).any()
    assert fewer[~own].all()
    assert more[~own].all()
    units = int(mask.sum())
    expected = sum(rank / units < high for rank in range(units))
    assert int((~more).sum()) == expected
    assert abs(expected - math.ceil(high * units)) <= 1


def test_ratio_zero_keeps_and_one_removes_everything_in_reach() -> None:
    net = chain([4, 6], reach=[("seg", "depth"), ("depth",)], tasks=("seg", "depth"))
    context = ranking_context(net.groups, torch.ones(10, dtype=torch.float64))
    for ranking in RANKINGS:
        standing_of = standings(net.saliency(), net.reach, ranking, context)
        assert vote(standing_of, net.reach, 0.0).keep.all()
        assert torch.equal(vote(standing_of, net.reach, 1.0).keep, ~net.reach)


@settings(max_examples=60)
@given(factor=st.floats(1e-9, 1e9), task=st.integers(0, 1), ratio=st.floats(0, 1))
def test_votes_do_not_care_how_loud_a_loss_is(factor: float, task: int, ratio: float) -> None:
    net = chain([5, 7], tasks=("seg", "depth"))
    saliency = torch.arange(24, dtype=torch.float64).reshape(2, 12).flip(1) % 7
    louder = saliency.clone()
    louder[task] *= factor
    context = ranking_context(net.groups, torch.ones(12, dtype=torch.float64))
    for ranking in RANKINGS:
        one, other = (
            standings(normalize(s, net.reach, net.tasks), net.reach, ranking, context)
            for s in (saliency, louder)
        )
        assert torch.equal(vote(one, net.reach, ratio).keep, vote(other, net.reach, ratio).keep)


def test_a_task_votes_as_if_the_other_heads_did_not_exist() -> None:
    both = chain([6, 4, 4], reach=[("seg", "depth"), ("seg",), ("depth",)], tasks=("seg", "depth"))
    saliency = both.saliency()
    alone = chain([6, 4], tasks=("seg",))
    own = torch.cat([saliency[:1, :6], saliency[:1, 6:10]], dim=1)
    for ranking in RANKINGS:
        context = ranking_context(both.groups, torch.ones(14, dtype=torch.float64))
        together = standings(normalize(saliency, both.reach, both.tasks), both.reach, ranking, context)
        context = ranking_context(alone.groups, torch.ones(10, dtype=torch.float64))
        single = standings(normalize(own, alone.reach, alone.tasks), alone.reach, ranking, context)
        assert torch.equal(together[0, :10], single[0])


def test_per_cost_prefers_to_remove_what_is_dear() -> None:
    scores = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    context = RankingContext(torch.zeros(3).long(), torch.zeros(3).long(), torch.tensor([1.0, 4.0, 1.0]))
    mask = torch.ones(3, dtype=torch.bool)
    assert GlobalRanking()(scores, mask, context).argsort().tolist() == [0, 2, 1]
    assert PerCostRanking()(scores, mask, context).argsort().tolist() == [1, 0, 2]


def test_isomorphic_classes_follow_the_slices_and_not_the_widths() -> None:
    net = chain([4, 8, 4])
    odd = dataclasses.replace(
        net.groups[2], members=(*net.groups[2].members, Member("net.conv3.weight", 1, np.arange(4)[:, None]))
    )
    (member,) = net.groups[0].members
    others = [
        odd,
        dataclasses.replace(net.groups[0], kind="head"),
        dataclasses.replace(net.groups[0], members=(dataclasses.replace(member, dim=1),)),
        dataclasses.replace(
            net.groups[0], members=(dataclasses.replace(member, index=np.arange(8).reshape(4, 2)),)
        ),
        dataclasses.replace(
            net.groups[0], members=(dataclasses.replace(member, parameter="net.conv0.bias"),)
        ),
    ]
    context = ranking_context((*net.groups[:2], *others), torch.ones(32, dtype=torch.float64))
    classes = context.isomorphic.tolist()
    assert classes[:12] == [classes[0]] * 12
    assert len({classes[0], *classes[12::4]}) == 6


def test_normalize_divides_by_the_sum_over_the_own_units() -> None:
    net = chain([2, 2], reach=[("seg", "depth"), ("depth",)], tasks=("seg", "depth"))
    scores = normalize(torch.tensor([[1.0, 3.0, 50.0, 50.0], [0.0] * 4]), net.reach, net.tasks)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[0.25, 0.75, 0.0, 0.0], [0.0] * 4]
    huge = normalize(torch.full((2, 4), 1e308, dtype=torch.float64), net.reach, net.tasks)
    assert huge[1].tolist() == [0.25] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_saliency_that_is_no_saliency_is_refused_with_the_task(bad: float) -> None:
    net = chain([3])
    saliency = net.saliency()
    saliency[1, 2] = bad
    with pytest.raises(OptionError, match=r"task 'depth': the saliency of 1 units .* unit 2"):
        normalize(saliency, net.reach, net.tasks)


def test_saliency_of_another_shape_is_refused() -> None:
    net = chain([3])
    with pytest.raises(OptionError, match=r"shape \(3, 4\), expected \[tasks, units\] = \(3, 3\)"):
        normalize(torch.ones(3, 4), net.reach, net.tasks)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda s, m, c: s[:2], r"returned torch.float64 \[2\], expected floating point \[units\] = \[3\]"),
        (lambda s, m, c: s.long(), r"returned torch.int64 \[3\]"),
        (lambda s, m, c: None, "returned NoneType"),
        (lambda s, m, c: s + 1, r"standings outside \[0, 1\)"),
        (lambda s, m, c: s * float("nan"), r"standings outside \[0, 1\)"),
    ],
)
def test_a_ranking_that_returns_no_standing_is_refused(answer: object, text: str) -> None:
    context = ranking_context(chain([3]).groups, torch.ones(3, dtype=torch.float64))
    with pytest.raises(OptionError, match=text):
        standing(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool), answer, context)
