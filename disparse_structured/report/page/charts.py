"""Charts as plain SVG. Colors and fonts come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from disparse_structured.report import words
from disparse_structured.report.page.run import Group

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The largest removed share of each color; the first color is for whole groups."""

_HIGH, _LEFT, _TOP, _NAMES = 190, 44, 12, 26
_STAGES = 14
_RUNG, _RUNGS = 0.04, 40
"""A jump is drawn if it is at least this share of the whole range; at most so many are drawn."""


@dataclass(frozen=True)
class Interval:
    """A median between quartiles, milliseconds."""

    name: str
    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Stair:
    """The network's time against the width of one group, with all other groups as pruned."""

    group: str
    units: int
    kept: int
    won: float
    widths: Sequence[int]
    ms: Sequence[float]


def level(share: float) -> int:
    """Which color stands for a removed share, 0 for none.

    >>> [level(share) for share in (0.0, 0.1, 0.5, 0.76)]
    [0, 1, 2, 4]
    """
    return next((place for place, end in enumerate(LEVELS) if share <= end), len(LEVELS) - 1)


def widths_chart(groups: Sequence[Group]) -> Markup:
    """A bar for each group along the network: its dense width as an outline, what is left in color."""
    step = min(72, max(9, 1030 // len(groups)))
    gap = max(2, step // 8)
    wide, most = _LEFT + step * len(groups) + 8, max(group.units for group in groups)
    floor, bars = _TOP + _HIGH, []
    for place, group in enumerate(groups):
        x, full, left = _LEFT + place * step, *(_high(n, most) for n in (group.units, group.kept))
        across = f'x="{x + gap / 2}" width="{step - gap}" rx="1.5"'
        color = f"level{level(group.share)}"
        bars.append(
            f"<g><title>{_text(group.name)}: {group.units} → {group.kept}</title>"
            f'<rect class="dense" {across} y="{floor - full:.1f}" height="{full:.1f}"/>'
            f'<rect class="{color}" {across} y="{floor - left:.1f}" height="{left:.1f}"/></g>'
        )
    marks = [
        f'<line class="grid" x1="{_LEFT}" x2="{wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="mark" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words.count(value)}</text>'
        for value in dict.fromkeys((most, most // 2, 0))
        for y in [floor - most_share(value, most) * _HIGH]
    ]
    named = _stages([group.name for group in groups], step, floor)
    label = f"Widths of {len(groups)} groups before and after, from input to output"
    return _svg(wide, floor + _NAMES, label, [*marks, *bars, *named])


def most_share(value: float, most: float) -> float:
    """``value`` as a share of ``most``."""
    return value / most if most else 0.0


def intervals_chart(intervals: Sequence[Interval]) -> Markup:
    """A row for each file: a bar between the quartiles, a line at the median, on an axis from zero."""
    wide, row, left, right = 460, 34, 70, 70
    most = max(each.upper for each in intervals)
    scale = (wide - left - right) / most if most else 0.0
    drawn = []
    for place, each in enumerate(intervals):
        y = 8 + place * row
        low, mid, high = (left + scale * value for value in (each.lower, each.median, each.upper))
        span = max(1.5, high - low)
        drawn.append(
            f'<text class="name" x="{left - 10}" y="{y + 17}" text-anchor="end">{_text(each.name)}</text>'
            f'<line class="grid" x1="{left}" x2="{mid:.1f}" y1="{y + 12}" y2="{y + 12}"/>'
            f'<rect class="spread" x="{low:.1f}" y="{y + 3}" width="{span:.1f}" height="18" rx="3"/>'
            f'<line class="median" x1="{mid:.1f}" x2="{mid:.1f}" y1="{y}" y2="{y + 24}"/>'
            f'<text class="value" x="{max(high, mid) + 8:.1f}" y="{y + 17}">'
            f"{words.milliseconds(each.median)} ms</text>"
        )
    high = 8 + row * len(intervals)
    axis = f'<line class="axis" x1="{left}" x2="{left}" y1="2" y2="{high - 4}"/>'
    said = ", ".join(f"{each.name} {words.milliseconds(each.median)} ms" for each in intervals)
    return _svg(wide, high, f"Medians and quartiles: {said}", [axis, *drawn])


def stairs_chart(stair: Stair) -> Markup:
    """The network's time against the width of one group, with the dense and pruned widths, and jumps."""
    wide, high, left, floor, top = 240, 130, 34, 108, 10
    least, most = min(stair.ms), max(stair.ms)
    span, right = (most - least) or 1.0, max(stair.widths)

    def at(width: int, ms: float) -> tuple[float, float]:
        return left + (wide - left - 10) * width / right, floor - (floor - top) * (ms - least) / span

    points = [at(width, ms) for width, ms in zip(stair.widths, stair.ms, strict=True)]
    line = "".join(
        f"{'H' if place else 'M'}{x:.1f}{'V' if place else ' '}{y:.1f}" for place, (x, y) in enumerate(points)
    )
    steps = zip(stair.widths, stair.ms, stair.ms[1:], strict=False)
    rungs = [at(width, least)[0] for width, before, after in steps if after - before > _RUNG * span]
    now, before = (at(width, _time(stair, width)) for width in (stair.kept, stair.units))
    drawn = [
        *(f'<line class="rung" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{floor}"/>' for x in rungs[:_RUNGS]),
        f'<path class="stair" d="{line}"/>',
        f'<path class="axis" fill="none" d="M{left} {top}V{floor}H{wide - 8}"/>',
        f'<circle class="before" cx="{before[0]:.1f}" cy="{before[1]:.1f}" r="3.5"/>',
        f'<circle class="now" cx="{now[0]:.1f}" cy="{now[1]:.1f}" r="4"/>',
        f'<text x="{left - 4}" y="{top + 4}" text-anchor="end">{words.milliseconds(most)}</text>',
        f'<text x="{left - 4}" y="{floor}" text-anchor="end">{words.milliseconds(least)}</text>',
        f'<text x="{left}" y="{floor + 14}">1</text>',
        f'<text x="{wide - 8}" y="{floor + 14}" text-anchor="end">{right}</text>',
    ]
    label = f"Milliseconds against the width of {stair.group}: {stair.units} before, {stair.kept} now"
    return _svg(wide, high, label, drawn)


def _time(stair: Stair, width: int) -> float:
    """The milliseconds at the measured width that is nearest to ``width``."""
    return min(zip(stair.widths, stair.ms, strict=True), key=lambda pair: abs(pair[0] - width))[1]


def _high(units: int, most: int) -> float:
    return max(2.0, most_share(units, most) * _HIGH) if units else 0.0


def _stages(names: Sequence[str], step: int, floor: float) -> list[str]:
    """Brackets below the bars with the common part of neighboring names, as long as there are few."""
    runs = _runs(names, 1)
    for depth in range(2, 8):
        finer = _runs(names, depth)
        if len(finer) > _STAGES:
            break
        runs = finer
    drawn = []
    for first, end, name in runs:
        x, width = _LEFT + first * step, (end - first) * step
        room = int(width / 6.4)
        shown = _shortened(name, room)
        drawn.append(
            f'<line class="axis" x1="{x + 2}" x2="{x + width - 2}" y1="{floor + 5}" y2="{floor + 5}"/>'
        )
        if shown:
            drawn.append(
                f'<text class="mark" x="{x + width / 2:.1f}" y="{floor + 18}" text-anchor="middle">'
                f"<title>{_text(name)}</title>{_text(shown)}</text>"
            )
    return drawn


def _shortened(name: str, room: int) -> str:
    """The last parts of ``name`` that have room; empty if there are none."""
    parts = name.split(".")
    return next((tail for i in range(len(parts)) if len(tail := ".".join(parts[i:])) <= room), "")


def _runs(names: Sequence[str], depth: int) -> list[tuple[int, int, str]]:
    runs: list[tuple[int, int, str]] = []
    for place, name in enumerate(names):
        parts = name.split(".")
        stage = ".".join(parts[: max(1, min(depth, len(parts) - 1))])
        if runs and runs[-1][2] == stage:
            runs[-1] = (runs[-1][0], place + 1, stage)
        else:
            runs.append((place, place + 1, stage))
    return runs


def _svg(wide: float, high: float, label: str, parts: Sequence[str]) -> Markup:
    size = f'viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" height="{high:.0f}"'
    return Markup(f'<svg {size} role="img" aria-label="{_text(label)}">{"".join(parts)}</svg>')


def _text(text: str) -> str:
    return escape(text)
