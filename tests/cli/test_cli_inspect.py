"""``disparse inspect``, and how the model and the tasks are named on the command line."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from disparse_structured.cli import main
from tests.support.command_line import document_of, prune_tiny

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model.py"
BUILD, BATCHES, TASKS = (f"{EXAMPLE}:{name}" for name in ("build", "batches", "tasks"))
INSPECT = ("inspect", "--model", "tiny:build", "--example", "2x3x8x8")


def test_inspect_lists_groups_reach_and_what_is_pinned(capsys):
    assert main(["inspect", "--model", BUILD, "--data", BATCHES, "--tasks", TASKS, "--json"]) == 0
    document = document_of(capsys)
    groups = {group["name"]: group for group in document["groups"]}
    assert groups["trunk.0"]["reach"] == ["segmentation", "depth", "normals"]
    assert groups["heads.depth.0"]["reach"] == ["depth"]
    assert (groups["trunk.2"]["units"], groups["trunk.2"]["kind"]) == (32, "channel")
    members = {(member["parameter"], member["dim"]) for member in groups["trunk.1.first"]["members"]}
    assert {("trunk.1.first.weight", 0), ("trunk.1.norm.weight", 0), ("trunk.1.second.weight", 1)} <= members
    assert document["units"] == {"total": 144, "shared": 96, "private": 48, "unclaimed": 0, "dead": 0}
    assert {pin["reason"] for pin in document["pinned"]} == {
        "the network's input",
        "the network's output",
    }
    model = runpy.run_path(str(EXAMPLE))["build"]()
    assert document["parameters"] == sum(p.numel() for p in model.parameters())
    assert document["constraints"] == []


def test_inspect_for_people_names_what_is_pinned_and_how_far_a_budget_can_go(capsys):
    assert main(["inspect", "--model", BUILD, "--example", "2x3x24x32", "--tasks", TASKS]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("trunk.1.first", "heads.depth.0", "all", "the network's input", "least MACs", "144 units"):
        assert text in shown.out


@pytest.mark.parametrize("inputs", [("--example", "2x3x8x8"), ("--data", "tiny:images"), ("--data", "x.npy")])
def test_without_tasks_every_output_is_one_as_in_prune(tiny, capsys, inputs):
    np.save("x.npy", np.zeros((3, 3, 8, 8), np.float32))
    assert main(["inspect", "--model", "tiny:build", *inputs, "--json"]) == 0
    document = document_of(capsys)
    assert document["tasks"] == ["near", "aux"]
    reach = {group["name"]: group["reach"] for group in document["groups"]}
    assert (reach["trunk.0"], reach["far.0"]) == (["near", "aux"], ["aux"])
    assert document["units"]["private"] == 4


def test_what_no_task_claims_is_named_and_counted_as_staying(tiny, capsys):
    words = [*INSPECT, "--floor", "0"]
    assert main([*words, "--tasks", "near", "--json"]) == 0
    near = document_of(capsys)
    assert near["units"]["unclaimed"] == 4
    assert [group["name"] for group in near["groups"] if group["unclaimed"]] == ["far.0"]
    assert main([*words, "--tasks", "near,far=aux.far", "--json"]) == 0
    both = document_of(capsys)
    assert both["units"]["unclaimed"] == 0
    assert both["reachable"][0]["parameters"]["least"] < near["reachable"][0]["parameters"]["least"]


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_a_budget_at_the_inspected_limit_is_met_and_one_below_is_not(tiny, capsys, kind):
    assert main([*INSPECT, "--floor", "0.3", "--json"]) == 0
    (entry,) = document_of(capsys)["reachable"]
    least = int(entry[kind]["least"])
    quick = ["--method", "disparse", "--refit", "none", "--no-onnx", "--no-verify"]
    words = [*quick, "--floor", "0.3", "--json"]
    given = [word for word in prune_tiny(*words) if word not in ("--macs", "0.6")]
    assert main([*given, f"--{kind}", str(least)]) == 0
    assert document_of(capsys)["report"]["costs"][kind]["counted"] == least
    assert main([*given, f"--{kind}", str(least - 1)]) == 2
    error = document_of(capsys)["error"]
    assert error["type"] == "BudgetError"
    assert "cannot be met" in error["message"]


def test_count_constraints_are_shown(tiny, capsys):
    Path("bound.py").write_text(
        "from tests.support.zoo import BY_ID\n"
        "entry = BY_ID['heads-bound-to-width']\n"
        "build, batches, tasks = entry.factory, [entry.inputs()], entry.tasks\n"
    )
    words = "inspect --model bound:build --data bound:batches --tasks bound:tasks".split()
    assert main([*words, "--json"]) == 0
    (constraint,) = document_of(capsys)["constraints"]
    assert constraint["groups"] == ["trunk.embed", "trunk.qkv"]
    assert constraint["shares"] == [4, 1]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"trunk.embed, trunk.qkv\s+4 : 1\s+forward uses the width", shown)


def test_budget_steps_compare_floors(tiny, capsys):
    words = [*INSPECT, "--budget-steps", "--json"]
    assert main(words) == 0
    steps = document_of(capsys)["reachable"]
    floors = [step["floor"] for step in steps]
    shares = [step["macs"]["share"] for step in steps]
    assert floors == sorted(floors)
    assert len(floors) > 3
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] < 1


def test_protected_layers_and_rounding_limit_what_is_reachable(tiny, capsys):
    def least(*more: str) -> float:
        words = [*INSPECT, "--floor", "0", "--json"]
        assert main([*words, *more]) == 0
        return document_of(capsys)["reachable"][0]["macs"]["least"]

    assert least() < least("--min-width", "2") < least("--round-to", "4") < least("--protect", "*")


# How the model and the tasks are named.


def test_a_model_may_be_a_module_a_class_or_an_attribute_of_one(tiny, capsys):
    for name in ("ready", "Tiny", "Checks.build", "wide"):
        assert main(["inspect", "--model", f"tiny:{name}", "--example", "2x3x8x8", "--json"]) == 0
        assert document_of(capsys)["model"] == "Tiny"


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ("near", ["near"]),
        ("near,far=aux.far", ["near", "far"]),
        ("tiny:tasks", ["near", "far"]),
        ("tiny:named_tasks", ["near", "far"]),
        ("tiny:one_task", ["near"]),
        ("tiny.py:tasks", ["near", "far"]),
    ],
)
def test_tasks_by_name_by_path_and_by_attribute(tiny, capsys, tasks, names):
    words = ["--model", "tiny.py:build", "--example", "2x3x8x8", "--tasks", tasks, "--json"]
    assert main(["inspect", *words]) == 0
    document = document_of(capsys)
    assert document["tasks"] == names
    assert {task for group in document["groups"] for task in group["reach"]} == set(names)


def test_images_as_they_are_stored_fit_a_model_that_takes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("stored.npy", np.zeros((4, 3, 8, 8), np.uint8))
    Path("stored.py").write_text(
        "from torch import nn\n"
        "class Stored(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.float() / 255)\n"
        "def build():\n"
        "    return Stored(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()\n"
    )
    assert main(["inspect", "--model", "stored.py:build", "--data", "stored.npy", "--json"]) == 0
    assert document_of(capsys)["units"]["total"] == 8
