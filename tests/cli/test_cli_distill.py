"""``disparse prune --distill``: training without labels on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from disparse_structured.cli import main
from tests.support.command_line import prune_tiny, refusal

FAST = ("--method", "disparse", "--no-verify", "--no-onnx")


def test_the_result_is_distilled_and_the_report_says_so(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = prune_tiny("--distill", "tiny:stacked", "--distill-steps", "30", "--html", *FAST, "--json")
    assert main(words) == 0

    report = json.loads(capsys.readouterr().out)["report"]
    assert report["recovery"]["steps"] == 30
    assert report["deviation"]["refit"].keys() == report["deviation"]["final"].keys() == {"near", "aux"}
    names = {path.name for path in (tiny / "out").iterdir()}
    assert names == {"plan.json", "weights.safetensors", "report.json", "settings.toml", "report.html"}
    assert "distilled" in (tiny / "out" / "report.html").read_text(encoding="utf-8")

    assert main(["report", "out"]) == 0
    assert "after distillation" in capsys.readouterr().out
    assert main(["prune", "out/settings.toml", "--out", "again"]) == 0
    weights = [(tiny / name / "weights.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]


def test_a_folder_of_pictures(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "photos").mkdir()
    for number in range(12):
        Image.effect_noise((20, 16), 60 + number).convert("RGB").save(tiny / "photos" / f"{number}.png")
    how = ("--size", "16", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    given = ("--distill", "photos", "--distill-steps", "2", *how)
    torch.save(torch.randn(8, 3, 16, 16), tiny / "x.pt")

    assert main(prune_tiny(*given, *FAST, "--json", data="x.pt")) == 0
    recovery = json.loads(capsys.readouterr().out)["report"]["recovery"]
    assert recovery["samples"] == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--distill-steps", "3"], "--distill-steps belongs to --distill"),
        (["--distill-minutes", "3"], "--distill-minutes belongs to --distill"),
        (["--distill", "x.pt", "--distill-steps", "3", "--distill-minutes", "1"], "both say how long"),
        (["--distill", "nowhere"], "--distill 'nowhere' is neither a file nor package.module:name"),
        (["--distill", "nowhere.npy"], "--distill 'nowhere.npy': there is no such file"),
        (["--distill", "tiny:nothing"], "yields no batch"),
        (["--distill", "tiny:number"], "--distill 'tiny:number' is of type int"),
    ],
)
def test_what_contradicts_itself_or_is_missing_is_refused(
    tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    torch.save(torch.randn(8, 3, 8, 8), tiny / "x.pt")
    assert said in refusal(capsys, *prune_tiny(*words, *FAST))
    assert not (tiny / "out").exists()
