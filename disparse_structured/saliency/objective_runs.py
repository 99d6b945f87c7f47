"""Tasks' objectives under gates that the caller chooses, one mini-batch at a time, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from disparse_structured.errors import TaskError
from disparse_structured.saliency.feeding import PerShape
from disparse_structured.saliency.gates import Factor, gated, reads
from disparse_structured.saliency.objectives import labelled
from disparse_structured.saliency.probe import Probe
from disparse_structured.structure import Structure
from disparse_structured.tasks import Task

Outputs = dict[str, tuple[torch.Tensor, ...]]


@dataclass(frozen=True, eq=False)
class MiniBatch:
    """One mini-batch: what each task wants of it, as a function of the gates.

    Args:
        number: how many came before it, over all passes.
        objective: ``(task row, gates [units]) -> scalar``: the task's loss with the gates multiplying
            what consumers read, or of a label-free task the squared distance of its output from the
            output of the network as it is, divided by the squared norm of that. Differentiable.
    """

    number: int
    objective: Callable[[int, torch.Tensor], torch.Tensor]


def run_mini_batches(probe: Probe, steps: int, of: Callable[[MiniBatch], None]) -> None:
    """``of`` each of ``steps`` mini-batches of the probe's data, read again from its start at its end.

    ``of`` runs on the probe's own random states, with gradients enabled. ``probe.batches`` and
    ``probe.samples`` are those of the longest pass.

    Raises:
        BatchError: no data, no batch, or a second pass is needed over an iterator that is used up.
    """
    done = 0
    read = (0, 0)
    while done < steps:
        for _ in _one_pass(probe, done, steps, of):
            done += 1
            if done == steps:
                break
        read = max(read, (probe.batches, probe.samples))
    probe.batches, probe.samples = read


def _one_pass(probe: Probe, first: int, steps: int, of: Callable[[MiniBatch], None]) -> Iterator[int]:
    # Friends of Probe, next to its methods of the same form (gate_gradients, curvatures).
    held: dict[str, torch.Tensor] = {}

    def prepare(structure: Structure) -> Callable[[tuple[Any, ...]], Outputs]:
        factors = {read: Factor(read, lambda: held["gates"]) for read in reads(structure)}
        return probe._runner(structure, gated(structure, factors, probe._kept))

    prepared = PerShape(probe.model, probe.structure, prepare)
    numbers = iter(range(first, steps))

    def step(batch: Any, inputs: tuple[Any, ...]) -> Iterator[int]:
        run = prepared(inputs)
        dense: Outputs = {}

        def outputs(gates: torch.Tensor) -> Outputs:
            held["gates"] = gates[None]
            return run(inputs)

        def objective(row: int, gates: torch.Tensor) -> torch.Tensor:
            task = probe.structure.task_objects[row]
            if task.loss is not None:
                found = labelled(task, probe._packings[task.name], outputs(gates)[task.name], batch)
                # A loss that no gate reaches is a constant as far as they are concerned.
                return found.outputs[0] if found.outputs else gates.new_zeros(())
            if not dense:
                with torch.no_grad():
                    dense.update(outputs(probe._kept.to(gates)))
            return _relative_distance(task, outputs(gates)[task.name], dense[task.name])

        number = next(numbers)
        of(MiniBatch(number, objective))
        yield number

    return probe._stream(step)


def _relative_distance(
    task: Task, tensors: tuple[torch.Tensor, ...], dense: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    pairs = [(one, other) for one, other in zip(tensors, dense, strict=True) if one.is_floating_point()]
    if not pairs:
        raise TaskError(
            f"task {task.name!r} has no loss, and its output {[str(tensor.dtype) for tensor in tensors]} "
            "cannot be differentiated. Point its selector at floating-point values, such as logits."
        )
    distance = torch.stack([(one - other).float().square().sum() for one, other in pairs]).sum()
    norm = torch.stack([other.float().square().sum() for _, other in pairs]).sum()
    return distance / norm.clamp_min(torch.finfo(torch.float32).tiny)
