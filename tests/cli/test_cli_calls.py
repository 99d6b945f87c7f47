"""``--batched`` and ``--entry-points``: how the model is called, on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from disparse_structured import load
from disparse_structured.cli import main
from disparse_structured.cli.lookup import find
from tests.support.command_line import document_of, refusal

NETWORK = '''
"""Networks with several methods, and with an input that all examples share."""

import torch
from torch import nn

from disparse_structured import Task


class Coder(nn.Module):
    """``decode`` reads a width that ``forward`` does not."""

    def __init__(self):
        super().__init__()
        self.width = 24
        self.first, self.code = nn.Linear(6, 24), nn.Linear(24, 8)
        self.back, self.last = nn.Linear(8, 24), nn.Linear(24, 6)

    def decode(self, z):
        return self.last(self.back(z).relu().reshape(-1, self.width))

    def shifted(self, z, by):
        return self.decode(z + by)

    def frozen(self):
        for each in self.parameters():
            each.requires_grad_(False)

    def forward(self, x):
        return self.last(self.back(self.code(self.first(x).relu())).relu())


class Matching(nn.Module):
    """As many positions in the table as there are examples, if both are cut to two."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(12, 64), nn.Linear(64, 8)

    def forward(self, table, x):
        return self.narrow(self.wide(x).relu()) @ table.T


def seeded(kind):
    torch.manual_seed(0)
    return kind().eval()


build, matching = lambda: seeded(Coder), lambda: seeded(Matching)
vectors = torch.rand(24, 6, generator=torch.Generator().manual_seed(0))
inputs = {"table": torch.rand(24, 8), "x": torch.rand(24, 12)}
entries = {"decode": (torch.rand(2, 8),), "again": lambda model, x: model.decode(model.code(model.first(x)))}
loader = [{"x": batch, "goal": batch} for batch in vectors.split(4)]
tasks = [Task("output", (), lambda output, batch: (output - batch["goal"]).square().mean())]


def methods():
    return {"frozen": ()}


number = 3
'''
CUT = "prune --model net.py:build --data net.py:vectors --parameters 0.6 --out out --method disparse"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(NETWORK)


def _built(name: str) -> Any:
    return find(f"net.py:{name}", "--model")


@pytest.mark.parametrize(
    "words",
    [
        ["decode=2x8", "frozen"],
        ["shifted=2x8,1x8"],
        ["net.py:entries"],
        ["decode=2x8", "--entry-points", "net.py:methods"],
    ],
    ids=" ".join,
)
def test_a_named_method_follows_and_the_folder_knows_it(words: list[str]) -> None:
    assert main([*CUT.split(), "--no-onnx", "--entry-points", *words]) == 0
    report = json.loads(Path("out", "report.json").read_text())
    known = _built("entries") if words == ["net.py:entries"] else None
    small: Any = load("out", _built("build"), entry_points=known)
    z = torch.rand(5, 8)

    assert small.width == small.back.out_features < 24
    assert small.decode(z).shape == (5, 6)
    assert any(f"entry point {name!r}" in report["verification"]["beyond"] for name in report["entry_points"])


def test_a_training_run_follows_named_methods_too() -> None:
    given = "train --model net.py:build --data net.py:loader --tasks net.py:tasks --parameters 0.6 --out out"
    for regime in ("pretrained", "static", "early", "dynamic", "pretrained --stages 2"):
        words = [*given.split(), "--epochs", "1", "--regime", *regime.split(), "--no-onnx"]
        assert main([*words, "--entry-points", "decode=2x8", "--batched", "x"]) == 0
        small: Any = load("out", _built("build"))
        assert small.decode(torch.rand(5, 8)).shape == (5, 6)
        assert small.width < 24
        for file in Path("out").iterdir():
            file.unlink()


@pytest.mark.parametrize("said", [[], ["--batched", "x"]], ids=["found", "said"])
def test_an_input_that_all_examples_share_stays_whole(
    said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "net.py:matching", "--data", "net.py:inputs", *said, "--json"]
    assert main(["prune", *words, "--macs", "0.7", "--out", "out", "--method", "disparse"]) == 0
    report = document_of(capsys)["report"]

    assert report["shared_inputs"] == ["table"]
    shapes = [each["shape"] for each in report["inputs"]["leaves"]]
    assert shapes == [[24, 8], [2, 12]]
    assert report["export"]["dynamic"] == "batch"
    assert main(["inspect", *words]) == 0


def test_inspect_counts_what_an_entry_point_reads(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "--model", "net.py:build", "--example", "2x6", "--json"]
    kept = {}
    for more in ([], ["--entry-points", "net.py:entries"]):
        assert main([*words, *more]) == 0
        kept[bool(more)] = {group["name"] for group in document_of(capsys)["groups"]}
    assert "code" in kept[False] - kept[True]  # what decode takes keeps its width


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--entry-points encode=2x6", "entry point 'encode': Coder has no method of that name"),
        ("--entry-points decode", "entry point 'decode': the arguments do not fit (z): missing a required"),
        ("--entry-points decode=2x9", "entry point 'decode' fails on the model itself"),
        (
            "--entry-points net.py:number",
            "--entry-points 'net.py:number' is of type int. Name a dict that maps",
        ),
        ("--entry-points net.py:entires", "Did you mean 'entries'?"),
        ("--entry-points decode=2x8 net.py:entries", "--entry-points names 'decode' twice"),
        ("--batched y", "batched= names 'y', which is not a tensor among the arguments of Coder.forward"),
    ],
)
def test_wrong_names_are_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(capsys, *CUT.split(), *words.split())
    assert not Path("out").exists()


def test_a_settings_file_repeats_how_the_model_is_called() -> None:
    given = ["--entry-points", "decode=2x8", "net.py:methods", "--batched", "x"]
    assert main([*CUT.split(), "--no-onnx", *given]) == 0
    first = json.loads(Path("out", "report.json").read_text())
    assert main(["prune", "out/settings.toml", "--out", "again"]) == 0
    again = json.loads(Path("again", "report.json").read_text())

    assert first["entry_points"].keys() == {"decode", "frozen"}
    assert again["entry_points"] == first["entry_points"]
    assert again["plan"] == first["plan"]
