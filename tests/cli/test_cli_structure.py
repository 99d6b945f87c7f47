"""``--form`` and ``--attention``: what is pruned, on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch

from disparse_structured import load
from disparse_structured.cli import main
from disparse_structured.decision.plan import Plan
from tests.pipeline.test_graph_form import MIXED
from tests.support.zoo import BY_ID

NETWORK = """
import torch
from tests.pipeline.test_graph_form import MIXED

build = MIXED.factory
images = [MIXED.inputs(4, seed=seed)[0] for seed in range(4)]
"""
PRUNE = (
    "prune --model mixed:build --data mixed:images --parameters 0.5 --out out --method disparse --refit none"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's directory with ``mixed.py`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mixed.py").write_text(NETWORK)
    yield tmp_path
    sys.modules.pop("mixed", None)


def test_the_graph_is_delivered_with_its_onnx_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*PRUNE.split(), "--tasks", "here=near,far", "--form", "graph"]
    assert main([*words, "--latency", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    report = document["report"]
    loaded = load("out", MIXED.factory)
    (images,) = MIXED.inputs(5, seed=8)
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {session.get_inputs()[0].name: images.numpy()})

    assert document["files"] == [
        "plan.json",
        "weights.safetensors",
        "report.json",
        "settings.toml",
        "model.onnx",
    ]
    parameters = report["costs"]["parameters"]
    assert parameters["counted"] <= 0.5 * parameters["dense"]
    assert report["graph"] == {"any_batch": True, "examples": 2}
    assert report["selectors"] == {"here": "near", "far": "far"}
    assert report["export"]["dynamic"] == "batch"
    assert [model["name"] for model in report["latency"]["models"]] == ["dense", "pruned"]
    assert loaded.get_parameter("wide.weight").shape[0] < 16
    for name, output in zip(names, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), loaded(images)[name], rtol=1e-4, atol=1e-5)
    assert main(["show", "out"]) == 0
    assert "the pruned exported graph, which takes batches of any size" in capsys.readouterr().out


def test_the_default_method_prunes_the_graph_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = PRUNE.replace(" --method disparse --refit none", "").split()
    assert main([*words, "--form", "graph", "--no-onnx", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["selectors"] == {"near": "near", "far": "far"}
    assert report["method"] == "Compensated"


def test_show_repeats_what_only_the_graph_can_shrink(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PRUNE.replace("0.5", "0.8").split(), "--no-onnx"]) == 0
    shown = capsys.readouterr().out
    assert main(["show", "out"]) == 0
    again = capsys.readouterr().out

    for text in (shown, again):
        assert "forward hard-codes the number 16" in text
        assert "--form graph" in text


def test_inspect_says_what_a_budget_could_remove_for_either_form(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "inspect --model mixed:build --example 2x3x8x8 --floor 0".split()
    found = {}
    for form in ("module", "graph"):
        assert main([*words, "--form", form, "--json"]) == 0
        found[form] = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    shown = capsys.readouterr().out

    least = {form: document["reachable"][0]["parameters"]["least"] for form, document in found.items()}
    assert least["graph"] < least["module"]
    assert [document["form"] for document in found.values()] == ["module", "graph"]
    assert found["graph"]["graph_only"] == 0 < found["module"]["graph_only"]
    assert f"{found['module']['graph_only']:.1%} of the parameters lie in slices that numbers" in shown
    # A budget at the graph's limit is one that the graph meets and the module does not.
    given = PRUNE.replace("--parameters 0.5 ", "").split()
    budget = ["--parameters", str(int(least["graph"])), "--floor", "0", "--no-onnx", "--no-verify"]
    assert main([*given, *budget, "--form", "graph"]) == 0
    assert main([*given, *budget]) == 2


VIT = """
import torch
from tests.support.zoo import BY_ID

build = BY_ID["tiny-vit"].factory
images = BY_ID["tiny-vit"].inputs(24)[0]
"""


def test_the_head_dimension_can_shrink_instead_of_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vit.py").write_text(VIT)
    monkeypatch.chdir(tmp_path)
    model, attention = ["--model", "vit.py:build"], ["--attention", "head_dim", "--json"]
    given = ["--data", "vit.py:images", "--parameters", "0.6", "--out", "small"]
    quick = ["--method", "disparse", "--refit", "none", "--no-onnx"]

    assert main(["prune", *model, *given, *quick, *attention]) == 0
    assert "attention.qkv" in Plan.load("small/plan.json").removals
    loaded = load("small", BY_ID["tiny-vit"].factory)
    assert loaded.attention.head_dim < 4
    assert loaded.attention.num_heads == 3
    capsys.readouterr()
    assert main(["inspect", *model, "--example", "2x3x12x12", *attention]) == 0
    groups = {group["name"]: group for group in json.loads(capsys.readouterr().out)["groups"]}
    assert groups["attention.qkv"]["units"] == 4
