"""Numbers of a pruned module that only other methods read and that still hold the dense size."""

from __future__ import annotations

import torch
from torch import nn

import disparse_structured as ds
from tests.support.fusing import Rep

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_they_are_listed_and_once_set_the_other_method_works() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Rep(3, 16), Rep(16, 32), nn.Conv2d(32, 4, 1)).eval()
    result = ds.prune(model, IMAGES, budget=ds.Budget(macs=0.5, round_to=1))

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


def test_a_number_that_a_scale_is_computed_from_is_not_listed() -> None:
    class LowRank(nn.Module):
        """An adapter whose scale is ``alpha / rank``, whatever is left of the rank."""

        def __init__(self) -> None:
            super().__init__()
            self.base, self.down = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3, bias=False)
            self.up = nn.Conv2d(12, 8, 1, bias=False)
            self.alpha, self.rank = 6, 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x)) * (self.alpha / self.rank)

    result = ds.prune(LowRank().eval(), IMAGES, macs=0.6, method=ds.DiSparse(), refit=None)

    assert result.model.rank == 12
    assert result.model.down.out_channels < 12
    assert result.report.stale == ()
