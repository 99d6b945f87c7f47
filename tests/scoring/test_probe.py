"""What a probe answers: losses as functions of gates, and gradients by weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.errors import BatchError, GradientError, TaskError
from disparse_structured.scoring import Probe, score
from disparse_structured.scoring.criteria import Learned
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from tests.support.plans import snapshot

Batch = Mapping[str, Tensor]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(x)
        return {"left": self.left(hidden), "right": self.right(hidden)}


def left_loss(output: Tensor, batch: Batch) -> Tensor:
    return (output - batch["left"]).square().mean()


LABELED = (Task("left", "left", left_loss), Task("right", "right", lambda out, batch: out.exp().mean()))
LABEL_FREE = (Task("left", "left"), Task("right", "right"))


def network() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().double().eval()


def data() -> list[Batch]:
    torch.manual_seed(1)
    return [{"x": torch.randn(size, 5).double(), "left": torch.randn(size, 3).double()} for size in (4, 4, 2)]


def probe(tasks: tuple[Task, ...] = LABELED, **options: Any) -> Probe:
    model, batches = network(), data()
    structure = analyse(model, (batches[0]["x"],), tasks)
    return Probe(model, structure, options.pop("data", batches), **options)


def losses_of(model: nn.Module, batch: Batch) -> Tensor:
    output = model(batch["x"])
    return torch.stack([task.loss(output[task.name], batch) for task in LABELED if task.loss])


# Losses.


def test_open_gates_give_the_losses_of_the_network_as_it_is() -> None:
    asked = probe()
    sizes = []
    for losses in asked.losses():
        torch.testing.assert_close(losses(losses.open), losses_of(asked.model, losses.batch))
        torch.testing.assert_close(losses.of(1, losses.open), losses(losses.open)[1])
        sizes.append(losses.samples)
    assert sizes == [4, 4, 2]
    assert (asked.batches, asked.samples) == (3, 10)


def test_closed_gates_give_the_losses_of_the_network_without_the_units() -> None:
    asked = probe()
    keep = torch.tensor([True, False, True, True, False, True])
    smaller = cut(asked.model, asked.structure, keep)
    for losses in asked.losses():
        torch.testing.assert_close(losses(keep.double()), losses_of(smaller, losses.batch))


def test_units_that_are_off_are_closed_in_the_open_gates() -> None:
    keep = torch.tensor([True, False, True, True, False, True])
    asked = probe(keep=keep)
    smaller = cut(asked.model, asked.structure, keep)
    for losses in asked.losses():
        assert torch.equal(losses.open.bool(), keep)
        torch.testing.assert_close(losses(losses.open), losses_of(smaller, losses.batch))


def test_the_gradient_of_losses_by_the_gates_is_that_of_the_gates() -> None:
    asked = probe()
    expected: dict[int, list[Tensor]] = {0: [], 1: []}
    for found in asked.gate_gradients(per_sample=False):
        expected[found.task].append(found.values[0])
    for number, losses in enumerate(asked.losses()):
        gates = losses.open.clone().requires_grad_()
        for row, loss in enumerate(losses(gates)):
            (gradient,) = torch.autograd.grad(loss, gates, retain_graph=True)
            torch.testing.assert_close(gradient, expected[row][number])


def test_losses_are_the_same_where_gradients_are_switched_off() -> None:
    for losses in probe().losses():
        with torch.no_grad():
            without = losses(losses.open * 0.5)
        assert not without.requires_grad
        torch.testing.assert_close(losses(losses.open * 0.5), without)


def test_without_a_loss_a_task_loses_what_its_output_moves() -> None:
    asked = probe(LABEL_FREE)
    keep = torch.tensor([False, True, True, True, True, True])
    smaller = cut(asked.model, asked.structure, keep)
    for losses in asked.losses():
        assert float(losses(losses.open).abs().max()) == 0
        dense, moved = asked.model(losses.batch["x"]), smaller(losses.batch["x"])
        expected = [(moved[k] - dense[k]).square().sum() / dense[k].square().sum() for k in ("left", "right")]
        torch.testing.assert_close(losses(keep.double()), torch.stack(expected).to(torch.float32))


def test_steps_read_the_data_as_often_as_needed() -> None:
    asked = probe()
    assert [losses.samples for losses in asked.losses(steps=7)] == [4, 4, 2, 4, 4, 2, 4]
    assert (asked.batches, asked.samples) == (3, 10)
    with pytest.raises(BatchError):
        list(probe(data=iter(data())).losses(steps=4))


class Ablation:
    """The rise of each task's loss when a unit is removed alone, by the definition."""

    def __call__(self, asked: Probe) -> Tensor:
        total = asked.zeros()
        with torch.no_grad():
            for losses in asked.losses():
                dense = losses(losses.open)
                for unit in range(asked.structure.units):
                    gates = losses.open.clone()
                    gates[unit] = 0
                    total[:, unit] += losses.samples * (losses(gates) - dense).abs().cpu()
        return total / asked.samples


def test_a_criterion_can_be_made_of_losses() -> None:
    asked = probe()
    found = score(asked.model, asked.structure, data(), Ablation()).scores
    expected = torch.zeros_like(found)
    for batch in data():
        dense = losses_of(asked.model, batch).detach()
        for unit in range(6):
            smaller = cut(asked.model, asked.structure, torch.arange(6) != unit)
            expected[:, unit] += len(batch["x"]) * (losses_of(smaller, batch).detach() - dense).abs() / 10
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_criterion_may_differentiate_whatever_mode_it_is_measured_in(mode: Any) -> None:
    asked, batches = probe(), data()
    expected = score(asked.model, asked.structure, batches, Learned(steps=4)).scores
    with mode():
        found = score(asked.model, asked.structure, batches, Learned(steps=4)).scores
    assert torch.equal(found, expected)


# Gradients by weights.


def expected_gradients(model: nn.Module, batch: Batch) -> list[dict[str, Tensor]]:
    found = []
    for loss in losses_of(model, batch):
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        names = [name for name, _ in model.named_parameters()]
        zeros = [torch.zeros_like(parameter) for parameter in model.parameters()]
        pairs = zip(names, zeros, gradients, strict=True)
        found.append({name: zero if gradient is None else gradient for name, zero, gradient in pairs})
    return found


def test_weight_gradients_are_those_of_each_tasks_loss() -> None:
    asked = probe()
    before = snapshot(asked.model)
    for found, batch in zip(asked.weight_gradients(), data(), strict=True):
        assert found.weight == len(batch["x"])
        torch.testing.assert_close(list(found.tasks), expected_gradients(asked.model, batch))
    assert (asked.batches, asked.samples) == (3, 10)
    assert snapshot(asked.model) == before
    assert all(parameter.grad is None for parameter in asked.model.parameters())


def test_joint_weight_gradients_are_of_the_weighted_sum_of_losses() -> None:
    weights = (2.0, 0.5)
    tasks = tuple(replace(task, weight=weight) for task, weight in zip(LABELED, weights, strict=True))
    asked = probe(tasks)
    for found, batch in zip(asked.weight_gradients(joint=True), data(), strict=True):
        (joint,) = found.tasks
        left, right = expected_gradients(asked.model, batch)
        torch.testing.assert_close(joint, {name: 2 * left[name] + right[name] / 2 for name in left})


def test_weight_gradients_of_each_sample() -> None:
    asked = probe()
    samples = [
        {name: value[n : n + 1] for name, value in batch.items()}
        for batch in data()
        for n in range(len(batch["x"]))
    ]
    found = list(asked.weight_gradients(per_sample=True))
    assert [each.weight for each in found] == [1] * 10
    for each, sample in zip(found, samples, strict=True):
        torch.testing.assert_close(list(each.tasks), expected_gradients(asked.model, sample))


def test_frozen_weights_have_gradients_and_stay_frozen() -> None:
    asked = probe()
    asked.model.requires_grad_(False)
    (first, *_) = asked.weight_gradients()
    assert bool((first.tasks[0]["hidden.0.weight"] != 0).any())
    assert not any(parameter.requires_grad for parameter in asked.model.parameters())


def test_the_weights_that_read_a_unit_that_is_off_have_no_gradient() -> None:
    keep = torch.tensor([True, False, True, True, True, True])
    for found in probe(keep=keep).weight_gradients():
        gradient = found.tasks[0]["left.weight"]
        assert bool((gradient[:, 1] == 0).all())
        assert bool((gradient[:, 0] != 0).any())


def test_without_a_loss_the_gradient_is_of_a_random_projection_of_the_output() -> None:
    """That of each sample is sum(signs * output) / sqrt(3), and the mean over 4 samples is taken."""
    asked = probe(LABEL_FREE)
    (first, *_) = asked.weight_gradients()
    again = next(iter(asked.weight_gradients()))
    torch.testing.assert_close(first.tasks, again.tasks, rtol=0, atol=0)
    signs = torch.linalg.lstsq(
        asked.model.hidden(data()[0]["x"]).T, first.tasks[0]["left.weight"].T
    ).solution.detach()
    hidden = asked.model.hidden(data()[0]["x"])
    torch.testing.assert_close(first.tasks[0]["left.weight"], signs.T @ hidden)
    assert bool((first.tasks[1]["left.weight"] == 0).all())
    bias = first.tasks[0]["left.bias"] * 4 * 3**0.5
    torch.testing.assert_close(bias, bias.round())


def test_a_gradient_that_is_not_finite_is_named() -> None:
    bad = (Task("left", "left", lambda out, batch: (out - out.detach()).abs().sqrt().sum()),)
    with pytest.raises(GradientError, match=r"task 'left': the gradient of '.*' is NaN or infinite"):
        list(probe(bad).weight_gradients())


def test_a_loss_that_is_cut_off_from_its_output_is_named() -> None:
    cut_off = (Task("left", "left", lambda out, batch: out.detach().square().mean()),)
    with pytest.raises(TaskError, match="does not depend on its output through autograd"):
        list(probe(cut_off).weight_gradients())


def test_nothing_is_answered_without_data() -> None:
    model = network()
    structure: Structure = analyse(model, (data()[0]["x"],), LABELED)
    for answers in (Probe(model, structure).losses(), Probe(model, structure).weight_gradients()):
        with pytest.raises(BatchError, match="needs data"):
            list(answers)
