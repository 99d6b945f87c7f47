"""Grouped matrix products of mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.structure.counting import count_macs

TOKENS = torch.randn(2, 6, 16)


class Experts(nn.Module):
    """Each token goes to one of three gated experts; ``torch._grouped_mm`` multiplies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.router = nn.Linear(16, 32), nn.Linear(16, 3)
        self.up = nn.Parameter(torch.randn(3, 32, 2 * 48) / 6)
        self.down = nn.Parameter(torch.randn(3, 48, 24) / 6)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        chosen, order = torch.sort(self.router(x).argmax(-1))
        ends = (chosen[None] <= torch.arange(3)[:, None]).sum(1, dtype=torch.int32)
        rows = self.first(x).relu()[order]
        gate, up = torch._grouped_mm(rows, self.up, offs=ends).chunk(2, dim=-1)
        found = torch._grouped_mm(gate.sigmoid() * up, self.down, offs=ends)
        return self.last(torch.zeros_like(found).index_add(0, order, found)).unflatten(0, (-1, 6))


def test_their_widths_are_removed_and_the_result_is_the_masked_twin() -> None:
    model = Experts().eval()
    structure = ds.analyse(model, TOKENS)
    assert {group.name: (group.units, group.multiple) for group in structure.groups} == {
        "up": (48, 8),
        "down": (24, 8),
        "first": (32, 8),
    }
    result = ds.prune(model, TOKENS, structure=structure, macs=0.5, method=ds.DiSparse(), refit=None)

    assert not result.report.refused
    assert result.report.verification.verified
    assert result.model.up.shape[2] < 96
    assert result.model.up.shape[2] == 2 * result.model.down.shape[1]
    assert all(size % 8 == 0 for size in (*result.model.up.shape[1:], *result.model.down.shape[1:]))


def test_their_macs_are_counted_as_predicted() -> None:
    model = Experts().eval()
    structure = ds.analyse(model, TOKENS)
    assert count_macs(model, (TOKENS,)) == structure.cost.macs.dense
    assert structure.cost.macs.dense == 6 * (16 * 32 + 16 * 3 + 32 * 96 + 48 * 24 + 24 * 5)
