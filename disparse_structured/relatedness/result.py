"""How related the tasks are, as immutable data that prints as tables."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from disparse_structured.errors import LoadError
from disparse_structured.relatedness.clusters import Merge, cut, dendrogram
from disparse_structured.relatedness.published import PUBLISHED, counterpart
from disparse_structured.relatedness.watershed import Watershed, watershed
from disparse_structured.report.text import plain_text

Matrix = tuple[tuple[float, ...], ...]
"""``[tasks][tasks]``, symmetric, ones on the diagonal."""

Level = Literal["unit", "weight"]


@dataclass(frozen=True)
class Layer:
    """A layer's name and its number of items (units or weights)."""

    name: str
    size: int


@dataclass(frozen=True)
class SeedRun:
    """The overlap of the kept sets for one seed.

    Args:
        seed: random seed for the initialization, the data's order and random projections.
        total: IoU over all shared layers; None if no task keeps anything there.
        chance: what ``total`` would be if every task kept as many items of each layer, drawn at random.
        layers: IoU of every shared layer; None where no task keeps anything.
        by_chance: ``chance`` of every shared layer.
        affinity: IoU of every two tasks over what both reach.
        correlation: Spearman's rank correlation of every two tasks' scores over what both reach.
    """

    seed: int
    total: float | None
    chance: float | None
    layers: tuple[float | None, ...]
    by_chance: tuple[float | None, ...]
    affinity: Matrix
    correlation: Matrix


@dataclass(frozen=True)
class Relatedness:
    """How alike the tasks' kept sets are, over one or more runs.

    Args:
        model: the model's class.
        level: what is kept or given up: units, or single weights as in the paper.
        moment: when, for example ``"before training"``; free text.
        measure: the criterion that the tasks chose by.
        ratio: the share of its own items that every task gave up.
        tasks: names of the rows of the matrices.
        layers: the shared layers, in order of execution.
        runs: one per seed.
    """

    model: str
    level: Level
    moment: str
    measure: str
    ratio: float
    tasks: tuple[str, ...]
    layers: tuple[Layer, ...]
    runs: tuple[SeedRun, ...]

    @property
    def total(self) -> float:
        """Mean total IoU; NaN if no run has one."""
        return _mean([run.total for run in self.runs])

    @property
    def iou(self) -> tuple[float, ...]:
        """Mean IoU of every layer; NaN where no run has one."""
        return tuple(_mean(values) for values in zip(*(run.layers for run in self.runs), strict=True))

    @property
    def chance(self) -> float:
        """Mean of what the total would be by chance; NaN if no run has one."""
        return _mean([run.chance for run in self.runs])

    @property
    def by_chance(self) -> tuple[float, ...]:
        """Mean of what the IoU of every layer would be by chance; NaN where no run has one."""
        return tuple(_mean(values) for values in zip(*(run.by_chance for run in self.runs), strict=True))

    @property
    def affinity(self) -> Matrix:
        """Mean IoU of every two tasks."""
        return _mean_matrix([run.affinity for run in self.runs])

    @property
    def correlation(self) -> Matrix:
        """Mean rank correlation of every two tasks."""
        return _mean_matrix([run.correlation for run in self.runs])

    @property
    def watershed(self) -> Watershed | None:
        """Where the kept sets part; see :mod:`disparse_structured.relatedness.watershed`."""
        names, sizes = [layer.name for layer in self.layers], [layer.size for layer in self.layers]
        return watershed(names, sizes, [run.layers for run in self.runs])

    @property
    def dendrogram(self) -> tuple[Merge, ...]:
        """The tree of the mean affinities."""
        return dendrogram(self.tasks, self.affinity)

    def clusters(
        self, count: int | None = None, distance: float | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """The tasks in ``count`` clusters, or in those nearer than ``distance`` (1 - IoU)."""
        return cut(self.tasks, self.dendrogram, count=count, distance=distance)

    def to_json(self) -> str:
        """Indented JSON with sorted keys; :meth:`from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Relatedness:
        """The result that :meth:`to_json` wrote; raises :class:`LoadError` for any other ``text``."""
        try:
            document = json.loads(text)
            document["tasks"] = tuple(document["tasks"])
            document["layers"] = tuple(Layer(**layer) for layer in document["layers"])
            document["runs"] = tuple(_run(run) for run in document["runs"])
            return cls(**document)
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(
                f"the text is not a Relatedness of this release ({type(error).__name__}: {error}). "
                "Pass what Relatedness.to_json wrote."
            ) from None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        runs = f"{len(self.runs)} run{'s' if len(self.runs) > 1 else ''}"
        moment = f", {self.moment}" if self.moment else ""
        yield Text(
            f"relatedness of {', '.join(self.tasks)} at {self.level} level{moment}: every task keeps "
            f"{1 - self.ratio:.1%} by {self.measure}, {runs}",
            style="bold",
        )
        yield self._totals()
        yield self._by_layer()
        yield Text(self._watershed_text())
        if self._has_published:
            rule = ", ".join(f"{each.dataset} {each.watershed}" for each in PUBLISHED)
            yield Text(f"the same rule on the published layers: {rule}")
        yield self._pairs()

    def __str__(self) -> str:
        return plain_text(self, width=120)

    @property
    def _has_published(self) -> bool:
        """Whether there are published values for these layers."""
        return self.level == "weight" and any(counterpart(layer.name) for layer in self.layers)

    def _totals(self) -> Table:
        table = _table(
            "total IoU", "this model", "std", "by chance", *(f"{each.dataset} *" for each in PUBLISHED)
        )
        spread = _std([run.total for run in self.runs])
        published = [f"{each.total:.3f}" for each in PUBLISHED]
        table.add_row("", _shown(self.total), spread, _shown(self.chance), *published)
        table.caption = (
            "* published: Sun et al., CVPR 2022, weights, 7.8 % kept, before training; "
            "by layer: the authors' repository"
        )
        table.caption_justify = "left"
        return table

    def _by_layer(self) -> Table:
        published = PUBLISHED if self._has_published else ()
        table = _table(
            "layer", f"{self.level}s", "IoU", "std", "by chance", *(f"{each.dataset} *" for each in published)
        )
        mark = self.watershed
        rows = zip(self.layers, self.iou, self.by_chance, strict=True)
        for place, (layer, value, chance) in enumerate(rows):
            if mark is not None and place == mark.position:
                table.add_section()
            name = counterpart(layer.name)
            beside = [f"{each.by_layer[name]:.3f}" if name else "" for each in published]
            spread = _std([run.layers[place] for run in self.runs])
            cells = [f"{layer.size:,}", _shown(value), spread, "" if value != value else f"{chance:.3f}"]
            table.add_row(Text(layer.name), *cells, *beside)
        return table

    def _watershed_text(self) -> str:
        found = self.watershed
        if found is None:
            return "watershed: none, IoU does not fall along the layers"
        text = (
            f"watershed: {found.layer} (IoU {found.before:.3f} before, {found.after:.3f} from there on; two "
            f"means explain {found.explained:.0%})"
        )
        if not found.support:
            return text + "; one run says nothing about its uncertainty"
        chosen = ", ".join(f"{name} {share:.0%}" for name, share in found.support[:3])
        return f"{text}; over the seeds: {chosen}; 90 % from {found.low} to {found.high}"

    def _pairs(self) -> Table:
        table = _table("affinity (IoU; rank correlation)", *self.tasks)
        for row, task in enumerate(self.tasks):
            pairs = zip(self.affinity[row], self.correlation[row], strict=True)
            cells = [
                f"{iou:.3f}; {rank:+.2f}" if row != column else "" for column, (iou, rank) in enumerate(pairs)
            ]
            table.add_row(Text(task), *cells)
        return table


def _run(document: dict[str, Any]) -> SeedRun:
    for name in ("affinity", "correlation"):
        document[name] = tuple(tuple(row) for row in document[name])
    for name in ("layers", "by_chance"):
        document[name] = tuple(document[name])
    return SeedRun(**document)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("nan")


def _mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in np.mean(matrices, axis=0))


def _std(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.stdev(known):.3f}" if len(known) > 1 else ""


def _shown(value: float) -> str:
    return f"{value:.3f}" if value == value else "none kept"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
