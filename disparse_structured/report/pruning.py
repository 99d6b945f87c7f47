"""The facts of one pruning run, as frozen data, and their text view."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from disparse_structured.naming import cost_label
from disparse_structured.report import words
from disparse_structured.report.deviation import DeviationFacts
from disparse_structured.report.page.notebook import report_html
from disparse_structured.report.page.run import Run
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.report.refit import RefitFacts
from disparse_structured.report.schemas import SCHEMA, document_text
from disparse_structured.report.speed import SpeedFacts
from disparse_structured.report.text import plain_text
from disparse_structured.structure import Pin, UnusedModule
from disparse_structured.structure.groups import DATA_DEPENDENT

EXACT = ("macs", "parameters")
"""The costs whose prediction is exact, so that another count is a fault, or is due to data-dependent rows."""


@dataclass(frozen=True)
class CostFacts:
    """One cost before and after, in ``unit``.

    ``dense`` and ``predicted`` come from the cost's own model. ``counted`` is what the pruned model itself
    costs, None where that cannot be told.
    """

    unit: str
    dense: float
    predicted: float
    counted: float | None

    @property
    def pruned(self) -> float:
        """What the pruned model costs: counted, or else predicted."""
        return self.predicted if self.counted is None else self.counted

    @property
    def agrees(self) -> bool:
        """Whether the prediction and the count differ by at most 0.1 %; true without a count."""
        return self.counted is None or abs(self.counted - self.predicted) <= 1e-3 * self.predicted

    @property
    def ratio(self) -> float:
        """What is left, as a share of the dense cost."""
        return self.pruned / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class TaskFacts:
    """What one task asked for.

    ``units`` it reaches, ``shared`` of them with another task; ``asked`` is the share of its units that
    it voted to remove, ``removed`` the share that went.
    """

    name: str
    labeled: bool
    units: int
    shared: int
    asked: float
    removed: float


@dataclass(frozen=True)
class VerificationFacts:
    """Deviation of the pruned module from the masked twin, per task, unless that was switched off.

    ``empty`` says why the comparison is meaningless for a task, such as an output that is zero. ``beyond``
    lists what else the pruned module does like the dense one: other batches and sizes, train mode.
    """

    verified: bool
    dtype: str | None = None
    tolerance: float | None = None
    deviation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    empty: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beyond: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedGroup:
    """A group that was left whole because the module's ``forward`` cannot follow."""

    group: str
    reason: str


@dataclass(frozen=True)
class GraphFacts:
    """What it takes to build a pruned exported graph again.

    It was exported with a batch of ``examples`` examples. With ``any_batch``, it accepts any batch size;
    otherwise only that one.
    """

    examples: int
    any_batch: bool


@dataclass(frozen=True)
class GraphOnly:
    """What the exported graph could shrink and the module could not; shares of the dense parameters.

    ``pinned`` lie in slices that a number in ``forward`` pins, ``refused`` in groups that were left whole.
    """

    pinned: float
    refused: float
    advice: str

    @classmethod
    def of(cls, pinned: float, refused: float) -> GraphOnly | None:
        """With the advice in words; None if there is nothing that only the graph could shrink."""
        places = ((pinned, "slices that numbers in forward pin"), (refused, "groups that were left alone"))
        found = [f"{share:.1%} of the parameters lie in {place}" for share, place in places if share]
        if not found:
            return None
        said = " and ".join(found)
        advice = f'analyse(..., form="graph") (--form graph) can remove more: {said}.'
        return cls(pinned, refused, advice)


@dataclass(frozen=True)
class PruningReport:
    """What was removed, who voted for it, what it saves, and how it was verified.

    ``costs`` are by name, such as ``"macs"``. ``stale`` are integer attributes that still hold a dense size.
    ``unused`` are modules that never run, in eval or train mode; ``dropped`` are those that were left out
    before the costs were counted. ``deviation`` is None where the model was trained after it was pruned,
    ``refit`` where the remaining weights were left unchanged, ``graph`` where the module itself was pruned,
    ``graph_only`` where its exported graph could not shrink more. ``selectors`` says by task what picks its
    part of the dense model's output; None for a callable, which cannot be stored. ``entry_points`` describes
    the arguments of each method that was named as one; None for a function. ``shared_inputs`` are the tensors
    among ``forward``'s arguments that have no batch dimension. ``speed`` is the outcome of a latency budget,
    ``recovery`` that of training without labels after the refit.
    """

    model: str
    plan: str
    costs: Mapping[str, CostFacts]
    tasks: tuple[TaskFacts, ...]
    groups: int
    groups_changed: int
    units: int
    units_removed: int
    method: str | None
    criterion: str
    arbiter: str | None
    ranking: str | None
    ratio: float | None
    batches: int
    samples: int
    deviation: DeviationFacts | None
    refit: RefitFacts | None
    verification: VerificationFacts
    refused: tuple[RefusedGroup, ...]
    stale: tuple[str, ...]
    pinned: tuple[Pin, ...]
    unused: tuple[UnusedModule, ...]
    dropped: tuple[UnusedModule, ...]
    graph: GraphFacts | None
    graph_only: GraphOnly | None
    inputs: Mapping[str, Any]
    selectors: Mapping[str, str | int | tuple[str | int, ...] | None]
    versions: Mapping[str, str]
    entry_points: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shared_inputs: tuple[str, ...] = ()
    speed: SpeedFacts | None = None
    recovery: RecoveryFacts | None = None

    def to_json(self) -> str:
        """Indented JSON with sorted keys, and the version of the layout as ``schema``.

        A number that is not finite is written as null.
        """
        return document_text({"schema": SCHEMA, **dataclasses.asdict(self)})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._costs()
        for name, cost in self.costs.items():
            if name in EXACT and not cost.agrees:
                yield Text(
                    f"{name}: {cost.predicted:,.0f} {cost.unit} predicted, but {cost.counted:,.0f} "
                    "counted on the pruned model. The budget holds for the prediction only. "
                    f"{self._advice(name)}",
                    style="bold yellow",
                )
        if self.speed is not None:
            yield self.speed
        yield self._voters()
        if self.deviation is not None:
            yield self.deviation
        if self.refit is not None:
            yield self.refit
        if self.recovery is not None:
            yield self.recovery
        if self.verification.verified:
            worst = max(self.verification.deviation.values(), default=0.0)
            yield Text(
                f"verified against the masked twin in {self.verification.dtype}: worst deviation {worst:.1e}"
            )
            for task, reason in self.verification.empty.items():
                yield Text(f"NOTHING WAS COMPARED for {task}: {reason}", style="bold yellow")
            if self.verification.beyond:
                yield Text(f"runs like the dense model with {', '.join(self.verification.beyond)}")
        else:
            yield Text("NOT VERIFIED: verification was switched off (verify=False)", style="bold yellow")
        if self.shared_inputs:
            yield Text(f"shared by all examples of a batch: {', '.join(self.shared_inputs)}")
        for refused in self.refused:
            yield Text(f"left alone: {refused.group}: {refused.reason}", style="yellow")
        if self.stale:
            yield Text(
                f"numbers that forward does not read still hold the dense size: {', '.join(self.stale)}. "
                "Set them before calling a method that reads them, such as one that fuses layers.",
                style="yellow",
            )
        if self.dropped:
            yield Text(f"dropped, because never used: {_modules(self.dropped)}")
        spare, unfit = ([each for each in self.unused if each.unfit is wanted] for wanted in (False, True))
        if spare:
            yield Text(
                f"never used: {_modules(spare)}. drop_unused=True (--drop-unused) leaves these out.",
                style="yellow",
            )
        if unfit:
            yield Text(
                "never used, and they fail if they are called, because they read a width that was pruned: "
                f"{_modules(unfit)}. {words.NEEDED} "
                "If not, drop_unused=True (--drop-unused) leaves them out.",
                style="yellow",
            )
        counted = [pin for pin in self.pinned if pin.number]
        if counted:
            yield summarize_pins(counted)
        if self.graph_only is not None:
            yield Text(self.graph_only.advice, style="yellow")
        if self.graph is not None:
            batches = "any size" if self.graph.any_batch else f"{self.graph.examples} only"
            yield Text(f"the pruned exported graph, which takes batches of {batches}")

    def __str__(self) -> str:
        return plain_text(self)

    def _repr_html_(self) -> str:
        return report_html(Run.of_texts(self.model, self.to_json()))

    def _advice(self, name: str) -> str:
        """What to make of a count of the cost ``name`` that is not the predicted one."""
        if name == "macs" and any(pin.reason == DATA_DEPENDENT for pin in self.pinned):
            return (
                "It is made with the rows of the dense network: how many rows some layers read depends on "
                "the data, and the pruned network chooses others."
            )
        return "Please report this model."

    def _costs(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("cost", "dense", "pruned", "left"):
            table.add_column(heading, justify="left" if heading == "cost" else "right")
        for name, cost in sorted(self.costs.items()):
            numbers = (words.count(cost.dense), words.count(cost.pruned), f"{cost.ratio:.1%}")
            table.add_row(Text(cost_label(name, cost.unit)), *numbers)
        return table

    def _voters(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("task", "labels", "units", "shared", "asked to remove", "removed"):
            table.add_column(heading, justify="left" if heading in ("task", "labels") else "right")
        for task in self.tasks:
            labels = "loss" if task.labeled else "label-free"
            row = [task.name, labels, str(task.units), str(task.shared)]
            table.add_row(*row, f"{task.asked:.1%}", f"{task.removed:.1%}")
        return table


def _modules(unused: Sequence[UnusedModule]) -> str:
    names = ", ".join(each.module for each in unused)
    parameters = sum(each.parameters for each in unused)
    return f"{names} ({parameters:,} parameters, {sum(each.share for each in unused):.1%})"


def summarize_pins(pins: Sequence[Pin]) -> Table:
    """What may not shrink, why, and how large it is, largest first; one row for each operator and reason."""
    merged: dict[tuple[str, str], list[Pin]] = {}
    for pin in pins:
        merged.setdefault((pin.reason, pin.operator), []).append(pin)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="pinned")
    for heading in ("why", "operator", "layers", "largest share of parameters"):
        table.add_column(heading, justify="right" if heading.startswith("largest") else "left")
    for (reason, operator), found in merged.items():
        first = found[0].module or "(model)"
        layers = first if len(found) == 1 else f"{first} and {len(found) - 1} more"
        table.add_row(reason, operator, layers, f"{max(each.share for each in found):.2%}")
    return table
