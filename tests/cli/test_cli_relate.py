"""``disparse relate``, by its exit code, its output and the folder that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from disparse_structured.cli import main
from disparse_structured.cli.lookup import find
from disparse_structured.relatedness import Relatedness

SCENE = """
import torch
from torch import nn

from disparse_structured import Task


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.near, self.far = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image):
        x = self.conv2(self.conv1(image))
        return {"near": self.near(x), "far": self.far(x)}


def build():
    torch.manual_seed(0)
    return Net()


def loader():
    generator = torch.Generator().manual_seed(0)
    draw = lambda channels: torch.randn(4, channels, 8, 8, generator=generator)
    return [{"image": draw(3), "far": draw(2)} for _ in range(2)]


tasks = [
    Task("near", "near", lambda output, batch: output.square().mean()),
    Task("far", "far", lambda output, batch: (output - batch["far"]).abs().mean()),
]
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "scene.py"
    path.write_text(SCENE, encoding="utf-8")
    return ["--model", f"{path}:build", "--tasks", f"{path}:tasks", "--data", f"{path}:loader"]


def test_both_levels_before_and_after_training(
    scene: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = find(f"{tmp_path}/scene.py:build", "--model")()
    for number in range(2):
        with torch.no_grad():
            model.conv1[0].weight.add_(0.1)
        save_file(model.state_dict(), tmp_path / f"{number}.safetensors")
    weights = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    out = tmp_path / "out"
    arguments = ["--ratio", "0.5", "--seeds", "2", "--weights", *weights, "--out", str(out)]

    assert main(["relate", *scene, *arguments]) == 0
    text = capsys.readouterr().out
    for said in (
        "unit level, before training",
        "weight level, after training",
        "0.546",
        "0.735",
        "0.608",
        "watershed",
    ):
        assert said in text
    figures = {path.name for path in out.glob("*.png")}
    assert figures == {
        f"{what}.png"
        for level in ("unit", "weight")
        for what in (f"layers-{level}", f"affinity-{level}-before", f"affinity-{level}-after")
    }
    document = json.loads((out / "relatedness.json").read_text(encoding="utf-8"))
    found = [Relatedness.from_json(json.dumps(entry["relatedness"])) for entry in document["results"]]
    assert [(each.level, each.moment.split()[0], len(each.runs)) for each in found] == [
        ("unit", "before", 2),
        ("unit", "after", 2),
        ("weight", "before", 2),
        ("weight", "after", 2),
    ]
    assert all(each.ratio == 0.5 and each.tasks == ("near", "far") for each in found)
    assert [layer.name for layer in found[2].layers] == ["conv1.0.weight", "conv2.0.weight"]
    assert [entry["total"] for entry in document["published"]] == [0.546, 0.735, 0.608]


def test_one_level_as_one_document_and_again_the_same(
    scene: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = []
    for name in ("one", "two"):
        assert main(["relate", *scene, "--level", "weight", "--out", str(tmp_path / name), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))

    assert documents[0]["files"] == ["layers-weight.png", "affinity-weight-before.png", "relatedness.json"]
    assert documents[0]["results"] == documents[1]["results"]
    (entry,) = documents[0]["results"]
    assert len(entry["relatedness"]["runs"]) == 3
    assert entry["relatedness"]["ratio"] == 0.922


def test_a_trained_factory_is_related_as_it_is(scene: list[str], tmp_path: Path) -> None:
    arguments = ["--level", "unit", "--seeds", "1", "--trained", "--ratio", "0.5", "--out", str(tmp_path)]
    assert main(["relate", *scene, *arguments]) == 0
    document = json.loads((tmp_path / "relatedness.json").read_text(encoding="utf-8"))

    assert [entry["relatedness"]["moment"] for entry in document["results"]] == [
        "before training",
        "after training",
    ]


def test_one_task_alone_is_refused(
    scene: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["relate", *scene, "--out", str(tmp_path / "out"), "--tasks", "near"]) == 2
    assert "at least two tasks" in capsys.readouterr().err


def test_without_data_there_is_nothing_to_score_on(
    scene: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["relate", *scene[:4], "--out", str(tmp_path)]) == 2
    assert "--data" in capsys.readouterr().err
