"""What tests of Ultralytics share: a small network, and rendered pictures of disks and boxes with labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

SIDE, RADIUS, COUNT = 64, 10, 4
CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
OUTLINES = {"disk": np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), "box": CORNERS}

LAYERS = """
nc: 3
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, C2f, [24, True]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, SPPF, [48, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 3], 1, Concat, [1]]
  - [-1, 1, C2f, [32]]
"""
"""A small detector's layers, in the library's own format."""

SEGMENT = LAYERS + "  - [[8, 5], 1, Segment, [nc, 8, 16]]\n"
DECODER = LAYERS + "  - [[8, 5], 1, RTDETRDecoder, [nc, 32, 20, 2, 2, 1, 48]]\n"
TWO_HEADS = LAYERS + "  - [[8, 5], 1, v10Detect, [nc]]\n"


def small(file: Path, text: str) -> Any:
    """Build the network of ``text``, written to ``file``, with statistics as after training."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    import ultralytics

    file.write_text(text)
    yolo: Any = (ultralytics.RTDETR if text == DECODER else ultralytics.YOLO)(str(file))
    for module in yolo.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return yolo


def render(folder: Path) -> Path:
    """Write :data:`COUNT` pictures each to train and validate on, with labels of the outlines.

    Returns:
        The data set's YAML file.
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
                outline = numbers.integers(16, SIDE - 16, 2) + RADIUS * OUTLINES[name]
                ImageDraw.Draw(picture).polygon([tuple(point) for point in outline], fill=color)
                lines.append(" ".join([str(kind), *(f"{value:.4f}" for value in outline.ravel() / SIDE)]))
            picture.save(pictures / f"{number}.png")
            (labels / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "shapes.yaml"
    names = dict(enumerate(OUTLINES))
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return described
