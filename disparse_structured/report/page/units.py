"""Sets of units as ranges, as a plan writes them: ``"0-3,7"``.

Ranges are counted and intersected as they are: a damaged file must not fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from disparse_structured.errors import LoadError

Units = tuple[tuple[int, int], ...]
"""First unit and the one after the last, of each range, ascending."""

_RANGES = re.compile(r"({0}(-{0})?(,{0}(-{0})?)*)?".format(r"\d{1,18}"), re.ASCII)


def read_units(text: str, units: int, group: str) -> Units:
    """The ranges in ``text``, of a group with so many ``units``.

    >>> read_units("0-3,7", 8, "trunk")
    ((0, 4), (7, 8))

    Raises:
        LoadError: it is not such a list, or not ascending, or outside the group.
    """
    found: list[tuple[int, int]] = []
    if _RANGES.fullmatch(text):
        for part in text.split(",") if text else ():
            first, _, last = part.partition("-")
            found.append((int(first), int(last or first) + 1))
        ends = [0, *(end for pair in found for end in pair), units]
        if ends == sorted(ends) and all(first < end for first, end in found):
            return tuple(found)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    raise LoadError(
        f"the plan's group {group!r}: {shown!r} is not an ascending list of its {units} units, such as "
        "'0-3,7'. The file is damaged. Make the plan again."
    )


def amount(units: Units) -> int:
    """How many units there are."""
    return sum(end - first for first, end in units)


def common(one: Units, other: Units) -> int:
    """How many units are in both.

    >>> common(((0, 4), (7, 8)), ((2, 8),))
    3
    """
    total, i, k = 0, 0, 0
    while i < len(one) and k < len(other):
        total += max(0, min(one[i][1], other[k][1]) - max(one[i][0], other[k][0]))
        if one[i][1] < other[k][1]:
            i += 1
        else:
            k += 1
    return total


def agreement(pairs: Sequence[tuple[Units, Units]]) -> float | None:
    """Units in both sets, as a share of those in at least one (Jaccard), over several groups.

    None where nothing is in any of them.
    """
    both = sum(common(one, other) for one, other in pairs)
    either = sum(amount(one) + amount(other) for one, other in pairs) - both
    return both / either if either else None
