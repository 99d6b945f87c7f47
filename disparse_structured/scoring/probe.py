"""The probe: what a criterion may ask of a model, a structure and data.

Each query is a pass through the data: :meth:`Probe.gate_gradients` and :meth:`Probe.curvatures`
(derivatives with respect to the gates), :meth:`Probe.losses` (the losses as functions of gates) and
:meth:`Probe.weight_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from disparse_structured.checks import check_counts, check_object, check_seed
from disparse_structured.data.arguments import arguments, described, examples, shared_tensors
from disparse_structured.data.batches import (
    ToInputs,
    batch_size,
    batches,
    check_examples,
    model_inputs,
    to_device,
)
from disparse_structured.data.call import Batched, call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.precision import first_inexact, is_inexact
from disparse_structured.data.randomness import Isolation, generator, signs
from disparse_structured.errors import BatchError, DisparseError, PlanError
from disparse_structured.graph.named_tensors import detached_tensors, named_tensors
from disparse_structured.graph.side_effects import undone
from disparse_structured.progress import advancing
from disparse_structured.scoring.batch_losses import BatchLosses, Outputs
from disparse_structured.scoring.derivatives import (
    GateCurvature,
    GateGradients,
    WeightGradients,
    backpropagate,
    hessian_diagonal,
    weight_gradients,
)
from disparse_structured.scoring.gates import (
    Factor,
    Gate,
    Read,
    Recorder,
    gated,
    reads,
    twice_differentiable,
)
from disparse_structured.scoring.objectives import (
    Objective,
    Packing,
    Projections,
    labeled,
    squared_distance,
    weighted_sum,
)
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import PerShape
from disparse_structured.structure.structure import check_described
from disparse_structured.tasks import Task

T = TypeVar("T")
_Run = Callable[[tuple[Any, ...]], Outputs]


@dataclass(eq=False)
class Probe:
    """What a criterion reads: a model, its structure and data, with the arguments of :func:`score`.

    ``batches`` and ``samples`` count what the last pass through the data read.
    """

    model: nn.Module
    structure: Structure
    data: Iterable[Any] | None = None
    to_inputs: ToInputs | None = None
    seed: int = 0
    projections: int = 1
    max_batches: int | None = None
    progress: bool = False
    keep: torch.Tensor | None = None
    batches: int = field(default=0, init=False)
    samples: int = field(default=0, init=False)
    notes: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_counts(projections=self.projections)
        if self.max_batches is not None:
            check_counts(max_batches=self.max_batches)
        if self.keep is not None:
            check_object("keep", self.keep, torch.Tensor, "a bool tensor [units]")
        units = self.structure.units
        self._kept = torch.ones(units, dtype=torch.bool) if self.keep is None else self.keep.cpu()
        if self._kept.dtype != torch.bool or self._kept.shape != (units,):
            raise PlanError(
                f"keep is {self._kept.dtype} {list(self._kept.shape)}, expected torch.bool [{units}]: "
                "one entry per unit of the structure, True = keep."
            )
        self._state = detached_tensors(self.model)
        check_described(self._state, self.structure)
        first = first_inexact(self._state.values())
        assert first is not None  # a task reaches at least one parameter
        self._device, self._dtype = first.device, first.dtype.to_real()
        self._packings: dict[str, Packing] = {}

    def zeros(self) -> torch.Tensor:
        """Return zeros, float64 ``[tasks, units]``, on the CPU."""
        return torch.zeros(self.structure.reach.shape, dtype=torch.float64)

    def average(self, of: Callable[[torch.Tensor], torch.Tensor], per_sample: bool = True) -> torch.Tensor:
        """Average ``of(gate gradients)`` over the samples in one pass: float64 ``[tasks, units]``."""
        total = self.zeros()
        for found in self.gate_gradients(per_sample):
            total[found.task] += found.weight * of(found.values).sum(dim=0)
        return total / max(self.samples, 1)

    def gate_gradients(self, per_sample: bool = True) -> Iterator[GateGradients]:
        """Pass through the data once: one forward pass per batch, one backward pass per task.

        A backward pass computes gradients of what layers read, none of weights. The loss of a task is
        assumed to be a mean over the samples of a batch of B: with ``per_sample``, a sample's own loss is
        B times its share. A label-free task takes ``projections`` backward passes.

        If the graph does not show which example a position of some read belongs to (an operator without
        a rule, say), examples are run one at a time, and ``notes`` says so.
        """

        def prepare(structure: Structure) -> tuple[_Run, Recorder, Read | None]:
            found = reads(structure)
            recorder = Recorder(structure.units, [read.layer for read in found], self._device)
            gates = {read: Gate(number, read, recorder, self._kept) for number, read in enumerate(found)}
            return self._runner(structure, gated(structure, gates, self._kept)), recorder, _unknown(found)

        prepared = PerShape(self.model, self.structure, prepare)
        projections = Projections(self.seed)

        def gradients(batch: Any, inputs: tuple[Any, ...]) -> Iterator[GateGradients]:
            size = batch_size(inputs)
            run, recorder, unknown = prepared(inputs)
            if per_sample and size > 1 and unknown is not None:
                yield from self._one_at_a_time(batch, size, unknown, gradients)
                return
            rows = size if per_sample else 1
            yield from self._backward(batch, size, run(inputs), recorder, projections, rows)

        return self._stream(gradients)

    def curvatures(self, directions: int) -> Iterator[GateCurvature]:
        """Pass through the data once: average ``v * (H v)`` over ``directions`` for each batch and task.

        ``H`` is the Hessian of the batch's loss with respect to the gates, ``v`` a vector of random signs;
        the mean over ``v`` is H's diagonal. Every example has its own gates and signs, so a batch of B
        averages over B vectors for the price of one (examples run one at a time as in
        :meth:`gate_gradients`).
        The loss of a label-free task is half the mean squared distance of its output from itself, so
        ``H`` is the Gauss-Newton matrix.
        """
        held: dict[str, torch.Tensor] = {}

        def prepare(structure: Structure) -> tuple[_Run, Read | None]:
            found = reads(structure)
            factors = {read: Factor(read, lambda: held["gates"]) for read in found}
            module = gated(structure, factors, self._kept, twice_differentiable(structure))
            return self._runner(structure, module), _unknown(found)

        prepared = PerShape(self.model, self.structure, prepare)
        source = generator(self.seed, "directions")

        def curvatures(batch: Any, inputs: tuple[Any, ...]) -> Iterator[GateCurvature]:
            size = batch_size(inputs)
            run, unknown = prepared(inputs)
            if size > 1 and unknown is not None:
                yield from self._one_at_a_time(batch, size, unknown, curvatures)
                return
            gates = self._kept.to(self._device, self._dtype).repeat(size, 1)
            held["gates"] = gates.requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
                outputs = run(inputs)
            for row, task in enumerate(self.structure.task_objects):
                if task.loss is None:
                    objective = squared_distance(task, outputs[task.name], size)
                else:
                    objective = labeled(task, self._packings[task.name], outputs[task.name], batch)
                drawn = signs(source, directions * size, self.structure.units).to(gates)
                diagonal = hessian_diagonal(task, objective, gates, drawn.view(directions, size, -1))
                yield GateCurvature(row, diagonal.cpu().double(), size)

        return self._stream(curvatures)

    def losses(self, steps: int | None = None) -> Iterator[BatchLosses]:
        """Yield each batch's losses as functions of the gates; see :class:`BatchLosses`.

        This is one pass through the data, or, with ``steps``, that many batches in as many passes as needed:
        the data must then be a loader or a list. Afterwards, ``batches`` and ``samples`` are those of the
        longest pass.

        Raises:
            BatchError: no data, no batch, or another pass is needed over an exhausted iterator.
        """
        prepared = PerShape(self.model, self.structure, self._gated_network)
        longest, done = (0, 0), 0
        try:
            while steps is None or done < steps:
                isolation, read = Isolation(self.seed, self._device), (0, 0)
                stream = self._stream(partial(self._batch_losses, prepared, isolation), isolation)
                for found in islice(stream, None if steps is None else steps - done):
                    done += 1
                    read = read[0] + 1, read[1] + found.samples
                    longest = max(longest, read)
                    yield found
                if steps is None:
                    return
        finally:
            self.batches, self.samples = longest

    def weight_gradients(self, *, per_sample: bool = False, joint: bool = False) -> Iterator[WeightGradients]:
        """Pass through the data once: yield each batch's parameter gradients of every task's loss.

        A batch takes one forward pass, and one backward pass per task. With ``joint``, it takes one backward
        pass, of the sum of all tasks' losses, each times its task's weight. With ``per_sample``, examples run
        one at a time. The loss of a label-free task is one random projection of its output.
        """
        weights = {
            name: parameter.detach().requires_grad_()
            for name, parameter in named_tensors(self.model)[0].items()
            if isinstance(parameter, nn.Parameter) and is_inexact(parameter)
        }

        def prepare(structure: Structure) -> _Run:
            return self._runner(structure, gated(structure, {}, self._kept), {**self._state, **weights})

        prepared = PerShape(self.model, self.structure, prepare)
        projections = Projections(self.seed)
        tasks = self.structure.task_objects

        def gradients(batch: Any, inputs: tuple[Any, ...]) -> Iterator[WeightGradients]:
            size = batch_size(inputs)
            if per_sample and size > 1:
                for example in self._examples(batch, size):
                    yield from gradients(example, self._inputs(example))
                return
            outputs = prepared(inputs)(inputs)
            objectives = [self._objective(task, outputs, batch, size, projections) for task in tasks]
            named = {f"task {task.name!r}": each for task, each in zip(tasks, objectives, strict=True)}
            if joint:
                named = {"all tasks": weighted_sum(objectives, [task.weight for task in tasks])}
            last = list(named)[-1]
            found = [
                weight_gradients(name, objective, weights, retain=name != last)
                for name, objective in named.items()
            ]
            yield WeightGradients(tuple(found), size)

        return self._stream(gradients)

    def _stream(
        self, of: Callable[[Any, tuple[Any, ...]], Iterator[T]], isolation: Isolation | None = None
    ) -> Iterator[T]:
        """Yields from ``of(batch, inputs)`` for every batch; the caller runs on the user's random states."""
        if self.data is None:
            raise BatchError(
                "the criterion needs data, and none was given. "
                "Pass data=, an iterable of batches, or use Magnitude() or Random()."
            )
        isolation = isolation or Isolation(self.seed, self._device)
        self.batches = self.samples = 0
        with self._bar() as advance:
            stream = self._read(of)
            while True:
                with isolation, torch.inference_mode(False), torch.enable_grad():
                    item = next(stream, _END)
                if item is _END:
                    return
                if item is None:
                    advance()
                else:
                    yield item  # type: ignore[misc]

    def _read(self, of: Callable[[Any, tuple[Any, ...]], Iterator[T]]) -> Iterator[T | None]:
        """Yields from ``of(batch, inputs)`` for every batch, and None after each batch."""
        assert self.data is not None
        for batch in islice(batches(self.data), self.max_batches):
            batch = to_device(batch, self._device, self._dtype)
            if not self._packings:
                self._packings = self._pack()
            inputs = self._inputs(batch)
            check_examples(inputs)
            yield from of(batch, inputs)
            self.batches += 1
            self.samples += batch_size(inputs)
            yield None

    def _gated_network(self, structure: Structure) -> Callable[[tuple[Any, ...], torch.Tensor], Outputs]:
        """The network as a function of its inputs and of gates ``[units]`` that all examples share."""
        held: dict[str, torch.Tensor] = {}
        factors = {read: Factor(read, lambda: held["gates"]) for read in reads(structure)}
        run = self._runner(structure, gated(structure, factors, self._kept))

        def network(inputs: tuple[Any, ...], gates: torch.Tensor) -> Outputs:
            held["gates"] = gates[None]  # one row for all examples
            return run(inputs)

        return network

    def _batch_losses(
        self,
        prepared: PerShape[Callable[[tuple[Any, ...], torch.Tensor], Outputs]],
        isolation: Isolation,
        batch: Any,
        inputs: tuple[Any, ...],
    ) -> Iterator[BatchLosses]:
        yield BatchLosses(
            batch,
            batch_size(inputs),
            self._kept.to(self._device, self._dtype),
            self.structure.task_objects,
            partial(prepared(inputs), inputs),
            self._packings,
            isolation,
        )

    def _objective(
        self, task: Task, outputs: Outputs, batch: Any, size: int, projections: Projections, number: int = 0
    ) -> Objective:
        """The loss of ``task``, or projection ``number`` of the output of one that has none."""
        if task.loss is None:
            return projections(task, number, outputs[task.name], size)
        return labeled(task, self._packings[task.name], outputs[task.name], batch)

    def _runner(
        self, structure: Structure, module: fx.GraphModule, state: Mapping[str, torch.Tensor] | None = None
    ) -> _Run:
        """Runs ``module``, made from the graph of ``structure``, with ``state`` or the model's tensors."""

        def run(inputs: tuple[Any, ...]) -> Outputs:
            try:
                return structure.capture.run(state or self._state, inputs, module)
            except (DisparseError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise BatchError(
                    f"{type(self.model).__name__} refuses a batch with inputs {described(inputs)}: "
                    f"{type(error).__name__}: {error}. Change what the loader yields, or pass to_inputs=, a "
                    "function from a batch to forward's arguments."
                ) from error

        return run

    def _backward(
        self,
        batch: Any,
        size: int,
        outputs: Outputs,
        recorder: Recorder,
        projections: Projections,
        rows: int,
    ) -> Iterator[GateGradients]:
        """One backward pass per task and projection through one graph, freed by the last."""
        passes = [
            (row, task, number)
            for row, task in enumerate(self.structure.task_objects)
            for number in range(self.projections if task.loss is None else 1)
        ]
        for row, task, number in passes:
            objective = self._objective(task, outputs, batch, size, projections, number)
            recorder.clear(rows, rows > 1)
            backpropagate(task, objective, recorder, retain=(row, task, number) != passes[-1])
            # Each sample's own loss is the batch's size times its share of the mean.
            values = recorder.gradients.cpu().double() * rows
            weight = size / rows / (self.projections if task.loss is None else 1)
            yield GateGradients(row, values, weight)

    def _pack(self) -> dict[str, Packing]:
        """Learns from one example input what each task's loss expects."""
        tasks = [task for task in self.structure.task_objects if task.loss is not None]
        if not tasks:
            return {}
        inputs = to_device(self.structure.example_inputs, self._device, self._dtype)
        with undone(self.model), eval_mode(self.model), torch.no_grad():
            try:
                output = call(self.model, next(examples(inputs, batch_size(inputs))))
            except Exception:  # some networks reject a batch of one
                output = call(self.model, inputs)
        return {task.name: Packing(task, output) for task in tasks}

    def _inputs(self, batch: Any) -> tuple[Any, ...]:
        return self.structure.marked(arguments(self.model, batch, self.to_inputs))

    def _examples(self, batch: Any, size: int) -> Iterator[Any]:
        given = self.structure.marked(model_inputs(self.model, batch, self.to_inputs))
        return examples(batch, size, shared_tensors(given) if isinstance(given, Batched) else ())

    def _one_at_a_time(
        self, batch: Any, size: int, read: Read, of: Callable[[Any, tuple[Any, ...]], Iterator[T]]
    ) -> Iterator[T]:
        """Yields from ``of`` for every example of ``batch`` alone, because of ``read``."""
        note = (
            f"examples were run one at a time: at the input of {read.layer!r} the graph does not say "
            "which example of a batch a position belongs to"
        )
        if note not in self.notes:
            self.notes = (*self.notes, note)
        for example in self._examples(batch, size):
            yield from of(example, self._inputs(example))

    def _bar(self) -> AbstractContextManager[Callable[[], None]]:
        total = _length(self.data)
        if total is not None and self.max_batches is not None:
            total = min(total, self.max_batches)
        return advancing("scoring", total, self.progress)


_END = object()


def _unknown(found: Sequence[Read]) -> Read | None:
    """A read at which the graph does not say which position belongs to which example."""
    return next((read for read in found if read.sample is None), None)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
