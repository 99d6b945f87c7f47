"""How many examples a call reads where nothing is said: few of a large network, more of a small one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.pipeline import inputs

INPUTS = torch.randn(320, 6, generator=torch.Generator().manual_seed(0))
QUICK: Any = {"method": ds.Compensated(rounds=1, left=(0.5,), judged=4), "verify": False}


def build(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def read(data: Any, model: nn.Module | None = None, **options: Any) -> int:
    found = ds.prune(model or build(), data, macs=0.5, **{**QUICK, **options})
    assert found.report.refit is not None
    assert found.report.deviation is not None
    assert found.report.deviation.samples == found.report.refit.samples
    return found.report.refit.samples


def test_a_small_network_reads_256() -> None:
    assert read(INPUTS) == 256
    assert read(INPUTS[:100]) == 100
    assert read(INPUTS[:64]) == 64


def test_what_is_said_holds() -> None:
    assert read(INPUTS, samples=64) == 64
    assert read(INPUTS, samples=300) == 300


def test_a_large_network_reads_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over 100 examples, or over 10, is as much work as is allowed."""
    macs = 6 * 16 + 16 * 3
    for passes, expected in ((100, 100), (10, 64)):
        monkeypatch.setattr(inputs, "_SMALL_WORK", passes * macs)
        assert read(INPUTS) == expected


def test_a_generator_is_read_on() -> None:
    def batches() -> Iterator[Tensor]:
        yield from INPUTS.split(10)

    assert read(batches()) == 256


@pytest.mark.parametrize("bad", [INPUTS[64:, :3], torch.full((50, 6), torch.nan)], ids=["shape", "NaN"])
def test_examples_that_need_not_be_read_do_no_harm(bad: Tensor) -> None:
    assert read([INPUTS[:64], bad]) == 64


def test_equal_examples_are_mentioned_once() -> None:
    with pytest.warns(ds.errors.DisparseWarning, match="all 64 examples are equal") as found:
        read(torch.ones(300, 6), method=ds.DiSparse())
    assert len(found) == 1


def test_votes_without_a_refit_read_no_more() -> None:
    found = ds.prune(build(), INPUTS, macs=0.5, method=ds.DiSparse(), refit=None, verify=False)
    assert found.report.deviation is not None
    assert (found.report.samples, found.report.deviation.samples) == (320, 64)
