"""How reports, tables and pages write numbers, and what they advise."""

from __future__ import annotations

import math
from collections.abc import Callable

NEEDED = (
    "If they are needed, let forward compute every task (a wrapper can), or say how else they are called: "
    "structure=analyse(model, inputs, entry_points=...) (--entry-points)."
)
"""What to do about modules that never ran and read a width which was pruned."""


def percent(value: float | None) -> str:
    """A fraction in percent, with three significant digits.

    >>> percent(0.4913), percent(8.97e-08), percent(None)
    ('49.1 %', '8.97e-06 %', '–')
    """
    return "–" if value is None else _finite(value, lambda each: f"{100 * each:.3g} %")


def share(value: float) -> str:
    """A fraction in percent, without digits after the point.

    >>> share(0.876), share(0.004)
    ('88 %', '0 %')
    """
    return _finite(value, lambda each: f"{100 * each:.0f} %")


def count(value: float) -> str:
    """A whole number with separators, another one with four significant digits.

    >>> count(91898368.0), count(12.3456)
    ('91,898,368', '12.35')
    """
    whole = math.isfinite(value) and (value == int(value) or value >= 1e4)
    return _finite(value, lambda each: f"{each:,.0f}" if whole else f"{each:.4g}")


def short_count(value: float) -> str:
    """A number with three significant digits and a suffix.

    >>> short_count(91898368.0), short_count(640)
    ('91.9 M', '640')
    """
    for scale, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if scale <= value < math.inf:
            return f"{value / scale:.3g}{suffix}"
    return _finite(value, lambda each: f"{each:.3g}")


def milliseconds(value: float) -> str:
    """Three significant digits, without the unit.

    >>> milliseconds(27.312)
    '27.3'
    """
    return _finite(value, lambda each: f"{each:.0f}" if each >= 100 else f"{each:.3g}")


def size(count: int) -> str:
    """Bytes.

    >>> size(1_200_000_000), size(6249643), size(4291)
    ('1.2 GB', '6.25 MB', '4.29 kB')
    """
    scale, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / scale:.3g} {unit}"


def tiny(value: float | None) -> str:
    """A difference: two significant digits, with an exponent.

    >>> tiny(7.53e-08), tiny(0.0)
    ('7.5e-08', '0')
    """
    return "–" if value is None else _finite(value, lambda each: f"{each:.1e}" if each else "0")


def shape(sizes: list[int]) -> str:
    """Dimensions.

    >>> shape([1, 3, 64, 64])
    '1×3×64×64'
    """
    return "×".join(map(str, sizes))


def duration(seconds: float) -> str:
    """A length of time in one unit, without digits after the point.

    >>> duration(41.2), duration(180), duration(9000)
    ('41 seconds', '3 minutes', '2 hours')
    """
    for length, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


def _finite(value: float, write: Callable[[float], str]) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return write(value)
