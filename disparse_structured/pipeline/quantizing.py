"""INT8 with the tasks' consent: a matrix of measured damage, an arbiter, and measurements of the whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from disparse_structured.checks import as_path, check_counts
from disparse_structured.data.batches import ToInputs
from disparse_structured.data.call import marked_like
from disparse_structured.data.deviation import Deviation
from disparse_structured.decision.arbiters import Arbiter, Tolerance
from disparse_structured.decision.arbiters.by_name import by_task
from disparse_structured.errors import OptionError
from disparse_structured.latency import OnnxRuntime
from disparse_structured.latency.int8 import int8_times
from disparse_structured.naming import rule_name
from disparse_structured.pipeline.consent import Consent, Deviations, used
from disparse_structured.pipeline.inputs import SAMPLES, Data
from disparse_structured.pipeline.options import check_rules
from disparse_structured.pipeline.paying import Paying
from disparse_structured.report.quantization import (
    LayerFact,
    QuantizationFacts,
    TaskDeviation,
    compare_latency,
)

if TYPE_CHECKING:
    from disparse_structured.export.int8 import Candidate
    from disparse_structured.export.qdq import Setting
    from disparse_structured.pipeline.result import PruningResult
    from disparse_structured.tasks import Task

TOLERANCE = 0.05
"""How far INT8 may move a task's output by default, relative in the Euclidean norm."""


def quantize(
    float_path: str | os.PathLike[str],
    data: torch.Tensor | Mapping[str, torch.Tensor] | Iterable[Any],
    path: str | os.PathLike[str] | None = None,
    *,
    tolerance: float | Mapping[str, float] = TOLERANCE,
    arbiter: Arbiter | None = None,
    samples: int = SAMPLES,
    threads: int = 1,
    rounds: int = 30,
) -> QuantizationFacts:
    """Write an INT8 file beside an ONNX file, as far as every task allows it.

    Each layer is quantized alone, and the outputs of all tasks are compared in ONNX Runtime on held-out
    inputs. From this matrix of damage the arbiter decides which layers become INT8. That set is measured as a
    whole, and layers come back to float until no task moves further than its tolerance. The float file is
    left as it is.

    >>> import tempfile, torch
    >>> from disparse_structured.export import export_onnx
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)).eval()
    >>> images = torch.randn(32, 8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = export_onnx(model, images[:2], f"{folder}/model.onnx", outputs={"label": lambda y: y})
    ...     facts = quantize(exported.path, images, tolerance=0.2, rounds=0)
    >>> len(facts.quantized), facts.tasks["label"].int8 <= 0.2
    (2, True)

    Args:
        float_path: a float32 ONNX file, such as :func:`~disparse_structured.export.export_onnx` writes.
            Tasks are read from its metadata; without it, every output is a task.
        data: a tensor ``[N, ...]``, a tuple of the file's inputs in order, a dict of them by name, or batches
            of any of these. Half of the examples calibrate, the other half is compared.
        path: the file to write; by default ``model.int8.onnx`` beside ``model.onnx``.
        tolerance: how far INT8 may move a task's output from the float file's, relative in the Euclidean
            norm; one number, or one for each task (5 % for those that are not named). Where an output has
            columns of several sizes, it holds for each size as well.
        arbiter: decides between tasks, see :mod:`disparse_structured.decision.arbiters`; by default the least
            damage within the tolerances. A layer is a unit.
        samples: read at most this many examples.
        threads: of ONNX Runtime while latency is measured.
        rounds: timed runs of each file; 0 measures no latency.

    Returns:
        What became INT8, what it costs each task, and whether it is faster here. If nothing can become INT8,
        nothing is written, and ``path`` is None.

    Raises:
        OptionError: an option is out of range.
        TaskError: ``tolerance`` names an unknown task.
        BatchError: fewer than two examples, or inputs that are not the file's.
        ExportError: the file is missing, damaged, quantized already, or refused by ONNX Runtime.
    """
    from disparse_structured.export.int8 import candidate_of, file_batches  # ONNX may not be installed

    source = as_path("float_path", float_path)
    _check(samples, rounds, threads, arbiter)
    candidate = candidate_of(source, file_batches(source, data, samples), samples)
    return decide(candidate, path, tolerance, arbiter, threads=threads, rounds=rounds)


def quantize_result(
    result: PruningResult,
    float_path: str | os.PathLike[str],
    data: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    dense: nn.Module | None = None,
    dense_tasks: Sequence[Task] | None = None,
    to_inputs: ToInputs | None = None,
    tolerance: float | Mapping[str, float] = TOLERANCE,
    arbiter: Arbiter | None = None,
    samples: int = SAMPLES,
    threads: int = 1,
    rounds: int = 30,
) -> QuantizationFacts:
    """As :func:`quantize`, for the file that ``result`` was exported to, and data as ``prune`` takes it.

    Args:
        result: what was pruned.
        float_path: what ``result.export`` wrote.
        data: as :func:`~disparse_structured.prune` takes it.
        path, tolerance, arbiter, samples, threads, rounds: as in :func:`quantize`.
        dense: the network before pruning; then the report also says how far both files are from it.
        dense_tasks: the tasks of ``dense``, if they are not those of the result.
        to_inputs: as :func:`~disparse_structured.prune` takes it.
    """
    from disparse_structured.export.int8 import candidate_of
    from disparse_structured.export.plain import Binding, plain_copy

    _check(samples, rounds, threads, arbiter)
    given = Data.of(
        result.model,
        data,
        to_inputs,
        samples=samples,
        marked=lambda inputs: marked_like(inputs, result.example_inputs),
    ).calibration
    batches = (*given.chunks, *given.checks)
    reference = None
    if dense is not None:
        outputs = {task.name: task.tensors for task in dense_tasks or result.tasks}
        reference = plain_copy(dense, outputs, Binding.of(dense, batches[0]))
    candidate = candidate_of(as_path("float_path", float_path), batches, samples, reference)
    measured = result.report.deviation
    return decide(
        candidate,
        path,
        tolerance,
        arbiter,
        threads=threads,
        rounds=rounds,
        pruned=measured.final if measured else None,
    )


def _check(samples: int, rounds: int, threads: int, arbiter: Arbiter | None) -> None:
    check_counts(2, samples=samples)
    check_counts(0, rounds=rounds)
    check_counts(threads=threads)
    if arbiter is not None:
        check_rules(arbiter=arbiter)


def decide(
    candidate: Candidate,
    path: str | os.PathLike[str] | None,
    tolerance: float | Mapping[str, float],
    arbiter: Arbiter | None,
    *,
    threads: int,
    rounds: int,
    pruned: Deviations | None = None,
) -> QuantizationFacts:
    """Which layers of ``candidate`` become INT8, written and measured.

    Args:
        candidate: the float file and its inputs.
        path: the file to write; by default beside the float file.
        tolerance, arbiter, threads, rounds: as in :func:`quantize`.
        pruned: by task, the deviation of the float file from the dense network, if the candidate cannot tell.

    Raises:
        OptionError, TaskError, ExportError: as :func:`quantize` does.
    """
    limits = _limits(tolerance, tuple(candidate.graph.tasks))
    rule = arbiter or Tolerance(limits)
    goal = as_path("path", path) if path is not None else candidate.path.with_suffix(".int8.onnx")
    if goal.resolve() == candidate.path.resolve():
        raise OptionError(f"{goal} is the float file, which is kept. Choose another path for the INT8 file.")
    pruned = candidate.from_dense(candidate.path) or pruned
    settings = {
        name: (used(candidate.judged(candidate.layers, setting), limits), setting)
        for name, setting in candidate.settings.items()
    }
    setting = _better(candidate, candidate.layers, limits, *(setting for _, setting in settings.values()))
    corrected = dataclasses.replace(setting, shifts=candidate.shifts(setting))
    preferred = _better(candidate, candidate.layers, limits, setting, corrected)
    damage = {layer: candidate.judged([layer], preferred) for layer in candidate.layers}
    paying = _paying(candidate, preferred, threads) if rounds else None
    consent = Consent(
        damage, candidate.macs, limits, rule, lambda layers: candidate.judged(layers, preferred)
    )
    layers, slow = consent.faster(paying) if paying else (consent.layers(), ())
    setting = _better(candidate, layers, limits, setting, corrected)
    written = candidate.write(layers, setting, goal, threads=threads, rounds=rounds) if layers else None
    recommended, verdict = compare_latency(written.latency if written else None)
    if not layers:
        verdict = "Every layer stayed float, so no INT8 file was written."
        if goal.exists():
            verdict += f" {goal.name} is from an earlier run."
    dense = candidate.from_dense(goal) if written else {}
    everything = candidate.deviations(candidate.layers, setting)
    found = written.deviation if written else dict.fromkeys(limits, Deviation(0.0))
    return QuantizationFacts(
        path=str(goal) if written else None,
        float_path=str(candidate.path),
        bytes=written.bytes if written else None,
        float_bytes=candidate.size,
        sha256=written.sha256 if written else None,
        tasks={
            task: TaskDeviation(
                tolerance=limit,
                pruned=pruned.get(task) if pruned else None,
                all_int8=everything[task].whole,
                int8=found[task].whole,
                int8_from_dense=dense.get(task),
                max_abs=written.max_abs[task] if written else 0.0,
                columns=found[task].columns,
            )
            for task, limit in limits.items()
        },
        layers=tuple(_layer_facts(candidate, damage, layers, limits, slow, paying)),
        calibration=setting.method,
        weight_bits=setting.bits,
        settings={name: share for name, (share, _) in settings.items()},
        biases_corrected=bool(setting.shifts),
        arbiter=rule_name(rule),
        measured=consent.measured,
        predicted_ms=paying.total(layers) if paying else None,
        calibrated_on=candidate.examples[1],
        checked_on=candidate.examples[2],
        latency=written.latency if written else None,
        recommended=recommended,
        verdict=verdict,
    )


def _layer_facts(
    candidate: Candidate,
    damage: Mapping[str, Deviations],
    layers: Collection[str],
    limits: Deviations,
    slow: Collection[str],
    paying: Paying | None,
) -> Iterable[LayerFact]:
    for name, operator, obstacle in candidate.weighted:
        own = damage.get(name, {})
        reason, won = obstacle, paying.at(name, layers) if paying and own else None
        if name in slow:
            reason = "slower in INT8 in its place, conversions before and after it included"
        elif own and name not in layers:
            task = max(limits, key=lambda task: own[task] / limits[task])
            reason = f"alone it moves {task} by {100 * own[task]:.2g} % of {100 * limits[task]:.2g} % allowed"
            if own[task] <= limits[task]:
                reason += ", too much with the others"
        yield LayerFact(
            name,
            operator,
            name in layers,
            candidate.macs.get(name),
            dict(own),
            "" if name in layers else reason,
            paying.as_float.get(name) if paying else None,
            paying.int8.get(name) if paying else None,
            won,
        )


def _paying(candidate: Candidate, setting: Setting, threads: int) -> Paying:
    times = int8_times(candidate.graph, candidate.layers, candidate.shapes, OnnxRuntime(threads=threads))
    return Paying(
        times.as_float,
        times.int8,
        lambda layers: times.between(*candidate.transitions(layers, setting)),
    )


def _limits(tolerance: float | Mapping[str, float], tasks: tuple[str, ...]) -> dict[str, float]:
    given = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(tasks, tolerance)
    try:
        limits = Tolerance(given).limits if given else {}
    except OptionError as error:
        raise OptionError(f"invalid tolerance={tolerance!r}: {error}") from error
    by_task(limits, tasks, TOLERANCE, "tolerance")
    return {task: limits.get(task, TOLERANCE) for task in tasks}


def _better(candidate: Candidate, layers: Collection[str], limits: Deviations, *settings: Setting) -> Setting:
    """Of ``settings``, the first that uses least of the limits with ``layers`` in INT8."""
    return min(settings, key=lambda setting: used(candidate.judged(layers, setting), limits))
