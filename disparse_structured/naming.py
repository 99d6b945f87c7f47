"""What a rule is called in plans, reports and checkpoints."""

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
