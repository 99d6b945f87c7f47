"""One run as a page reads it: its report and its plan, as plain data that has been checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from disparse_structured.errors import LoadError
from disparse_structured.report.page.units import Units, agreement, amount, read_units
from disparse_structured.report.schemas import parse_document, read_document

REPORT, PLAN = "report.json", "plan.json"


@dataclass(frozen=True)
class Group:
    """One channel group of the plan; ``votes`` are by the tasks that reach it."""

    name: str
    kind: str
    units: int
    reach: tuple[str, ...]
    removed: Units
    votes: Mapping[str, Units]

    @property
    def kept(self) -> int:
        """How many units are left."""
        return self.units - amount(self.removed)

    @property
    def share(self) -> float:
        """The share of the units that was removed."""
        return amount(self.removed) / self.units if self.units else 0.0

    def asked(self, task: str) -> float | None:
        """The share of the units that ``task`` voted to remove; None if it has no vote here."""
        if task not in self.votes:
            return None
        return amount(self.votes[task]) / self.units if self.units else 0.0


@dataclass(frozen=True)
class Run:
    """A report, and the plan that it belongs to if there is one.

    Args:
        name: what to call it, such as the folder's name.
        report: the content of ``report.json``.
        plan: the content of ``plan.json``.
    """

    name: str
    report: Mapping[str, Any]
    plan: Mapping[str, Any] | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Run:
        """The run whose results are in ``folder``.

        Raises:
            LoadError: there is no report, or a file is damaged, or the two come from different runs.
        """
        report = read_document(folder / REPORT, "report")
        plan = read_document(folder / PLAN, "plan") if (folder / PLAN).exists() else None
        run = cls(folder.resolve().name, report, plan)
        run.check(str(folder))
        return run

    @classmethod
    def of_texts(cls, name: str, report: str, plan: str | None = None) -> Run:
        """The run with these two JSON texts."""
        found = None if plan is None else parse_document(plan, "plan", name)
        return cls(name, parse_document(report, "report", name), found)

    def check(self, place: str) -> None:
        """Raises :class:`LoadError` unless the report belongs to the plan, whose groups can be read."""
        if self.plan is None:
            return
        if hashlib.sha256(self.plan_text.encode()).hexdigest() != self.report["plan"]:
            raise LoadError(f"{PLAN} and {REPORT} in {place!r} come from different runs. Prune again.")
        _ = self.groups

    @cached_property
    def plan_text(self) -> str:
        """The plan as canonical JSON."""
        return json.dumps(self.plan, sort_keys=True, indent=2, ensure_ascii=False)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The channel groups, in the order of the network; none without a plan."""
        return tuple(_group(entry) for entry in (self.plan or {}).get("groups", ()))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(task["name"] for task in self.report["tasks"])

    def costs(self) -> dict[str, tuple[str, float, float]]:
        """By the name of a cost: its unit, the dense and the pruned value; MACs and parameters first."""
        known = self.report.get("costs", {})
        return {
            name: (
                cost["unit"],
                cost["dense"],
                cost["predicted"] if cost["counted"] is None else cost["counted"],
            )
            for name in sorted(known, key=lambda name: (name not in ("macs", "parameters"), name))
            for cost in [known[name]]
        }

    def overlap(self, one: str, other: str) -> tuple[float, float] | None:
        """How far two tasks agree on what to remove, among the groups that both reach, and by chance.

        Both are Jaccard indices. By chance, each task removes as many units of each group as it did, but
        drawn at random. None where they vote on nothing together.
        """
        shared = [group for group in self.groups if one in group.votes and other in group.votes]
        found = agreement([(group.votes[one], group.votes[other]) for group in shared])
        if found is None:
            return None
        counts = [(amount(g.votes[one]), amount(g.votes[other]), g.units) for g in shared if g.units]
        both = sum(a * b / units for a, b, units in counts)
        return found, both / (sum(a + b for a, b, _ in counts) - both)


def _group(entry: Mapping[str, Any]) -> Group:
    name, units = entry["name"], entry["units"]
    votes = {task: read_units(text, units, name) for task, text in entry["votes"].items()}
    removed = read_units(entry["removed"], units, name)
    return Group(name, entry["kind"], units, tuple(entry["reach"]), removed, votes)
