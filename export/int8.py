"""Layers of an ONNX file in INT8: what each costs each task in ONNX Runtime, and the file itself."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from disparse_structured.data.batches import batch_size, batches, take, tensor_batches
from disparse_structured.data.calibration import CHUNK
from disparse_structured.data.deviation import Deviation
from disparse_structured.errors import BatchError, ExportError
from disparse_structured.export.float_graph import FloatGraph, size_of
from disparse_structured.export.latency import measure_latency
from disparse_structured.export.onnx_file import make_folder
from disparse_structured.export.plain import Inputs, TaskOutputs, checked_inputs, reference
from disparse_structured.export.qdq import Setting, quantized, transitions
from disparse_structured.export.ranges import (
    bounds_by_method,
    channel_means,
    largest_differences,
    task_deviations,
    task_outputs,
)
from disparse_structured.export.reasons import reason
from disparse_structured.export.session import open_session, run_session
from disparse_structured.report.facts import LatencyFacts
from disparse_structured.report.quantization import ALL_INT8, FLOAT, INT8

BITS = (8, 7)
"""Widths of weights. With 7, sums of two products fit into 16 bits, which AVX2 without VNNI needs."""

CORRECTED_ON = 1
"""Batches that biases are corrected on."""


@dataclass(frozen=True)
class Written:
    """An INT8 file: its size and hash, and how it compares with the float file on the held-out inputs."""

    bytes: int
    sha256: str
    deviation: Mapping[str, Deviation]
    max_abs: Mapping[str, float]
    latency: LatencyFacts | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """An ONNX file, and inputs on which any of its layers can be tried in INT8.

    Args:
        path: the float file.
        calibration: inputs that ranges and biases come from, in the order of the file.
        held_out: inputs that everything is compared on.
        timed: the inputs of a timed run.
        examples: how many there are in the first batch, in ``calibration`` and in ``held_out``.
        dense: the network that files are compared with besides the float one, with the same tasks.
    """

    path: Path
    calibration: Sequence[Inputs]
    held_out: Sequence[Inputs]
    timed: Inputs
    examples: tuple[int, int, int]
    dense: TaskOutputs | None = None
    _deviations: dict[tuple[Any, ...], dict[str, Deviation]] = field(default_factory=dict)

    @cached_property
    def graph(self) -> FloatGraph:
        """The file, prepared."""
        return FloatGraph.load(self.path)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers that can be INT8: supported, and with a finite range for all that they read and give."""
        needed = {name: self.graph.tensors(name) for name in self.graph.layers}
        return tuple(
            name
            for name, tensors in needed.items()
            if all(tensor in bounds for bounds in self._bounds.values() for tensor in tensors)
        )

    @property
    def weighted(self) -> list[tuple[str, str, str]]:
        """Name and operator of every layer of the file, and why it cannot be INT8, if it cannot."""
        known = {
            **dict.fromkeys(self.graph.layers, "its tensors have no finite range"),
            **self.graph.unsupported,
        }
        known |= dict.fromkeys(self.layers, "")
        return [(name, node.op_type, known[name]) for name, node in self.graph.nodes.items() if name in known]

    @property
    def size(self) -> int:
        """Bytes of the float file and its weights."""
        return size_of(self.path)

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Ways of quantizing, by name."""
        return {
            f"{method}, {bits} bits": Setting(method, bounds, bits)
            for method, bounds in self._bounds.items()
            for bits in BITS
        }

    @cached_property
    def macs(self) -> dict[str, int]:
        """By layer, the multiplications for one example."""
        session = self._session(self.graph.exposing(self.graph.shaping))
        names = [output.name for output in session.get_outputs()]
        found = run_session(session, self.calibration[0])
        shapes = {name: value.shape for name, value in zip(names, found, strict=True)}
        return {
            layer: self.graph.multiplications(layer, shapes) // self.examples[0]
            for layer in self.graph.layers
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors that may be rounded, in a timed run."""
        inputs = {each.name for each in self.graph.model.graph.input}
        known = {name for bounds in self._bounds.values() for name in bounds}
        session = self._session(self.graph.exposing(sorted((known | set(self.graph.shaping)) - inputs)))
        given = [*session.get_outputs(), *session.get_inputs()]
        values = [*run_session(session, self.timed), *(tensor.numpy() for tensor in self.timed)]
        return {each.name: value.shape for each, value in zip(given, values, strict=True)}

    def transitions(self, layers: Collection[str], setting: Setting) -> tuple[list[int], list[int]]:
        """The sizes of the tensors that are rounded, and that become float again, with ``layers`` in INT8."""
        rounded, restored = (
            [math.prod(self.shapes[name]) for name in names]
            for names in transitions(self.graph, layers, setting)
        )
        return rounded, restored

    def deviations(self, layers: Collection[str], setting: Setting) -> dict[str, Deviation]:
        """By task, how far ``layers`` in INT8 move its output from the float file's, on held-out inputs.

        Measured once for each set and setting.
        """
        key = frozenset(layers), setting.method, setting.bits, bool(setting.shifts)
        if key not in self._deviations:
            session = self._session(quantized(self.graph, layers, setting).SerializeToString())
            found = task_outputs(session, self.held_out, self.graph.tasks)
            self._deviations[key] = task_deviations(found, self._expected)
        return self._deviations[key]

    def judged(self, layers: Collection[str], setting: Setting) -> dict[str, float]:
        """The part of :meth:`deviations` that tolerances are compared with."""
        return {task: moved.judged for task, moved in self.deviations(layers, setting).items()}

    def from_dense(self, path: Path) -> dict[str, float]:
        """By task, how far the outputs of a file are from the dense network's; {} without one."""
        if self.dense is None:
            return {}
        wanted = [
            {task: [tensor.double().numpy() for tensor in tensors] for task, tensors in found.items()}
            for found in (reference(self.dense, batch) for batch in self.held_out)
        ]
        found = task_outputs(self._session(path), self.held_out, self.graph.tasks)
        return {task: moved.whole for task, moved in task_deviations(found, wanted).items()}

    def shifts(self, setting: Setting) -> dict[str, np.ndarray]:
        """By layer that can have a bias, float64 ``[channels]``: what INT8 takes from the mean of its output.

        Each layer is INT8 alone, so that no shift is counted twice (fast bias correction, as in NNCF).
        """
        inputs = self.calibration[:CORRECTED_ON]
        dims = {layer: self.graph.channels(layer) for layer in self.layers}
        with_bias = {layer: dim for layer, dim in dims.items() if dim is not None}
        outputs = {self.graph.output_of(layer): dim for layer, dim in with_bias.items()}
        wanted = channel_means(self._session(self.graph.exposing(outputs)), inputs, outputs)
        found = {}
        for layer, dim in with_bias.items():
            name = self.graph.output_of(layer)
            alone = quantized(self.graph, [layer], setting, followers=False, expose=[name])
            means = channel_means(self._session(alone.SerializeToString()), inputs, {name: dim})
            found[layer] = wanted[name] - means[name]
        return found

    def write(
        self, layers: Collection[str], setting: Setting, path: Path, *, threads: int, rounds: int
    ) -> Written:
        """Write ``path`` with ``layers`` in INT8 if it is valid and runs; an earlier file is kept otherwise.

        It is timed in turn with the float file, and with one in which all layers are INT8, unless ``rounds``
        is 0.

        Raises:
            ExportError: the file cannot be written, or ONNX Runtime refuses it.
        """
        made = {INT8: self._model(layers, setting)}
        if set(layers) != set(self.layers):
            made[ALL_INT8] = self._model(self.layers, setting)
        make_folder(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            drafts = {name: Path(folder, f"{name}.onnx") for name in made}
            for name, draft in drafts.items():
                _save(made[name], draft)
            found = task_outputs(self._session(drafts[INT8]), self.held_out, self.graph.tasks)
            latency = None
            if rounds:
                files = {FLOAT: self.path, **drafts}
                latency = measure_latency(files, self.timed, threads=threads, rounds=rounds)
            content = drafts[INT8].read_bytes()
            os.replace(drafts[INT8], path)
        return Written(
            len(content),
            hashlib.sha256(content).hexdigest(),
            task_deviations(found, self._expected),
            largest_differences(found, self._expected),
            latency,
        )

    def _model(self, layers: Collection[str], setting: Setting) -> onnx.ModelProto:
        facts = {"layers": len(layers), "calibration": setting.method, "weight_bits": setting.bits}
        return quantized(self.graph, layers, setting, metadata={"int8": json.dumps(facts)})

    @cached_property
    def _bounds(self) -> dict[str, Mapping[str, tuple[float, float]]]:
        return dict(bounds_by_method(self.graph, self._float, self.calibration))

    @cached_property
    def _float(self) -> onnxruntime.InferenceSession:
        return self._session(self.path)

    @cached_property
    def _expected(self) -> list[dict[str, list[np.ndarray]]]:
        return task_outputs(self._float, self.held_out, self.graph.tasks)

    def _session(self, file: Path | bytes) -> onnxruntime.InferenceSession:
        return open_session(file, threads=torch.get_num_threads())


def _save(model: onnx.ModelProto, draft: Path) -> None:
    try:
        onnx.save(model, draft)
        onnx.checker.check_model(draft, full_check=True)
    except Exception as error:
        raise ExportError(f"the INT8 file is not valid ONNX: {reason(error)}.") from error


def candidate_of(
    path: Path, batches: Sequence[tuple[Any, ...]], samples: int, dense: TaskOutputs | None = None
) -> Candidate:
    """The file at ``path`` with the first ``samples`` examples of ``batches``, in batches that it takes.

    Every other one is held out.

    Args:
        path: the float file.
        batches: each the arguments of the network, or the tensors of the file.
        samples: how many examples to use at most.
        dense: see :class:`Candidate`.

    Raises:
        BatchError: there are fewer than two batches.
        ExportError: there is no such file, or ONNX Runtime refuses it.
    """
    session = open_session(path, threads=1)
    declared = session.get_inputs()
    sizes = [each.shape[0] if each.shape else None for each in declared]
    fixed = not any(isinstance(size, str) for size in sizes)
    total = min(sum(map(batch_size, batches)), samples)
    size = (
        next((size for size in sizes if isinstance(size, int)), 1)
        if fixed
        else max(1, min(CHUNK, total // 2))
    )
    cut: list[tuple[Any, ...]] = []
    for batch in batches:
        for start in range(0, batch_size(batch), size):
            piece = take(batch, slice(start, start + size))
            if sum(map(batch_size, cut)) < total and not (fixed and batch_size(piece) < size):
                cut.append(piece)
    if len(cut) < 2:
        raise BatchError(
            f"{total} example(s) are too few for {path.name}, which takes {size} at once: ranges come from "
            "one half, and the other half is compared. Pass at least twice as many, better 64."
        )
    tensors = [checked_inputs(batch, "a batch") for batch in cut]
    run_session(session, tensors[0])
    timed = tensors[0] if fixed else checked_inputs(take(cut[0], slice(1)), "a batch")
    counts = [batch_size(batch) for batch in cut]
    examples = (counts[0], sum(counts[::2]), sum(counts[1::2]))
    return Candidate(path, tensors[::2], tensors[1::2], timed, examples, dense)


def file_batches(path: Path, data: Any, samples: int) -> list[Inputs]:
    """The first ``samples`` examples of ``data``, each batch as the tensors that the file takes.

    Raises:
        BatchError: the data is not of the file's inputs.
        ExportError: there is no such file, or ONNX Runtime refuses it.
    """
    names = [each.name for each in open_session(path, threads=1).get_inputs()]
    found: list[Inputs] = []
    for given in _given(data):
        found.append(_in_order(given, names))
        if sum(map(batch_size, found)) >= samples:
            break
    return found


def _given(data: Any) -> Iterable[Any]:
    if isinstance(data, torch.Tensor):
        return tensor_batches(data)
    if isinstance(data, Mapping | tuple):
        return [data]
    if isinstance(data, Iterable):
        return batches(data)
    raise BatchError(f"data must be a tensor [N, ...] or batches, got {type(data).__name__} {data!r:.80}.")


def _in_order(given: Any, names: Sequence[str]) -> Inputs:
    """A batch as the tensors of the file, in order."""
    if isinstance(given, Mapping):
        missing = [name for name in names if name not in given]
        if missing:
            raise BatchError(f"a batch has the entries {list(given)}, but the file takes {list(names)}.")
        given = tuple(given[name] for name in names)
    found = given if isinstance(given, tuple) else tuple(given) if isinstance(given, list) else (given,)
    if len(found) < len(names) or not all(isinstance(each, torch.Tensor) for each in found[: len(names)]):
        kinds = [type(each).__name__ for each in found]
        raise BatchError(f"a batch holds {kinds}, but the file takes {len(names)} tensors: {list(names)}.")
    return checked_inputs(found[: len(names)], "a batch")
