"""The latency of ONNX files, side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from disparse_structured.errors import ExportError
from disparse_structured.export.plain import checked_inputs
from disparse_structured.export.session import feed_of, open_session, run_session
from disparse_structured.report.facts import LatencyFact, LatencyFacts
from disparse_structured.report.machine import processor


def measure_latency(
    paths: Mapping[str, str | os.PathLike[str]],
    inputs: tuple[torch.Tensor, ...],
    *,
    threads: int = 1,
    rounds: int = 30,
    warmup: int = 5,
) -> LatencyFacts:
    """Time ONNX files in ONNX Runtime on the CPU, interleaved.

    Every round runs each file once, and each round starts with the next file, so that a busy moment or
    a falling clock rate affects all of them alike. Times are wall-clock milliseconds of one run.

    Args:
        paths: name -> ONNX file; the first one is the reference of the speed-ups (the dense model).
        inputs: one tuple of tensors that every file takes.
        threads: threads within an operator; operators run one after the other.
        rounds: timed runs of each file.
        warmup: untimed runs of each file beforehand.

    Raises:
        ExportError: nothing to time, a count that is too small, or a file that ONNX Runtime refuses.
    """
    if not paths:
        raise ExportError("there is nothing to time. Pass paths={name: ONNX file}.")
    if threads < 1 or rounds < 1 or warmup < 1:
        raise ExportError(
            f"threads={threads}, rounds={rounds}, warmup={warmup}: each must be at least 1 "
            "(the first run of a session allocates its memory)."
        )
    inputs = checked_inputs(inputs, "the inputs to time")
    sessions = {name: open_session(Path(path), threads=threads) for name, path in paths.items()}
    for session in sessions.values():
        for _ in range(warmup):
            run_session(session, inputs)
    names = list(sessions)
    times = _interleaved(list(sessions.values()), inputs, rounds)
    return LatencyFacts(
        reference=names[0],
        models=LatencyFact.of(names, times),
        input_shapes=tuple(tuple(tensor.shape) for tensor in inputs),
        threads=threads,
        rounds=rounds,
        warmup=warmup,
        cpu=processor(),
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


def _interleaved(
    sessions: list[onnxruntime.InferenceSession], inputs: tuple[torch.Tensor, ...], rounds: int
) -> np.ndarray:
    """Milliseconds, float64 ``[rounds, sessions]``."""
    feeds = [feed_of(session, inputs) for session in sessions]
    times = np.empty((rounds, len(sessions)))
    for turn in range(rounds):
        for offset in range(len(sessions)):
            number = (turn + offset) % len(sessions)
            start = time.perf_counter_ns()
            sessions[number].run(None, feeds[number])
            times[turn, number] = (time.perf_counter_ns() - start) / 1e6
    return times
