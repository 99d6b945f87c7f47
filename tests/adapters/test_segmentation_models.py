"""Models of segmentation-models-pytorch: their tasks, and the layers that they hold but never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.adapters.segmentation_models import prune, tasks_of
from disparse_structured.errors import LoadError, TaskError, UnsupportedModelError
from tests.support.plans import snapshot

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FAST: dict[str, Any] = {"method": ds.DiSparse(), "refit": None}


def pspnet() -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"psp_out_channels": 16, "aux_params": {"classes": 4}}
    return smp.PSPNet("resnet18", encoder_weights=None, classes=5, **options)


def test_what_never_runs_is_reported_and_dropped(tmp_path: Path) -> None:
    model = pspnet()
    before = snapshot(model)

    unused = ds.analyse(model, IMAGES, tasks_of(model)).unused
    result = prune(model, IMAGES, macs=0.7, drop_unused=True, **FAST)

    assert snapshot(model) == before
    assert [task.name for task in result.tasks] == ["masks", "labels"]
    assert [each.module for each in unused] == ["encoder.layer3", "encoder.layer4"]
    never_run = sum(p.numel() for each in unused for p in model.get_submodule(each.module).parameters())
    assert sum(each.parameters for each in unused) == never_run
    assert 0.9 < sum(each.share for each in unused) < 1

    assert result.report.dropped == unused
    assert result.report.unused == ()
    assert "dropped, because never used: encoder.layer3, encoder.layer4 (" in str(result.report)
    assert result.report.costs["parameters"].pruned == sum(p.numel() for p in result.model.parameters())
    assert result.report.costs["parameters"].dense == sum(p.numel() for p in model.parameters()) - never_run

    smaller = result.model.eval()
    sum(output.sum() for output in smaller.train()(IMAGES)).backward()
    assert all(p.grad is not None for p in smaller.parameters())
    smaller.eval()

    result.save(tmp_path)
    loaded = ds.load(tmp_path, pspnet)
    assert loaded.state_dict().keys() == smaller.state_dict().keys()
    assert all(map(torch.equal, loaded(IMAGES), outputs(smaller)))
    with pytest.raises(LoadError, match=r"has no module 'encoder.layer3'"):
        ds.load(tmp_path, lambda: nn.Linear(2, 2))


def outputs(model: nn.Module) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return tuple(model(IMAGES))


def test_a_model_without_a_classifier_has_one_task() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, decoder_pyramid_channels=8, classes=2)

    assert [task.name for task in tasks_of(model)] == ["masks"]


def test_what_is_no_such_model_or_task_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear comes from another library than segm"):
        prune(nn.Linear(2, 2), IMAGES, macs=0.5)
    with pytest.raises(TaskError, match=r"there is no task 'depth'.*The model has 'masks', 'labels'"):
        prune(pspnet(), IMAGES, ["depth"], macs=0.5)
    with pytest.raises(TaskError, match="tasks must be a list"):
        prune(pspnet(), IMAGES, "masks", macs=0.5)
