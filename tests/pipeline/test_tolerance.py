"""``prune`` with limits on how far each task's output may move, and with arbiters that weigh tasks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from disparse_structured import Budget, Compensated, DiSparse, prune
from disparse_structured.decision.arbiters import Minimax, Priority
from disparse_structured.errors import BudgetError
from disparse_structured.pipeline import PruningResult
from tests.support.plans import snapshot
from tests.support.redundant import build, deviations, images, macs_left, set_aside

QUICK = Compensated(rounds=1)
BUDGET = Budget(macs=0.6, round_to=1)


class Rivals(nn.Module):
    """Two heads of one trunk that is too narrow for both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(24, 16, 1), nn.ReLU(), nn.Conv2d(16, 1, 1))
        self.edges = nn.Sequential(nn.Conv2d(24, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def forward(self, image: Tensor) -> Any:
        features = self.trunk(image)
        return {"depth": self.depth(features), "edges": self.edges(features)}


@pytest.fixture(scope="module")
def rivals() -> dict[str, float]:
    """How far each output moves at 60 % of the MACs when there is no limit."""
    return after(prune(build(Rivals), images(), budget=BUDGET, verify=False, method=QUICK))


def after(result: PruningResult) -> dict[str, float]:
    """How far each output moved in the end."""
    assert result.report.deviation is not None
    return dict(result.report.deviation.final)


@pytest.mark.parametrize("limited", ["depth", "edges"])
def test_a_tolerance_is_kept_at_the_same_cost_at_the_others_expense(
    limited: str, rivals: dict[str, float]
) -> None:
    limit = 0.7 * rivals[limited]

    result = prune(build(Rivals), images(), budget=BUDGET, tolerance={limited: limit}, method=QUICK)

    other = {"depth": "edges", "edges": "depth"}[limited]
    assert after(result)[limited] <= limit
    assert after(result)[other] > rivals[other]
    assert macs_left(result) <= 0.6
    assert result.report.verification.verified
    assert result.report.arbiter.startswith("Tolerance(limits={'" + limited)
    # Measured by hand, on what was set aside.
    dense, inputs = build(Rivals), set_aside(build(Rivals), images())
    assert deviations(result.model, dense, inputs)[limited] <= limit * 1.001


def test_limits_of_all_tasks_are_kept_together(rivals: dict[str, float]) -> None:
    limits = {"depth": 0.85 * rivals["depth"], "edges": 2.5 * rivals["edges"]}

    found = after(prune(build(Rivals), images(), budget=BUDGET, tolerance=limits, verify=False, method=QUICK))

    assert all(found[name] <= limit for name, limit in limits.items())


def test_a_tolerance_that_cannot_be_kept_says_what_blocks_and_what_would_be_possible(
    rivals: dict[str, float],
) -> None:
    model = build(Rivals)
    before = snapshot(model)
    limits = {"depth": 0.4 * rivals["depth"], "edges": 40 * rivals["edges"]}

    with pytest.raises(BudgetError) as refused:
        prune(model, images(), budget=BUDGET, tolerance=limits, method=QUICK)

    assert snapshot(model) == before
    message = str(refused.value)
    assert message.startswith("macs=0.6 cannot be met within the tolerance. In the best of 4 tries 'depth'")
    assert f"(limit {limits['depth']:g}); within its limit 'edges'" in message
    closest = float(re.findall(r"'depth' deviates by ([0-9.]+)", message)[0])
    assert limits["depth"] < closest < 0.95 * rivals["depth"]
    assert "At macs=0.8 all limits hold: 'depth' 0.0" in message
    # The remedies hold what they promise.
    allowed = float(re.findall(r"or allow depth=([0-9.]+)\.$", message)[0])
    assert closest < allowed
    assert (
        after(prune(model, images(), budget=Budget(macs=0.8, round_to=1), tolerance=limits, method=QUICK))[
            "depth"
        ]
        <= limits["depth"]
    )


def test_a_tolerance_replaces_the_arbiter_of_votes_too(rivals: dict[str, float]) -> None:
    votes: dict[str, Any] = {"budget": BUDGET, "method": DiSparse(), "verify": False}
    free = after(prune(build(Rivals), images(), **votes))
    limit = 1.02 * free["depth"]

    result = prune(build(Rivals), images(), tolerance={"depth": limit}, **votes)

    assert after(result)["depth"] <= limit
    assert result.report.criterion == "Fisher()"
    assert result.report.arbiter.startswith(("Tolerance(", "Priority("))


def test_with_a_budget_of_parameters_a_tolerance_holds_too(rivals: dict[str, float]) -> None:
    with pytest.raises(
        BudgetError, match=r"parameters=900 cannot.* At parameters=0\.\d+ .* more parameters, or"
    ):
        prune(
            build(Rivals),
            images(),
            budget=Budget(parameters=900, round_to=1),
            tolerance={"edges": 1e-4},
            method=QUICK,
        )


def test_priority_and_minimax_shift_what_is_lost(rivals: dict[str, float]) -> None:
    def of(arbiter: Any) -> dict[str, float]:
        return after(
            prune(
                build(Rivals), images(), budget=BUDGET, verify=False, method=replace(QUICK, arbiter=arbiter)
            )
        )

    depth, edges = of(Priority({"depth": 20})), of(Priority({"edges": 20}))
    assert depth["depth"] < edges["depth"]
    assert edges["edges"] < depth["edges"]
    assert max(of(Minimax()).values()) < min(max(depth.values()), max(edges.values()))
