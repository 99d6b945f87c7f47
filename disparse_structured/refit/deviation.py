"""How far a masked network's outputs are from the dense network's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.data.deviation import Deviation, Movement
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.refit.lockstep import State
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import PerShape
from disparse_structured.verification.twin import masked_twin


def deviations(
    structure: Structure, keep: Tensor, calibration: Calibration, dense: State, states: Sequence[State]
) -> list[dict[str, Deviation]]:
    """Measure each task's ``||masked - dense||_2 / ||dense||_2`` over all of its outputs, per state.

    Where an output has columns of several sizes, each size is measured by itself as well. It is measured on
    the examples set aside (on all if there are none), where the dense network's outputs are finite; it is
    absolute where these are all zero.

    Raises:
        BatchError: a task's dense outputs hold no finite number.
    """
    twin = masked_twin(structure, keep)
    run = structure.capture.run
    moved = [{task: Movement() for task in structure.tasks} for _ in states]
    with torch.no_grad():
        for chunk in calibration.checks or calibration.chunks:
            expected = run(dense, chunk)
            for state, movements in zip(states, moved, strict=True):
                found = run(state, chunk, twin)
                for task, tensors in expected.items():
                    movements[task].add(found[task], tensors)
    for task, movement in moved[0].items():
        if not movement.compared:
            raise BatchError(
                f"task {task!r}: the dense network's output holds no finite number on these examples, so "
                "nothing can be compared. Pass inputs that the model was made for."
            )
    return [{task: movement.deviation for task, movement in each.items()} for each in moved]


def measure_deviation(
    model: nn.Module, structure: Structure, keep: Tensor, calibration: Calibration
) -> dict[str, Deviation]:
    """Measure, per task, how far ``model`` with only the units of ``keep`` is from the whole model.

    Raises:
        BatchError: as :func:`deviations` does, or the model has other units with these inputs.
    """
    dense: State = {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}
    described = PerShape(model, structure, lambda found: found)((calibration.checks or calibration.chunks)[0])
    return deviations(described, keep.cpu(), calibration, dense, (dense,))[0]
