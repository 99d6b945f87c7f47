"""``disparse latency`` and ``disparse prune --latency TIME``."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from disparse_structured.cli import main

NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 1)]
    return nn.Sequential(*layers)


def images():
    return torch.randn(8, 3, 20, 20)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


def test_times_are_measured_shown_kept_used_and_forgotten(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = ["latency", "--model", "net.py:build", "--example", "2x3x20x20", "--json"]
    assert main([*measure, "--picture", "stairs.svg"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dense_ms"] > 0
    assert [(each["read"], each["made"]) for each in document["operations"]] != []
    assert {each["count"] for each in document["operations"]} == {1}
    assert document["measured"] == document["times"] > 0
    assert Path(document["table"]).parent == project / "cache" / "disparse-structured" / "latency"
    drawing = ElementTree.parse(project / "stairs.svg").getroot()
    assert len(drawing.findall(".//{http://www.w3.org/2000/svg}polyline")) >= 3

    assert main(measure) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["measured"], again["times"]) == (0, document["times"])

    prune = ["prune", "--model", "net.py:build", "--data", "net.py:images", "--out", "small", "--json"]
    code = main([*prune, "--latency", "100000ms"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["type"]) == (2, "BudgetError")
    assert "is not below the dense model's" in error["message"]

    assert main([*measure, "--picture", "nowhere/stairs.svg"]) == 2
    assert "'nowhere/stairs.svg' cannot be written: No such file or directory." in capsys.readouterr().out

    assert main(["latency", "--clear"]) == 0
    assert "forgot 1 table in" in capsys.readouterr().out
    assert not Path(document["table"]).exists()
