"""The ``disparse`` command, by its exit codes, its output and the folders it writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from disparse_structured import Plan, load
from disparse_structured.cli import main
from disparse_structured.cli.names import ARBITERS, CRITERIA, QUORUM, RANKINGS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model.py"
BUILD, BATCHES, TASKS = (f"{EXAMPLE}:{name}" for name in ("build", "batches", "tasks"))

TINY = '''
"""A network small enough to be pruned many times."""

import sys

import torch
from torch import nn

from disparse_structured import Task


class Tiny(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3))
        self.near = nn.Conv2d(width, 2, 1)
        self.far = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def forward(self, image):
        shared = self.trunk(image)
        return {"near": self.near(shared), "aux": {"far": self.far(shared)}}


class Pair(Tiny):
    def forward(self, image, scale):
        found = super().forward(image * scale)
        return found["near"], found["aux"]["far"]


class ByName(Tiny):
    def forward(self, *, image):
        return super().forward(image)


class Branching(Tiny):
    def forward(self, image):
        if image.sum() > 0:
            return super().forward(image)
        return super().forward(-image)


def build():
    print("the factory says hello")
    torch.manual_seed(3)
    return Tiny()


def wide():
    return Tiny(width=16)


def broken():
    raise ValueError("no checkpoint here")


def unfinished():
    return "a model"


class Checks:
    build = staticmethod(build)


ready = Tiny()
images = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
nothing = []
number = 3
one_pass = iter(list(images))


def generated():
    yield from images


def pairs():
    return [{"image": image, "scale": torch.ones(4, 1, 1, 1)} for image in images]


def failing():
    yield images[0]
    raise RuntimeError("the disk is gone")


def dicts():
    return [{"image": image} for image in images]


tasks = [Task("near", "near"), Task("far", "aux.far")]


def named_tasks():
    return tuple(tasks)


one_task = Task("near", "near")
not_finite = [Task("near", "near", lambda output, batch: output.sum() * float("nan"))]
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a user's: an empty directory with ``tiny.py`` in it, and nothing importable left over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny.py").write_text(TINY)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _lies_in(module, tmp_path)]:
        del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    return str(getattr(module, "__file__", None)).startswith(f"{folder}{os.sep}")


def prune_tiny(*more: str, model: str = "tiny:build", data: str = "tiny:images") -> list[str]:
    """A whole command line; what ``more`` says again counts."""
    given = {"--model": model, "--data": data, "--tasks": "near,far=aux.far", "--out": "out"}
    budget = [] if "--parameters" in more else ["--macs", "0.6"]
    return ["prune", *(word for pair in given.items() for word in pair), *budget, *more]


def document_of(capsys: pytest.CaptureFixture[str]) -> dict:
    """Standard output as JSON, which it must be from its first character to its last."""
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that must fail."""
    assert main(list(argv)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("disparse: error: ")
    assert "Traceback" not in shown.err
    return shown.err.removeprefix("disparse: error: ").strip()


# --- prune -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The example with labels, pruned by ``python -m disparse_structured`` as a user runs it."""
    folder = tmp_path_factory.mktemp("pruned") / "deep" / "out"
    words = ["--model", BUILD, "--data", BATCHES, "--tasks", TASKS, "--macs", "0.5", "--out", str(folder)]
    # Standard error is no terminal here, so nothing may be drawn on it.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "disparse_structured",
            "prune",
            *words,
            "--latency",
            "--batches",
            "2",
            "--json",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def example_module() -> dict:
    return runpy.run_path(str(EXAMPLE))


def test_prune_writes_the_folder_and_nothing_else(pruned):
    folder, done = pruned
    files = ["plan.json", "weights.safetensors", "report.json", "model.onnx"]
    assert sorted(each.name for each in folder.iterdir()) == sorted(files)
    document = json.loads(done.stdout)
    assert document["folder"] == str(folder)
    assert document["files"] == files
    assert document["report"] == json.loads((folder / "report.json").read_text())


def test_a_command_that_nobody_watches_is_quiet(pruned):
    assert pruned[1].stderr == ""


def test_the_budget_is_met_and_the_tasks_are_the_ones_given(pruned):
    folder, _ = pruned
    report = json.loads((folder / "report.json").read_text())
    assert 0.48 < report["costs"]["macs"]["counted"] / report["costs"]["macs"]["dense"] <= 0.5
    assert [(task["name"], task["labelled"]) for task in report["tasks"]] == [
        ("segmentation", True),
        ("depth", True),
        ("normals", True),
    ]
    assert report["batches"] == 2
    assert report["verification"]["verified"]


def test_load_gives_the_outputs_of_the_onnx_file(pruned):
    folder, _ = pruned
    example = example_module()
    model = load(folder, example["build"])
    assert sum(p.numel() for p in model.parameters()) < sum(
        p.numel() for p in example["build"]().parameters()
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    image = next(iter(example["batches"]()))["image"]
    outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = model(image)
    assert [output.name for output in session.get_outputs()] == ["segmentation", "depth", "normals"]
    for output, name in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], rtol=1e-4, atol=1e-5)


def test_export_facts_and_latency_are_in_the_report(pruned):
    folder, _ = pruned
    report = json.loads((folder / "report.json").read_text())
    export, latency = report["export"], report["latency"]
    assert export["path"] == "model.onnx"
    assert {fact["task"] for fact in export["parity"]} == {"segmentation", "depth", "normals"}
    assert all(fact["max_rel"] <= fact["tolerance"] for fact in export["parity"])
    assert [2, 3, 24, 32] not in latency["input_shapes"]  # the batch is free: one sample is timed
    assert [model["name"] for model in latency["models"]] == ["dense", "pruned"]
    assert latency["threads"] == 1
    written = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert written["plan"] == report["plan"] == Plan.load(folder / "plan.json").hash
    assert json.loads(written["tasks"]) == ["segmentation", "depth", "normals"]


def test_show_prints_the_plan_and_the_report(pruned, capsys):
    folder, _ = pruned
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert str(Plan.load(folder / "plan.json")).splitlines()[0].strip() in shown
    for text in (
        "segmentation votes",
        "verified against the masked twin",
        "agrees with PyTorch",
        "threads: 1",
    ):
        assert text in shown
    assert main(["show", str(folder), "--json"]) == 0
    assert document_of(capsys)["plan"] == json.loads((folder / "plan.json").read_text())


def test_the_same_command_gives_the_same_plan_and_another_seed_another(tiny, capsys):
    def plan(*more: str) -> bytes:
        assert main([*prune_tiny("--criterion", "random", "--no-onnx"), *more]) == 0
        return Path("out/plan.json").read_bytes()

    assert plan() == plan() != plan("--seed", "1")


def test_people_get_tables_and_no_progress(tiny, capsys):
    assert main(prune_tiny("--no-onnx")) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("near votes", "far votes", "MACs", "label-free", "written to out: plan.json, weights"):
        assert text in shown.out


def test_json_is_all_of_standard_output_though_the_factory_prints(tiny, capsys):
    assert main(prune_tiny("--no-onnx", "--json")) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["files"] == ["plan.json", "weights.safetensors", "report.json"]
    assert "the factory says hello" in shown.err


def test_without_json_what_the_factory_prints_is_left_alone(tiny, capsys):
    assert main(prune_tiny("--no-onnx")) == 0
    assert "the factory says hello" in capsys.readouterr().out


def test_options_reach_the_plan_and_the_report(tiny, capsys):
    options = "--round-to 4 --min-width 4 --floor 0.2 --ranking per-cost --arbiter any --seed 7 --no-verify"
    words = [*options.split(), "--protect", "far.*", "--protect", "near", "--no-onnx", "--json"]
    assert main(prune_tiny("--parameters", "0.8", *words)) == 0
    report = document_of(capsys)["report"]
    plan = Plan.load("out/plan.json")
    budget = dict(plan.budget)
    assert (budget["cost"], budget["limit"], budget["round_to"], budget["min_width"]) == (
        "parameters",
        0.8,
        4,
        4,
    )
    assert (budget["floor"], budget["protected"], plan.provenance.seed) == (0.2, ("far.*", "near"), 7)
    assert (report["arbiter"], report["ranking"]) == ("AnyTask()", "PerCostRanking()")
    assert not report["verification"]["verified"]
    assert all(group.kept % 4 == 0 for group in plan.groups)
    assert "far.0" not in plan.removals


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_has_a_name(tiny, capsys, name):
    assert main(prune_tiny("--criterion", name, "--no-onnx", "--no-verify", "--json")) == 0
    expected = CRITERIA[name]
    assert document_of(capsys)["report"]["criterion"] == repr(expected)


@pytest.mark.parametrize("name", [*ARBITERS, "quorum:2"])
def test_every_arbiter_has_a_name(tiny, capsys, name):
    assert main(prune_tiny("--arbiter", name, "--no-onnx", "--no-verify", "--json")) == 0
    expected = "Quorum(k=2)" if name == "quorum:2" else repr(ARBITERS[name])
    assert document_of(capsys)["report"]["arbiter"] == expected


@pytest.mark.parametrize("name", RANKINGS)
def test_every_ranking_has_a_name(tiny, capsys, name):
    assert main(prune_tiny("--ranking", name, "--no-onnx", "--no-verify", "--json")) == 0
    assert document_of(capsys)["report"]["ranking"] == repr(RANKINGS[name])


@pytest.mark.parametrize(
    ("data", "batches"),
    [
        ("images", 3),
        ("generated", 3),
        ("one_pass", 3),
        ("images --batches 2", 2),
        ("generated --batches 2", 2),
    ],
)
def test_data_may_be_a_list_a_generator_or_an_iterator(tiny, capsys, data, batches):
    name, *more = data.split()
    assert main(prune_tiny("--no-onnx", "--no-verify", "--json", *more, data=f"tiny:{name}")) == 0
    assert document_of(capsys)["report"]["batches"] == batches


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


def test_tasks_by_index_and_a_model_of_two_inputs_by_name(tiny, capsys):
    words = prune_tiny("--tasks", "first=0,last=-1", "--no-verify", model="tiny:Pair", data="tiny:pairs")
    assert main(words) == 0
    assert "model.onnx" in capsys.readouterr().out
    inputs = [value.name for value in onnx.load("out/model.onnx").graph.input]
    outputs = [value.name for value in onnx.load("out/model.onnx").graph.output]
    assert (inputs, outputs) == (["image", "scale"], ["first", "last"])


def test_example_shapes_alone_are_enough_without_labels(tiny, capsys):
    words = "prune --model tiny:build --tasks near,far=aux.far --macs 0.6 --out out --no-onnx --json"
    assert main([*words.split(), "--example", "1x3x9x9"]) == 0
    leaves = document_of(capsys)["report"]["inputs"]["leaves"]
    assert [leaf["shape"] for leaf in leaves] == [[1, 3, 9, 9]]


def test_the_first_samples_of_the_data_are_the_example(tiny, capsys):
    assert main(prune_tiny("--no-onnx", "--json")) == 0
    leaves = document_of(capsys)["report"]["inputs"]["leaves"]
    assert [leaf["shape"] for leaf in leaves] == [[2, 3, 8, 8]]


def test_an_old_onnx_file_does_not_stay_beside_a_new_plan(tiny, capsys):
    Path("out").mkdir()
    Path("out/model.onnx").write_bytes(b"of another plan")
    assert main(prune_tiny("--no-onnx", "--no-verify")) == 0
    assert not Path("out/model.onnx").exists()


# --- weights ---------------------------------------------------------------------------------------


def tiny_state(scale: float) -> dict[str, torch.Tensor]:
    namespace = runpy.run_path("tiny.py")
    return {name: tensor * scale for name, tensor in namespace["Tiny"]().state_dict().items()}


def saved_weights() -> dict[str, torch.Tensor]:
    build = runpy.run_path("tiny.py")["build"]
    return load("out", build).state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "torch", "checkpoint"])
def test_weights_are_loaded(tiny, capsys, kind):
    state = tiny_state(scale=2.0)
    if kind == "safetensors":
        path = "weights.safetensors"
        save_file(state, path)
    else:
        path = "weights.pt"
        torch.save({"state_dict": state} if kind == "checkpoint" else state, path)
    assert main(prune_tiny("--weights", path, "--no-onnx", "--no-verify", "--protect", "near", "far.0")) == 0
    torch.testing.assert_close(saved_weights()["far.2.bias"], state["far.2.bias"], rtol=0, atol=0)


def test_weights_of_another_model_are_refused_by_name(tiny, capsys):
    state = tiny_state(scale=1.0)
    state["head.weight"] = state.pop("near.weight")
    state["far.0.bias"] = torch.zeros(5)
    save_file(state, "weights.safetensors")
    said = refusal(capsys, *prune_tiny("--weights", "weights.safetensors"))
    assert "'weights.safetensors' do not fit Tiny: 1 missing (near.weight)" in said
    assert "1 left over (head.weight)" in said
    assert "1 of another shape (far.0.bias is [5], not [4])" in said
    assert not Path("out").exists()


def test_tied_weights_may_be_written_once(tiny, capsys):
    Path("tied.py").write_text(
        "from tiny import *\n"
        "class Tied(Tiny):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.again = self.near\n"
    )
    save_file(tiny_state(scale=2.0), "weights.safetensors")  # near.*, and no again.*
    words = prune_tiny("--weights", "weights.safetensors", "--no-onnx", "--no-verify", model="tied:Tied")
    assert main(words) == 0


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_weights_file_runs_no_code(tiny, capsys):
    torch.save(Payload(), "evil.pt")
    assert "'evil.pt' cannot be read as weights" in refusal(capsys, *prune_tiny("--weights", "evil.pt"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "there is no weights file 'none.pt'"),
        ("text.safetensors", b"hello", "'text.safetensors' cannot be read as weights (SafetensorError"),
        ("text.pt", b"hello", "'text.pt' cannot be read as weights"),
    ],
)
def test_weights_that_cannot_be_read(tiny, capsys, name, content, message):
    if content is not None:
        Path(name).write_bytes(content)
    assert message in refusal(capsys, *prune_tiny("--weights", name))


def test_a_checkpoint_without_a_state_dict_is_refused(tiny, capsys):
    torch.save({"epoch": 3, "lr": 0.1}, "weights.pt")
    said = refusal(capsys, *prune_tiny("--weights", "weights.pt"))
    assert "'weights.pt' holds keys epoch, lr, not a state dict of tensors" in said


# --- inspect ---------------------------------------------------------------------------------------


def test_inspect_lists_groups_reach_and_what_is_frozen(capsys):
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
    model = example_module()["build"]()
    assert document["parameters"] == sum(p.numel() for p in model.parameters())
    assert document["constraints"] == []


def test_inspect_for_people_names_what_is_frozen_and_how_far_a_budget_can_go(capsys):
    assert main(["inspect", "--model", BUILD, "--example", "2x3x24x32", "--tasks", TASKS]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("trunk.1.first", "heads.depth.0", "all", "the network's input", "least MACs", "144 units"):
        assert text in shown.out


def test_without_tasks_the_whole_output_is_one(tiny, capsys):
    assert main(["inspect", "--model", "tiny:build", "--example", "2x3x8x8", "--json"]) == 0
    document = document_of(capsys)
    assert document["tasks"] == ["output"]
    assert all(group["reach"] == ["output"] for group in document["groups"])


def test_what_no_task_claims_is_named_and_counted_as_staying(tiny, capsys):
    words = ["inspect", "--model", "tiny:build", "--example", "2x3x8x8", "--floor", "0"]
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
    assert (
        main(["inspect", "--model", "tiny:build", "--data", "tiny:images", "--floor", "0.3", "--json"]) == 0
    )
    (entry,) = document_of(capsys)["reachable"]
    least = int(entry[kind]["least"])
    words = ["--floor", "0.3", "--no-onnx", "--no-verify", "--json"]
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
    words = ["inspect", "--model", "tiny:build", "--example", "2x3x8x8", "--budget-steps", "--json"]
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
        words = ["inspect", "--model", "tiny:build", "--example", "2x3x8x8", "--floor", "0", "--json"]
        assert main([*words, *more]) == 0
        return document_of(capsys)["reachable"][0]["macs"]["least"]

    assert least() < least("--min-width", "2") < least("--round-to", "4") < least("--protect", "*")


# --- what is wrong with a command line -------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "--model",
            "tiny",
            "--model 'tiny' names no object. Write package.module:name, or path/to/file.py:name.",
        ),
        ("--model", "tiny:buidl", "module 'tiny' has no 'buidl'. Did you mean 'build'?"),
        ("--model", "tniy:build", "there is no module 'tniy' in "),
        ("--model", "tniy:build", "Did you mean 'tiny'?"),
        ("--model", "tiny.net:build", "'tiny' is a module, not a package, so there is no 'tiny.net'."),
        ("--model", "torch.optmi:SGD", "package 'torch' has no module 'optmi'. Did you mean 'optim'?"),
        ("--model", "tniy.py:build", "there is no file 'tniy.py' in "),
        ("--model", "tniy.py:build", "Did you mean 'tiny.py'"),
        ("--model", "absent/a.py:build", "There is no Python file in 'absent' at all."),
        ("--model", "tiny:broken", "calling it raised ValueError: no checkpoint here (at "),
        (
            "--model",
            "tiny:unfinished",
            "returned something of type str. It must return the dense torch.nn.Module.",
        ),
        ("--model", "tiny:number", "is of type int. Name a factory"),
        ("--model", "tiny:Branching", "torch.export could not capture Branching"),
        (
            "--model",
            "needs_absent:x",
            "importing 'needs_absent' raised ModuleNotFoundError: No module named 'gone'",
        ),
        ("--model", "typo.py:x", "raised SyntaxError"),
        ("--data", "tiny:nothing", "yields no batch"),
        ("--data", "tiny:number", "is of type int, which yields no batches"),
        ("--data", "tiny:failing", "reading a batch raised RuntimeError: the disk is gone (at "),
        ("--data", "tiny:imagse", "Did you mean 'images'?"),
        ("--tasks", "naer", "the selector 'naer' misses at 'naer'; there the model returns a dict with keys"),
        ("--tasks", "near,near", "task name 'near' is used 2 times"),
        ("--tasks", "near,,far", "'' names no task"),
        ("--tasks", "near=", "'near=' names no task"),
        ("--tasks", "tiny:number", "is of type int. Name a sequence of Task"),
        ("--tasks", "tiny:images", "expected Task objects, found Tensor"),
        ("--tasks", "tiny:not_finite", "task 'near': its loss is nan"),
        ("--weights", "absent.pt", "there is no weights file 'absent.pt'"),
        ("--example", "3x", "--example '3x' is no shape."),
        ("--example", "0x3x8x8", "--example '0x3x8x8' is no shape."),
        ("--macs", "1.5", "macs=1.5 is neither a fraction below 1 nor a whole number"),
        ("--macs", "0", "macs=0.0 would leave no model"),
        ("--macs", "half", "argument --macs: invalid float value: 'half'"),
        ("--macs", "0.0001", "cannot be met"),
        ("--floor", "2", "floor must be a share in [0, 1], such as 0.1, got 2.0"),
        ("--protect", "faar.*", "the protected pattern 'faar.*' matches no channel group"),
        ("--batches", "0", "--batches 0: read at least 1 batch."),
        ("--out", "tiny.py", "--out 'tiny.py': "),
        ("--out", "tiny.py/below", "is a file. Give a folder."),
        ("--criterion", "fihser", "--criterion 'fihser' is unknown. Did you mean 'fisher'?"),
        ("--arbiter", "unanimity", "Did you mean 'unanimous'?"),
        ("--arbiter", "qourum", f"Did you mean {QUORUM!r}?"),
        ("--arbiter", "quorum", "--arbiter 'quorum' states no number of votes."),
        ("--arbiter", "quorum:0", "--arbiter 'quorum:0' states no number of votes."),
        ("--ranking", "zzz", "There is 'global', 'isomorphic', 'layer', 'per-cost'."),
    ],
)
def test_bad_input_is_named_with_the_remedy(tiny, capsys, option, value, message):
    Path("needs_absent.py").write_text("import gone\n")
    Path("typo.py").write_text("def build(:\n")
    assert message in refusal(capsys, *prune_tiny(option, value))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND. `disparse --help` lists the options."),
        ("prnue", "invalid choice: 'prnue'"),
        ("prune --model tiny:build", "the following arguments are required: --tasks, --out"),
        ("prune --model m:x --tasks near --out o", "one of the arguments --macs --parameters is required"),
        (
            "prune --model m:x --tasks a --out o --macs 0.5 --parameters 0.5",
            "not allowed with argument --macs",
        ),
        ("prune --model tiny:build --tasks near --out o --macs 0.5", "Give --data, or --example"),
        ("prune --model m:x --tasks a --out o --macs 0.5 --latency --no-onnx", "--latency times ONNX files"),
        ("inspect --model tiny:build", "Give --example 2x3x224x224, or --data."),
        ("show absent", "the plan 'absent/plan.json' cannot be read"),
    ],
)
def test_bad_commands(tiny, capsys, words, message):
    assert message in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    "words", ["prune --json", "show absent --json", "inspect --model tiny:buidl --example 1x3 --json"]
)
def test_with_json_an_error_is_the_document(tiny, capsys, words):
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert set(error) == {"type", "message"}
    assert shown.err == f"disparse: error: {error['message']}\n"
    assert error["type"] == ("LoadError" if words.startswith("show") else "UsageError")


def test_a_forward_that_takes_its_input_by_name_only_is_refused(tiny, capsys):
    said = refusal(capsys, *prune_tiny(model="tiny:ByName", data="tiny:dicts"))
    assert "ByName.forward takes ['image'] by name only" in said


def test_a_folder_of_two_runs_is_not_shown(tiny, capsys):
    for seed, folder in (("0", "one"), ("1", "two")):
        words = prune_tiny(
            "--criterion", "random", "--seed", seed, "--no-onnx", "--no-verify", "--out", folder
        )
        assert main(words) == 0
    os.replace("two/plan.json", "one/plan.json")
    capsys.readouterr()
    assert "plan.json and report.json in 'one' are of two runs" in refusal(capsys, "show", "one")
    Path("one/report.json").write_text('{"plan": 3}')
    assert "is no report of this release (KeyError" in refusal(capsys, "show", "one")


def test_a_failed_export_leaves_the_proven_model(tiny, capsys):
    # ONNX Runtime takes no bfloat16, PyTorch does.
    Path("half.py").write_text("from tiny import *\ndef build():\n    return Tiny().bfloat16()\n")
    said = refusal(capsys, *prune_tiny(model="half:build"))
    assert "bfloat16" in said
    assert "The pruned model itself is proven and saved in 'out'; --no-onnx leaves the export out." in said
    assert sorted(each.name for each in Path("out").iterdir()) == [
        "plan.json",
        "report.json",
        "weights.safetensors",
    ]


def test_ctrl_c(tiny, capsys):
    Path("stops.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    assert main(["inspect", "--model", "stops:build", "--example", "1x3"]) == 130
    assert capsys.readouterr().err == "disparse: interrupted\n"


def test_a_file_that_failed_to_import_is_run_again(tiny, capsys):
    Path("late.py").write_text("raise ValueError('not yet')\n")
    words = ["inspect", "--model", "late.py:build", "--example", "2x3x8x8"]
    assert "raised ValueError: not yet" in refusal(capsys, *words)
    Path("late.py").write_text("from tiny import build\n")
    assert main(words) == 0


def test_version_and_help(capsys):
    for words, text in ((["--version"], r"disparse \d+\.\d+"), (["prune", "--help"], "--macs")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert re.search(text, capsys.readouterr().out)


def test_a_reader_that_has_seen_enough_is_no_fault(tiny, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["inspect", "--model", "tiny:build", "--example", "2x3x8x8", "--json"]) == 1


def test_on_a_terminal_progress_is_shown_beside_the_document(tiny, monkeypatch, capsys):
    controller, terminal = os.openpty()
    drawn: list[bytes] = []

    def watch() -> None:
        # Reading a terminal that nobody writes to any more is an error, not an end.
        with contextlib.suppress(OSError):
            while chunk := os.read(controller, 4096):
                drawn.append(chunk)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(prune_tiny("--no-verify", "--json")) == 0
    watcher.join(timeout=10)
    os.close(controller)
    text = b"".join(drawn).decode()
    for step in ("building the model", "saliency", "exporting to ONNX"):
        assert step in text
    assert document_of(capsys)["folder"] == "out"


def test_the_example_runs_as_a_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "pruned" / "weights.safetensors").is_file()
    model = load("pruned", example_module()["build"])
    assert isinstance(model, nn.Module)
