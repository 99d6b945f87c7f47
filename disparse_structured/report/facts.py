"""Measurements as immutable data that ``dataclasses.asdict`` turns into JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from disparse_structured.report.text import numbers_table


@dataclass(frozen=True)
class ParityFact:
    """How far the outputs of one task differ between ONNX Runtime and PyTorch on one batch.

    ``max_abs`` is ``max |a - b|``, and ``max_rel`` is ``max |a - b| / max |b|`` of the worst channel or
    column, ``b`` being PyTorch's tensor (see :func:`~disparse_structured.export.check_parity` for channels
    that are mostly rounding); for a task with several tensors, each is the worst one's. ``batch`` is the
    size of the first dimension of the first input.
    """

    task: str
    batch: int
    input_shapes: tuple[tuple[int, ...], ...]
    max_abs: float
    max_rel: float
    tolerance: float


@dataclass(frozen=True)
class TensorFact:
    """One input or output of an ONNX file; a dimension is a number, or the name of a free one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportFacts:
    """What an ONNX file holds, and how closely it agrees with PyTorch.

    ``dynamic`` says which dimensions are free (``"batch+size"``, ``"size"``, ``"batch"`` or
    ``"static"``); ``narrowed`` has one line for each wider form that was not used, with the reason.
    ``unchecked`` names the check inputs, or the samples at their end, that do not fit the file's
    shapes. ``constants`` are the arguments of ``forward`` that are not tensors; the file fixes them.
    ``bytes`` and ``sha256`` are of the file and its external data, one after the other.
    """

    path: str
    bytes: int
    sha256: str
    external_data: bool
    opset: int
    dynamic: str
    narrowed: tuple[str, ...]
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    metadata: dict[str, str]
    parity: tuple[ParityFact, ...]
    unchecked: tuple[str, ...]
    constants: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencyFact:
    """Milliseconds of one model, and how much faster than the reference it is.

    ``speedup`` is the ratio of the medians (reference over this model), ``paired_speedup`` the median
    over the rounds of the same ratio within a round, which is robust to drifts of the machine's clock.
    """

    name: str
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    speedup: float
    paired_speedup: float

    @classmethod
    def of(cls, names: Sequence[str], times: np.ndarray) -> tuple[LatencyFact, ...]:
        """From milliseconds ``[rounds, models]``; the first of ``names`` is the reference."""
        reference = times[:, 0]
        found = []
        for name, own in zip(names, times.T, strict=True):
            lower, median, upper = map(float, np.quantile(own, [0.25, 0.5, 0.75]))
            speedup, paired = float(np.median(reference) / median), float(np.median(reference / own))
            found.append(cls(name, median, lower, upper, speedup, paired))
        return tuple(found)


@dataclass(frozen=True)
class LatencyFacts:
    """Latencies of several models, interleaved in one run; the first is the ``reference``."""

    reference: str
    models: tuple[LatencyFact, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    threads: int
    rounds: int
    warmup: int
    cpu: str
    runtime: str

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A line for each model but the reference: faster, slower, or no measurable difference."""
        reference, *others = self.models
        return tuple(_compared(each, reference) for each in others)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = numbers_table("model", "median ms", "quartiles", "speed-up")
        for fact in self.models:
            quartiles = f"{fact.lower_quartile_ms:.3g} to {fact.upper_quartile_ms:.3g}"
            table.add_row(Text(fact.name), f"{fact.median_ms:.3g}", quartiles, f"{fact.paired_speedup:.2f} x")
        yield table
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        how = f"{self.rounds} rounds in turn, threads: {self.threads}, input {shapes}"
        yield Text(f"{how}, {self.runtime}, {self.cpu}")


def _compared(model: LatencyFact, reference: LatencyFact) -> str:
    if model.upper_quartile_ms < reference.lower_quartile_ms:
        return f"{model.name} is {model.paired_speedup:.2f} times as fast as {reference.name}"
    if model.lower_quartile_ms > reference.upper_quartile_ms:
        return f"{model.name} takes {1 / model.paired_speedup:.2f} times as long as {reference.name}"
    return f"no measurable difference between {model.name} and {reference.name}: their quartiles overlap"
