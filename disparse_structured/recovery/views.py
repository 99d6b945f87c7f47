"""Varied images that remain plausible: small changes of zoom, position, contrast and brightness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import map_batched

VIEWS = "zoomed up to 1.25 times, shifted, contrast ± 20 %, brightness ± 0.2"
"""What :func:`varied` does, in words."""

_ZOOM, _LIGHT = 0.25, 0.2
_CHANNELS, _SIDE = (1, 3, 4), 16


def are_images(inputs: tuple[Any, ...]) -> bool:
    """Whether the only tensor is ``[N, C, H, W]``, floating-point, with 1, 3 or 4 channels.

    With several inputs, such as a stereo pair or an image and boxes, varying one would contradict another.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(leaves) != 1:
        return False
    image = leaves[0]
    return (
        image.ndim == 4
        and image.is_floating_point()
        and image.shape[1] in _CHANNELS
        and min(image.shape[2:]) >= _SIDE
    )


def varied(inputs: tuple[Any, ...], generator: torch.Generator) -> tuple[Any, ...]:
    """``inputs`` for which :func:`are_images` is true, with each example cropped, enlarged and brightened.

    Nothing is mirrored or rotated: a network may tell left from right, or read text.

    >>> images = torch.rand(2, 3, 16, 16)
    >>> varied((images,), torch.Generator().manual_seed(0))[0].shape
    torch.Size([2, 3, 16, 16])
    """
    return map_batched(lambda images: _varied(images, generator), inputs)


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(5, len(images), generator=generator, dtype=torch.float64).to(images.device)
    scale = 1 / (1 + _ZOOM * draws[0])
    transform = images.new_zeros(len(images), 2, 3, dtype=torch.float32)
    transform[:, 0, 0] = transform[:, 1, 1] = scale
    transform[:, :, 2] = ((2 * draws[1:3] - 1) * (1 - scale)).T
    wide = images.float()
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    cropped = F.grid_sample(wide, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = (_LIGHT * (2 * draws[3:] - 1)).float()[:, :, None, None, None]
    lit: Tensor = cropped * (1 + contrast) + brightness * wide.std(correction=0)
    return lit.to(images.dtype)
