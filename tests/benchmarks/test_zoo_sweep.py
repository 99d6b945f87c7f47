"""The sweep over networks from other libraries: its list, one small network, and its page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.harness.row import decode, encode
from benchmarks.zoo_sweep import __main__ as sweep
from benchmarks.zoo_sweep.cells import Cell, Row
from benchmarks.zoo_sweep.measure import measure
from benchmarks.zoo_sweep.networks import networks


def test_a_hundred_networks_of_four_libraries() -> None:
    found = networks()
    assert len(found) >= 100
    assert {name.partition("/")[0] for name in found} == {"torchvision", "smp", "ultralytics", "transformers"}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The rows that a sweep of one network would keep."""
    kept: list[Row] = []
    measure(Cell("torchvision/swin_v2"), kept.append, onnx=False)
    return kept


def test_a_network_is_measured_stage_by_stage(rows: list[Row]) -> None:
    row = rows[-1]
    assert [each.stage for each in rows] == [
        "build", "structure", "surgery", "counting", "untouched", "",
    ]  # fmt: skip
    assert row.sound
    assert row.wide
    assert row.twin is not None
    assert row.twin <= 1e-9
    assert row.counted == row.predicted
    assert "train mode" in row.beyond
    assert not row.refused
    assert decode(encode(row), Row, Cell).twin == row.twin


def test_what_fails_is_named_on_the_page(rows: list[Row]) -> None:
    missing = measure(Cell("torchvision/none"), lambda row: None)
    assert missing.verdict == "build: KeyError: 'torchvision/none'"
    page = sweep.document([replace(rows[-1], first_try="sound"), missing])
    assert "| sound as module | 1 of 1 |" in page
    assert "`torchvision/none`" in page
    assert "build: KeyError" in page
