"""Turns ratios between counts of classes into constraints between channel groups."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from disparse_structured.structure.grouping import Grouping
from disparse_structured.structure.groups import ChannelGroup, RatioConstraint
from disparse_structured.structure.size_constraints import Count, Ratio

_Side = tuple[str, ...]
"""One side of a ratio: the groups whose kept counts are summed."""

_Shares = Mapping[_Side, Fraction]
"""The proportions of kept counts that constrain one another."""


def ratio_constraints(
    ratios: list[Ratio], classes: np.ndarray, grouping: Grouping
) -> tuple[tuple[RatioConstraint, ...], np.ndarray]:
    """Return the constraints, merged if they share a group, and the classes of all other ratios."""
    unit_of_class = dict(zip(classes.tolist(), grouping.units.tolist(), strict=True))
    shares: dict[_Side, _Shares] = {}
    reasons: dict[_Side, str] = {}
    failed: list[int] = []
    for ratio in ratios:
        above = _side(ratio.numerator, unit_of_class, grouping.groups)
        below = _side(ratio.denominator, unit_of_class, grouping.groups)
        if above is None or below is None:
            failed.extend(each for count in (ratio.numerator, ratio.denominator) for each, _ in count.classes)
            continue
        (top, top_times), (bottom, bottom_times) = above, below
        # top_times * kept(top) == factor * bottom_times * kept(bottom)
        pair = {top: Fraction(ratio.factor * bottom_times), bottom: Fraction(top_times)}
        merged = shares.get(top, {top: pair[top]})
        scale = merged[top] / pair[top]
        other = shares.get(bottom, {bottom: pair[bottom] * scale})
        rescale = pair[bottom] * scale / other[bottom]
        merged = {**merged, **{side: share * rescale for side, share in other.items()}}
        for side in merged:
            shares[side] = merged
            reasons[side] = ratio.reason
    distinct = {id(each): each for each in shares.values()}.values()
    constraints = tuple(_constraint(each, reasons[next(iter(each))]) for each in distinct)
    return constraints, np.array(sorted(set(failed)), dtype=np.int64)


def _constraint(shares: _Shares, reason: str) -> RatioConstraint:
    """``shares`` as the smallest possible integers."""
    denominator = lcm(*(share.denominator for share in shares.values()))
    whole = {side: int(share * denominator) for side, share in shares.items()}
    divisor = gcd(*whole.values())
    return RatioConstraint(
        tuple(name for side in whole for name in side),
        tuple(share // divisor for side, share in whole.items() for _ in side),
        reason,
        tuple(side for side in whole if len(side) > 1),
    )


def _side(
    count: Count, unit_of_class: dict[int, int], groups: tuple[ChannelGroup, ...]
) -> tuple[_Side, int] | None:
    """The groups that ``count`` counts, if it counts all of their units equally often."""
    units = {unit_of_class[each] for each, _ in count.classes}
    times = {each for _, each in count.classes}
    side = [group for group in groups if group.start in units]
    counted = {unit for group in side for unit in range(group.start, group.start + group.units)}
    if not side or counted != units or len(times) != 1:
        return None
    return tuple(group.name for group in side), times.pop()
