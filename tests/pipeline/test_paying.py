"""INT8 only where it saves time: the times of single layers and of conversions between INT8 and float."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from disparse_structured.export import export_onnx
from disparse_structured.export.int8 import Candidate, candidate_of
from disparse_structured.latency import OnnxRuntime, Table
from disparse_structured.latency.int8 import int8_times
from disparse_structured.pipeline import quantize
from disparse_structured.pipeline.paying import Paying


def of_a_chain(as_float: dict[str, float], int8: dict[str, float], change: float) -> Paying:
    """Layers one after the other; ``change`` milliseconds wherever numbers change their kind."""
    names = list(as_float)

    def between(layers: Collection[str]) -> float:
        kinds = [False, *(name in layers for name in names), False]
        return change * sum(one != other for one, other in itertools.pairwise(kinds))

    return Paying(as_float, int8, between)


def test_a_slow_layer_inside_a_region_stays_int8_if_leaving_it_costs_more() -> None:
    as_float, int8 = {"a": 3.0, "b": 1.0, "c": 3.0}, {"a": 1.0, "b": 1.3, "c": 1.0}
    assert of_a_chain(as_float, int8, 0.1).kept("abc") == ("a", "c")
    assert of_a_chain(as_float, int8, 0.5).kept("abc") == ("a", "b", "c")
    assert of_a_chain(as_float, int8, 0.5).at("b", "abc") == pytest.approx(-0.3 + 1.0)


def test_layers_that_lose_their_neighbors_stop_paying() -> None:
    paying = of_a_chain({"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 0.5, "b": 0.5, "c": 2.0}, 0.4)
    assert paying.kept("abc") == ("a", "b")
    assert paying.kept("bc") == ()
    assert paying.total("") == 0


def test_nothing_is_kept_where_int8_is_slower() -> None:
    paying = of_a_chain({"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 0.9}, 0.2)
    assert paying.won("ab") == pytest.approx({"a": 0.1, "b": 0.1})  # leaving out one alone saves nothing
    assert paying.kept("ab") == ()


def one_by_one(paying: Paying, layers: str) -> tuple[str, ...]:
    """Layers that cost time leave one at a time, the worst first."""
    found = list(layers)
    while found:
        won = paying.won(found)
        worst = min(won, key=lambda name: won[name])
        if won[worst] >= 0:
            break
        found.remove(worst)
    return tuple(found) if paying.total(found) > 0 else ()


@pytest.mark.parametrize("seed", range(20))
def test_the_order_in_which_layers_leave_does_not_matter(seed: int) -> None:
    times = np.random.default_rng(seed).uniform(0.1, 2.0, (2, 12))
    as_float, int8 = (dict(zip("abcdefghijkl", row.tolist(), strict=True)) for row in times)
    asked = 0

    def counted(paying: Paying) -> Paying:
        def between(layers: Collection[str]) -> float:
            nonlocal asked
            asked += 1
            return paying.between(layers)

        return Paying(paying.as_float, paying.int8, between)

    paying = of_a_chain(as_float, int8, 0.2)
    kept = counted(paying).kept("abcdefghijkl")
    at_once, asked = asked, 0
    assert kept == one_by_one(counted(paying), "abcdefghijkl")
    assert at_once <= asked


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.label = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).relu())
        return self.label(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("chain") / "model.onnx"
    export_onnx(Chain().eval(), images[:2], path, outputs={"label": lambda found: found})
    return path


@pytest.fixture(scope="module")
def candidate(exported: Path, images: torch.Tensor) -> Candidate:
    return candidate_of(exported, [(images,)], 16)


def test_numbers_change_at_the_ends_of_a_region_only(candidate: Candidate) -> None:
    setting = next(iter(candidate.settings.values()))
    first, second, third, label = candidate.layers
    image, features = 3 * 12 * 12, 8 * 12 * 12

    assert candidate.transitions([], setting) == ([], [])
    assert candidate.transitions([second], setting) == ([features], [features])
    assert candidate.transitions([first, second, third], setting) == ([image], [features])
    rounded, restored = candidate.transitions([first, third], setting)
    assert (sorted(rounded), restored) == ([image, features], [features, features])
    assert candidate.transitions([label], setting) == ([8], [])  # its kernel gives floats


def test_layers_are_timed_once_as_float_and_in_int8(candidate: Candidate, tmp_path: Path) -> None:
    table = Table({"dtype": "int8"}, tmp_path)
    found = int8_times(candidate.graph, candidate.layers, candidate.shapes, OnnxRuntime(), table)

    assert found.as_float.keys() == found.int8.keys() == set(candidate.layers)
    second, third = candidate.layers[1:3]
    assert found.as_float[second] == found.as_float[third] > 0
    assert found.int8[second] == found.int8[third] > 0
    assert found.between([], []) == 0
    assert np.all(np.diff(found.quantize[0]) > 0)

    sizes, ms = found.quantize
    assert found.between([int(2 * sizes[-1])], []) == pytest.approx(2 * ms[-1])
    assert found.between([1], []) == pytest.approx(ms[0])

    known = table.path.read_text()
    again = int8_times(
        candidate.graph, candidate.layers, candidate.shapes, OnnxRuntime(), Table({"dtype": "int8"}, tmp_path)
    )
    assert (again.as_float, again.int8) == (found.as_float, found.int8)
    assert table.path.read_text() == known


def test_layers_whose_times_were_not_all_written_are_timed_again(
    candidate: Candidate, tmp_path: Path
) -> None:
    layer = candidate.layers[1]
    table = Table({"dtype": "int8"}, tmp_path)
    int8_times(candidate.graph, [layer], candidate.shapes, OnnxRuntime(), table)
    lines = table.path.read_text().splitlines(keepends=True)
    table.path.write_text("".join(lines[:3]))

    table = Table({"dtype": "int8"}, tmp_path)
    found = int8_times(candidate.graph, [layer], candidate.shapes, OnnxRuntime(), table)

    assert found.int8[layer] > 0


def test_the_facts_say_what_layers_win(
    exported: Path, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    facts = quantize(exported, images, tmp_path / "int8.onnx", tolerance=1.0, rounds=3)

    assert all(layer.float_ms is not None and layer.float_ms > 0 for layer in facts.layers)
    assert facts.predicted_ms is not None
    for layer in facts.layers:
        assert layer.int8 or layer.reason.startswith("slower in INT8 in its place")
    if not all(layer.int8 for layer in facts.layers):
        assert facts.predicted_ms > 0
    assert "the times of single layers predict" in str(facts)
    untimed = quantize(exported, images, tmp_path / "int8.onnx", tolerance=1.0, rounds=0)
    assert len(untimed.quantized) == len(untimed.layers) == 4
    assert (untimed.predicted_ms, untimed.layers[0].float_ms) == (None, None)
