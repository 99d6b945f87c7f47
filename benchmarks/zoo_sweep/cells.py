"""Cells, each one network from another library, and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.harness.cell import digest
from benchmarks.timm_sweep.cells import BATCH, PARITY, SEED, START, WIDTH

SOUND = ("surgery", "counting", "untouched")
"""A network is sound as module once these stages have ended."""

WIDE = 0.4
"""The minimum share of the parameters that should be removable."""


@dataclass(frozen=True)
class Cell:
    """A network, as ``library/name``."""

    name: str

    @property
    def label(self) -> str:
        """Its name in logs and on the shelf."""
        return self.name

    @property
    def arguments(self) -> list[str]:
        """The cell on the command line of :mod:`benchmarks.zoo_sweep.measure`."""
        return [self.name]

    @property
    def settings(self) -> str:
        """Identifies everything that determines the row, except for the code."""
        return digest(asdict(self), BATCH, SEED, WIDTH, PARITY)


@dataclass(frozen=True)
class Row:
    """The results of one cell; the fields of a stage that did not end keep their defaults.

    Args:
        cell: the cell that was run.
        settings: see :attr:`Cell.settings`.
        stage: the stage in which the process ended; empty if all stages finished.
        failures: stage -> reason.
        seconds: duration of every stage that ended.
        first_try: the verdict of the first run of this cell; empty if this is the first.
        parameters: of the dense network.
        groups, units: how many.
        prunable: the share of the parameters that could be removed if every group kept one unit.
        pinned: reasons why units cannot be removed, and the share of the parameters that each pins.
        left: parameters of the network pruned to about half of every width.
        twin: largest relative difference from the masked twin over the tasks.
        dtype: the dtype of that comparison.
        refused: groups that ``forward`` could not follow, and why.
        beyond: the situations beyond the example in which the pruned network works like the dense one.
        predicted, counted: MACs of the pruned network, from the plan and as counted.
        dynamic: the dimensions of the ONNX file that are free; empty if there is none.
        parity: largest relative difference between ONNX Runtime and PyTorch.
        graph_twin: ``twin`` of the pruned graph, if the module was not pruned.
        machine: processor, threads and versions.
    """

    cell: Cell
    settings: str = ""
    stage: str = START
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    first_try: str = ""
    parameters: int = 0
    groups: int = 0
    units: int = 0
    prunable: float = 0.0
    pinned: Sequence[tuple[str, float]] = ()
    left: int = 0
    twin: float | None = None
    dtype: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    beyond: Sequence[str] = ()
    predicted: float = 0.0
    counted: float = 0.0
    dynamic: str = ""
    parity: float | None = None
    graph_twin: float | None = None
    machine: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether the pruned module is verified, its MACs are as predicted, and the model is unchanged."""
        return all(stage in self.seconds for stage in SOUND)

    @property
    def wide(self) -> bool:
        """Whether at least :data:`WIDE` of the parameters are removable."""
        return self.prunable >= WIDE

    @property
    def verdict(self) -> str:
        """``sound``, or the first stage that failed, with its reason."""
        failures = [f"{stage}: {reason}" for stage, reason in self.failures.items()]
        return "sound" if self.sound else failures[0] if failures else f"{self.stage}: not finished"
