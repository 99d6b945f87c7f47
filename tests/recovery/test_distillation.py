"""Distillation after the refit: what it improves, what it leaves unchanged, and that killed runs resume."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import (
    BatchError,
    DisparseWarning,
    LoadError,
    OptionError,
    UnsupportedModelError,
)
from disparse_structured.recovery import Distillation, Student, Subject
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.report.schemas import check_document
from tests.support.processes import finished, started, together

METHOD = ds.DiSparse()


class Net(nn.Module):
    """Two tasks on vectors, with a batch norm."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh())
        self.near, self.far = nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"near": self.near(x), "far": self.far(x).tanh()}


class Pictures(nn.Module):
    """One task on images."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"mask": self.last(self.first(image).tanh())}


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


def distill(
    recover: Distillation, dense: nn.Module, student: nn.Module, example: Tensor, seed: int = 0
) -> RecoveryFacts:
    """Trains ``student``, which stands for a pruned network, in place."""
    with torch.no_grad():
        tasks = tuple(ds.Task(name) for name in dense.eval()(example[:2]))
    subject = Subject(dense, tasks, (example[:2],), seed=seed)
    return recover.prepare(subject)(Student(student.eval(), tasks))


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
    assert (recovery.measured[0], recovery.measured[-1]) == (0, 200)
    assert recovery.kept in recovery.measured
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


def test_a_pruned_graph_is_distilled(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    structure = ds.analyse(model, inputs[:2], form="graph")
    result = prune(model, inputs[:32], Distillation(torch.randn(256, 6), steps=100), structure=structure)

    assert result.report.recovery.kept > 0
    assert all(
        result.report.deviation.final[task] < found for task, found in result.report.deviation.refit.items()
    )
    result.save(tmp_path)
    assert torch.equal(ds.load(tmp_path, Net)(inputs[:2])["far"], result.model(inputs[:2])["far"])


def test_inputs_by_name_and_shared_ones() -> None:
    data = {"table": torch.rand(5, 8), "ids": torch.randint(0, 20, (48, 7))}
    more = {"table": data["table"], "ids": torch.randint(0, 20, (256, 7))}
    result = prune(Tokens().eval(), data, Distillation(more, steps=100), macs=0.6)

    assert result.report.shared_inputs == ("table",)
    assert result.report.recovery.kept > 0


def test_a_tolerance_holds_after_the_distillation(model: nn.Module, inputs: Tensor) -> None:
    limits = {"near": 0.9, "far": 0.9}
    result = prune(model, inputs, Distillation(inputs, steps=20), tolerance=limits)

    assert all(result.report.deviation.final[task] <= limit for task, limit in limits.items())


class Zeros:
    """Makes every parameter zero, so that every output moves by 100 %."""

    def prepare(self, subject: Subject) -> Any:
        def recover(student: Student) -> RecoveryFacts:
            with torch.no_grad():
                for value in student.model.parameters():
                    value.zero_()
            return RecoveryFacts("Zeros()", 0, 0, "", 1, 1, 1, "", {}, {}, (), {})

        return recover


def test_a_recovery_that_passes_a_tolerance_is_undone(model: nn.Module, inputs: Tensor) -> None:
    limits = {"near": 0.9, "far": 0.9}
    result = prune(model, inputs, Zeros(), tolerance=limits)
    refitted = prune(model, inputs, None, tolerance=limits)

    assert bits(result.model) == bits(refitted.model)
    assert result.report.deviation.final == refitted.report.deviation.final
    assert result.report.recovery.kept == 0
    assert "would have exceeded its tolerance" in result.report.recovery.stopped


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


class Failing:
    """Changes the weights, and then fails."""

    def prepare(self, subject: Subject) -> Any:
        def recover(student: Student) -> RecoveryFacts:
            with torch.no_grad():
                for value in student.model.parameters():
                    value.mul_(0.5)
            raise RuntimeError("out of memory")

        return recover


def test_a_recovery_that_fails_does_not_lose_what_was_pruned(
    model: nn.Module, inputs: Tensor, tmp_path: Path
) -> None:
    with pytest.warns(DisparseWarning, match="Failing failed, so .* RuntimeError: out of memory"):
        result = prune(model, inputs, Failing())
    refitted = prune(model, inputs, None)

    assert bits(result.model) == bits(refitted.model)
    assert result.report.deviation == refitted.report.deviation
    assert "NOT DISTILLED: RuntimeError: out of memory" in str(result.report)
    result.save(tmp_path)
    ds.load(tmp_path, Net)
    result.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not distilled: RuntimeError: out of memory" in page
    assert "after distillation" not in page


def test_the_deviation_of_a_graph_with_a_large_fixed_batch_is_measured(
    model: nn.Module, inputs: Tensor
) -> None:
    structure = ds.analyse(model, inputs[:16], form="graph")
    recover = Distillation(torch.randn(160, 6), steps=2)
    result = prune(model, inputs[:64], recover, structure=structure)

    assert (result.model.any_batch, result.model.examples) == (False, 16)
    for task, value in result.report.deviation.final.items():
        assert value == pytest.approx(result.report.deviation.refit[task], rel=0.2)


def test_too_few_inputs_for_a_fixed_batch_do_not_lose_what_was_pruned(
    model: nn.Module, inputs: Tensor
) -> None:
    structure = ds.analyse(model, inputs[:2], form="graph")
    with pytest.warns(DisparseWarning, match="only takes batches of 2"):
        result = prune(model, inputs, Distillation(torch.randn(2, 6)), structure=structure)

    assert result.report.recovery.steps == 0


def test_a_result_whose_distillation_overflowed_is_loaded(inputs: Tensor, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = (nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        return nn.Sequential(*layers).eval()

    result = prune(build(), inputs, Distillation(inputs, steps=20, lr=1e19))

    assert not all(map(math.isfinite, result.report.recovery.course["output"]))
    result.save(tmp_path)
    assert torch.equal(ds.load(tmp_path, build)(inputs), result.model(inputs))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 10, "minutes": 1.0}, "Leave one of them out"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"minutes": -1.0}, "minutes=-1.0 must be a finite number above 0"),
        ({"lr": math.nan}, "lr=nan must be a finite number above 0"),
        ({"patience": 0}, "patience=0"),
        ({"lr": "fast"}, "lr='fast' must be a finite number above 0"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"samples": 1}, "samples=1 must be a whole number of at least 2"),
        ({"folder": 3}, "folder must be a path, got 3"),
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Distillation(torch.rand(8, 6), **given)


def test_other_objects_than_recoveries_are_refused(model: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(OptionError, match="recover must be an object, got the class Distillation"):
        prune(model, inputs, Distillation)
    with pytest.raises(OptionError, match="recover must be a recovery"):
        prune(model, inputs, inputs)


# On networks that stand for pruned ones.


def test_the_same_arguments_give_the_same_bytes(model: nn.Module, inputs: Tensor) -> None:
    start = Net(8).state_dict()

    def trained(seed: int) -> dict[str, bytes]:
        student = Net(8)
        student.load_state_dict(start)
        distill(Distillation(inputs, steps=30), model, student, inputs, seed)
        return bits(student)

    assert trained(0) == trained(0)
    assert trained(1) != trained(0)


def test_inputs_that_were_set_aside_are_left_out(model: nn.Module, inputs: Tensor) -> None:
    tasks = (ds.Task("near"), ds.Task("far"))
    subject = Subject(model, tasks, (inputs[:2],), aside=((inputs[8:16],),))
    facts = Distillation(inputs, steps=1).prepare(subject)(Student(Net(8).eval(), tasks))

    assert (facts.samples, facts.checked) == (88, 11)


def test_frozen_parameters_and_statistics_do_not_change(model: nn.Module, inputs: Tensor) -> None:
    student = Net(8)
    student.far.requires_grad_(False)
    before = bits(student)
    facts = distill(Distillation(inputs, steps=20), model, student, inputs)

    changed = {name.partition(".")[0] for name, value in bits(student).items() if before[name] != value}
    assert facts.kept > 0
    assert changed == {"trunk", "near"}
    assert all(before[name] == value for name, value in bits(student).items() if "running" in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_distilled_in_their_own(dtype: torch.dtype, inputs: Tensor) -> None:
    student = Net(8).to(dtype)
    facts = distill(Distillation(inputs, steps=60), Net().to(dtype), student, inputs.to(dtype))

    assert {value.dtype for value in student.parameters()} == {dtype}
    assert facts.kept > 0


def test_images_are_varied_if_asked(model: nn.Module, inputs: Tensor) -> None:
    images = torch.rand(40, 3, 16, 16)

    varied = distill(Distillation(images, steps=40, vary=True), Pictures(), Pictures(4), images)
    assert "zoomed" in varied.views
    assert varied.after["mask"] < varied.before["mask"]
    assert not distill(Distillation(images, steps=2), Pictures(), Pictures(4), images).views
    with pytest.raises(OptionError, match="needs images"):
        distill(Distillation(inputs, vary=True), model, Net(8), inputs)


def test_loaders_are_read_as_far_as_needed(model: nn.Module, inputs: Tensor) -> None:
    batches = ((part, torch.zeros(len(part))) for part in inputs.split(16))

    assert distill(Distillation(batches, steps=2, samples=40), model, Net(8), inputs).samples == 40
    parts = list(inputs.split(16))
    held = 2 * parts[0].nbytes
    assert distill(Distillation(parts, steps=2, memory=held), model, Net(8), inputs).samples == 32


def test_a_run_that_diverges_keeps_the_weights_that_it_began_with(model: nn.Module, inputs: Tensor) -> None:
    student = Net(8)
    before = bits(student)
    facts = distill(Distillation(inputs, steps=50, lr=1e30), model, student, inputs)

    assert bits(student) == before
    assert facts.kept == 0
    assert facts.after == facts.before
    assert facts.stopped


def test_it_ends_early_without_improvements(model: nn.Module, inputs: Tensor) -> None:
    facts = distill(Distillation(inputs, steps=40, patience=3), model, copy.deepcopy(model), inputs)

    assert (facts.kept, facts.taken) == (0, 6)
    assert facts.stopped == "3 measurements in a row brought no improvement"


def test_minutes_become_steps_that_can_be_repeated(model: nn.Module, inputs: Tensor) -> None:
    timed, again = Net(8), Net(8)
    again.load_state_dict(timed.state_dict())
    facts = distill(Distillation(inputs, minutes=0.005), model, timed, inputs)
    distill(Distillation(inputs, steps=facts.steps), model, again, inputs)

    assert facts.steps >= 1
    assert bits(timed) == bits(again)


class Five(Net):
    """Only takes batches of five."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert len(x) == 5
        return super().forward(x)


def test_a_fixed_batch_is_kept_to(model: nn.Module, inputs: Tensor) -> None:
    tasks = (ds.Task("near"), ds.Task("far"))
    recover = Distillation(inputs, steps=20).prepare(Subject(model, tasks, (inputs[:2],)))

    assert recover(Student(Five(8).eval(), tasks, batch=5)).taken == 20
    with pytest.raises(BatchError, match="only takes batches of 50"):
        recover(Student(Five(8).eval(), tasks, batch=50))


@pytest.mark.parametrize("given", [torch.randn(1, 6), torch.randn(8, 5), 3])
def test_inputs_that_cannot_be_trained_on_are_refused(model: nn.Module, inputs: Tensor, given: Any) -> None:
    with pytest.raises(BatchError):
        distill(Distillation(given), model, Net(8), inputs)


def test_what_cannot_be_trained_is_refused(model: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match="requires_grad_"):
        distill(Distillation(inputs), model.requires_grad_(False), Net(8), inputs)


def test_the_folder_of_another_run_is_refused(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    def run(dense: nn.Module = model, given: Tensor = inputs, steps: int = 2) -> None:
        distill(Distillation(given, steps=steps, folder=tmp_path), dense, Net(8), inputs)

    run()
    with pytest.raises(LoadError, match="belongs to another run: settings is"):
        run(steps=3)
    with pytest.raises(LoadError, match="inputs is"):
        run(given=inputs + 1)
    with pytest.raises(LoadError, match="dense network is"):
        run(Net())
    with pytest.raises(LoadError, match="another pruned network"):
        run()  # the student's weights are others each time
    (tmp_path / "distillation.pt").write_text("damaged")
    with pytest.raises(LoadError, match="is not a checkpoint"):
        run()


# Killed and resumed.


def killed_on_the_way(folder: Path) -> None:
    """Ends its process as soon as a state with steps is in the file."""
    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    resumable(folder)


def _watch(folder: Path) -> None:
    while True:
        time.sleep(0.001)
        try:
            state = torch.load(folder / "distillation.pt", weights_only=True)["content"]["state"]
        except (OSError, RuntimeError, EOFError):
            continue
        if state["step"]:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable(folder: Path) -> tuple[dict[str, bytes], RecoveryFacts]:
    """A run of 400 steps: what becomes of the student, and the facts."""
    torch.manual_seed(0)
    dense, student, inputs = Net(), Net(8), torch.randn(96, 6)
    facts = distill(Distillation(inputs, steps=400, folder=folder), dense, student, inputs)
    return bits(student), facts


@together
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert finished(started(partial(killed_on_the_way, killed))) == [-signal.SIGKILL]
    state = torch.load(killed / "distillation.pt", weights_only=True)["content"]["state"]
    assert 0 < state["step"] < 400
    assert not state["finished"]

    whole = resumable(tmp_path / "whole")
    assert resumable(killed) == whole
    assert resumable(killed) == whole  # a finished run is not trained again
