"""Latency as a cost: steps are found, times are kept, and the search stops on steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.decision.deciding import decide
from disparse_structured.errors import OptionError
from disparse_structured.latency import Latency, LatencyModel, OnnxRuntime, Table, cache_folder
from disparse_structured.latency.ladder import Ladder
from disparse_structured.structure import Structure
from tests.support.paper_runtime import PaperRuntime


class TwoTasks(nn.Module):
    """A residual network with a depthwise and a pointwise convolution, and two heads."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.wide = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU())
        self.segment = nn.Conv2d(2 * width, 5, 1)
        self.hidden = nn.Linear(2 * width, 48)
        self.classify = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        x = self.wide(self.depthwise(x + self.body(x)))
        return {"segment": self.segment(x), "classify": self.classify(self.hidden(x.mean((2, 3))).relu())}


OVERHEAD = 1.7


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Structure]:
    torch.manual_seed(0)
    model = TwoTasks().eval()
    return model, ds.analyse(model, torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def paper(network: tuple[nn.Module, Structure], tmp_path_factory: pytest.TempPathFactory) -> Latency:
    runtime = PaperRuntime(overhead=OVERHEAD)
    return Latency(network[0], runtime, table=Table(runtime.facts, tmp_path_factory.mktemp("paper")))


def kept(structure: Structure, **widths: int) -> torch.Tensor:
    """The first units of each group that is named, all of the others."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        keep[group.start + widths.get(group.name.partition(".")[0], group.units) : group.slice.stop] = False
    return keep


# Steps


@pytest.mark.parametrize("step", [1, 8, 16])
@pytest.mark.parametrize("aligned", [1, 4, 8])
def test_steps_and_alignment_are_found_in_noisy_times(step: int, aligned: int) -> None:
    random = np.random.default_rng(step + aligned)
    widths = np.arange(33, 65)
    times = np.where(widths % aligned, 2.5 * widths, np.ceil(widths / step) * step) + 5
    ladder = Ladder.of(widths.tolist(), (times * random.normal(1, 0.005, len(widths))).tolist())
    assert ladder.aligned == aligned
    assert ladder.rung == max(step, aligned)


# Microseconds in ONNX Runtime 1.32 on AMD EPYC: convolutions 1x1 at 28x28 and 14x14 positions, on a machine
# that was busy with other things.
MEASURED_READ = (
    "20 24 31 36 43 45 51 26 36 36 37 35 41 42 45 35 47 49 51 45 55 56 58 45 63 67 69 56 72 73 87 56"
)
MEASURED_MADE = (
    "26 26 26 26 34 26 26 27 29 29 28 28 28 29 30 29 32 32 32 31 32 32 33 32 34 35 34 35 34 34 35 35"
)


def test_alignment_that_matters_little_at_large_widths_is_found() -> None:
    assert Ladder.of(range(1, 33), [float(each) for each in MEASURED_READ.split()]).aligned == 4


def test_steps_are_found_though_another_process_disturbed_some_times() -> None:
    assert Ladder.of(range(49, 81), [float(each) for each in MEASURED_MADE.split()]) == Ladder(8, 1)


def test_equal_times_have_no_steps() -> None:
    assert Ladder.of(range(1, 33), [7.0] * 32) == Ladder()


# Tables


def test_a_table_is_kept_and_what_another_machine_measured_is_not_read(tmp_path: Path) -> None:
    facts = {"runtime": "r 1", "processor": "p"}
    Table(facts, tmp_path).add("conv", {(8, 16): 0.5, (8, 8): 0.25})
    assert Table(facts, tmp_path).times("conv") == {(8, 16): 0.5, (8, 8): 0.25}
    assert len(Table(facts, tmp_path)) == 2
    for other in ({**facts, "runtime": "r 2"}, {**facts, "processor": "q"}):
        assert len(Table(other, tmp_path)) == 0


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    table = Table({"runtime": "r"}, tmp_path)
    table.add("first", {(8, 8): 1.0})
    table.add("second", {(8, 8): 2.0})
    text = table.path.read_text()
    table.path.write_text(text[:-8])
    again = Table({"runtime": "r"}, tmp_path)
    assert (again.times("first"), again.times("second")) == ({(8, 8): 1.0}, {})
    again.add("second", {(8, 8): 2.0})
    assert Table({"runtime": "r"}, tmp_path).times("second") == {(8, 8): 2.0}


@pytest.mark.parametrize("line", ["7", "[]", '{"operation": "conv"}', "\xff"])
def test_a_line_that_means_nothing_is_not_read(tmp_path: Path, line: str) -> None:
    table = Table({"runtime": "r"}, tmp_path)
    table.add("conv", {(8, 8): 1.0})
    table.path.write_bytes(table.path.read_bytes() + line.encode("latin-1") + b"\n")
    assert Table({"runtime": "r"}, tmp_path).times("conv") == {(8, 8): 1.0}


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"cannot be kept in .*: .*\. Set XDG_CACHE_HOME to a folder"):
        Table({"runtime": "r"}, tmp_path / "file" / "inside").add("conv", {(8, 8): 1.0})


def test_a_table_can_be_cleared(tmp_path: Path) -> None:
    table = Table({"runtime": "r"}, tmp_path)
    table.add("conv", {(8, 8): 1.0})
    table.clear()
    assert not table.path.exists()
    assert len(table) == len(Table({"runtime": "r"}, tmp_path)) == 0


def test_tables_lie_in_the_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "disparse-structured" / "latency"
    assert Table({"runtime": "r"}).path.parent == cache_folder()


# Predictions, with a clock that is a formula


def exactly(structure: Structure, keep: torch.Tensor) -> float:
    """What the paper runtime takes, by hand."""
    width = {group.name.partition(".")[0]: int(keep[group.slice].sum()) for group in structure.groups}
    stem, wide, hidden = width["stem"], width["wide"], width["hidden"]

    def up(count: int) -> int:
        return -(-count // 8) * 8

    def slow(count: int) -> int:
        return 3 if count % 4 else 1

    convolutions = (
        4 * slow(3) * 9 * up(3) * up(stem)  # at four times the positions
        + slow(stem) * 9 * up(stem) * up(stem)
        + slow(stem) * 9 * (up(stem) * up(stem) // stem)
        + slow(stem) * up(stem) * up(wide)
        + slow(wide) * up(wide) * up(5)
    )
    return OVERHEAD * (256 * convolutions + wide * hidden + hidden * 4) / 1e6


@pytest.mark.parametrize(
    "widths",
    [{}, {"stem": 24}, {"stem": 20, "wide": 40}, {"stem": 16, "wide": 64, "hidden": 24}, {"wide": 36}],
)
def test_predictions_on_aligned_widths_are_those_of_the_runtime(
    network: tuple[nn.Module, Structure], paper: Latency, widths: dict[str, int]
) -> None:
    structure = network[1]
    model, keep = paper.on(structure), kept(structure, **widths)
    assert model.predict(keep) == pytest.approx(exactly(structure, keep), rel=0.05)


def test_widths_that_are_not_aligned_are_predicted_to_be_slower(
    network: tuple[nn.Module, Structure], paper: Latency
) -> None:
    structure = network[1]
    model = paper.on(structure)
    slower, dense = model.predict(kept(structure, stem=39)), model.dense
    assert slower > 1.5 * dense
    assert slower == pytest.approx(exactly(structure, kept(structure, stem=39)), rel=0.1)


def test_a_width_counts_with_the_channels_that_it_can_have_for_nothing(
    network: tuple[nn.Module, Structure], paper: Latency
) -> None:
    structure = network[1]
    model = paper.on(structure)
    totals = [model.total(kept(structure, stem=width)) for width in range(1, 41)]
    assert totals == sorted(totals)
    assert totals[24:32] == [totals[31]] * 8
    assert model.total(kept(structure, stem=32)) == pytest.approx(model.predict(kept(structure, stem=32)))


def test_the_dense_network_takes_what_was_measured(
    network: tuple[nn.Module, Structure], paper: Latency
) -> None:
    structure = network[1]
    everything, found = torch.ones(structure.units, dtype=torch.bool), paper.on(structure)
    assert found.dense == pytest.approx(exactly(structure, everything))
    assert found.total(everything) == found.predict(everything) == found.dense


def test_the_search_stops_on_steps(network: tuple[nn.Module, Structure], paper: Latency) -> None:
    structure = network[1]
    torch.manual_seed(1)
    for share in (0.3, 0.5, 0.7):
        budget = ds.Budget(share, of=paper)
        keep = decide(structure, torch.rand(2, structure.units), budget).keep
        cost = paper.on(structure)
        assert cost.total(keep) <= share * cost.dense
        assert cost.predict(keep) == pytest.approx(cost.total(keep))
        for group in structure.groups[:2]:
            assert int(keep[group.slice].sum()) % 8 == 0


def test_the_search_comes_close_to_the_best_widths_there_are(
    network: tuple[nn.Module, Structure], paper: Latency, capsys: pytest.CaptureFixture[str]
) -> None:
    """All combinations of steps, and all widths of the layer without steps, with the best units of each."""
    structure, cost = network[1], paper.on(network[1])
    scores = torch.rand(1, structure.units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores.expand(2, -1) ** 2
    order = {group.name: group.start + scores[0, group.slice].argsort() for group in structure.groups}

    def without(counts: tuple[int, ...]) -> torch.Tensor:
        keep = torch.ones(structure.units, dtype=torch.bool)
        for group, count in zip(structure.groups, counts, strict=True):
            keep[order[group.name][: group.units - count]] = False
        return keep

    steps = [range(8, group.units + 1, 8) for group in structure.groups]
    for share in (0.4, 0.6):
        keep = decide(structure, scores, ds.Budget(share, of=paper)).keep
        fitting = [
            each for each in map(without, itertools.product(*steps)) if cost.total(each) <= share * cost.dense
        ]
        best = min(float(scores[0, ~each].sum()) for each in fitting)
        found = float(scores[0, ~keep].sum())
        with capsys.disabled():
            print(f"\n{share:g} of the time: damage {found:.3f}, of the best widths {best:.3f}")
        assert found <= 1.25 * best


# What is known is not measured again


def test_what_is_known_is_not_measured_again(network: tuple[nn.Module, Structure], paper: Latency) -> None:
    model, structure = network
    prediction = paper.on(structure)
    assert paper.table is not None
    assert paper.runtime.timed == len(paper.table)
    runtime = PaperRuntime(overhead=OVERHEAD)
    again = Latency(model, runtime, table=Table(runtime.facts, paper.table.path.parent)).on(structure)
    assert runtime.timed == 0
    assert again.dense == prediction.dense


def test_a_measurement_that_was_stopped_resumes(
    network: tuple[nn.Module, Structure], paper: Latency, tmp_path: Path
) -> None:
    model, structure = network
    paper.on(structure)
    runtime = PaperRuntime(stop_after=100)
    latency = Latency(model, runtime, table=Table(runtime.facts, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        latency.on(structure)
    before, runtime.stop_after = len(Table(runtime.facts, tmp_path)), None
    assert before > 100
    latency.on(structure)
    assert runtime.timed == paper.runtime.timed


# ONNX Runtime itself


def test_onnx_runtime_is_measured_as_it_runs_the_file(
    network: tuple[nn.Module, Structure], tmp_path: Path
) -> None:
    model, structure = network
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runtime = OnnxRuntime()
    table = Table(runtime.facts, tmp_path)
    found = Latency(model, runtime, table=table).on(structure)
    assert isinstance(found, LatencyModel)
    assert len(found.work.entry) == 7  # five convolutions and two linear layers, with what is fused into them
    assert found.dense > 0
    assert found.total(kept(structure, stem=8, wide=8, hidden=8)) < found.dense
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    assert lines[0] == {"facts": dict(runtime.facts)}
    assert all(ms >= 0 for line in lines[1:] for *_, ms in line["times"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_runtimes_say_what_their_times_depend_on() -> None:
    one, two = OnnxRuntime().facts, OnnxRuntime(threads=2).facts
    assert (one["threads"], two["threads"]) == ("1", "2")
    assert one["runtime"].startswith("onnxruntime ")
    assert one["processor"]


def test_inputs_have_the_batch_and_size_of_the_runtime() -> None:
    example = ds.analyse(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 8, 8)).example_inputs
    (inputs,) = OnnxRuntime(batch=5, size=(12, 16)).inputs(example, "batch+size")
    assert inputs.shape == (5, 3, 12, 16)
    (inputs,) = OnnxRuntime().inputs(example, "static")
    assert inputs.shape == (2, 3, 8, 8)
    with pytest.raises(OptionError, match="batch=5 cannot be timed: the ONNX file has a fixed batch size"):
        OnnxRuntime(batch=5).inputs(example, "size")
    with pytest.raises(
        OptionError, match=r"size=\(12, 16\) cannot be timed: the ONNX file has a fixed input size"
    ):
        OnnxRuntime(size=(12, 16)).inputs(example, "batch")


def test_a_runtime_without_threads_is_refused() -> None:
    with pytest.raises(OptionError, match="threads=0, batch=1, size=None: each must be a whole number"):
        OnnxRuntime(threads=0)
