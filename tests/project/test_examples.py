"""The scripts in examples/ run as they are, on small networks, and their pages are up to date."""

from __future__ import annotations

import os
import re
import runpy
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")  # read when Ultralytics is imported

import pytest
from torchvision.models import mobilenet_v3_small
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import LRASPP

from tests.support.shapes import SEGMENT, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def script(name: str) -> dict[str, Any]:
    """The names that a script defines."""
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def saved() -> set[str]:
    return {path.name for path in Path("small").iterdir()}


RESULT = {"plan.json", "weights.safetensors", "report.json"}


def test_a_timm_network_with_three_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    script("timm_multitask")["main"]("test_resnet", scenes=16, held_out=4, epochs=1)

    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines() if "'miou'" in line] == [
        "dense",
        "pruned",
        "fine-tuned",
    ]
    assert saved() == RESULT | {"model.onnx"}


def test_a_transformers_backbone_with_two_heads() -> None:
    script("transformers_two_heads")["main"](hidden=32, layers=1, count=16)

    assert saved() == RESULT | {"model.onnx"}


def test_a_torchvision_segmenter() -> None:
    def tiny() -> LRASPP:
        features = mobilenet_v3_small(weights=None).features[:4]
        return LRASPP(IntermediateLayerGetter(features, {"1": "low", "3": "high"}), 16, 24, 5).eval()

    script("torchvision_segmenter")["main"](tiny, size=32, count=16)

    assert saved() == RESULT | {"model.onnx"}


def test_a_yolo_that_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path / "tiny-seg.yaml", SEGMENT).save("tiny-seg.pt")
    script("yolo_segmentation")["main"]("tiny-seg.pt", size=64)

    assert saved() == RESULT
    assert (tmp_path / "tiny-seg-pruned.onnx").is_file()
    told = capsys.readouterr().out
    assert all(task in told for task in ("boxes", "scores", "masks", "prototypes"))


@pytest.mark.skipif(
    find_spec("facenet_pytorch") is None,
    reason="run: pip install --no-deps facenet-pytorch; its requirements exclude this package's",
)
def test_a_deployed_face_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trained detector still finds the faces of a photograph with two people."""
    from ultralytics.utils import ASSETS

    shutil.copytree(ASSETS, tmp_path / "photos")
    script("face_detector")["main"]("photos")

    told = re.findall(r"(\d+) faces before, (\d+) after", capsys.readouterr().out)
    assert told == [("3", "3"), ("2", "2")]
    assert saved() == RESULT | {"onet.onnx"}


def test_the_pages_are_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "generate_examples.py"))
    found = {path.name: path.read_text(encoding="utf-8") for path in generator["TARGET"].iterdir()}

    assert found == generator["pages"](), "run: python docs/generate_examples.py"
