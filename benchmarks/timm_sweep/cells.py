"""Cells: one timm model as one kind of network; and their rows, each one JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from benchmarks import rows
from benchmarks.rows import RowError

Kind = Literal["multitask", "classifier"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BATCH = 2
SEED = 0
WIDTH = 0.5
"""Share of every group's units that the plan is to leave."""

PARITY = 1e-4
"""Largest relative difference between ONNX Runtime and PyTorch."""

START = "start"
"""The stage before any other: Python and the libraries are being loaded."""

SOUND = ("surgery", "onnx", "train")
"""Stages whose end makes a model sound as module: twin and forward are proven by the first."""

BESIDE = ("graph", "stock graph", "stock prune", "stock run")
"""Stages that say nothing about the module."""


LATE = "it took more than"
"""Begins the reason of a stage that passed a limit."""


@dataclass(frozen=True)
class Cell:
    """``model`` with three heads of its own, or as the classifier that timm makes of it.

    ``image_size`` is a side in pixels; None is timm's own size.
    """

    model: str
    kind: Kind
    image_size: int | None = None

    @property
    def file(self) -> Path:
        """Where its row is kept, below the folder of rows: one of any size."""
        name = re.sub(r"[^\w.-]+", "-", self.model)
        return Path(self.kind) / f"{name}.json"

    @property
    def settings(self) -> str:
        """16 hex digits over all that decides the row but the code."""
        return rows.digest(asdict(self), BATCH, SEED, WIDTH, PARITY)


@dataclass(frozen=True)
class Row:
    """What one cell gave; what a stage found stays at its default if the stage did not end.

    Args:
        cell: which one.
        settings: see :attr:`Cell.settings`.
        stage: the one that was at work when the process ended; empty once all is done.
        failures: stage to reason.
        seconds: of every stage that ended. ``structure`` includes an export of its own, ``surgery`` the
            proof; ``export`` is torch's alone, the second time.
        first_try: the verdict of the first run of this cell; empty if this is the first.
        parameters, macs: of the dense network; MACs of one example, from the structure's cost model.
        groups, units: how many.
        prunable_parameters, prunable_macs: shares that could go, all width rules but one unit a group off.
        pinned: reasons for what may not go, and at most what share of the parameters each holds; largest
            first. What two pins hold is counted for both.
        planned: parameters that the plan leaves.
        left, macs_left: parameters and MACs of the pruned network; more than planned if groups were refused.
        twin: largest relative difference from the masked twin over the tasks; ``tolerance`` is allowed.
        dtype: of that comparison: float64 where the network runs in it.
        refused: groups that ``forward`` could not follow, and why.
        parity: largest relative difference between ONNX Runtime and PyTorch.
        dynamic: which dimensions of the ONNX file are free.
        learned: the share of the loss that one step of training took away.
        graph_left, graph_twin: parameters that the pruned graph has, by a plan of its own, and its largest
            relative difference from its masked twin.
        stock_left: parameters that stock Torch-Pruning left.
        memory: GB, the process at its largest.
        machine: processor, threads and versions.
    """

    cell: Cell
    settings: str = ""
    stage: str = START
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    first_try: str = ""
    parameters: int = 0
    macs: float = 0.0
    groups: int = 0
    units: int = 0
    prunable_parameters: float = 0.0
    prunable_macs: float = 0.0
    pinned: Sequence[tuple[str, float]] = ()
    planned: int = 0
    left: int = 0
    macs_left: float = 0.0
    twin: float | None = None
    tolerance: float = 0.0
    dtype: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    parity: float | None = None
    dynamic: str = ""
    learned: float = 0.0
    graph_left: int = 0
    graph_twin: float | None = None
    stock_left: int = 0
    memory: float = 0.0
    machine: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether the pruned module runs, is the masked twin, agrees with ONNX Runtime and learns."""
        return all(stage in self.seconds for stage in SOUND)

    @property
    def verdict(self) -> str:
        """``sound``, or the first stage of ours that failed, with its reason."""
        ours = [(stage, reason) for stage, reason in self.failures.items() if stage not in BESIDE]
        return "sound" if self.sound else ": ".join(ours[0]) if ours else f"{self.stage}: not finished"

    @property
    def sound_as_graph(self) -> bool:
        """Whether the pruned graph is the masked twin of its plan."""
        return "graph" in self.seconds

    @property
    def stock_cut_off(self) -> bool:
        """Whether stock Torch-Pruning was stopped at a limit, which says only that it is slow."""
        return any(LATE in reason for stage, reason in self.failures.items() if stage.startswith("stock"))

    @property
    def removed(self) -> float:
        """The share of the parameters that is gone; 0 where there is no pruned network."""
        return 1 - self.left / self.parameters if self.left else 0.0

    @property
    def structure_share(self) -> float | None:
        """Time for the structure beyond its own export, as a share of the time of ``torch.export``."""
        if "export" not in self.seconds or "structure" not in self.seconds:
            return None
        return max(0.0, self.seconds["structure"] / self.seconds["export"] - 1)


def read(path: Path) -> Row:
    """The row in ``path``; :class:`RowError` where there is none in it."""
    return rows.read(path, Row, Cell)


@dataclass(frozen=True)
class Shelf:
    """The folder that rows are kept in."""

    folder: Path

    def row(self, cell: Cell) -> Row | None:
        """The cell's row of the settings as they are now, or none."""
        path = self.folder / cell.file
        try:
            row = read(path) if path.is_file() else None
        except RowError:
            return None  # it is written anew
        return row if row is not None and row.settings == cell.settings else None

    def put(self, row: Row) -> None:
        """Keeps a row, all or nothing."""
        rows.write(self.folder / row.cell.file, row)

    def rows(self) -> Iterator[Row]:
        """All current rows."""
        for path in sorted(self.folder.glob("*/*.json")):
            row = read(path)
            if row.settings == row.cell.settings:
                yield row
