"""Limits for single layers by name, pattern or module; outputs other than the tasks'; what errors name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import BudgetError, OptionError, PatternError

IMAGES = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 1)]
    return nn.Sequential(*layers).eval()


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def pruned(model: nn.Module, **options: Any) -> ds.pipeline.PruningResult:
    return ds.prune(model, IMAGES, budget=ds.Budget(macs=0.6, **options), method=ds.DiSparse(), refit=None)


@pytest.mark.parametrize("many", [False, True])
def test_a_module_is_protected_by_itself(many: bool) -> None:
    model = net()
    result = pruned(model, protected=[model[0]] if many else model[0])

    assert widths(result.model)[0] == 16
    assert result.plan == pruned(model, protected="0").plan
    assert Plan.from_json(result.plan.to_json()) == result.plan


def test_shares_limit_what_is_removed_of_a_layer() -> None:
    model = net()
    assert widths(pruned(model, shares={"0": 0.25}).model)[0] >= 12
    assert widths(pruned(model, shares={model[0]: (0.5, 0.5)}).model)[0] == 8
    exact = pruned(model, shares={"*": (0.25, 1.0), "2": (0.5, 0.5)})
    assert widths(exact.model)[0] <= 12
    assert widths(exact.model)[1] == 12
    assert Plan.from_json(exact.plan.to_json()) == exact.plan


def test_shares_are_of_what_a_layer_writes_not_of_what_it_reads() -> None:
    torch.manual_seed(0)
    up, last = nn.ConvTranspose2d(16, 12, 2), nn.Conv2d(12, 4, 1)
    structure = ds.analyse(nn.Sequential(nn.Conv2d(3, 16, 3), up, nn.ReLU(), last).eval(), IMAGES[:2])
    budget = ds.Budget(macs=0.7, shares={"1": (0.5, 0.5)})
    plan = ds.plan(structure, torch.rand(1, structure.units), budget)

    assert {name: len(units) for name, units in plan.removals.items() if name == "1"} == {"1": 6}
    with pytest.raises(PatternError, match="matches no channel group"):
        ds.plan(structure, torch.rand(1, structure.units), ds.Budget(macs=0.7, shares={"3": 0.5}))


def test_shares_of_an_embedding_are_of_its_features() -> None:
    model = nn.Sequential(nn.Embedding(9, 12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    structure = ds.analyse(model, torch.randint(0, 9, (2, 5)))
    plan = ds.plan(structure, torch.rand(1, structure.units), ds.Budget(macs=0.7, shares={"0": (0.25, 0.25)}))

    assert len(plan.removals["0"]) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"protected": 3}, OptionError, "protected holds 3 of type int"),
        ({"protected": nn.ReLU()}, OptionError, "a ReLU outside the model"),
        ({"shares": {"0": 1.5}}, OptionError, r"shares holds \('0', 0.0, 1.5\)"),
        ({"shares": {"0": (0.5, 0.2)}}, OptionError, "smallest, largest"),
        ({"shares": ["0"]}, OptionError, "Pass a dict"),
        ({"shares": {"stem": 0.1}}, PatternError, "the pattern of shares 'stem' matches no channel group"),
    ],
)
def test_other_limits_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pruned(net(), **options)


def test_the_whole_model_is_no_layer_of_it() -> None:
    model = net()
    with pytest.raises(OptionError, match="a budget names the whole model"):
        pruned(model, protected=model)


def test_without_the_model_a_module_has_no_name() -> None:
    model = net()
    structure = ds.analyse(model, IMAGES[:2])
    saliency = ds.score(model, structure, criterion=ds.criteria.Magnitude())
    budget = ds.Budget(macs=0.6, protected=model[0])
    with pytest.raises(OptionError, match=r"budget.named\(model\)"):
        ds.plan(structure, saliency.scores, budget)
    assert ds.plan(structure, saliency.scores, budget.named(model)).removals.keys() == {"2"}


class Towers(nn.Module):
    """Returns the features that its head reads beside its task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(*list(net())[:4]), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"seg": self.head(features), "features": features}


def test_outputs_beside_the_tasks_hold_their_width_unless_told_otherwise(tmp_path: Path) -> None:
    model = Towers().eval()
    options: dict[str, Any] = {
        "budget": ds.Budget(macs=0.3, floor=0.4),
        "method": ds.DiSparse(),
        "refit": None,
    }
    with pytest.raises(BudgetError, match=r'analyse\(..., outputs="tasks"\)'):
        ds.prune(model, IMAGES, ["seg"], **options)

    structure = ds.analyse(model, IMAGES[:2], ["seg"], outputs="tasks")
    result = ds.prune(model, IMAGES, structure=structure, **options)
    assert result.report.costs["macs"].ratio <= 0.3
    assert result.model.head.in_channels < 24
    result.save(tmp_path)
    loaded = ds.load(tmp_path, lambda: Towers().eval())
    torch.testing.assert_close(loaded(IMAGES)["seg"], result.model(IMAGES)["seg"])


def test_an_error_names_the_budget_that_was_asked_for_and_what_pins() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.special.log_ndtr(self.body(x)))

    with pytest.raises(BudgetError) as caught:
        ds.prune(Unknown().eval(), IMAGES, macs=0.5)
    assert "the budget macs=0.5 " in str(caught.value)
    assert "no rule for aten.special_log_ndtr.default" in str(caught.value)
    assert "docs/extending.md" in str(caught.value)
