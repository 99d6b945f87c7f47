"""Cells of the tables, and the rows that running them gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness.cell import digest
from benchmarks.tables.settings import Setup

DENSE = "dense"
Figures = Mapping[str, Mapping[str, float]]
"""Task to metric to value."""


@dataclass(frozen=True)
class Cell:
    """One network of the tables.

    Args:
        dataset: the data set of the setup.
        method: ``"regime/name"``, or ``"dense"``.
        removed: the share of the dense MACs to remove, 0 for the dense network.
        seed: random seed for initialization, data order and scoring.
        loud: the task whose loss is multiplied by ``factor`` while saliency is measured; no task if empty.
        factor: see ``loud``.
        trunk: where each task gets a trunk of its own: ``"watershed"``, ``"unshared"`` (from the start), or
            empty (nowhere).
    """

    dataset: str
    method: str
    removed: float
    seed: int
    loud: str = ""
    factor: float = 1.0
    trunk: str = ""

    @property
    def regime(self) -> str:
        """The first part of the method's name."""
        return self.method.partition("/")[0]

    @property
    def name(self) -> str:
        """The method's name within its regime."""
        return self.method.partition("/")[2] or self.method

    @property
    def dense(self) -> Cell:
        """The dense network that this one is compared with."""
        return Cell(self.dataset, DENSE, 0.0, self.seed)

    @property
    def label(self) -> str:
        """Its name in logs, and on the shelf of its data set."""
        parts = [DENSE] if self.method == DENSE else [self.regime, self.name, f"{self.removed:g}"]
        parts += [f"{self.loud}x{self.factor:g}"] if self.loud else []
        parts += [self.trunk] if self.trunk else []
        return f"{self.dataset} {'-'.join([*parts, str(self.seed)])}"


@dataclass(frozen=True)
class Row:
    """What one cell gave.

    Args:
        cell: the cell that was run.
        settings: a hash of everything that determines the result; see :func:`settings_hash`.
        setup, method: what was hashed.
        error: why there is no result; None where there is one.
        macs, parameters: measured on the finished network, as shares of the dense one's.
        dense, before, after: all metrics of the dense network of the same seed, of the network before
            its last training (right after pruning, or untrained), and of the finished one.
        delta_before, delta_t: mean relative change of the tasks' headline metrics in percent; higher is
            better.
        plan: a hash of the units that were removed.
        note: anything else worth knowing, such as where the trunk was cut.
        seconds: ``wall`` and ``cpu`` of the cell, ``train`` of training, ``companion`` of the regime within.
        machine: processor, threads and versions.
    """

    cell: Cell
    settings: str
    setup: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    macs: float | None = None
    parameters: float | None = None
    dense: Figures = field(default_factory=dict)
    before: Figures = field(default_factory=dict)
    after: Figures = field(default_factory=dict)
    delta_before: float | None = None
    delta_t: float | None = None
    plan: str | None = None
    note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, str | int] = field(default_factory=dict)


def settings_hash(cell: Cell, setup: Setup, method: Mapping[str, Any]) -> str:
    """Identifies the cell, the setup and the description of the method."""
    return digest(asdict(cell), asdict(setup), method)
