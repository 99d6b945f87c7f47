"""Descriptions of task heads on a pyramid of feature maps, and the modules that they build.

A head is described by a frozen dataclass and built once the backbone's channel counts are known. No
module here remembers a channel count outside its layers, so every width inside may shrink.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from disparse_structured.errors import TaskError


class Head(abc.ABC):
    """A task's head on the backbone. Subclass it (as a frozen dataclass) for a head of your own."""

    @abc.abstractmethod
    def build(self, channels: Sequence[int]) -> nn.Module:
        """The head's module, for maps with these channel counts (finest map first).

        The module is called as ``module(maps, size)`` with ``maps`` a list of ``[B, C_i, H_i, W_i]`` and
        ``size`` the ``(H, W)`` of the input image.

        Raises:
            TaskError: the head reads a map that does not exist.
        """


@dataclass(frozen=True)
class LinearHead(Head):
    """Global average pooling, then a linear layer: ``[B, outputs]``.

    Args:
        outputs: width of the output.
        level: which map is read; -1 is the coarsest.
    """

    outputs: int
    level: int = -1

    def __post_init__(self) -> None:
        _positive(self, outputs=self.outputs)

    def build(self, channels: Sequence[int]) -> nn.Module:
        """See :meth:`Head.build`."""
        return _Linear(self, _width(self, channels, self.level))


@dataclass(frozen=True)
class DenseHead(Head):
    """Convolution, batch norm, ReLU, 1×1 predictor, resized to the image: ``[B, outputs, H, W]``.

    With several levels, each passes a 1×1 lateral, and their sum is read at the finest of them: the
    top-down path of feature pyramid networks (Lin et al., CVPR 2017, §3) without its smoothing layers.

    Args:
        outputs: channels of the output.
        width: channels inside the head.
        levels: which maps are read; -1 is the coarsest.
        kernel: side of the convolution, odd.
    """

    outputs: int
    width: int = 64
    levels: tuple[int, ...] = (-1,)
    kernel: int = 3

    def __post_init__(self) -> None:
        _positive(self, outputs=self.outputs, width=self.width, levels=len(self.levels))
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise TaskError(f"{self} has kernel {self.kernel}. Use an odd side: maps keep their size.")

    def build(self, channels: Sequence[int]) -> nn.Module:
        """See :meth:`Head.build`."""
        positions = sorted({_position(self, channels, level) for level in self.levels})
        return _Dense(self, positions, [channels[position] for position in positions])


@dataclass(frozen=True)
class ASPPHead(Head):
    """Parallel atrous convolutions, each with its own predictor, summed: ``[B, outputs, H, W]``.

    The atrous spatial pyramid of DeepLab-v2 (Chen et al., TPAMI 2018, §3.2), which DiSparse uses for
    its dense tasks.

    Args:
        outputs: channels of the output.
        rates: dilation of each branch.
        width: channels inside each branch.
        level: which map is read; -1 is the coarsest.
    """

    outputs: int
    rates: tuple[int, ...] = (6, 12, 18, 24)
    width: int = 64
    level: int = -1

    def __post_init__(self) -> None:
        _positive(self, outputs=self.outputs, width=self.width, rates=min(self.rates, default=0))

    def build(self, channels: Sequence[int]) -> nn.Module:
        """See :meth:`Head.build`."""
        return _ASPP(self, _width(self, channels, self.level))


class _Linear(nn.Module):
    def __init__(self, head: LinearHead, width: int) -> None:
        super().__init__()
        self.level = head.level
        self.predict = nn.Linear(width, head.outputs)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        output: Tensor = self.predict(maps[self.level].mean((2, 3)))
        return output


class _Dense(nn.Module):
    def __init__(self, head: DenseHead, levels: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        one = len(channels) == 1
        self.laterals = nn.ModuleList(nn.Identity() if one else nn.Conv2d(c, head.width, 1) for c in channels)
        self.mix = _convolution(channels[0] if one else head.width, head.width, head.kernel)
        self.predict = nn.Conv2d(head.width, head.outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        finest, *coarser = (lateral(maps[i]) for lateral, i in zip(self.laterals, self.levels, strict=True))
        for x in coarser:
            finest = finest + _resize(x, finest.shape[-2:])
        return _resize(self.predict(self.mix(finest)), size)


class _ASPP(nn.Module):
    def __init__(self, head: ASPPHead, channels: int) -> None:
        super().__init__()
        self.level = head.level
        self.branches = nn.ModuleList(
            nn.Sequential(
                _convolution(channels, head.width, 3, dilation=rate), nn.Conv2d(head.width, head.outputs, 1)
            )
            for rate in head.rates
        )

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        first, *others = (branch(maps[self.level]) for branch in self.branches)
        for x in others:
            first = first + x
        return _resize(first, size)


def _convolution(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _position(head: Head, channels: Sequence[int], level: int) -> int:
    if not -len(channels) <= level < len(channels):
        raise TaskError(
            f"{head} reads level {level}, but the backbone gives {len(channels)} maps. "
            f"Use a level from {-len(channels)} to {len(channels) - 1}."
        )
    return level % len(channels)


def _width(head: Head, channels: Sequence[int], level: int) -> int:
    return channels[_position(head, channels, level)]


def _positive(head: Head, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise TaskError(f"{head}: {name} must be at least 1.")
