"""Modules that never run are left out, and only those."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import UnsupportedModelError
from disparse_structured.structure import UnusedModule

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
FAST: dict[str, Any] = {"macs": 0.5, "method": ds.DiSparse(), "refit": None}


class Net(nn.Module):
    """Two layers that run; one that runs in train mode, one whose type is read, and three that never run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 16), nn.Linear(16, 2)
        self.auxiliary = nn.Linear(16, 3)
        self.looked_at = nn.Linear(4, 4)
        self.stages = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 5)])
        self.same = self.stages[1]
        self.late = nn.Sequential(nn.Linear(16, 7), nn.BatchNorm1d(7))
        self.count = 1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.first(x.to(self.looked_at.weight.dtype)))
        for stage in self.stages[: len(self.stages) - 1]:
            x = torch.relu(stage(x))
        return (self.out(x), self.auxiliary(x)) if self.training else (self.out(x),)


class Fails(Net):
    """Cannot run in train mode."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.training:
            raise ValueError("no targets were given")
        return super().forward(x)


def test_unused_modules_are_found_by_what_eval_and_train_mode_read() -> None:
    found = ds.analyse(Net().eval(), INPUTS).unused

    assert found[0] == UnusedModule("looked_at", 20, 20 / sum(p.numel() for p in Net().parameters()))
    assert [each.module for each in found] == ["looked_at", "stages.1", "late"]


def test_only_what_is_not_needed_is_dropped(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    state = copy.deepcopy(model.state_dict())

    result = ds.prune(model, INPUTS, drop_unused=True, **FAST)

    assert [each.module for each in result.report.dropped] == ["stages.1", "late"]
    assert [each.module for each in result.report.unused] == ["looked_at"]
    assert "dropped, because never used: stages.1, late (218 parameters" in str(result.report)
    assert "never used: looked_at (20 parameters" in str(result.report)
    smaller: Any = result.model
    assert len(smaller.stages) == 2
    assert smaller.same is smaller.stages[1] or not list(smaller.same.parameters())
    assert len(list(smaller.late)) == 2
    assert not any(name.startswith(("stages.1", "late", "same")) for name in smaller.state_dict())
    assert [tuple(each.shape) for each in smaller.train()(INPUTS)] == [(4, 2), (4, 3)]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    result.save(tmp_path)
    loaded = ds.load(tmp_path, Net)
    torch.testing.assert_close(loaded(INPUTS)[0], smaller.eval()(INPUTS)[0])


def test_the_budget_is_a_share_of_what_remains() -> None:
    model = Net().eval()

    result = ds.prune(model, INPUTS, drop_unused=True, parameters=0.6, method=ds.DiSparse(), refit=None)

    facts = result.report.costs["parameters"]
    dropped = sum(each.parameters for each in result.report.dropped)
    assert facts.dense == sum(p.numel() for p in model.parameters()) - dropped
    assert facts.ratio <= 0.6


def test_nothing_is_dropped_where_train_mode_is_unknown() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Fails fails in train mode .ValueError: no targets"):
        ds.prune(Fails().eval(), INPUTS, drop_unused=True, **FAST)
    result = ds.prune(Fails().eval(), INPUTS, **FAST)
    assert result.report.unused


def test_a_model_that_runs_everything_is_pruned_as_usual() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()

    result = ds.prune(model, INPUTS, drop_unused=True, **FAST)

    assert result.report.unused == result.report.dropped == ()
    assert "never run" not in str(result.report)


class Codes(nn.Module):
    """``decode`` is an entry point that ``forward`` never runs; ``forward`` writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.code = nn.Linear(6, 16), nn.Linear(16, 4)
        self.back, self.never = nn.Linear(4, 6), nn.Linear(6, 9)

    def decode(self, code: Tensor) -> Tensor:
        return self.back(code)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.wide(x.mul_(2)).relu())


def test_what_an_entry_point_runs_is_not_dropped_and_still_verified() -> None:
    torch.manual_seed(0)
    model = Codes().eval()
    entry_points = {"decode": (torch.randn(2, 4),)}
    structure = ds.analyse(model, INPUTS.clone()[:2], entry_points=entry_points)

    result = ds.prune(model, INPUTS.clone(), structure=structure, drop_unused=True, **FAST)

    assert [each.module for each in result.report.dropped] == ["never"]
    assert set(result.report.entry_points) == {"decode"}
    assert "entry point 'decode'" in str(result.report)
    smaller: Any = result.model
    assert smaller.decode(torch.randn(2, 4)).shape == (2, 6)
