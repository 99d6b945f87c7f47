"""The page: what was to be achieved, and a line for each cell; and the counts as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.harness.machine import in_words
from benchmarks.harness.views import NONE, markdown, percent, times
from benchmarks.latency.cells import WITHIN, Point, Row
from benchmarks.latency.networks import HELD_OUT
from benchmarks.latency.variants import OURS, ROUNDING, VARIANTS
from disparse_structured.pipeline.latency import EXPORTS
from disparse_structured.pipeline.latency import WITHIN as MET

_DEFAULT = "MACs, auto"
_BUDGETS = tuple(ROUNDING)

_HEAD = f"""# Milliseconds in ONNX Runtime

`python -m benchmarks.latency` (`make latency`) writes this page from [one line of JSON per
cell](../../benchmarks/results/latency/rows.jsonl). Networks have three heads and random weights, so
deviations compare budgets and say nothing about accuracy. All budgets decide on the same scores. *latency* is
`prune(latency=...)`; *MACs* are MACs budgets with `round_to=1`, `"auto"` (the default), 8 and 16; *stock, 8*
is Torch-Pruning by group magnitude with `round_to=8`, the same share of every layer, without a refit.

Files of one comparison run in turn with the dense file. A time is the 10 % quantile; with one thread it is
the CPU time of that thread. The *share of the ideal* is the speed-up times the share of the MACs that is
kept. *At the same time*, each variant keeps the share of the MACs at which its measured time equals that of
the latency budget, within {WITHIN:.0%}. It is found by measuring up to four files; ≠ marks variants that
miss this margin. The deviation is the worst task's, `‖pruned − dense‖ / ‖dense‖` on {HELD_OUT} other
images. Dozens of files are written by torch's older exporter, which is ten times as fast; *exporter* is the
dense time of such a file relative to the package's own export, on which the latency budget is decided and
measured.
"""


@dataclass(frozen=True)
class Summary:
    """What was to be achieved, over the cells that have what it takes."""

    cells: int
    faster: int
    ideal: int
    met: int
    asked: int
    compared: int
    lower: int
    ratio: float | None
    plans: int
    close: float | None
    furthest: float | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Summary:
        """The counts over ``rows``."""
        found = [row for row in rows if row.points]
        asked = [row for row in rows if row.asked or "ours" in row.failures]
        ratios = [ratio for row in rows if (ratio := against_best(row)) is not None]
        errors = [abs(each) for row in rows for each in missed(row)]
        return cls(
            cells=len(found),
            faster=sum(row.points[_DEFAULT]["upper"] < 1 for row in found),
            ideal=sum(_ideal(row.points.get(OURS)) >= 0.9 for row in found),
            met=sum(bool(row.asked) and abs(row.reached / row.asked - 1) <= MET for row in asked),
            asked=len(asked),
            compared=len(ratios),
            lower=sum(ratio < 1 for ratio in ratios),
            ratio=statistics.median(ratios) if ratios else None,
            plans=len(errors),
            close=sum(error <= 0.1 for error in errors) / len(errors) if errors else None,
            furthest=float(np.quantile(errors, 0.95)) if errors else None,
        )


def document(rows: Sequence[Row], plots: Iterable[str] = ()) -> str:
    """The whole page."""
    machines = sorted({in_words(row.machine) for row in rows if row.machine})
    parts = [_HEAD.rstrip(), *(f"Measured on {text}." for text in machines)]
    if rows:
        parts += ["## Goals", goals(rows), *plots]
        parts += ["## The latency budget", ours(rows)]
        parts += ["## Speed-up and share of the ideal at half the MACs", speeds(rows)]
        parts += ["## Deviation at the same time", deviations(rows)]
        parts += ["## Predictions of random plans, before any correction", predictions(rows)]
        failed = [f"- {row.cell.label}: {row.verdict}" for row in rows if not row.sound]
        parts += ["## Not finished", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def goals(rows: Sequence[Row]) -> str:
    """What was to be achieved, for all cells."""
    found = Summary.of(rows)
    return markdown(
        ("", "found", "asked"),
        [
            ("faster than dense after a default call", f"{found.faster} of {found.cells}", "all"),
            (
                "latency budget: share of the ideal at least 0.9",
                f"{found.ideal} of {found.cells}",
                "8 of 10",
            ),
            (
                f"time met within {MET:.0%}, in at most {EXPORTS} exports",
                f"{found.met} of {found.asked}",
                "all",
            ),
            (
                "random plans predicted within 10 %",
                f"{percent(found.close)} of {found.plans}",
                "95 %",
            ),
            ("error of 95 % of the predictions at most", percent(found.furthest), "10 %"),
            (
                "deviation at the same time lower than that of the best MACs budget",
                f"{found.lower} of {found.compared}",
                "all",
            ),
            ("the ratio of the two, median", times(found.ratio), "0.7 ×"),
        ],
    )


def ours(rows: Sequence[Row]) -> str:
    """The latency budget, cell by cell."""
    head = ("cell", "dense ms", "asked", "predicted", "measured", "exports", "MACs", "of the ideal",
            "table s", "times in it", "exporter")  # fmt: skip
    body = []
    for row in rows:
        point = row.points.get(OURS)
        body.append(
            (
                row.cell.label,
                f"{row.dense_ms:.2f}" if row.dense_ms else NONE,
                *(percent(each or None) for each in (row.asked, row.predicted, row.reached)),
                str(row.exports or NONE),
                percent(point["macs"] if point else None),
                f"{_ideal(point):.2f}" if point else NONE,
                f"{row.seconds['table']:.0f}" if "table" in row.seconds else NONE,
                str(row.measured or NONE),
                times(row.exporter or None),
            )
        )
    return markdown(head, body)


def speeds(rows: Sequence[Row]) -> str:
    """How much faster each variant is, and the share of the ideal; slower ones are marked."""
    return markdown(
        ("cell", *VARIANTS),
        [(row.cell.label, *(_speed(row.points.get(name)) for name in VARIANTS)) for row in rows],
    )


def deviations(rows: Sequence[Row]) -> str:
    """The worst deviation of each variant at the time of the latency budget."""
    body = []
    for row in rows:
        wanted = row.equal.get(OURS, {}).get("share")
        body.append(
            (
                row.cell.label,
                percent(wanted),
                *(_deviation(row.equal.get(name), wanted) for name in VARIANTS),
                times(against_best(row)),
            )
        )
    return markdown(("cell", "time", *VARIANTS, "latency / best MACs budget"), body)


def predictions(rows: Sequence[Row]) -> str:
    """How far predictions of random plans are off, network by network."""
    body = []
    for row in rows:
        errors = np.array(missed(row))
        if len(errors):
            low = [error for error, plan in zip(errors, row.plans, strict=True) if plan["macs"] < 0.3]
            body.append(
                (
                    row.cell.label,
                    str(len(errors)),
                    f"{float((abs(errors) <= 0.1).mean()):.0%}",
                    f"{float(np.median(errors)):+.1%}",
                    *(f"{float(np.quantile(abs(errors), each)):.1%}" for each in (0.5, 0.95)),
                    f"{float(np.median(low)):+.1%}" if low else NONE,
                )
            )
    head = (
        "cell",
        "plans",
        "within 10 %",
        "median error",
        "half within",
        "95 % within",
        "below 30 % of the MACs",
    )
    return markdown(head, body)


def missed(row: Row) -> list[float]:
    """Predicted over measured minus 1, of every random plan."""
    return [plan["predicted"] / plan["share"] - 1 for plan in row.plans]


def against_best(row: Row) -> float | None:
    """The worst deviation of the latency budget, relative to that of the best MACs budget at its time."""
    found = [row.equal[name]["worst"] for name in _BUDGETS if name in row.equal]
    return row.equal[OURS]["worst"] / min(found) if found and OURS in row.equal else None


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The counts, over all cells and over those with one thread and one image; and the machines."""
    return {
        "all": asdict(Summary.of(rows)),
        "first": asdict(Summary.of([row for row in rows if row.cell.first])),
        "machines": sorted({in_words(row.machine) for row in rows if row.machine}),
    }


def _ideal(point: Point | None) -> float:
    return point["macs"] / point["share"] if point else 0.0


def _speed(point: Point | None) -> str:
    if point is None:
        return NONE
    text = f"{1 / point['share']:.2f} × ({_ideal(point):.2f})"
    return text if point["upper"] < 1 else f"*{text}*"


def _deviation(point: Point | None, wanted: float | None) -> str:
    if point is None or wanted is None:
        return NONE
    other = "" if abs(point["share"] / wanted - 1) <= WITHIN else "≠ "
    return f"{other}{point['worst']:.3f} ({percent(point['macs'])})"
