"""What an ONNX file computes on some inputs: ranges and means of its tensors, and its outputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from disparse_structured.data.deviation import Deviation, Movement
from disparse_structured.errors import ExportError
from disparse_structured.export.float_graph import CALIBRATED, FloatGraph
from disparse_structured.export.plain import Inputs
from disparse_structured.export.qdq import Bounds
from disparse_structured.export.quiet import quiet
from disparse_structured.export.reasons import reason
from disparse_structured.export.session import feed_of, run_session

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
"""How ONNX Runtime chooses the range of a tensor, by name."""


def bounds_by_method(
    graph: FloatGraph, session: onnxruntime.InferenceSession, batches: Sequence[Inputs]
) -> dict[str, Bounds]:
    """By method, the range of every tensor of the operators that may be quantized, on ``batches``.

    A tensor whose range is not finite is left out.

    Raises:
        ExportError: ONNX Runtime's calibration refuses the file.
    """
    feeds = [feed_of(session, batch) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.onnx")
        onnx.save(graph.model, path)
        return {name: _bounds(path, feeds, method) for name, method in METHODS.items()}


def _bounds(path: Path, feeds: Sequence[Mapping[str, np.ndarray]], method: CalibrationMethod) -> Bounds:
    try:
        with quiet():
            calibrator = create_calibrator(
                path,
                list(CALIBRATED),
                str(path.with_name("augmented.onnx")),
                method,
                extra_options={"symmetric": False},
            )
            for feed in feeds:
                calibrator.collect_data(_Once(feed))
            found = calibrator.compute_data()
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime could not calibrate the file by {method.name}: {reason(error)}"
        ) from error
    ranges = {name: tuple(float(np.min(each)) for each in data.range_value) for name, data in found.items()}
    return {name: (low, high) for name, (low, high) in ranges.items() if math.isfinite(high - low)}


class _Once:
    """A calibration data reader of one batch."""

    def __init__(self, feed: Mapping[str, np.ndarray]) -> None:
        self._left = [feed]

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def channel_means(
    session: onnxruntime.InferenceSession, batches: Sequence[Inputs], dims: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The mean of each output named in ``dims`` over all dimensions but that one, over all ``batches``."""
    names = [output.name for output in session.get_outputs()]
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        found = dict(zip(names, run_session(session, batch), strict=True))
        for name, dim in dims.items():
            values = np.moveaxis(found[name].astype(np.float64), dim, 0)
            mean = values.reshape(len(values), -1).mean(axis=1)
            sums[name] = sums.get(name, 0.0) + mean / len(batches)
    return sums


def task_outputs(
    session: onnxruntime.InferenceSession, batches: Sequence[Inputs], tasks: Mapping[str, Sequence[str]]
) -> list[dict[str, list[np.ndarray]]]:
    """The tensors of each task, batch by batch, as float64."""
    names = [output.name for output in session.get_outputs()]
    found = []
    for batch in batches:
        outputs = dict(zip(names, run_session(session, batch), strict=True))
        found.append(
            {task: [outputs[name].astype(np.float64) for name in own] for task, own in tasks.items()}
        )
    return found


def task_deviations(
    found: Sequence[Mapping[str, Sequence[np.ndarray]]], wanted: Sequence[Mapping[str, Sequence[np.ndarray]]]
) -> dict[str, Deviation]:
    """By task, ``||found - wanted||_2 / ||wanted||_2`` over all of its outputs where ``wanted`` is finite.

    It is absolute where these are all zero, and infinite where ``found`` is not finite.

    >>> task_deviations([{"depth": [np.array([1.0, 2.0])]}], [{"depth": [np.array([1.0, 1.0])]}])
    {'depth': Deviation(whole=0.7071067811865476, columns=None)}
    """
    moved = {task: Movement() for task in wanted[0]}
    for ours, theirs in zip(found, wanted, strict=True):
        for task, tensors in theirs.items():
            moved[task].add(list(map(torch.as_tensor, ours[task])), list(map(torch.as_tensor, tensors)))
    return {task: movement.deviation for task, movement in moved.items()}


def largest_differences(
    found: Sequence[Mapping[str, Sequence[np.ndarray]]], wanted: Sequence[Mapping[str, Sequence[np.ndarray]]]
) -> dict[str, float]:
    """By task, the largest ``|found - wanted|`` where ``wanted`` is finite."""
    return {
        task: max(
            float(np.abs(actual - expected)[np.isfinite(expected)].max(initial=0.0))
            for ours, theirs in zip(found, wanted, strict=True)
            for actual, expected in zip(ours[task], theirs[task], strict=True)
        )
        for task in wanted[0]
    }
