"""A factory whose model takes the weights but computes something different is noticed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import disparse_structured as ds

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    act = activation or nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 16, 3), act, nn.Conv2d(16, 8, 3), act, nn.Conv2d(8, 4, 1)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    ds.prune(net(), IMAGES, macs=0.5).save(path)
    return path


def test_the_same_model_is_loaded_without_a_word(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds.load(folder, net)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Identity(), nn.LeakyReLU(0.3)])
def test_another_activation_is_noticed(folder: Path, activation: nn.Module) -> None:
    with pytest.warns(UserWarning, match="does not compute what the saved model computed"):
        ds.load(folder, lambda: net(activation))


def test_training_and_saving_again_makes_no_other_model(tmp_path: Path) -> None:
    result = ds.prune(net(), IMAGES, macs=0.5)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1)
    result.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ds.load(tmp_path, net)
    torch.testing.assert_close(loaded(IMAGES), result.model(IMAGES))


def test_a_report_without_a_summary_is_read(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    report = json.loads((tmp_path / "report.json").read_text())
    del report["computes"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert isinstance(ds.load(tmp_path, lambda: net(nn.GELU())), nn.Module)
