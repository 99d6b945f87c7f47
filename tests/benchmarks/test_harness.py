"""What the benchmark families share: shelves of rows, processes with limits, pages and options."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch_pruning as tp
from torch import nn

from benchmarks import stock
from benchmarks.data import DataMissing
from benchmarks.harness import files, limits, options, views
from benchmarks.harness.cell import described, digest
from benchmarks.harness.limits import Limits, run_limited
from benchmarks.harness.measure import paired_ratio
from benchmarks.harness.row import RowError as DamagedRow
from benchmarks.harness.row import Shelf, decode, encode, reason, shortened
from benchmarks.harness.runner import Progress, processes, remaining, run_all


@dataclass(frozen=True)
class Cell:
    name: str
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.name}-{self.seed}"


@dataclass(frozen=True)
class Row:
    cell: Cell
    value: float = 0.0
    more: dict[str, float] = field(default_factory=dict)


def shelf(folder: Path) -> Shelf[Row]:
    return Shelf(folder / "deep" / "rows.jsonl", Row, Cell)


# Rows.


def test_rows_come_back_as_they_were_put_one_a_line_and_sorted(tmp_path: Path) -> None:
    kept = shelf(tmp_path)
    assert kept.rows() == []
    rows = [Row(Cell(name), 0.1 + 0.2, {"ß\u2028\n": 1e-300}) for name in ("b", "a", "c")]
    for row in rows:
        kept.put(row)
    assert kept.rows() == sorted(rows, key=lambda row: row.cell.name)
    assert kept.by_label()["b-0"] == rows[0]
    assert len(kept.path.read_text(encoding="utf-8").split("\n")) == 4
    assert [each.name for each in kept.path.parent.iterdir()] == ["rows.jsonl"]


def test_a_cell_has_one_row_the_last(tmp_path: Path) -> None:
    kept = shelf(tmp_path)
    for value in (1.0, 2.0):
        kept.put(Row(Cell("a"), value))
        kept.put(Row(Cell("a", seed=1), -value))
    assert [(row.cell.seed, row.value) for row in kept.rows()] == [(0, 2.0), (1, -2.0)]


def test_a_row_that_is_put_again_leaves_the_other_lines_alone(tmp_path: Path) -> None:
    kept = shelf(tmp_path)
    kept.put(Row(Cell("b"), 1.0))
    line = '{"more": {},  "value": 1.50, "cell": {"name": "a", "seed": 0}}'  # not as we would write it
    kept.path.write_text(f"{line}\n{kept.path.read_text()}", encoding="utf-8")
    kept.put(Row(Cell("b"), 2.0))
    assert kept.path.read_text().splitlines()[0] == line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Expecting value"),
        ("[]", "it lacks cell, value, more"),
        ('{"cell": {}}', "it lacks value, more"),
        ('{"cell": {"size": 1}, "value": 1, "more": {}}', "unexpected keyword argument 'size'"),
        ('{"cell": {"name": "b"}, "value": 1, "more": {}, "new": 2}', "unexpected keyword argument 'new'"),
        ("\x00{", "Expecting value"),
    ],
)
def test_a_damaged_line_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    kept = shelf(tmp_path)
    kept.put(Row(Cell("a")))
    kept.path.write_text(f"{kept.path.read_text()}{line}\n", encoding="utf-8")
    expected = rf"rows\.jsonl, line 2, is not a row \(.*{message}.*\)\. Delete it"
    with pytest.raises(DamagedRow, match=expected):
        kept.rows()
    before = kept.path.read_bytes()
    with pytest.raises(DamagedRow):
        kept.put(Row(Cell("b")))
    assert kept.path.read_bytes() == before


def put_many(folder: Path, name: str) -> None:
    for seed in range(20):
        shelf(folder).put(Row(Cell(name, seed)))


def test_rows_put_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=put_many, args=(tmp_path, name)) for name in ("a", "b")]
    for process in others:
        process.start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(put_many, tmp_path), ("c", "d")))
    for process in others:
        process.join()
    assert len(shelf(tmp_path).rows()) == 80


def test_a_row_fits_on_a_line() -> None:
    row = Row(Cell("two\nlines"), more={"x": 1.5})
    assert "\n" not in encode(row)
    assert decode(encode(row), Row, Cell) == row


def test_a_reason_is_one_short_line() -> None:
    assert reason(ValueError("first\n  second")) == "ValueError: first second"
    assert shortened("x" * 400) == "x" * 400
    assert shortened("x" * 401) == "x" * 400 + "…"
    assert shortened(f"assertion at {timm.__file__}:8") == "assertion at timm/__init__.py:8"


def test_settings_are_told_apart_whatever_the_order_of_their_names() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert described(Cell("a")) == "Cell(name='a', seed=0)"
    assert described(Cell) == "Cell"
    assert " at 0x" not in described([object(), shelf])


# Running.


def test_what_is_done_is_left_out_unless_asked_for_and_no_cell_is_run_twice() -> None:
    cells = [Cell("a"), Cell("b"), Cell("a")]
    assert remaining(cells, {Cell("b")}.__contains__) == [Cell("a")]
    assert remaining(cells, {Cell("b")}.__contains__, again=True) == [Cell("a"), Cell("b")]


@pytest.mark.parametrize("jobs", [0, 2])
def test_every_item_is_run_and_its_result_handed_on(jobs: int) -> None:
    found: list[int] = []
    if jobs:
        with ThreadPoolExecutor(jobs) as pool:
            run_all(pool, abs, [-1, -2, -3], found.append)
    else:
        run_all(None, abs, [-1, -2, -3], found.append)
    assert sorted(found) == [1, 2, 3]


def test_processes_have_one_thread_each() -> None:
    found: list[int] = []
    asked = ["__import__('torch').get_num_threads()", "1000 + __import__('os').getpid()"]
    with processes(2) as executor:
        run_all(executor, eval, asked, found.append)
    threads, number = sorted(found)
    assert threads == 1
    assert number - 1000 != os.getpid()
    with processes(1) as executor:
        assert executor is None


def test_a_failure_cancels_what_has_not_begun() -> None:
    begun: list[int] = []
    go = threading.Event()

    def run(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise KeyError(number)
        go.wait()

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyError):
            run_all(pool, run, range(50), lambda _: None)
        go.set()
    assert len(begun) < 50


def test_progress_counts_and_estimates() -> None:
    said: list[str] = []
    progress = Progress(2, 5, 1, said.append)
    progress.finished("a-0", 12.3)
    progress.finished("b-0", 4.0, "FAILED: no")
    assert said == [
        "2 of 5 cells to run, 1 at a time",
        "[1/2] a-0  (12 s, 0 min left)",
        "[2/2] b-0: FAILED: no  (4 s, 0 min left)",
    ]


def limited(tmp_path: Path, *command: str, **given: float) -> str | None:
    module, *arguments = command
    return run_limited(module, arguments, tmp_path / "log", Limits(**given), threading.Event())


def test_a_process_that_ends_well_has_no_reason_and_its_words_are_kept(tmp_path: Path) -> None:
    assert limited(tmp_path, "calendar", "2024", "2") is None
    assert "February 2024" in (tmp_path / "log").read_text()


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    found = limited(tmp_path, "calendar", "--no-such-option")
    assert found is not None
    assert found.startswith("the process ended with status 2: ")
    assert "unrecognized arguments: --no-such-option" in found
    assert "usage: " in (tmp_path / "log").read_text()


def test_a_process_that_exceeds_a_limit_is_ended(tmp_path: Path) -> None:
    endless = ("timeit", "-n", "1", "-r", "1", "while True: pass")
    assert limited(tmp_path, *endless, seconds=0.2) == "it took more than 0.2 s"
    assert limited(tmp_path, *endless, memory=0.001) == "it took more than 0.001 GB of memory"
    killed = ("timeit", "-n", "1", "-r", "1", "import os; os.kill(os.getpid(), 9)")
    assert limited(tmp_path, *killed) == "the process was ended by SIGKILL"


def test_a_run_that_is_stopped_ends_its_process(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    endless = ["-n", "1", "-r", "1", "while True: pass"]
    with pytest.raises(KeyboardInterrupt):
        run_limited("timeit", endless, tmp_path / "log", Limits(), stop)


def test_threads_are_limited_in_the_process(tmp_path: Path) -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    assert limited(tmp_path, "timeit", "-n", "1", "-r", "1", code, threads=3) is None
    assert "3 3" in (tmp_path / "log").read_text()


def test_a_call_is_stopped_after_its_time_and_others_are_left_alone() -> None:
    with limits.within(0):
        pass
    with pytest.raises(TimeoutError, match="it took more than 1 s"), limits.within(1):
        threading.Event().wait(5)


# Files and pages.


def test_a_file_is_complete_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "facts.json"
    files.write_json(path, {"name": "ΔT"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ΔT"}

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"name": "other"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ΔT"}


def test_numbers_have_no_negative_zero_and_one_value_no_deviation() -> None:
    assert views.number(-0.04, 1) == "0.0"
    assert views.spread([-0.04], 1) == "0.0"
    assert views.spread([2.0], 3) == "2.000"
    assert views.spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert (views.percent(0.123), views.percent(None)) == ("12.3%", "–")
    assert (views.times(0.5), views.times(None)) == ("0.50 ×", "–")


def test_a_table_is_markdown() -> None:
    assert views.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_a_block_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "tables.md"
    place = partial(views.place, path, writer="benchmarks.some")
    place("desk", "one", "# Title")
    place("paper", "two", "# Never")
    path.write_text(path.read_text(encoding="utf-8") + "\nBy hand.\n", encoding="utf-8")
    place("desk", "three", "# Never")
    text = path.read_text(encoding="utf-8")
    assert "one" not in text
    assert "Never" not in text
    parts = [text.index(part) for part in ("# Title", "by benchmarks.some", "three", "two", "By hand.")]
    assert parts == sorted(parts)
    path.write_text(text.replace("<!-- desk: end -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tables.md has the line .*desk.*, but not .*desk: end"):
        place("desk", "four", "")


def test_the_links_of_the_pages_lead_somewhere() -> None:
    if not files.RESULTS.is_dir():
        pytest.skip("the results are in the repository only")
    pages = [*files.PAGES.glob("*.md"), *files.PAGES.parent.glob("*.md")]
    assert len(pages) > 4
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


# Options.


def test_a_command_reports_what_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    def run(error: BaseException | None) -> int:
        def command() -> Path:
            if error is not None:
                raise error
            return Path("page.md")

        return options.status(command, LookupError)

    assert run(None) == 0
    assert capsys.readouterr().out == "written to page.md\n"
    for error in (DataMissing("no data"), DamagedRow("no row"), KeyError("no key")):
        assert run(error) == 1
        assert str(error) in capsys.readouterr().err
    assert run(KeyboardInterrupt()) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (options.count, "0", "'0' is not a whole number of at least 1"),
        (options.count, "1.5", "'1.5' is not a whole number"),
        (options.positive, "0", "'0' is not a number above 0"),
        (options.positive, "much", "'much' is not a number above 0"),
        (options.share, "1", "'1' is not a share between 0 and 1"),
        (options.share, "half", "'half' is not a share"),
    ],
)
def test_wrong_values_are_refused(
    kind: object, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = options.parser("some", "What it does.")
    parser.add_argument("--value", type=kind)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        parser.parse_args(["--value", text])
    assert message in capsys.readouterr().err
    assert parser.format_help().startswith("usage: python -m benchmarks.some")


def test_right_values_are_taken() -> None:
    assert (options.count("3"), options.positive("0.5"), options.share("0.5")) == (3, 0.5, 0.5)


# Measuring, and the stock pruner.


def test_ratios_are_of_the_same_round() -> None:
    assert paired_ratio([1.0, 2.0, 9.0], [2.0, 4.0, 3.0]) == 0.5


def test_two_pruners_share_nothing() -> None:
    """Torch-Pruning's default dictionaries are shared, so that one pruner would see another's settings."""

    def pruner(heads: dict[nn.Module, int] | None) -> tp.pruner.BasePruner:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        return stock.pruner(model, (torch.randn(1, 4),), importance, 0.5, [model[2]], num_heads=heads)

    first = pruner({nn.Linear(4, 4): 2})
    second = pruner(None)
    for name in ("num_heads", "in_channel_groups", "out_channel_groups", "channel_groups"):
        found = [getattr(each, name, None) for each in (first, second)]
        assert found[0] is None or found[0] is not found[1], name
    assert len(second.num_heads) == 0


def test_stock_meets_the_macs_and_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )
    inputs = (torch.randn(1, 3, 8, 8),)
    pruned = stock.magnitude(model, inputs, ["4"], 0.5, over_all_layers=False)
    assert 0.4 < stock.macs(pruned, inputs) / stock.macs(model, inputs) <= 0.5
    assert pruned(*inputs).shape == model(*inputs).shape
    with pytest.raises(ValueError, match="does not reach 0% of the MACs"):
        stock.magnitude(model, inputs, ["4"], 1e-4, over_all_layers=False)


def test_no_process_is_left_behind_by_a_killed_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # as a process of run_limited, whose standard input is a pipe to its parent
        os.dup2(read, 0)
        os.close(write)
        limits.end_with_parent()
        threading.Event().wait(30)
        os._exit(7)
    os.close(read)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
