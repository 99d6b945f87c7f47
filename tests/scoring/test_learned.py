"""Learned importance: what is planted is found, and the laws that every criterion keeps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import make_plan
from disparse_structured.errors import BatchError, GradientError, OptionError, TaskError
from disparse_structured.scoring import Saliency, score
from disparse_structured.scoring.criteria import Learned
from disparse_structured.structure import Structure, analyse
from disparse_structured.tasks import Task
from tests.support.plans import snapshot
from tests.support.zoo import BY_ID

QUICK = Learned(steps=60)
USELESS, ESSENTIAL, LEFT_ONLY = 0, 3, 5


class Planted(nn.Module):
    """Of eight hidden units, one is read by nobody, one carries nearly all, one matters to the left only."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.left, self.right = nn.Linear(8, 2), nn.Linear(8, 2)
        with torch.no_grad():
            for head in (self.left, self.right):
                head.weight[:, USELESS] = 0
                head.weight[:, ESSENTIAL] = torch.tensor([3.0, -2.0])
                head.weight[:, LEFT_ONLY] = 0
            self.left.weight[:, LEFT_ONLY] = torch.tensor([-1.0, 1.0])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(x).relu()
        return {"left": self.left(hidden), "right": self.right(hidden)}


def planted() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The network, and batches whose targets are what it computes, with a little noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Planted().eval()
        data = []
        for size in (6, 6, 4):  # the last batch has a shape of its own
            x = torch.randn(size, 6)
            with torch.no_grad():
                output = model(x)
            data.append({"x": x} | {name: out + 0.1 * torch.randn_like(out) for name, out in output.items()})
    return model, data


def tasks(scale: float = 1.0, labeled: bool = True) -> tuple[Task, ...]:
    def loss_on(name: str, factor: float) -> Any:
        return lambda output, batch: factor * (output - batch[name]).square().mean()

    found = (Task("left", "left", loss_on("left", scale)), Task("right", "right", loss_on("right", 1.0)))
    return found if labeled else tuple(replace(task, loss=None) for task in found)


def learned(criterion: Learned = QUICK, data: Any = None, **options: Any) -> Saliency:
    model, batches = planted()
    structure = analyse(model, (batches[0]["x"],), tasks(**options))
    return score(model, structure, batches if data is None else data, criterion)


# What is planted is found.


@pytest.mark.parametrize("labeled", [True, False])
def test_the_useless_unit_is_last_and_the_essential_one_first(labeled: bool) -> None:
    scores = learned(labeled=labeled).scores
    assert scores.argmin(1).tolist()[0] == USELESS
    assert scores[0, USELESS] < scores[0].sort().values[1]
    assert scores.argmax(1).tolist() == [ESSENTIAL, ESSENTIAL]
    # To the right task, the unit that only the left one reads is just as useless.
    assert sorted(scores[1].argsort()[:2].tolist()) == [USELESS, LEFT_ONLY]
    assert scores[1, USELESS] == scores[1, LEFT_ONLY]
    assert scores[0, LEFT_ONLY] > 2 * scores[0, USELESS]


def test_scores_are_shares_of_the_training_that_a_gate_is_open() -> None:
    scores = learned().scores
    assert scores.min() > 0
    assert scores.max() <= 1 + 1e-6
    closes = 1 / QUICK.lr / QUICK.steps  # under pressure alone, from 1 to 0 at lr a step
    assert float(scores[0, USELESS]) == pytest.approx(closes / 2, abs=0.03)


def test_more_pressure_closes_more() -> None:
    gentle, hard = (learned(Learned(steps=60, pressure=p)).scores for p in (0.1, 30.0))
    assert (hard <= gentle + 1e-3).all()
    assert hard.mean() < 0.7 * gentle.mean()


# Laws.


@pytest.mark.parametrize("scale", [1 / 20, 20.0])
def test_the_scale_of_a_loss_does_not_matter(scale: float) -> None:
    torch.testing.assert_close(learned(scale=scale).scores, learned().scores, rtol=1e-3, atol=1e-4)


def test_same_seed_same_scores_whatever_the_global_state() -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    loader = DataLoader(TensorDataset(entry.inputs(8)[0]), batch_size=2, shuffle=True)
    found = []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        found.append(score(model, structure, loader, Learned(steps=8), seed=seed).scores)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_model_and_the_random_states_are_left_as_found() -> None:
    model, batches = planted()
    model.train()

    def restless(output: Tensor, batch: Any) -> Tensor:
        return output.square().mean() * torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002

    structure = analyse(model, (batches[0]["x"],), (Task("left", "left", restless), Task("right", "right")))
    before, states = snapshot(model), (random.getstate(), torch.get_rng_state().tolist())
    with torch.no_grad():
        score(model, structure, batches, QUICK)
    assert snapshot(model) == before
    assert (random.getstate(), torch.get_rng_state().tolist()) == states


@pytest.mark.parametrize(
    "id", ["tiny-vit", "partial-reach", "frozen-branch", "dense-concat", "nested-output"]
)
def test_scores_of_awkward_networks_are_scores(id: str) -> None:
    entry = BY_ID[id]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    found = score(model, structure, [entry.inputs(2)], Learned(steps=5), to_inputs=lambda batch: batch)
    assert found.scores.shape == structure.reach.shape
    assert (found.scores[structure.reach] > 0).all()
    assert not found.scores[~structure.reach].any()


def test_a_plan_is_made_of_it() -> None:
    model, batches = planted()
    structure = analyse(model, (batches[0]["x"],), tasks())
    found = score(model, structure, batches, QUICK)
    plan = make_plan(structure, found.scores, Budget(macs=0.8), criterion=QUICK)
    kept = plan.keep(structure)
    assert not kept[USELESS]
    assert kept[ESSENTIAL]


def test_units_that_are_off_stay_off() -> None:
    model, batches = planted()
    structure = analyse(model, (batches[0]["x"],), tasks())
    keep = torch.ones(8, dtype=torch.bool)
    keep[[1, ESSENTIAL]] = False
    found = score(model, structure, batches, QUICK, keep=keep).scores
    assert not found[:, ~keep].any()
    assert (found[:, keep] > 0).all()


# Data and settings.


def test_data_is_read_as_often_as_needed_and_no_further() -> None:
    model, batches = planted()
    found = learned()
    assert (found.batches, found.samples) == (3, 16)
    assert found.criterion == "Learned(steps=60, lr=0.05, pressure=10.0)"
    structure = analyse(model, (batches[0]["x"],), tasks())
    endless: Iterator[Any] = iter(lambda: batches[0], None)
    assert score(model, structure, endless, Learned(steps=7)).batches == 7
    once = score(model, structure, iter(batches), Learned(steps=3)).scores
    assert torch.equal(once, score(model, structure, batches, Learned(steps=3)).scores)
    with pytest.raises(BatchError, match="an iterator or generator that was read before is exhausted"):
        score(model, structure, iter(batches), Learned(steps=4))
    with pytest.raises(BatchError, match="needs data, and none was given"):
        score(model, structure, criterion=QUICK)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number of at least 1"),
        ({"lr": -1.0}, "lr=-1.0 must be a finite number above 0"),
        ({"pressure": float("inf")}, "pressure=inf must be a finite number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Learned(**settings)


def structure_for(loss: Any) -> tuple[nn.Module, Structure, list[dict[str, Tensor]]]:
    model, batches = planted()
    return model, analyse(model, (batches[0]["x"],), (Task("left", "left", loss),)), batches


def test_what_cannot_be_learned_from_is_named() -> None:
    model, structure, batches = structure_for(lambda output, batch: (output - output).sqrt().sum())
    with pytest.raises(GradientError, match="task 'left': the gate gradient of its loss is NaN"):
        score(model, structure, batches, QUICK)
    model, structure, batches = structure_for(lambda output, batch: output.detach().mean())
    with pytest.raises(TaskError, match="'left': its loss does not depend on its output"):
        score(model, structure, batches, QUICK)
    best = (Task("best", lambda output: output["left"].argmax(1)), Task("left", "left"))
    with pytest.raises(TaskError, match="task 'best' has no loss, and its output"):
        score(model, analyse(model, (batches[0]["x"],), best), batches, QUICK)
