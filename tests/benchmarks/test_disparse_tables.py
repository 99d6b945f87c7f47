"""The tables: views of made-up rows, resumption, the stored rows, and real cells on a small pack."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import disparse_tables as command
from benchmarks.baselines import METHODS
from benchmarks.data import VARIABLE
from benchmarks.harness.cell import described
from benchmarks.harness.files import CACHE, PAGES, RESULTS
from benchmarks.tables import branches, experiment, figures, loudness, page, ranks, views
from benchmarks.tables.cells import DENSE, Cell, Figures, Row
from benchmarks.tables.problems import problem
from benchmarks.tables.runner import Workspace, table_cells, work
from benchmarks.tables.settings import NYUV2, SCALES, Scale

OURS, JOINT, RANDOM = "pretrained/disparse", "pretrained/joint-fisher", "pretrained/random"
SHOWN = {name: METHODS[name].name for name in (OURS, JOINT, RANDOM)}
SCALE = Scale("desk", (NYUV2,), seeds=3, removed=(0.7, 0.5), methods=tuple(SHOWN))


def scene(miou: float, depth: float, angle: float) -> Figures:
    return {"seg13": {"miou": miou}, "depth": {"abs_error": depth}, "normals": {"mean_angle": angle}}


def row(
    method: str, seed: int, delta: float, after: Figures | None = None, removed: float = 0.7, **more: Any
) -> Row:
    cell = Cell("nyuv2", method, removed if method != DENSE else 0.0, seed)
    share = 1 - cell.removed
    facts: dict[str, Any] = {"after": after or scene(0.1, 0.8, 40.0), "macs": share, "parameters": share / 2}
    return Row(cell, "", delta_t=delta, **{**facts, **more})


def cells_of(table: str, name: str) -> list[str]:
    (found,) = [text for text in table.splitlines() if text.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_a_table_has_means_and_deviations_and_bold_winners() -> None:
    rows = [row(OURS, seed, delta) for seed, delta in enumerate((-1.0, -2.0, -6.0))]
    rows += [row(JOINT, seed, -4.0, scene(0.08, 0.7, 41.0)) for seed in range(3)]
    rows += [row(DENSE, seed, 0.0, scene(0.2, 0.6, 35.0)) for seed in range(3)]
    table = views.table(SCALE, "nyuv2", {OURS: "disparse", JOINT: "joint"}, views.by_cell(rows), 0.7)

    # Mean -3; squared deviations 4 + 1 + 9 = 14, over n - 1 = 2: std is the root of 7, 2.6.
    assert cells_of(table, "disparse") == [
        "**0.100 ± 0.000**",
        "0.800 ± 0.000",
        "**40.0 ± 0.0**",
        "**-3.0 ± 2.6**",
        "30.0%",
        "15.0%",
        "3/3",
    ]
    joint = cells_of(table, "joint")
    assert joint[:4] == ["0.080 ± 0.000", "**0.700 ± 0.000**", "41.0 ± 0.0", "-4.0 ± 0.0"]
    assert "**" not in "".join(cells_of(table, "dense")), "the dense network is no competitor"


def test_what_is_missing_and_what_failed_is_said() -> None:
    failed = Row(Cell("nyuv2", JOINT, 0.7, 0), "", error="BudgetError: out\nof reach | at 3 %")
    rows = [row(OURS, 0, -2.0), row(OURS, 1, -4.0), failed]
    text = views.table(SCALE, "nyuv2", SHOWN, views.by_cell(rows), 0.7)
    assert cells_of(text, "disparse")[3:] == ["-3.0 ± 1.4", "30.0%", "15.0%", "2/3"]
    assert cells_of(text, "random") == ["not run"] * 4 + ["", "", "0/3"]
    assert cells_of(text, "joint-fisher")[0] == "failed"
    assert text.count("Failed: joint-fisher: BudgetError: out of reach | at 3 %") == 1

    partly = [*rows, row(JOINT, 1, -5.0)]
    shown = cells_of(views.table(SCALE, "nyuv2", SHOWN, views.by_cell(partly), 0.7), "joint-fisher")
    assert shown[3] == "-5.0 (others failed)"
    assert shown[-1] == "1/3"


def test_a_summary_has_a_column_a_share() -> None:
    rows = [row(OURS, 0, -3.0), row(OURS, 0, -1.0, removed=0.5), row(JOINT, 0, -2.0)]
    text = views.summary(SCALE, "nyuv2", SHOWN, views.by_cell(rows))
    assert text.splitlines()[0] == "| method | ΔT % ↑ at −50% MACs | ΔT % ↑ at −70% MACs |"
    assert cells_of(text, "disparse") == ["-1.0", "-3.0"]
    assert cells_of(text, "joint-fisher") == ["not run", "**-2.0**"]


def test_costs_are_summed_up_in_words() -> None:
    rows = [
        row("dynamic/disparse", 0, 0.0, macs=0.27, seconds={"cpu": 30.0, "train": 20.0, "companion": 0.4}),
        row("dynamic/disparse", 1, 0.0, macs=0.3, seconds={"cpu": 40.0, "train": 10.0, "companion": 0.4}),
        row(OURS, 0, 0.0, macs=0.9, seconds={"cpu": 8.0, "train": 1.0, "companion": 1.0}),
    ]
    text = views.costs("nyuv2", views.by_cell(rows))
    assert "end at 90.0% to 100.0% of their MAC budget (2 runs)" in text
    assert "3.0% of the training time on average and 4.0% at most" in text
    assert "one pretrained run: 8." in text
    assert "one dynamic run: 35." in text
    assert views.costs("cards", views.by_cell(rows)) == ""


def test_no_two_cells_share_a_label() -> None:
    scale = SCALES["desk"]
    cells = [*table_cells(scale), *(cell.dense for cell in table_cells(scale))]
    for module in (loudness, branches):
        cells += [cell for setup in scale.setups for cell in module.cells(scale, setup.dataset)]
    assert len({cell.label for cell in cells}) == len(set(cells)) > 450


def test_a_run_that_is_stopped_has_the_most_telling_cells() -> None:
    cells = table_cells(SCALES["desk"])
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    first = [cell.removed for cell in cells if cell.seed == 0]
    assert first == sorted(first, key=(0.7, 0.5, 0.9).index)
    assert cells[0].method == "pretrained/compensated"


def test_choices_are_described_without_addresses() -> None:
    for method in METHODS.values():
        told = json.dumps(experiment.description(method))
        assert " at 0x" not in told
    assert described(METHODS["static/disparse"].criterion) != described(METHODS["static/random"].criterion)


def test_ranks_of_two_scales() -> None:
    def at(values: dict[str, float]) -> list[Row]:
        return [row(f"pretrained/{name}", 0, value) for name, value in values.items()]

    # Ranks 1 2 3 against 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8) = 0.5.
    one, other = at({"a": 1.0, "b": 2.0, "c": 3.0, "only": 0.0}), at({"a": -9.0, "b": 7.0, "c": 5.0})
    (found,) = ranks.agreement(one, other)
    assert found.place == ("nyuv2", "pretrained", 0.7)
    assert found.methods == ("a", "b", "c")
    assert found.rho == pytest.approx(0.5)
    assert "| nyuv2, pretrained, −70% MACs | 3 | 0.50 |" in ranks.view([found], "desk", "paper")
    assert ranks.agreement(one, other[:2]) == []
    assert "not run" in ranks.view([], "desk", "paper")


def test_loss_scale_counts_the_plans_that_stay() -> None:
    scale = replace(SCALE, seeds=2)
    rows = {}
    for cell in loudness.cells(scale, "nyuv2"):
        plan = "same" if cell.method == OURS else f"{cell.loud}{cell.factor}"
        rows[cell] = Row(cell, "", after=scene(0, 0, 0), delta_before=-9.0, delta_t=-1.0, plan=plan)
    table = loudness.view(scale, "nyuv2", rows)
    assert cells_of(table, "normals × 20")[:6] == [
        "-9.0 ± 0.0", "-1.0 ± 0.0", "2/2", "-9.0 ± 0.0", "-1.0 ± 0.0", "0/2"
    ]  # fmt: skip
    assert cells_of(table, "depth ÷ 20")[2] == "2/2"
    assert cells_of(table, "balanced")[5] == "2/2"
    assert cells_of(loudness.view(scale, "nyuv2", {}), "balanced") == ["not run"] * 9


def test_branches_show_where_the_trunk_was_cut() -> None:
    scale = replace(SCALE, seeds=2)
    rows = {}
    for cell in branches.cells(scale, "nyuv2"):
        if cell.trunk != branches.NOTHING:
            note = "shared before layer3" if cell.trunk else ""
            rows[cell] = Row(cell, "", delta_t=-2.0 if cell.trunk else -1.0, note=note)
    lost = Cell("nyuv2", "static/disparse", 0.7, 1, trunk=branches.WATERSHED)
    rows[lost] = Row(lost, "", error="NoWatershed: nowhere")
    table = branches.view(scale, "nyuv2", rows)
    assert cells_of(table, "shares the whole trunk") == ["-1.0 ± 0.0"] * 4
    cut = cells_of(table, "shares up to the watershed (shared before layer3)")
    assert cut == ["-2.0 ± 0.0"] * 3 + ["-2.0 (1 of 2 seeds)"]
    assert cells_of(table, "shares nothing") == ["not run"] * 4


def test_a_plot_is_drawn_of_what_is_there(tmp_path: Path) -> None:
    regimes = {"pretrained": list(SHOWN), "static": ["static/disparse"]}
    assert not figures.pareto(tmp_path / "none.png", SCALE, "nyuv2", regimes, {})
    alone = views.by_cell([row(OURS, 0, -1.0)])
    assert not figures.pareto(tmp_path / "none.png", SCALE, "nyuv2", regimes, alone)
    assert not (tmp_path / "none.png").exists()
    rows = [row(name, seed, -40.0 * seed, removed=r) for name in SHOWN for seed in (0, 1) for r in (0.5, 0.7)]
    assert figures.pareto(tmp_path / "some.png", SCALE, "nyuv2", regimes, views.by_cell(rows))
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of twelve random scenes in the layout of the NYU-v2 pack."""
    rng = np.random.default_rng(0)
    count, size = 12, (32, 32)
    (tmp_path / "nyuv2").mkdir()
    np.savez(
        tmp_path / "nyuv2" / "train.npz",
        rgb=rng.integers(0, 256, (count, 3, *size)).astype(np.uint8),
        seg13=rng.integers(0, 13, (count, *size)).astype(np.uint8),
        depth=rng.uniform(0.7, 9.9, (count, *size)).astype(np.float16),
        normals=rng.integers(-31, 32, (count, 3, *size)).astype(np.int8),
        edges=(rng.random((count, *size)) < 0.1).astype(np.uint8),
        is_val=np.arange(count) >= 8,
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


TINY = replace(
    NYUV2,
    size=(32, 32),
    options=(("channels", (8, 8, 16, 16)), ("stem_width", 8)),
    head_width=4,
    epochs=2,
    finetune_epochs=1,
    batch_size=4,
    scored_batches=1,
    every=2,
)


def test_cells_are_run_once_and_failures_are_kept(pack: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scale = Scale("tiny", (TINY,), seeds=1)
    space = Workspace(scale, pack / "rows", pack / "cache", jobs=1)
    good = [Cell("nyuv2", "dynamic/disparse", 0.7, 0), Cell("nyuv2", OURS, 0.7, 0, trunk=branches.NOTHING)]
    hopeless = Cell("nyuv2", JOINT, 0.999, 0)
    said: list[str] = []

    assert work(space, [*good, hopeless], said.append) == 4
    capfd.readouterr()  # the traceback of the failure
    assert len(said) == 5
    assert "FAILED: BudgetError" in said[-1]
    found = views.by_cell(space.rows()[0])
    for cell in good:
        result = found[cell]
        assert result.error is None
        assert result.macs is not None
        assert 0.2 < result.macs <= 0.3
        assert result.dense == found[cell.dense].after
        assert result.after.keys() == {"seg13", "depth", "normals"}
        assert result.after != result.before
        assert result.seconds["companion"] <= result.seconds["train"] <= result.seconds["wall"]
        assert {"cpu", "torch", "device"} <= result.machine.keys()
    assert "BudgetError" in (found[hopeless].error or "")

    shelf = pack / "rows" / "tiny-nyuv2.jsonl"
    before = shelf.stat().st_mtime_ns
    assert work(space, [*good, hopeless], said.append) == 0
    assert shelf.stat().st_mtime_ns == before
    assert space.finished() == {*good, hopeless, hopeless.dense}
    assert replace(space, retry=True).finished() == {*good, hopeless.dense}
    other = replace(space, scale=replace(scale, setups=(replace(TINY, epochs=3),)))
    assert other.finished() == set()
    assert other.rows() == ([], 4)


def test_the_stored_rows_give_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go stale when the name or a setting of a criterion, an arbiter or a ranking changes."""
    if not (RESULTS / "tables").is_dir():
        pytest.skip("the results are in the repository only")
    space = Workspace(SCALES["desk"], RESULTS / "tables", CACHE)
    rows, stale = space.rows()
    assert (len(rows), stale) == (876, 0)
    written = (PAGES / page.NAME).read_text(encoding="utf-8")
    assert written.startswith(page.OPENING)
    emptied = re.sub(r"(: written by [^>]*-->).*?(<!-- [^>]*: end -->)", r"\1\n\2", written, flags=re.DOTALL)
    assert "seg13" not in emptied
    (tmp_path / page.NAME).write_text(emptied, encoding="utf-8")
    monkeypatch.setattr(figures, "pareto", lambda *_: True)  # the plots are not compared
    page.write(space, tmp_path)
    assert (tmp_path / page.NAME).read_text(encoding="utf-8") == written


def test_views_leave_rows_of_other_settings_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell("nyuv2", OURS, 0.7, 0)
    bench = experiment.Bench(SCALES["desk"].setup("nyuv2"), tmp_path)
    shelf = Workspace(SCALES["desk"], tmp_path / "rows", tmp_path).shelf("nyuv2")
    for removed in (0.7, 0.5):
        other = replace(cell, removed=removed)
        facts = experiment.facts(bench, other, METHODS[OURS])
        shelf.put(replace(row(OURS, 0, -12.3, removed=removed), **facts))
    shelf.put(row(JOINT, 0, -45.6))
    arguments = ["--only", "views", "--rows", str(tmp_path / "rows"), "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    text = (tmp_path / "disparse_tables.md").read_text(encoding="utf-8")
    assert "-12.3" in text
    assert "-45.6" not in text
    assert (
        cells_of(text.partition("### NYU-v2, pretrained")[2].partition("**50%")[0], "lth †")
        == ["not run"] * 3
    )
    assert "1 rows of other settings are left out" in capsys.readouterr().err
    assert (tmp_path / "pareto-desk-nyuv2.png").is_file()

    assert command.main([*arguments, "--weights", "published"]) == 0
    assert "## Desk-published scale" in (tmp_path / "disparse_tables.md").read_text(encoding="utf-8")

    shelf.path.write_text("{", encoding="utf-8")
    assert command.main(arguments) == 1
    assert "is not a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--removed", "1.5"], "'1.5' is not a share between 0 and 1"),
        (["--removed", "half"], "'half' is not a share"),
        (["--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["--methods", "pretrained/nothing"], "invalid choice: 'pretrained/nothing'"),
        (["--data", "imagenet"], "invalid choice: 'imagenet'"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_missing_data_stops_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    problem.cache_clear()
    out = tmp_path / "out"
    folders = ["--out", str(out), "--rows", str(out / "rows")]
    assert command.main(["--quick", "--data", "cards", *folders]) == 1
    assert "Set the environment variable DISPARSE_DATA" in capsys.readouterr().err
    assert not out.exists()


def test_a_scale_without_the_data_set_says_so() -> None:
    with pytest.raises(SystemExit, match="the scale paper has the data nyuv2 only"):
        command.main(["--scale", "paper", "--data", "cards"])
