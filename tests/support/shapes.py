"""Data sets of Ultralytics, rendered: 64-pixel pictures of disks and boxes, with labels in its text format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, RADIUS, COUNT = 64, 10, 4
CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
OUTLINES = {"disk": np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), "box": CORNERS}


def render(folder: Path, *, masks: bool) -> Path:
    """Write :data:`COUNT` pictures each to train and validate on; return the data set's YAML file.

    Args:
        masks: label the outlines, for segmentation, instead of the boxes.
    """
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        pictures, labels = folder / "images" / split, folder / "labels" / split
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(COUNT):
            picture = Image.fromarray(numbers.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8))
            lines = []
            for kind, (name, color) in enumerate((("disk", (250, 50, 50)), ("box", (50, 250, 50)))):
                center = numbers.integers(16, SIDE - 16, 2)
                outline = center + RADIUS * OUTLINES[name]
                ImageDraw.Draw(picture).polygon([tuple(point) for point in outline], fill=color)
                found = outline if masks else np.stack([center, [2 * RADIUS, 2 * RADIUS]])
                lines.append(" ".join([str(kind), *(f"{value:.4f}" for value in found.ravel() / SIDE)]))
            picture.save(pictures / f"{number}.png")
            (labels / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "shapes.yaml"
    names = dict(enumerate(OUTLINES))
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return described
