"""``disparse train``: every regime to a verified ONNX file, killed and resumed, on one process and on two."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from disparse_structured.cli import main
from tests.support.command_line import command
from tests.support.processes import in_two, launched, started, together

pytestmark = together

CODE = '''
"""Two regression tasks on noise."""

import time

import torch
from torch import nn

from disparse_structured import Task

PAUSE = 0.0


class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.dense = nn.Conv2d(width, 2, 1)
        self.label = nn.Linear(width, 3)

    def forward(self, image):
        shared = self.trunk(image)
        return {"dense": self.dense(shared), "label": self.label(shared.mean((2, 3)))}


class Loader:
    """Shuffles by the global random state, and takes its time."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def __len__(self):
        return 6

    def __iter__(self):
        for seed in torch.randperm(6).tolist():
            time.sleep(self.pause)
            image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            yield {"image": image, "dense": image[:, :2], "label": image.mean((2, 3))}


build = Net
loader = Loader()
slow = Loader(0.03)
tasks = [
    Task("dense", "dense", lambda output, batch: (output - batch["dense"]).square().mean()),
    Task("label", "label", lambda output, batch: (output - batch["label"]).square().mean()),
]
'''

SET = """
from torch.utils.data import DataLoader


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"image": image, "dense": image[:2], "label": image.mean((1, 2))}


own = torch.Generator().manual_seed(7)
workers = DataLoader(Images(), 4, shuffle=True, generator=own, num_workers=1, persistent_workers=True)
"""

REGIMES = {
    "pretrained": ["--regime", "pretrained"],
    "iterative": ["--regime", "pretrained", "--stages", "3"],
    "gradual": ["--regime", "pretrained", "--stages", "2", "--start", "0.2"],
    "static": ["--regime", "static"],
    "early": ["--regime", "early", "--until", "0.5"],
    "dynamic": ["--regime", "dynamic", "--every", "4"],
}
EVERY = pytest.mark.parametrize("regime", REGIMES)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return _written(tmp_path)


def _written(folder: Path) -> Path:
    file = folder / "net.py"
    file.write_text(CODE, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a regime's run in one process, without interruption; one run for all tests."""

    @cache
    def run(regime: str) -> Path:
        folder = tmp_path_factory.mktemp(regime)
        assert main(_arguments(_written(folder), folder / "out", regime)) == 0
        return folder / "out"

    return run


def _arguments(code: Path, out: Path, regime: str, data: str = "loader", epochs: int = 4) -> list[str]:
    named = {"--model": "build", "--tasks": "tasks", "--data": data}
    given = [part for option, name in named.items() for part in (option, f"{code}:{name}")]
    rest = ["--macs", "0.5", "--epochs", str(epochs), "--out", str(out), "--checkpoint-every", "2"]
    return ["train", *given, *REGIMES[regime], *rest]


def _plan(out: Path) -> str:
    return (out / "plan.json").read_text(encoding="utf-8")


def _report(out: Path) -> Any:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


@EVERY
def test_a_regime_ends_in_a_small_verified_model(whole: Callable[[str], Path], regime: str) -> None:
    out = whole(regime)
    report = _report(out)
    assert report["verification"]["verified"]
    assert report["costs"]["macs"]["counted"] <= 0.5 * report["costs"]["macs"]["dense"]
    training = report["training"]
    assert training["steps"] == 24
    assert all(losses[-1] < losses[0] for losses in training["losses"].values())
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} == {"dense", "label"}
    criterion = {"static": "SNIP()", "early": "Fisher()", "dynamic": "Fisher()"}.get(regime, "Taylor()")
    assert report["criterion"] == criterion
    if regime in ("static", "pretrained"):
        assert training["trained_parameters"] == report["costs"]["parameters"]["counted"]


@EVERY
def test_killed_and_started_again_it_comes_to_the_same(
    code: Path, whole: Callable[[str], Path], tmp_path: Path, regime: str
) -> None:
    unbroken, torn = whole(regime), tmp_path / "torn"
    (process,) = started(partial(command, [*_arguments(code, torn, regime, "slow"), "--no-onnx"]))
    checkpoint = torn / "checkpoint.pt"
    while not checkpoint.exists():
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(0.1)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (torn / "plan.json").exists()
    assert main([*_arguments(code, torn, regime), "--no-onnx"]) == 0
    assert _plan(torn) == _plan(unbroken)
    weights = [load_file(out / "weights.safetensors") for out in (torn, unbroken)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    losses = [_report(out)["training"]["losses"] for out in (torn, unbroken)]
    assert losses[0] == losses[1]


def _launched(arguments: list[str], log: Path) -> list[int | None]:
    """By the launcher that the documentation names."""
    launcher = ["--standalone", "--nproc-per-node", "2", "-m", "disparse_structured"]
    return launched([*launcher, *arguments], log)


def _forked(arguments: list[str], log: Path) -> list[int | None]:
    """In the environment that the launcher sets up."""
    return in_two(partial(command, arguments), log)


@pytest.mark.parametrize(("regime", "run"), [("static", _launched), ("dynamic", _forked)])
def test_two_processes_come_to_the_plan_of_one(
    code: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    regime: str,
    run: Callable[[list[str], Path], list[int | None]],
) -> None:
    alone, shared, log = whole(regime), tmp_path / "together", tmp_path / "log"
    codes = run([*_arguments(code, shared, regime), "--no-onnx"], log)
    assert set(codes) == {0}, log.read_text(encoding="utf-8")[-2000:]
    assert _plan(shared) == _plan(alone)
    weights = [load_file(out / "weights.safetensors") for out in (shared, alone)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_distilled_from_the_dense_network_without_losses(code: Path, tmp_path: Path) -> None:
    arguments = _arguments(code, tmp_path / "out", "pretrained")
    arguments[arguments.index(f"{code}:tasks")] = "dense,label"
    assert main([*arguments, "--teacher-weight", "1.0", "--no-onnx"]) == 0
    training = _report(tmp_path / "out")["training"]
    assert all(values[-1] < values[0] for values in training["distillation"].values())


def test_a_teacher_is_read_from_a_file(code: Path, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(CODE, str(code), "exec"), namespace)
    save_file(namespace["build"]().state_dict(), tmp_path / "teacher.safetensors")
    arguments = _arguments(code, tmp_path / "out", "static")
    teacher = ["--teacher-weight", "0.5", "--teacher", str(tmp_path / "teacher.safetensors"), "--no-onnx"]
    assert main([*arguments, *teacher]) == 0


def test_training_stops_when_validation_says_so(code: Path, tmp_path: Path) -> None:
    arguments = _arguments(code, tmp_path / "out", "static", epochs=8)
    judged = ["--validation", f"{code}:loader", "--patience", "1", "--lr", "0.3", "--no-onnx"]
    assert main([*arguments, *judged]) == 0
    training = _report(tmp_path / "out")["training"]
    assert training["stopped_early"]
    assert training["epochs"] < 8


def test_a_dataloader_with_workers_and_a_generator_is_read_as_it_is(code: Path, tmp_path: Path) -> None:
    """Scoring reads it too, in the middle of an epoch, and leaves no trace."""
    code.write_text(CODE + SET, encoding="utf-8")
    for name in ("one", "other"):
        arguments = _arguments(code, tmp_path / name, "dynamic", "workers", epochs=2)
        assert main([*arguments, "--no-onnx"]) == 0
    one, other = (_report(tmp_path / name)["training"] for name in ("one", "other"))
    assert one["steps"] == 12
    assert one["losses"] == other["losses"]
    assert _plan(tmp_path / "one") == _plan(tmp_path / "other")


def test_a_folder_of_another_run_is_refused(
    code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*_arguments(code, out, "dynamic"), "--no-onnx"]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = _arguments(code, out, "dynamic")
    other[other.index("0.5")] = "0.4"
    assert main([*other, "--no-onnx"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
