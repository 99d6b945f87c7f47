"""A contact sheet: a network's inputs side by side, with their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from disparse_structured.errors import SaveError
from disparse_structured.files import replacing

TILE = 160
"""The longer side of an input on the sheet, in pixels."""

MARGIN = 8
LINE = 18


def contact_sheet(inputs: Sequence[tuple[str, Image.Image]], title: str, path: Path) -> Path:
    """Draws ``inputs``, pictures with names, below ``title``; writes them to ``path`` and returns it.

    Raises:
        DataError: it cannot be written.
    """
    columns = min(6, len(inputs))
    rows = math.ceil(len(inputs) / columns)
    width, height = inputs[0][1].size
    scale = TILE / max(width, height)
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    font = ImageFont.load_default(size=12)
    cell = max(tile[0], TILE) + MARGIN, tile[1] + LINE + MARGIN
    lines = _wrapped(title, font, max(cell[0] * columns, 3 * TILE))
    head = MARGIN + LINE * len(lines)
    sheet = Image.new(
        "RGB", (max(cell[0] * columns, 3 * TILE) + MARGIN, head + MARGIN + cell[1] * rows), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + LINE * number), line, "black", font)
    for number, (name, pixels) in enumerate(inputs):
        left = MARGIN + number % columns * cell[0]
        top = head + MARGIN + number // columns * cell[1]
        sheet.paste(pixels.convert("RGB").resize(tile), (left, top))
        draw.text((left, top + tile[1] + 1), _shortened(name, font, cell[0] - MARGIN), "black", font)
    try:
        with replacing(path) as draft:
            sheet.save(draft)
    except ValueError as error:  # Pillow does not know the suffix
        raise SaveError(f"{str(path)!r} cannot be written: {error}. Name a .png or .jpg file.") from error
    return path


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _shortened(name: str, font: Font, width: int) -> str:
    """The end of ``name`` that fits into ``width`` pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"...{name}") > width:
        name = name[1:]
    return f"...{name}"
