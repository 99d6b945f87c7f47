"""Cells of the tables, and what running one gives: a row, kept as one JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.tables.settings import Setup

DENSE = "dense"
Figures = Mapping[str, Mapping[str, float]]
"""Task to metric to value."""


@dataclass(frozen=True)
class Cell:
    """One network of the tables.

    Args:
        dataset: of the setup.
        method: ``"regime/name"``, or ``"dense"``.
        removed: share of the dense MACs that goes, 0 for the dense network.
        seed: of initialisation, data order and scoring.
        loud: the task whose loss is multiplied by ``factor`` while saliency is measured; none if empty.
        factor: see ``loud``.
        trunk: ``"watershed"`` or ``"unshared"`` where the tasks have trunks of their own from there on.
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
    def file(self) -> Path:
        """Where its row is kept, below a scale's folder."""
        parts = [self.regime, self.name] if self.method != DENSE else [DENSE]
        parts += [] if self.method == DENSE else [f"{self.removed:g}"]
        parts += [f"{self.loud}x{self.factor:g}"] if self.loud else []
        parts += [self.trunk] if self.trunk else []
        return Path(self.dataset) / ("-".join([*parts, str(self.seed)]) + ".json")

    def __str__(self) -> str:
        return f"{self.dataset} {self.file.stem}"


@dataclass(frozen=True)
class Row:
    """What one cell gave.

    Args:
        cell: which one.
        settings: hash of all that decides the result; see :func:`settings_hash`.
        setup, method: what was hashed, in the open.
        error: why there is no result; None where there is one.
        macs, parameters: measured on the finished network, as shares of the dense one's.
        dense, before, after: all metrics, of the dense network of the same seed, of the network before
            its last training (right after pruning, or untrained), and of the finished one.
        delta_before, delta_t: mean relative change of the tasks' headline metrics in percent, up is good.
        plan: hash of what was removed, over all groups; the provenance does not enter it.
        note: what else there is to know, such as where the trunk was cut.
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

    def write(self, folder: Path) -> Path:
        """Writes its file below ``folder``, all or nothing, and returns the path."""
        path = folder / self.cell.file
        rows.write(path, self)
        return path


def read(path: Path) -> Row:
    """The row in ``path``; :class:`RowError` where there is none in it."""
    return rows.read(path, Row, Cell)


def all_rows(folder: Path) -> Iterator[Row]:
    """All rows below ``folder``, in the order of their names."""
    for path in sorted(folder.glob("*/*.json")):
        yield read(path)


def settings_hash(cell: Cell, setup: Setup, method: Mapping[str, Any]) -> str:
    """16 hex digits over the cell, the setup and the description of the method."""
    return rows.digest(asdict(cell), asdict(setup), method)


def described(choice: object) -> str:
    """A criterion, an arbiter or a ranking by class and settings, the same in every process."""
    text = choice.__name__ if isinstance(choice, type) else repr(choice)
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", re.sub(r" object at 0x[0-9a-f]+", "", text))
