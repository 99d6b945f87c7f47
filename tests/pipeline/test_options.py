"""Wrong options of ``prune`` are refused before any work starts, with what was found and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from disparse_structured import Budget, Compensated, DiSparse, analyse, prune
from disparse_structured.decision.arbiters import Minimax, Unanimous, WeightedMean
from disparse_structured.errors import BudgetError, DisparseError, OptionError, TaskError
from disparse_structured.pipeline import Iterative
from disparse_structured.refit import LeastSquares
from disparse_structured.scoring.criteria import Fisher
from tests.support.redundant import build, images


class Unused(nn.Module):
    """A model that fails when it is called."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the options were not checked first")


class Decides:
    """A third party's method that has no arbiter."""

    def decide(self, problem: Any) -> Any:
        raise AssertionError("not called")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": Budget(macs=0.5), "macs": 0.3}, "macs=0.3 was given beside budget=.*Leave one of the"),
        ({"budget": Budget(macs=0.5), "parameters": 9}, "parameters=9 was given beside budget="),
        ({"budget": {"macs": 0.5}}, r"budget must be a Budget, got {'macs': 0.5}. Pass Budget\(macs=0.5\)"),
        ({"budget": 0.5}, "budget must be a Budget, got 0.5"),
        ({"method": Compensated}, r"method must be an object, got the class Compensated. Create one: Compen"),
        ({"method": "votes"}, "method must be an object with a decide method, got 'votes'. Pass one such as"),
        ({"method": Fisher()}, r"method must be an object with a decide method, got Fisher\(\)"),
        ({"refit": LeastSquares}, r"refit must be an object, got the class LeastSquares. Create one: Least"),
        (
            {"refit": "affine"},
            r"refit must be a refit method such as LeastSquares\(\), got 'affine'. Pass None",
        ),
        ({"structure": "graph"}, r"structure must be what analyse\(\) returned, got 'graph'"),
        ({"samples": 1}, "samples=1 is too few: use at least 2, better 64. Half of the "),
        ({"samples": 0, "method": DiSparse(), "refit": None}, r"samples=0 is too few: use at least 1\.$"),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_runs(options: dict[str, Any], says: str) -> None:
    given = {} if "budget" in options else {"macs": 0.5}

    with pytest.raises(OptionError, match=says) as refused:
        prune(Unused(), images(8), **given, **options)

    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DiSparse("fisher"), r"criterion must be callable, got 'fisher'. Pass an object such as"),
        (lambda: DiSparse(Fisher), r"criterion must be an object, got the class Fisher. Create one: Fisher"),
        (lambda: DiSparse(arbiter="majority"), r"arbiter must be callable, got 'majority'.* such as Unanimo"),
        (lambda: DiSparse(arbiter=Unanimous), "arbiter must be an object, got the class Unanimous. Create"),
        (lambda: DiSparse(ranking="global"), r"ranking must be callable, got 'global'.* such as PerCostRank"),
        (lambda: Compensated(Fisher), "criterion must be an object, got the class Fisher"),
        (lambda: Compensated(arbiter=None), "arbiter must be callable, got None"),
        (lambda: Compensated(refit=LeastSquares), "refit must be an object, got the class LeastSquares"),
        (lambda: Compensated(rounds=0), "rounds=0 must be a whole number of at least 1"),
        (
            lambda: Compensated("taylor"),
            r"criterion must be callable, got 'taylor'. Pass an object such as Fi",
        ),
        (lambda: Compensated(scored=0), "scored=0 must be a whole number of at least 1"),
        (lambda: Compensated(left=(0.5, 1.0)), r"left=\(0.5, 1.0\) must hold shares between 0 and 1"),
        (lambda: Iterative(rounds=0), "rounds=0 must be a whole number of at least 1"),
        (lambda: Iterative(arbiter=Unanimous), "arbiter must be an object, got the class Unanimous"),
        (lambda: Iterative(refit="affine"), "refit must be a refit method"),
    ],
)
def test_a_method_of_wrong_parts_cannot_be_made(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "a budget limits one cost, found none"),
        ({"macs": 0.5, "parameters": 0.5}, "a budget limits one cost, found macs and parameters"),
        ({"macs": 1.0}, "macs"),
        ({"macs": -3}, "macs"),
    ],
)
def test_a_budget_has_one_limit(limits: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        prune(Unused(), images(8), **limits)


def test_tasks_beside_a_structure_are_refused_since_it_has_tasks() -> None:
    structure = analyse(build(), images(2))

    with pytest.raises(OptionError, match="tasks= was given beside structure=, which has tasks already"):
        prune(build(), images(8), ["depth"], macs=0.5, structure=structure)


@pytest.mark.parametrize("fits", [{}, {"refit": None}, {"method": DiSparse()}])
def test_one_example_is_too_few_wherever_something_is_fitted(fits: dict[str, Any]) -> None:
    with pytest.raises(DisparseError, match=r"1 example is too few: .*Pass at least two"):
        prune(build(), images(1), macs=0.5, **fits)


@pytest.mark.parametrize(
    ("tolerance", "options", "error", "says"),
    [
        ({}, {}, OptionError, "invalid tolerance={}: Tolerance needs a limit for at least one task"),
        ("depth", {}, OptionError, "invalid tolerance='depth': Tolerance needs a limit by task"),
        ({"depth": -1}, {}, OptionError, "the limit of 'depth' is -1. Give a number above 0"),
        ({"height": 1}, {}, TaskError, "tolerance names 'height'; the tasks are"),
        ({"depth": 1}, {"refit": None}, OptionError, r"tolerance= needs a refit.*Affine\(\) is a quick one"),
        (
            {"depth": 1},
            {"method": Compensated(arbiter=Minimax())},
            OptionError,
            r"tolerance= decides by the limits, and arbiter=Minimax\(\) by something else. Leave one",
        ),
        (
            {"depth": 1},
            {"method": DiSparse(arbiter=WeightedMean())},
            OptionError,
            r"and arbiter=WeightedMean\(\) by something else",
        ),
        (
            {"depth": 1},
            {"method": Decides()},
            OptionError,
            r"tolerance= replaces the arbiter of the method, and .*Decides.* has none. Use Compensated\(\)",
        ),
    ],
)
def test_a_tolerance_that_contradicts_the_rest_is_refused(
    tolerance: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        prune(build(), images(8), macs=0.5, tolerance=tolerance, **options)
