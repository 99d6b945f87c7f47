"""Regions of ``forward`` under autocast or without gradients are parts of the graph, with the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import ExportError
from disparse_structured.export import export_onnx
from disparse_structured.graph.capture import capture
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.structure import Form, Structure

INPUTS = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def half(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled)


class Net(nn.Module):
    """Convolutions in bfloat16, and two heads in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.near, self.far = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        with half():
            return self.second(self.norm(self.first(x)).relu_()).relu()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.features(x).float()
        return {"near": self.near(y), "far": self.far(y)}


class Nested(Net):
    """Leaves autocast for one layer, enters it again, and has a region without gradients inside."""

    def features(self, x: Tensor) -> Tensor:
        with half():
            y = self.first(x)
            with half(False):
                y = self.norm(y.float())
                with half():
                    y = self.second(y)
            with torch.no_grad():
                scale = self.second(y).mean((2, 3), keepdim=True)
        return y * scale


class Mixes(Net):
    """Softmax is computed in float32, and what is joined gets the wider type."""

    def features(self, x: Tensor) -> Tensor:
        with half():
            y = self.first(x)
            weights = y.flatten(2).softmax(-1)
            z = torch.einsum("bij,bkj->bik", weights, y.flatten(2)).mean(-1)
            joined = torch.cat([y, z[:, :, None, None].float().expand_as(y)], 1)
            return self.second(joined[:, :16] + joined[:, 16:])


@pytest.mark.parametrize("kind", [Net, Nested, Mixes])
def test_the_graph_computes_the_same_bits(kind: type[Net]) -> None:
    model = kind().eval()
    tasks = [ds.Task("near", "near"), ds.Task("far", "far")]

    captured = capture(model, (INPUTS,), tasks)

    assert "autocast" not in str(captured.graph)
    found = captured.run(detached_tensors(model), (INPUTS,))
    with torch.no_grad():
        wanted = model(INPUTS)
    assert all(torch.equal(found[task][0], wanted[task]) for task in wanted)


def analyzed(model: nn.Module, form: Form) -> Structure:
    return ds.analyse(model, INPUTS[:2], form=form)


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("method", [ds.Compensated(), ds.DiSparse()])
def test_layers_under_autocast_are_pruned(form: Form, method: ds.Compensated) -> None:
    model = Net().eval()

    result = ds.prune(model, INPUTS, macs=0.5, method=method, structure=analyzed(model, form))

    assert result.report.costs["macs"].pruned <= 0.5 * result.report.costs["macs"].dense
    with torch.no_grad():
        found = result.model(INPUTS[:2])
    assert found["near"].dtype == torch.float32


def test_an_export_that_autocast_prevents_says_what_to_do(tmp_path: Path) -> None:
    picks = {"near": lambda found: found["near"]}
    with pytest.raises(ExportError, match=r"bfloat16.* turn torch\.autocast off in forward"):
        export_onnx(Net().eval(), INPUTS[:2], tmp_path / "m.onnx", outputs=picks, dynamic_batch=False)
