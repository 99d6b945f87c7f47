"""Commands on a saved folder: export, verify, bench, fine-tune, and pictures on its page."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load_file

from disparse_structured.cli import main
from disparse_structured.report.facts import LatencyFact, LatencyFacts
from tests.support.command_line import TINY, document_of, prune_tiny, refusal
from tests.support.pages import Page

MODEL = ("--model", "tiny:build")
TRAINING = ("--data", "tiny:images", "--tasks", "tiny:losses", "--epochs", "2", "--quiet")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``disparse prune`` wrote."""
    project = tmp_path_factory.mktemp("pruned")
    (project / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(sys, "path", list(sys.path))
        assert main([*prune_tiny(), "--quiet", "--html"]) == 0
    sys.modules.pop("tiny")
    return project / "out"


@pytest.fixture
def small(tiny: Path, pruned: Path) -> Path:
    """A copy of the folder, in a directory with the module that builds the dense model."""
    return Path(shutil.copytree(pruned, tiny / "out"))


def report_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def verified(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, bool | None]:
    """The outcome of each check of ``disparse verify out``."""
    capsys.readouterr()
    status = main(["verify", "out", "--json", *words])
    document = document_of(capsys)
    assert status == (0 if document["passed"] else 1)
    return {check["name"]: check["passed"] for check in document["checks"]}


# Export.


def test_a_file_for_another_shape(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(small)
    shape = ("--dynamic", "static", "--batch", "3", "--size", "12x10", "--opset", "20")
    assert main(["export", "out", *MODEL, *shape, "--out", "other.onnx"]) == 0
    session = onnxruntime.InferenceSession("other.onnx")
    assert [each.shape for each in session.get_inputs()] == [[3, 3, 12, 10]]
    assert onnx.load("other.onnx").opset_import[0].version == 20
    assert "agrees with PyTorch" in capsys.readouterr().out
    assert contents(small) == before


def test_the_folder_s_own_file_and_what_its_report_says_about_it(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "out", *MODEL, "--dynamic", "batch", "--data", "tiny:images"]) == 0
    entry = report_in(small)["export"]
    assert (entry["dynamic"], entry["path"]) == ("batch", "model.onnx")
    assert entry["inputs"][0]["shape"] == ["batch", 3, 8, 8]
    assert set(verified(capsys, *MODEL).values()) == {True}
    assert entry["sha256"] in (small / "report.html").read_text()


def test_a_size_that_no_input_can_have_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "vectors.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()\n\n"
        "rows = torch.randn(24, 4)\n"
    )
    words = ("--model", "vectors:build")
    fast = ("--method", "disparse", "--no-onnx", "--quiet")
    assert main(["prune", *words, "--data", "vectors:rows", "--macs", "0.5", "--out", "out", *fast]) == 0
    said = refusal(capsys, "export", "out", *words, "--size", "8")
    assert said.startswith("--size is for images [N, C, H, W], and the model's inputs are [[2, 4]]")


def test_a_form_that_the_model_does_not_have_is_an_error(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(small)
    said = refusal(capsys, "export", "out", "--model", "tiny:build", "--dynamic", "size", "--opset", "99")
    assert "opset" in said
    assert contents(small) == before


# Verify.


def test_a_folder_as_it_was_saved(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["plan and report", "weights", "ONNX file", "model", "outputs", "ONNX parity"]
    found = verified(capsys, *MODEL, "--data", "tiny:images")
    assert found == dict.fromkeys(names, True)
    assert main(["verify", "out", *MODEL]) == 0
    assert "ONNX parity: agrees with PyTorch within" in capsys.readouterr().out


def test_without_a_factory_the_files_are_checked_and_no_code_runs(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.parent / "tiny.py").write_text("raise RuntimeError")
    found = verified(capsys)
    assert found == {"plan and report": True, "weights": True, "ONNX file": True, "model": None}


BY_NAME = """

by_name = [Task("near", loss=squares), Task("aux", loss=squares)]
"""
"""Tasks as a pruned graph returns them."""


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def changed_report(folder: Path, **entries: Any) -> None:
    (folder / "report.json").write_text(json.dumps(report_in(folder) | entries))


def other_file(folder: Path) -> None:
    """An ONNX file with other weights, which the report describes as its own."""
    model = onnx.load(folder / "model.onnx")
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "model.onnx")
    from disparse_structured.files import checksum

    entry = report_in(folder)["export"] | {"sha256": checksum(folder / "model.onnx")}
    changed_report(folder, export=entry)


@pytest.mark.parametrize(
    ("damage", "check", "model"),
    [
        (lambda folder: flipped(folder / "weights.safetensors"), "weights", "tiny:build"),
        (lambda folder: flipped(folder / "model.onnx"), "ONNX file", "tiny:build"),
        (lambda folder: (folder / "model.onnx").unlink(), "ONNX file", "tiny:build"),
        (lambda folder: (folder / "plan.json").unlink(), "plan and report", "tiny:build"),
        (lambda folder: changed_report(folder, plan="0" * 64), "plan and report", "tiny:build"),
        (lambda folder: None, "model", "tiny:wide"),
        (lambda folder: None, "outputs", "tiny:leaky"),
        (other_file, "ONNX parity", "tiny:build"),
    ],
)
def test_what_is_wrong_is_named(
    small: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], check: str, model: str
) -> None:
    with (small.parent / "tiny.py").open("a") as file:
        file.write(
            "\n\ndef leaky():\n    made = build()\n    made.trunk[1] = nn.LeakyReLU(0.2)\n    return made\n"
        )
    damage(small)
    assert verified(capsys, "--model", model)[check] is False


def test_a_folder_that_does_not_exist_is_an_error(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "verify", "gone").startswith("the folder 'gone' does not exist")


def test_a_pruned_graph_for_another_size(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tiny / "tiny.py").open("a") as file:
        file.write(BY_NAME)
    assert main([*prune_tiny("--form", "graph", "--no-onnx"), "--quiet"]) == 0
    shape = ("--dynamic", "static", "--batch", "1", "--size", "12")
    assert main(["export", "out", *MODEL, *shape]) == 0
    assert report_in(Path("out"))["export"]["inputs"][0]["shape"] == [1, 3, 12, 12]
    found = verified(capsys, *MODEL)
    assert found["ONNX parity"] is True
    assert found["outputs"] is True
    assert main(["finetune", "out", *MODEL, *TRAINING, "--tasks", "tiny:by_name", "--no-onnx"]) == 0
    assert verified(capsys, *MODEL)["outputs"] is True


# Bench.


def test_the_dense_and_the_pruned_file_in_turn(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "out", *MODEL, "--batch", "2", "--size", "16x12", "--save", "--json"]) == 0
    found = document_of(capsys)
    dense, pruned = found["models"]
    assert (dense["name"], pruned["name"], found["input_shapes"]) == ("dense", "pruned", [[2, 3, 16, 12]])
    faster = pruned["upper_quartile_ms"] < dense["lower_quartile_ms"]
    assert found["verdicts"][0].startswith("pruned is ") == faster
    assert report_in(small)["latency"]["models"] == [dense, pruned]
    assert found["rounds"] >= 40


def test_without_a_factory_the_folder_s_own_file_is_timed(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(small)
    assert main(["bench", "out", "--threads", "2", "--json"]) == 0
    found = document_of(capsys)
    assert [model["name"] for model in found["models"]] == ["pruned"]
    assert (found["threads"], found["verdicts"], found["input_shapes"]) == (2, [], [[1, 3, 8, 8]])
    assert contents(small) == before


def test_what_cannot_be_timed_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Give --model." in refusal(capsys, "bench", "out", "--save")
    (small / "model.onnx").unlink()
    assert "has no model.onnx. Give --model to export it." in refusal(capsys, "bench", "out")


def test_no_verdict_where_quartiles_overlap() -> None:
    def verdict(*own: float) -> str:
        times = np.array([[4.0, 5.0, 6.0, 7.0], own]).T
        facts = LatencyFacts("dense", LatencyFact.of(["dense", "pruned"], times), (), 1, 4, 1, "", "")
        (found,) = facts.verdicts
        return found

    assert verdict(1.0, 1.0, 1.0, 1.0) == "pruned is 5.50 times as fast as dense"
    assert verdict(3.0, 4.0, 5.0, 6.0).startswith("no measurable difference between pruned and dense")
    assert verdict(8.0, 10.0, 12.0, 14.0) == "pruned takes 2.00 times as long as dense"


# Fine-tune.


def test_a_fine_tuned_network_is_saved_back(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, files = report_in(small), set(contents(small))
    weights = load_file(small / "weights.safetensors")
    assert main(["finetune", "out", *MODEL, *TRAINING]) == 0
    report = report_in(small)
    assert before["deviation"] is not None
    assert report["deviation"] is None
    assert report["weights_changed"] is True
    assert [len(losses) for losses in report["training"]["losses"].values()] == [2, 2]
    assert report["weights_sha256"] != before["weights_sha256"]
    assert report["computes"] != before["computes"]
    assert report["command"] == before["command"]
    assert report["training"]["command"][0] == "finetune"
    assert set(contents(small)) == files
    after = load_file(small / "weights.safetensors")
    assert any((after[name] != weights[name]).any() for name in weights)
    assert set(verified(capsys, *MODEL).values()) == {True}
    assert "trained after pruning" in (small / "report.html").read_text()
    assert main(["show", "out"]) == 0
    assert "trained after pruning: 2 epochs, 6 steps" in capsys.readouterr().out


def test_another_folder_for_the_fine_tuned_network(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(small)
    shutil.copytree(small, "tuned")  # of an earlier run: its files do not belong to the trained network
    assert main(["finetune", "out", *MODEL, *TRAINING, "--out", "tuned", "--no-onnx"]) == 0
    assert contents(small) == before
    assert set(contents(Path("tuned"))) == {"plan.json", "weights.safetensors", "report.json"}
    assert main(["verify", "tuned", *MODEL]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "x.npy", "--tasks", "tiny:losses"), "training needs batches"),
        (("--data", "tiny:images", "--tasks", "near,far=aux.far"), "has no loss"),
        (("--data", "tiny:images", "--tasks", "tiny:not_finite"), "is nan"),
    ],
)
def test_training_that_fails_leaves_the_folder_as_it_was(
    small: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    before = contents(small)
    assert said in refusal(capsys, "finetune", "out", *MODEL, *words, "--epochs", "1", "--quiet")
    assert contents(small) == before


FRAGILE = """

class Fragile:
    def __len__(self):
        return 3

    def __iter__(self):
        self.epochs = getattr(self, "epochs", 0) + 1
        if self.epochs == 2 and os.environ.get("FRAGILE"):
            raise RuntimeError("the disk is gone")
        return iter(images)


import os
fragile = Fragile
"""


def test_a_run_that_was_interrupted_is_resumed(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (small.parent / "tiny.py").open("a") as file:
        file.write(FRAGILE)
    before = contents(small)
    command = ("finetune", "out", *MODEL, *TRAINING, "--data", "tiny:fragile", "--no-onnx")
    assert main([*command, "--out", "whole"]) == 0
    monkeypatch.setenv("FRAGILE", "yes")
    assert main(list(command)) == 2
    assert "the disk is gone" in capsys.readouterr().err
    assert {name: content for name, content in contents(small).items() if name != "finetune.pt"} == before
    monkeypatch.delenv("FRAGILE")
    assert main(list(command)) == 0
    assert "finetune.pt" not in contents(small)
    assert contents(small)["weights.safetensors"] == contents(Path("whole"))["weights.safetensors"]


# Pictures.


def test_inputs_and_outputs_on_the_page(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "out", *MODEL, "--data", "tiny:images", "--number", "2"]) == 0
    section = Page((small / "report.html").read_text(encoding="utf-8")).root.id("pictures")
    shown = [image.attributes["alt"] for image in section.all("img")]
    assert shown[:3] == ["input 1", "near of input 1, dense", "near of input 1, pruned"]
    assert len(shown) == 2 * (1 + 2 * 2)
    capsys.readouterr()
    assert main(["export", "out", *MODEL]) == 0
    assert "written again, without the pictures" in " ".join(capsys.readouterr().err.split())
    assert 'id="pictures"' not in (small / "report.html").read_text(encoding="utf-8")


def test_pictures_need_networks_and_inputs(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "report", "out", "--data", "tiny:images")
    assert said.startswith("pictures need the networks and inputs: give --model")
    assert "pictures need the networks and inputs" in refusal(capsys, "report", "out", *MODEL)
    assert "Leave out --model" in refusal(
        capsys, "report", "diff", "out", "out", *MODEL, "--data", "tiny:images"
    )
