"""``prune(latency=...)``: decided, exported, measured, and decided again until the time is met."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.cli.views import pruning_report
from disparse_structured.errors import BudgetError, OptionError
from disparse_structured.latency import Latency, OnnxRuntime, Table
from disparse_structured.pipeline.latency import asked_latency
from disparse_structured.report.speed import SpeedFacts
from tests.support.paper_runtime import PaperRuntime


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU(), nn.Conv2d(48, 4, 1)]
    return nn.Sequential(*layers).eval()


class Slower(PaperRuntime):
    """Whole files take longer than their parts the narrower they are, which no table foresees."""

    def time_files(self, paths: Any, inputs: Any, *, rounds: int) -> Any:
        times = super().time_files(paths, inputs, rounds=rounds)
        return times + 0.15 * (times.max() - times)


def test_the_measured_time_is_met_though_the_prediction_misses_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, images = network(), torch.randn(8, 3, 20, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = ds.prune(model, images, latency=0.6, runtime=Slower(step=2), method=ds.DiSparse())
    speed = result.report.speed
    assert speed is not None
    assert speed.measured == pytest.approx(0.6, rel=0.05)
    assert speed.predicted < speed.measured
    assert 1 < speed.exports <= 4
    assert speed.verdict == "faster than the dense network"
    cost = result.report.costs["latency"]
    assert cost.unit == "ms"
    assert cost.counted == pytest.approx(speed.measured * cost.dense)
    assert speed.ideal == pytest.approx(result.report.costs["macs"].ratio / speed.measured)
    assert "60.0% of dense asked" in str(result.report)
    assert "faster than the dense network" in str(result.report)
    again = pruning_report(json.loads(result.report.to_json()), "report.json")
    assert again.speed == speed
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Constant(PaperRuntime):
    """Every file takes the same time, as where calls cost more than the network."""

    def time_files(self, paths: Any, inputs: Any, *, rounds: int) -> Any:
        times = super().time_files(paths, inputs, rounds=rounds)
        return 0 * times + 1.0


def test_where_no_network_is_faster_the_error_says_so(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, images = network(), torch.randn(8, 3, 20, 20)
    with pytest.raises(BudgetError, match=r"takes 100\.0% of the dense time .* limit its MACs or parameters"):
        ds.prune(model, images, latency=0.6, runtime=Constant(), method=ds.DiSparse(), refit=None)


def test_a_time_that_no_width_reaches_is_an_error_that_says_how_far_it_can_go(tmp_path: Any) -> None:
    model, images = network(), torch.randn(8, 3, 20, 20)
    runtime = PaperRuntime()
    cost = Latency(model, runtime, table=Table(runtime.facts, tmp_path))
    budget = ds.Budget(0.2, of=cost, protected="2")
    with pytest.raises(BudgetError, match=r"latency=0\.2 .* smallest reachable cost is .* ms"):
        ds.prune(model, images, budget=budget, method=ds.DiSparse())


def test_a_time_and_limits_of_tasks_are_met_together(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings: dict[str, Any] = {"latency": 0.7, "runtime": PaperRuntime(), "refit": ds.refits.Affine()}
    images = torch.randn(16, 3, 20, 20)
    result = ds.prune(
        network(), images, [ds.Task("out", ())], tolerance={"out": 0.9}, method=ds.DiSparse(), **settings
    )
    assert result.report.speed is not None
    assert result.report.speed.measured <= 0.7 * 1.05
    assert result.report.deviation is not None
    assert result.report.deviation.final["out"] <= 0.9


FACTS = {
    "asked": 0.5, "predicted": 0.5, "measured": 0.5, "dense_ms": 2.0, "pruned_ms": 1.0, "macs": 0.4,
    "exports": 1, "rounds": 40, "runtime": {"runtime": "r"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (0.48, 0.52, "faster than the dense network"),
        (0.3, 0.7, "the machine is too busy to say whether it is faster; measure again when it is idle"),
    ],
)
def test_the_verdict_is_never_guessed(lower: float, upper: float, verdict: str) -> None:
    assert SpeedFacts(**FACTS, lower=lower, upper=upper).verdict == verdict


def test_overlapping_times_are_not_faster() -> None:
    facts = SpeedFacts(**{**FACTS, "measured": 0.98}, lower=0.95, upper=1.02)
    assert facts.verdict == "not faster than the dense network"


@pytest.mark.parametrize(
    "limit", ["soon", "12 s", "-1 ms", "200%", "100%", 0, -0.5, 1, True, float("nan"), None]
)
def test_what_is_no_time_is_refused(limit: Any) -> None:
    with pytest.raises(BudgetError, match=r"is neither a share nor a time\. Give a share .* or milliseconds"):
        asked_latency(limit)


def test_one_cost_is_limited(tmp_path: Any) -> None:
    model, images = network(), torch.randn(8, 3, 20, 20)
    with pytest.raises(BudgetError, match=r"found macs=0\.5 and latency=0\.5"):
        ds.prune(model, images, macs=0.5, latency=0.5)
    with pytest.raises(OptionError, match=r"latency='2 ms' was given beside budget="):
        ds.prune(model, images, latency="2 ms", budget=ds.Budget(macs=0.5))
    with pytest.raises(OptionError, match=r"runtime= was given without latency="):
        ds.prune(model, images, macs=0.5, runtime=OnnxRuntime())
    with pytest.raises(OptionError, match=r"is not a runtime: it has no facts and no inputs"):
        ds.prune(model, images, latency=0.5, runtime=3)  # type: ignore[arg-type]
