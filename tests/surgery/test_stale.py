"""Numbers of a pruned module that only other methods read and that still hold the dense size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import disparse_structured as ds

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Rep(nn.Module):
    """Two branches that can be fused into one layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, 3
        self.three, self.one = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)
        self.fused: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.three(x) + self.one(x) if self.fused is None else self.fused(x))

    def fuse(self) -> None:
        fused = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        fused.weight.data.copy_(self.three.weight + F.pad(self.one.weight, [1, 1, 1, 1]))
        assert self.three.bias is not None
        assert self.one.bias is not None
        fused.bias.data.copy_(self.three.bias + self.one.bias)
        self.fused = fused


def test_they_are_listed_and_once_set_the_other_method_works() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Rep(3, 16), Rep(16, 32), nn.Conv2d(32, 4, 1)).eval()
    result = ds.prune(model, IMAGES, macs=0.5)

    assert result.report.stale == ("0.out_channels", "1.in_channels", "1.out_channels")
    assert "still hold the dense size: 0.out_channels, 1.in_channels" in " ".join(str(result.report).split())
    expected = result.model(IMAGES)
    for name in result.report.stale:
        path, _, attribute = name.rpartition(".")
        block = result.model.get_submodule(path)
        setattr(block, attribute, getattr(block.three, attribute))
    for block in result.model[:2]:
        block.fuse()
    torch.testing.assert_close(result.model(IMAGES), expected)


def test_what_follows_by_itself_is_not_listed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    assert ds.prune(model, IMAGES, macs=0.5).report.stale == ()
