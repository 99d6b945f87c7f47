"""The sweep over timm: which models, one model's row, processes with limits, page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.harness.files import PAGES, RESULTS
from benchmarks.harness.limits import Limits
from benchmarks.harness.row import decode
from benchmarks.harness.sweep import Workspace, work
from benchmarks.timm_sweep import __main__ as command
from benchmarks.timm_sweep import measure as measuring
from benchmarks.timm_sweep import models, views
from benchmarks.timm_sweep.cells import KINDS, Cell, Row
from benchmarks.timm_sweep.measure import STAGES, LearningError, learned, measure, reasons
from benchmarks.timm_sweep.models import LARGEST, Selection, SelectionError
from benchmarks.timm_sweep.stock import Stock, StockError, predictors
from benchmarks.timm_sweep.subject import Network, half
from disparse_structured.adapters.timm import DenseHead, LinearHead, multitask
from disparse_structured.structure import Pin, analyse
from disparse_structured.tasks import Task

NO_TIME = Limits(seconds=0.2)
TASKS = (Task("out", lambda output: output),)


def finished(name: str, kind: str = "classifier", **facts: Any) -> Row:
    """The row of a model of 100 parameters, of which 30 are left; all stages ended."""
    cell = Cell(name, KINDS[KINDS.index(kind)])
    found = Row(
        cell,
        settings=cell.settings,
        stage="",
        first_try="sound",
        seconds=dict.fromkeys(STAGES, 1.0) | {"structure": 1.25},
        parameters=100,
        macs=200.0,
        left=30,
        macs_left=50.0,
        twin=1e-15,
        tolerance=1e-9,
        dtype="float64",
        parity=1e-6,
        learned=0.05,
        stock_left=40,
        prunable_parameters=0.9,
    )
    return replace(found, **facts)


def without(*stages: str) -> Mapping[str, float]:
    return {stage: 1.0 for stage in STAGES if stage not in stages}


measured = pytest.mark.xdist_group("a measured transformer")

DEPTH = 2
"""Blocks of the transformer that is measured, of six."""


@pytest.fixture(scope="module")
def told() -> list[Row]:
    """The rows that are kept on the way for a small transformer; the last one is complete."""
    rows: list[Row] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", partial(timm.create_model, depth=DEPTH))
        measure(Cell("test_vit", "classifier"), rows.append)
    return rows


def test_parameters_are_those_of_the_built_model_and_are_counted_once(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "counts.json"
    counts = models.counted(["test_resnet", "test_vit", "no_such_model"], cache)
    built = timm.create_model("test_resnet")
    assert counts["test_resnet"] == sum(parameter.numel() for parameter in built.parameters())
    assert list(counts) == ["test_resnet", "test_vit"]

    known = json.loads(cache.read_text())
    assert known["no_such_model"] is None
    cache.write_text(json.dumps({**known, "test_vit": 7}))
    assert models.counted(["test_vit"], cache) == {"test_vit": 7}


def test_the_smallest_of_every_module() -> None:
    found = models.smallest({"a": 5, "b": 3, "c": 3, "d": 9}, {"x": ["a", "c", "b"], "y": ["d"], "z": ["e"]})
    assert found.models == ("b", "d")


@given(
    st.lists(st.integers(1, 2 * LARGEST), min_size=1, max_size=12),
    st.integers(0, 9),
    st.data(),
)
def test_a_draw_follows_from_its_seed(sizes: list[int], seed: int, data: st.DataObject) -> None:
    counts = {f"model{place}": size for place, size in enumerate(sizes)}
    taken = data.draw(st.sets(st.sampled_from(sorted(counts))))
    able = {name for name, count in counts.items() if count <= LARGEST and name not in taken}
    number = data.draw(st.integers(0, len(able)))
    drawn = models.drawn(counts, taken, number, seed)
    assert drawn == models.drawn(dict(reversed(counts.items())), taken, number, seed)
    assert len(set(drawn.models)) == number
    assert set(drawn.models) <= able
    with pytest.raises(SelectionError, match=f"there are {len(able)}"):
        models.drawn(counts, taken, len(able) + 1, seed)


def test_another_seed_draws_other_models() -> None:
    counts = {f"model{number}": number for number in range(100)}
    assert models.drawn(counts, (), 20, 0).models != models.drawn(counts, (), 20, 1).models


def test_names_and_patterns() -> None:
    found = models.named(["no_such_model", "test_vit*", "test_vit"]).models
    assert found[0] == "no_such_model"
    assert {"test_vit", "test_vit2"} <= set(found)
    assert all(name.startswith("test_vit") for name in found[1:])
    assert len(found) == len(set(found))
    with pytest.raises(SelectionError, match=r"matches 'no_such\*'"):
        models.named(["no_such*"])


@measured
def test_a_row_has_everything_the_page_tells(told: list[Row]) -> None:
    row = told[-1]
    assert row.sound, row.failures
    assert row.verdict == "sound"
    assert row.stage == ""
    assert row.parameters == sum(
        parameter.numel() for parameter in timm.create_model("test_vit", depth=DEPTH).parameters()
    )
    assert 0.5 < row.removed < 0.85
    assert row.left == row.planned
    assert row.removed < row.prunable_parameters < 1
    assert 0.15 < row.macs_left / row.macs < 0.6
    assert row.groups > 0
    assert row.units > 100
    assert row.dtype == "float64"
    assert row.twin is not None
    assert row.twin <= 1e-9
    assert row.parity is not None
    assert row.parity <= 1e-4
    assert row.dynamic == "batch"
    assert row.learned > 0
    assert row.structure_share is not None
    assert "the network's output" in dict(row.pinned)
    assert row.memory > 0.1


@measured
def test_stock_is_told_beside_ours_on_the_same_network(told: list[Row]) -> None:
    row = told[-1]
    assert {"stock graph", "stock prune", "stock run"} <= row.seconds.keys()
    assert 0.5 < 1 - row.stock_left / row.parameters < 0.85


@measured
def test_the_row_is_kept_before_every_stage(told: list[Row]) -> None:
    assert [row.stage for row in told] == [*STAGES, ""]
    for before, after in pairwise(told):
        assert before.seconds.items() <= after.seconds.items()
    at_surgery = next(row for row in told if row.stage == "surgery")
    assert at_surgery.units == told[-1].units
    assert not at_surgery.left


def test_what_needs_a_failed_stage_is_not_tried() -> None:
    row = measure(Cell("no_such_model", "multitask"), lambda _: None)
    assert list(row.failures) == ["build"]
    assert "no model 'no_such_model'" in row.failures["build"]
    assert not row.seconds
    assert not row.sound
    assert row.verdict.startswith("build: UnsupportedModelError")


def test_one_step_takes_some_of_the_loss_away_and_leaves_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 0 < learned(model, (torch.randn(8, 4),), TASKS) < 0.5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_a_model_that_cannot_learn_is_told() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (self.weight * 0).sum()

    with pytest.raises(LearningError, match="no step lowers the loss of"):
        learned(Dead(), (torch.randn(2, 3),), TASKS)


def test_reasons_are_summed_and_never_above_all() -> None:
    pinned = [Pin("a", "op", "m", 6, 0.6), Pin("b", "op", "m", 7, 0.7), Pin("a", "op", "n", 6, 0.6)]
    assert reasons(pinned) == [("a", 1.0), ("b", 0.7)]


def test_predictors_are_left_to_stock_by_name_or_width() -> None:
    classifier = timm.create_model("test_resnet")
    assert predictors(classifier) == [classifier.fc]
    heads = multitask("test_resnet", {"depth": DenseHead(1), "scene": LinearHead(4)})
    assert {id(module) for module in predictors(heads)} == {
        id(heads.heads["depth"].predict), id(heads.heads["scene"].predict)
    }  # fmt: skip


def row_of(space: Workspace, cell: Cell) -> Row:
    return space.shelf.by_label()[cell.label]


def test_limits_and_failures_are_rows(tmp_path: Path) -> None:
    cell = Cell("test_resnet", "classifier")
    said: list[str] = []

    def run(limits: Limits) -> Row:
        space = command.workspace(tmp_path, limits)
        assert work([cell], space, again=True, say=said.append) == 1
        return row_of(space, cell)

    assert run(NO_TIME).failures == {"start": "it took more than 0.2 s"}
    small = run(Limits(memory=0.05))
    assert small.failures == {"start": "it took more than 0.05 GB of memory"}
    assert small.first_try == "start: it took more than 0.2 s"
    assert said[1].startswith("[1/1] classifier test_resnet: start: it took more than 0.2 s  (")
    assert not list(tmp_path.rglob("*.begun"))


def test_what_was_found_before_a_crash_stays(tmp_path: Path) -> None:
    if not Path("/proc/self/cmdline").is_file():
        pytest.skip("processes are found in /proc")
    space, cell = command.workspace(tmp_path), Cell("test_vit", "multitask")
    begun = space.log(cell).with_suffix(".begun")
    thread = threading.Thread(target=work, args=([cell], space), kwargs={"say": lambda _: None})
    thread.start()
    while thread.is_alive() and not (begun.is_file() and json.loads(begun.read_text())["parameters"]):
        time.sleep(0.02)
    (process,) = [each for each in Path("/proc").glob("[0-9]*") if str(begun) in _command(each)]
    os.kill(int(process.name), signal.SIGKILL)
    thread.join()
    row = row_of(space, cell)
    assert row.parameters > 0
    assert "build" in row.seconds
    assert row.failures == {row.stage: "the process was ended by SIGKILL"}
    assert not row.sound
    assert row.verdict == row.first_try == f"{row.stage}: the process was ended by SIGKILL"


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_a_process_that_fails_or_leaves_no_row_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, cell = command.workspace(tmp_path), Cell("test_resnet", "classifier")
    begun = space.log(cell).with_suffix(".begun")
    work([cell], replace(space, module="calendar"), say=lambda _: None)  # it has no such arguments
    row = row_of(space, cell)
    assert row.failures["start"].startswith("the process ended with status 2: ")
    assert "usage: " in space.log(cell).read_text()

    def another_version(*_: Any) -> None:
        begun.write_text('{"cell": {}}')

    monkeypatch.setattr("benchmarks.harness.sweep.run_limited", another_version)
    work([cell], space, again=True, say=lambda _: None)
    assert row_of(space, cell).failures["start"].startswith("what the process wrote is not a row: it lacks")


def test_what_the_process_measures_is_written_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Cell, bool, bool]] = []

    def measured(cell: Cell, keep: Any, *, stock: bool, graph: bool) -> None:
        asked.append((cell, stock, graph))
        keep(finished("test_vit"))

    monkeypatch.setattr(measuring, "measure", measured)
    monkeypatch.setattr(measuring, "end_with_parent", lambda: None)
    file = tmp_path / "row.begun"
    arguments = ["test_vit", "classifier", str(file), "--image-size", "96", "--no-stock", "--no-graph"]
    assert measuring.main(arguments) == 0
    assert asked == [(Cell("test_vit", "classifier", 96), False, False)]
    assert decode(file.read_text(), Row, Cell).verdict == "sound"


def test_finished_cells_are_run_again_only_when_told(tmp_path: Path) -> None:
    space = command.workspace(tmp_path, NO_TIME)
    good, bad = finished("test_resnet"), finished("test_vit", seconds=without("surgery", "onnx", "train"))
    old = finished("test_convnext", settings="of yesterday")
    for row in (good, bad, old):
        space.shelf.put(row)
    assert {row.cell.model for row in space.rows()} == {"test_resnet", "test_vit"}
    cells = [row.cell for row in (good, bad)]
    counts = [work(cells, space, say=lambda _: None, retry=retry) for retry in (False, True)]
    assert counts == [0, 1]
    assert row_of(space, good.cell) == replace(good, pinned=[])
    assert work([old.cell, old.cell], space, jobs=2, say=lambda _: None) == 1
    assert {row.cell.model for row in space.rows()} == {"test_resnet", "test_vit", "test_convnext"}


def test_logs_stay_below_the_folder_and_a_model_has_one_row_of_any_size(tmp_path: Path) -> None:
    space = command.workspace(tmp_path)
    assert space.log(Cell("../../x y", "classifier")) == tmp_path / "logs" / "classifier-..-..-x-y.log"
    for size in (None, 96):
        cell = Cell("test_vit", "classifier", size)
        space.shelf.put(finished("test_vit", cell=cell, settings=cell.settings))
    (row,) = space.rows()
    assert row.cell.image_size == 96


def test_the_stored_rows_give_the_page(tmp_path: Path) -> None:
    if not (RESULTS / "timm_sweep").is_dir():
        pytest.skip("the results are in the repository only")
    shutil.copytree(RESULTS / "timm_sweep", tmp_path / "rows")
    space = command.workspace(tmp_path / "rows")
    assert len(space.rows()) == len(space.shelf.rows()) == 618
    page = command.write(space, tmp_path)
    assert page.read_text(encoding="utf-8") == (PAGES / page.name).read_text(encoding="utf-8")
    summary = RESULTS / "timm_sweep" / "summary.json"
    assert (tmp_path / "rows" / "summary.json").read_text(encoding="utf-8") == summary.read_text(
        encoding="utf-8"
    )


def test_verdicts() -> None:
    assert finished("a").verdict == "sound"
    assert finished("a", failures={"stock run": "no"}).verdict == "sound"
    failed = finished("a", seconds=without("onnx"), failures={"onnx": "differs", "stock run": "no"})
    assert failed.verdict == "onnx: differs"
    assert finished("a").structure_share == pytest.approx(0.25)
    assert finished("a", seconds={}).structure_share is None
    assert finished("a").removed == pytest.approx(0.7)
    assert finished("a", left=0).removed == 0


def a_page() -> tuple[list[Selection], list[Row]]:
    rows = [
        finished(
            "good", pinned=[("a rule is missing", 0.25), ("the network's output", 0.1), ("crumb", 0.001)]
        ),
        finished("good", "multitask", dtype="float32", first_try="onnx: differs"),
        finished("wide", left=60, refused={"layer1": "it breaks", "layer2": "it breaks"}),
        finished(
            "bad", seconds=without("train", "stock run"), failures={"train": "no step", "stock run": "shape"}
        ),
        finished("alone"),
    ]
    return [Selection("The chosen", ("good", "wide", "bad", "missing"))], rows


def test_the_page_counts_what_was_reached() -> None:
    selections, rows = a_page()
    page = views.document(selections, rows)
    assert "| sound as module | 1 of 1 | 2 of 3 | all; of models drawn 145 of 150 |" in page
    assert "| sound at the first try | 0 of 1 | 3 of 3 |  |" in page
    assert "| sound, and ≥ 50 % of parameters removed | 1 of 1 | 1 of 3 | 86 of 88 |" in page
    assert "| time for the structure / `torch.export`, median | 0.25 × | 0.25 × | ≤ 0.5 × |" in page
    assert "| stock: still runs | 1 of 1 | 2 of 3 |  |" in page
    assert "| not run yet | 3 | 1 | 0 |" in page


def test_the_page_names_every_model_and_what_stayed() -> None:
    page = views.document(*a_page())
    line = next(each for each in page.splitlines() if each.startswith("| good | multitask"))
    assert "1e-15 (float32)" in line
    assert "| runs, 60.0% |" in line
    assert "| **bad** | classifier |" in page
    assert "- bad (classifier): train: no step" in page
    assert "does not run |" in page
    assert "- good (classifier): pinned: a rule is missing 25%\n" in page
    assert "- wide (classifier): 2 refused, layer1 first: it breaks" in page
    assert "## Others" in page.partition("## The chosen")[2]
    assert "| alone | classifier |" in page.partition("## Others")[2]


def test_the_summary_counts_every_selection() -> None:
    found = views.as_json(*a_page())
    chosen, others = found["selections"]
    assert chosen["classifier"]["sound"] == 2
    assert chosen["classifier"]["models"] == 4
    assert others["models"] == ["alone"]
    json.dumps(found)


def test_the_command_runs_remembers_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows", tmp_path / "out"
    folders = ["--rows", str(rows), "--out", str(out), "--cache", str(tmp_path / "counts.json")]
    command.workspace(rows).shelf.put(finished("test_resnet"))
    models_asked = ["--models", "test_resnet", "test_vit", "--kinds", "classifier", "--timeout", "0.2"]
    assert command.main([*models_asked, *folders]) == 0
    assert "1 of 2 cells to run" in capsys.readouterr().out
    page = (out / "timm_sweep.md").read_text()
    assert "## Models test_resnet test_vit" in page
    assert "- test_vit (classifier): start: it took more than 0.2 s" in page
    assert "| sound as module | 1 of 2 |" in page

    (out / "timm_sweep.md").unlink()
    assert command.main(["--views", *folders]) == 0
    assert (out / "timm_sweep.md").read_text() == page
    assert json.loads((rows / "summary.json").read_text())["selections"][0]["classifier"]["sound"] == 1


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--rows", str(tmp_path / "rows"), "--out", str(tmp_path)]
    assert command.main(["--models", "no_such*", *folders]) == 1
    assert "matches 'no_such*'" in capsys.readouterr().err
    for wrong in (["--timeout", "0"], ["--draw", "0"], ["--kinds", "detector"], ["--memory", "much"]):
        with pytest.raises(SystemExit):
            command.main([*wrong, *folders])
    assert "'0' is not a number above 0" in capsys.readouterr().err


def test_stock_that_was_stopped_at_a_limit_is_not_counted_against_it() -> None:
    late = finished("b", seconds=without("stock graph", "stock prune", "stock run"))
    late = replace(late, failures={"stock graph": "TimeoutError: it took more than 120 s"})
    page = views.document([Selection("Two", ("a", "b"))], [finished("a"), late])

    assert "| stock: still runs | 1 of 1 |  |" in page
    assert "| stock: cut off by a limit, not counted above | 1 |  |" in page
    assert "| no end |" in page


def test_stock_that_changes_an_output_is_refused() -> None:
    class Widened(nn.Sequential):
        num_classes = 5  # not the width of the last layer, so that nothing protects it

    model = Widened(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    stock = Stock(Network(model, (torch.randn(2, 3, 8, 8),), TASKS))
    assert stock.prune() < sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(StockError, match=r"the shapes \[\(2, 5\)\], not \[\(2, 10\)\]"):
        stock.run()


def test_half_of_every_width_is_rounded_up_and_keeps_to_what_the_structure_says() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    structure = analyse(model, torch.randn(2, 3, 8, 8), TASKS)
    keep = half(structure)
    assert sorted(int(keep[group.slice].sum()) for group in structure.groups) == [2, 4]
