"""Pictures of a network's outputs before and after pruning. They need matplotlib (the extra ``figures``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disparse_structured.errors import DisparseError
from disparse_structured.errors import require as need_extra

Image = NDArray[np.float64]
"""``[H, W, 3]``, RGB in 0..1."""

_TILE = 1.45  # inches across; the rest is in tiles
_HEAD, _NAMES, _GAP, _BREAK, _MARGIN = 0.86, 0.55, 0.035, 0.14, 0.06
_INK, _FAINT, _FRAME = "#1f2430", "#6b7280", "#d5d9e0"
# Okabe and Ito's colors, distinguishable with any color vision, lightened for large surfaces.
_PALETTE = "#b9c3cf #e9e2d0 #f7f5ef #e69f00 #009e73 #0072b2 #cc79a7 #d55e00 #56b4e9 #f0e442 #7a4fbf #1f2430"


@dataclass(frozen=True, eq=False)
class Sight:
    """One scene of a picture.

    Args:
        seen: the network's input.
        rows: row name (``"truth"``, ``"dense"``, ...) to column name (the task's) to the drawn map.
    """

    seen: Image
    rows: Mapping[str, Mapping[str, Image]]


def require() -> None:
    """Raises :class:`MissingExtraError` if matplotlib is missing; call it before hours of work."""
    need_extra("figures", "matplotlib")


def label_colors(labels: ArrayLike) -> Image:
    """Class indices ``[H, W]`` as flat colors; they repeat after twelve classes."""
    palette = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in _PALETTE.split()]) / 255
    return np.asarray(palette[np.asarray(labels) % len(palette)])


def heat(values: ArrayLike, low: float, high: float, colors: str = "magma") -> Image:
    """Values ``[H, W]`` from ``low`` to ``high`` on one of matplotlib's color maps, clipped outside."""
    require()
    from matplotlib import colormaps

    scaled = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return np.asarray(colormaps[colors](scaled)[..., :3])


def normal_colors(normals: ArrayLike) -> Image:
    """Normals ``[3, H, W]`` (camera frame: x right, y down, z forward), in the usual pastel colors."""
    normals = np.asarray(normals, dtype=np.float64)
    unit = normals / np.maximum(np.linalg.norm(normals, axis=0), 1e-6)
    facing = unit * np.array([1.0, -1.0, -1.0])[:, None, None]
    return np.asarray(facing.transpose(1, 2, 0) * 0.5 + 0.5)


def draw_comparison(
    path: str | os.PathLike[str],
    sights: Sequence[Sight],
    headings: Mapping[str, str],
    *,
    title: str,
    subtitle: str = "",
) -> None:
    """Writes a PNG: for each scene the input, and beside it one row per network and one column per task.

    Args:
        path: the file; it is replaced only once the new one is complete.
        sights: the scenes, from top to bottom, with the same rows and columns.
        headings: column name -> text above it (two lines at most); its order is that of the columns.
        title, subtitle: a line each, above everything.

    Raises:
        DisparseError: matplotlib is missing, or there is nothing to draw.
    """
    require()
    if not sights or not headings:
        raise DisparseError(
            f"there is nothing to draw: {len(sights)} scenes and {len(headings)} columns. Pass both."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(facecolor="white")
    canvas = FigureCanvasAgg(figure)  # no display and no pyplot, whose global state is the caller's
    page = _Page(figure, sights, headings)
    page.title(title, subtitle)
    for number, sight in enumerate(sights):
        page.scene(number, sight)
    path = Path(path)
    draft = path.with_name(f".{path.name}.draft")
    canvas.print_figure(draft, dpi=160, format="png")
    os.replace(draft, path)


class _Page:
    """Places tiles of one size, measured in tiles' widths from the top left corner."""

    def __init__(self, figure: Any, sights: Sequence[Sight], headings: Mapping[str, str]) -> None:
        height, width = sights[0].seen.shape[:2]
        rows = len(sights[0].rows)
        self.figure, self.headings = figure, headings
        self.tall = float(height / width)
        self.block = rows * self.tall + (rows - 1) * _GAP
        self.maps_left = _MARGIN + self.block / self.tall + _NAMES
        self.across = self.maps_left + len(headings) * (1 + _GAP) - _GAP + _MARGIN
        self.down = _HEAD + len(sights) * (self.block + _BREAK) - _BREAK + _MARGIN
        figure.set_size_inches(self.across * _TILE, self.down * _TILE)

    def title(self, title: str, subtitle: str) -> None:
        self._text(_MARGIN, 0.23, title, size=17, weight="bold")
        self._text(_MARGIN, 0.42, subtitle, size=11, color=_FAINT)
        for column, heading in enumerate(self.headings.values()):
            name, _, detail = heading.partition("\n")
            middle = self._left(column) + 0.5
            self._text(middle, _HEAD - 0.21, name, size=11.5, weight="bold", ha="center")
            self._text(middle, _HEAD - 0.065, detail, size=6.5, color=_FAINT, ha="center")

    def scene(self, number: int, sight: Sight) -> None:
        top = _HEAD + number * (self.block + _BREAK)
        self._tile(_MARGIN, top, self.block / self.tall, sight.seen)
        for row, (name, maps) in enumerate(sight.rows.items()):
            y = top + row * (self.tall + _GAP)
            self._text(self.maps_left - 0.06, y + self.tall / 2 + 0.03, name, size=10, ha="right")
            for column, task in enumerate(self.headings):
                self._tile(self._left(column), y, 1.0, maps[task])

    def _left(self, column: int) -> float:
        return self.maps_left + column * (1 + _GAP)

    def _tile(self, x: float, y: float, width: float, image: Image) -> None:
        height = width * self.tall
        place = (x / self.across, 1 - (y + height) / self.down, width / self.across, height / self.down)
        axes = self.figure.add_axes(place)
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.set(xticks=(), yticks=())
        axes.spines[:].set(color=_FRAME, linewidth=0.6)

    def _text(self, x: float, y: float, text: str, *, color: str = _INK, **style: Any) -> None:
        self.figure.text(x / self.across, 1 - y / self.down, text, color=color, va="baseline", **style)
