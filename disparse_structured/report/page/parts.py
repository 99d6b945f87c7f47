"""What a page shows of a run, as tables of text: everything is read from the report and the plan."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disparse_structured.report import words
from disparse_structured.report.page.charts import Interval, Stair
from disparse_structured.report.page.run import Group, Run
from disparse_structured.report.page.verdict import cost_name

GRAPH = 'Prune the exported graph: form="graph" (--form graph).'
_TASKS = 24
"""How many tasks are compared with each other."""

_FIXED = ("the network's output", "the network's input")


@dataclass(frozen=True)
class Tile:
    """A figure at the top: what, how much, and a line below."""

    label: str
    value: str
    note: str
    good: bool | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the text, the value by which it sorts, and a share that colors it."""

    text: str
    value: float | str | None = None
    heat: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Left:
    """Something that was left alone."""

    what: str
    why: str
    share: float | None
    remedy: str


@dataclass(frozen=True)
class Matrix:
    """Agreement of each pair of tasks; None on the diagonal and where they share nothing."""

    tasks: tuple[str, ...]
    cells: tuple[tuple[tuple[float, float] | None, ...], ...]


def tiles(run: Run) -> list[Tile]:
    """The figures at the top of the page; a measured time replaces the predicted one."""
    times = intervals(run)
    measured = bool(times) and bool(times[0].median)
    found = [
        Tile(
            f"{cost_name(name)} left",
            words.percent(pruned / dense) if dense else words.short_count(pruned),
            f"{words.short_count(dense)} → {words.short_count(pruned)}{'' if unit != 'ms' else ' ms'}",
        )
        for name, (unit, dense, pruned) in run.costs().items()
        if unit != "ms" or not measured
    ]
    if measured:
        dense, pruned = times[0], times[1]
        found.append(
            Tile(
                "time left",
                words.percent(pruned.median / dense.median),
                f"{words.milliseconds(dense.median)} → {words.milliseconds(pruned.median)} ms"
                + ("" if pruned.upper < dense.lower else ", quartiles overlap"),
                pruned.upper < dense.lower,
            )
        )
    export, int8 = run.report.get("export"), run.report.get("int8")
    if export is not None:
        smaller = (
            f"INT8: {words.size(int8['bytes'])}" if int8 and int8["bytes"] is not None else export["path"]
        )
        found.append(Tile("ONNX file", words.size(export["bytes"]), smaller))
    verification = run.report.get("verification")
    if verification is not None:
        worst = max(verification.get("deviation", {}).values(), default=0.0)
        value = "yes" if verification["verified"] else "no"
        note = (
            f"masked twin within {words.tiny(worst)}" if verification["verified"] else "it was switched off"
        )
        found.append(Tile("removal verified", value, note, verification["verified"]))
    return found


def tasks_table(run: Run) -> tuple[list[str], list[list[Cell]]]:
    """Headings, and a row for each task: how far its output moved at each stage, or its metric."""
    deviation, int8 = run.report.get("deviation") or {}, run.report.get("int8") or {}
    demo = {task["name"]: task for task in (run.report.get("demo") or {}).get("tasks", ())}
    losses = (run.report.get("training") or {}).get("losses", {})
    quantized: Mapping[str, Any] = int8.get("tasks", {})
    stages: list[tuple[str, Mapping[str, float | None]]] = []
    if deviation:
        stages.append(("as cut", deviation["cut"]))
        refit = deviation.get("refit") or deviation["final"]
        if deviation["cut"] != refit:
            stages.append(("refit", refit))
        if deviation.get("refit"):
            stages.append(("distilled", deviation["final"]))
    if quantized and int8.get("path"):
        whole = all(task["int8_from_dense"] is not None for task in quantized.values())
        key, heading = ("int8_from_dense", "INT8") if whole else ("int8", "INT8, from the float file")
        stages.append((heading, {name: task[key] for name, task in quantized.items()}))
    most = max(
        (
            value
            for _, by_task in stages
            for value in by_task.values()
            if value is not None and value == value
        ),
        default=0.0,
    )
    headings = ["task", *(heading for heading, _ in stages)]
    if demo:
        headings += ["metric", "dense", "pruned", "fine-tuned", "change"]
    if losses:
        headings += ["loss, first epoch", "loss, last epoch"]
    headings += ["units reached", "asked to remove", "removed"]
    rows = []
    for task in run.report["tasks"]:
        name = task["name"]
        row = [Cell(name, name)]
        for _, by_task in stages:
            value = by_task.get(name)
            scaled = (
                value / most if value is not None and 0 < most < float("inf") and value == value else None
            )
            row.append(Cell(words.percent(value), value, bar=scaled))
        if demo:
            row += _metrics(demo.get(name))
        if losses:
            row += _losses(losses.get(name, ()))
        asked, removed = task.get("asked"), task.get("removed")
        row.append(Cell(words.count(task["units"]), task["units"]) if "units" in task else Cell("–"))
        row += [Cell(words.percent(each), each) for each in (asked, removed)]
        rows.append(row)
    return headings, rows


def columns_lines(run: Run) -> list[str]:
    """For outputs that have columns of several sizes, what those deviate by that moved most."""
    deviation, int8 = run.report.get("deviation") or {}, run.report.get("int8") or {}
    found = [("", name, columns) for name, columns in deviation.get("columns", {}).items()]
    found += [
        (" in INT8, from the float file", name, task["columns"])
        for name, task in int8.get("tasks", {}).items()
        if int8.get("path") and task.get("columns")
    ]
    return [
        f"{name}{stage}, {columns['place']}: {words.percent(columns['deviation'])} relative to "
        "those columns alone."
        for stage, name, columns in found
    ]


def _metrics(task: Mapping[str, Any] | None) -> list[Cell]:
    if task is None:
        return [Cell("–")] * 5
    figures = [Cell(f"{task[stage]:.4g}", task[stage]) for stage in ("dense", "pruned", "finetuned")]
    change = Cell(f"{task['change_finetuned']:+.1f} %", task["change_finetuned"])
    return [Cell(task["metric"], task["metric"]), *figures, change]


def _losses(losses: Sequence[float]) -> list[Cell]:
    ends = (losses[0], losses[-1]) if losses else ()
    return [Cell(f"{loss:.4g}", loss) for loss in ends] or [Cell("–")] * 2


def intervals(run: Run) -> list[Interval]:
    """The dense and the pruned file's milliseconds."""
    latency, speed = run.report.get("latency"), run.report.get("speed")
    if latency is not None and len(latency["models"]) > 1:
        return _of_latency(latency)
    if speed is not None:
        dense, pruned = speed["dense_ms"], speed["pruned_ms"]
        spread = (dense * speed["lower"], dense * speed["upper"])
        lower, upper = min(*spread, pruned), max(*spread, pruned)
        return [Interval("dense", dense, dense, dense), Interval("pruned", lower, pruned, upper)]
    return []


def stairs(run: Run) -> list[Stair]:
    """The groups that save most time, with the time over their widths."""
    known = {group.name: group for group in run.groups}
    return [
        Stair(each["group"], group.units, group.kept, each["won"], each["widths"], each["ms"])
        for each in (run.report.get("speed") or {}).get("stairs", ())
        if each["group"] in known and each["widths"] and len(each["widths"]) == len(each["ms"])
        for group in [known[each["group"]]]
    ]


def won(run: Run) -> dict[str, float]:
    """By group, the milliseconds that its removals save, as predicted; empty without a time budget."""
    return {each["group"]: each["won"] for each in (run.report.get("speed") or {}).get("stairs", ())}


def int8_intervals(run: Run) -> list[Interval]:
    """The milliseconds of the float file and of the INT8 file."""
    latency = (run.report.get("int8") or {}).get("latency")
    return _of_latency(latency) if latency is not None and latency["models"] else []


def _of_latency(latency: Mapping[str, Any]) -> list[Interval]:
    return [
        Interval(each["name"], each["lower_quartile_ms"], each["median_ms"], each["upper_quartile_ms"])
        for each in latency["models"]
    ]


def how_timed(latency: Mapping[str, Any]) -> str:
    """How and where times were measured."""
    shapes = " and ".join(words.shape(shape) for shape in latency["input_shapes"])
    where = f"threads: {latency['threads']}, {latency['runtime']}, {latency['cpu']}"
    return f"{latency['rounds']} rounds in turn, input {shapes}, {where}"


def groups_table(run: Run, groups: Sequence[Group]) -> tuple[list[str], list[list[Cell]]]:
    """Headings, and a row for each of ``groups``: its widths, and which share each task voted to remove."""
    saved = won(run)
    headings = ["#", "group", "kind", "reach", "units", "kept", "removed"]
    headings += [f"{task} votes" for task in run.tasks] + ["ms saved"] * bool(saved)
    places = {group.name: place for place, group in enumerate(run.groups, 1)}
    rows = [_group_row(places[group.name], group, run.tasks) for group in groups]
    for group, row in zip(groups, rows if saved else (), strict=False):
        row.append(Cell(words.milliseconds(saved.get(group.name, 0.0)), saved.get(group.name, 0.0)))
    return headings, rows


def _group_row(place: int, group: Group, tasks: Sequence[str]) -> list[Cell]:
    everyone = len(tasks) > 1 and set(group.reach) == set(tasks)
    reach = "all" if everyone else ", ".join(group.reach) or "none"
    row = [
        Cell(str(place), place),
        Cell(group.name, group.name),
        Cell(group.kind, group.kind),
        Cell(reach, reach),
    ]
    row += [Cell(words.count(number), number) for number in (group.units, group.kept)]
    row.append(Cell(words.share(group.share), group.share, heat=group.share))
    for task in tasks:
        asked = group.asked(task)
        row.append(Cell("–", -1) if asked is None else Cell(words.share(asked), asked, heat=asked))
    return row


def overlap(run: Run) -> Matrix | None:
    """How far the tasks agree on what to remove; None for one task, or without votes."""
    tasks = run.tasks[:_TASKS]
    found = {pair: run.overlap(*pair) for pair in itertools.combinations(tasks, 2)}
    if not any(found.values()):
        return None
    cells = tuple(
        tuple(found.get((one, other)) or found.get((other, one)) for other in tasks) for one in tasks
    )
    return Matrix(tasks, cells)


def left_alone(run: Run) -> list[Left]:
    """What was left alone, why, and how to change that, the largest first."""
    return sorted(_left_alone(run), key=lambda each: -(each.share or 0.0))


def _left_alone(run: Run) -> Iterator[Left]:
    report = run.report
    for refused in report.get("refused", ()):
        yield Left(refused["group"], refused["reason"], None, GRAPH)
    merged: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pin in report.get("pinned", ()):
        merged.setdefault((pin["reason"], pin["operator"]), []).append(pin)
    for (reason, operator), pins in merged.items():
        first = pins[0]["module"] or "the model itself"
        what = first if len(pins) == 1 else f"{first} and {len(pins) - 1} more"
        share = max((pin.get("share", 0.0) for pin in pins), default=None)
        yield Left(what, f"{reason} ({operator})", share, _remedy(reason, any(p.get("number") for p in pins)))
    for pattern in _strings((run.plan or {}).get("budget", {}).get("protected")):
        yield Left(pattern, "the budget protects it", None, "Remove it from protected= (--protect).")
    for module in report.get("unused", ()):
        why, remedy = "it never runs, in eval or train mode", "Drop it: drop_unused=True (--drop-unused)."
        if module.get("unfit"):
            why, remedy = f"{why}, and reads a width that was pruned", words.NEEDED
        yield Left(module["module"], why, module["share"], remedy)
    for layer in (report.get("int8") or {}).get("layers", ()):
        if not layer["int8"]:
            why = f"stayed float: {layer.get('reason') or layer['operator']}"
            limited = " allowed" in why
            remedy = "Raise the task's limit: --int8-tolerance TASK=X." if limited else ""
            yield Left(layer["name"], why, None, remedy)


def _remedy(reason: str, number: bool) -> str:
    if number:
        return GRAPH
    if reason.startswith("no rule for"):
        return "Register a rule for this operator."
    if reason in _FIXED:
        return "Nothing: its width is part of the interface."
    return "Nothing: removing positions would change what it computes."


def _strings(found: object) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def notes(run: Run) -> list[str]:
    """What else to know before using the result."""
    report, found = run.report, []
    if report.get("graph_only") is not None:
        found.append(report["graph_only"]["advice"])
    if report.get("stale"):
        found.append(
            f"Numbers that forward does not read still hold the dense size: {_listed(report['stale'])}."
        )
    if report.get("dropped"):
        dropped = [module["module"] for module in report["dropped"]]
        found.append(f"Dropped because they are never used: {_listed(dropped)}.")
    if report.get("shared_inputs"):
        found.append(f"Shared by all examples of a batch: {_listed(report['shared_inputs'])}.")
    recovery = report.get("recovery")
    if recovery is not None and not recovery["steps"]:
        found.append(f"Not distilled: {recovery['stopped']}")
    export = report.get("export") or {}
    found += [f"The ONNX file is less dynamic than requested: {line}" for line in export.get("narrowed", ())]
    found += [f"Not checked in ONNX Runtime: {line}" for line in export.get("unchecked", ())]
    return found


def verification_rows(run: Run) -> list[list[Cell]]:
    """By task: the deviation from the masked twin, and that of the ONNX file from PyTorch."""
    verification = run.report.get("verification") or {}
    parity: dict[str, list[Mapping[str, Any]]] = {}
    for fact in (run.report.get("export") or {}).get("parity", ()):
        parity.setdefault(fact["task"], []).append(fact)
    names = dict.fromkeys([*run.tasks, *verification.get("deviation", {}), *parity])
    rows = []
    for name in names:
        twin, facts = verification.get("deviation", {}).get(name), parity.get(name, [])
        worst = [max((fact[key] for fact in facts), default=None) for key in ("max_abs", "max_rel")]
        sizes = ", ".join(map(str, sorted({fact["batch"] for fact in facts}))) or "–"
        empty = verification.get("empty", {}).get(name)
        said = words.tiny(twin) if empty is None else f"nothing was compared: {empty}"
        rows.append([Cell(name), Cell(said), *(Cell(words.tiny(each)) for each in worst), Cell(sizes)])
    known = bool(verification.get("deviation") or verification.get("empty") or parity)
    return rows if known else []


def settings(run: Run) -> list[tuple[str, str]]:
    """What the result was made with, to reproduce it."""
    report, plan = run.report, run.plan or {}
    budget, provenance = plan.get("budget", {}), plan.get("provenance", {})
    rows: list[tuple[str, Any]] = [
        (
            "budget",
            ", ".join(f"{name} {_plain(value)}" for name, value in budget.items() if value not in (None, [])),
        ),
        *((name, report.get(name)) for name in ("method", "criterion", "arbiter", "ranking")),
        ("refit", (report.get("refit") or {}).get("method")),
        ("recovery", (report.get("recovery") or {}).get("method")),
        ("ratio", None if report.get("ratio") is None else words.percent(report["ratio"])),
        ("seed", provenance.get("seed")),
        ("samples", report.get("samples")),
        ("pictures", _pictures(report.get("images"))),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.get("versions", {}).items())),
        ("plan", report["plan"]),
        ("dense network", plan.get("fingerprint")),
        ("ONNX file", (report.get("export") or {}).get("sha256")),
        ("INT8 file", (report.get("int8") or {}).get("sha256")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _pictures(images: Mapping[str, Any] | None) -> str | None:
    if images is None:
        return None
    prepared = ", ".join(f"{name} {_plain(value)}" for name, value in images["preprocessing"].items())
    skipped = f", {len(images['skipped'])} skipped" if images["skipped"] else ""
    return f"{images['inputs']}{skipped}; {prepared}"


def command(run: Run) -> str | None:
    """The command that wrote the folder, to be pasted into a shell."""
    found = run.report.get("command")
    return None if found is None else shlex.join(["disparse", *found])


def refit_rows(run: Run) -> list[list[Cell]]:
    """The layers that were refit: unknowns, rows, and the relative error before and after."""
    layers = (run.report.get("refit") or {}).get("layers", ())
    return [
        [
            Cell(layer["layer"], layer["layer"]),
            *(Cell(words.count(layer[name]), layer[name]) for name in ("features", "rows")),
            *(Cell(words.percent(layer[name]), layer[name]) for name in ("before", "after")),
        ]
        for layer in layers
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
