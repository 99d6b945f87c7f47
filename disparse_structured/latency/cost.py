"""Milliseconds as a cost."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from disparse_structured.latency.measuring import Measuring
from disparse_structured.latency.onnx_runtime import OnnxRuntime
from disparse_structured.latency.runtime import Runtime
from disparse_structured.latency.setting import QUIET
from disparse_structured.latency.staircase import Staircases
from disparse_structured.latency.table import Table
from disparse_structured.latency.work import Work, work_of
from disparse_structured.structure import Structure
from disparse_structured.surgery.pruned_graph import tasks_of

_ROUNDS = 20
"""How often the dense network is timed."""

_CONTEXT = (0.5, 3.0)
"""How much longer an operation may take in the network than on its own."""


@dataclass(frozen=True, eq=False)
class OperationFacts:
    """One operation of the dense network, for tables and pictures.

    Args:
        label: what it does.
        read, made: its channels.
        count: how often it occurs in the network with these channels.
        ms: what all of these take together in the dense network.
        step, aligned: of the channels read and made: where times rise, and which channels are not slower.
        curves: by ``"read"`` and ``"made"``, where that can shrink: widths and the milliseconds that one
            takes.
    """

    label: str
    read: int
    made: int
    count: int
    ms: float
    step: tuple[int, int]
    aligned: tuple[int, int]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """The time of a network by its kept units, ``keep`` bool ``[units]``; see :class:`Latency`.

    Args:
        work: which widths each part reads and makes.
        staircases: what the parts take, by their widths.
        context: float64 ``[operations]``: how much longer an operation takes in the network than on its own.
        scale: how much longer the network takes than its parts together.
    """

    work: Work
    staircases: Staircases | None
    context: np.ndarray
    scale: float

    @cached_property
    def dense(self) -> float:
        """The dense network, measured as a whole, milliseconds."""
        return self.total(np.ones(self.work.widths.matrix.shape[1], dtype=bool))

    def total(self, keep: torch.Tensor | np.ndarray, /) -> float:
        """The network with the units of ``keep``, and with those that come back for nothing.

        A layer that is narrower than one of the runtime's steps takes no less time, and one that is not
        aligned may take more. So it counts with as many channels as it can have for nothing.
        """
        return self._sum(keep, filled=True)

    def predict(self, keep: torch.Tensor | np.ndarray, /) -> float:
        """The network with exactly the units of ``keep``."""
        return self._sum(keep, filled=False)

    def marginal(self, keep: torch.Tensor | np.ndarray, /) -> torch.Tensor:
        """Zeros, float64 ``[units]``: one unit less saves nothing that can be relied on."""
        return torch.zeros(len(keep), dtype=torch.float64)

    def operations(self) -> list[OperationFacts]:
        """The operations that are measured, those that take longest first."""
        found = []
        for place, entry in enumerate(self.work.entries):
            assert self.staircases is not None  # there is one for every entry
            own = self.work.entry == place
            free = [(axis, name) for axis, name in enumerate(("read", "made")) if entry.free[axis]]
            steps, aligned = self.staircases.step[place].tolist(), self.staircases.aligned[place].tolist()
            found.append(
                OperationFacts(
                    entry.operation.label,
                    *entry.dense,
                    int(own.sum()),
                    self.scale * float(self.work.ms[own].sum()),
                    (steps[0], steps[1]),
                    (aligned[0], aligned[1]),
                    {name: self._curve(place, axis) for axis, name in free},
                )
            )
        return sorted(found, key=lambda each: -each.ms)

    def _curve(self, place: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.staircases is not None  # there is one for every entry
        dense = self.work.entries[place].dense
        widths = np.arange(1, dense[axis] + 1)
        pairs = np.tile(np.array(dense, dtype=float), (len(widths), 1))
        pairs[:, axis] = widths
        return widths, self.staircases.exact(np.full(len(widths), place), pairs)

    @cached_property
    def _rungs(self) -> np.ndarray:
        """float64 ``[rows]``: the channels from one rung to the next, for whatever reads or makes a width."""
        work, rungs = self.work, np.ones(len(self.work.widths.fixed))
        if self.staircases is not None:
            read, made = self.staircases.rungs()[work.entry].T
            np.maximum.at(rungs, work.read, np.maximum(1, read // work.factor))
            np.maximum.at(rungs, work.made, made)
        return rungs

    @cached_property
    def _most(self) -> np.ndarray:
        """float64 ``[rows]``: the dense widths."""
        most: np.ndarray = self.work.widths(np.ones(self.work.widths.matrix.shape[1], dtype=bool))
        return most

    def _filled(self, widths: np.ndarray) -> np.ndarray:
        filled: np.ndarray = np.minimum(np.ceil(widths / self._rungs) * self._rungs, self._most)
        return filled

    def _sum(self, keep: torch.Tensor | np.ndarray, filled: bool) -> float:
        work, widths = self.work, self.work.widths(keep)
        if filled:
            widths = self._filled(widths)
        parts = work.fixed + float(work.linear @ widths)
        if self.staircases is not None:
            pairs = np.stack([widths[work.read] * work.factor, widths[work.made]], axis=1)
            times = (self.staircases.filled if filled else self.staircases.exact)(work.entry, pairs)
            parts += float(self.context @ times)
        return self.scale * parts


@dataclass(frozen=True, eq=False)
class Latency:
    """The time of one forward pass in a runtime on this machine, measured.

    Every operation is measured at several widths, and the whole network once. Times are kept in the user's
    cache folder, see :class:`~disparse_structured.latency.table.Table`.

    Args:
        model: the dense network.
        runtime: what runs it, :class:`~disparse_structured.latency.OnnxRuntime` by default.
        table: where times are kept; by default the one of ``runtime`` in the cache folder.
        progress: show progress on standard error (bars on a terminal, occasional lines elsewhere).

    Raises:
        ExportError: ``model`` cannot be exported, or the runtime refuses it (raised by :meth:`on`).
    """

    model: nn.Module = field(repr=False)
    runtime: Runtime = field(default_factory=OnnxRuntime)
    table: Table | None = field(default=None, repr=False)
    progress: bool = field(default=False, repr=False)
    _known: dict[str, LatencyModel] = field(default_factory=dict, init=False, repr=False)
    _inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()), init=False, repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """``"latency"``."""
        return "latency"

    @property
    def unit(self) -> str:
        """``"ms"``."""
        return "ms"

    def on(self, structure: Structure, /) -> LatencyModel:
        """The time by kept units. The first call for a structure measures what is not known yet."""
        if structure.fingerprint not in self._known:
            self._known[structure.fingerprint] = self._measured(structure)
        return self._known[structure.fingerprint]

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> None:
        """None: to measure a model it must be exported, which the caller does once."""
        return

    def export(self, model: nn.Module, structure: Structure, path: Path) -> tuple[Any, ...]:
        """Writes ``model``, dense or pruned, as the ONNX file ``path``; returns inputs to time it with."""
        from disparse_structured.export import export_onnx  # ONNX is imported only where it is used

        outputs = {task.name: task.tensors for task in tasks_of(model, structure.task_objects)}
        facts = export_onnx(model, structure.example_inputs, path, outputs=outputs)
        return self.runtime.inputs(structure.example_inputs, facts.dynamic)

    def dense_file(self, structure: Structure) -> tuple[Path, tuple[Any, ...]]:
        """The ONNX file of the dense network, and the inputs to time it with. It is written once."""
        path = self._folder / f"{structure.fingerprint}.onnx"
        if structure.fingerprint not in self._inputs:
            self._inputs[structure.fingerprint] = self.export(self.model, structure, path)
        return path, self._inputs[structure.fingerprint]

    def _measured(self, structure: Structure) -> LatencyModel:
        path, inputs = self.dense_file(structure)
        dissection = self.runtime.dissect(path, inputs)
        work = work_of(dissection, structure, self.model)
        table = Table(self.runtime.facts) if self.table is None else self.table
        measuring = Measuring(self.runtime, table, dissection.opsets, self.progress)
        rungs = measuring.rungs(work.entries)
        tables = measuring.times(work.entries, rungs)
        dense = float(np.quantile(self.runtime.time_files([path], inputs, rounds=_ROUNDS), QUIET))
        if not work.entries:
            return _scaled(LatencyModel(work, None, np.ones(0), 1.0), dense)
        staircases = Staircases.of(work.entries, rungs, tables)
        alone = staircases.on.times[work.entry, -1, -1]
        return _scaled(LatencyModel(work, staircases, np.clip(work.ms / alone, *_CONTEXT), 1.0), dense)


def _scaled(parts: LatencyModel, dense: float) -> LatencyModel:
    """``parts``, such that the whole takes ``dense`` milliseconds."""
    return replace(parts, scale=dense / parts.dense if parts.dense else 1.0)
