"""examples/own_model.py, as a program."""

from __future__ import annotations

import runpy
from pathlib import Path

from torch import nn

from disparse_structured import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model.py"


def test_the_example_runs_as_a_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "pruned" / "weights.safetensors").is_file()
    model = load("pruned", runpy.run_path(str(EXAMPLE))["build"])
    assert isinstance(model, nn.Module)
