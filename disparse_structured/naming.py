"""How rules and costs are named in plans, reports and checkpoints."""

from __future__ import annotations

import dataclasses
import inspect


def rule_name(rule: object) -> str:
    """The rule with its settings, the same in every process: no memory addresses. A name stays as it is."""
    if isinstance(rule, str):
        return rule
    if inspect.isroutine(rule) or inspect.isclass(rule):
        return str(rule.__qualname__)
    return repr(rule) if dataclasses.is_dataclass(rule) else type(rule).__qualname__


def cost_label(name: str, unit: str) -> str:
    """What a table calls a cost: ``MACs``, ``parameters``, ``latency (ms)``."""
    return unit if unit.lower() == name.lower() else f"{name} ({unit})"


def brief(rule: object) -> str:
    """The ``repr`` of a dataclass with only the settings that differ from their defaults."""
    assert dataclasses.is_dataclass(rule)
    changed = [
        f"{field.name}={getattr(rule, field.name)!r}"
        for field in dataclasses.fields(rule)
        if getattr(rule, field.name) != field.default
    ]
    return f"{type(rule).__name__}({', '.join(changed)})"
