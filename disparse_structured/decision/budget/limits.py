"""What the pruned model may cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import nn

from disparse_structured.checks import check_not_class, check_object, percentage
from disparse_structured.decision.contracts import PrunableStructure
from disparse_structured.decision.costs import Cost, MACs, Parameters
from disparse_structured.decision.plan import Plain
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.naming import rule_name

RoundTo: TypeAlias = int | Literal["auto"]

_EXAMPLES = "Budget(macs=0.5), Budget(parameters=0.4) or Budget(0.5, of=cost)"


@dataclass(frozen=True, init=False)
class Budget:
    """What the pruned model may cost, and how narrow its layers may become.

    >>> budget = Budget(macs=0.5)
    >>> budget.limit, budget.of, budget.round_to
    (0.5, MACs(), 'auto')
    >>> Budget(parameters=1_000_000, round_to=8, protected="stem.*").limit
    1000000.0
    >>> Budget(macs=0.5) == Budget(0.5, of=MACs())
    True

    Args:
        limit: a number in (0, 1) is a fraction of the dense cost, also as ``"50%"``; a number above 1 is
            absolute, in the unit of the cost. 1 itself would be either everything or next to nothing and is
            refused.
        of: the cost that is limited, any :class:`~disparse_structured.decision.costs.Cost`.
        macs, parameters: instead of ``limit`` and ``of``, the limit of one of these two costs: a fraction
            in (0, 1), a percentage or a whole number above 1. MACs are those of one forward pass of one
            example.
        floor: the share of every reached group that is kept, in [0, 1]; at least one unit always is.
        min_width: at least this many units of every group are kept (all, where there are fewer).
        round_to: kept counts are rounded up to a multiple of this, at most to the dense width. ``"auto"``
            rounds the channels that convolutions of maps read or write, and nothing else: to a multiple of 16
            if there are at least 128 of them, of 8 from 32 on, of 4 from 16 on. ONNX Runtime is fast at these
            widths, and often slower than the dense network at others. 1 turns rounding off. Attention heads
            are never rounded: one head is a block of channels already.
        protected: what keeps its shape: modules, or name patterns (``fnmatch``: ``*``, ``?``, ``[…]``, case
            matters) of channel groups, parameters, or modules with all of their parameters.
        shares: name pattern or module -> the largest share of its units that may be removed, or a pair of
            the smallest and largest: ``{"stem*": 0.2, "neck*": (0.5, 0.5)}``. The last match applies, in
            place of ``floor`` and ``min_width``. Rounding and count constraints may keep more.
        uniform: give layers of one kind one width: groups whose names differ only in numbers, such as
            ``layers.0.mlp.up`` and ``layers.7.mlp.up``, keep equally many units. Which units is decided in
            each of them. If one of them is protected, all keep their width.

    Raises:
        BudgetError: no limit or two, a fraction <= 0 or >= 1, NaN, an option out of its range.
        OptionError: ``of`` is not a cost, or ``protected``, ``shares`` or ``uniform`` is invalid.
    """

    limit: float
    of: Cost
    floor: float
    min_width: int
    round_to: RoundTo
    protected: tuple[str | nn.Module, ...]
    shares: tuple[tuple[str | nn.Module, float, float], ...]
    uniform: bool

    def __init__(
        self,
        limit: float | str | None = None,
        *,
        of: Cost | None = None,
        macs: float | str | None = None,
        parameters: float | str | None = None,
        floor: float = 0.1,
        min_width: int = 1,
        round_to: RoundTo = "auto",
        protected: str | nn.Module | Iterable[str | nn.Module] = (),
        shares: Mapping[str | nn.Module, float | tuple[float, float]] | Iterable[Any] = (),
        uniform: bool = False,
    ) -> None:
        cost, checked = _limited(limit, of, macs, parameters)
        _check_widths(floor, min_width, round_to)
        check_object("uniform", uniform, bool, "True or False")
        values = {
            "limit": checked,
            "of": cost,
            "floor": floor,
            "min_width": min_width,
            "round_to": round_to,
            "protected": _protected(protected),
            "shares": _shares(shares),
            "uniform": uniform,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def named(self, model: nn.Module) -> Budget:
        """Return this budget with modules replaced by their names in ``model``.

        Raises:
            OptionError: a module is not part of ``model``, or is ``model`` itself.
        """
        names = {id(module): name for name, module in model.named_modules()}

        def name(each: str | nn.Module) -> str:
            found = each if isinstance(each, str) else names.get(id(each), "")
            if not found:
                whole = "the whole model" if each is model else f"a {type(each).__name__} outside the model"
                raise OptionError(f"a budget names {whole}. Name a module inside the model.")
            return found

        return replace(
            self,
            protected=tuple(name(each) for each in self.protected),
            shares=tuple((name(each), least, most) for each, least, most in self.shares),
        )

    def target(self, dense: float) -> float:
        """The largest cost allowed, given the dense one.

        Raises:
            BudgetError: that is not less than the dense cost.
        """
        if self.limit < 1:
            return self.limit * dense
        if self.limit >= dense:
            raise BudgetError(
                f"{self} is not below the dense model's {dense:g} {self.of.unit}, so there is nothing to "
                "prune. Give a smaller number, or a fraction such as 0.5."
            )
        return self.limit

    def share(self, structure: PrunableStructure) -> float:
        """The limit as a share of the dense cost; raises as :meth:`target` does."""
        if self.limit < 1:
            return self.limit
        dense = self.of.on(structure).dense
        return self.target(dense) / dense

    def facts(self) -> tuple[tuple[str, Plain], ...]:
        """The budget as plain data, for plans and reports."""
        return (
            ("cost", self.of.name),
            ("floor", self.floor),
            ("limit", self.limit),
            ("min_width", self.min_width),
            ("of", rule_name(self.of)),
            ("protected", tuple(map(str, self.protected))),
            ("round_to", self.round_to),
            *(
                (("shares", tuple(f"{each}: {least:g} to {most:g}" for each, least, most in self.shares)),)
                if self.shares
                else ()
            ),
            *((("uniform", True),) if self.uniform else ()),
        )

    def __str__(self) -> str:
        """The limit alone, as in ``macs=0.5``."""
        return f"{self.of.name}={self.limit:g}"


def named(budget: Any, model: nn.Module) -> Any:
    """Replace modules in ``budget`` by their names; leave an invalid budget to later checks."""
    return budget.named(model) if isinstance(budget, Budget) else budget


def _protected(given: Any) -> tuple[str | nn.Module, ...]:
    if isinstance(given, str | nn.Module):
        return (given,)
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    for each in found:
        if not isinstance(each, str | nn.Module):
            raise OptionError(
                f"protected holds {each!r} of type {type(each).__name__}. Pass names, patterns or modules."
            )
    return found


def _shares(given: Any) -> tuple[tuple[str | nn.Module, float, float], ...]:
    if isinstance(given, Mapping):
        given = [
            (key, *(share if isinstance(share, tuple | list) else (0.0, share)))
            for key, share in given.items()
        ]
    if isinstance(given, str | nn.Module) or not isinstance(given, Iterable):
        given = [given]
    found = []
    for each in given:
        key, *bounds = each if isinstance(each, tuple | list) else (each,)
        numbers = len(bounds) == 2 and all(map(_is_number, bounds))
        if not isinstance(key, str | nn.Module) or not numbers or not 0 <= bounds[0] <= bounds[1] <= 1:
            raise OptionError(
                f"shares holds {each!r}. Pass a dict from names, patterns or modules to the largest share of "
                "their units to remove, in [0, 1], or to a pair: (smallest, largest)."
            )
        found.append((key, float(bounds[0]), float(bounds[1])))
    return tuple(found)


def _limited(
    limit: float | str | None, of: Cost | None, macs: float | str | None, parameters: float | str | None
) -> tuple[Cost, float]:
    """The cost that is limited, and its limit."""
    given: list[tuple[str, Cost | None, float | str | None]] = [
        ("limit", of, limit),
        ("macs", MACs(), macs),
        ("parameters", Parameters(), parameters),
    ]
    found = [each for each in given if each[2] is not None]
    if len(found) != 1:
        names = " and ".join(name for name, _, _ in found) or "none"
        raise BudgetError(f"a budget limits one cost, found {names}. Use {_EXAMPLES}.")
    ((name, cost, value),) = found
    if (of is None) == (name == "limit"):
        what = "does not say which cost it limits" if of is None else "names its cost twice"
        raise BudgetError(f"a budget with {name}={value!r} and of={of!r} {what}. Use {_EXAMPLES}.")
    assert cost is not None
    if name == "limit":
        _check_cost(cost)
    return cost, _checked_limit(cost.name, percentage(value), whole=name != "limit")


def _check_cost(cost: Cost) -> None:
    check_not_class("of", cost)
    missing = [name for name in ("name", "unit", "on", "count") if not hasattr(cost, name)]
    if missing:
        raise BudgetError(
            f"of={cost!r} is not a cost: it has no {' and no '.join(missing)}. Pass an object such as MACs() "
            "or one with the members of disparse_structured.costs.Cost."
        )


def _checked_limit(name: str, limit: Any, whole: bool) -> float:
    above = "a whole number above 1 as a count" if whole else "a number above 1 in the unit of the cost"
    remedy = f"Use a fraction between 0 and 1, such as {name}=0.5, or {above}."
    if not _is_number(limit) or not math.isfinite(limit):
        raise BudgetError(f"{name}={limit!r} is not a finite number. {remedy}")
    if limit <= 0:
        raise BudgetError(f"{name}={limit!r} would leave no model. {remedy}")
    if limit == 1:
        raise BudgetError(
            f"{name}={limit!r} is ambiguous: the dense model, or an absolute limit of 1? {remedy}"
        )
    if whole and limit > 1 and limit != int(limit):
        raise BudgetError(f"{name}={limit!r} is neither a fraction below 1 nor a whole number. {remedy}")
    # One form for one budget: 1e9 and 10**9 give the same plan, byte for byte.
    return float(limit)


def _check_widths(floor: float, min_width: int, round_to: RoundTo) -> None:
    if not _is_number(floor) or not 0 <= floor <= 1:
        raise BudgetError(f"floor must be a share in [0, 1], such as 0.1, got {floor!r}.")
    if not _is_count(min_width):
        raise BudgetError(f"min_width must be an integer >= 1, a number of units, got {min_width!r}.")
    if round_to != "auto" and not _is_count(round_to):
        raise BudgetError(f"round_to must be 'auto' or an integer >= 1, a number of units, got {round_to!r}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
