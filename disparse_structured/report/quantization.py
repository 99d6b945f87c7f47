"""What became INT8, what that costs each task, and whether it is faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from disparse_structured.data.deviation import Columns
from disparse_structured.report import words
from disparse_structured.report.deviation import columns_line
from disparse_structured.report.facts import LatencyFacts
from disparse_structured.report.text import numbers_table, plain_text

FLOAT, INT8, ALL_INT8 = "float", "int8", "all int8"
"""The names of the timed files."""

_SHOWN = 8


@dataclass(frozen=True)
class LayerFact:
    """One layer of the file.

    Args:
        name: of the node.
        operator: such as ``"Conv"``.
        int8: whether it was quantized.
        macs: multiplications for one example; None where that was not counted.
        damage: by task, the relative deviation if this layer alone is INT8, of the whole output or of its
            columns of one size, whichever is larger; empty where it cannot be.
        reason: why it stayed float; empty if it did not.
        float_ms, int8_ms: its time alone, in float and in INT8; None where times were not measured.
        won_ms: the time that INT8 saves in its place, given the other INT8 layers; below 0 it costs time.
    """

    name: str
    operator: str
    int8: bool
    macs: int | None
    damage: Mapping[str, float]
    reason: str = ""
    float_ms: float | None = None
    int8_ms: float | None = None
    won_ms: float | None = None


@dataclass(frozen=True)
class TaskDeviation:
    """How far the output of one task moved, relative in the Euclidean norm, on held-out inputs.

    Args:
        tolerance: the most that INT8 may add.
        pruned: of the float file from the dense network; None if that was not measured.
        all_int8: of the file with everything in INT8, from the float file.
        int8: of the written file, from the float file.
        int8_from_dense: of the written file, from the dense network; None if that was not measured.
        max_abs: the largest difference of one value between the written file and the float file.
        columns: those of one size that moved most from the float file to the written one; None where all are
            of one size. The tolerance holds for them as well.
    """

    tolerance: float
    pruned: float | None
    all_int8: float
    int8: float
    int8_from_dense: float | None
    max_abs: float
    columns: Columns | None = None


@dataclass(frozen=True)
class QuantizationFacts:
    """What an INT8 file holds, how it was decided, and how it compares with its float file.

    Args:
        path: the INT8 file; None if everything stayed float and nothing was written.
        float_path: the file that it came from.
        bytes: of the INT8 file, None without one.
        float_bytes: of the float file.
        sha256: of the INT8 file, None without one.
        tasks: by name.
        layers: all that multiply, in the order of the file.
        calibration: the method by which the ranges were chosen.
        weight_bits: 8 or 7.
        settings: by method and bits, the worst task's deviation as a share of its tolerance with everything
            in INT8 and biases not corrected, judged as the tolerance is.
        biases_corrected: whether constants were added to biases.
        arbiter: the rule that chose the layers.
        measured: how many sets of layers were tried as a whole.
        calibrated_on: examples that ranges and biases come from.
        checked_on: other examples, on which everything is compared.
        latency: of both files, and of everything in INT8; None if not measured.
        recommended: ``"int8"`` if that is measurably faster, else ``"float"``.
        verdict: the reason in words.
        predicted_ms: milliseconds that INT8 saves, predicted from the times of single layers; None if not
            measured.
    """

    path: str | None
    float_path: str
    bytes: int | None
    float_bytes: int
    sha256: str | None
    tasks: Mapping[str, TaskDeviation]
    layers: tuple[LayerFact, ...]
    calibration: str
    weight_bits: int
    settings: Mapping[str, float]
    biases_corrected: bool
    arbiter: str
    measured: int
    calibrated_on: int
    checked_on: int
    latency: LatencyFacts | None
    recommended: str
    verdict: str
    predicted_ms: float | None = None

    @property
    def quantized(self) -> tuple[LayerFact, ...]:
        """The layers in INT8."""
        return tuple(layer for layer in self.layers if layer.int8)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._tasks()
        for name, task in self.tasks.items():
            if task.columns is not None:
                yield columns_line(name, task.columns)
        rule = self.arbiter.partition("(")[0]
        chosen = f"{len(self.quantized)} of {len(self.layers)} layers in INT8, chosen by {rule}"
        biases = "biases corrected" if self.biases_corrected else "biases as they were"
        yield Text(
            f"{chosen} in {self.measured} measurements; weights of {self.weight_bits} bits by channel, "
            f"ranges by {self.calibration}, {biases}"
        )
        yield Text(
            f"everything in INT8, biases not corrected, uses {min(self.settings.values()):.2g} of the worst "
            f"task's tolerance, and up to {max(self.settings.values()):.2g} with other ranges or bits"
        )
        yield Text(f"calibrated on {self.calibrated_on} inputs, compared on {self.checked_on} others")
        left = sorted(
            (layer for layer in self.layers if not layer.int8),
            key=lambda layer: max(layer.damage.values(), default=0.0),
            reverse=True,
        )
        for layer in left[:_SHOWN]:
            yield Text(f"float: {layer.name} ({layer.operator}): {layer.reason}", style="yellow")
        if len(left) > _SHOWN:
            yield Text(f"… and {len(left) - _SHOWN} more layers stayed float", style="yellow")
        if self.bytes is not None:
            yield Text(f"{words.size(self.float_bytes)} as float, {words.size(self.bytes)} as INT8")
        if self.predicted_ms is not None:
            change = f"{abs(self.predicted_ms):.3g} ms {'less' if self.predicted_ms > 0 else 'more'}"
            yield Text(f"the times of single layers predict {change} in INT8, conversions included")
        if self.latency is not None:
            yield self.latency
        style = "" if self.recommended == INT8 else "bold yellow"
        yield Text(f"{self.verdict} Recommended: the {self.recommended} file.", style=style)

    def __str__(self) -> str:
        return plain_text(self)

    def _tasks(self) -> Table:
        dense = any(task.pruned is not None for task in self.tasks.values())
        both = any(task.int8_from_dense is not None for task in self.tasks.values())
        from_dense = ["float from dense"] * dense + ["INT8 from dense"] * both
        table = numbers_table("deviation", "tolerance", "all INT8", "INT8", "largest difference", *from_dense)
        for name, task in self.tasks.items():
            row = [words.percent(value) for value in (task.tolerance, task.all_int8, task.int8)]
            row.append(f"{task.max_abs:.2g}")
            row += [words.percent(task.pruned)] * dense + [words.percent(task.int8_from_dense)] * both
            table.add_row(Text(name), *row)
        return table


def compare_latency(latency: LatencyFacts | None) -> tuple[str, str]:
    """The name of the recommended file, and why.

    INT8 is recommended only if three of four of its runs were faster than three of four float ones.
    """
    if latency is None:
        return FLOAT, "Latency was not measured, so nothing shows that INT8 is faster."
    named = {fact.name: fact for fact in latency.models}
    before, after = named[FLOAT], named[INT8]
    numbers = f"{after.median_ms:.3g} ms against {before.median_ms:.3g} ms"
    if after.upper_quartile_ms < before.lower_quartile_ms:
        return INT8, f"INT8 is faster on this processor: {numbers}, {after.speedup:.2f}×."
    if after.lower_quartile_ms > before.upper_quartile_ms:
        slower = f"INT8 is slower than float on this processor: {numbers}."
    else:
        slower = f"INT8 is not measurably faster on this processor: {numbers}, and the quartiles overlap."
    everything = named.get(ALL_INT8)
    if everything is not None and everything.upper_quartile_ms < before.lower_quartile_ms:
        slower += (
            f" Everything in INT8 would be faster ({everything.median_ms:.3g} ms), beyond the tolerances."
        )
    return FLOAT, slower
