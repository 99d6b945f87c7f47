"""The outputs of the dense and the pruned network on a few inputs, drawn for a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from disparse_structured.errors import require
from disparse_structured.report import words

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 450_000
"""Bytes of all pictures of a page."""

_SIDES = (176, 128, 96, 64, 40)
"""The longer side of a picture in pixels; smaller if all would be too large."""

_THIN = 12
"""The least side of a picture in pixels: long and narrow maps are stretched."""

_BARS = 5
_SCORE, _OVERLAP, _BOXES = 0.25, 0.5, 20

_COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Of small to large values: five colors of viridis (matplotlib, CC0)."""


@dataclass(frozen=True, eq=False)
class Example:
    """One input, and the tensors of each task without their batch dimension.

    Args:
        name: what to call the input.
        seen: the input as a picture, uint8 ``[height, width, 3]``; None if it is not one.
        dense: by task, the outputs of the dense network.
        pruned: by task, those of the pruned network.
    """

    name: str
    seen: np.ndarray | None
    dense: Mapping[str, Sequence[np.ndarray]]
    pruned: Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: ``alt`` says what it shows."""

    label: str
    alt: str
    href: str


@dataclass(frozen=True)
class Bar:
    """A score of both networks, and the shares of the largest one that their bars fill."""

    name: str
    dense: str
    pruned: str
    dense_share: float
    pruned_share: float


@dataclass(frozen=True)
class Drawn:
    """One tensor of a task: two pictures or some bars, and how to read them."""

    title: str
    how: str
    pictures: tuple[Picture, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class DrawnExample:
    """An input and the outputs of both networks."""

    name: str
    seen: Picture | None
    outputs: tuple[Drawn, ...]


def drawn(examples: Sequence[Example]) -> tuple[DrawnExample, ...]:
    """The examples as pictures of :data:`LARGEST` bytes in all: smaller, then fewer, if they are too large.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    require("images", "PIL")
    found: tuple[DrawnExample, ...] = ()
    for count in range(len(examples), 0, -1):
        for side in _SIDES:
            found = tuple(_example(each, side) for each in examples[:count])
            if _bytes(found) <= LARGEST:
                return found
    return ()


def _bytes(found: Sequence[DrawnExample]) -> int:
    pictures = [each.seen for each in found if each.seen is not None]
    pictures += [picture for each in found for output in each.outputs for picture in output.pictures]
    return sum(len(picture.href) for picture in pictures)


def _example(example: Example, side: int) -> DrawnExample:
    seen = None
    if example.seen is not None:
        seen = Picture("input", f"input {example.name}", _jpeg(_image(example.seen), side))
    outputs = []
    for task, tensors in example.dense.items():
        for number, (one, other) in enumerate(zip(tensors, example.pruned[task], strict=True)):
            title = task if len(tensors) == 1 else f"{task}, tensor {number}"
            outputs.append(_output(title, one, other, example, side))
    return DrawnExample(example.name, seen, tuple(outputs))


def _output(title: str, dense: np.ndarray, pruned: np.ndarray, example: Example, side: int) -> Drawn:
    moved = f"{title}: deviates by {words.percent(_moved(dense, pruned))}"
    if dense.shape != pruned.shape or not dense.size:
        return Drawn(moved, "the shapes of the two outputs differ")
    if dense.ndim <= 1:
        return Drawn(moved, *_bars(np.atleast_1d(dense), np.atleast_1d(pruned)))
    pair, how = _pair(dense, pruned, example.seen)
    labels = ("dense", "pruned")
    pictures = tuple(
        Picture(label, f"{title} of input {example.name}, {label}", encode(image, side))
        for label, (encode, image) in zip(labels, pair, strict=True)
    )
    return Drawn(moved, how, pictures)


def _moved(dense: np.ndarray, pruned: np.ndarray) -> float | None:
    if dense.shape != pruned.shape:
        return None
    wide = dense.astype(np.float64)
    size = float(np.linalg.norm(wide))
    return float(np.linalg.norm(pruned - wide)) / size if size else None


def _bars(dense: np.ndarray, pruned: np.ndarray) -> tuple[str, tuple[Picture, ...], tuple[Bar, ...]]:
    chosen = np.argsort(-dense, kind="stable")[:_BARS]
    most = float(np.nanmax(np.abs([dense[chosen], pruned[chosen]]))) or 1.0
    bars = tuple(
        Bar(
            str(place), f"{one:.3g}", f"{other:.3g}", *(max(0.0, float(each) / most) for each in (one, other))
        )
        for place in chosen.tolist()
        for one, other in [(dense[place], pruned[place])]
    )
    return f"the largest {len(bars)} of {len(dense)} values", (), bars


def _pair(
    dense: np.ndarray, pruned: np.ndarray, seen: np.ndarray | None
) -> tuple[list[tuple[Callable[[Image, int], str], Image]], str]:
    """Both as images with what encodes them, and how to read them."""
    if dense.ndim == 2 and dense.dtype.kind == "f" and seen is not None:
        tables = [_boxes(each, max(seen.shape)) for each in (dense, pruned)]
        if tables[0] is not None:
            drawings = [_with_boxes(seen, table) for table in tables]
            return [(_jpeg, each) for each in drawings], f"boxes with a score above {_SCORE}"
    if dense.ndim == 3 and len(dense) == 1:
        dense, pruned = dense[0], pruned[0]
    if dense.dtype.kind in "iub":
        maps = [each if each.ndim == 2 else each.reshape(len(each), -1) for each in (dense, pruned)]
        return [(_png, _labels(each)) for each in maps], "classes"
    if dense.ndim == 3 and len(dense) == 3 and _unit(dense):
        colored = [((each.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255) for each in (dense, pruned)]
        return [(_jpeg, _image(each)) for each in colored], "unit vectors as colors"
    if dense.ndim == 3:
        count = len(dense)
        return [(_png, _labels(each.argmax(0))) for each in (dense, pruned)], f"largest of {count} channels"
    maps = [each if each.ndim == 2 else each.reshape(len(each), -1) for each in (dense, pruned)]
    finite = maps[0][np.isfinite(maps[0])]
    low, high = np.quantile(finite, [0.02, 0.98]) if finite.size else (0.0, 1.0)
    return (
        [(_png, _heat(each, low, high)) for each in maps],
        f"dark to light: {low:.3g} to {high:.3g}",
    )


def _unit(vectors: np.ndarray) -> bool:
    """Whether the channels are unit vectors, such as surface normals."""
    return bool(np.abs(np.linalg.norm(vectors, axis=0) - 1).max() < 1e-2)


def _boxes(values: np.ndarray, side: int) -> np.ndarray | None:
    """``[boxes, 6]``: corners, score and class, if ``values`` are clearly boxes; otherwise None.

    A table of boxes has four coordinates in pixels, and then scores from 0 to 1, or a score and a class.
    Coordinates are corners if every box then has a size; otherwise a center, width and height.
    """
    for table in (values, values.T):
        if table.shape[1] < 5 or not np.isfinite(table).all():
            continue
        corners, rest = table[:, :4], table[:, 4:]
        if corners.max() <= 2 or np.abs(corners).max() > 2 * side or corners[:, 2:].min() < 0:
            continue
        if rest.shape[1] == 2 and (rest[:, 1] == rest[:, 1].round()).all():
            scores, classes = rest[:, 0], rest[:, 1]
        else:
            scores, classes = rest.max(1), rest.argmax(1)
            if rest.max() > 1:
                continue
        if scores.min() < 0 or scores.max() > 1:
            continue
        if not (corners[:, 2:] >= corners[:, :2]).all():
            half = corners[:, 2:] / 2
            corners = np.concatenate([corners[:, :2] - half, corners[:, :2] + half], 1)
        return _distinct(np.concatenate([corners, scores[:, None], classes[:, None]], 1))
    return None


def _distinct(boxes: np.ndarray) -> np.ndarray:
    """The boxes with the largest scores, without those that overlap one of them."""
    waiting = boxes[boxes[:, 4] > _SCORE]
    waiting = waiting[np.argsort(-waiting[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    while len(waiting) and len(kept) < _BOXES:
        first, waiting = waiting[0], waiting[1:]
        kept.append(first)
        low, high = np.maximum(first[:2], waiting[:, :2]), np.minimum(first[2:4], waiting[:, 2:4])
        shared = (high - low).clip(0).prod(1)
        areas = (waiting[:, 2:4] - waiting[:, :2]).prod(1) + (first[2:4] - first[:2]).prod()
        waiting = waiting[shared <= _OVERLAP * np.maximum(areas - shared, 1e-9)]
    return np.array(kept).reshape(-1, 6)


def _with_boxes(seen: np.ndarray, boxes: np.ndarray | None) -> Image:
    from PIL import ImageDraw

    image = _image(seen)
    draw = ImageDraw.Draw(image)
    width = max(1, max(seen.shape) // 100)
    for left, top, right, bottom, _, kind in [] if boxes is None else boxes.tolist():
        draw.rectangle((left, top, right, bottom), outline=_color(int(kind)), width=width)
    return image


def _color(number: int) -> tuple[int, int, int]:
    """The color of a class: hues that are far apart."""
    hue = number * 0.618034 % 1
    red, green, blue = (0.5 + 0.45 * math.cos(2 * math.pi * (hue - shift)) for shift in (0, 1 / 3, 2 / 3))
    return int(red * 255), int(green * 255), int(blue * 255)


def _labels(classes: np.ndarray) -> Image:
    known, places = np.unique(classes, return_inverse=True)
    colors = np.array([_color(int(each)) for each in known])
    return _image(colors[places.reshape(classes.shape)])


def _heat(values: np.ndarray, low: float, high: float) -> Image:
    scaled = ((np.nan_to_num(values) - low) / ((high - low) or 1.0)).clip(0, 1) * (len(_COLORS) - 1)
    colors = [np.interp(scaled, range(len(_COLORS)), channel) for channel in zip(*_COLORS, strict=True)]
    return _image(np.stack(colors, -1))


def _image(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels.astype(np.uint8), "RGB")


def _png(image: Image, side: int) -> str:
    from PIL import Image

    sized = _sized(image, side, Image.Resampling.NEAREST)
    return _href(sized.quantize(64), "png", optimize=True)


def _jpeg(image: Image, side: int) -> str:
    from PIL import Image

    return _href(_sized(image, side, Image.Resampling.BILINEAR), "jpeg", quality=80)


def _sized(image: Image, side: int, how: int) -> Image:
    scale = side / max(image.size)
    width, height = (max(_THIN, round(each * scale)) for each in image.size)
    return image.resize((width, height), how)


def _href(image: Image, kind: str, **options: object) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
