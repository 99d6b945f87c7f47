"""Awkward trunks of the zoo that scale, gate, cut, move or mix channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.zoo_images import block


class ChannelLayerNorm(nn.Module):
    """ConvNeXt's block: depthwise, layer norm in channels-last, MLP, LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class LayerScale(nn.Module):
    """A channel scale outside every module, applied in channels-first order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.body = block(8, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.body(x) * self.gamma


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 8), block(8, 12))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.SiLU(), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()
        )
        self.out = block(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x * self.gate(x))


class ExpandGate(nn.Module):
    """A gate computed as a vector and broadcast by ``expand_as``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.gate = nn.Linear(8, 8)
        self.out = block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.gate(x.amax((2, 3))))
        return self.out(x * gate[:, :, None, None].expand_as(x))


class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12)
        self.grouped = block(12, 12, groups=3)
        self.out = block(12, 8, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2)
        return self.out(x.reshape(batch, channels, height, width))


class ChunkGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = block(3, 16)
        self.out = block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, 1)
        return self.out(value * torch.sigmoid(gate))


class FunctionalGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 16, 3, padding=1)
        self.out = block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.glu(self.up(x), 1))


class UnequalSplit(nn.Module):
    """The sizes of the pieces are numbers of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = (4, 6, 2)
        self.stem = block(3, 12)
        self.left, self.right = block(4, 8), block(6, 8)
        self.rest = block(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right, rest = torch.split(self.stem(x), self.pieces, 1)
        return self.left(left) + self.right(right) + self.rest(rest)


class UnevenChunks(nn.Module):
    """Eleven channels in three chunks, and thirteen in runs of five: the last is smaller (EdgeNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.run = block(3, 11), block(11, 13), 5
        self.chunked = nn.ModuleList(block(width, width) for width in (4, 4, 3))
        self.ends = nn.ModuleList(block(width, 8) for width in (5, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.stem(x).chunk(3, 1)
        x = torch.cat([layer(chunk) for layer, chunk in zip(self.chunked, chunks, strict=True)], 1)
        first, second, third = torch.split(self.again(x), self.run, 1)
        return self.ends[0](first) + self.ends[1](second) + self.ends[2](third)


class ChannelSlice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12)
        self.first, self.last = block(8, 8), block(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.first(x[:, :8]) + self.last(x[:, -6:])


class UnbindStack(nn.Module):
    """Channels viewed as two slabs, unbound, and stacked the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.out = block(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).unflatten(1, (2, -1)).unbind(1)
        return self.out(torch.stack([second, torch.tanh(first)], 1).flatten(1, 2))


class PadRoll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.out = block(8, 8, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem(x), (1, 1, 1, 1), mode="reflect")
        x = F.pad(x, (0, 1, 1, 0))
        return self.out(torch.roll(x, (1, -1), (2, 3)))


class ChannelPadShortcut(nn.Module):
    """The parameter-free shortcut of the first ResNets: stride, then zero channels behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.body = block(8, 12, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)))


class ChannelRoll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.out = block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.roll(self.stem(x), 3, 1))


class Resize(nn.Module):
    """Nearest and bilinear resizing to another tensor's size, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.low, self.lower = block(8, 8, stride=2), block(8, 8, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        low = self.low(x)
        lower = self.lower(low)
        size = x.shape[-2:]
        return x + F.interpolate(low, size, mode="nearest") + F.interpolate(lower, size, mode="bilinear")


class TwoBatchNorms(nn.Module):
    """Two tasks' batch norms read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.left_norm, self.right_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv(x)
        return {
            "left": self.left(F.relu(self.left_norm(x))),
            "right": self.right(F.relu(self.right_norm(x))),
        }


class ChannelBuffer(nn.Module):
    """A registered per-channel buffer multiplies the features."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5)
        self.out = block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stem(x) * self.scale)


class ParameterTwice(nn.Module):
    """One per-channel parameter is used on two different tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = block(3, 8), block(3, 8, 1)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))
        self.out = block(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.left(x) + self.shift, self.right(x) * self.shift], 1))


class StandardizedWeight(nn.Module):
    """A convolution whose weight is computed from its parameter, filter by filter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = block(3, 8), block(12, 8)
        self.weight = nn.Parameter(torch.randn(12, 8, 3, 3))
        self.gain = nn.Parameter(torch.rand(12, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self.out(F.relu(F.conv2d(self.stem(x), weight * self.gain, padding=1)))


class ChannelMean(nn.Module):
    """Spatial attention: the mean and maximum over channels gate the features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = block(3, 8), block(8, 8)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return self.out(x * torch.sigmoid(gate))


class CumulativeSum(nn.Module):
    """``cumsum`` over channels mixes them in an order that pruning would break."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = block(3, 8), block(8, 8), block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cumsum(self.body(self.stem(x)), 1))


class NoRule(nn.Module):
    """An operator without a rule: an unusual name of the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = block(3, 8), block(8, 8), block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.special.expit(self.body(self.stem(x))))
