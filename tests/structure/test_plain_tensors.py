"""Plain tensors that modules hold, such as a table of sinusoids, shrink with what they are added to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.structure import Form, analyse
from tests.support.plans import Case, random_keep

TASK = [ds.Task("out", ())]
TOKENS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Table(nn.Module):
    """A position table and a mask, neither in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(9.0)[:, None] / 10 ** torch.linspace(0, 3, 16)
        self.positions = torch.where(torch.arange(16) % 2 == 0, angles.sin(), angles.cos())[None]
        self.bias = torch.linspace(-1, 1, 6)
        self.stem, self.body, self.head = nn.Linear(5, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) + self.positions[:, : x.shape[1]].type_as(x)
        return self.head(torch.relu(self.body(y)) + self.bias.type_as(x)[:, None])


def test_the_table_is_cut_and_the_result_is_the_masked_twin() -> None:
    torch.manual_seed(0)
    found = Case.of(Table().double().eval(), (TOKENS,), TASK)
    assert {group.name: group.units for group in found.structure.groups} == {"stem": 16, "body": 12}

    for seed in range(3):
        keep = random_keep(found.structure, seed)
        pruned = found.pruned(keep)
        left = keep[found.structure.group("stem").slice]
        assert torch.equal(pruned.positions, found.model.positions[..., left])
        assert found.deviation(keep) <= 1e-9
    assert found.model.positions.shape == (1, 9, 16)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_it_is_saved_loaded_and_exported(form: Form, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Table().eval()
    tokens = TOKENS.float().repeat(8, 1, 1)
    structure = analyse(model, tokens[:2], ["output"], form=form)
    result = ds.prune(model, tokens, structure=structure, macs=0.5)

    assert result.report.costs["macs"].ratio <= 0.5
    result.save(tmp_path)
    loaded = ds.load(tmp_path, Table)
    expected, found = result.model(tokens), loaded(tokens)
    torch.testing.assert_close(found, expected)
    result.export(tmp_path / "model.onnx", dynamic_size=False)
