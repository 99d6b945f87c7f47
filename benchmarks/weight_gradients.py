"""Gradients of the tasks' losses with respect to the weights, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.joint import loss_of
from disparse_structured.data.arguments import arguments, examples
from disparse_structured.data.batches import batch_size, batches, call_model, to_device
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError
from disparse_structured.scoring import Probe
from disparse_structured.tasks import Task

Gradients = dict[str, Tensor]
"""By the parameter's name in the model."""


@dataclass(frozen=True, eq=False)
class WeightGradients:
    """Gradients on the data of ``probe``; ``model`` is a copy of its model with all weights trainable.

    The data is read as :class:`Probe` reads it: on random states of its own, in eval mode.
    """

    probe: Probe
    model: nn.Module

    @classmethod
    def of(cls, probe: Probe) -> WeightGradients:
        model = deepcopy(probe.model).requires_grad_(True)
        model.zero_grad(set_to_none=True)
        return cls(probe, model)

    def of_losses(
        self, losses: Callable[[Any, Any], list[Tensor]], per_sample: bool = False
    ) -> Iterator[list[Gradients]]:
        """For each batch (or sample), the gradients of each of ``losses(output, batch)``; 0 where none."""
        if self.probe.data is None:
            raise BatchError("the method needs data, and none was given. Pass data=, an iterable of batches.")
        parameters = dict(self.model.named_parameters())
        first = next(iter(parameters.values()))
        self.probe.batches = self.probe.samples = 0
        with Isolation(self.probe.seed, first.device), eval_mode(self.model), torch.enable_grad():
            for batch in islice(batches(self.probe.data), self.probe.max_batches):
                batch = to_device(batch, first.device, first.dtype)
                size = batch_size(arguments(self.model, batch, self.probe.to_inputs))
                self.probe.batches += 1
                self.probe.samples += size
                for piece in examples(batch, size) if per_sample else (batch,):
                    values = losses(call_model(self.model, piece, self.probe.to_inputs), piece)
                    found = [_gradients(value, parameters, value is not values[-1]) for value in values]
                    yield found


def each_loss(tasks: tuple[Task, ...]) -> Callable[[Any, Any], list[Tensor]]:
    """Every task's own loss."""
    return lambda output, batch: [loss_of(task)(task.pick(output), batch) for task in tasks]


def joint_loss(tasks: tuple[Task, ...]) -> Callable[[Any, Any], list[Tensor]]:
    """The weighted sum of the tasks' losses."""
    separate = each_loss(tasks)

    def joint(output: Any, batch: Any) -> list[Tensor]:
        values = separate(output, batch)
        return [torch.stack([task.weight * v for task, v in zip(tasks, values, strict=True)]).sum()]

    return joint


def _gradients(loss: Tensor, parameters: dict[str, nn.Parameter], retain: bool) -> Gradients:
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=retain, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }
