"""The check that an ONNX file computes what PyTorch computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from disparse_structured.data.differences import by_channel
from disparse_structured.data.precision import in_precision
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
from disparse_structured.graph.copies import copied_in
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.report.facts import ParityFact

_ROUNDING = 10
"""The error that passes where rounding decides, in units of PyTorch's own: runtimes add in other orders."""

_FACTOR, _CAP = 2, 10
"""Where PyTorch's own error is above the tolerance, twice that error passes, up to ten tolerances."""

_FEW = 16
"""With fewer values, a channel's own error against float64 may be small by chance."""

_TINY = sys.float_info.min

_SMALL = 0.1
"""The least size of a channel, relative to the tensor's, if the model does not run in float64."""


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
    ``max |a - b|``. The relative error is ``max |a - b| / max |b|`` of the worst channel (dimension 1) or
    column (the last dimension), so that coordinates do not hide scores in the same tensor. An elementwise
    ratio would be dominated by elements that happen to be near zero. So would that of a channel that is
    mostly rounding: if PyTorch itself is far from float64 there, a channel passes with ten times PyTorch's
    own error, as long as the error is small beside the whole tensor. If PyTorch's own largest error is not
    small beside the whole tensor either, twice that error passes, up to ten times ``tolerance``. A task with
    several tensors has the errors of its worst one.

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
    pairs = {
        task: [
            _Pair.of(name, actual[name], tensor, inputs)
            for name, tensor in zip(names[task], tensors, strict=True)
        ]
        for task, tensors in expected.items()
    }
    relative = {task: max(pair.relative(pair.sizes()) for pair in own) for task, own in pairs.items()}
    exact: TaskTensors | None = None
    if not all(error <= tolerance for error in relative.values()):
        exact = _in_float64(model, inputs)
        for task, own in pairs.items():
            rights = exact[task] if exact else [None] * len(own)
            sizes = [pair.sizes_beside(right, tolerance) for pair, right in zip(own, rights, strict=True)]
            relative[task] = max(pair.relative(each) for pair, each in zip(own, sizes, strict=True))
    facts = tuple(
        ParityFact(
            task=task,
            batch=inputs[0].shape[0] if inputs[0].ndim else 1,
            input_shapes=tuple(tuple(tensor.shape) for tensor in inputs),
            max_abs=max(pair.absolute for pair in own),
            max_rel=relative[task],
            tolerance=tolerance,
        )
        for task, own in pairs.items()
    )
    _refuse_differences(facts, inputs, expected, exact)
    return facts


@dataclass(frozen=True, eq=False)
class _Pair:
    """One output of ONNX Runtime and of PyTorch as float64, and the resolution of its own type."""

    found: torch.Tensor
    wanted: torch.Tensor
    resolution: float

    @classmethod
    def of(cls, name: str, found: np.ndarray, wanted: torch.Tensor, inputs: Inputs) -> _Pair:
        """Raises :class:`ExportError` if the two cannot be compared."""
        right = wanted.detach().cpu().numpy()
        if found.shape != right.shape or found.dtype != right.dtype:
            raise ExportError(
                f"on {shapes_text(inputs)} the output {name!r} is {found.dtype} {found.shape} in ONNX "
                f"Runtime, but {right.dtype} {right.shape} in PyTorch."
            )
        for where, values in (("ONNX Runtime", found), ("PyTorch", right)):
            if not np.isfinite(values).all():
                raise ExportError(
                    f"on {shapes_text(inputs)} the output {name!r} has NaN or infinite values in {where}. "
                    "They cannot be compared: pass inputs on which the model is finite."
                )
        resolution = torch.finfo(wanted.dtype).eps if wanted.is_floating_point() else 0.0
        ours, theirs = (
            torch.from_numpy(each.astype(np.result_type(each, np.float64))) for each in (found, right)
        )
        return cls(ours, theirs, resolution)

    @property
    def absolute(self) -> float:
        """The largest error."""
        return float((self.found - self.wanted).abs().max()) if self.wanted.numel() else 0.0

    def sizes(self) -> list[torch.Tensor]:
        """The largest value of each channel and column."""
        return by_channel(self.wanted.abs())

    def sizes_beside(self, exact: torch.Tensor | None, tolerance: float) -> list[torch.Tensor]:
        """The same, or larger where PyTorch's own error against ``exact`` is near ``tolerance`` or above."""
        if not self.wanted.numel() or not self.resolution:
            return self.sizes()
        whole = self.wanted.abs().max()
        if exact is None or exact.shape != self.wanted.shape:
            return [sizes.clamp_min(_SMALL * whole) for sizes in self.sizes()]
        found = []
        errors = (self.wanted - exact).abs().nan_to_num(0.0, 0.0)
        most = (_FACTOR * errors.max() / max(tolerance, _TINY)).clamp(whole, _CAP * whole)
        for sizes, rounding in zip(self.sizes(), by_channel(errors), strict=True):
            few = self.wanted.numel() < _FEW * len(sizes)
            least = rounding.median() if few else rounding.new_zeros(())
            own = torch.maximum(rounding, least).clamp_min(self.resolution * whole) / max(tolerance, _TINY)
            found.append(torch.maximum(sizes, _ROUNDING * own).minimum(most))
        return found

    def relative(self, sizes: Sequence[torch.Tensor]) -> float:
        """The largest error of a channel or column in units of its size."""
        if not self.wanted.numel():
            return 0.0
        errors = by_channel((self.found - self.wanted).abs())
        return max(_ratio(error, size) for error, size in zip(errors, sizes, strict=True))


def _ratio(error: torch.Tensor, size: torch.Tensor) -> float:
    """The largest ``error / size``; where both are zero, nothing is wrong."""
    return float((error / size).nan_to_num(0.0, torch.inf).max())


def _refuse_differences(
    facts: Sequence[ParityFact], inputs: Inputs, expected: TaskTensors, exact: TaskTensors | None
) -> None:
    wrong = [fact for fact in facts if not fact.max_rel <= fact.tolerance]
    if not wrong:
        return
    listed = "; ".join(f"task {f.task!r}: max abs {f.max_abs:.3g}, max rel {f.max_rel:.3g}" for f in wrong)
    own = _rounding(expected, exact, [fact.task for fact in wrong]) if exact else {}
    rounding = ", ".join(f"{task!r} {error:.1g}" for task, error in own.items())
    beside = f" PyTorch's own rounding, against float64: {rounding}." if rounding else ""
    half = any(tensor.dtype == torch.float16 for fact in wrong for tensor in expected[fact.task])
    advice = " Half precision needs a tolerance near 1e-2, or export model.float()." if half else ""
    raise ExportError(
        f"ONNX Runtime differs from PyTorch on {shapes_text(inputs)}: {listed} "
        f"(tolerance {wrong[0].tolerance:g}, in the worst channel or column).{beside}{advice}"
    )


def _in_float64(model: TaskOutputs, inputs: Inputs) -> TaskTensors | None:
    """What a copy of ``model`` in float64 gives; None if it does not run."""
    wide = tuple(in_precision(tensor, torch.float64) for tensor in inputs)
    try:
        return reference(copied_in(model, torch.float64), wide)
    except ExportError:
        return None


def _rounding(expected: TaskTensors, exact: TaskTensors, tasks: Sequence[str]) -> dict[str, float]:
    """By task, the relative error of ``expected`` itself in its worst channel or column."""
    return {
        task: max(
            _ratio(error, size)
            for tensor, right in zip(expected[task], exact[task], strict=True)
            for error, size in zip(
                by_channel((in_precision(tensor, torch.float64) - right).abs()),
                by_channel(right.abs()),
                strict=True,
            )
        )
        for task in tasks
    }
