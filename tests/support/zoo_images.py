"""Awkward convolutional trunks of the zoo, and the three heads that most of them carry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; keeps the spatial size at stride 1."""
    padding = options.pop("padding", kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ThreeHeads(nn.Module):
    """``trunk``, then a linear head, a dense head and a one-channel head with a private layer."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.kind = nn.Linear(width, 5)
        self.dense = nn.Conv2d(width, 4, 1)
        self.edge = nn.Sequential(block(width, 6), nn.Conv2d(6, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"kind": self.kind(x.mean((2, 3))), "dense": self.dense(x), "edge": self.edge(x)}


def plain() -> nn.Module:
    return nn.Sequential(block(3, 8), block(8, 12), block(12, 8))


def dilated() -> nn.Module:
    return nn.Sequential(block(3, 8), block(8, 12, padding=2, dilation=2), block(12, 8, stride=2))


def depthwise_separable() -> nn.Module:
    return nn.Sequential(block(3, 8), block(8, 8, groups=8), block(8, 12, 1), block(12, 12, groups=12))


def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(block(3, 6), block(6, 12, groups=6), block(12, 8))


def grouped() -> nn.Module:
    return nn.Sequential(block(3, 12), block(12, 16, groups=4), block(16, 8, 1))


def grouped_chain() -> nn.Module:
    """Two grouped convolutions in a row whose group counts differ."""
    return nn.Sequential(block(3, 12), block(12, 12, groups=2), block(12, 12, groups=3), block(12, 8))


def transposed() -> nn.Module:
    return nn.Sequential(
        block(3, 8, stride=2),
        nn.ConvTranspose2d(8, 12, 2, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        block(12, 8),
    )


def transposed_grouped() -> nn.Module:
    return nn.Sequential(
        block(3, 8, stride=2), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.ReLU(), block(12, 8)
    )


def normed(norm: nn.Module) -> nn.Module:
    """A hidden convolution of 12 channels with ``norm`` behind it."""
    return nn.Sequential(block(3, 8), nn.Conv2d(8, 12, 3, padding=1), norm, nn.GELU(), block(12, 8))


def prelu(parameters: int) -> nn.Module:
    activation = nn.PReLU(parameters)
    nn.init.uniform_(activation.weight, 0.1, 0.5)
    return nn.Sequential(block(3, 8), nn.Conv2d(8, 12, 3, padding=1), activation, block(12, 8))


class Residual(nn.Module):
    """Two residual blocks, the second with a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.first = nn.Sequential(block(8, 10), nn.Conv2d(10, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(
            block(8, 12, stride=2), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        )
        self.project = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2), nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.first(x))
        return F.relu(self.project(x) + self.second(x))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.shared = nn.Sequential(block(8, 12), block(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(self.stem(x)))


class TiedConvolutions(nn.Module):
    """Two convolutions own one weight; each has its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.left = nn.Conv2d(8, 12, 3, padding=1)
        self.right = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.right.weight = self.left.weight
        self.merge = block(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.merge(torch.cat([self.left(x), self.right(x)], 1))


class ConcatInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.merge = block(11, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([x, self.stem(x)], 1))


class ConcatPooledInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8, stride=2)
        self.merge = block(11, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.stem(x), F.avg_pool2d(x, 2)], 1))


class DenseConcat(nn.Module):
    """Every layer reads all earlier ones, normalized after the concat, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1))
            for width in (8, 12)
        )
        self.merge = block(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.merge(x)
