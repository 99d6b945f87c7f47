"""``disparse report``, and the pages that other commands and the library write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.cli import main
from tests.support.command_line import document_of, prune_tiny, refusal
from tests.support.pages import REPORT, Page, folder

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = folder(tmp_path / "small")
    assert main(["report", str(small)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Tiny: MACs 100 → 50 (50 %) · ")
    assert f"written to {small}/report.html" in shown
    assert Page((small / "report.html").read_text(encoding="utf-8")).root.id("votes")
    assert main(["report", str(small), "--json", "--out", str(tmp_path / "page.html")]) == 0
    document = document_of(capsys)
    assert document["page"] == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == (small / "report.html").read_bytes()


def test_markdown_goes_to_standard_output_and_no_page_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = folder(tmp_path / "small")
    assert main(["report", str(small), "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[4] == "| near | 4 % | 1 % | 8 | 50 % | 50 % |"
    assert not (small / "report.html").exists()


def test_two_folders_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", {"method": "Compensated"})
    assert main(["report", "diff", str(one), str(two), "--out", str(tmp_path / "diff.html")]) == 0
    shown = capsys.readouterr().out
    assert "one and two have the same plan" in shown
    assert "Compensated" in shown
    assert Page((tmp_path / "diff.html").read_text(encoding="utf-8")).root.id("figures-table")
    assert main(["report", "diff", str(one), str(two), "--json"]) == 0
    assert document_of(capsys)["settings"] == [
        {"setting": "method", "first": "DiSparse", "second": "Compensated"}
    ]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    small = folder(tmp_path / "small")
    code = (
        "import sys\nfrom disparse_structured.cli import main\n"
        f"code = main(['report', {str(small)!r}])\n"
        "print(code, [name for name in ('torch', 'numpy', 'scipy', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_damaged_report_is_refused_by_report_and_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = folder(tmp_path / "small", {"latency": {"models": 3}})
    for command in ("report", "show"):
        assert "latency.cpu is missing" in refusal(capsys, command, str(small))
    more = {"latency": {**REPORT["latency"], "more": 1}}
    assert "is not a report of this release" in refusal(capsys, "show", str(folder(tmp_path / "more", more)))
    assert "is not a folder" in refusal(
        capsys, "report", str(small), "--out", str(tmp_path / "no" / "a.html")
    )


def test_prune_writes_the_page_and_a_later_plan_removes_it(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--method", "disparse", "--refit", "none", "--no-onnx", "--no-verify")
    words = prune_tiny(*quick, "--html", "--json")
    assert main(words) == 0
    document = document_of(capsys)
    assert document["files"] == [
        "plan.json",
        "weights.safetensors",
        "report.json",
        "settings.toml",
        "report.html",
    ]
    report = json.loads(Path("out/report.json").read_text())
    assert (report["schema"], report["command"]) == (1, words)
    root = Page(Path("out/report.html").read_text(encoding="utf-8")).root
    assert root.id("command").text.startswith("disparse prune --model tiny:build")
    assert "was not verified" in root.id("checks").text
    assert main(["show", "out"]) == 0
    assert main(prune_tiny(*quick)) == 0
    assert not Path("out/report.html").exists()


def test_the_library_writes_the_page_and_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    result = ds.prune(
        model, torch.randn(16, 4), [ds.Task("<output>", ())], macs=0.5, refit=None, verify=False
    )
    result.to_html(tmp_path / "page.html")
    root = Page((tmp_path / "page.html").read_text(encoding="utf-8")).root
    assert root.id("groups-table").table()[1][1:6] == ["0", "channel", "<output>", "16", "8"]
    for shown in (result, result.plan, result.report):
        text = shown._repr_html_()
        page = Page(text).root
        assert page.all("table")
        assert not page.all("script")
        assert "<output>" in page.text
        assert len(text) < 10_000
