"""The immutable answer: which units leave which group, in the dense model's coordinates.

A plan is data. It prints as a table, round-trips through canonical JSON (the same plan is the same
bytes), and refuses a model that it was not made for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import io
import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from disparse_structured.checks import as_path, check_object
from disparse_structured.decision.contracts import PrunableStructure, check_prunable
from disparse_structured.decision.costs import STANDARD, Cost
from disparse_structured.decision.plan.canonical import decode, encode
from disparse_structured.decision.plan.parts import (
    Change,
    GroupPlan,
    Plain,
    Provenance,
    check_indices,
    other_schema,
)
from disparse_structured.errors import LoadError, PlanError
from disparse_structured.files import write_text
from disparse_structured.naming import cost_label
from disparse_structured.report import words
from disparse_structured.report.page.notebook import plan_html
from disparse_structured.report.page.run import Run
from disparse_structured.report.schemas import PLAN_SCHEMA
from disparse_structured.structure.groups import ChannelGroup, RatioConstraint


@dataclass(frozen=True)
class Plan:
    """Which units are removed from which group, who voted for it, and what the result should cost.

    Args:
        fingerprint: of the dense model's architecture.
        tasks: task names, in the order of the structure.
        groups: every channel group of the structure, changed or not.
        predicted: by the name of a cost, sorted, that cost before and after; see :attr:`costs`.
        budget: the budget that was asked for, as plain data; empty for a plan made by hand.
    """

    fingerprint: str
    tasks: tuple[str, ...]
    groups: tuple[GroupPlan, ...]
    predicted: tuple[tuple[str, Change], ...]
    budget: tuple[tuple[str, Plain], ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    schema: int = PLAN_SCHEMA

    @classmethod
    def from_keep(
        cls,
        structure: PrunableStructure,
        keep: torch.Tensor,
        *,
        votes: torch.Tensor | None = None,
        costs: Iterable[Cost] = STANDARD,
        budget: tuple[tuple[str, Plain], ...] = (),
        provenance: Provenance | None = None,
    ) -> Plan:
        """The plan that keeps ``keep`` (bool ``[units]``); ``votes`` is bool ``[tasks, units]``.

        ``costs`` are those that the plan predicts.

        Raises:
            PlanError: ``keep`` has another shape or type, empties a group or violates a count constraint.
        """
        check_prunable(structure)
        check_object("keep", keep, torch.Tensor, "a bool tensor [units]")
        total = sum(group.units for group in structure.groups)
        if keep.dtype != torch.bool or keep.shape != (total,) or keep.is_meta:
            raise PlanError(
                f"keep is {keep.dtype} {list(keep.shape)}, expected torch.bool [{total}]: "
                "one entry per unit of the structure, True = keep."
            )
        groups = []
        for group in structure.groups:
            ballots: list[tuple[str, tuple[int, ...]]] = []
            if votes is not None:
                for row, task in enumerate(structure.tasks):
                    if task in group.reach:
                        ballots.append((task, _removed(votes[row, group.slice])))
            removed = _removed(keep[group.slice])
            groups.append(
                GroupPlan(group.name, group.kind, group.units, group.reach, removed, tuple(ballots))
            )
        plan = cls(
            fingerprint=structure.fingerprint,
            tasks=structure.tasks,
            groups=tuple(groups),
            predicted=_predicted(structure, keep, costs),
            budget=tuple(sorted(budget)),
            provenance=provenance or Provenance(versions=package_versions()),
        )
        plan.check(structure)
        return plan

    @classmethod
    def of(cls, structure: PrunableStructure, removals: Mapping[str, Iterable[int]]) -> Plan:
        """A plan made by hand: group name -> the units to remove, in any order.

        Raises:
            PlanError: an unknown group, a bad index, an emptied group, a violated constraint.
        """
        check_prunable(structure)
        check_object(
            "removals", removals, Mapping, "a dict from groups to units", "Pass one such as {'a': [0]}."
        )
        known = {group.name: group for group in structure.groups}
        keep = torch.ones(sum(group.units for group in structure.groups), dtype=torch.bool)
        for name, indices in removals.items():
            if name not in known:
                raise PlanError(_unknown_group(name, known))
            try:
                removed = tuple(sorted(operator.index(index) for index in indices))
            except TypeError:
                raise PlanError(f"group {name!r}: unit indices must be whole numbers.") from None
            group = known[name]
            check_indices(name, removed, group.units)
            keep[group.start + torch.tensor(removed, dtype=torch.int64)] = False
        return cls.from_keep(structure, keep)

    @property
    def costs(self) -> dict[str, Change]:
        """By the name of a cost, such as ``"macs"``: what it is before and after."""
        return dict(self.predicted)

    @property
    def removals(self) -> dict[str, tuple[int, ...]]:
        """Group name -> removed units, of the groups that change."""
        return {group.name: group.removed for group in self.groups if group.removed}

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check(self, structure: PrunableStructure) -> None:
        """Raise :class:`PlanError` unless this plan fits ``structure``."""
        check_prunable(structure)
        if self.schema != PLAN_SCHEMA:
            raise PlanError(other_schema(self.schema))
        if self.fingerprint != structure.fingerprint:
            raise PlanError(
                f"the plan was made for another model: its fingerprint is {self.fingerprint[:12]}…, this "
                f"model's is {structure.fingerprint[:12]}…. Load the dense model the plan was made from, "
                "with the same architecture and the same outputs, or make a new plan."
            )
        known = {group.name: group for group in structure.groups}
        kept = {group.name: group.units for group in structure.groups}
        seen: set[str] = set()
        for entry in self.groups:
            if entry.name not in known:
                raise PlanError(_unknown_group(entry.name, known))
            if entry.name in seen:
                raise PlanError(f"group {entry.name!r} is in the plan twice. Keep one entry per group.")
            seen.add(entry.name)
            if entry.units != known[entry.name].units:
                raise PlanError(
                    f"group {entry.name!r}: the plan says {entry.units} units, this model has "
                    f"{known[entry.name].units}. Make a new plan for this model."
                )
            check_indices(entry.name, entry.removed, entry.units)
            for _, units in entry.votes:
                check_indices(entry.name, units, entry.units)
            if entry.kept == 0:
                raise PlanError(
                    f"group {entry.name!r}: all {entry.units} units would be removed. Keep at least one."
                )
            kept[entry.name] = entry.kept
        for constraint in structure.constraints:
            _check_proportion(constraint, kept, known)

    def keep(self, structure: PrunableStructure) -> torch.Tensor:
        """Bool ``[units]`` over the flat units of ``structure``, True = kept; checks first."""
        self.check(structure)
        starts = {group.name: group.start for group in structure.groups}
        keep = torch.ones(sum(group.units for group in structure.groups), dtype=torch.bool)
        for entry in self.groups:
            keep[starts[entry.name] + torch.tensor(entry.removed, dtype=torch.int64)] = False
        return keep

    def without(
        self, structure: PrunableStructure, names: Iterable[str], costs: Iterable[Cost] = STANDARD
    ) -> Plan:
        """This plan with the named groups, and those bound to them by a count constraint, left whole.

        What the rest of the removals leaves is predicted for each of ``costs`` that this plan predicts.
        Its other costs are dropped. Votes, budget and provenance stay the same.

        Raises:
            PlanError: ``structure`` has no group of that name, or the plan does not fit it.
        """
        check_object("names", names, Iterable, "a list of groups")
        names = tuple(names)
        known = [group.name for group in structure.groups]
        for name in names:
            if name not in known:
                raise PlanError(_unknown_group(name, known))
        whole = structure.bound_to(names)
        groups = tuple(replace(group, removed=()) if group.name in whole else group for group in self.groups)
        plan = replace(self, groups=groups)
        known_costs = [cost for cost in costs if cost.name in self.costs]
        return replace(plan, predicted=_predicted(structure, plan.keep(structure), known_costs))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, unit indices as ranges (``"0-3,7"``)."""
        return encode(**vars(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            OptionError: ``text`` is not a string.
            PlanError: not JSON, another schema version, a missing or malformed entry.
        """
        check_object("text", text, str, "a string", "Pass what to_json() returned.")
        return cls(**decode(text))

    def save(self, path: str | Path) -> None:
        """Write the canonical JSON, UTF-8, with a final newline."""
        write_text(as_path("path", path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what :meth:`save` wrote; raises :class:`LoadError` or :class:`PlanError`."""
        try:
            text = as_path("path", path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(
                f"the plan {str(path)!r} cannot be read: {error}. Give a file that Plan.save wrote."
            ) from None
        return cls.from_json(text)

    def __rich__(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("group", "kind", "reach"):
            table.add_column(heading, no_wrap=True)
        table.add_column("units", justify="right", no_wrap=True)
        for task in self.tasks:
            table.add_column(f"{task} votes", justify="right", no_wrap=True)
        for group in self.groups:
            if group.removed:
                votes = dict(group.votes)
                asked = [
                    f"{len(votes[task]) / group.units:.0%}" if task in votes else "-" for task in self.tasks
                ]
                widths = f"{group.units} → {group.kept}"
                table.add_row(Text(group.name), group.kind, Text(self._reach(group)), widths, *asked)
        return Group(table, Text("\n".join(self._summary())))

    def __str__(self) -> str:
        buffer = io.StringIO()
        console = Console(file=buffer, width=10_000, color_system=None, force_terminal=False, highlight=False)
        console.print(self.__rich__())
        return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())

    def _repr_html_(self) -> str:
        report = {"model": "", "plan": "", "tasks": [{"name": task} for task in self.tasks]}
        return plan_html(Run("plan", report, json.loads(self.to_json())))

    def _reach(self, group: GroupPlan) -> str:
        if len(self.tasks) > 1 and set(group.reach) == set(self.tasks):
            return "all"
        return ", ".join(group.reach) or "none"

    def _summary(self) -> list[str]:
        removed = sum(len(group.removed) for group in self.groups)
        total = sum(group.units for group in self.groups)
        same = sum(not group.removed for group in self.groups)
        named_costs = [(cost_label(name, change.unit), change) for name, change in self.predicted]
        wide = 2 + max((len(label) for label, _ in named_costs), default=0)
        lines = [
            f"{removed} of {total} units are removed; {same} of {len(self.groups)} groups are unchanged",
            *(f"{label:<{wide}}{_change(change)}" for label, change in named_costs),
        ]
        if any(group.votes for group in self.groups):
            lines.append("votes: the share of the group's units that each task voted to remove")
        made = self.provenance
        how = [
            ("method", made.method),
            ("criterion", made.criterion),
            ("arbiter", made.arbiter),
            ("ranking", made.ranking),
            ("ratio", None if made.ratio is None else f"{made.ratio:.4f}"),
        ]
        named = ", ".join(f"{key} {value}" for key, value in how if value is not None)
        return lines + ([named] if named else [])


def package_versions() -> tuple[tuple[str, str], ...]:
    """The installed versions of the packages that decide a plan, sorted by name."""
    found = []
    for name in ("disparse-structured", "torch", "torch-pruning"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _predicted(
    structure: PrunableStructure, keep: torch.Tensor, costs: Iterable[Cost]
) -> tuple[tuple[str, Change], ...]:
    models = {cost.name: (cost.on(structure), cost.unit) for cost in costs}
    return tuple(
        (name, Change(float(model.dense), float(model.total(keep)), unit))
        for name, (model, unit) in sorted(models.items())
    )


def _removed(keep: torch.Tensor) -> tuple[int, ...]:
    return tuple((~keep).nonzero().squeeze(1).tolist())


def _check_proportion(
    constraint: RatioConstraint, kept: Mapping[str, int], groups: Mapping[str, ChannelGroup]
) -> None:
    if all(kept[name] == groups[name].units for name in constraint.groups) or constraint.allows(kept):
        return
    named = ", ".join(" + ".join(map(repr, names)) for names, _ in constraint.sides)
    counts = [sum(kept[name] for name in names) for names, _ in constraint.sides]
    raise PlanError(
        f"groups {named} would keep {counts} units, but their counts "
        f"must be one whole number times {[share for _, share in constraint.sides]}: {constraint.reason}."
    )


def _unknown_group(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
    return f"this model has no channel group {name!r}.{hint} `disparse inspect` lists them."


def _change(change: Change) -> str:
    share = f" ({change.after / change.before:.1%})" if change.before else ""
    return f"{words.short_count(change.before)} → {words.short_count(change.after)}{share}"
