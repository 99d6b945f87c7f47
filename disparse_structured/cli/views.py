"""Tables of what the commands found, made from the JSON that they also write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from disparse_structured.data.deviation import Columns
from disparse_structured.errors import LoadError
from disparse_structured.report import words
from disparse_structured.report.deviation import DeviationFacts
from disparse_structured.report.facts import LatencyFact, LatencyFacts
from disparse_structured.report.pruning import (
    CostFacts,
    GraphFacts,
    GraphOnly,
    PruningReport,
    RefusedGroup,
    TaskFacts,
    VerificationFacts,
)
from disparse_structured.report.quantization import LayerFact, QuantizationFacts, TaskDeviation
from disparse_structured.report.recovery import RecoveryFacts
from disparse_structured.report.refit import LayerFacts, RefitFacts, SkippedLayer
from disparse_structured.report.speed import SpeedFacts, StairFacts
from disparse_structured.structure import Pin, RatioConstraint, UnusedModule

_MEMBERS_SHOWN = 3


def pruning_report(document: Mapping[str, Any], place: str) -> PruningReport:
    """The report whose JSON ``document`` is; what else it holds is ignored.

    Raises:
        LoadError: an entry is missing or is not what it should be.
    """
    fields = [field.name for field in dataclasses.fields(PruningReport)]
    try:
        facts = {name: document[name] for name in fields}
        facts["costs"] = {name: CostFacts(**cost) for name, cost in facts["costs"].items()}
        facts["verification"] = VerificationFacts(**facts["verification"])
        lists: tuple[tuple[str, Any], ...] = (
            ("tasks", TaskFacts),
            ("refused", RefusedGroup),
            ("pinned", Pin),
            ("unused", UnusedModule),
            ("dropped", UnusedModule),
        )
        for name, kind in lists:
            facts[name] = tuple(kind(**entry) for entry in facts[name])
        for name, optional in (("graph", GraphFacts), ("graph_only", GraphOnly)):
            facts[name] = None if facts[name] is None else optional(**facts[name])
        if facts["speed"] is not None:
            stairs = tuple(_stair(stair) for stair in facts["speed"].get("stairs", ()))
            facts["speed"] = SpeedFacts(**{**facts["speed"], "stairs": stairs})
        facts["stale"] = tuple(facts["stale"])
        if facts["deviation"] is not None:
            moved = dict(facts["deviation"])
            moved["columns"] = {task: Columns(**each) for task, each in moved.get("columns", {}).items()}
            facts["deviation"] = DeviationFacts(**moved)
        if facts["refit"] is not None:
            refit = dict(facts["refit"])
            for name, part in (("layers", LayerFacts), ("skipped", SkippedLayer)):
                refit[name] = tuple(part(**entry) for entry in refit[name])
            facts["refit"] = RefitFacts(**refit)
        if facts["recovery"] is not None:
            facts["recovery"] = _recovery(facts["recovery"])
        return PruningReport(**facts)
    except (AttributeError, KeyError, TypeError) as error:
        raise LoadError(_other_release(place, error)) from None


def _recovery(document: Mapping[str, Any]) -> RecoveryFacts:
    course = {task: tuple(found) for task, found in document["course"].items()}
    return RecoveryFacts(**{**document, "measured": tuple(document["measured"]), "course": course})


def _stair(document: Mapping[str, Any]) -> StairFacts:
    lists = {name: tuple(document[name]) for name in ("widths", "ms")}
    return StairFacts(**{**document, **lists})


def attachments(document: Mapping[str, Any]) -> list[RenderableType]:
    """Views of what commands add to a report: ``training``, ``export``, ``latency``, ``int8``.

    Raises:
        LoadError: an entry is not what it should be.
    """
    views: list[RenderableType] = []
    try:
        if "training" in document:
            views += _training(document["training"])
        if "export" in document:
            views += _export(document["export"])
        if "latency" in document:
            views.append(latency_facts(document["latency"]))
        if "int8" in document:
            views.append(quantization_facts(document["int8"]))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise LoadError(_other_release("report.json", error)) from None
    return views


def _other_release(place: str, error: Exception) -> str:
    return (
        f"{place!r} is not a report of this release ({type(error).__name__}: {error}). Prune again, or "
        "use the release that wrote it."
    )


def quantization_facts(document: Mapping[str, Any]) -> QuantizationFacts:
    """The facts whose JSON ``document`` is."""
    facts = dict(document)
    facts["tasks"] = {name: _task_deviation(task) for name, task in facts["tasks"].items()}
    facts["layers"] = tuple(LayerFact(**layer) for layer in facts["layers"])
    if facts["latency"] is not None:
        facts["latency"] = latency_facts(facts["latency"])
    return QuantizationFacts(**facts)


def _task_deviation(document: Mapping[str, Any]) -> TaskDeviation:
    columns = document.get("columns")
    return TaskDeviation(**{**document, "columns": columns and Columns(**columns)})


def latency_facts(document: Mapping[str, Any]) -> LatencyFacts:
    """The facts whose JSON ``document`` is."""
    models = tuple(LatencyFact(**model) for model in document["models"])
    shapes = tuple(map(tuple, document["input_shapes"]))
    return LatencyFacts(**{**document, "models": models, "input_shapes": shapes})


def _training(facts: Mapping[str, Any]) -> list[RenderableType]:
    table = table_of("task", "loss of the first epoch", "loss of the last")
    for task, losses in facts["losses"].items():
        if losses:
            table.add_row(Text(task), f"{losses[0]:.4g}", f"{losses[-1]:.4g}")
    how = f"{facts['regime']} regime, {facts['schedule']}" if "regime" in facts else "trained after pruning"
    counts = [f"{facts[name]} {name}" for name in ("epochs", "steps") if name in facts]
    stopped = ["stopped early"] if facts.get("stopped_early") else []
    return [table, Text(": ".join([how, ", ".join([*counts, *stopped])]) if counts else how)]


def _export(facts: Mapping[str, Any]) -> list[RenderableType]:
    table = table_of("ONNX output", "worst absolute difference", "worst relative difference", "on batches of")
    for task in dict.fromkeys(fact["task"] for fact in facts["parity"]):
        own = [fact for fact in facts["parity"] if fact["task"] == task]
        sizes = ", ".join(map(str, sorted({fact["batch"] for fact in own})))
        worst = [max(fact[key] for fact in own) for key in ("max_abs", "max_rel")]
        table.add_row(Text(task), *(f"{value:.1e}" for value in worst), sizes)
    size = f"{words.size(facts['bytes'])}, opset {facts['opset']}, dynamic: {facts['dynamic']}"
    lines: list[RenderableType] = [table, Text(f"{facts['path']}: {size}; agrees with PyTorch")]
    return lines + [Text(f"less dynamic than asked: {line}", style="yellow") for line in facts["narrowed"]]


def groups(entries: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Table:
    """The channel groups of a model."""
    table = table_of("group", "kind", "reach", "members", "units")
    for entry in entries:
        names = [f"{member['parameter']}[{member['dim']}]" for member in entry["members"]]
        more = len(names) - _MEMBERS_SHOWN
        shown = ", ".join(names[:_MEMBERS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        everyone = len(tasks) > 1 and set(entry["reach"]) == set(tasks)
        nobody = "no task, but an output" if entry["unclaimed"] else "none"
        reach = "all" if everyone else ", ".join(entry["reach"]) or nobody
        table.add_row(Text(entry["name"]), entry["kind"], Text(reach), Text(shown), str(entry["units"]))
    return table


def constraints(entries: Sequence[Mapping[str, Any]]) -> Table:
    """The count constraints between groups."""
    table = table_of("groups that keep counts in proportion", "shares", "why")
    for entry in entries:
        sides = RatioConstraint(**entry).sides
        groups = ", ".join(" + ".join(names) for names, _ in sides)
        table.add_row(Text(groups), " : ".join(str(share) for _, share in sides), Text(entry["reason"]))
    return table


def reachable(entries: Sequence[Mapping[str, Any]]) -> Table:
    """The least a budget may ask for, for each floor."""
    table = table_of("floor", "least MACs", "of dense", "least parameters", "of dense")
    for entry in entries:
        costs = [
            cell
            for kind in ("macs", "parameters")
            for cell in (f"{entry[kind]['least']:,.0f}", f"{entry[kind]['share']:.1%}")
        ]
        table.add_row(f"{entry['floor']:g}", *costs)
    return table


_NUMBERS = ("worst", "median", "quartiles", "speed", "units", "least", "of dense", "shares")


def table_of(*headings: str) -> Table:
    """An empty table in the style of the reports; columns of numbers are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading.startswith(_NUMBERS) else "left")
    return table
