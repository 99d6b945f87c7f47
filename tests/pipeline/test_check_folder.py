"""``check_folder``: inputs that are not one batch of images, and ONNX files written after the folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.pipeline import check_folder
from tests.support import redundant


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


@pytest.fixture(scope="module")
def pruned() -> ds.PruningResult:
    return ds.prune(redundant.build(), redundant.images(16), macs=0.6, refit=None)


@pytest.fixture
def result(pruned: ds.PruningResult) -> ds.PruningResult:
    """A result of its own, which a test may change."""
    return copy.deepcopy(pruned)


def test_the_report_describes_what_is_exported_into_the_folder(
    result: ds.PruningResult, tmp_path: Path
) -> None:
    result.save(tmp_path)
    result.export(tmp_path / "model.onnx", single_file_bytes=0)
    assert (tmp_path / "model.onnx.data").is_file()
    assert [check.name for check in check_folder(tmp_path, redundant.build).checks if not check.passed] == []

    weights = tmp_path / "model.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    name, found = _failed(tmp_path)
    assert (name, found.partition("is")[0]) == ("ONNX file", "the SHA-256 of model.onnx ")
    weights.unlink()
    name, found = _failed(tmp_path)
    assert (name, found.partition(",")[0]) == ("ONNX file", "model.onnx.data")


def test_the_order_of_saving_and_exporting_does_not_matter(result: ds.PruningResult, tmp_path: Path) -> None:
    result.export(tmp_path / "model.onnx")
    result.save(tmp_path)
    assert [check.name for check in check_folder(tmp_path, redundant.build).checks if not check.passed] == []

    (tmp_path / "model.onnx").write_bytes(b"of another program")
    result.save(tmp_path)
    assert "report.json does not describe model.onnx" in _of_the_file(tmp_path)

    result.export(tmp_path / "model.onnx")
    with torch.no_grad():
        next(result.model.parameters()).add_(1)
    result.save(tmp_path)
    assert "report.json does not describe model.onnx" in _of_the_file(tmp_path)


def test_a_folder_with_other_weights_does_not_learn_of_the_file(
    result: ds.PruningResult, tmp_path: Path
) -> None:
    result.save(tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    with torch.no_grad():
        next(result.model.parameters()).add_(1)
    result.export(tmp_path / "model.onnx")
    assert (tmp_path / "report.json").read_bytes() == before


def test_a_damaged_folder_does_not_stop_an_export_into_it(result: ds.PruningResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    result.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()


def _of_the_file(folder: Path) -> str:
    """What was found about ``model.onnx``."""
    (check,) = [check for check in check_folder(folder).checks if check.name == "ONNX file"]
    return check.found


def _failed(folder: Path) -> tuple[str, str]:
    """Name and finding of the only check that fails."""
    (failed,) = [check for check in check_folder(folder).checks if check.passed is False]
    return failed.name, failed.found
