"""The comparison of INT8 files, on a small network in which one task does not tolerate INT8."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import int8
from benchmarks.data import Batch
from benchmarks.harness.files import write_json
from benchmarks.tables.cells import Figures
from benchmarks.tables.problems import Figure
from tests.support.int8 import Lopsided

FIGURES = (
    Figure("rough", "fit", "rough", True, 3),
    Figure("fine", "error", "fine", False, 3),
)


def test_losses_are_relative_and_have_a_direction() -> None:
    before = {"rough": {"fit": 0.8}, "fine": {"error": 2.0}}
    after = {"rough": {"fit": 0.6}, "fine": {"error": 1.0}}
    assert int8.losses(FIGURES, before, after) == pytest.approx({"rough": 0.25, "fine": -0.5})


def test_every_file_is_evaluated_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = Lopsided().eval()
    images = torch.randn(16, 3, 12, 12)
    with torch.no_grad():
        batch = {"image": images, **model(images)}

    def measure(network: nn.Module, batches: Sequence[Batch] | None) -> Figures:
        found = network(batch["image"])
        off = {task: float((found[task] - batch[task]).norm() / batch[task].norm()) for task in found}
        return {"rough": {"fit": 1 - off["rough"]}, "fine": {"error": 1 + off["fine"]}}

    row = int8.compare(model, images, [batch], measure, FIGURES, (1e-9, 0.2), rounds=2)

    files = row["files"]
    assert files["float"]["worst"] == 0
    assert files["all INT8"]["worst"] > 0.5 > 0.2 >= files["ours, 20 %"]["worst"] - 1e-6
    assert files["all INT8"]["layers"] == "4 of 4"
    assert row["without"] == ["ours, 1e-07 %"]
    installed = importlib.util.find_spec("nncf") is not None
    assert ("NNCF accuracy control" in files) == installed
    page = int8.page({"networks": {"lopsided": row}, "nncf": installed, "machine": {}, "images": 16})
    assert page.count("| lopsided |") == len(files) + 1
    assert ("NNCF was not installed." in page) != installed


def test_a_run_goes_on_after_the_networks_that_are_written(tmp_path: Path) -> None:
    path = tmp_path / "int8.json"
    assert int8.known(path, "one") == {}
    write_json(path, {"settings": "one", "networks": {"small": {"files": {}}}})
    assert int8.known(path, "one") == {"small": {"files": {}}}
    assert int8.known(path, "another") == {}
