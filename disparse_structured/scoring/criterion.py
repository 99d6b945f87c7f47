"""What a criterion is, and :func:`score`, which runs one and checks its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from disparse_structured.checks import check_callable
from disparse_structured.data.batches import ToInputs, tensor_batches
from disparse_structured.data.modes import plain_modes
from disparse_structured.errors import PlanError, TaskError
from disparse_structured.graph.supported import check_supported
from disparse_structured.naming import rule_name
from disparse_structured.scoring.criteria.fisher import Fisher
from disparse_structured.scoring.probe import Probe
from disparse_structured.structure import Structure
from disparse_structured.structure.structure import check_structure


class Criterion(Protocol):
    """Anything that turns a :class:`Probe` into scores.

    Returns ``[tasks, units]`` (floating point, finite, >= 0): for each task an estimate of how much its
    loss rises without the unit. Scores outside a task's reach are ignored. Only the order and the
    proportions within one task matter: votes divide each task's scores by their sum.
    """

    def __call__(self, probe: Probe) -> torch.Tensor:
        """The scores of every task and unit."""
        ...


@dataclass(frozen=True, eq=False)
class Saliency:
    """What a criterion found.

    Args:
        scores: float64 ``[tasks, units]`` on the CPU, finite, >= 0, and 0 outside a task's reach.
        tasks: names of the rows.
        criterion: the criterion's name and settings.
        batches, samples: how much data was read; 0 for criteria that read none.
        notes: remarks on how it was measured.
        labeled: the tasks that were scored by their losses, not by the response of their outputs.
    """

    scores: torch.Tensor
    tasks: tuple[str, ...]
    criterion: str
    batches: int
    samples: int
    notes: tuple[str, ...] = ()
    labeled: tuple[str, ...] = ()


_FISHER: Criterion = Fisher()


@plain_modes()
def score(
    model: nn.Module,
    structure: Structure,
    data: torch.Tensor | Iterable[Any] | None = None,
    criterion: Criterion = _FISHER,
    *,
    to_inputs: ToInputs | None = None,
    seed: int = 0,
    projections: int = 1,
    max_batches: int | None = None,
    keep: torch.Tensor | None = None,
    progress: bool = False,
) -> Saliency:
    """Score every unit of ``structure`` for every task: the second of the four steps.

    ``model`` is left bit-identical: weights, gradients, buffers, modes, ``requires_grad``, and the global
    random states of Python, NumPy and torch. The network is evaluated in eval mode, whatever its mode.

    Args:
        model: the model that ``structure`` was read from. Its weights may have changed since.
        data: a tensor ``[N, ...]``, or any iterable of batches; see :mod:`disparse_structured.data.batches`
            for what a batch may be.
        criterion: how units are scored; the default is Fisher information.
        to_inputs: ``to_inputs(batch) -> tuple of forward's arguments``, where the default cannot tell.
        seed: for random projections, random scores, and whatever a loader or a loss draws.
        projections: random projections per batch for each label-free task; each is one more backward pass.
        max_batches: read at most this many batches.
        keep: bool ``[units]``; units that are False read as zeros, as in the masked twin. Their gate
            gradients estimate the effect of switching them on. By default, all are on.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).

    Raises:
        OptionError: an argument is of the wrong kind or out of range.
        UnsupportedModelError: ``model`` is not a module, or is wrapped, compiled, scripted or quantized.
        BatchError: no batch, a batch that the model rejects, or no data though the criterion needs it.
        TaskError: a loss that is not a finite scalar, or that does not depend on the task's output.
        GradientError: a NaN or infinite gradient; names the task and the layer.
        PlanError: ``structure`` does not describe this model, or the criterion did not return scores.
    """
    check_supported(model)
    check_structure(structure)
    check_callable("criterion", criterion, 1, "Pass an object such as Fisher(), or a function of a Probe.")
    probe = Probe(
        model,
        structure,
        tensor_batches(data) if isinstance(data, torch.Tensor) else data,
        to_inputs=to_inputs,
        seed=seed,
        projections=projections,
        max_batches=max_batches,
        progress=progress,
        keep=keep,
    )
    name = rule_name(criterion)
    with torch.enable_grad():
        found = criterion(probe)
    scores = _checked(found, structure, name)
    check_scored(scores, structure, name)
    labeled = tuple(task.name for task in structure.task_objects if task.loss is not None and probe.batches)
    return Saliency(scores, structure.tasks, name, probe.batches, probe.samples, probe.notes, labeled)


def check_scored(scores: torch.Tensor, structure: Structure, name: str) -> None:
    """Raise :class:`TaskError` if all scores ``[tasks, units]`` of a task are zero, allowing any removal."""
    for row, task in enumerate(structure.tasks):
        if structure.reach[row].any() and not scores[row, structure.reach[row]].any():
            raise TaskError(
                f"task {task!r}: every score by {name} is zero, as if it needed no units. Its output is "
                "detached, constant or multiplied by zero, or its loss does not depend on it. Pass weights "
                "and inputs for which the task's output varies, or drop the task."
            )


def _checked(scores: object, structure: Structure, name: str) -> torch.Tensor:
    shape = (len(structure.tasks), structure.units)
    if not isinstance(scores, torch.Tensor) or scores.shape != shape or not scores.is_floating_point():
        is_tensor = isinstance(scores, torch.Tensor)
        found = f"{scores.dtype} {list(scores.shape)}" if is_tensor else type(scores).__name__  # type: ignore[attr-defined]
        raise PlanError(
            f"the criterion {name} returned {found}, expected floating point [tasks, units] = {list(shape)}. "
            "Return one row per task and one value per unit."
        )
    scores = scores.detach().cpu().double().masked_fill(~structure.reach, 0.0)
    bad = ~(scores.isfinite() & (scores >= 0))
    if bad.any():
        row, unit = (int(i) for i in bad.nonzero()[0])
        group = next(group for group in structure.groups if group.start <= unit < group.slice.stop)
        raise PlanError(
            f"the criterion {name} returned {int(bad.sum())} values that are not finite and >= 0; the first "
            f"is {float(scores[row, unit])} for task {structure.tasks[row]!r}, unit {unit - group.start} of "
            f"{group.name!r}. A saliency says how much a loss rises."
        )
    return scores
