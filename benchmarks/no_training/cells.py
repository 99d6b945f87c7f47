"""Cells: one method on one network at one share of the MACs; and their rows, each one JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.methods import METHODS, Method
from benchmarks.no_training.networks import NETWORKS, Network
from benchmarks.rows import RowError
from benchmarks.tables.cells import Figures, described

BY_NAME: Mapping[str, Network] = {network.name: network for network in NETWORKS}


@dataclass(frozen=True)
class Cell:
    """One pruned network.

    Args:
        network: ``"dataset/architecture"``.
        method: a name of :data:`METHODS`.
        macs: the share that is to be left.
        seed: of the network and of the images.
        inputs: how many images.
        epochs: of training after pruning; 0 in the tables.
    """

    network: str
    method: str
    macs: float
    seed: int
    inputs: int = INPUTS
    epochs: int = 0

    @property
    def file(self) -> Path:
        """Where its row is kept, below the folder of rows."""
        parts = [re.sub(r"[^\w+]+", "-", self.method), f"{self.macs:g}", f"{self.seed}"]
        parts += [f"i{self.inputs}"] if self.inputs != INPUTS else []
        parts += [f"e{self.epochs}"] if self.epochs else []
        return Path(self.network) / ("-".join(parts) + ".json")


@dataclass(frozen=True)
class Row:
    """What one cell gave.

    Args:
        cell: which one.
        settings: hash of all that decides the result; see :meth:`Lab.settings`.
        method: the description that was hashed.
        error: why there is no result; None where there is one.
        macs, parameters: measured on the pruned network, as shares of the dense one's.
        deviation: by task, on the images that are reported on.
        dense, pruned: all metrics of both networks.
        delta_t: ΔT in percent, up is good.
        deltas: the same of each task.
        seconds: from the dense network to the pruned one, training included.
        machine: processor, threads and versions.
    """

    cell: Cell
    settings: str = ""
    method: str = ""
    error: str | None = None
    macs: float = 0.0
    parameters: float = 0.0
    deviation: Mapping[str, float] = field(default_factory=dict)
    dense: Figures = field(default_factory=dict)
    pruned: Figures = field(default_factory=dict)
    delta_t: float = 0.0
    deltas: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    machine: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def mean_deviation(self) -> float:
        """Over the tasks."""
        return sum(self.deviation.values()) / len(self.deviation)

    @property
    def worst(self) -> float:
        """The task that lost most, in percent."""
        return min(self.deltas.values())

    def write(self, folder: Path) -> None:
        """Writes its file below ``folder``, all or nothing."""
        rows.write(folder / self.cell.file, self)


def read(path: Path) -> Row:
    """The row in ``path``; :class:`RowError` where there is none in it."""
    return rows.read(path, Row, Cell)


@dataclass(frozen=True)
class Lab:
    """Where cells are run.

    Args:
        folder: rows are below it.
        cache: trained networks are there, or go there.
        networks: what cells name, by name.
    """

    folder: Path
    cache: Path
    networks: Mapping[str, Network] = field(default_factory=lambda: BY_NAME)

    def rows(self) -> Iterator[Row]:
        """All rows of networks, methods and settings as they are now."""
        for path in sorted(self.folder.glob("*/*/*.json")):
            row = read(path)
            if self.is_current(row):
                yield row

    def is_current(self, row: Row) -> bool:
        """Whether the row's network, method and settings are as they are now."""
        known = row.cell.network in self.networks and row.cell.method in METHODS
        return known and row.settings == self.settings(row.cell)

    def is_done(self, cell: Cell) -> bool:
        """Whether there is a current row of this cell, with a result."""
        path = self.folder / cell.file
        try:
            return path.is_file() and self.is_current(row := read(path)) and row.error is None
        except RowError:
            return False  # it is written anew

    def settings(self, cell: Cell) -> str:
        """16 hex digits over the cell, the network's training and the description of the method."""
        setup = asdict(self.networks[cell.network].setup)
        return rows.digest(asdict(cell), setup, description(METHODS[cell.method]))

    def facts(self, cell: Cell) -> dict[str, Any]:
        """What a row says about itself, whether or not the cell gives a result."""
        return {"settings": self.settings(cell), "method": description(METHODS[cell.method])}


def description(method: Method) -> str:
    """How it prunes, the same in every process."""
    return described(method.prune)
