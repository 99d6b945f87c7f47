"""Shifted copies of images: more positions from few inputs, for layers with many unknowns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batched_leaves, map_batched

SHARE = 12
"""Images are shifted by up to their shorter side divided by this: 4 pixels of 48."""

PIXELS = 8 * 1024**2
"""Most pixels of all images and copies together: one copy of 64 images of 224 x 224."""


def shifted(chunks: Sequence[tuple[Any, ...]], copies: int, seed: int) -> list[tuple[Any, ...]]:
    """Copy all ``chunks`` ``copies`` times, in order, every image shifted by a random number of pixels.

    Edges are padded by reflection. Images must be the only tensor with a batch dimension, floating-point,
    ``[N, C, H, W]`` with sides of at least :data:`SHARE`; other inputs get no copies. There are fewer where
    they would exceed :data:`PIXELS`, because large images show enough positions.
    """
    image = _image(chunks[0])
    if image is None:
        return []
    pixels = len(chunks) * len(image) * image.shape[2] * image.shape[3]
    copies = min(copies, max(0, PIXELS // pixels - 1))
    generator = torch.Generator().manual_seed(seed)

    def copied(chunk: tuple[Any, ...]) -> tuple[Any, ...]:
        return map_batched(lambda leaf: _moved(leaf, generator), chunk)

    return [copied(chunk) for _ in range(copies) for chunk in chunks]


def _image(chunk: tuple[Any, ...]) -> Tensor | None:
    """The images of a chunk; None if there are none, or if another tensor would have to shift with them."""
    pairs = zip(pytree.tree_leaves(chunk), batched_leaves(chunk), strict=True)
    batched = [leaf for leaf, found in pairs if found]
    if len(batched) != 1 or batched[0].ndim != 4 or not batched[0].is_floating_point():
        return None
    image: Tensor = batched[0]
    return image if min(image.shape[2:]) >= SHARE else None


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    reach = min(height, width) // SHARE
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    offsets = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(padded, offsets, strict=True)
        ]
    )
