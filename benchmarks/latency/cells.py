"""Cells: one network with a number of threads and a batch size; and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.harness.cell import digest
from benchmarks.harness.sweep import SweepRow
from benchmarks.timm_sweep.cells import SEED

WITHIN = 0.03
"""Two times count as equal within this share."""

Point = Mapping[str, float]
"""A measured network: ``share`` of the dense time with quartiles ``lower`` and ``upper``, ``macs`` that are
kept; at equal times also the ``worst`` and the ``mean`` deviation over the tasks."""


@dataclass(frozen=True)
class Cell:
    """``model`` in a runtime of ``threads`` and ``batch``, pruned on ``images`` images by ``method``.

    ``share`` is that of the dense network's time, or of its MACs. With one thread and one image, ``plans``
    random plans are measured. ``side`` is that of the images in pixels; None is the network's own.
    """

    model: str
    threads: int = 1
    batch: int = 1
    images: int = 16
    method: str = "disparse"
    share: float = 0.5
    plans: int = 20
    side: int | None = None

    @property
    def label(self) -> str:
        """Its name in logs and on the shelf."""
        return f"{self.model}, threads {self.threads}, batch {self.batch}"

    @property
    def first(self) -> bool:
        """Whether random plans are measured here: one thread and one image."""
        return self.threads == self.batch == 1

    @property
    def arguments(self) -> list[str]:
        """It on the command line of :mod:`benchmarks.latency.measure`."""
        side = [f"--side={self.side}"] if self.side else []
        return [
            self.model,
            f"--threads={self.threads}",
            f"--batch={self.batch}",
            f"--images={self.images}",
            f"--method={self.method}",
            f"--share={self.share}",
            f"--plans={self.plans}",
            *side,
        ]

    @property
    def settings(self) -> str:
        """Identifies everything that determines the row, except for the code."""
        return digest(asdict(self), SEED, WITHIN)


@dataclass(frozen=True)
class Row(SweepRow[Cell]):
    """What one cell gave; what a stage finds keeps its default if the stage did not end.

    Args:
        seconds: of every stage that ended; ``table`` is that of an empty cache.
        macs: of the dense network, one example.
        dense_ms: of the dense network.
        measured: how many times the table holds.
        exporter: the dense time of the files that are timed, relative to that of the package's export.
        asked, predicted, reached: of the latency budget: shares of the dense time.
        exports: how many files it took.
        plans: predicted and measured shares of random plans, before any correction.
        points: by variant, the latency budget and MACs budgets of the cell's share.
        equal: by variant, MACs budgets such that the measured time is that of the latency budget.
        machine: processor, threads and versions.
    """

    macs: float = 0.0
    dense_ms: float = 0.0
    measured: int = 0
    exporter: float = 0.0
    asked: float = 0.0
    predicted: float = 0.0
    reached: float = 0.0
    exports: int = 0
    plans: Sequence[Point] = ()
    points: Mapping[str, Point] = field(default_factory=dict)
    equal: Mapping[str, Point] = field(default_factory=dict)
    machine: Mapping[str, str | int] = field(default_factory=dict)
