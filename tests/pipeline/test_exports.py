"""How often a model is exported: once for every shape and precision, however many steps ask for its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured import Budget, Compensated, DiSparse, Task, analyse, prune
from disparse_structured.errors import BudgetError
from disparse_structured.refit import Affine, LeastSquares
from disparse_structured.regimes import Dynamic
from tests.support.zoo import BY_ID, Entry, named

NETWORK = BY_ID["residual"]
ONE_ROUND: dict[str, Any] = {"method": Compensated(rounds=1), "refit": Affine()}


class Exports:
    """Counts the calls of ``torch.export.export`` and passes them on."""

    def __init__(self, export: Callable[..., Any]) -> None:
        self.count, self._export = 0, export

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self._export(*args, **kwargs)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exports]:
    counted = Exports(torch.export.export)
    monkeypatch.setattr(torch.export, "export", counted)
    yield counted
    assert counted.count  # whatever a test does, it exports: otherwise the count is broken


def images(count: int = 64) -> Tensor:
    return NETWORK.inputs(count, seed=1)[0]


def test_a_default_call_exports_the_model_twice(exports: Exports) -> None:
    """The example inputs and the chunks that are calibrated on; the copy in double precision needs none."""
    result = prune(NETWORK.factory(), images(), macs=0.5)

    assert result.report.verification.dtype == "torch.float64"
    assert exports.count <= 2


class Resized(nn.Module):
    """Computes with the size of its images, so that other sizes have other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image).relu()
        left = nn.functional.interpolate(self.left(features), image.shape[2:])
        return {"left": left, "right": self.right(features)}


def test_a_smaller_size_with_the_same_operators_needs_no_export(exports: Exports) -> None:
    """The third export is for the larger size."""
    result = prune(Resized().eval(), torch.randn(64, 3, 9, 9), macs=0.5)

    smaller = "the size 4x4 (only its shapes were compared)"
    assert {"the size 41x41", smaller} <= set(result.report.verification.beyond)
    assert exports.count <= 3


def test_other_tries_to_stay_within_a_tolerance_export_nothing_more(exports: Exports) -> None:
    limits = {task.name: 1e-9 for task in NETWORK.tasks}
    with pytest.raises(BudgetError, match="of 4 tries"):
        prune(NETWORK.factory(), images(16), NETWORK.tasks, macs=0.5, tolerance=limits, **ONE_ROUND)

    assert exports.count <= 3


class SinglePrecision(nn.Module):
    """A network that cannot be exported in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image.float()).relu()
        return {"left": self.left(features), "right": self.right(features)}


def test_an_export_that_fails_is_not_tried_again(exports: Exports) -> None:
    entry = Entry("single-precision", SinglePrecision, ((3, 9, 9),), named("left", "right"))
    limits = {task.name: 1e-9 for task in entry.tasks}
    with pytest.raises(BudgetError, match="of 4 tries"):
        prune(entry.factory(), entry.inputs(32)[0], entry.tasks, macs=0.5, tolerance=limits, **ONE_ROUND)

    assert exports.count <= 4


@pytest.mark.parametrize("refit", [None, LeastSquares()])
def test_votes_and_a_refit_export_once_for_every_shape(exports: Exports, refit: LeastSquares | None) -> None:
    """Example inputs of 2, batches of 16, and chunks of 4 that outputs are compared on."""
    data = list(images().split(16))
    prune(NETWORK.factory(), data, NETWORK.tasks, macs=0.5, method=DiSparse(), refit=refit)

    assert exports.count <= 3


def test_the_pruned_graph_needs_no_export_of_its_own(exports: Exports) -> None:
    model = NETWORK.factory()
    prune(model, images(), structure=analyse(model, images(2), NETWORK.tasks, form="graph"), macs=0.5)

    assert exports.count <= 2


def test_exchanges_of_a_regime_share_one_export(exports: Exports) -> None:
    """The batches are of another shape than the example inputs, so that they need one: once for all."""
    model = NETWORK.factory()
    tasks = [Task(task.name, task.output) for task in NETWORK.tasks]
    regime = Dynamic(model, (images(2),), tasks, [images(16)], budget=Budget(macs=0.5), steps=100, every=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    constructed = exports.count
    masks = [regime.keep]
    for _ in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        regime.step(optimizer)
        masks.append(regime.keep)

    assert any(not torch.equal(mask, masks[0]) for mask in masks)  # units were exchanged
    assert exports.count == constructed
    regime.finish()
    assert exports.count == constructed <= 2
