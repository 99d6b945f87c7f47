"""Convolutions with a kernel for each example, computed as groups of one convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import disparse_structured as ds

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class CondConv(nn.Module):
    """Mixes the kernels of three experts for each example, as in EfficientNet-CondConv."""

    def __init__(self, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        self.sides = (inputs, outputs) if transposed else (outputs, inputs)
        self.transposed, self.outputs = transposed, outputs
        self.experts = nn.Parameter(torch.randn(3, *self.sides, 3, 3) / 10)
        self.route = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        mixed = self.route(x.mean((2, 3))).sigmoid() @ self.experts.view(3, -1)
        kernel = mixed.view(b * self.sides[0], self.sides[1], 3, 3)
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        return convolve(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b).view(b, self.outputs, h, w)


class Net(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mixed = nn.Conv2d(3, 8, 3, padding=1), CondConv(8, 12, transposed)
        self.body = nn.Conv2d(12, 16, 3, padding=1)
        self.seg, self.depth = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(self.mixed(self.stem(x).relu()).relu()).relu()
        return {"seg": self.seg(y), "depth": self.depth(y)}


@pytest.mark.parametrize("transposed", [False, True])
def test_their_units_are_the_same_for_every_number_of_examples(transposed: bool) -> None:
    model = Net(transposed).eval()
    one, two, five = (ds.analyse(model, IMAGES[:count]) for count in (1, 2, 5))

    assert "body" in {group.name for group in two.groups}
    assert {group.kind for group in two.groups} == {"channel"}
    assert one.fingerprint == two.fingerprint == five.fingerprint


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("options", [{}, {"method": ds.DiSparse(), "refit": None}], ids=["default", "votes"])
def test_they_are_pruned_with_data(transposed: bool, options: dict[str, Any]) -> None:
    result = ds.prune(Net(transposed).eval(), IMAGES, macs=0.6, **options)

    assert result.report.costs["macs"].ratio <= 0.6
    assert not result.report.refused
    assert result.model(IMAGES[:3])["seg"].shape == (3, 3, 8, 8)
