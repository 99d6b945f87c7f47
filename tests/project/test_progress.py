"""What is said off a terminal while long work runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import disparse_structured as ds
from disparse_structured import progress
from disparse_structured.cli import main
from tests.support.command_line import TINY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets, at 0 s when the work begins."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "INTERVAL", 10.0)
    progress.begin()
    return now


def test_lines_are_at_least_ten_seconds_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("reading"), progress.advancing("fitting", 40) as advance:
        for _ in range(40):
            clock[0] += 1.0
            advance()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"disparse: fitting: {done} of 40" for done in (10, 20, 30, 40)]


def test_a_step_that_begins_late_is_named(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    clock[0] = 11.0
    with progress.step("verifying"):
        pass
    with progress.step("exporting"):
        pass
    assert capsys.readouterr().err == "disparse: verifying\n"


def test_nothing_is_said_unless_wanted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    clock[0] = 100.0
    with (
        progress.step("verifying", wanted=False),
        progress.advancing("fitting", None, wanted=False) as advance,
    ):
        advance()
    assert capsys.readouterr().err == ""


def pruned(folder: Path, *more: str) -> list[str]:
    (folder / "net.py").write_text(TINY)
    given = f"--model {folder}/net.py:build --data {folder}/net.py:images --macs 0.5 --out {folder}/out"
    return ["prune", *given.split(), "--samples", "16", "--no-onnx", *more]


def test_a_command_says_what_it_does_and_is_silent_if_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert main(pruned(tmp_path)) == 0
    said = capsys.readouterr().err
    assert "disparse: reading the structure\n" in said
    assert "disparse: removing and verifying\n" in said

    assert main(pruned(tmp_path, "--quiet")) == 0
    assert capsys.readouterr().err == ""


def test_training_says_its_epoch_and_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from disparse_structured.training import TrainingConfig, train

    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    model = torch.nn.Linear(2, 1)
    task = ds.Task("value", lambda found: found, loss=lambda output, batch: output.square().mean())
    train(model, [task], [torch.ones(4, 2)], TrainingConfig(epochs=2, lr=0.1), progress=True)
    assert "disparse: epoch 2 of 2, step 2 of 2  value " in capsys.readouterr().err
