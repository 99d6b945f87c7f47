"""A trained network is saved as what it is: by its result, or back into the folder it was loaded from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import SaveError


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()


@pytest.fixture
def result() -> Any:
    return ds.prune(build(), torch.randn(32, 4, generator=torch.Generator().manual_seed(1)), macs=0.5)


def trained(model: nn.Module) -> None:
    finetuning = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(3, 4)).square().mean().backward()
    finetuning.step()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_result_that_was_not_trained_keeps_its_deviations(result: Any, tmp_path: Path) -> None:
    result.model.train()
    result.save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["deviation"]["final"].keys() == {"output"}
    assert "weights_changed" not in report


def test_a_result_that_was_trained_says_so(result: Any, tmp_path: Path) -> None:
    trained(result.model)
    result.save(tmp_path / "small", training={"losses": {"output": [0.5, 0.25]}})
    result.to_html(tmp_path / "page.html")
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["deviation"] is None
    assert report["weights_changed"] is True
    assert report["training"] == {"losses": {"output": [0.5, 0.25]}}
    assert "trained after pruning" in (tmp_path / "page.html").read_text()
    loaded = ds.load(tmp_path / "small", build)
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), result.model.eval()(x), rtol=0, atol=0)


def test_a_loaded_network_is_saved_back(result: Any, tmp_path: Path, recwarn: Any) -> None:
    result.save(tmp_path)
    ds.pipeline.check_folder(tmp_path, build)
    model = ds.load(tmp_path, build)
    trained(model)
    ds.pipeline.save_back(tmp_path, model)
    again = ds.load(tmp_path, build)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]
    assert ds.pipeline.check_folder(tmp_path, build).passed


def test_another_network_is_not_saved_back(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SaveError, match=r"'0\.bias' is \[16\], in .* it is \[8\]"):
        ds.pipeline.save_back(tmp_path, build())
    assert contents(tmp_path) == before


def test_files_are_replaced_together_or_not_at_all(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json" / "in the way").mkdir(parents=True)
    before = contents(tmp_path)
    trained(result.model)
    with pytest.raises(SaveError, match=r"report\.json"):
        result.save(tmp_path)
    assert contents(tmp_path) == before
