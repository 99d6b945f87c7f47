"""Training: a config is carried out, a run resumes where it stopped, and invalid requests are refused."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.data import Batch, Loader, Samples
from disparse_structured.errors import BatchError, LoadError, TaskError
from disparse_structured.tasks import Task
from disparse_structured.training import Teacher, TrainingConfig, TrainingFacts, relative_error, train
from disparse_structured.training.distributed import share


class Net(nn.Module):
    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
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
LABEL_FREE = (Task("sum", "sum"), Task("sign", "sign"))


def data(batches: int = 6, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"image": torch.randn(16, 4, generator=generator)} for _ in range(batches)]


def noisy(batch: Batch) -> Batch:
    """Augmentation that draws from all three global generators."""
    shift = random.random() + np.random.rand()  # noqa: NPY002 (the global one on purpose)
    return {"image": batch["image"] + 0.1 * torch.randn_like(batch["image"]) + 0.1 * shift}


def shuffled() -> Loader:
    return Loader(
        Samples({"image": torch.cat([b["image"] for b in data()])}), 20, shuffle=True, augment=noisy
    )


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.rows = torch.cat([batch["image"] for batch in data()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.rows[index] + 0.1 * torch.randn(4)}


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    """Stands for the end of a process: raised by a callback, in the middle of a run."""


class Shrinker:
    """A callback with a state of its own: scales the weights by a factor that it draws and remembers."""

    def __init__(self, die_at: int | None = None) -> None:
        self.factor, self.calls, self.die_at = torch.ones(()), 0, die_at
        self.rates: list[float] = []

    def step(self, optimizer: Optimizer) -> None:
        self.calls += 1
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.factor = 0.9 * self.factor + 0.1 * (1 - 0.01 * torch.rand(()))
        with torch.no_grad():
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            assert parameters[0].grad is not None, "the step's gradients are gone"
            for parameter in parameters:
                parameter.mul_(self.factor)
        if self.calls == self.die_at:
            raise Killed

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "calls": self.calls, "rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.calls, self.rates = state["factor"], state["calls"], list(state["rates"])


def test_the_default_is_adamw_under_one_cycle() -> None:
    callback = Shrinker()
    facts = train(Net(), TASKS, data(6), TrainingConfig(2, 1e-2), callback=callback)
    assert (facts.epochs, facts.steps, facts.stopped_early, facts.validation) == (2, 12, False, ())
    assert max(callback.rates) == pytest.approx(1e-2, rel=0.1)
    assert callback.rates.index(max(callback.rates)) < 6
    assert callback.rates[-1] < 1e-5 < callback.rates[0]


def test_optimizer_and_schedule_can_be_replaced() -> None:
    given = []

    def constant(optimizer: Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        given.append(steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def sgd(parameters: list[nn.Parameter]) -> Optimizer:
        given.append(len(parameters))
        return torch.optim.SGD(parameters, lr=0.1)

    model, batch = nn.Linear(4, 1), data(1)
    task = Task("sum", lambda output: output, sum_loss)
    expected = copy.deepcopy(model)
    sum_loss(expected(batch[0]["image"]), batch[0]).backward()
    train(model, [task], batch, TrainingConfig(1, 1e-3, optimizer=sgd, schedule=constant))
    assert given == [2, 1]
    torch.testing.assert_close(model.weight, expected.weight - 0.1 * expected.weight.grad)


def test_weight_decay_reaches_the_optimizer() -> None:
    runs = [Net(), Net()]
    for model, decay in zip(runs, (0.0, 5.0), strict=True):
        train(model, TASKS, data(), TrainingConfig(2, 1e-2, weight_decay=decay))
    loose, tight = (model.trunk[0].weight.norm() for model in runs)
    assert tight < 0.8 * loose


def test_without_labels_the_student_comes_near_its_teacher() -> None:
    teacher, student = Net(1), Net(2)
    teacher.heads["sign"].train().bias.requires_grad_(False)
    modes, before = [module.training for module in teacher.modules()], state(teacher)
    config = TrainingConfig(20, 2e-2, teacher=Teacher(teacher))
    facts = train(student, LABEL_FREE, data(), config)
    assert facts.losses == facts.distillation
    for name, losses in facts.losses.items():
        assert losses[-1] < 0.2 * losses[0], name
    assert [module.training for module in teacher.modules()] == modes
    assert same(before, state(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_distillation_adds_to_the_tasks_own_losses() -> None:
    teacher = Net(1)
    heard: list[tuple[Tensor, Tensor]] = []

    def apart(student: Tensor, taught: Tensor) -> Tensor:
        heard.append((student, taught))
        return (student - taught).abs().mean()

    tasks = (TASKS[0], LABEL_FREE[1])
    own = train(Net(), [TASKS[0]], data(), TrainingConfig(1, 1e-9))
    config = TrainingConfig(1, 1e-9, teacher=Teacher(teacher, 3.0, {"sign": apart}))
    facts = train(Net(), tasks, data(), config, validation=data(1))
    assert list(facts.losses) == list(facts.distillation) == ["sum", "sign"]
    assert facts.losses["sum"] == pytest.approx(own.losses["sum"], rel=1e-5)
    assert facts.losses["sign"] == facts.distillation["sign"]
    assert not any(taught.requires_grad for _, taught in heard)
    net = Net().eval()
    train(net, [TASKS[0]], data(), TrainingConfig(1, 1e-9))
    with torch.no_grad():
        ours, theirs = net(data(1)[0]["image"]), teacher.eval()(data(1)[0]["image"])
    error = relative_error(ours["sum"], theirs["sum"]) + (ours["sign"] - theirs["sign"]).abs().mean()
    expected = sum_loss(ours["sum"], data(1)[0]) + 3.0 * error
    assert facts.validation == pytest.approx([expected.item()], rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-3.0, 3.0))
def test_the_relative_error_does_not_know_units(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    plain = relative_error(student, teacher)
    assert relative_error(scale * student + shift, scale * teacher + shift).item() == pytest.approx(
        plain.item()
    )


def test_the_relative_error_of_hand_worked_cases() -> None:
    teacher = torch.tensor([1.0, 3.0])
    assert relative_error(torch.tensor([2.0, 2.0]), teacher).item() == 1.0
    assert (
        relative_error({"a": teacher, "b": torch.tensor([3])}, {"a": teacher, "b": torch.tensor([4])}) == 0.0
    )
    # A constant teacher is measured by its own size, and one of zeros in plain units.
    assert relative_error(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 2.0])).item() == 0.25
    assert relative_error(torch.tensor([3.0, 3.0]), torch.zeros(2)).item() == 9.0


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param("cpu", "bf16-mixed", id="bf16-on-cpu"),
        pytest.param("cuda", "bf16-mixed", id="bf16-on-gpu", marks=CUDA),
        pytest.param("cuda", "16-mixed", id="16-on-gpu", marks=CUDA),
    ],
)
def test_mixed_precision_learns_on_weights_and_targets_in_full_precision(device: str, precision: Any) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            shared = self.trunk(x)
            seen.add(shared.dtype)
            return {name: head(shared) for name, head in self.heads.items()}

    def exact(output: Tensor, batch: Any) -> Tensor:
        assert output.dtype == batch["image"].dtype == torch.float32
        assert any(torch.equal(batch["image"].cpu(), one["image"]) for one in data())
        return sum_loss(output, batch)

    model = Watched().to(device)
    facts = train(
        model,
        [Task("sum", "sum", exact)],
        data(),
        TrainingConfig(6, 2e-2, precision=precision),
        validation=data(1),
    )
    assert seen == {torch.bfloat16 if precision == "bf16-mixed" else torch.float16}
    assert model.trunk[0].weight.dtype == torch.float32
    assert facts.losses["sum"][-1] < 0.5 * facts.losses["sum"][0]


def scripted(values: list[float]) -> Callable[[Tensor, Any], Tensor]:
    """A loss that in eval mode, that is without gradients, follows ``values``."""
    left = iter(values)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return output.square().mean() if output.requires_grad else output.new_tensor(next(left))

    return loss


def test_patience_stops_and_brings_the_best_weights_back() -> None:
    values = [3.0, 1.0, 2.0, 1.0, 0.5]
    weights: list[dict[str, Tensor]] = []
    model, callback = Net(), Shrinker()
    facts = train(
        model,
        [Task("one", "sum", scripted(values), weight=2.0)],
        data(),
        TrainingConfig(9, 1e-2, patience=2),
        callback=callback,
        validation=data(1),
        on_epoch=lambda epoch, means: weights.append(state(model)),
    )
    assert facts.validation == (6.0, 2.0, 4.0, 2.0)
    assert (facts.epochs, facts.steps, facts.stopped_early) == (4, 24, True)
    assert same(state(model), weights[1])
    assert not same(state(model), weights[3])
    assert callback.calls == 12, "the callback's state is not that of the best epoch"


def test_without_patience_validation_is_only_reported() -> None:
    models = [Net(), Net()]
    batches = data(3, seed=9)
    facts = [
        train(model, TASKS, data(), TrainingConfig(2, 1e-2), validation=held)
        for model, held in zip(models, (None, batches), strict=True)
    ]
    assert same(state(models[0]), state(models[1]))
    with torch.no_grad():
        models[1].eval()
        losses = [
            sum(task.loss(models[1](batch["image"])[task.name], batch) for task in TASKS) for batch in batches
        ]
    assert facts[1].validation[-1] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def run_in_pieces(
    path: Path, deaths: list[int], loader: Callable[[], Any], config: TrainingConfig, every: int
) -> tuple[TrainingFacts, dict[str, Tensor], Shrinker]:
    """Trains from nothing but the checkpoint after each death; ``path`` in a folder that is not there yet."""
    for death in [*deaths, None]:
        # Once there is a file, what the model is built with must not matter.
        model, callback = Net(seed=99) if path.exists() else Net(), Shrinker(die_at=death)
        torch.manual_seed(death or 0)  # the state of the generators outside must not matter
        try:
            facts = train(
                model,
                TASKS,
                loader(),
                config,
                callback=callback,
                validation=data(2, seed=5),
                checkpoint=path,
                checkpoint_every=every,
            )
        except Killed:
            continue
    return facts, state(model), callback


def rows(**options: Any) -> Callable[[], DataLoader[dict[str, Tensor]]]:
    return lambda: DataLoader(Rows(), batch_size=16, **options)


def own_generator() -> DataLoader[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(random.randrange(1000))
    return DataLoader(Rows(), batch_size=16, sampler=RandomSampler(Rows(), generator=generator))


@pytest.mark.parametrize(
    ("loader", "deaths", "every"),
    [
        pytest.param(shuffled, [1, 4, 5, 8, 9, 14], 1, id="augmenting"),
        pytest.param(shuffled, [3, 7, 13], 2, id="between-two-writes"),
        pytest.param(shuffled, [11], 100, id="epoch-ends-only"),
        pytest.param(rows(shuffle=True), [5, 8], 3, id="dataloader"),
        pytest.param(own_generator, [5, 8], 3, id="own-generator"),
        pytest.param(rows(shuffle=True, num_workers=1, persistent_workers=True), [8], 3, id="workers"),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(
    tmp_path: Path, loader: Callable[[], Any], deaths: list[int], every: int
) -> None:
    config = TrainingConfig(3, 2e-2, patience=2, seed=3)
    facts, weights, callback = run_in_pieces(tmp_path / "a" / "run.pt", [], loader, config, every)
    again, resumed, other = run_in_pieces(tmp_path / "b" / "run.pt", deaths, loader, config, every)
    assert facts == again
    assert same(weights, resumed)
    assert (callback.calls, callback.rates) == (other.calls, other.rates)
    assert torch.equal(callback.factor, other.factor)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["run.pt"]


def test_a_finished_run_gives_its_result_at_once(tmp_path: Path) -> None:
    class Unread(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the data are read again")

    first, second = Net(), Net(seed=0)
    facts = train(first, TASKS, data(), TrainingConfig(2, 1e-2), checkpoint=tmp_path / "run.pt")
    again = train(second, TASKS, Unread(data()), TrainingConfig(2, 1e-2), checkpoint=tmp_path / "run.pt")
    assert facts == again
    assert again.seconds > 0
    assert same(state(first), state(second))


def test_buffers_that_no_state_dict_holds_are_resumed(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 1)
            self.register_buffer("calls", torch.zeros(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.line(x)

    task = Task("sum", lambda output: output, sum_loss)
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 2}
    with pytest.raises(Killed):
        train(Counting(), [task], data(), TrainingConfig(1, 1e-2), callback=Shrinker(die_at=5), **options)
    model = Counting()
    train(model, [task], data(), TrainingConfig(1, 1e-2), callback=Shrinker(), **options)
    assert model.calls.item() == 6


def test_an_error_leaves_model_callback_and_generators_as_they_were() -> None:
    model, callback = Net().eval(), Shrinker(die_at=4)
    loader = own_generator()
    before, inner = state(model), loader.sampler.generator.get_state()
    outside = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with pytest.raises(Killed):
        train(model, TASKS, loader, TrainingConfig(1, 1e-2), callback=callback)
    assert same(before, state(model))
    assert (callback.calls, callback.rates) == (0, [])
    assert torch.equal(inner, loader.sampler.generator.get_state())
    assert outside[0] == random.getstate()
    assert torch.equal(outside[1], torch.get_rng_state())
    assert outside[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert not any(module.training for module in model.modules())


def test_samplers_are_told_the_epoch() -> None:
    class Told(RandomSampler):
        heard: list[int]

        def set_epoch(self, epoch: int) -> None:
            self.heard.append(epoch)

    sampler = Told(Rows())
    sampler.heard = []
    train(Net(), TASKS, DataLoader(Rows(), batch_size=16, sampler=sampler), TrainingConfig(3, 1e-2))
    assert sampler.heard == [0, 1, 2]


class Pair(NamedTuple):
    image: Tensor
    names: list[str]


@settings(max_examples=50, deadline=None)
@given(samples=st.integers(1, 9), count=st.integers(2, 5))
def test_the_shares_of_the_processes_make_up_the_batch(samples: int, count: int) -> None:
    image = torch.arange(samples * 2.0).reshape(samples, 2)
    names = [f"picture {index}" for index in range(samples)]
    batch = [image, {"depth": image + 1, "scale": torch.tensor(3.0), "more": Pair(image, names)}]
    parts = [share(batch, nn.Linear(2, 1), None, rank, count) for rank in range(count)]
    assert sum(fraction for _, fraction in parts) == pytest.approx(1.0)
    assert all(len(part[0]) == 1 for part, fraction in parts if not fraction)
    real = [part for part, fraction in parts if fraction]
    assert torch.equal(torch.cat([part[0] for part in real]), image)
    assert torch.equal(torch.cat([part[1]["depth"] for part in real]), image + 1)
    assert torch.equal(torch.cat([part[1]["more"].image for part in real]), image)
    assert [name for part in real for name in part[1]["more"].names] == names
    assert all(part[1]["scale"] == 3.0 for part in real)
    sizes = [len(part[0]) for part in real]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_has_the_batch_as_it_is() -> None:
    batch = object()
    assert share(batch, nn.Linear(2, 1), None, 0, 1) == (batch, 1.0)


def test_a_batch_without_samples_cannot_be_shared() -> None:
    with pytest.raises(BatchError, match=r"no tensor with samples.*Train with one process"):
        share(torch.tensor(1.0), nn.Linear(2, 1), None, 0, 2)


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.heads["sum"] = nn.Linear(16, 1, bias=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"config": TrainingConfig(2, 2e-2)}, r"lr is 0\.01 there and 0\.02 here", id="lr"),
        pytest.param({"config": TrainingConfig(2, 1e-2, seed=1)}, "seed is 0 there and 1 here", id="seed"),
        pytest.param(
            {"config": TrainingConfig(2, 1e-2, optimizer=torch.optim.SGD)},
            "optimizer is the default there and SGD here",
            id="optimizer",
        ),
        pytest.param({"tasks": TASKS[:1]}, r"tasks is .*'sign'.* there and .*'sum'.* here", id="tasks"),
        pytest.param({"loader": data(5)}, "number of batches is 6 there and 5 here", id="batches"),
        pytest.param({"validation": data(1)}, "validation is False there and True here", id="validation"),
        pytest.param({"callback": Shrinker()}, "callback is False there and True here", id="callback"),
        pytest.param(
            {"model": Wide()},
            r"parameter heads\.sum\.bias is \(\(1,\), True\) there and absent here",
            id="parameter",
        ),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.pt"
    usual = {"model": Net(), "tasks": TASKS, "loader": data(), "config": TrainingConfig(2, 1e-2)}
    train(**usual, checkpoint=path)
    asked = {**usual, "model": Net(), **change}
    before = state(asked["model"])
    with pytest.raises(LoadError, match=rf"run\.pt belongs to another run: {message}.*remove the file"):
        train(**asked, checkpoint=path)
    assert same(before, state(asked["model"]))


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x80\x02J", None], ids=["empty", "nonsense", "half a pickle", "other"]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.pt"
    if content is None:
        torch.save({"weights": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=r"run\.pt is not a checkpoint of a training run"):
        train(Net(), TASKS, data(), TrainingConfig(1, 1e-2), checkpoint=path)


def test_reading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"format": 1, "identity": {}, "content": Trap()}, tmp_path / "run.pt")
    with pytest.raises(LoadError, match="is not a checkpoint"):
        train(Net(), TASKS, data(), TrainingConfig(1, 1e-2), checkpoint=tmp_path / "run.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_state_that_could_not_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    class Opaque(Shrinker):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "self": np.random.default_rng(0)}

    with pytest.raises(TypeError, match=r"callback, the optimizer or the schedule holds more than"):
        train(
            Net(), TASKS, data(), TrainingConfig(1, 1e-2), callback=Opaque(), checkpoint=tmp_path / "run.pt",
            checkpoint_every=1,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_became_shorter_is_refused(tmp_path: Path) -> None:
    class Liar(list[Any]):
        def __len__(self) -> int:
            return 6

    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(Killed):
        train(Net(), TASKS, Liar(data()), TrainingConfig(1, 1e-2), callback=Shrinker(die_at=5), **options)
    with pytest.raises(
        BatchError, match="yields 2 batches in epoch 0, but the checkpoint was written after 4"
    ):
        train(Net(), TASKS, Liar(data(2)), TrainingConfig(1, 1e-2), callback=Shrinker(), **options)


def test_odd_teachers_are_refused() -> None:
    model = Net()
    with pytest.raises(ValueError, match="the teacher is the model itself"):
        train(model, TASKS, data(), TrainingConfig(1, 1e-2, teacher=Teacher(model)))
    losses = {"depth": relative_error}
    with pytest.raises(ValueError, match=r"the teacher has a loss for 'depth'.*\['sum', 'sign'\]"):
        train(model, TASKS, data(), TrainingConfig(1, 1e-2, teacher=Teacher(Net(), losses=losses)))
    other = Net(1)
    other.heads["sign"] = nn.Linear(16, 2)
    with pytest.raises(TaskError, match=r"task 'sign': student and teacher .*\(16, 1\).*\(16, 2\).*losses="):
        train(model, TASKS, data(), TrainingConfig(1, 1e-2, teacher=Teacher(other)))
    with pytest.raises(ValueError, match="weight=0 must be a finite number above 0"):
        Teacher(other, 0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be a whole number"),
        ({"lr": -1.0}, "lr=-1.0 must be a finite number above 0"),
        ({"lr": float("nan")}, "lr=nan must be a finite number above 0"),
        ({"weight_decay": -0.1}, "must not be negative"),
        ({"patience": 0}, "patience=0 must be a whole number of at least 1"),
        ({"precision": "16"}, "must be one of 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_a_config_refuses_bad_numbers(ask: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainingConfig(1, 1e-3), **ask)


def test_a_terminal_sees_each_tasks_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.openpty()
    seen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the end, on Linux
            while chunk := os.read(reading, 4096):
                seen.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        facts = train(Net(), TASKS, data(), TrainingConfig(2, 1e-2), progress=True)
        monkeypatch.undo()
    reader.join()
    os.close(reading)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", bytes(seen)).decode()
    last = "  ".join(f"{name} {losses[-1]:.4g}" for name, losses in facts.losses.items())
    assert "epoch 2/2" in text
    assert "12/12" in text
    assert last in text


def test_bad_asks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience=2 needs validation data\. Pass validation="):
        train(Net(), TASKS, data(), TrainingConfig(1, 1e-2, patience=2))
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        train(
            Net(), TASKS, data(), TrainingConfig(1, 1e-2), checkpoint=tmp_path / "run.pt", checkpoint_every=0
        )
    with pytest.raises(BatchError, match="read only once"):
        train(Net(), TASKS, data(), TrainingConfig(1, 1e-2), validation=iter(data()))
    with pytest.raises(TaskError, match=r"task 'sum' has no loss.*teacher"):
        train(Net(), LABEL_FREE, data(), TrainingConfig(1, 1e-2))
