"""The plans of before the interface was one verb: the same model, data, seed and method, the same units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disparse_structured import Budget, Compensated, DiSparse, analyse, prune
from disparse_structured.decision.arbiters import Majority, Unanimous
from disparse_structured.decision.rankings import GlobalRanking
from disparse_structured.scoring.criteria import Taylor
from tests.support.redundant import removed
from tests.support.zoo import BY_ID

BEFORE = json.loads(Path(__file__).with_name("plans_3336ac7.json").read_text())
"""By network and setting, the units that were removed from each group at commit 3336ac7."""

HALF = Budget(macs=0.5, round_to=1)

MEASURED: dict[str, Any] = {"left": (0.7, 0.45, 0.25, 0.12, 0.05), "judged": 16}
"""What damage was measured on by default."""

SETTINGS: dict[str, dict[str, Any]] = {
    "votes": {"budget": HALF, "method": DiSparse()},
    "votes-parameters-round": {
        "budget": Budget(parameters=0.6, round_to=2),
        "method": DiSparse(),
    },
    "taylor-majority-global": {
        "budget": Budget(macs=0.6, round_to=1),
        "method": DiSparse(Taylor(), Majority(), GlobalRanking()),
    },
    "compensated": {"budget": HALF, "method": Compensated(Taylor(), **MEASURED)},
    "compensated-unanimous": {
        "budget": Budget(macs=0.7, round_to=1),
        "method": Compensated(Taylor(), Unanimous(), **MEASURED),
    },
}

EVERYWHERE = ("votes", "compensated")
IN_FULL = ("grouped", "dense-concat", "tiny-vit")
"""Networks for which all settings are tried; for the others those of :data:`EVERYWHERE`."""


@pytest.mark.parametrize("id", BEFORE)
def test_units_are_those_of_before(id: str) -> None:
    entry = BY_ID[id]
    model, (images,) = entry.factory(), entry.inputs(16, seed=1)
    structure = analyse(model, images[:2], entry.tasks)

    found = {
        name: removed(prune(model, [images], structure=structure, refit=None, verify=False, **options))
        for name, options in SETTINGS.items()
        if id in IN_FULL or name in EVERYWHERE
    }

    assert found == {name: BEFORE[id][name] for name in found}
