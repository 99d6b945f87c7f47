"""Layers whose rows are chosen by value: what they cost, and what is pruned around them."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import disparse_structured as ds
from disparse_structured.structure import analyse, count_macs
from tests.support.experts import NAMES, routed

METHODS = {"default": ds.Compensated(), "votes": ds.DiSparse()}


def macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 2 / len(inputs[0])


@pytest.mark.parametrize("name", NAMES)
def test_their_cost_is_that_of_the_rows_that_the_examples_have(name: str) -> None:
    model, data = routed(name)
    inputs = (data[:5],)

    assert analyse(model, inputs).cost.macs.dense == pytest.approx(macs(model, inputs))
    assert count_macs(model, inputs) == round(macs(model, inputs))


@functools.cache
def pruned(name: str, method: str = "default") -> tuple[ds.PruningResult, tuple[torch.Tensor]]:
    """The network of ``name`` at 80 % of its MACs, and the examples that these are counted on."""
    model, data = routed(name)
    structure = analyse(model, data[:16])
    return ds.prune(model, data, structure=structure, macs=0.8, method=METHODS[method]), (data[:16],)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("best_two", "default"),
        ("images", "votes"),
        *(
            pytest.param(name, method, marks=pytest.mark.sweep)
            for name, method in itertools.product(NAMES, METHODS)
            if name not in ("above_a_threshold", "shared")  # these may choose fewer or more rows in all
        ),
    ],
)
def test_a_budget_holds_for_the_counted_network(name: str, method: str) -> None:
    result, examples = pruned(name, method)
    cost = result.report.costs["macs"]

    assert cost.agrees
    assert cost.counted is not None
    assert cost.counted <= 0.8 * cost.dense
    assert cost.counted == round(macs(result.model, examples))
    assert result.report.verification.verified


def test_other_rows_of_the_pruned_network_are_no_fault_of_the_prediction() -> None:
    result, examples = pruned("above_a_threshold")
    cost = result.report.costs["macs"]
    text = " ".join(str(result.report).split())

    assert cost.predicted <= 0.8 * cost.dense
    assert cost.counted == round(macs(result.model, examples))
    assert not cost.agrees
    assert "Please report" not in text
    assert "how many rows some layers read depends on the data" in text


def test_a_saved_network_is_loaded(tmp_path: Path) -> None:
    result, examples = pruned("best_two")
    result.save(tmp_path / "small")
    loaded = ds.load(tmp_path / "small", lambda: routed("best_two")[0])
    with torch.no_grad():
        found, wanted = loaded(*examples), result.model(*examples)

    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_the_exporter_assumes_of_such_sizes_does_not_matter() -> None:
    class Boxes(nn.Module):
        """Keeps the best of boxes that overlap; torch.export assumes that at least two are left."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            corners = self.last(self.first(x).relu())
            kept = torchvision.ops.nms(
                torch.zeros_like(corners) + x.new_tensor([0, 0, 1, 1]), corners[:, 0], 0.5
            )
            return {"corners": corners, "kept": corners[kept]}

    torch.manual_seed(0)
    result = ds.prune(Boxes().eval(), torch.randn(16, 4), ["corners"], macs=0.5)

    assert result.report.verification.verified
    assert result.model(torch.randn(4, 4))["kept"].shape == (1, 4)
