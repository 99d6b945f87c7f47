"""The latency benchmark: what it compares, in which order, and its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.latency import __main__ as benchmark
from benchmarks.latency.cells import Cell, Row
from benchmarks.latency.networks import NETWORKS, images, network
from benchmarks.latency.variants import STOCK, VARIANTS, matching, random_plans, stock_pruned
from benchmarks.latency.views import document
from disparse_structured.structure import analyse, count_macs

CELL = Cell("test_resnet", images=4, share=0.85, plans=2, side=32)


def test_ten_networks_and_what_matters_most_is_run_first() -> None:
    assert len(NETWORKS) == 10
    cells = benchmark.cells(benchmark._parser().parse_args([]))
    assert len(cells) == len(set(cells)) == 40
    assert all(cell.first for cell in cells[:10])
    assert [cell.model for cell in cells[:10]] == list(NETWORKS)
    some = benchmark.cells(
        benchmark._parser().parse_args(["--models", "resnet18", "--threads", "2", "--batch", "8"])
    )
    assert some == [Cell("resnet18", 2, 8)]


def test_plans_are_random_and_reach_their_share() -> None:
    model = network("test_resnet", 32)
    structure = analyse(model, images(model, 2))
    shares = [
        structure.cost.macs.total(keep) / structure.cost.macs.dense for keep in random_plans(structure, 4)
    ]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.1)


def test_stock_keeps_widths_that_are_multiples_and_the_outputs() -> None:
    model = network("test_resnet", 32)
    inputs = (images(model, 1),)
    smaller = stock_pruned(model, inputs, 0.5)
    assert count_macs(smaller, inputs) < count_macs(model, inputs)
    with torch.no_grad():
        shapes = [{name: each.shape for name, each in net(*inputs).items()} for net in (model, smaller)]
    assert shapes[0] == shapes[1]
    convolutions = [each for each in smaller.backbone.modules() if isinstance(each, torch.nn.Conv2d)]
    assert all(each.out_channels % 8 == 0 for each in convolutions)


def test_the_share_that_takes_a_time_is_found_from_a_wrong_prediction() -> None:
    found = matching(0.5, lambda share: share, lambda share: 0.1 + share**2)
    assert found.value == pytest.approx(0.5, rel=0.03)


def test_the_page_says_what_was_found_and_what_failed(tmp_path: Path) -> None:
    point = {"share": 0.6, "lower": 0.59, "upper": 0.61, "macs": 0.5}
    slow = {**point, "share": 1.1, "upper": 1.2}
    found = Row(
        CELL,
        settings=CELL.settings,
        stage="",
        seconds={"table": 12.0},
        dense_ms=0.4,
        measured=800,
        machine={"cpu": "AMD EPYC"},
        asked=0.5,
        predicted=0.5,
        reached=0.51,
        exports=2,
        points={**dict.fromkeys(VARIANTS, point), "MACs": slow},
        equal={
            name: {**point, "worst": 0.1 * (1 + place), "mean": 0.1} for place, name in enumerate(VARIANTS)
        },
        plans=[{**point, "predicted": 0.63}, {**point, "predicted": 0.9}],
    )
    failed = replace(Row(Cell("none")), failures={"build": "RuntimeError: Unknown model (none)"})
    page = document([found, failed])
    assert "| faster than dense after a default call | 1 of 1 | all |" in page
    assert "| random plans predicted within 10 % | 50.0% of 2 | 95 % |" in page
    assert "*0.91 × (0.45)*" in page
    assert "| 0.50 × |" in page
    assert "none, threads 1, batch 1: build: RuntimeError: Unknown model (none)" in page
    assert STOCK in page
    space = benchmark.Workspace(tmp_path / "rows", Row, Cell, benchmark.MEASURE)
    space.shelf.put(found)
    written = benchmark.write(space, tmp_path / "page")
    assert "(latency-speed.png)" in written.read_text()
    assert (tmp_path / "page" / "latency-predicted.png").stat().st_size > 1000
