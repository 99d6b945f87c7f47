"""Modules that never ran and that read a pruned width are warned about by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import DisparseWarning
from disparse_structured.structure import UnusedModule

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FAST: dict[str, Any] = {"macs": 0.5, "method": ds.DiSparse(), "refit": None}


class ByName(nn.Module):
    """``forward`` takes the name of one task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1))
        self.heads = nn.ModuleDict({"seg": nn.Conv2d(24, 4, 1), "depth": nn.Conv2d(24, 1, 1)})

    def forward(self, x: Tensor, task: str = "seg", scale: float = 1.0) -> Tensor:
        return self.heads[task](self.trunk(x).relu()) * scale


def test_a_head_that_another_task_runs_is_named_with_what_helps(tmp_path: Path) -> None:
    model = ByName().eval()
    with pytest.warns(DisparseWarning) as caught:
        result = ds.prune(model, IMAGES, **FAST)

    (said,) = [str(each.message) for each in caught]
    assert said.startswith("modules that never ran keep their dense size, and fail if they are called")
    assert "read a width that was pruned: heads.depth." in said
    assert "forward was run with task='seg'" in said
    assert "scale" not in said
    assert "entry_points=" in said
    assert caught[0].filename == __file__
    assert [each.unfit for each in result.report.unused] == [True]
    shown = " ".join(str(result.report).split())
    assert "heads.depth (25 parameters" in shown
    assert "fail if they are called" in shown
    assert "leaves these out" not in shown
    result.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["unused"][0]["unfit"] is True

    entry_points = {"depth": lambda model, x: model(x, task="depth")}
    structure = ds.analyse(model, IMAGES[:2], entry_points=entry_points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        followed = ds.prune(model, IMAGES, structure=structure, **FAST)
    assert followed.model(IMAGES, task="depth").shape == (16, 1, 8, 8)


class Spares(nn.Module):
    """``spare`` never runs."""

    def __init__(self, spare: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 8 * 8, 2)
        self.spare = spare

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().flatten(1))


@pytest.mark.parametrize(
    ("spare", "unfit"),
    [
        (nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)), True),
        (nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1)), True),
        (nn.LayerNorm(16), True),
        (nn.Linear(16 * 8 * 8, 3), True),
        (nn.ModuleDict({"low": nn.Conv2d(3, 8, 1), "high": nn.Conv2d(16, 8, 1)}), True),
        (nn.Sequential(nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)), False),
        (nn.Conv2d(3, 16, 1), False),
        (nn.Embedding(16, 16), False),
        (nn.Conv2d(17, 2, 1), False),
    ],
)
def test_what_a_module_reads_tells_by_its_size(spare: nn.Module, unfit: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DisparseWarning)
        result = ds.prune(Spares(spare).eval(), IMAGES, **FAST)

    names = {each.module for each in result.report.unused if each.unfit}
    assert names == ({"spare"} if unfit else set())
    assert len([each for each in caught if each.category is DisparseWarning]) == unfit
    assert ("leaves these out" in str(result.report)) is not unfit


class GrowsSmall(nn.Module):
    """``up`` runs for small images only, and reads the width of ``stem``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 2, 2)
        self.body, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return self.head(self.body(self.up(y) if x.shape[-1] < 8 else y).relu())


def test_a_module_that_verification_runs_at_another_size_is_not_unfit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DisparseWarning)
        result = ds.prune(GrowsSmall().eval(), IMAGES, **FAST)

    assert [each.group for each in result.report.refused] == ["stem"]
    assert result.model.body.out_channels < 16
    assert "the size 4x4" in result.report.verification.beyond
    assert result.model(IMAGES[..., :4, :4]).shape == (16, 2, 8, 8)


def test_a_module_is_unfit_only_if_a_width_that_it_reads_was_pruned() -> None:
    model = ByName().eval()
    budget = ds.Budget(macs=0.9, protected=("heads.seg",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ds.prune(model, IMAGES, budget=budget, method=ds.DiSparse(), refit=None)

    assert result.model(IMAGES, task="depth").shape == (16, 1, 8, 8)
    assert result.report.unused == (UnusedModule("heads.depth", 25, result.report.unused[0].share),)
