"""Tasks' objectives under gates that the caller chooses, one mini-batch at a time, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from disparse_structured.data.batches import batch_size
from disparse_structured.errors import TaskError
from disparse_structured.scoring.gates import Factor, gated, reads
from disparse_structured.scoring.objectives import labelled
from disparse_structured.scoring.probe import Probe
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import PerShape
from disparse_structured.tasks import Task

Outputs = dict[str, tuple[torch.Tensor, ...]]


@dataclass(eq=False)
class MiniBatch:
    """One mini-batch, and what each task's objective on it is as a function of the gates."""

    probe: Probe
    batch: Any
    run: Callable[[torch.Tensor], Outputs]
    _dense: Outputs = field(default_factory=dict, init=False)

    @property
    def device(self) -> torch.device:
        """Where the network runs, and gates have to be."""
        return self.probe._device

    def objective(self, row: int, gates: torch.Tensor) -> torch.Tensor:
        """The objective of task ``row``, a scalar, with ``gates`` ``[units]`` on what consumers read.

        A task's loss; of a label-free task, the squared distance of its output from that of the network
        as it is, divided by the squared norm of the latter.
        """
        task = self.probe.structure.task_objects[row]
        outputs = self.run(gates)[task.name]
        if task.loss is not None:
            found = labelled(task, self.probe._packings[task.name], outputs, self.batch)
            # A loss that no gate reaches is a constant as far as they are concerned.
            return found.outputs[0] if found.outputs else gates.new_zeros(())
        if not self._dense:
            with torch.no_grad():
                self._dense.update(self.run(self.probe._kept.to(gates)))
        return _relative_distance(task, outputs, self._dense[task.name])


def run_mini_batches(probe: Probe, steps: int, of: Callable[[MiniBatch], None]) -> None:
    """``of`` each of ``steps`` mini-batches of the probe's data, which is read again when it ends.

    ``of`` runs on the probe's own random states, with gradients enabled, on the probe's device. After it,
    ``probe.batches`` and ``probe.samples`` are those of the longest pass.

    Raises:
        BatchError: no data, no batch, or a second pass is needed over an iterator that is used up.
    """
    # A friend of Probe, beside its methods of the same form: gate_gradients and curvatures.
    held: dict[str, torch.Tensor] = {}

    def prepare(structure: Structure) -> Callable[[tuple[Any, ...]], Outputs]:
        factors = {read: Factor(read, lambda: held["gates"]) for read in reads(structure)}
        return probe._runner(structure, gated(structure, factors, probe._kept))

    prepared = PerShape(probe.model, probe.structure, prepare)

    def step(batch: Any, inputs: tuple[Any, ...]) -> Iterator[int]:
        network = prepared(inputs)

        def run(gates: torch.Tensor) -> Outputs:
            held["gates"] = gates[None]  # one row for all examples
            return network(inputs)

        of(MiniBatch(probe, batch, run))
        yield batch_size(inputs)

    done, longest = 0, (0, 0)
    while done < steps:
        sizes = list(islice(probe._stream(step), steps - done))
        done += len(sizes)
        longest = max(longest, (len(sizes), sum(sizes)))
    probe.batches, probe.samples = longest


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
