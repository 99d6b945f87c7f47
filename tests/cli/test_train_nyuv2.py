"""``disparse train`` on real data: every regime, killed in the middle, resumed to the same plan, exported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest

from benchmarks.data import NYUV2_FILE, data_folder

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(not (data_folder() / NYUV2_FILE).is_file(), reason="the NYU-v2 pack is not there"),
]


def _command(out: Path, *regime: str) -> list[str]:
    named = {"--model": "build", "--tasks": "tasks", "--data": "loader"}
    given = [part for option, name in named.items() for part in (option, f"examples/nyuv2.py:{name}")]
    rest = ["--macs", "0.3", "--epochs", "2", "--lr", "2e-3", "--checkpoint-every", "10", "--out", str(out)]
    return [sys.executable, "-m", "disparse_structured", "train", *given, *regime, *rest]


@pytest.mark.parametrize("regime", ["pretrained", "static", "early", "dynamic"])
def test_killed_and_resumed_on_nyuv2_to_onnx(regime: str, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    options = ["--regime", regime, *(["--every", "20"] if regime == "dynamic" else [])]
    subprocess.run(_command(whole, *options), check=True, cwd=ROOT, capture_output=True)
    process = subprocess.Popen(_command(torn, *options), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (torn / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(_command(torn, *options), check=True, cwd=ROOT, capture_output=True)
    plans = [(out / "plan.json").read_bytes() for out in (whole, torn)]
    assert plans[0] == plans[1]
    weights = [(out / "weights.safetensors").read_bytes() for out in (whole, torn)]
    assert weights[0] == weights[1]
    report = json.loads((torn / "report.json").read_text(encoding="utf-8"))
    assert report["verification"]["verified"]
    assert report["costs"]["macs"]["counted"] <= 0.3 * report["costs"]["macs"]["dense"]
    session = onnxruntime.InferenceSession(torn / "model.onnx", providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} == {"seg13", "normals", "depth"}
