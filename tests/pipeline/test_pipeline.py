"""The whole composition: what ``prune`` checks before it starts, and what it says afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from disparse_structured import Fisher, Majority, prune
from disparse_structured.errors import BatchError, PlanError
from tests.support.zoo import BY_ID


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"criterion": "fisher"}, PlanError, "criterion='fisher' is no criterion"),
        ({"arbiter": "majority"}, PlanError, "arbiter='majority' is no arbiter"),
        ({"ranking": "global"}, PlanError, "ranking='global' is no ranking"),
        ({"data": 3}, BatchError, "data is int 3"),
        ({"data": []}, BatchError, "no batch"),
    ],
)
def test_choices_that_are_none_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    entry = BY_ID["plain"]

    with pytest.raises(error, match=words):
        prune(
            entry.factory(), entry.inputs(), entry.tasks, macs=0.5, refit=None, method=DiSparse(), **options
        )


def test_the_report_says_what_the_model_is() -> None:
    entry = BY_ID["residual"]
    model = entry.factory()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    pruned = prune(
        model, [entry.inputs(8)], entry.tasks, macs=0.5, refit=None, method=DiSparse(arbiter=Majority())
    )

    report = pruned.report
    assert report.costs["parameters"].counted == sum(p.numel() for p in pruned.model.parameters())
    assert report.costs["macs"].counted == pytest.approx(report.costs["macs"].predicted, rel=1e-3)
    assert report.costs["macs"].ratio <= 0.5
    assert report.verification.verified
    assert max(report.verification.deviation.values()) <= 1e-9
    assert report.plan == pruned.plan.hash
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_a_proof_the_report_says_so() -> None:
    entry = BY_ID["plain"]

    pruned = prune(
        entry.factory(),
        entry.inputs(),
        entry.tasks,
        macs=0.5,
        verify=False,
        refit=None,
        method=DiSparse(criterion=Fisher()),
    )

    assert not pruned.report.verification.verified
    assert "NOT VERIFIED" in str(pruned.report)
