"""Kept sets of single weights by connection sensitivity, task by task, as in DiSparse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from disparse_structured.data.arguments import arguments, described
from disparse_structured.data.batches import ToInputs, as_arguments, batch_size, batches, to_device
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError, DisparseError, GradientError, TaskError
from disparse_structured.graph.capture import Capture, capture
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.relatedness.overlap import KeptSets, keep_top
from disparse_structured.relatedness.published import RATIO
from disparse_structured.relatedness.result import Layer
from disparse_structured.scoring.objectives import Objective, Packing, Projections, labeled
from disparse_structured.tasks import Task, check_tasks


@leaves_no_trace
def weight_sets(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    data: Iterable[Any],
    *,
    ratio: float = RATIO,
    to_inputs: ToInputs | None = None,
    seed: int = 0,
    max_batches: int | None = None,
    batch_statistics: bool = False,
) -> KeptSets:
    """What every task keeps of the weights it reaches: the ``1 - ratio`` largest sensitivities.

    The sensitivity of weight ``w`` is ``sum over batches of |w * dL/dw|`` of the task's loss (SNIP, Lee et
    al., ICLR 2019, for each task by itself; summed over batches as in DiSparse's released code). Weights
    are parameters with two dimensions or more; the trunk's and the task's own compete together. A task
    without a loss is read by a random projection of its output.

    Args:
        model: its weights, gradients, buffers and modes are not changed, nor are global random states.
        batch_statistics: batch normalization uses the batch's own statistics, as the published analysis at
            random initialization does, where running ones mean nothing yet. Otherwise the network is in
            eval mode. Needs more than one value per channel.

    Raises:
        BatchError: no batch, or one that the model refuses.
        TaskError: a loss that is not a finite scalar that depends on its output.
        GradientError: a gradient is NaN or infinite; names task and weight.
    """
    tasks = check_tasks(tasks)
    state, _ = named_tensors(model)
    names = _in_order(capture(model, as_arguments(model, example_inputs), tasks), state)
    if not names:
        raise TaskError("the tasks reach no weight of two dimensions or more. Use units: level='unit'.")
    subject = _WeightGradients(model, names, seed, batch_statistics, to_inputs)
    scores = [[torch.zeros_like(state[name]) for name in names] for _ in tasks]
    reached = torch.zeros(len(tasks), len(names), dtype=torch.bool)
    device = state[names[0]].device
    with subject.ready(), Isolation(seed, device), torch.enable_grad():
        for batch in islice(batches(data), max_batches):
            batch = to_device(batch, device, state[names[0]].dtype)
            for row, gradients in enumerate(subject.gradients(tasks, batch)):
                for column, gradient in enumerate(gradients):
                    if gradient is not None:
                        reached[row, column] = True
                        scores[row][column] += (gradient * state[names[column]].detach()).abs()
    used = reached.any(dim=0).nonzero().flatten().tolist()
    names, reached = [names[column] for column in used], reached[:, used]
    sizes = [state[name].numel() for name in names]
    flat = torch.stack([torch.cat([row[column].flatten() for column in used]).cpu() for row in scores])
    items = torch.repeat_interleave(reached, torch.tensor(sizes), dim=1)
    keep = torch.zeros_like(items)
    for row, own in enumerate(items):
        if own.any():
            keep[row, own] = keep_top(flat[row, own], ratio)
    layers = tuple(Layer(name, size) for name, size in zip(names, sizes, strict=True))
    return KeptSets(tuple(task.name for task in tasks), layers, reached, keep, flat)


def _in_order(captured: Capture, state: dict[str, torch.Tensor]) -> list[str]:
    """The weights that ``forward`` uses, in the order in which it first does."""
    place = {node: number for number, node in enumerate(captured.graph.nodes)}
    first: dict[str, int] = {}
    for node in captured.graph.find_nodes(op="placeholder"):
        if node.name not in captured.tensors or not node.users:
            continue
        name = captured.tensors[node.name]
        tensor = state[name]
        if isinstance(tensor, nn.Parameter) and tensor.ndim > 1 and tensor.is_floating_point():
            first[name] = min(first.get(name, len(place)), *(place[user] for user in node.users))
    return sorted(first, key=lambda name: first[name])


@dataclass
class _WeightGradients:
    """Gradients by a model's weights; buffers are copies, which a forward pass may write to."""

    model: nn.Module
    names: Sequence[str]
    seed: int
    batch_statistics: bool
    to_inputs: ToInputs | None

    def __post_init__(self) -> None:
        parameters = dict(self.model.named_parameters())
        self.parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        self.weights = [self.parameters[name].requires_grad_() for name in self.names]
        self.buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        self.projections = Projections(self.seed)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Eval mode, except for batch normalization if it uses the batch's statistics."""
        with eval_mode(self.model):
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = self.batch_statistics
            yield

    def gradients(self, tasks: Sequence[Task], batch: Any) -> Iterator[Sequence[torch.Tensor | None]]:
        """Gradients by each weight, one task at a time; None for weights that the task does not reach."""
        given = arguments(self.model, batch, self.to_inputs)
        try:
            output = torch.func.functional_call(self.model, (self.parameters, self.buffers), given)
        except (DisparseError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise BatchError(
                f"{type(self.model).__name__} refuses a batch with inputs {described(given)}: "
                f"{type(error).__name__}: {error}. Change what the loader yields, or pass to_inputs=, a "
                "function from a batch to forward's arguments."
            ) from error
        for task in tasks:
            yield self._of(task, self._objective(task, output, batch, batch_size(given)))

    def _objective(self, task: Task, output: Any, batch: Any, size: int) -> Objective:
        tensors = task.tensors(output)
        if task.loss is None:
            return self.projections(task, 0, tensors, size)
        return labeled(task, Packing(task, output), tensors, batch)

    def _of(self, task: Task, objective: Objective) -> Sequence[torch.Tensor | None]:
        if not objective.outputs:
            return [None] * len(self.weights)
        found = torch.autograd.grad(
            objective.outputs, self.weights, objective.gradients, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(self.names, found, strict=True):
            if gradient is not None and not gradient.isfinite().all():
                raise GradientError(
                    f"task {task.name!r}: the gradient by {name!r} is NaN or infinite. Look for a square "
                    "root, logarithm or division at 0 in the loss or downstream of that layer, or for "
                    "NaN in the batch or the weights."
                )
        return found
