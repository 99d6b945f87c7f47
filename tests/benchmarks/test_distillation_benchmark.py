"""The benchmark of distillation on the smallest network."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import distillation
from benchmarks.harness.row import Shelf


def test_it_runs_resumes_and_says_what_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--rows", tmp_path / "rows", "--page", tmp_path / "page.md", "--cache", tmp_path / "cache"]
    given = ["--networks", "quick scenes", "--macs", "0.5", "--inputs", "16", "--variants", "default"]
    words = [*map(str, places), *given]

    assert distillation.main([*words, "--steps", "3"]) == 0
    rows = Shelf(tmp_path / "rows" / "rows.jsonl", distillation.Row, distillation.Cell).rows()
    assert {(row.cell.inputs, row.cell.steps) for row in rows} == {(16, 0), (16, 3)}
    assert all(row.before.keys() == row.after.keys() == row.cut.keys() for row in rows)
    assert "Not run" not in (tmp_path / "page.md").read_text(encoding="utf-8")

    assert distillation.main([*words, "--steps", "3"]) == 0
    assert "0 of 2 cells to run" in capsys.readouterr().out
    assert distillation.main([*words, "--steps", "3", "5", "--only", "views"]) == 0
    assert "Not run: quick scenes 0.5 inputs 0016 steps 0005" in (tmp_path / "page.md").read_text("utf-8")
