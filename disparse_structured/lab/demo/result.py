"""The demo's figures, as data, as JSON and as tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from disparse_structured.decision.plan import GroupPlan, Plan
from disparse_structured.lab.metrics import delta_t
from disparse_structured.lab.scenes import HEADLINES
from disparse_structured.report.facts import ExportFacts, LatencyFact, LatencyFacts
from disparse_structured.report.pruning import PruningReport
from disparse_structured.report.text import plain_text

Figures = Mapping[str, float]
"""Task name -> the one figure that stands for the task."""

Stage = Literal["dense", "pruned", "finetuned"]
_PRUNED: tuple[Stage, ...] = ("pruned", "finetuned")

_GROUPS_SHOWN = 6
# Metric -> its name in tables, its digits, its unit.
_LABELS = {
    "miou": ("mIoU", 3, ""),
    "abs_error": ("error", 3, " m"),
    "mean_angle": ("error", 1, "°"),
    "l1": ("L1", 3, ""),
}


@dataclass(frozen=True)
class TaskOutcome:
    """One task's figure on held-out scenes: dense, pruned without training, and fine-tuned."""

    name: str
    metric: str
    higher_is_better: bool
    dense: float
    pruned: float
    finetuned: float

    @property
    def label(self) -> str:
        """The metric's name in a table."""
        return _LABELS[self.metric][0]

    def text(self, stage: Stage) -> str:
        """The figure of ``stage`` with its unit."""
        _, digits, unit = _LABELS[self.metric]
        return f"{getattr(self, stage):.{digits}f}{unit}"

    @property
    def summary(self) -> str:
        """``"error 0.332 · 0.351 · 0.338 m"``: the figure dense, pruned and fine-tuned."""
        label, digits, unit = _LABELS[self.metric]
        values = (f"{value:.{digits}f}" for value in (self.dense, self.pruned, self.finetuned))
        return f"{label} {' · '.join(values)}{unit}"

    def change(self, stage: Stage) -> float:
        """Percent relative to dense. Above 0 is better, whatever the metric's direction."""
        figures = {self.name: self.dense}, {self.name: getattr(self, stage)}
        return delta_t(*figures, {self.name: self.higher_is_better})


@dataclass(frozen=True)
class DemoResult:
    """One run: its figures and its files.

    ``export`` describes ``model.onnx``, ``dense_export`` a file that was not kept.
    """

    folder: str
    files: tuple[str, ...]
    plan: Plan
    report: PruningReport
    tasks: tuple[TaskOutcome, ...]
    dense_export: ExportFacts
    export: ExportFacts
    latency: LatencyFacts
    settings: Mapping[str, Any]
    seed: int
    seconds: Mapping[str, float]

    def delta_t(self, stage: Stage) -> float:
        """The mean over tasks of :meth:`TaskOutcome.change`, in percent."""
        return sum(task.change(stage) for task in self.tasks) / len(self.tasks)

    def document(self) -> dict[str, Any]:
        """The content of ``report.json``: the pruning report, with ``export``, ``latency`` and ``demo``."""
        demo = {
            "tasks": [
                dataclasses.asdict(task)
                | {"change_pruned": task.change("pruned"), "change_finetuned": task.change("finetuned")}
                for task in self.tasks
            ],
            "delta_t": {"pruned": self.delta_t("pruned"), "finetuned": self.delta_t("finetuned")},
            "onnx_bytes": {"dense": self.dense_export.bytes, "pruned": self.export.bytes},
            "settings": dict(self.settings),
            "seed": self.seed,
            "seconds": dict(self.seconds),
        }
        own = {"export": dataclasses.asdict(self.export), "latency": dataclasses.asdict(self.latency)}
        report: dict[str, Any] = json.loads(self.report.to_json())
        return report | own | {"demo": demo}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``: the folder, its files, and the report."""
        return {"folder": self.folder, "files": list(self.files), "report": self.document()}

    @property
    def headline(self) -> str:
        """MACs, parameters, speed and ΔT in one line."""
        macs, parameters = self.report.costs["macs"], self.report.costs["parameters"]
        _, pruned = self._times()
        threads = f"{self.latency.threads} thread" + ("s" if self.latency.threads > 1 else "")
        return "  ·  ".join(
            (
                f"MACs {macs.dense / 1e6:.3g} M → {macs.pruned / 1e6:.3g} M",
                f"parameters {parameters.dense / 1e6:.2g} M → {parameters.pruned / 1e6:.2g} M",
                f"{pruned.paired_speedup:.1f} × as fast in ONNX Runtime ({threads})",
                f"ΔT {_percent(self.delta_t('pruned'))} without training, "
                f"{_percent(self.delta_t('finetuned'))} fine-tuned",
            )
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._votes()
        yield self._tasks()
        yield self._notes()
        yield self._costs()
        yield self._checks()
        yield Text(f"written to {self.folder}: {', '.join(self.files)}", style="bold")

    def __str__(self) -> str:
        return plain_text(self, width=110)

    def _votes(self) -> Table:
        """The shared groups that shrank most: what each task votes to remove, and what is removed."""
        table = _table("votes to remove, in the shared layers that shrank most", "group", "units")
        for heading in (*self.plan.tasks, "removed"):
            table.add_column(heading, justify="right")
        shared = [group for group in self.plan.groups if len(group.reach) > 1 and group.removed]
        shared.sort(key=lambda group: len(group.removed), reverse=True)
        for group in shared[:_GROUPS_SHOWN]:
            votes = dict(group.votes)
            asked = [_share(votes[task], group) if task in votes else "-" for task in self.plan.tasks]
            table.add_row(
                Text(group.name), f"{group.units} → {group.kept}", *asked, _share(group.removed, group)
            )
        return table

    def _tasks(self) -> Table:
        headings = ("removed", "metric", "dense", "pruned", "change", "fine-tuned", "change")
        table = _table("what each task pays, on scenes held out from training", "task", *headings)
        removed = {task.name: task.removed for task in self.report.tasks}
        for task in self.tasks:
            table.add_row(
                task.name,
                f"{removed[task.name]:.0%}",
                f"{task.label} {'↑' if task.higher_is_better else '↓'}",
                task.text("dense"),
                *(shown for stage in _PRUNED for shown in (task.text(stage), _percent(task.change(stage)))),
            )
        table.add_section()
        changes = (shown for stage in _PRUNED for shown in ("", _percent(self.delta_t(stage))))
        table.add_row("ΔT", "", "", "", *changes, style="bold")
        return table

    def _notes(self) -> Text:
        images, epochs = self.settings["calibration"], self.settings["finetune_epochs"]
        more = f"{epochs} epoch{'s' if epochs > 1 else ''} more"
        return Text(
            f"pruned: prune() with its defaults and {images} images; no labels, no training\n"
            f"fine-tuned: with labels, {more} than the dense network was trained for\n"
        )

    def _costs(self) -> Table:
        table = _table("what that saves", "cost", "dense", "pruned", "left")
        macs, parameters = self.report.costs["macs"], self.report.costs["parameters"]
        dense, pruned = self._times()
        size = self.dense_export.bytes, self.export.bytes
        table.add_row("MACs", f"{macs.dense:,.0f}", f"{macs.pruned:,.0f}", f"{macs.ratio:.1%}")
        table.add_row(
            "parameters", f"{parameters.dense:,.0f}", f"{parameters.pruned:,.0f}", f"{parameters.ratio:.1%}"
        )
        table.add_row(
            "ONNX file", f"{size[0] / 1e6:.2f} MB", f"{size[1] / 1e6:.2f} MB", f"{size[1] / size[0]:.1%}"
        )
        table.add_row(
            f"latency, threads: {self.latency.threads}",
            _milliseconds(dense),
            _milliseconds(pruned),
            f"{1 / pruned.paired_speedup:.1%}",
        )
        return table

    def _checks(self) -> Text:
        lines = [f"latency: median and quartiles of {self.latency.rounds} interleaved runs in ONNX Runtime"]
        verification = self.report.verification
        if verification.verified:
            worst = max(verification.deviation.values(), default=0.0)
            lines.append(
                f"the pruned network equals the masked twin in {verification.dtype}: "
                f"worst deviation {worst:.1e}"
            )
        parity = max(fact.max_rel for fact in self.export.parity)
        lines.append(f"ONNX Runtime equals PyTorch: worst relative difference {parity:.1e}")
        return Text("\n".join(lines))

    def _times(self) -> tuple[LatencyFact, LatencyFact]:
        by_name = {fact.name: fact for fact in self.latency.models}
        return by_name["dense"], by_name["pruned"]


def compare(dense: Figures, pruned: Figures, finetuned: Figures) -> tuple[TaskOutcome, ...]:
    """The three evaluations, task by task."""
    return tuple(
        TaskOutcome(task, metric, higher, dense[task], pruned[task], finetuned[task])
        for task, (metric, higher) in HEADLINES.items()
    )


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _share(units: tuple[int, ...], group: GroupPlan) -> str:
    return f"{len(units) / group.units:.0%}"


def _milliseconds(fact: LatencyFact) -> str:
    return f"{fact.median_ms:.2f} ms ({fact.lower_quartile_ms:.2f} – {fact.upper_quartile_ms:.2f})"


def _percent(change: float) -> str:
    return f"{change:+.1f} %"
