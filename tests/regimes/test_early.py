"""Pruning once the votes have settled: when that is, and what is trained from then on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from disparse_structured.decision.budget import Budget
from disparse_structured.errors import OptionError
from disparse_structured.pipeline import DiSparse
from disparse_structured.regimes import Early
from disparse_structured.regimes.early import least_overlap
from disparse_structured.scoring import Probe
from disparse_structured.structure import count_macs
from disparse_structured.tasks import Task

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TASKS = (
    Task("left", "left", lambda output, batch: (output - 1).square().mean()),
    Task("right", "right", lambda output, batch: output.square().mean()),
)


class Net(nn.Module):
    """A trunk of two layers and two heads of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 20), nn.Linear(20, 16)
        self.left, self.right = nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return {"left": self.left(x), "right": self.right(x)}


class Scripted:
    """A criterion under which the tasks keep the last units, moved by what comes next in a list.

    ``moves`` has one number for each task and scoring; the last one stays.
    """

    def __init__(self, *moves: tuple[int, int]) -> None:
        self.moves, self.calls = moves, 0

    def __call__(self, probe: Probe) -> Tensor:
        moved = self.moves[min(self.calls, len(self.moves) - 1)]
        self.calls += 1
        ranks = torch.arange(1.0, probe.structure.units + 1, dtype=torch.float64)
        return torch.stack([ranks.roll(move) for move in moved])


def early(criterion: Any, **options: Any) -> Early:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    chosen = {"budget": Budget(macs=0.5, round_to=1), "steps": 40, "every": 2, "agreement": 1.0}
    chosen |= {"until": 0.5, **options}
    return Early(model, (INPUTS,), TASKS, [INPUTS], method=DiSparse(criterion), **chosen)


def pruned_at(regime: Early, steps: int = 40) -> int | None:
    """The step of a run in which the network was pruned."""
    optimizer = torch.optim.SGD(regime.model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        outputs = regime.model(INPUTS)
        optimizer.zero_grad()
        torch.stack([task.loss(outputs[task.name], INPUTS) for task in TASKS if task.loss]).sum().backward()
        optimizer.step()
        regime.step(optimizer)
        if regime.pruned:
            return step
    return None


def test_it_waits_for_the_task_that_settles_last() -> None:
    assert pruned_at(early(Scripted((0, 0)))) == 2
    assert pruned_at(early(Scripted((0, 0), (9, 0), (9, 0)))) == 4
    assert pruned_at(early(Scripted((0, 0), (9, 0), (9, 9), (0, 9), (0, 9)))) == 8


def test_votes_that_never_settle_are_decided_at_the_latest_step() -> None:
    restless = Scripted(*[(move, 0) for move in (0, 15) * 30])
    assert pruned_at(early(restless)) == 20
    assert pruned_at(early(Scripted(*[(m, 0) for m in (0, 15) * 30]), until=0.475)) == 19


def test_a_lower_agreement_prunes_no_later() -> None:
    moves = [(0, 0), (3, 0), (1, 0), (0, 0), (0, 0)]
    at = [pruned_at(early(Scripted(*moves), agreement=share)) for share in (1.0, 0.9, 0.5, 0.01)]
    assert at == sorted(at, key=lambda step: -(step or 0))
    assert at[0] == 8
    assert at[-1] == 2


def test_before_it_is_pruned_the_dense_network_trains_as_without_it() -> None:
    regime = early(Scripted((0, 0), (9, 9), (0, 0)), every=3)
    alone = copy.deepcopy(regime.model)
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (regime.model, alone))
    for _ in range(5):
        for model, optimizer in ((regime.model, ours), (alone, theirs)):
            outputs = model(INPUTS)
            optimizer.zero_grad()
            (outputs["left"].sum() + outputs["right"].square().sum()).backward()
            optimizer.step()
        regime.step(ours)
        assert not regime.pruned
    assert all(torch.equal(a, b) for a, b in zip(regime.model.parameters(), alone.parameters(), strict=True))


def test_after_it_is_pruned_nothing_is_decided_again() -> None:
    criterion = Scripted((0, 0))
    regime = early(criterion)
    assert pruned_at(regime) == 2
    keep = regime.keep
    criterion.moves = ((7, 3), (1, 2))
    assert pruned_at(regime, steps=1) == 1
    assert torch.equal(regime.keep, keep)
    assert criterion.calls == 2
    assert torch.equal(regime.finish().plan.keep(regime.structure), keep)


def test_training_that_ends_before_the_votes_settle_is_pruned_at_the_end() -> None:
    regime = early(Scripted((0, 0), (9, 9)), every=10)
    assert pruned_at(regime, steps=3) is None
    pruned = regime.finish()
    dense = count_macs(Net(), (INPUTS,))
    assert 0.45 <= count_macs(pruned.model, (INPUTS,)) / dense <= 0.5
    assert pruned.report.verification.verified


def test_a_resumed_run_compares_with_the_votes_before_it() -> None:
    first = early(Scripted((0, 0), (9, 9)))
    assert pruned_at(first, steps=3) is None
    state = first.state_dict()
    second = early(Scripted((0, 0), (9, 9)))
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(state)
    assert second.agreed == first.agreed
    assert pruned_at(second, steps=1) == 1  # the votes of step 4 are those of step 2


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"every": 0}, {"agreement": 0.0}, {"agreement": 1.1}, {"until": 0.0}, {"until": 2.0}],
)
def test_a_number_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        early(Scripted((0, 0)), **options)


BITS = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(BITS, BITS, BITS), min_size=1, max_size=3))
def test_the_least_overlap_is_the_smallest_intersection_over_union(rows: Any) -> None:
    one, other, reach = (torch.tensor(each) for each in zip(*rows, strict=True))
    expected = []
    for a, b, r in rows:
        kept = [{i for i in range(6) if which[i] and r[i]} for which in (a, b)]
        union = kept[0] | kept[1]
        expected.append(len(kept[0] & kept[1]) / len(union) if union else 1.0)
    found = least_overlap(one, other, reach)
    assert found == pytest.approx(min(expected))
    assert found == least_overlap(other, one, reach)
    assert least_overlap(one, one, reach) == 1.0
