"""Cells: one method on one network at one share of the MACs; their rows; and where both are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.cell import described, digest
from benchmarks.harness.row import Shelf
from benchmarks.no_training.bench import INPUTS
from benchmarks.no_training.methods import METHODS, Method
from benchmarks.no_training.networks import NETWORKS, Network
from benchmarks.tables.cells import Figures

BY_NAME: Mapping[str, Network] = {network.name: network for network in NETWORKS}


@dataclass(frozen=True)
class Cell:
    """One pruned network.

    Args:
        network: ``"dataset/architecture"``.
        method: a name of :data:`METHODS`.
        macs: the share of the MACs to keep.
        seed: random seed of the network and of the choice of images.
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
    def label(self) -> str:
        """Its name in logs, on the page and on the shelf."""
        parts = [self.method, f"{self.macs:g}", f"{self.seed}"]
        parts += [f"i{self.inputs}"] if self.inputs != INPUTS else []
        parts += [f"e{self.epochs}"] if self.epochs else []
        return f"{self.network}/{'-'.join(parts)}"


@dataclass(frozen=True)
class Row:
    """What one cell gave.

    Args:
        cell: the cell that was run.
        settings: a hash of everything that determines the result; see :meth:`Workspace.settings`.
        method: the description that was hashed.
        error: why there is no result; None where there is one.
        macs, parameters: measured on the pruned network, as shares of the dense one's.
        deviation: by task, on the images that are reported on.
        dense, pruned: all metrics of both networks.
        delta_t: ΔT in percent; higher is better.
        deltas: the same for each task.
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
        """ΔT of the task that lost most, in percent."""
        return min(self.deltas.values())


@dataclass(frozen=True)
class Workspace:
    """Where cells are run.

    Args:
        folder: where rows are kept, and the seconds of the timed call.
        cache: where trained networks are kept.
        networks: the networks that cells name.
    """

    folder: Path
    cache: Path
    networks: Mapping[str, Network] = field(default_factory=lambda: BY_NAME)

    @property
    def shelf(self) -> Shelf[Row]:
        """All rows."""
        return Shelf(self.folder / "rows.jsonl", Row, Cell)

    @property
    def timed(self) -> Path:
        """The seconds of one call on a large network, as JSON."""
        return self.folder / "call.json"

    def rows(self) -> list[Row]:
        """The rows of the present networks, methods and settings; raises :class:`RowError`."""
        return [row for row in self.shelf.rows() if self.is_current(row)]

    def is_current(self, row: Row) -> bool:
        """Whether the row's network, method and settings are the present ones."""
        known = row.cell.network in self.networks and row.cell.method in METHODS
        return known and row.settings == self.settings(row.cell)

    def finished(self) -> set[Cell]:
        """The cells with a current row and a result; raises :class:`RowError`."""
        return {row.cell for row in self.rows() if row.error is None}

    def settings(self, cell: Cell) -> str:
        """Identifies the cell, the training of its network and the description of its method."""
        setup = asdict(self.networks[cell.network].setup)
        return digest(asdict(cell), setup, description(METHODS[cell.method]))

    def facts(self, cell: Cell) -> dict[str, Any]:
        """What a row says about itself, whether or not the cell gave a result."""
        return {"settings": self.settings(cell), "method": description(METHODS[cell.method])}


def description(method: Method) -> str:
    """How a method prunes; the same text in every process."""
    return described(method.prune)
