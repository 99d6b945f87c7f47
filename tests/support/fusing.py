"""A block with a method that fuses its branches, and reads numbers that ``forward`` does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rep(nn.Module):
    """Two branches that ``fuse`` makes one layer; only ``fuse`` reads the numbers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, 3
        self.three, self.one = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)
        self.fused: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.three(x) + self.one(x) if self.fused is None else self.fused(x))

    def fuse(self) -> None:
        fused = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, padding=1)
        fused.weight.data.copy_(self.three.weight + F.pad(self.one.weight, [1, 1, 1, 1]))
        assert self.three.bias is not None
        assert self.one.bias is not None
        fused.bias.data.copy_(self.three.bias + self.one.bias)  # type: ignore[union-attr]
        self.fused = fused
        del self.three, self.one
