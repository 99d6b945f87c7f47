"""Determines whether the numbers in ``forward`` follow the widths of a pruned network.

Each literal of the graph has an expression (its origin) and the labels it counts. An attribute
takes the new count. An expression of sizes must give that count by itself, or under a count constraint.
Otherwise the labels are pinned. An expression that a float was computed from must keep its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from disparse_structured.graph.provenance import Arithmetic, Attribute, Derived, Expression, Real, Size
from disparse_structured.structure.labels import PINNED, Axis, PinRecord, Value
from disparse_structured.structure.tracing import SizeLiteral


@dataclass(frozen=True)
class Count:
    """``fixed`` positions plus ``times`` for each kept class: ``fixed + sum(times * kept)``."""

    fixed: int
    classes: tuple[tuple[int, int], ...] = ()

    def scaled(self, factor: int) -> Count:
        """Multiply this count by ``factor``."""
        return Count(self.fixed * factor, tuple((each, times * factor) for each, times in self.classes))

    def plus(self, other: Count, sign: int = 1) -> Count:
        """Add ``other``, or subtract it with ``sign`` -1."""
        total = dict(self.classes)
        for each, times in other.classes:
            total[each] = total.get(each, 0) + sign * times
        kept = tuple(sorted((each, times) for each, times in total.items() if times))
        return Count(self.fixed + sign * other.fixed, kept)

    def divided(self, divisor: int) -> Count | None:
        """Return the exact quotient, or None if there is a remainder."""
        numbers = [self.fixed, *(times for _, times in self.classes)]
        if divisor == 0 or any(number % divisor for number in numbers):
            return None
        return Count(self.fixed // divisor, tuple((each, times // divisor) for each, times in self.classes))


@dataclass(frozen=True)
class Ratio:
    """A count constraint: ``numerator == factor * denominator``."""

    numerator: Count
    denominator: Count
    factor: int
    reason: str


@dataclass
class SizeSolution:
    """What :func:`follow` finds: attributes and the labels they count, constraints, pinned labels."""

    attributes: dict[Attribute, np.ndarray] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    pins: list[PinRecord] = field(default_factory=list)


@dataclass(frozen=True)
class _Solver:
    classes: np.ndarray
    pinned: np.ndarray
    annotated: dict[int, Value]
    current: Callable[[Attribute], int]
    atoms: np.ndarray
    """int64 ``[classes]``: one atom of each class."""

    def labels(self, count: Count) -> np.ndarray:
        """Return labels whose count is ``count``."""
        parts = [
            np.full(count.fixed, PINNED),
            *(np.full(times, self.atoms[each]) for each, times in count.classes),
        ]
        return np.concatenate(parts)

    def count(self, labels: np.ndarray) -> Count:
        classes = self.classes[labels]
        fixed = (labels == PINNED) | self.pinned[classes]
        values, times = np.unique(classes[~fixed], return_counts=True)
        return Count(int(fixed.sum()), tuple(zip(values.tolist(), times.tolist(), strict=True)))

    def evaluate(self, expression: Expression, assigned: dict[Attribute, Count]) -> Count | None:
        """Evaluate the expression in terms of kept classes; None if it is not linear in them."""
        if isinstance(expression, int):
            return Count(int(expression))
        if isinstance(expression, Attribute):
            return assigned.get(expression) or Count(self.current(expression))
        if isinstance(expression, Derived):
            return None
        if isinstance(expression, Size):
            value = self.annotated.get(expression.value)
            return None if value is None else self.count(value[expression.dim].atoms())
        left, right = (self.evaluate(side, assigned) for side in (expression.left, expression.right))
        if left is None or right is None:
            return None
        if expression.symbol in "+-":
            return left.plus(right, 1 if expression.symbol == "+" else -1)
        if expression.symbol == "*":
            if not left.classes:
                return right.scaled(left.fixed)
            return left.scaled(right.fixed) if not right.classes else None
        if not right.classes:
            if not left.classes:
                return Count(left.fixed // right.fixed) if right.fixed else None
            return left.divided(right.fixed)
        return _quotient(left, right)

    def solve(
        self, expression: Expression, required: Count, assigned: dict[Attribute, Count]
    ) -> tuple[Attribute, Count] | None:
        """Find an unassigned attribute and the count of it that makes ``expression`` equal ``required``."""
        if isinstance(expression, Attribute):
            least = min([required.fixed, *(times for _, times in required.classes)])
            return None if expression in assigned or least < 0 else (expression, required)
        if not isinstance(expression, Arithmetic):
            return None
        for side, other in ((expression.left, expression.right), (expression.right, expression.left)):
            value = self.evaluate(other, assigned)
            wanted = None if value is None else _undone(expression, side is expression.left, required, value)
            found = None if wanted is None else self.solve(side, wanted, assigned)
            if found is not None:
                return found
        return None

    def ratio(
        self, expression: Expression, required: Count, assigned: dict[Attribute, Count]
    ) -> Ratio | None:
        """Find the count constraint under which ``expression`` is ``required``, if it is a ratio.

        Either ``a // b`` must stay constant (``a == constant * b``), or one size is used for
        another (``a == b``).
        """
        factor = 1
        left: Count | None = self.evaluate(expression, assigned)
        right: Count | None = required
        reason = "forward uses the width of one for the other"
        if not required.classes:
            if not isinstance(expression, Arithmetic) or expression.symbol != "//":
                return None
            factor, reason = required.fixed, f"forward computes {required.fixed} as a quotient of the two"
            left, right = (self.evaluate(side, assigned) for side in (expression.left, expression.right))
        if left is None or right is None:
            return None
        return _comparable(left, right, factor, reason)


def _labels_of(
    expression: Expression, annotated: dict[int, Value], attributes: dict[Attribute, np.ndarray]
) -> list[np.ndarray]:
    if isinstance(expression, Attribute):
        return [attributes[expression]] if expression in attributes else []
    if isinstance(expression, Size):
        value = annotated.get(expression.value)
        axis = Axis(0) if value is None else value[expression.dim]
        return [axis.atoms()]
    if isinstance(expression, Arithmetic):
        return [
            labels
            for side in (expression.left, expression.right)
            for labels in _labels_of(side, annotated, attributes)
        ]
    return []


def _undone(expression: Arithmetic, left: bool, required: Count, value: Count) -> Count | None:
    """What one side of ``expression``, the ``left`` or the right, must be if the other is ``value``."""
    if expression.symbol == "+":
        return required.plus(value, -1)
    if expression.symbol == "-":
        return required.plus(value) if left else value.plus(required, -1)
    if value.classes:
        return None
    if expression.symbol == "*":
        return required.divided(value.fixed)
    return required.scaled(value.fixed) if left else None


def _comparable(left: Count, right: Count, factor: int, reason: str) -> Ratio | None:
    """``left == factor * right`` as a constraint; None if one side has fixed positions or no classes."""
    if left.fixed or right.fixed or not left.classes or not right.classes:
        return None
    return Ratio(left, right, factor, reason)


def _quotient(left: Count, right: Count) -> Count | None:
    """``left // right`` if left is a constant multiple of right."""
    (each, times), *_ = right.classes
    factor, rest = divmod(dict(left.classes).get(each, 0), times)
    return Count(factor) if rest == 0 and right.scaled(factor) == left else None


def follow(
    literals: Iterable[SizeLiteral],
    classes: np.ndarray,
    pinned: np.ndarray,
    annotated: dict[int, Value],
    current: Callable[[Attribute], int],
    reals: Iterable[Real] = (),
) -> SizeSolution:
    """Settle every literal and all ``reals``; ``current`` reads an attribute of the dense model.

    Pinning one label can break another literal's match, so this repeats until nothing changes. Each
    round pins at least one more class.
    """
    pinned = pinned.copy()
    literals = list(literals)
    pins: list[PinRecord] = []
    _, atoms = np.unique(classes, return_index=True)
    while True:
        solver = _Solver(classes, pinned, annotated, current, atoms)
        numbers = SizeSolution(pins=pins)
        failed = [*_settle(solver, literals, numbers, reals)]
        if not failed:
            return numbers
        for record in failed:
            pinned[classes[record.atoms]] = True
        pins.extend(failed)


def _settle(
    solver: _Solver, literals: list[SizeLiteral], numbers: SizeSolution, reals: Iterable[Real]
) -> Iterable[PinRecord]:
    assigned: dict[Attribute, Count] = {}
    for literal in literals:
        attribute = literal.expression
        if not isinstance(attribute, Attribute):
            continue
        count = solver.count(literal.labels)
        if attribute in assigned and assigned[attribute] != count:
            reason = f"{attribute.module}.{attribute.name} counts two different things"
            ratio = _comparable(assigned[attribute], count, 1, reason)
            if ratio is None:
                labels = [literal.labels, numbers.attributes[attribute]]
                yield from _pinned(solver, labels, reason, literal.operator, literal.module)
            else:
                numbers.ratios.append(ratio)
        assigned.setdefault(attribute, count)
        numbers.attributes.setdefault(attribute, literal.labels)
    _solve_rest(solver, literals, numbers, assigned)
    for literal in literals:
        if isinstance(literal.expression, Attribute):
            continue
        required = solver.count(literal.labels)
        if solver.evaluate(literal.expression, assigned) == required:
            continue
        ratio = solver.ratio(literal.expression, required, assigned)
        if ratio is not None:
            numbers.ratios.append(ratio)
            continue
        labels = [literal.labels, *_labels_of(literal.expression, solver.annotated, numbers.attributes)]
        reason = "a number in forward does not follow the width"
        if isinstance(literal.expression, int):
            reason = f"forward hard-codes the number {literal.expression}"
        yield from _pinned(solver, labels, reason, literal.operator, literal.module)
    for expression, value in reals:
        required = Count(value)
        if solver.evaluate(expression, assigned) == required:
            continue
        ratio = solver.ratio(expression, required, assigned)
        if ratio is not None:
            numbers.ratios.append(ratio)
            continue
        labels = _labels_of(expression, solver.annotated, numbers.attributes)
        module = expression.module if isinstance(expression, Attribute) else ""
        yield from _pinned(solver, labels, "forward computes a real number from the width", "", module)


def _solve_rest(
    solver: _Solver, literals: list[SizeLiteral], numbers: SizeSolution, assigned: dict[Attribute, Count]
) -> None:
    """Assigns attributes that ``forward`` only computes with (``batch * heads``) the count that fits.

    The first literal that needs an attribute decides; others that need another count fail.
    """
    for literal in literals:
        required = solver.count(literal.labels)
        if not required.classes or solver.evaluate(literal.expression, assigned) == required:
            continue
        found = solver.solve(literal.expression, required, assigned)
        if found is not None:
            attribute, count = found
            assigned[attribute] = count
            numbers.attributes[attribute] = solver.labels(count)


def _pinned(
    solver: _Solver, labels: list[np.ndarray], reason: str, operator: str, module: str
) -> Iterable[PinRecord]:
    atoms = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *labels]))
    atoms = atoms[(atoms != PINNED) & ~solver.pinned[solver.classes[atoms]]]
    if atoms.size:
        yield PinRecord(atoms, reason, operator, module, number=True)
