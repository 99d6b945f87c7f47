"""Distillation after the refit: what it brings, what it leaves alone, and that it can be killed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import BatchError, LoadError, OptionError, UnsupportedModelError
from disparse_structured.recovery import Distillation, Student, Subject
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.report.schemas import check_document

METHOD = ds.DiSparse()


class Net(nn.Module):
    """Two tasks on vectors, with a batch norm."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 24, dtype=dtype), nn.BatchNorm1d(24, dtype=dtype), nn.Tanh())
        self.near, self.far = nn.Linear(24, 3, dtype=dtype), nn.Linear(24, 1, dtype=dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"near": self.near(x), "far": self.far(x).tanh()}


class Pictures(nn.Module):
    """One task on images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.first(image).tanh())


class Tokens(nn.Module):
    """Words, and a table that all examples of a batch share."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.wide, self.narrow = nn.Linear(12, 24), nn.Linear(24, 8)

    def forward(self, table: Tensor, ids: Tensor) -> Tensor:
        return self.narrow(self.wide(self.words(ids)).tanh()) @ table.T


def prune(model: nn.Module, data: Any, recover: Any, **options: Any) -> Any:
    given = {"macs": 0.5, "method": METHOD, "verify": False, **options}
    return ds.prune(model, data, recover=recover, **given)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy(force=True).tobytes() for name, value in model.state_dict().items()}


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(96, 6)


@pytest.fixture
def model() -> nn.Module:
    return Net().eval()


def test_every_task_comes_closer_and_the_report_says_so(
    model: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    result = prune(model, inputs, Distillation(torch.randn(256, 6), steps=200, lr=0.03))

    deviation, recovery = result.report.deviation, result.report.recovery
    assert all(deviation.final[task] < deviation.refit[task] <= deviation.cut[task] for task in deviation.cut)
    assert all(recovery.after[task] < recovery.before[task] for task in recovery.before)
    assert (recovery.samples, recovery.checked, recovery.steps, recovery.taken) == (256, 32, 200, 200)
    assert (recovery.looks[0], recovery.looks[-1]) == (0, 200)
    assert recovery.kept in recovery.looks
    shown = str(result.report)
    assert "distilled on 256 inputs" in shown
    assert ["as", "cut", "refit", "distilled"] in [line.split()[3:] for line in shown.splitlines()]
    check_document(json.loads(result.report.to_json()), "report", "the report")

    result.save(tmp_path / "small")
    result.to_html(tmp_path / "page.html")
    assert "distilled" in (tmp_path / "page.html").read_text(encoding="utf-8")
    loaded = ds.load(tmp_path / "small", Net)
    assert torch.equal(loaded(inputs)["near"], result.model.eval()(inputs)["near"])
    facts = result.export(tmp_path / "model.onnx")
    assert {parity.task for parity in facts.parity} == {"near", "far"}


def test_the_reported_deviation_is_that_of_the_result(model: nn.Module, inputs: Tensor) -> None:
    seen: list[tuple[Any, ...]] = []

    class Watching:
        def prepare(self, subject: Subject) -> Any:
            seen.extend(subject.aside)
            return Distillation(inputs, steps=10).prepare(subject)

    result = prune(model, inputs, Watching())

    (x,) = (torch.cat(found) for found in zip(*seen, strict=True))
    with torch.no_grad():
        wanted, found = model(x), result.model(x)
    for task, value in result.report.deviation.final.items():
        off = ((found[task] - wanted[task]).double().norm() / wanted[task].double().norm()).item()
        assert value == pytest.approx(off, rel=1e-5)


def test_nothing_is_learnt_from_what_the_report_is_measured_on(model: nn.Module, inputs: Tensor) -> None:
    result = prune(model, inputs, Distillation(inputs, steps=2), samples=64)

    assert result.report.recovery.samples == len(inputs) - result.report.deviation.checked


def test_the_same_arguments_give_the_same_bytes(model: nn.Module, inputs: Tensor) -> None:
    results = [prune(model, inputs, Distillation(inputs, steps=30)) for _ in range(2)]

    assert bits(results[0].model) == bits(results[1].model)
    assert results[0].report.to_json() == results[1].report.to_json()
    other = prune(model, inputs, Distillation(inputs, steps=30), seed=1)
    assert bits(other.model) != bits(results[0].model)


def test_the_dense_network_and_the_random_states_are_as_before(model: nn.Module, inputs: Tensor) -> None:
    model.train()
    model.near.eval()
    model.near.weight.grad = torch.ones_like(model.near.weight)
    before, objects = bits(model), {name: id(value) for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    result = prune(model, inputs, Distillation(inputs, steps=20))

    assert bits(model) == before
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.near.weight.grad, torch.ones_like(model.near.weight))
    assert all(value.grad is None for name, value in model.named_parameters() if name != "near.weight")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.grad is None for value in result.model.parameters())


class Stopped(BaseException):
    """Stands for Ctrl-C."""


class Interrupted(nn.Module):
    """Stops at the first forward pass with a gradient, that is, while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.armed = Net(), False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.seen = x
        if self.armed and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise Stopped
        return self.net(x)


def test_the_dense_network_is_as_before_if_the_distillation_is_interrupted(inputs: Tensor) -> None:
    model = Interrupted().eval()

    class Arming:
        def prepare(self, subject: Subject) -> Any:
            train = Distillation(inputs, steps=5).prepare(subject)

            def recover(student: Student) -> RecoveryFacts:
                student.model.armed = True
                return train(student)

            return recover

    before = bits(model)
    with pytest.raises(Stopped):
        prune(model, inputs, Arming())
    assert bits(model) == before
    assert not hasattr(model, "seen")
    assert not model.armed
    assert all(value.grad is None for value in model.parameters())


def test_frozen_parameters_and_statistics_stay(model: nn.Module, inputs: Tensor) -> None:
    model.far.requires_grad_(False)
    plain = prune(model, inputs, None)
    result = prune(model, inputs, Distillation(inputs, steps=20, patience=None))

    changed = {name for name, value in bits(plain.model).items() if bits(result.model)[name] != value}
    assert changed
    assert not {name for name in changed if name.startswith("far") or "running" in name}
    assert not result.model.far.weight.requires_grad


def test_a_network_without_anything_to_train_is_refused_before_the_work(inputs: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="requires_grad_"):
        prune(Net().eval().requires_grad_(False), inputs, Distillation(inputs))


def test_what_cannot_be_trained_is_refused(model: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode(), pytest.raises(OptionError, match="outside of it"):
        Distillation(inputs).prepare(Subject(model, (ds.Task("near"),), (inputs[:2],)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_distilled_in_their_own(dtype: torch.dtype, inputs: Tensor) -> None:
    result = prune(Net(dtype).eval(), inputs, Distillation(inputs, steps=60, lr=0.03, patience=None))

    recovery = result.report.recovery
    assert {value.dtype for value in result.model.parameters()} == {dtype}
    assert math.fsum(recovery.after.values()) < math.fsum(recovery.before.values())


def test_a_pruned_graph_is_distilled(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    structure = ds.analyse(model, inputs[:2], form="graph")
    result = prune(model, inputs, Distillation(torch.randn(256, 6), steps=100), structure=structure)

    assert result.report.recovery.kept > 0
    assert all(
        result.report.deviation.final[task] < found for task, found in result.report.deviation.refit.items()
    )
    result.save(tmp_path)
    assert torch.equal(ds.load(tmp_path, Net)(inputs)["far"], result.model(inputs)["far"])


def test_images_are_varied_and_other_inputs_are_not(inputs: Tensor) -> None:
    images = torch.rand(40, 3, 16, 16)
    pictures = Pictures().eval()

    assert "zoomed" in prune(pictures, images, Distillation(images, steps=2)).report.recovery.views
    assert not prune(pictures, images, Distillation(images, steps=2, vary=False)).report.recovery.views
    assert not prune(Net().eval(), inputs, Distillation(inputs, steps=2)).report.recovery.views
    with pytest.raises(OptionError, match="needs images"):
        prune(Net().eval(), inputs, Distillation(inputs, vary=True))


def test_inputs_by_name_and_shared_ones() -> None:
    data = {"table": torch.rand(5, 8), "ids": torch.randint(0, 20, (48, 7))}
    more = {"table": data["table"], "ids": torch.randint(0, 20, (256, 7))}
    result = prune(Tokens().eval(), data, Distillation(more, steps=100), macs=0.6)

    assert result.report.shared_inputs == ("table",)
    assert result.report.recovery.kept > 0


def test_loaders_are_read_as_far_as_needed(model: nn.Module, inputs: Tensor) -> None:
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(16)]
    result = prune(model, batches, Distillation(iter(batches), steps=2, samples=40), samples=16)

    assert result.report.recovery.samples == 40


def test_a_run_that_diverges_keeps_the_refitted_weights(model: nn.Module, inputs: Tensor) -> None:
    plain = prune(model, inputs, None)
    result = prune(model, inputs, Distillation(inputs, steps=50, lr=1e30))

    assert bits(result.model) == bits(plain.model)
    assert result.report.recovery.kept == 0
    assert result.report.deviation.final == pytest.approx(result.report.deviation.refit, rel=1e-4)
    assert result.report.recovery.stopped


def test_a_tolerance_holds_after_the_distillation(model: nn.Module, inputs: Tensor) -> None:
    limits = {"near": 0.9, "far": 0.9}
    result = prune(model, inputs, Distillation(inputs, steps=20), tolerance=limits)

    assert all(result.report.deviation.final[task] <= limit for task, limit in limits.items())


def test_minutes_become_steps_that_can_be_repeated(model: nn.Module, inputs: Tensor) -> None:
    timed = prune(model, inputs, Distillation(inputs, minutes=0.005))
    steps = timed.report.recovery.steps
    again = prune(model, inputs, Distillation(inputs, steps=steps))

    assert steps >= 1
    assert bits(timed.model) == bits(again.model)


def test_another_recovery_is_one_object(model: nn.Module, inputs: Tensor) -> None:
    class Halved:
        def prepare(self, subject: Subject) -> Any:
            def recover(student: Student) -> RecoveryFacts:
                with torch.no_grad():
                    for value in student.model.parameters():
                        value.mul_(0.5)
                return RecoveryFacts("Halved()", 0, 0, "", 1, 1, 1, "", {}, {}, (), {})

            return recover

    result = prune(model, inputs, Halved())

    assert result.report.recovery.method == "Halved()"
    assert all(value > 0.3 for value in result.report.deviation.final.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 10, "minutes": 1.0}, "Leave one of them out"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"minutes": -1.0}, "minutes=-1.0 must be a number above 0"),
        ({"lr": math.nan}, "lr=nan must be a number above 0"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Distillation(torch.rand(8, 6), **given)


def test_what_is_no_recovery_is_refused(model: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(OptionError, match="recover must be an object, got the class Distillation"):
        prune(model, inputs, Distillation)
    with pytest.raises(OptionError, match="recover must be a recovery"):
        prune(model, inputs, inputs)


@pytest.mark.parametrize("given", [torch.randn(1, 6), torch.randn(8, 5), 3])
def test_inputs_that_cannot_be_learnt_from_are_refused_before_the_work(
    model: nn.Module, inputs: Tensor, given: Any
) -> None:
    with pytest.raises(BatchError):
        prune(model, inputs, Distillation(given, steps=2))


# Killed and resumed.

SCRIPT = '''
import os, signal, sys, threading, time
from pathlib import Path

import torch

import disparse_structured as ds
from tests.recovery.test_distillation import Net, bits

torch.set_num_threads(1)
torch.manual_seed(0)
model, inputs = Net().eval(), torch.randn(96, 6)
folder, kill = Path(sys.argv[1]), sys.argv[2] == "kill"


def watch():
    """Ends the process as soon as a state with steps is in the file."""
    file = folder / "distillation.pt"
    while True:
        time.sleep(0.001)
        try:
            state = torch.load(file, weights_only=True)["content"]["state"]
        except (OSError, RuntimeError, EOFError):
            continue
        if state["step"]:
            os.kill(os.getpid(), signal.SIGKILL)


if kill:
    threading.Thread(target=watch, daemon=True).start()
recover = ds.recovery.Distillation(inputs, steps=400, patience=None, folder=folder)
result = ds.prune(model, inputs, macs=0.5, method=ds.DiSparse(), verify=False, recover=recover)
torch.save(result.model.state_dict(), folder / "result.pt")
'''


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]

    def run(folder: Path, how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, str(folder), how]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=root, env=environment, check=False).returncode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(killed, "kill") == -9
    state = torch.load(killed / "distillation.pt", weights_only=True)["content"]["state"]
    assert 0 < state["step"] < 400
    assert not state["finished"]
    assert run(killed, "go on") == 0

    torch.manual_seed(0)
    model, inputs = Net().eval(), torch.randn(96, 6)
    recover = Distillation(inputs, steps=400, patience=None, folder=whole)
    result = prune(model, inputs, recover)
    found = torch.load(killed / "result.pt", weights_only=True)
    assert {name: value.numpy().tobytes() for name, value in found.items()} == bits(result.model)

    again = prune(model, inputs, recover)  # a finished run is not trained again
    assert bits(again.model) == bits(result.model)
    assert again.report.to_json() == result.report.to_json()


def test_the_folder_of_another_run_is_refused(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    prune(model, inputs, Distillation(inputs, steps=2, folder=tmp_path))

    with pytest.raises(LoadError, match="belongs to another run: settings is"):
        prune(model, inputs, Distillation(inputs, steps=3, folder=tmp_path))
    with pytest.raises(LoadError, match="inputs is"):
        prune(model, inputs, Distillation(inputs + 1, steps=2, folder=tmp_path))
    with pytest.raises(LoadError, match="dense network is"):
        prune(Net().eval(), inputs, Distillation(inputs, steps=2, folder=tmp_path))
    with pytest.raises(LoadError, match="another pruned network"):
        prune(model, inputs, Distillation(inputs, steps=2, folder=tmp_path), macs=0.7)
    (tmp_path / "distillation.pt").write_text("damaged")
    with pytest.raises(LoadError, match="is not a checkpoint"):
        prune(model, inputs, Distillation(inputs, steps=2, folder=tmp_path))
