"""The benchmark without training as a run: cells, rows, goals, page and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.files import PAGES, RESULTS
from benchmarks.harness.runner import pool
from benchmarks.no_training import __main__ as command
from benchmarks.no_training import call, figures, goals, views
from benchmarks.no_training.cells import Cell, Row, Workspace
from benchmarks.no_training.methods import FRACTIONS, METHODS
from benchmarks.no_training.networks import NETWORKS
from benchmarks.no_training.results import Point, Results, crossing, delta_t, mean_deviation
from benchmarks.no_training.runner import work
from disparse_structured.adapters.timm import DenseHead, LinearHead, multitask
from tests.benchmarks.test_no_training_networks import DENSE, TINY, packs

__all__ = ["packs"]

pytestmark = pytest.mark.xdist_group("no training: runs")

RESNET, CARDS = "nyuv2/resnet", "cards/resnet"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained networks; the packs are the same in all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def space(packs: Path, cache: Path) -> Workspace:
    return Workspace(packs / "rows", cache, {network.name: network for network in (TINY, DENSE)})


def rows_of(space: Workspace, cells: list[Cell]) -> list[Row]:
    found = space.shelf.by_label()
    return [found[cell.label] for cell in cells]


def row(network: str, method: str, macs: float, off: float, gain: float, seed: int = 0, **cell: int) -> Row:
    """A finished one with two tasks: deviation ``off`` ± 0.1 × ``off``, ΔT ``gain`` ± 1."""
    return Row(
        Cell(network, method, macs, seed, **cell),
        macs=macs,
        parameters=macs,
        deviation={"one": 0.9 * off, "other": 1.1 * off},
        delta_t=gain,
        deltas={"one": gain - 1, "other": gain + 1},
        seconds=1.0,
    )


def a_run(network: str = RESNET, ours: float = 0.2, seeds: int = 2) -> list[Row]:
    """Rows in which stock loses ten times what ours does, and its variants differ."""
    found = []
    for seed in range(seeds):
        for macs in FRACTIONS:
            lost = 10 * (1 - macs) + seed
            found += [
                row(network, "ours", macs, ours * (1 - macs), -0.1 * lost, seed),
                row(network, "magnitude-uniform", macs, 2 * (1 - macs), -2 * lost, seed),
                row(network, "magnitude-uniform+bn", macs, 1 - macs, -lost, seed),
                row(network, "folding+bn", macs, 1.5 * (1 - macs), -1.5 * lost, seed),
            ]
    return found


def test_cells_leave_rows_and_are_not_run_again(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [Cell(CARDS, name, 0.5, 0, inputs=8) for name in ("random", "magnitude-uniform+bn")]
    assert work(cells, space) == 2
    first, second = rows_of(space, cells)
    assert [first.cell, second.cell] == cells
    assert first.error is None
    assert 0.4 < first.macs <= 0.5 + 1e-6
    assert first.deviation.keys() == {"number", "colour", "shading", "shape"}
    assert first.delta_t == pytest.approx(sum(first.deltas.values()) / 4)
    assert first.mean_deviation == pytest.approx(sum(first.deviation.values()) / 4)
    assert first.worst == min(first.deltas.values())
    assert first.seconds > 0
    capsys.readouterr()

    assert work(cells, space) == 0
    assert "0 of 2 cells" in capsys.readouterr().out
    assert work(cells[:1], space, again=True) == 1
    (again,) = rows_of(space, cells[:1])
    assert (again.deviation, again.delta_t) == (first.deviation, first.delta_t)
    assert {each.cell for each in space.rows()} == set(cells)

    longer = replace(TINY, setup=replace(TINY.setup, epochs=3))
    other = Workspace(space.folder, space.cache, {CARDS: longer})
    assert space.finished() == set(cells)
    assert other.finished() == set(), "rows of another training"
    assert other.rows() == []


def test_a_cell_that_fails_leaves_its_error_and_is_tried_again(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [Cell(CARDS, name, 0.5, 0, inputs=13) for name in ("folding", "grail-magnitude")]  # of 12 images
    assert work(cells, space) == 2
    folding, grail = rows_of(space, cells)
    assert folding.error is not None
    assert "count is 13" in folding.error
    assert grail.error is not None
    assert "FAILED" in capsys.readouterr().out
    assert space.finished() == set()
    results = Results(space.rows())
    assert results.networks == []
    page = views.document(results, [], {})
    assert "count is 13" in page
    assert "cards/resnet/folding-0.5-0-i13, cards/resnet/grail-magnitude-0.5-0-i13" in page


def test_training_after_pruning_trains(space: Workspace) -> None:
    cells = [Cell(CARDS, "magnitude-uniform", 0.3, 0, inputs=8, epochs=epochs) for epochs in (0, 1)]
    work(cells, space)
    before, after = rows_of(space, cells)
    assert before.deviation != after.deviation
    assert before.macs == after.macs


def test_another_process_gives_what_this_one_gives(space: Workspace) -> None:
    cells = [Cell(CARDS, "magnitude-global+bn", 0.5, 0, inputs=inputs) for inputs in (6, 8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.no_training.runner.processes", lambda jobs: pool(1))  # one is enough
        work(cells, space, jobs=2)
    apart = {each.cell: each.deviation for each in space.rows()}
    work(cells, space, again=True)
    together = {each.cell: each.deviation for each in space.rows()}
    assert apart.keys() == together.keys() == set(cells)
    for cell in cells:
        assert apart[cell] == pytest.approx(together[cell], rel=1e-5)


def test_every_method_and_setting_has_a_label_of_its_own() -> None:
    cells = [Cell(CARDS, name, macs, 0) for name in METHODS for macs in FRACTIONS]
    cells += [Cell(CARDS, "ours", 0.5, 0, inputs=8), Cell(CARDS, "ours", 0.5, 0, epochs=2)]
    assert len({cell.label for cell in cells}) == len(cells)


def test_the_best_of_a_family_is_of_the_mean_over_seeds() -> None:
    results = Results(a_run())
    assert results.best(mean_deviation, RESNET, ("stock",), 0.5, most=False) == "magnitude-uniform+bn"
    assert (
        results.best(mean_deviation, RESNET, ("stock",), 0.5, most=False, plain=True) == "magnitude-uniform"
    )
    assert results.best(delta_t, RESNET, ("stock", "ours"), 0.5, most=True) == "ours"
    assert results.best(delta_t, RESNET, ("grail",), 0.5, most=True) is None
    assert results.values(delta_t, RESNET, "ours", 0.5) == pytest.approx([-0.5, -0.6])


def test_a_curve_crosses_where_it_first_falls_below() -> None:
    curve = [Point(0.8, -1, ""), Point(0.6, -3, ""), Point(0.5, -1.5, ""), Point(0.4, -9, "")]
    found = crossing(curve, -2)
    assert found is not None
    assert found.macs == pytest.approx(0.7)
    assert crossing([Point(0.5, -4, "")], -2).macs == pytest.approx(0.75)
    held = crossing([Point(0.8, 1, ""), Point(0.3, -1.9, "")], -2)
    assert (held.macs, held.is_bound, str(held)) == (0.3, True, "≤ 0.30")
    assert crossing([], -2) is None


def test_goals_are_met_or_not() -> None:
    good, bad = (goals.goals(Results(a_run(ours=ours))) for ours in (0.2, 0.3))
    (line,) = [each for each in good if each.what.startswith("deviation")]
    assert line.met
    assert "0.20 ×" in line.found
    assert "magnitude-uniform+bn" in line.against
    assert not next(each for each in bad if each.what.startswith("deviation")).met
    shown = {each.what: each.met for each in good}
    assert shown["ΔT at 50 % MACs, no training"]  # -0.55 on average
    assert shown["worst task at 50 % MACs, no training"]  # -1.55
    assert next(met for what, met in shown.items() if what.startswith("MACs at which"))
    trained = [row(RESNET, name, 0.3, 0.1, gain, epochs=2) for name, gain in (("ours", -0.6), ("folding", 1))]
    (line,) = [each for each in goals.goals(Results(trained)) if "2 epochs" in each.what]
    assert not line.met
    assert line.against == ""  # folding is no stock


def test_the_page_has_what_was_run() -> None:
    results = Results([*a_run(), *a_run(CARDS)])
    page = views.document(results, ["plot.png"], {"whole call": 61.0, "refit": 40.0})
    assert "over 2 seeds" in page
    assert "![plot.png](plot.png)" in page
    assert "| refit | 40 |" in page
    assert page.count("### nyuv2/resnet") == page.count("### cards/resnet") == 1
    assert "magnitude-uniform+bn" in page
    assert "## What each part does" not in page
    assert "## How many images" not in page
    json.dumps(views.as_json(results, {}))


def test_the_ablation_and_the_number_of_images_are_shown_where_they_were_run() -> None:
    some = [row(RESNET, "no refit", 0.3, 0.7, -9.0), row(RESNET, "ours", 0.5, 0.1, -3.0, inputs=8)]
    results = Results([*a_run(seeds=1), *some])
    page = views.document(results, [], {})
    (line,) = [line for line in page.splitlines() if line.startswith("| no refit |")]
    assert line.split(" | ")[1] == "0.700"
    assert "| nyuv2/resnet, 50% | 0.100 / -3.0 | – | – | 0.100 / -0.5 | – |" in page
    without = [row(CARDS, "ours", 0.3, 0.3, 0.0)]
    table = views.ablation(Results([*a_run(seeds=1), *some, *without]))
    (line,) = [line for line in table.splitlines() if line.startswith("| no refit |")]
    assert line.split(" | ")[3] == "–"  # no mean over networks where one is missing


def test_the_plot_needs_two_points(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    alone = Results([row(RESNET, "ours", 0.5, 0.1, -1.0)])
    assert not figures.pareto(path, alone, delta_t, "ΔT", most=True)
    assert not path.exists()
    assert figures.pareto(path, Results(a_run()), delta_t, "ΔT", most=True, floor=-5.0)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_what_is_there(
    space: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, out = Workspace(space.folder, space.cache), tmp_path / "out"
    arguments = ["--only", "views", "--rows", str(known.folder), "--out", str(out)]
    assert command.main(arguments) == 1
    assert "has no row of the present settings" in capsys.readouterr().err
    assert not out.exists(), "a page must not be replaced by one without rows"

    for each in a_run(seeds=1):
        known.shelf.put(replace(each, **known.facts(each.cell)))
    stale = row(RESNET, "random", 0.5, 1.0, -50.0)
    known.shelf.put(replace(stale, settings="other"))
    known.timed.write_text('{"whole call": 61.0}', encoding="utf-8")
    assert command.main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {
        "no_training.md",
        "no_training-delta.png",
        "no_training-deviation.png",
    }
    page = (out / "no_training.md").read_text(encoding="utf-8")
    assert "over one seed" in page
    assert "| whole call | 61 |" in page
    assert "| random |" not in page
    assert str(out / "no_training.md") in capsys.readouterr().out
    summary = json.loads((known.folder / "summary.json").read_text(encoding="utf-8"))
    assert {entry["method"] for entry in summary["rows"]} == {each.cell.method for each in a_run()}
    assert summary["call_seconds"] == {"whole call": 61.0}


def test_the_command_refuses_what_is_not_there(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--methods", "best"], ["--macs", "0.55"], ["--seeds", "0"], ["--networks", "vgg"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
    capsys.readouterr()
    monkeypatch.setenv("DISPARSE_DATA", str(tmp_path / "nowhere"))
    assert command.main(["--quick", "--rows", str(space.folder), "--cache", str(tmp_path / "cache")]) == 1
    assert "DISPARSE_DATA" in capsys.readouterr().err


def test_parts_run_what_belongs_to_them(space: Workspace) -> None:
    options = command._parser().parse_args(["--seeds", "2"])
    tables, ablation, inputs, trained = (
        command.cells(part, space, options) for part in ("tables", "ablation", "inputs", "finetune")
    )
    assert {cell.network for cell in tables} == {network.name for network in NETWORKS}
    assert {cell.seed for cell in tables} == {0, 1}
    assert not {cell.method for cell in tables} & {cell.method for cell in ablation}
    assert {cell.method for cell in tables} | {cell.method for cell in ablation} == set(METHODS)
    assert {cell.inputs for cell in inputs} == {8, 16, 32, 128}
    assert {(cell.method, cell.epochs) for cell in trained} == {("ours", 2), ("hessian-global+bn", 2)}
    quick = command.cells("tables", space, command._parser().parse_args(["--quick"]))
    assert len({cell.network for cell in quick}) == 2
    assert {cell.macs for cell in quick} == {0.5}


def test_the_stored_summary_is_that_of_the_page() -> None:
    """The rows of the published run were not kept; goals, seconds and means were."""
    folder = RESULTS / "no_training"
    if not folder.is_dir():
        pytest.skip("the results are in the repository only")
    page = (PAGES / "no_training.md").read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert views.goal_table(goals.Goal(**line) for line in summary["goals"]) in page
    seconds = json.loads((folder / "call.json").read_text(encoding="utf-8"))
    assert summary["call_seconds"] == seconds
    assert f"\n{views.call_table(seconds)}\n" in page
    assert list(summary["methods"]) == list(METHODS)
    assert {entry["method"] for entry in summary["rows"]} == set(METHODS)


def test_the_timed_call_is_of_its_stages() -> None:
    model = multitask("test_resnet", {"depth": DenseHead(1, 4, (-1,)), "scene": LinearHead(3)}, image_size=32)
    spent = call.seconds(model.eval(), call.images(4, side=32))
    assert next(iter(spent)) == "whole call"
    parts = {name: value for name, value in spent.items() if name != "whole call"}
    assert list(parts) == [
        "structure",
        "curves",
        "refit between rounds",
        "refit",
        "cutting and verification",
        "rest",
    ]
    for stage, seconds in parts.items():
        assert seconds > 0, stage
    assert parts["rest"] < 0.2 * spent["whole call"]
    assert sum(parts.values()) == pytest.approx(spent["whole call"], rel=0.05)
