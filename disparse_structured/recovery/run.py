"""One distillation: its state, one step, one measurement, and the file that it resumes from."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.data.deviation import Movement, Weights, damage
from disparse_structured.data.modes import eval_mode, plain_modes, without_fast_path
from disparse_structured.data.precision import in_precision
from disparse_structured.data.randomness import Isolation, generator
from disparse_structured.errors import LoadError
from disparse_structured.graph.named_tensors import device_of, digest, named_tensors
from disparse_structured.graph.side_effects import undone
from disparse_structured.progress import advancing
from disparse_structured.recovery.examples import Batch
from disparse_structured.recovery.recovery import Student
from disparse_structured.recovery.teacher import Teacher, outputs
from disparse_structured.recovery.views import VIEWS, varied
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.training.checkpoint import Checkpoint
from disparse_structured.training.random_streams import reseed
from disparse_structured.training.snapshot import Weights as Tensors
from disparse_structured.training.snapshot import put, take

MEASUREMENTS = 20
"""How often the deviations are measured on the inputs held out."""

_WARM_UP = 0.05
_SMALL = 0.01
"""A task may move by this much, even if it was nearer to the dense network before."""

_LEAST = 1e-3
"""The least root mean square: the steps of tensors with smaller values are not made smaller."""

_NEGLIGIBLE = 1e-6
"""Adam's epsilon. Gradients far below it are rounding errors: a task that did not move must not drift."""

_SCALED = 8
"""The number of batches from which the outputs' scales are computed."""

_PROBES = 4
_WRITE = 30.0
"""Seconds between two writes of the file. It is also written after each measurement."""


@dataclass(frozen=True)
class Course:
    """The length and the step size of a run: ``steps``, or else ``minutes``; see ``Distillation``."""

    steps: int | None
    minutes: float | None
    lr: float
    patience: int | None

    def rate(self, step: int, total: int) -> float:
        """The step size of ``step``, from 0."""
        warm = max(1, round(_WARM_UP * total))
        return self.lr * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / total))


@dataclass
class _State:
    """The progress of a run. All of it is in the file.

    ``start`` is each task's damage after the refit, by which its damage is divided.
    """

    total: int
    step: int = 0
    start: dict[str, float] = field(default_factory=dict)
    measured: list[int] = field(default_factory=list)
    course: dict[str, list[float]] = field(default_factory=dict)
    best: float = math.inf
    kept: int = 0
    waited: int = 0
    stopped: str = ""
    finished: bool = False


class Run:
    """Trains ``student`` in place. Random numbers depend only on the seed and the step.

    Args:
        student: the pruned network.
        teacher: the dense one.
        learned, held_out: batches to train on, and to measure on.
        course: the length and the step size.
        vary: whether each step varies its inputs.
        seed: random seed.
        progress: show progress on standard error.
        file: where the state is kept; None if it is not kept.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        learned: Sequence[Batch],
        held_out: Sequence[Batch],
        course: Course,
        *,
        vary: bool,
        seed: int,
        progress: bool,
        file: Checkpoint | None,
    ) -> None:
        self._began = time.perf_counter()
        self._model, self._tasks, self._teacher = student.model, student.tasks, teacher
        self._learned, self._held_out, self._course = learned, held_out, course
        self._vary, self._seed, self._progress, self._file = vary, seed, progress, file
        self._device = device_of(self._model)
        self._weights: dict[str, Weights] = {}
        self._trained = _Trained(self._model)
        self._origin = digest(named_tensors(self._model)[0])
        self._best: Tensors = {}
        self._written = 0.0

    def __call__(
        self, saved: Mapping[str, Any] | None, method: str, samples: int, checked: int
    ) -> RecoveryFacts:
        """Resumes from ``saved``, or starts; ``method``, ``samples`` and ``checked`` are for the report.

        Raises:
            LoadError: ``saved`` is from a run that started with another pruned network.
        """
        with self._ready():
            self._weights = self._scales()
            state = self._begun() if saved is None else self._resumed(saved)
            if not state.finished:
                self._learn(state)
                state.finished = True
                self._save(state)
            put(self._model, self._best)
        return RecoveryFacts(
            method=method,
            samples=samples,
            checked=checked,
            views=VIEWS if self._vary else "",
            steps=state.total,
            taken=state.step,
            kept=state.kept,
            stopped=state.stopped,
            before={task: found[0] for task, found in state.course.items()},
            after={task: found[state.measured.index(state.kept)] for task, found in state.course.items()},
            measured=tuple(state.measured),
            course={task: tuple(found) for task, found in state.course.items()},
        )

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Puts both networks into eval mode and turns gradients on; afterward, only weights have changed."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in self._model.modules())
        with ExitStack() as stack:
            stack.enter_context(undone(self._model))
            stack.enter_context(eval_mode(self._model, self._teacher.model))
            stack.enter_context(without_fast_path())
            stack.enter_context(Isolation(self._seed, self._device))
            stack.enter_context(plain_modes())
            stack.enter_context(torch.enable_grad())
            if recurrent:  # cuDNN has no gradient of recurrent layers in eval mode
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            try:
                yield
            finally:
                self._model.zero_grad(set_to_none=True)

    def _begun(self) -> _State:
        began = time.perf_counter()
        state = _State(0)
        self._measure(state)
        each = time.perf_counter() - began
        state.total = self._course.steps or self._steps(each, state.start)
        self._save(state)
        return state

    def _resumed(self, saved: Mapping[str, Any]) -> _State:
        if saved["origin"] != self._origin:
            raise LoadError(
                "the folder of the distillation contains the state of a run that started with another pruned "
                "network, from other data, options or versions. Name another folder, or remove the file."
            )
        state = _State(**saved["state"])
        put(self._model, saved["model"])
        self._best = saved["best"]
        self._trained.load(saved["optimizer"], saved["masters"])
        return state

    def _learn(self, state: _State) -> None:
        every = math.ceil(state.total / MEASUREMENTS)
        with advancing("distilling", state.total, self._progress, done=state.step) as advance:
            while state.step < state.total and not state.stopped:
                rate = self._course.rate(state.step, state.total)
                state.stopped = self._step(self._trained, state.step, rate, state.start)
                if state.stopped:
                    break
                state.step += 1
                measures = state.step % every == 0 or state.step == state.total
                if measures:
                    self._measure(state)
                advance("  ".join(f"{task} {found[-1]:.2%}" for task, found in state.course.items()))
                if measures or time.perf_counter() - self._written > _WRITE:
                    self._save(state)

    def _step(self, trained: _Trained, step: int, rate: float, start: Mapping[str, float]) -> str:
        """Takes one step; returns why it could not, or an empty text."""
        reseed(self._seed, self._device, "distillation", step)
        epoch, place = divmod(step, len(self._learned))
        order = generator(self._seed, "distillation", "order", epoch).permutation(len(self._learned))
        number = int(order[place])
        inputs = self._learned[number].read()
        if self._vary:
            inputs = varied(inputs, torch.Generator().manual_seed(_number(self._seed, step)))
        wanted = self._teacher.outputs(inputs, None if self._vary else ("learned", number))
        found = outputs(self._model, self._tasks, inputs)
        losses = [
            damage(found[task], wanted[task], weights).double() / start[task]
            for task, weights in self._weights.items()
        ]
        loss = torch.stack(losses).mean()
        if not loss.requires_grad:
            return "no task's output depends on a parameter that requires a gradient"
        loss.backward()
        if not (bool(loss.isfinite()) and trained.step(rate)):
            self._model.zero_grad(set_to_none=True)
            return f"the loss or a gradient was not finite at step {step + 1}; a lower lr may help"
        return ""

    def _scales(self) -> dict[str, Weights]:
        """By task, the weights of squared differences with which the loss is the mean damage of a batch."""
        used = self._learned[:_SCALED]
        moved = {task.name: Movement() for task in self._tasks}
        for number, batch in enumerate(used):
            key = None if self._vary else ("learned", number)
            for task, tensors in self._teacher.outputs(batch.read(), key).items():
                moved[task].add(tensors, tensors)
        return {
            task: {key: weight * len(used) for key, weight in movement.weights.items()}
            for task, movement in moved.items()
        }

    def _measure(self, state: _State) -> None:
        """Measures the deviations on the inputs held out, and keeps the weights if they are the best."""
        moved = {task.name: Movement() for task in self._tasks}
        with torch.no_grad():
            for number, batch in enumerate(self._held_out):
                inputs = batch.read()
                wanted = self._teacher.outputs(inputs, ("held out", number))
                for task, tensors in outputs(self._model, self._tasks, inputs).items():
                    moved[task].add(tensors, wanted[task])
        state.measured.append(state.step)
        for task, movement in moved.items():
            state.course.setdefault(task, []).append(movement.deviation.whole)
        if not state.step:
            state.start = {task: max(movement.damage, _SMALL**2) for task, movement in moved.items()}
        allowed = all(found[-1] <= max(found[0], _SMALL) for found in state.course.values())
        now = statistics.fmean(movement.damage / state.start[task] for task, movement in moved.items())
        if (allowed and now < state.best) or not state.step:
            state.best, state.kept, state.waited = now, state.step, 0
            self._best = take(self._model)
        else:
            state.waited += 1
            patience = self._course.patience
            if patience is not None and state.waited >= patience and state.step < state.total:
                state.stopped = f"{state.waited} measurements in a row brought no improvement"

    def _steps(self, measurement: float, start: Mapping[str, float]) -> int:
        """How many steps fit into the minutes, from the time of a few; the weights are put back."""
        before, times = take(self._model), []
        trial = _Trained(self._model)
        for _ in range(_PROBES):
            began = time.perf_counter()
            self._step(trial, 0, 0.0, start)
            times.append(time.perf_counter() - began)
        put(self._model, before)
        each = statistics.median(times[1:])
        first = 0.0 if self._vary else max(0.0, times[0] - each) * len(self._learned)
        assert self._course.minutes is not None
        left = (
            60 * self._course.minutes
            - (time.perf_counter() - self._began)
            - MEASUREMENTS * measurement
            - first
        )
        return max(1, int(left / each))

    def _save(self, state: _State) -> None:
        self._written = time.perf_counter()
        if self._file is not None:
            optimizer, masters = self._trained.state()
            self._file.write(
                {
                    "origin": self._origin,
                    "state": vars(state),
                    "model": take(self._model),
                    "best": self._best,
                    "optimizer": optimizer,
                    "masters": masters,
                }
            )


class _Trained:
    """The parameters of ``model`` that may change, and their optimizer.

    16-bit parameters are updated in single precision, since most steps are below their resolution.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._masters = [
            in_precision(each.detach(), torch.promote_types(each.dtype.to_real(), torch.float32)).clone()
            for each in self._parameters
        ]
        groups = [
            {"params": [each], "scale": max(_LEAST, float(each.abs().double().square().mean().sqrt()))}
            for each in self._masters
        ]
        self._optimizer = torch.optim.Adam(groups, lr=0.0, eps=_NEGLIGIBLE)

    def step(self, rate: float) -> bool:
        """Takes a step and clears the gradients; returns False without a step if one is not finite."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
            parameter.grad = None
        gradients = [master.grad for master in self._masters if master.grad is not None]
        if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            return False
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                parameter.copy_(master)
        return True

    def state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """What :meth:`load` puts back."""
        return self._optimizer.state_dict(), self._masters

    def load(self, optimizer: dict[str, Any], masters: Sequence[Tensor]) -> None:
        """Puts back what :meth:`state` returned."""
        self._optimizer.load_state_dict(optimizer)
        with torch.no_grad():
            for own, kept in zip(self._masters, masters, strict=True):
                own.copy_(kept)


def _number(seed: int, step: int) -> int:
    return int(generator(seed, "distillation", "views", step).integers(2**62))
