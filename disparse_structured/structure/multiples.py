"""The widths at which a runtime's convolutions are fast, and those that grouped matrix products take.

ONNX Runtime convolves maps in blocks of channels: 8 with AVX2, 16 with AVX-512. It computes a whole block
where one channel of it is left. A layer whose channels are no multiple of 4 falls back to slower code, and so
do its neighbors. (Source: ONNX Runtime, ``core/optimizer/nchwc_transformer.cc`` and issue 14392.) Matrix
products have no such steps, nor have convolutions of a single position.

PyTorch's grouped matrix products refuse rows of which the size is no multiple of 16 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from disparse_structured.structure.groups import ChannelGroup

_BLOCKS = ((128, 16), (32, 8), (16, 4))
"""From how many channels on, and the multiple. A whole block of few channels would be too coarse a step."""


_ALIGNED = 8
"""Numbers of 2 bytes in 16 bytes."""


def with_multiples(
    groups: Sequence[ChannelGroup],
    units: np.ndarray,
    convolved: Iterable[np.ndarray],
    aligned: Iterable[np.ndarray],
) -> tuple[ChannelGroup, ...]:
    """``groups`` with their ``multiple`` set.

    Args:
        units: int64 ``[atoms]``, the flat unit of each atom, -1 where it is fixed.
        convolved: the labels of the channels that convolutions of maps read and write.
        aligned: those of what grouped matrix products read and write.
    """
    channels, rows = (_counts(groups, units, labels) for labels in (convolved, aligned))
    found = []
    for group, channel, row in zip(groups, channels, rows, strict=True):
        block = next((block for least, block in _BLOCKS if channel >= least), 1)
        steps = _units(block, channel, group), _units(_ALIGNED if row else 1, row, group)
        found.append(replace(group, multiple=math.lcm(*steps)))
    return tuple(found)


def _counts(groups: Sequence[ChannelGroup], units: np.ndarray, where: Iterable[np.ndarray]) -> list[int]:
    """How many of the labels belong to each group; the greatest common divisor over the places."""
    starts = np.array([group.start for group in groups], dtype=np.int64)
    counts = [0] * len(groups)
    for labels in {each.tobytes(): each for each in where}.values():
        found = units[labels]
        places = np.searchsorted(starts, found[found >= 0], side="right") - 1
        for place, count in zip(*np.unique(places, return_counts=True), strict=True):
            counts[place] = math.gcd(counts[place], int(count))
    return counts


def _units(block: int, channels: int, group: ChannelGroup) -> int:
    """How many units are a multiple of ``block`` channels; each unit is as many of the ``channels``."""
    return block // math.gcd(block, max(1, channels // group.units))
