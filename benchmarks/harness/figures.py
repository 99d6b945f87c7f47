"""The look that the plots of the benchmarks share."""

from __future__ import annotations

from typing import Any

INK, FAINT, GRID, GRAY = "#1f2430", "#8a93a0", "#e3e7ec", "#c9cfd8"
OURS = "#d55e00"
"""The color of this project's lines; like the others, from Okabe and Ito's palette for all color vision."""


def style(ax: Any) -> None:
    """Horizontal grid lines below the data, and axes on the left and at the bottom only."""
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=FAINT, labelcolor=INK, length=3)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
