"""Training without labels after the refit, and the deviations after it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from disparse_structured.data.batches import filled
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.call import call
from disparse_structured.data.deviation import Deviation, Movement
from disparse_structured.data.modes import eval_mode
from disparse_structured.errors import DisparseWarning
from disparse_structured.graph.side_effects import undone
from disparse_structured.pipeline.refitting import Outcome
from disparse_structured.recovery import Recover, Student
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.structure import Structure
from disparse_structured.surgery.pruned_graph import fixed_batch, tasks_of
from disparse_structured.training.snapshot import put, take


def recovered(
    recover: Recover,
    name: str,
    outcome: Outcome,
    dense: nn.Module,
    structure: Structure,
    calibration: Calibration,
    limits: Mapping[str, float] | None,
) -> tuple[Outcome, RecoveryFacts]:
    """``outcome`` with its network trained by ``recover``, which is called ``name``, in place.

    If a task then exceeds its limit, or if ``recover`` fails, the network gets its earlier weights back:
    pruning may have taken long, and its result must not be lost.

    Warns:
        DisparseWarning: ``recover`` failed.
    """
    model = outcome.applied.model
    student = Student(model, tasks_of(model, structure.task_objects), fixed_batch(model))
    before = take(model)
    try:
        facts = recover(student)
        deviation = outcome.deviation.recovered(_moved(dense, structure, student, calibration))
    except Exception as error:
        put(model, before)
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"{name} failed, so the result has the weights of the refit. {reason}",
            DisparseWarning,
            stacklevel=4,
        )
        return outcome, RecoveryFacts.failed(name, reason)
    over = [task for task, limit in (limits or {}).items() if deviation.judged[task] > limit]
    if over:
        put(model, before)
        stopped = f"{over[0]!r} would have exceeded its tolerance, so the refitted weights are kept"
        facts = dataclasses.replace(facts, kept=0, after=facts.before, stopped=stopped)
        deviation = dataclasses.replace(outcome.deviation, refit=outcome.deviation.final)
    return dataclasses.replace(outcome, deviation=deviation), facts


@torch.no_grad()
def _moved(
    dense: nn.Module, structure: Structure, student: Student, calibration: Calibration
) -> dict[str, Deviation]:
    """By task, how far the outputs are from the dense network's, on the examples set aside."""
    moved = {task.name: Movement() for task in student.tasks}
    with eval_mode(dense, student.model), undone(student.model):
        for chunk in calibration.checks or calibration.chunks:
            for part in [chunk] if student.batch is None else filled(chunk, student.batch):
                wanted, found = call(dense, part), call(student.model, part)
                for task, own in zip(structure.task_objects, student.tasks, strict=True):
                    moved[task.name].add(own.tensors(found), task.tensors(wanted))
    return {task: movement.deviation for task, movement in moved.items()}
