"""How far a masked network's outputs are from the dense network's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.refit.lockstep import State
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import PerShape
from disparse_structured.verification.twin import masked_twin


def deviations(
    structure: Structure, keep: Tensor, calibration: Calibration, dense: State, states: Sequence[State]
) -> list[dict[str, float]]:
    """Measure each task's ``||masked - dense||_2 / ||dense||_2`` over all of its outputs, per state.

    It is measured on the examples set aside (on all if there are none), where the dense network's outputs
    are finite; it is absolute where these are all zero.

    Raises:
        BatchError: a task's dense outputs hold no finite number.
    """
    twin = masked_twin(structure, keep)
    run = structure.capture.run
    wanted = dict.fromkeys(structure.tasks, 0.0)
    finite = dict.fromkeys(structure.tasks, False)
    off = [dict.fromkeys(structure.tasks, 0.0) for _ in states]
    with torch.no_grad():
        for chunk in calibration.checks or calibration.chunks:
            expected = run(dense, chunk)
            found = [run(state, chunk, twin) for state in states]
            for task, tensors in expected.items():
                for number, tensor in enumerate(tensors):
                    usable = tensor.isfinite()
                    finite[task] |= bool(usable.any())
                    wanted[task] += _square(tensor[usable])
                    for total, outputs in zip(off, found, strict=True):
                        total[task] += _square(_wide(outputs[task][number][usable]) - _wide(tensor[usable]))
    for task, any_finite in finite.items():
        if not any_finite:
            raise BatchError(
                f"task {task!r}: the dense network's output holds no finite number on these examples, so "
                "nothing can be compared. Pass inputs that the model was made for."
            )
    return [{task: _root(square / (wanted[task] or 1.0)) for task, square in total.items()} for total in off]


def measure_deviation(
    model: nn.Module, structure: Structure, keep: Tensor, calibration: Calibration
) -> dict[str, float]:
    """Measure, per task, how far ``model`` with only the units of ``keep`` is from the whole model.

    Raises:
        BatchError: as :func:`deviations` does, or the model has other units with these inputs.
    """
    dense: State = {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}
    described = PerShape(model, structure, lambda found: found)((calibration.checks or calibration.chunks)[0])
    return deviations(described, keep.cpu(), calibration, dense, (dense,))[0]


def _square(tensor: Tensor) -> float:
    return float(_wide(tensor).abs().square().sum())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _root(square: float) -> float:
    return math.inf if math.isnan(square) else math.sqrt(square)
