"""Cells: one timm model as one kind of network; and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal, get_args

from benchmarks.harness.cell import digest
from benchmarks.harness.limits import LATE
from benchmarks.harness.sweep import SweepRow

Kind = Literal["multitask", "classifier"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BATCH = 2
SEED = 0
WIDTH = 0.5
"""The share of every group's units that the plan is to keep."""

PARITY = 1e-4
"""The largest relative difference allowed between ONNX Runtime and PyTorch."""

SOUND = ("surgery", "onnx", "train")
"""A model is sound as module once these stages have ended; the first verifies it against the masked twin."""

BESIDE = ("graph", "stock graph", "stock prune", "stock run")
"""Stages that say nothing about the module."""


@dataclass(frozen=True)
class Cell:
    """``model`` with three heads of its own, or as the classifier that timm makes of it.

    ``image_size`` is a side in pixels; None is timm's own size.
    """

    model: str
    kind: Kind
    image_size: int | None = None

    @property
    def label(self) -> str:
        """Its name in logs and on the shelf, which has one row of any size."""
        return f"{self.kind} {self.model}"

    @property
    def arguments(self) -> list[str]:
        """It on the command line of :mod:`benchmarks.timm_sweep.measure`."""
        size = [f"--image-size={self.image_size}"] if self.image_size else []
        return [self.model, self.kind, *size]

    @property
    def settings(self) -> str:
        """Identifies everything that determines the row, except for the code."""
        return digest(asdict(self), BATCH, SEED, WIDTH, PARITY)


@dataclass(frozen=True)
class Row(SweepRow[Cell]):
    """What one cell gave; what a stage finds keeps its default if the stage did not end.

    Args:
        seconds: of every stage that ended. ``structure`` includes an export of its own, ``surgery`` the
            verification; ``export`` is a second call of torch's export alone.
        parameters, macs: of the dense network; MACs of one example, from the structure's cost model.
        groups, units: how many.
        prunable_parameters, prunable_macs: shares that could be removed if every group kept one unit.
        pinned: reasons for units that may not be removed, and the share of the parameters that each holds at
            most; largest first. Parameters with two reasons count for both.
        planned: parameters that the plan keeps.
        left, macs_left: parameters and MACs of the pruned network; more than planned if groups were refused.
        twin: largest relative difference from the masked twin over the tasks; ``tolerance`` is allowed.
        dtype: of that comparison; float64 where the network runs in it.
        refused: groups that ``forward`` could not follow, and why.
        parity: largest relative difference between ONNX Runtime and PyTorch.
        dynamic: the dimensions of the ONNX file that are free.
        learned: the share of the loss that one step of training removed.
        graph_left, graph_twin: parameters of the pruned graph, by a plan of its own, and its largest relative
            difference from its masked twin.
        stock_left: parameters that stock Torch-Pruning left.
        memory: peak resident GB of the process.
        machine: processor, threads and versions.
    """

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

    needed: ClassVar[Sequence[str]] = SOUND
    beside: ClassVar[Sequence[str]] = BESIDE

    @property
    def sound_as_graph(self) -> bool:
        """Whether the pruned graph equals the masked twin of its plan."""
        return "graph" in self.seconds

    @property
    def stock_cut_off(self) -> bool:
        """Whether stock Torch-Pruning was stopped at a limit, which only shows that it is slow."""
        return any(LATE in reason for stage, reason in self.failures.items() if stage.startswith("stock"))

    @property
    def removed(self) -> float:
        """The share of the parameters that was removed; 0 where there is no pruned network."""
        return 1 - self.left / self.parameters if self.left else 0.0

    @property
    def structure_share(self) -> float | None:
        """The time of the structure without its own export, relative to the time of ``torch.export``."""
        if "export" not in self.seconds or "structure" not in self.seconds:
            return None
        return max(0.0, self.seconds["structure"] / self.seconds["export"] - 1)
