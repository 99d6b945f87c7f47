"""The widths at which a runtime's convolutions are fast.

ONNX Runtime convolves maps in blocks of channels: 8 with AVX2, 16 with AVX-512. It computes a whole block
where one channel of it is left. A layer whose channels are no multiple of 4 falls back to slower code, and so
do its neighbors. (Source: ONNX Runtime, ``core/optimizer/nchwc_transformer.cc`` and issue 14392.) Matrix
products have no such steps, nor have convolutions of a single position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from disparse_structured.structure.groups import ChannelGroup

_BLOCKS = ((128, 16), (32, 8), (16, 4))
"""From how many channels on, and the multiple. A whole block of few channels would be too coarse a step."""


def with_multiples(
    groups: Sequence[ChannelGroup], units: np.ndarray, convolved: Iterable[np.ndarray]
) -> tuple[ChannelGroup, ...]:
    """``groups`` with their ``multiple`` set.

    Args:
        units: int64 ``[atoms]``, the flat unit of each atom, -1 where it is fixed.
        convolved: the labels of the channels that convolutions of maps read and write.
    """
    starts = np.array([group.start for group in groups], dtype=np.int64)
    channels = [0] * len(groups)
    for labels in {each.tobytes(): each for each in convolved}.values():
        found = units[labels]
        places = np.searchsorted(starts, found[found >= 0], side="right") - 1
        for place, count in zip(*np.unique(places, return_counts=True), strict=True):
            channels[place] = math.gcd(channels[place], int(count))
    return tuple(
        replace(group, multiple=_multiple(count, group.units))
        for group, count in zip(groups, channels, strict=True)
    )


def _multiple(channels: int, units: int) -> int:
    """In units, of a group that a convolution has ``channels`` of; each unit is as many of them."""
    block = next((block for least, block in _BLOCKS if channels >= least), 1)
    return block // math.gcd(block, max(1, channels // units))
