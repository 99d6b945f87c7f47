"""``check_folder`` on networks whose inputs are not one batch of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.pipeline import check_folder


class Shared(nn.Module):
    """Reads a table of three dimensions that all examples share, by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(12, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor, *, table: Tensor) -> Tensor:
        return self.narrow(self.wide(x).relu()) @ table.sum(0).T


def test_a_shared_input_is_not_taken_for_a_batch(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return Shared().eval()

    data = {"x": torch.rand(24, 12), "table": torch.rand(3, 5, 8)}
    result = ds.prune(build(), data, macs=0.6, method=ds.DiSparse())
    result.save(tmp_path)
    result.export(tmp_path / "model.onnx")

    found = {check.name: check for check in check_folder(tmp_path, build).checks}
    assert found["ONNX parity"].passed, found["ONNX parity"].found
    assert found["ONNX parity"].found.endswith("batches of 1, 2, 3)")
