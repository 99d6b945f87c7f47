"""Draws times over widths: the staircases of the operations that take longest, as an SVG file."""

from __future__ import annotations

from html import escape

import numpy as np

from disparse_structured.latency.cost import LatencyModel, OperationFacts

_WIDE, _HIGH, _MARGIN, _COLUMNS = 360, 200, 46, 2
_COLORS = {"read": "#1f77b4", "made": "#d62728"}


def picture(model: LatencyModel, *, most: int = 6) -> str:
    """The text of an SVG file with one chart for each of the ``most`` slowest operations.

    A line shows the milliseconds over one width, while the other has its dense value.
    """
    shown = [each for each in model.operations() if each.curves][:most]
    rows = -(-len(shown) // _COLUMNS)
    charts = []
    for place, each in enumerate(shown):
        x, y = _WIDE * (place % _COLUMNS), _HIGH * (place // _COLUMNS)
        charts.append(f'<g transform="translate({x} {y})">{_chart(each)}</g>')
    size = f'width="{_WIDE * _COLUMNS}" height="{_HIGH * max(1, rows)}"'
    style = '<rect width="100%" height="100%" fill="white"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n{style}\n'
        + "\n".join(charts)
        + "\n</svg>\n"
    )


def _chart(facts: OperationFacts) -> str:
    top = max(float(times.max()) for _, times in facts.curves.values())
    right = max(int(widths.max()) for widths, _ in facts.curves.values())
    width, height = _WIDE - 1.5 * _MARGIN, _HIGH - 1.6 * _MARGIN
    lines = []
    for name, (widths, times) in facts.curves.items():
        points = _points(widths / right, times / top, width, height)
        lines.append(f'<polyline fill="none" stroke="{_COLORS[name]}" points="{points}"/>')
    names = {"read": "channels read", "made": "channels made"}
    legend = [
        f'<text x="{_MARGIN + 100 * place}" y="{_HIGH - 6}" fill="{_COLORS[name]}">{names[name]}</text>'
        for place, name in enumerate(facts.curves)
    ]
    floor = _MARGIN * 0.8 + height
    return "".join(
        [
            f'<text x="{_MARGIN}" y="16">{escape(facts.label)}, {facts.read} → {facts.made}</text>',
            f'<path d="M{_MARGIN} {_MARGIN * 0.8}V{floor}H{_MARGIN + width}" fill="none" stroke="#888"/>',
            f'<text x="{_MARGIN - 4}" y="{_MARGIN * 0.8 + 8}" text-anchor="end">{top:.2g}</text>',
            f'<text x="{_MARGIN - 4}" y="{floor}" text-anchor="end">0 ms</text>',
            f'<text x="{_MARGIN + width}" y="{floor + 14}" text-anchor="end">{right}</text>',
            *lines,
            *legend,
        ]
    )


def _points(across: np.ndarray, up: np.ndarray, width: float, height: float) -> str:
    pairs = zip(_MARGIN + across * width, _MARGIN * 0.8 + (1 - up) * height, strict=True)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
