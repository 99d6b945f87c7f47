"""Training across processes: killed ones go on as if nothing had been, and two make what one makes."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import training_parts
from tests.support.processes import finished, in_two, started, together

pytestmark = together


def kills(folder: Path) -> None:
    """One run that is left alone, and one that is killed again and again, each in a process of its own."""
    assert _ended(_child(folder, "whole", None)) == 0
    # Inside a callback's step, a batch's augmentation, a validation, an epoch's end: by the process itself.
    moments = "step 1, augment 4, step 7, validation 2, step 9, epoch 2, augment 5, validation 1"
    for kill in moments.split(", "):
        assert _ended(_child(folder, "killed", kill)) == -signal.SIGKILL, kill
    # And from outside, while a file is being written, if it can be caught.
    pid = _child(folder, "killed", None)
    draft = folder / ".killed.draft"
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if draft.exists():
            os.kill(pid, signal.SIGKILL)
            _ended(pid)
            break
    assert _ended(_child(folder, "killed", None)) == 0


def _child(folder: Path, name: str, kill: str | None) -> int:
    pid = os.fork()
    if pid == 0:
        training_parts.run(folder / name, training_parts.Killer(kill), folder / f"{name}.result")
        os._exit(0)
    return pid


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_runs_killed_anywhere_end_like_one_that_was_not(tmp_path: Path) -> None:
    assert finished(started(partial(kills, tmp_path))) == [0]
    whole, killed = load(tmp_path / "whole.result"), load(tmp_path / "killed.result")
    assert whole["facts"] == killed["facts"]
    assert whole["facts"]["stopped_early"]
    assert whole["facts"]["epochs"] < 12
    assert whole["callback"] == killed["callback"]
    assert whole["weights"].keys() == killed["weights"].keys()
    for name, value in whole["weights"].items():
        assert torch.equal(value, killed["weights"][name]), name


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process, and each of two that gloo connects, made of the same runs."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    training_parts.parallel(alone)
    codes = in_two(partial(training_parts.parallel, two), two / "log")
    said = (two / "log").read_text(encoding="utf-8")
    assert codes == [0, 0], said[-4000:]
    results = {"alone": load(alone / "0.result"), "0": load(two / "0.result"), "1": load(two / "1.result")}
    results["output"] = {"text": said}
    return results


def test_two_processes_train_what_one_trains(parallel: dict[str, dict[str, Any]]) -> None:
    alone, first = parallel["alone"]["plain"], parallel["0"]["plain"]
    assert alone["processes"] == 1
    assert first["processes"] == 2
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-5)
    for name, losses in alone["facts"]["losses"].items():
        assert first["facts"]["losses"][name] == pytest.approx(losses, rel=1e-5)
    assert first["facts"]["validation"] == pytest.approx(alone["facts"]["validation"], rel=1e-5)
    assert first["facts"]["steps"] == alone["facts"]["steps"]
    assert alone["facts"]["losses"]["sum"][-1] < 0.8 * alone["facts"]["losses"]["sum"][0]


@pytest.mark.parametrize("case", ["plain", "normalized", "resumed"])
def test_all_processes_end_with_the_same(parallel: dict[str, dict[str, Any]], case: str) -> None:
    one, other = parallel["0"][case], parallel["1"][case]
    assert one["facts"] == other["facts"]
    assert one["callback"] == other["callback"]
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name


def test_several_processes_continue_where_they_stopped(parallel: dict[str, dict[str, Any]]) -> None:
    whole, resumed = parallel["0"]["normalized"], parallel["0"]["resumed"]
    assert whole["facts"] == resumed["facts"]
    for name, value in whole["weights"].items():
        assert torch.equal(value, resumed["weights"][name]), name


def test_only_the_first_process_reports(parallel: dict[str, dict[str, Any]]) -> None:
    assert parallel["0"]["plain"]["heard"] == parallel["alone"]["plain"]["heard"] == [0, 1, 2]
    assert parallel["1"]["plain"]["heard"] == []
    text = parallel["output"]["text"]
    assert "distributed_backend" not in text
    assert "GLOBAL_RANK" not in text
