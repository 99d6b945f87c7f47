"""Cells, each one network from another library, and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from benchmarks.harness.cell import digest
from benchmarks.harness.sweep import SweepRow
from benchmarks.timm_sweep.cells import BATCH, PARITY, SEED, WIDTH

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
class Row(SweepRow[Cell]):
    """The results of one cell; the fields of a stage that did not end keep their defaults.

    Args:
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

    needed: ClassVar[Sequence[str]] = SOUND

    @property
    def wide(self) -> bool:
        """Whether at least :data:`WIDE` of the parameters are removable."""
        return self.prunable >= WIDE
