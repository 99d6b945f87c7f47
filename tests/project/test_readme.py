"""The code of the README and of the pages runs as it stands, and the README's commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(page: str) -> dict[str, Any]:
    """The names that the Python blocks of ``page`` leave, run in order."""
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_readme(tmp_path: Path) -> None:
    names = run("README.md")

    written = {path.name for path in (tmp_path / "small").iterdir()}
    assert written == {"plan.json", "weights.safetensors", "report.json", "model.onnx"}
    assert 0.49 <= names["result"].report.costs["macs"].ratio <= 0.5


def test_the_page_on_prune() -> None:
    names = run("docs/prune.md")

    assert names["result"].report.costs["macs"].ratio <= 0.6
    assert names["applied"].verification is not None


def test_the_page_on_images(tmp_path: Path) -> None:
    names = run("docs/images.md")

    assert len(names["data"].sources) == 16
    assert (tmp_path / "inputs.png").is_file()


def test_the_page_on_reports(tmp_path: Path) -> None:
    names = run("docs/report.md")

    assert names["result"].plan.hash[:12] in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert names["worst"] < 1


def test_the_page_on_saved_results(tmp_path: Path) -> None:
    names = run("docs/folders.md")

    assert names["report"]["training"]["losses"].keys() == {"depth", "kind"}
    assert "depth of input 2, pruned" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_on_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = run("docs/latency.md")

    assert names["result"].report.speed.exports <= 4
    assert names["model"](names["images"]).keys() == names["result"].model(names["images"]).keys()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_page_on_regimes() -> None:
    assert run("docs/regimes.md")["result"].report.costs["macs"].ratio <= 0.3


def test_the_page_on_relatedness() -> None:
    names = run("docs/relatedness.md")

    images = names["images"][0]
    with torch.no_grad():
        dense, branched = names["model"].eval()(images), names["branched"].eval()(images)
    assert all(torch.equal(branched[task], dense[task]) for task in dense)
    assert names["alone"].parameters[1] < names["alone"].parameters[0]


def test_the_page_on_deploying(tmp_path: Path) -> None:
    names = run("docs/deploying.md")

    assert names["facts"].dynamic == "batch+size"
    assert names["depth"].shape == (2, 1, 46, 62)
    assert not names["facts"].unchecked
    image = names["images"][:1]
    with torch.no_grad():
        assert torch.equal(names["loaded"](image)["depth"], names["result"].model(image)["depth"])
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.onnx")}
    assert written == {"small/model.onnx", "trained/model.onnx"}


def test_the_page_on_int8(tmp_path: Path) -> None:
    names = run("docs/int8.md")

    facts = names["facts"]
    assert all(task.int8 <= task.tolerance for task in facts.tasks.values())
    assert facts.recommended in ("float", "int8")
    assert {path.name for path in (tmp_path / "small").iterdir()} >= {"model.onnx", "model.int8.onnx"}


def test_the_page_on_distillation(tmp_path: Path) -> None:
    names = run("docs/distillation.md")

    assert 0 < names["result"].report.recovery.taken <= 20
    assert (tmp_path / "run" / "distillation.pt").is_file()


def test_the_page_on_torch_pruning() -> None:
    names = run("docs/torch-pruning.md")

    assert "invalid for input of size 60" in str(names["seen"])
    widths = {group.name: group.kept for group in names["result"].plan.groups}
    assert widths == {"patch_embed.proj": 32, "blocks.0.attn.qkv": 4, "blocks.0.mlp.fc1": 96}
    assert names["pruner"].verification.deviation["output"] <= 1e-9


def test_the_page_on_torchvision() -> None:
    names = run("docs/torchvision.md")

    assert names["result"].report.costs["macs"].ratio <= 0.6
    names["smaller"].eval()
    images = names["images"]
    assert [each.keys() for each in names["detections"]] == [
        each.keys() for each in names["detector"](images)
    ]
    with torch.no_grad():
        again, smaller = (names[name](images)[0]["boxes"] for name in ("again", "smaller"))
    assert torch.equal(again, smaller)


def test_the_page_on_segmentation_models() -> None:
    names = run("docs/segmentation-models.md")

    assert 0.935 < sum(each.share for each in names["result"].report.dropped) < 0.945
    assert names["masks"].shape == (4, 5, 32, 32)


def test_the_page_on_extending() -> None:
    """Each recipe has fewer than 30 lines."""
    run("docs/extending.md")

    assert max(block.count("\n") for block in blocks("docs/extending.md", "python")) < 30


def test_the_page_on_transformers() -> None:
    names = run("docs/transformers.md")

    assert type(names["plain"]).__name__ == type(names["loaded"]).__name__ == "Qwen2ForCausalLM"
    assert names["small"].report.costs["macs"].ratio <= 0.7


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
