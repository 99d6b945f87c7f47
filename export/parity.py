"""The check that an ONNX file computes what PyTorch computes."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from disparse_structured.errors import ExportError
from disparse_structured.export.plain import (
    Binding,
    Inputs,
    Outputs,
    TaskOutputs,
    TaskTensors,
    arguments_of,
    checked_inputs,
    output_names,
    plain_copy,
    reference,
)
from disparse_structured.export.session import open_session, run_session, shapes_text
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.report.facts import ParityFact


@leaves_no_trace
def check_parity(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Sequence[Any],
    *,
    outputs: Outputs,
    tolerance: float = 1e-4,
) -> tuple[ParityFact, ...]:
    """Compare the ONNX file at ``path``, run in ONNX Runtime, with ``model`` in eval mode.

    For each task and batch, with ``a`` from ONNX Runtime and ``b`` from PyTorch, the absolute error is
    ``max |a - b|`` and the relative error is ``max |a - b| / max |b|``, both over a whole tensor (an
    elementwise ratio would be dominated by elements that happen to be near zero). A task with several
    tensors has the errors of its worst one.

    Args:
        model: the module that the file came from; it is copied, not changed.
        path: the ONNX file.
        inputs: batches, each the arguments of the model. Arguments that are not tensors are the same in all.
        outputs: task name -> function that picks the task's tensor, or list of tensors, from what the
            model returns, in the order of the file's outputs.
        tolerance: largest relative error that passes.

    Returns:
        One fact for each batch and task, in that order.

    Raises:
        ExportError: a relative error above ``tolerance`` (the message adds how far PyTorch's own result
            is from float64, which is what the network's precision allows), a NaN or an infinity on either
            side, another shape or type, other outputs, or inputs that PyTorch or ONNX Runtime refuses.
    """
    given = [arguments_of(model, batch, f"batch {number}") for number, batch in enumerate(inputs)]
    batches = [checked_inputs(batch, f"batch {number}") for number, batch in enumerate(given)]
    if not batches:
        raise ExportError("there is no batch to compare on. Pass at least one tuple of tensors.")
    session = open_session(Path(path), threads=torch.get_num_threads())
    own = plain_copy(model, outputs, Binding.of(model, given[0]))
    return tuple(
        fact for batch in batches for fact in compare(session, own, batch, reference(own, batch), tolerance)
    )


def compare(
    session: onnxruntime.InferenceSession,
    model: TaskOutputs,
    inputs: Inputs,
    expected: TaskTensors,
    tolerance: float,
) -> tuple[ParityFact, ...]:
    """The facts of one batch, ``expected`` being what ``model`` gives; raises as ``check_parity`` does."""
    names = output_names(expected)
    wanted = [name for task_names in names.values() for name in task_names]
    declared = [output.name for output in session.get_outputs()]
    if declared != wanted:
        raise ExportError(f"the ONNX file has the outputs {declared}, but the tasks give {wanted}.")
    actual = dict(zip(declared, run_session(session, inputs), strict=True))
    facts = []
    for task, tensors in expected.items():
        errors = [
            _errors(name, actual[name], tensor, inputs)
            for name, tensor in zip(names[task], tensors, strict=True)
        ]
        facts.append(
            ParityFact(
                task=task,
                batch=inputs[0].shape[0] if inputs[0].ndim else 1,
                input_shapes=tuple(tuple(tensor.shape) for tensor in inputs),
                max_abs=max(absolute for absolute, _ in errors),
                max_rel=max(relative for _, relative in errors),
                tolerance=tolerance,
            )
        )
    _refuse_differences(facts, model, inputs, expected)
    return tuple(facts)


def _errors(name: str, found: np.ndarray, wanted: torch.Tensor, inputs: Inputs) -> tuple[float, float]:
    right = wanted.detach().cpu().numpy()
    if found.shape != right.shape or found.dtype != right.dtype:
        raise ExportError(
            f"on {shapes_text(inputs)} the output {name!r} is {found.dtype} {found.shape} in ONNX Runtime, "
            f"but {right.dtype} {right.shape} in PyTorch."
        )
    for where, values in (("ONNX Runtime", found), ("PyTorch", right)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"on {shapes_text(inputs)} the output {name!r} has NaN or infinite values in {where}. "
                "They cannot be compared: pass inputs on which the model is finite."
            )
    return _distance(found, right)


def _distance(found: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    if not right.size:
        return 0.0, 0.0
    absolute = float(np.abs(found.astype(np.float64) - right.astype(np.float64)).max())
    scale = float(np.abs(right.astype(np.float64)).max())
    if absolute == 0.0:
        return 0.0, 0.0
    return absolute, absolute / scale if scale else float("inf")


def _refuse_differences(
    facts: Sequence[ParityFact], model: TaskOutputs, inputs: Inputs, expected: TaskTensors
) -> None:
    wrong = [fact for fact in facts if not fact.max_rel <= fact.tolerance]
    if not wrong:
        return
    listed = "; ".join(f"task {f.task!r}: max abs {f.max_abs:.3g}, max rel {f.max_rel:.3g}" for f in wrong)
    own = _rounding(model, inputs, expected, {fact.task for fact in wrong})
    rounding = ", ".join(f"{task!r} {error:.1g}" for task, error in own.items())
    beside = f" PyTorch's own rounding, against float64: {rounding}." if rounding else ""
    half = any(tensor.dtype == torch.float16 for fact in wrong for tensor in expected[fact.task])
    advice = " Half precision needs a tolerance near 1e-2, or export model.float()." if half else ""
    raise ExportError(
        f"ONNX Runtime differs from PyTorch on {shapes_text(inputs)}: {listed} "
        f"(tolerance {wrong[0].tolerance:g}).{beside}{advice}"
    )


def _rounding(model: TaskOutputs, inputs: Inputs, expected: TaskTensors, tasks: Set[str]) -> dict[str, float]:
    """Relative error of ``expected`` itself against ``model.double()``; empty if that does not run."""
    wide = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    try:
        exact = reference(copy.deepcopy(model).double(), wide)
    except ExportError:
        return {}
    return {
        task: max(
            _distance(tensor.numpy(), right.numpy())[1]
            for tensor, right in zip(tensors, exact[task], strict=True)
        )
        for task, tensors in expected.items()
        if task in tasks
    }
