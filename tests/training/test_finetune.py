"""Fine-tuning: it learns, it reports, it repeats, and it refuses without a trace."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from disparse_structured.errors import BatchError, GradientError, TaskError, UnsupportedModelError
from disparse_structured.lab.scenes import HEADS, scene_loader
from disparse_structured.lab.scenes import tasks as scene_tasks
from disparse_structured.tasks import Task
from disparse_structured.training.finetune import FinetuneFacts, finetune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({"sum": nn.Linear(16, 1), "sign": nn.Linear(16, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = self.trunk(x)
        return {name: head(shared) for name, head in self.heads.items()}


def sum_loss(output: Tensor, batch: Any) -> Tensor:
    return (output - batch["image"].sum(1, keepdim=True)).square().mean()


def sign_loss(output: Tensor, batch: Any) -> Tensor:
    truth = (batch["image"][:, :1] > 0).to(output.dtype)
    return nn.functional.binary_cross_entropy_with_logits(output, truth)


TASKS = (Task("sum", "sum", sum_loss), Task("sign", "sign", sign_loss))


def data(batches: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.randn(32, 4, generator=generator)} for _ in range(batches)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_task_is_learned_and_reported() -> None:
    model, heard = Net(), []
    facts = finetune(
        model,
        TASKS,
        data(),
        epochs=12,
        lr=3e-2,
        on_epoch=lambda epoch, means: heard.append((epoch, dict(means))),
    )
    assert (facts.epochs, facts.steps, facts.lr, facts.seed) == (12, 96, 3e-2, 0)
    assert list(facts.losses) == ["sum", "sign"]
    for name, losses in facts.losses.items():
        assert len(losses) == 12
        assert losses[-1] < 0.5 * losses[0]
        assert [means[name] for _, means in heard] == list(losses)
    assert [epoch for epoch, _ in heard] == list(range(12))
    assert facts.seconds > 0


def test_the_reported_losses_are_means_over_batches_without_weights() -> None:
    batches = data(3)
    model = Net()
    model.trunk[3].p = 0.0
    expected = []
    for name, loss in (("sum", sum_loss), ("sign", sign_loss)):
        with torch.no_grad():
            values = [loss(copy.deepcopy(model).train()(batch["image"])[name], batch) for batch in batches]
        expected.append(torch.stack(values).mean().item())
    weighted = [Task("sum", "sum", sum_loss, weight=0.25), Task("sign", "sign", sign_loss, weight=4.0)]
    facts = finetune(model, weighted, batches, epochs=1, lr=1e-12)
    assert [losses[0] for losses in facts.losses.values()] == pytest.approx(expected, rel=1e-5)


def test_weights_scale_the_losses() -> None:
    def train(weight: float) -> FinetuneFacts:
        tasks = (Task("sum", "sum", sum_loss, weight=weight), Task("sign", "sign", sign_loss))
        return finetune(Net(), tasks, data(), epochs=4, lr=3e-2)

    assert train(0.0).losses["sum"][-1] > 2 * train(1.0).losses["sum"][-1]


def test_the_same_seed_repeats_the_run_and_leaves_the_generator_alone() -> None:
    results = []
    for outside, seed in enumerate((0, 0, 1)):
        model = Net()
        loader = DataLoader([batch["image"] for batch in data()], batch_size=None, shuffle=True)
        tasks = [
            Task("sum", "sum", lambda output, batch: (output - batch.sum(1, keepdim=True)).square().mean())
        ]
        torch.manual_seed(outside + 40)
        before = torch.get_rng_state()
        facts = finetune(model, tasks, loader, epochs=2, lr=1e-2, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        results.append((facts, state(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert not same(results[0][1], results[2][1])


def test_modes_are_restored_and_gradients_cleared() -> None:
    model = Net().eval()
    model.trunk[0].train()
    modes = [module.training for module in model.modules()]
    running = model.trunk[1].running_mean.clone()
    finetune(model, TASKS, data(2), epochs=1, lr=1e-3)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(running, model.trunk[1].running_mean), "batch norm was not in training mode"


def test_frozen_parameters_stay() -> None:
    model = Net()
    model.trunk.requires_grad_(False)
    before = model.trunk[0].weight.clone()
    finetune(model, TASKS, data(2), epochs=1, lr=1e-2)
    assert torch.equal(before, model.trunk[0].weight)


def test_the_models_own_type_is_used() -> None:
    model = Net().double()
    facts = finetune(model, TASKS, data(2), epochs=1, lr=1e-2)
    assert model.trunk[0].weight.dtype == torch.float64
    assert facts.steps == 2


def test_inputs_says_how_a_batch_becomes_arguments() -> None:
    batches = [{"left": batch["image"][:, :2], "right": batch["image"][:, 2:], **batch} for batch in data(2)]
    for batch in batches:
        batch["picture"] = batch.pop("image")
    tasks = [
        Task(
            "sum", "sum", lambda output, batch: (output - batch["picture"].sum(1, keepdim=True)).abs().mean()
        )
    ]
    with pytest.raises(BatchError, match="gets no 'x'"):
        finetune(Net(), tasks, batches, epochs=1, lr=1e-2)
    facts = finetune(
        Net(),
        tasks,
        batches,
        epochs=1,
        lr=1e-2,
        to_inputs=lambda batch: (torch.cat((batch["left"], batch["right"]), dim=1),),
    )
    assert facts.steps == 2


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(data(3))


def test_a_loader_without_a_length_is_counted() -> None:
    facts = finetune(Net(), TASKS, DataLoader(Stream(), batch_size=None), epochs=2, lr=1e-2)
    assert facts.steps == 6


def test_one_step_is_enough() -> None:
    model = Net()
    before = model.trunk[0].weight.detach().clone()
    assert finetune(model, TASKS, data(1), epochs=1, lr=1e-2).steps == 1
    # Adam's first step is as long as the learning rate, which is to be a fair share of its peak.
    assert (model.trunk[0].weight - before).abs().max() > 1e-3


def test_a_loader_may_yield_more_than_it_announced() -> None:
    class Modest(list[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 1

    assert finetune(Net(), TASKS, Modest(data(4)), epochs=2, lr=1e-2).steps == 8


def test_a_dense_model_learns_the_scenes() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
            self.heads = nn.ModuleDict({name: nn.Conv2d(12, c, 3, padding=1) for name, c in HEADS.items()})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            shared = self.trunk(x)
            return {name: head(shared) for name, head in self.heads.items()}

    loader = scene_loader(16, batch_size=4, size=(24, 32), shuffle=True)
    facts = finetune(Dense(), scene_tasks(), loader, epochs=6, lr=2e-2)
    for name, losses in facts.losses.items():
        assert losses[-1] < 0.9 * losses[0], name


def test_no_progress_bar_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    finetune(Net(), TASKS, data(2), epochs=1, lr=1e-2, progress=True)
    assert capfd.readouterr() == ("", "")


def nan_after(steps: int) -> Callable[[Tensor, Any], Tensor]:
    seen = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        seen.append(None)
        return output.mean() * (float("nan") if len(seen) > steps else 1.0)

    return loss


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        pytest.param(nan_after(3), TaskError, r"task 'sign': its loss is nan\. Lower", id="nan"),
        pytest.param(
            lambda output, batch: output.mean() / 0.0,
            TaskError,
            r"task 'sign': its loss is (-?inf|nan)",
            id="infinite",
        ),
        pytest.param(
            lambda output, batch: output,
            TaskError,
            r"task 'sign': its loss returned torch\.float32 \(32, 1\); expected .*one value.*\.mean\(\)",
            id="not-a-scalar",
        ),
        pytest.param(
            lambda output, batch: 1.5, TaskError, r"its loss returned float; expected", id="a-number"
        ),
        pytest.param(
            lambda output, batch: (output > 0).sum(),
            TaskError,
            r"returned torch\.int64 \(\)",
            id="an-integer",
        ),
        pytest.param(
            lambda output, batch: (output * 0).sqrt().sum(),
            GradientError,
            r"the gradient of \S+ is not finite, though the losses \{.*'sign'.*\} are",
            id="gradient",
        ),
    ],
)
def test_a_bad_loss_is_refused_and_the_model_is_as_before(
    loss: Callable[[Tensor, Any], Tensor], error: type[Exception], message: str
) -> None:
    model = Net().eval()
    before = state(model)
    with pytest.raises(error, match=message):
        finetune(model, [TASKS[0], Task("sign", "sign", loss)], data(), epochs=1, lr=1e-2)
    assert same(before, state(model))
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_buffers_that_a_module_replaces_come_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 1)
            self.register_buffer("calls", torch.zeros(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.line(x)

    model = Counting()
    with pytest.raises(TaskError, match="nan"):
        finetune(model, [Task("one", lambda output: output, nan_after(3))], data(), epochs=1, lr=1e-2)
    assert model.calls.item() == 0


def test_a_loss_apart_from_the_model_is_refused() -> None:
    with pytest.raises(TaskError, match=r"no loss of \['one'\] depends on a trainable parameter.*detach"):
        finetune(
            Net(),
            [Task("one", "sum", lambda output, batch: output.detach().mean())],
            data(),
            epochs=1,
            lr=1e-2,
        )


@pytest.mark.parametrize(
    ("tasks", "loader", "error", "message"),
    [
        pytest.param([], data(1), TaskError, "no task was given", id="no-task"),
        pytest.param(
            [TASKS[0], Task("sign", "sign")],
            data(1),
            TaskError,
            r"task 'sign' has no loss.*loss=",
            id="no-loss",
        ),
        pytest.param(
            [Task("sum", "total", sum_loss)], data(1), TaskError, "the selector 'total' misses", id="selector"
        ),
        pytest.param(TASKS, [], BatchError, "yields no batch", id="empty"),
        pytest.param(TASKS, DataLoader([], batch_size=2), BatchError, "yields no batch", id="empty-loader"),
        pytest.param(
            TASKS, iter(data(1)), BatchError, r"list_iterator, which can be read only once", id="iterator"
        ),
        pytest.param(TASKS, [{"image": torch.zeros(2, 9)}], BatchError, "Net refused a batch", id="refused"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tasks: Any, loader: Any, error: type[Exception], message: str
) -> None:
    model = Net()
    before = state(model)
    with pytest.raises(error, match=message):
        finetune(model, tasks, loader, epochs=1, lr=1e-2)
    assert same(before, state(model))


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"no parameter of Net requires a gradient.*requires_grad_"
    ):
        finetune(Net().requires_grad_(False), TASKS, data(1), epochs=1, lr=1e-2)


@pytest.mark.parametrize(
    ("epochs", "lr", "said"),
    [
        (0, 1e-3, "epochs=0 must be a whole number of at least 1"),
        (1, 0.0, "lr=0.0 must be a finite number above 0"),
    ],
)
def test_numbers_must_be_positive(epochs: int, lr: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        finetune(Net(), TASKS, data(1), epochs=epochs, lr=lr)
