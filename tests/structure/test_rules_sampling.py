"""Operators that sample, scatter and gather: channels can be removed, positions are pinned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from disparse_structured.structure import analyse, count_macs
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task
from tests.support.plans import Case, random_keep, random_plan

TASK = [Task("out", ())]
IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = 1e-9


def warped(x: Tensor) -> Tensor:
    theta = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]], dtype=x.dtype)[None].repeat(len(x), 1, 1)
    return F.grid_sample(x, F.affine_grid(theta, [len(x), 1, 7, 7], align_corners=False), align_corners=False)


def boxes(x: Tensor) -> Tensor:
    corners = torch.tensor([1.0, 1.0, 9.0, 9.0], dtype=x.dtype).repeat(len(x), 1)
    return torch.cat([torch.arange(len(x))[:, None].to(x.dtype), corners], 1)


def aligned(x: Tensor) -> Tensor:
    return torchvision.ops.roi_align(x, boxes(x), (5, 5))


def pooled(x: Tensor) -> Tensor:
    return torchvision.ops.roi_pool(x, boxes(x), (5, 5))


def written(x: Tensor) -> Tensor:
    canvas = torch.zeros(x.shape[0], x.shape[1], 225, dtype=x.dtype)
    canvas[:, :, torch.arange(144)] = x.flatten(2)
    return canvas.view(x.shape[0], x.shape[1], 15, 15)


def scattered(x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    index = torch.arange(tokens.shape[2]).flip(0).expand(tokens.shape[0], tokens.shape[1], -1)
    return torch.zeros_like(tokens).scatter(2, index, tokens).view_as(x)


def gathered(x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    index = torch.arange(0, tokens.shape[2], 4).expand(tokens.shape[0], tokens.shape[1], -1)
    return tokens.gather(2, index).unflatten(2, (6, 6))


def added(x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    summed = torch.zeros(tokens.shape[0], tokens.shape[1], 36, dtype=x.dtype)
    return summed.index_add(2, torch.arange(tokens.shape[2]) % 36, tokens).unflatten(2, (6, 6))


def largest(x: Tensor) -> Tensor:
    return x * torch.max(x, dim=1, keepdim=True)[0].sigmoid()


def middle(x: Tensor) -> Tensor:
    return x - x.median(dim=1, keepdim=True).values


def ordered(x: Tensor) -> Tensor:
    return x.flatten(2).sort(2).values.cumsum(2).view_as(x)


def decoded_in_place(x: Tensor) -> Tensor:
    y = x.sigmoid()
    y[..., 0:2] = (y[..., 0:2] * 2.0 - 0.5) * 4.0
    y[..., 2:4] = (y[..., 2:4] * 2.0) ** 2
    return y.neg_().exp_()


def unpooled(x: Tensor) -> Tensor:
    values, positions = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, positions, 2)


def picked(x: Tensor) -> Tensor:
    return x.take_along_dim(x.argmax(3, keepdim=True), 3) - x.flatten(2).quantile(0.5, dim=2)[..., None, None]


def turned(x: Tensor) -> Tensor:
    return x.rot90(1, (2, 3)).swapdims(2, 3) + x.tile(1, 2)[..., :12].moveaxis(3, 2)


def put_together(x: Tensor) -> Tensor:
    first, second = torch.broadcast_tensors(x, x.mean((2, 3), keepdim=True))
    rows = torch.vstack([first, second])[len(x) :] + torch.dstack([first, second]).diff(dim=2)[:, :, :12]
    return torch.hstack([rows.flatten(2).transpose(1, 2)] * 2)[:, :144].transpose(1, 2).unflatten(2, (12, 12))


def normed(x: Tensor) -> Tensor:
    least, most = torch.aminmax(x, dim=1, keepdim=True)
    several = x.quantile(torch.tensor([0.2, 0.8], dtype=x.dtype), dim=1).sum(0)[:, None]
    return (
        x / (torch.linalg.norm(x, dim=1, keepdim=True) + most - least) + x.nansum(1, keepdim=True) + several
    )


def ranked(x: Tensor) -> Tensor:
    return (
        x.cummax(2).values
        + x.kthvalue(3, dim=3, keepdim=True).values
        + torch.bucketize(x, x.new_tensor([0, 1]))
    )


def replaced(x: Tensor) -> Tensor:
    return torch.slice_scatter(torch.select_scatter(x, x[:, :, 1], 2, 0), x[..., :2], 3, 4, 6)


HOW: dict[str, Callable[[Tensor], Tensor]] = {
    each.__name__: each
    for each in (
        warped, aligned, pooled, written, scattered, gathered, added, largest, middle, ordered,
        decoded_in_place, unpooled, picked, turned, put_together, normed, ranked, replaced,
    )
}  # fmt: skip


class Net(nn.Module):
    """``how`` applied between three convolutions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1)
        self.third, self.out = nn.Conv2d(10, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = HOW[self.how](self.second(torch.relu(self.first(x))))
        return self.out(torch.relu(self.third(torch.relu(y))))


class Deformable(nn.Module):
    """Deformable convolutions, modulated or not, grouped or not."""

    def __init__(self, groups: int, masked: bool) -> None:
        super().__init__()
        self.first, self.offset = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 18, 3, padding=1)
        self.mask = nn.Conv2d(8, 9, 3, padding=1) if masked else None
        self.deformed = torchvision.ops.DeformConv2d(8, 12, 3, padding=1, groups=groups)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        mask = None if self.mask is None else self.mask(y).sigmoid()
        return self.out(torch.relu(self.deformed(y, self.offset(y), mask)))


def case(model: nn.Module) -> Case:
    return Case.of(model.double().eval(), (IMAGES,), TASK)


@pytest.mark.parametrize("how", HOW)
def test_every_channel_can_be_removed_and_the_result_is_the_masked_twin(how: str) -> None:
    torch.manual_seed(0)
    found = case(Net(how))

    assert {group.name: group.units for group in found.structure.groups} == {
        "first": 8,
        "second": 10,
        "third": 6,
    }
    for seed in range(3):
        assert found.deviation(random_keep(found.structure, seed)) <= EXACT


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_deformable_convolution_is_a_convolution(groups: int, masked: bool) -> None:
    torch.manual_seed(0)
    found = case(Deformable(groups, masked))

    assert found.structure.units > 0
    for seed in range(3):
        keep = random_keep(found.structure, seed)
        assert found.deviation(keep) <= EXACT
    done = apply(found.model, random_plan(found.structure, 0), found.structure)
    layer = done.model.deformed
    assert (layer.out_channels, layer.in_channels) == (len(layer.weight), layer.weight.shape[1] * groups)
    predicted = found.structure.cost.macs.total(done.plan.keep(found.structure))
    assert count_macs(done.model, (IMAGES,)) == predicted


def test_the_largest_channels_position_pins_the_channels() -> None:
    class Position(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.second(torch.relu(self.first(x)))
            values, positions = y.max(dim=1, keepdim=True)
            return self.out(torch.relu(self.third(torch.relu(y + values + positions))))

    structure = analyse(Position("largest").double().eval(), (IMAGES,), TASK)
    assert {group.name for group in structure.groups} == {"first", "third"}
    assert "a position in it is computed" in {pin.reason for pin in structure.pinned}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_columns_of_a_table_whose_rows_are_gathered_in_bags_can_be_removed(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(20, 12, mode=mode), nn.ReLU(), nn.Linear(12, 3)).double().eval()
    words = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(0))
    structure = analyse(model, words, TASK)
    applied = apply(model, random_plan(structure, 1), structure)

    assert applied.refused == ()
    assert applied.verification is not None
    assert applied.verification.deviation["out"] <= EXACT
    assert applied.model[0].weight.shape == (20, applied.model[2].in_features)
    assert applied.model[2].in_features < 12
