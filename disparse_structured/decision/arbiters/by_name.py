"""Numbers that a rule takes for some of the tasks, by name."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

import torch

from disparse_structured.errors import OptionError, TaskError


def checked_numbers(given: Mapping[str, float], rule: str, what: str, *, zero: bool) -> dict[str, float]:
    """``given``, sorted by name, as finite numbers above 0, or ``zero`` among them.

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(given, Mapping):
        raise OptionError(f"{rule} needs a {what} by task, such as {{'depth': 0.5}}; found {given!r}.")
    found = {}
    for name, value in sorted(given.items()):
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        if not math.isfinite(number) or number < 0 or not (number or zero):
            least = "at least" if zero else "above"
            raise OptionError(f"{rule}: the {what} of {name!r} is {value!r}. Give a number {least} 0.")
        found[name] = number
    return found


def by_task(given: Mapping[str, float], tasks: tuple[str, ...], other: float, rule: str) -> torch.Tensor:
    """float64 ``[tasks]``: what is ``given`` for each, or else ``other``.

    Raises:
        TaskError: a name is not that of a task.
    """
    unknown = [name for name in given if name not in tasks]
    if unknown:
        raise TaskError(f"{rule} names {', '.join(map(repr, unknown))}; the tasks are {list(tasks)}.")
    return torch.tensor([given.get(name, other) for name in tasks], dtype=torch.float64)
