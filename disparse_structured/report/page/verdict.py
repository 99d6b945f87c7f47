"""A run in one line, for a pull request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disparse_structured.report import words
from disparse_structured.report.page.run import Run

_LABELS = {"macs": "MACs"}


def cost_name(name: str) -> str:
    """What a cost is called: ``MACs`` for ``macs``, others by their own names."""
    return _LABELS.get(name, name)


def verdict(run: Run) -> str:
    """Size, time, the worst task's change, and whether that was verified."""
    parts = [
        f"{cost_name(name)} {words.short_count(dense)} → {words.short_count(pruned)}"
        + (f" ({words.percent(pruned / dense)})" if dense else "")
        for name, (unit, dense, pruned) in run.costs().items()
        if unit != "ms"
    ]
    found = [speed_line(run), change_line(run), checks_line(run)]
    return f"{run.report['model']}: " + " · ".join([*parts, *(each for each in found if each)])


def speed_line(run: Run) -> str:
    """Milliseconds before and after, with the quartiles and the machine; empty if not measured."""
    speed, latency = run.report.get("speed"), run.report.get("latency")
    if speed is not None:
        times = f"{words.milliseconds(speed['dense_ms'])} → {words.milliseconds(speed['pruned_ms'])} ms"
        spread = " to ".join(words.percent(speed[name]) for name in ("lower", "upper"))
        found = f"{words.percent(speed['measured'])} of dense, quartiles {spread}"
        return f"{times}{_unless(speed['upper'] < 1)} ({found}; {_where(speed['runtime'])})"
    if latency is None or len(latency["models"]) < 2:
        return ""
    dense, pruned = latency["models"][0], latency["models"][-1]
    faster = pruned["upper_quartile_ms"] < dense["lower_quartile_ms"]
    spread = " to ".join(words.milliseconds(pruned[f"{name}_quartile_ms"]) for name in ("lower", "upper"))
    times = f"{words.milliseconds(dense['median_ms'])} → {words.milliseconds(pruned['median_ms'])} ms"
    where = f"{latency['runtime']}, {latency['cpu']}, {_threads(latency['threads'])}"
    return f"{times}{_unless(faster)} (quartiles {spread}; {where})"


def change_line(run: Run) -> str:
    """How far the worst task moved, at the last stage that was measured; empty if it was not."""
    demo, deviation = run.report.get("demo"), run.report.get("deviation")
    if demo is not None and demo["tasks"]:
        worst = min(demo["tasks"], key=lambda task: task["change_finetuned"])
        return f"worst task {worst['name']} {worst['change_finetuned']:+.1f} % after fine-tuning"
    if deviation is None or not deviation["final"]:
        return "trained after pruning" if run.report.get("weights_changed") else ""
    moved = [(value, task) for task, value in deviation["final"].items()]
    moved += [
        (columns["deviation"], f"{task}, {columns['place']}")
        for task, columns in deviation.get("columns", {}).items()
    ]
    unknown = [where for value, where in moved if value is None or value != value]
    if unknown:
        return f"the deviation of {unknown[0]} is not a finite number"
    value, where = max(moved)
    stage = "after the refit" if run.report.get("refit") else "as cut"
    stage = "after distillation" if (run.report.get("recovery") or {}).get("steps") else stage
    return f"outputs deviate by at most {words.percent(value)} ({where}, {stage})"


def checks_line(run: Run) -> str:
    """Whether the removal and the ONNX file were checked."""
    verification, export = run.report.get("verification"), run.report.get("export")
    found = []
    if verification is not None:
        found.append("removal verified" if verification["verified"] else "NOT VERIFIED")
    if export is not None and export["parity"]:
        worst = max(fact["max_rel"] for fact in export["parity"])
        found.append(f"ONNX agrees within {words.tiny(worst)}")
    return " · ".join(found)


def _unless(faster: bool) -> str:
    return "" if faster else ", not measurably faster"


def _where(runtime: Mapping[str, Any]) -> str:
    known = [str(runtime[name]) for name in ("runtime", "processor") if name in runtime]
    return ", ".join([*known, *([_threads(runtime["threads"])] if "threads" in runtime else [])])


def _threads(number: object) -> str:
    return "1 thread" if str(number) == "1" else f"{number} threads"
