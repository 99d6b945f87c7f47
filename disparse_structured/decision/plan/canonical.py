"""Canonical JSON of a plan, and reading it back without trusting it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from disparse_structured.decision.plan.parts import (
    Change,
    GroupPlan,
    Plain,
    Provenance,
    check_indices,
    other_schema,
)
from disparse_structured.errors import PlanError
from disparse_structured.report.schemas import PLAN_SCHEMA
from disparse_structured.structure.groups import Kind

_RANGES = r"({0}(-{0})?(,{0}(-{0})?)*)?".format(r"\d{1,18}")


def encode(
    *,
    fingerprint: str,
    tasks: tuple[str, ...],
    groups: tuple[GroupPlan, ...],
    predicted: tuple[tuple[str, Change], ...],
    budget: tuple[tuple[str, Plain], ...],
    provenance: Provenance,
    schema: int,
) -> str:
    """A plan's fields as canonical JSON: sorted keys, two spaces, unit indices as ranges."""
    entries = [
        {
            "kind": group.kind,
            "name": group.name,
            "reach": list(group.reach),
            "removed": _ranges(group.removed),
            "units": group.units,
            "votes": {task: _ranges(units) for task, units in group.votes},
        }
        for group in groups
    ]
    data = {
        "budget": {key: list(value) if isinstance(value, tuple) else value for key, value in budget},
        "fingerprint": fingerprint,
        "groups": entries,
        "predicted": {name: asdict(change) for name, change in predicted},
        "provenance": {**asdict(provenance), "versions": dict(provenance.versions)},
        "schema": schema,
        "tasks": list(tasks),
    }
    return json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)


def decode(text: str) -> dict[str, Any]:
    """The keyword arguments of :func:`encode`; raises :class:`PlanError` on anything else."""
    data = _parsed(text)
    found = data.get("schema") if isinstance(data, dict) else None
    if found != PLAN_SCHEMA or isinstance(found, bool):
        raise PlanError(other_schema(found))
    tasks = _names(data, "tasks")
    return {
        "fingerprint": _get(data, "fingerprint", str),
        "tasks": tasks,
        "groups": tuple(_read_group(entry, tasks) for entry in _get(data, "groups", list)),
        "predicted": _read_predicted(_get(data, "predicted", dict)),
        "budget": tuple(sorted((k, _plain(k, v)) for k, v in _get(data, "budget", dict).items())),
        "provenance": _read_provenance(_get(data, "provenance", dict)),
        "schema": PLAN_SCHEMA,
    }


def _parsed(text: str) -> Any:
    try:
        data = json.loads(text, parse_constant=_no_constant)
        # A lone surrogate can be spelled in JSON, but no plan that holds one can be written again.
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the plan is not JSON in UTF-8: {error}. Save plans with Plan.save.") from None
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _ranges(indices: Sequence[int]) -> str:
    if not indices:
        return ""
    values = np.asarray(indices, dtype=np.int64)
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _read_ranges(name: str, text: object, units: int) -> tuple[int, ...]:
    if not isinstance(text, str) or not re.fullmatch(_RANGES, text, re.ASCII):
        raise PlanError(f"group {name!r}: expected a list of units such as '0-3,7', found {_short(text)}.")
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        # Before the range is spelled out: a damaged file must not fill the memory.
        check_indices(name, (int(last or first),), units)
        found.extend(range(int(first), int(last or first) + 1))
    check_indices(name, found, units)
    return tuple(found)


def _get(data: object, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(
            f"the plan's entry {key!r} must be of type {kind.__name__}, found {_short(value)}. "
            "The file is damaged. Make the plan again."
        )
    return value


def _names(data: object, key: str) -> tuple[str, ...]:
    return tuple(_get({key: name}, key, str) for name in _get(data, key, list))


def _number(data: object, key: str) -> float:
    value = data.get(key) if isinstance(data, dict) else None
    try:
        number = float(value) if isinstance(value, int) else float(_get(data, key, float))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PlanError(f"the plan's entry {key!r} must be a finite number. Make the plan again.")
    return number


def _read_predicted(data: dict[str, Any]) -> tuple[tuple[str, Change], ...]:
    """Any names: a plan may have been made under a cost that is unknown here."""
    return tuple((name, _read_change(_get(data, name, dict))) for name in sorted(data))


def _read_change(entry: dict[str, Any]) -> Change:
    return Change(_number(entry, "before"), _number(entry, "after"), _get(entry, "unit", str))


def _read_group(data: object, tasks: tuple[str, ...]) -> GroupPlan:
    name, units, kind = _get(data, "name", str), _get(data, "units", int), _get(data, "kind", str)
    if kind not in get_args(Kind):
        raise PlanError(f"group {name!r}: kind must be one of {', '.join(get_args(Kind))}, found {kind!r}.")
    votes = _get(data, "votes", dict)
    strangers = sorted(set(votes) - set(tasks))
    if strangers:
        raise PlanError(f"group {name!r}: a vote of {strangers[0]!r}, which is not a task of the plan.")
    return GroupPlan(
        name=name,
        kind=kind,
        units=units,
        reach=_names(data, "reach"),
        removed=_read_ranges(name, _get(data, "removed", str), units),
        votes=tuple((task, _read_ranges(name, votes[task], units)) for task in tasks if task in votes),
    )


def _plain(key: str, value: object) -> Plain:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise PlanError(
        f"the plan's budget entry {key!r} must be a finite number, a string or a list of strings, "
        f"found {_short(value)}."
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_provenance(data: dict[str, Any]) -> Provenance:
    def optional(key: str, kind: type) -> Any:
        return None if data.get(key) is None else _get(data, key, kind)

    versions = _get(data, "versions", dict)
    return Provenance(
        method=optional("method", str),
        criterion=optional("criterion", str),
        arbiter=optional("arbiter", str),
        ranking=optional("ranking", str),
        ratio=None if data.get("ratio") is None else _number(data, "ratio"),
        seed=optional("seed", int),
        versions=tuple((name, _get(versions, name, str)) for name in sorted(versions)),
    )
