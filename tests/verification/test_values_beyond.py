"""Values at other batches, sizes and lengths are compared with the masked twin, not shapes alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply
from tests.support.plans import random_plan

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """Two convolutions and a head.

    ``larger`` is what images above 20 pixels do to the first map, ``smaller`` what those below 12 do.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 1)

    def larger(self, y: Tensor) -> Tensor:
        return y

    def smaller(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = self.larger(y) if x.shape[-1] > 20 else y
        y = self.smaller(y) if x.shape[-1] < 12 else y
        return self.head(torch.relu(self.body(y)))


class CountsEight(Plain):
    """A number of channels that only larger images use; it cannot follow the width."""

    def larger(self, y: Tensor) -> Tensor:
        return y * y[:, :8].sum(1, keepdim=True)


class Mirrors(Plain):
    """Larger images add each channel to another one, which is then no unit of its own."""

    def larger(self, y: Tensor) -> Tensor:
        first, last = y.chunk(2, 1)
        return y + torch.cat([last, first], 1)


class CountsExamples(Plain):
    """The same as ``CountsEight``, for batches of more than two examples."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = y * y[:, :8].sum(1, keepdim=True) if len(x) > 2 else y
        return self.head(torch.relu(self.body(y)))


class GrowsSmall(Plain):
    """A layer that only smaller images use."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)

    def smaller(self, y: Tensor) -> Tensor:
        return self.up(y)


class CountsEightInSmall(Plain):
    """A number of channels that only smaller images use."""

    def smaller(self, y: Tensor) -> Tensor:
        return y * y[:, :8].sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GrowsSmall, "with the size 8x8, it raises RuntimeError: .*to have 16 channels"),
        (CountsEightInSmall, r"with the size 8x8, task 'output' deviates from the masked twin by \d"),
        (CountsEight, r"with the size 48x48, task 'output' deviates from the masked twin by \d"),
        (Mirrors, r"with the size 48x48, the units of 'stem' depend on one another in other ways"),
        (CountsExamples, r"with a batch of 3, task 'output' deviates from the masked twin by \d"),
    ],
)
def test_what_is_right_for_the_example_only_is_left_whole_with_the_reason(
    kind: type[Plain], said: str
) -> None:
    model = kind().eval()
    structure = analyse(model, IMAGES)
    assert len(structure.groups) == 2
    done = apply(model, random_plan(structure, 0), structure)

    assert [refusal.group for refusal in done.refused] == ["stem"]
    assert re.match(said, done.refused[0].reason)
    assert done.model.get_parameter("stem.weight").shape[0] == 16
    assert done.model.get_parameter("body.weight").shape[0] < 12
    for side in (8, 16, 48):
        images = torch.rand(3, 3, side, side)
        assert done.model(images).shape == model(images).shape


def vit() -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": 32, "dynamic_img_size": True, "num_classes": 5}
    return timm.create_model("test_vit", pretrained=False, **options).eval()


@pytest.mark.parametrize("build", [Plain, vit], ids=["plain", "vit"])
def test_networks_that_follow_are_compared_by_value(build: Any) -> None:
    model = build().eval()
    side = 16 if build is Plain else 32
    images = torch.rand(2, 3, side, side)
    structure = analyse(model, images)
    done = apply(model, random_plan(structure, 0), structure)

    assert not done.refused
    assert done.verification is not None
    larger, smaller = f"the size {side + 32}x{side + 32}", f"the size {side // 2}x{side // 2}"
    if build is vit:  # it resizes its position table by other numbers
        smaller += " (only its shapes were compared)"
    assert done.verification.beyond == ("a batch of 3", larger, smaller, "train mode")


class FixedSteps(Plain):
    """Images are halved three times and doubled again, so that their sides must be multiples of eight."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for _ in range(3):
            y = nn.functional.max_pool2d(y, 2)
        return nn.functional.interpolate(y, scale_factor=8.0) + x[:, :1]


def test_a_smaller_size_is_one_that_the_dense_model_takes() -> None:
    model, images = FixedSteps().eval(), torch.rand(2, 3, 40, 40)
    structure = analyse(model, images)
    done = apply(model, random_plan(structure, 0), structure)

    assert done.verification is not None
    assert [each for each in done.verification.beyond if "the size" in each] == [
        "the size 72x72",
        "the size 8x8 (only its shapes were compared)",
    ]


class Words(nn.Module):
    """A layer that only short texts run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.wide, self.out = nn.Embedding(50, 16), nn.Linear(16, 24), nn.Linear(24, 3)
        self.short = nn.Linear(24, 24)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.wide(self.words(ids)).relu()
        return self.out((self.short(y).tanh() if ids.shape[1] < 5 else y).mean(1))


def test_a_layer_of_shorter_texts_is_found() -> None:
    model, ids = Words().eval(), torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    structure = analyse(model, ids)
    done = apply(model, random_plan(structure, 0), structure)

    assert [refusal.group for refusal in done.refused] == ["wide"]
    assert "with the length 4, it raises RuntimeError" in done.refused[0].reason
    assert done.model(ids[:, :4]).shape == (2, 3)


@torch.library.custom_op("disparse_tests::without_rule", mutates_args=())
def without_rule(y: Tensor) -> Tensor:
    return y.sin()


@without_rule.register_fake
def _(y: Tensor) -> Tensor:
    return torch.empty_like(y)


class Unknown(Plain):
    """Larger images go through an operator without a rule, so that the twin is unknown there."""

    def larger(self, y: Tensor) -> Tensor:
        return without_rule(y)


def test_what_could_not_be_compared_is_said() -> None:
    model, budget = Unknown().eval(), ds.Budget(macs=0.6, round_to=1)
    result = ds.prune(model, IMAGES.repeat(8, 1, 1, 1), budget=budget, method=ds.DiSparse(), refit=None)
    assert not result.report.refused
    beyond = result.report.verification.beyond
    larger = "the size 48x48 (only its shapes were compared)"
    assert beyond == ("a batch of 3", larger, "the size 8x8", "train mode")
    assert "(only its shapes were compared)" in str(result.report)
