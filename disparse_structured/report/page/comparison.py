"""Two runs compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disparse_structured.report import words
from disparse_structured.report.page import parts
from disparse_structured.report.page.run import Group, Run
from disparse_structured.report.page.units import agreement
from disparse_structured.report.page.verdict import cost_name

Row = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The figures, widths and settings of two runs, where they differ and where they agree."""

    first: Run
    second: Run

    @property
    def names(self) -> tuple[str, str]:
        """What to call the two: their folders' names, or A and B."""
        names = (self.first.name, self.second.name)
        return names if names[0] != names[1] else ("A", "B")

    @property
    def same_network(self) -> bool | None:
        """Whether both plans are for one dense network; None if that is not known."""
        plans = (self.first.plan, self.second.plan)
        if plans[0] is None or plans[1] is None:
            return None
        return bool(plans[0]["fingerprint"] == plans[1]["fingerprint"])

    @property
    def verdict(self) -> str:
        """The comparison in one line."""
        one, other = self.names
        if self.first.report["plan"] == self.second.report["plan"]:
            return f"{one} and {other} have the same plan"
        if self.same_network is False:
            return f"{one} and {other} were made from different dense networks"
        agreed = self.agreed
        said = "" if agreed is None else f": of the units that either lost, both lost {words.percent(agreed)}"
        return f"{one} and {other} have different plans{said}"

    @property
    def agreed(self) -> float | None:
        """Units that both runs lost, as a share of those that at least one did."""
        return agreement([(one.removed, other.removed) for one, other in self.pairs()])

    def headings(self, subject: str) -> Row:
        """The headings of a table about ``subject``."""
        return (subject, *self.names, "change")

    def figures(self) -> list[Row]:
        """Name, the two values, and the change from the first to the second."""
        return list(self._figures())

    def pairs(self) -> list[tuple[Group, Group]]:
        """Groups of the same name and size in both plans."""
        others = {group.name: group for group in self.second.groups}
        found = [(group, others[group.name]) for group in self.first.groups if group.name in others]
        return [(one, other) for one, other in found if one.units == other.units]

    def widths(self) -> list[tuple[Group, Group, float | None]]:
        """Groups whose widths or units differ, and how far the two agree on them."""
        return [
            (one, other, agreement([(one.removed, other.removed)]))
            for one, other in self.pairs()
            if one.removed != other.removed
        ]

    def settings(self) -> list[Row]:
        """Settings that differ, with both values."""
        one, other = (dict(parts.settings(run)) for run in (self.first, self.second))
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return [(name, one.get(name, "–"), other.get(name, "–")) for name in names]

    def _figures(self) -> Iterator[Row]:
        one, other = self.first.costs(), self.second.costs()
        for name in [name for name in {**one, **other} if name != "latency"]:
            values = [costs[name][2] if name in costs else None for costs in (one, other)]
            yield _row(cost_name(name), values, words.short_count)
        times = [parts.intervals(run) for run in (self.first, self.second)]
        if any(times):
            medians = [found[1].median if found else None for found in times]
            yield _row("milliseconds", medians, words.milliseconds)
        exports = [(run.report.get("export") or {}).get("bytes") for run in (self.first, self.second)]
        if any(exports):
            yield _row("ONNX file", exports, words.size)
        yield from self._tasks("deviation", _deviations, words.percent)
        yield from self._tasks("INT8, from dense", _int8, words.percent)
        yield from self._tasks("units removed", _removed, words.percent)

    def _tasks(self, what: str, of: Any, write: Any) -> Iterator[Row]:
        one, other = (of(run.report) for run in (self.first, self.second))
        for task in {**one, **other}:
            yield _row(f"{task}: {what}", [one.get(task), other.get(task)], write)


def _row(name: str, values: Sequence[float | None], write: Any) -> Row:
    before, after = values
    shown = tuple("–" if value is None else write(value) for value in values)
    if before is None or after is None or before == after or not before:
        change = "same" if before is not None and before == after else "–"
    else:
        change = f"{100 * (after / before - 1):+.3g} %"
    return (name, *shown, change)


def _deviations(report: Mapping[str, Any]) -> dict[str, float]:
    return dict((report.get("deviation") or {}).get("final", {}))


def _int8(report: Mapping[str, Any]) -> dict[str, float]:
    tasks = (report.get("int8") or {}).get("tasks", {})
    return {
        name: each["int8_from_dense"] for name, each in tasks.items() if each["int8_from_dense"] is not None
    }


def _removed(report: Mapping[str, Any]) -> dict[str, float]:
    return {task["name"]: task["removed"] for task in report["tasks"] if "removed" in task}
