"""What the pruned model may cost."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from disparse_structured.decision.plan import CostKind, Plain
from disparse_structured.errors import BudgetError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned model may cost, and how narrow its layers may become.

    Args:
        macs, parameters: exactly one of them. A number in (0, 1) is a fraction of the dense cost, a whole
            number above 1 an absolute count (MACs: per forward of one sample of the example input).
            1 itself would be either everything or nothing and is refused.
        floor: the share of every reached group that stays, in [0, 1]; at least one unit always does.
        min_width: at least this many units of every group stay (all, where there are fewer).
        round_to: kept counts go up to a multiple of this, at most to the dense width. Attention heads are
            not rounded: one head is a block of channels already.
        protected: name patterns (``fnmatch``: ``*``, ``?``, ``[…]``, case matters). What they match keeps
            its shape: a channel group, a parameter, or all parameters of a module.

    Raises:
        BudgetError: no cost or two, a fraction <= 0 or >= 1, NaN, an option out of its range.
    """

    macs: float | None = None
    parameters: float | None = None
    floor: float = 0.1
    min_width: int = 1
    round_to: int = 1
    protected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [kind for kind, value in self._costs().items() if value is not None]
        if len(given) != 1:
            raise BudgetError(
                f"a budget limits one cost, found {' and '.join(given) or 'none'}. "
                "Use Budget(macs=0.5) or Budget(parameters=0.4)."
            )
        _check_limit(given[0], self.limit)
        if not _is_number(self.floor) or not 0 <= self.floor <= 1:
            raise BudgetError(
                f"floor={self.floor!r} is no share of a group. Use a number from 0 to 1, such as 0.1."
            )
        for name, count in (("min_width", self.min_width), ("round_to", self.round_to)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise BudgetError(f"{name}={count!r} is no width. Use a whole number of units, at least 1.")
        # One form for one budget: 1e9 and 10**9 give the same plan, byte for byte.
        object.__setattr__(self, given[0], float(self.limit))
        patterns = (self.protected,) if isinstance(self.protected, str) else tuple(self.protected)
        object.__setattr__(self, "protected", patterns)

    @property
    def kind(self) -> CostKind:
        """The cost that is limited."""
        return "macs" if self.macs is not None else "parameters"

    @property
    def word(self) -> str:
        """The limited cost's name in sentences."""
        return {"macs": "MACs", "parameters": "parameters"}[self.kind]

    @property
    def limit(self) -> float:
        """The number given: a fraction below 1, or a count."""
        value = self._costs()[self.kind]
        assert value is not None
        return value

    def target(self, dense: float) -> float:
        """The largest cost allowed, given the dense one; raises :class:`BudgetError` if that is no less."""
        if self.limit < 1:
            return self.limit * dense
        if self.limit >= dense:
            raise BudgetError(
                f"{self.kind}={self.limit:g} is no less than the dense model's {dense:g} "
                f"{self.word}: nothing to do. Give a smaller count, or a fraction such as 0.5."
            )
        return float(self.limit)

    def facts(self) -> tuple[tuple[str, Plain], ...]:
        """The budget as plain data, for plans and reports."""
        return tuple(dataclasses.asdict(self).items())

    def _costs(self) -> dict[CostKind, float | None]:
        return {"macs": self.macs, "parameters": self.parameters}


def _check_limit(kind: CostKind, limit: float) -> None:
    remedy = f"Use a fraction between 0 and 1, such as {kind}=0.5, or a whole number above 1 as a count."
    if not _is_number(limit) or not math.isfinite(limit):
        raise BudgetError(f"{kind}={limit!r} is no finite number. {remedy}")
    if limit <= 0:
        raise BudgetError(f"{kind}={limit!r} leaves no model. {remedy}")
    if limit == 1:
        raise BudgetError(
            f"{kind}={limit!r} is the dense model, or a single count: neither is pruning. {remedy}"
        )
    if limit > 1 and limit != int(limit):
        raise BudgetError(f"{kind}={limit!r} is neither a fraction below 1 nor a whole count. {remedy}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
