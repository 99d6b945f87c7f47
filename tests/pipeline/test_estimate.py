"""The estimate before a run, against what the run does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import disparse_structured as ds
from disparse_structured import progress
from disparse_structured.pipeline import Iterative
from disparse_structured.pipeline.method import Method


def build() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 2, 1)).eval()


IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Convolutions(TorchDispatchMode):
    """Counts the examples that convolutions compute, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.examples = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.examples += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "refit"),
    [
        (ds.Compensated(), ds.refits.LeastSquares()),
        (ds.Compensated(rounds=1), ds.refits.Affine()),
        (ds.DiSparse(), None),
        (Iterative(rounds=2), ds.refits.Affine()),
    ],
    ids=["compensated", "one round", "votes", "iterative"],
)
def test_the_passes_that_are_expected_are_those_that_are_made(
    method: Method, refit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    model = build()
    options: dict[str, Any] = {"macs": 0.5, "method": method, "refit": refit, "verify": False}
    with Convolutions() as counted:
        ds.prune(model, IMAGES, **options)
    made = counted.examples / 5

    capsys.readouterr()
    ds.prune(model, IMAGES, progress=True, **options)

    line = next(line for line in capsys.readouterr().err.splitlines() if "passes of one input" in line)
    said = int(line.partition("as much work as ")[2].partition(" ")[0].replace(",", ""))
    assert made / 3 < said < 3 * made, (said, made)
    assert line.startswith("disparse: about ")
    assert " of memory: " in line


def test_short_runs_and_quiet_runs_show_no_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ds.prune(build(), IMAGES, macs=0.5, method=ds.DiSparse(), refit=None, progress=True)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    ds.prune(build(), IMAGES, macs=0.5, method=ds.DiSparse(), refit=None)
    assert "passes of one input" not in capsys.readouterr().err


def test_a_loader_says_how_many_examples_it_holds_and_a_generator_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    votes: dict[str, Any] = {"macs": 0.5, "method": ds.DiSparse(), "refit": None, "progress": True}
    ds.prune(build(), DataLoader(TensorDataset(IMAGES), batch_size=8), **votes)
    assert "as much work as 64 passes" in capsys.readouterr().err
    ds.prune(build(), iter(IMAGES.split(8)), **votes)
    assert "passes of one input" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("distillation", "passes"),
    [({"steps": 10, "batch": 8}, 64 + 240), ({}, 64 + 3 * 600 * 16)],
    ids=["steps", "default"],
)
def test_a_distillation_is_counted(
    distillation: dict[str, int],
    passes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(ds.recovery.Distillation, "prepare", _Stopped.stop)
    recover = ds.recovery.Distillation(IMAGES, **distillation)
    with pytest.raises(_Stopped):
        ds.prune(build(), IMAGES, macs=0.5, method=ds.DiSparse(), refit=None, recover=recover, progress=True)
    assert f"as much work as {passes:,} passes" in capsys.readouterr().err


def test_the_minutes_of_a_distillation_are_added() -> None:
    assert ds.recovery.Distillation(IMAGES, minutes=2.5).seconds(0.01) == 150


class _Stopped(Exception):
    """Raised where the run would begin."""

    @classmethod
    def stop(cls, *_: object) -> None:
        raise cls
