"""``disparse prune``, by its exit codes, its output and the folders it writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from disparse_structured import load
from disparse_structured.cli import main, names
from disparse_structured.cli.parsers import build_parser
from disparse_structured.decision.plan import Plan
from tests.support.command_line import TINY, document_of, prune_tiny, refusal, report_of

pytestmark = pytest.mark.xdist_group("cli prune")

QUICK = ("--method", "disparse", "--refit", "none", "--no-onnx")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A labeled network, pruned by votes, exported and timed: its folder and the printed document."""
    folder = tmp_path_factory.mktemp("pruned")
    (folder / "net.py").write_text(TINY)
    given = {"--model": "build", "--data": "images", "--tasks": "losses"}
    words = [word for option, name in given.items() for word in (option, f"{folder}/net.py:{name}")]
    out = folder / "deep" / "out"
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        more = ["--method", "disparse", "--macs", "0.5", "--samples", "8", "--latency", "--json"]
        assert main(["prune", *words, *more, "--out", str(out)]) == 0
    return out, json.loads(shown.getvalue())


def the_tiny_namespace() -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "tiny_namespace"}
    exec(compile(TINY, "tiny.py", "exec"), namespace)
    return namespace


def test_prune_writes_the_folder_and_nothing_else(pruned):
    folder, document = pruned
    files = ["plan.json", "weights.safetensors", "report.json", "settings.toml", "model.onnx"]
    assert sorted(each.name for each in folder.iterdir()) == sorted(files)
    assert document["folder"] == str(folder)
    assert document["files"] == files
    assert document["report"] == json.loads((folder / "report.json").read_text())


def test_the_budget_is_met_and_the_tasks_are_the_ones_given(pruned):
    report = pruned[1]["report"]
    assert 0.4 < report["costs"]["macs"]["counted"] / report["costs"]["macs"]["dense"] <= 0.5
    assert [(task["name"], task["labeled"]) for task in report["tasks"]] == [("near", True), ("far", True)]
    assert report["samples"] == 8
    assert report["verification"]["verified"]


def test_load_gives_the_outputs_of_the_onnx_file(pruned):
    folder, _ = pruned
    namespace = the_tiny_namespace()
    model = load(folder, namespace["build"]).eval()
    assert model.trunk[0].out_channels < 8
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    image = namespace["images"][2]
    outputs = session.run(["near", "far"], {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = model(image)
    assert [output.name for output in session.get_outputs()] == ["near", "far"]
    for output, wanted in zip(outputs, (expected["near"], expected["aux"]["far"]), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), wanted, rtol=1e-4, atol=1e-5)


def test_export_facts_and_latency_are_in_the_report(pruned):
    folder, document = pruned
    report = document["report"]
    export, latency = report["export"], report["latency"]
    assert export["path"] == "model.onnx"
    assert {fact["task"] for fact in export["parity"]} == {"near", "far"}
    assert all(fact["max_rel"] <= fact["tolerance"] for fact in export["parity"])
    assert latency["input_shapes"] == [[1, 3, 8, 8]]  # the batch is free: one sample is timed
    assert [model["name"] for model in latency["models"]] == ["dense", "pruned"]
    assert latency["threads"] == 1
    written = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert written["plan"] == report["plan"] == Plan.load(folder / "plan.json").hash
    assert json.loads(written["tasks"]) == ["near", "far"]


def test_show_prints_the_plan_and_the_report(pruned, capsys):
    folder, _ = pruned
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert str(Plan.load(folder / "plan.json")).splitlines()[0].strip() in shown
    for text in ("near votes", "verified against the masked twin", "agrees with PyTorch", "threads: 1"):
        assert text in shown
    assert main(["show", str(folder), "--json"]) == 0
    assert document_of(capsys)["plan"] == json.loads((folder / "plan.json").read_text())


def test_as_a_program_it_is_quiet_where_nobody_watches(tiny):
    command = [sys.executable, "-m", "disparse_structured", *prune_tiny(*QUICK, "--json")]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"]["verification"]["verified"]
    assert done.stderr == "the factory says hello\n"


# The methods, and what they are made of.


def test_without_labels_the_outputs_are_the_tasks_and_the_report_says_how_far_they_moved(tiny, capsys):
    report = report_of(*prune_tiny("--no-onnx", data="tiny:labeled"))
    shown = capsys.readouterr()
    assert main(["show", "out"]) == 0
    again = capsys.readouterr().out
    assert [(task["name"], task["labeled"]) for task in report["tasks"]] == [("near", False), ("aux", False)]
    assert report["method"] == "Compensated"
    assert report["deviation"]["samples"] == 12
    assert shown.err == ""
    for text in (shown.out, again):
        assert "deviation from dense" in text
        for task in ("near", "aux"):
            for weights in ("cut", "final"):
                assert f"{100 * report['deviation'][weights][task]:.3g} %" in text
    assert "written to out: plan.json, weights.safetensors, report.json, settings.toml\n" in shown.out
    assert not Path("out/model.onnx").exists()


def method_of(*words: str) -> Any:
    arguments = build_parser().parse_args(prune_tiny(*words))
    return names.method(arguments, arguments.method)


@pytest.mark.parametrize("name", names.CRITERIA)
def test_every_criterion_has_a_name(name):
    assert method_of("--method", "disparse", "--criterion", name).criterion == names.CRITERIA[name]()
    assert method_of("--criterion", name).criterion == names.CRITERIA[name]()


@pytest.mark.parametrize("name", [*names.ARBITERS, "quorum:2"])
def test_every_arbiter_has_a_name(name):
    expected = "Quorum(k=2)" if name == "quorum:2" else repr(names.ARBITERS[name]())
    assert repr(method_of("--arbiter", name).arbiter) == expected


@pytest.mark.parametrize("name", names.RANKINGS)
def test_every_ranking_has_a_name(name):
    assert method_of("--ranking", name).ranking == names.RANKINGS[name]()


def test_defaults_depend_on_the_method():
    votes, compensated = method_of("--method", "disparse"), method_of()
    assert (repr(votes.criterion), repr(votes.arbiter)) == ("Fisher()", "Unanimous()")
    assert (compensated.criterion, repr(compensated.arbiter)) == ("elimination", "WeightedMean()")
    assert repr(votes.ranking) == repr(compensated.ranking) == "PerCostRanking()"


@pytest.mark.parametrize("name", names.REFITS)
def test_every_refit_has_a_name(tiny, capsys, name):
    report = report_of(*prune_tiny("--no-onnx", "--no-verify", "--method", "disparse", "--refit", name))
    assert (report["refit"] is None) == (name == "none")
    if name != "none":
        assert report["refit"]["method"].startswith(type(names.REFITS[name]()).__name__)


def test_options_reach_the_plan_and_the_report(tiny, capsys):
    widths = "--round-to 4 --min-width 4 --floor 0.2 --uniform"
    rules = "--criterion l1 --ranking layer --arbiter any --seed 7 --no-verify"
    words = [*QUICK, *widths.split(), *rules.split(), "--protect", "far.*", "--protect", "near", "--json"]
    assert main(prune_tiny("--parameters", "0.8", *words)) == 0
    report = document_of(capsys)["report"]
    plan = Plan.load("out/plan.json")
    budget = dict(plan.budget)
    assert (budget["cost"], budget["limit"]) == ("parameters", 0.8)
    assert (budget["round_to"], budget["min_width"], budget["uniform"]) == (4, 4, True)
    assert (budget["floor"], budget["protected"], plan.provenance.seed) == (0.2, ("far.*", "near"), 7)
    assert [report[each] for each in ("criterion", "arbiter", "ranking")] == [
        "Magnitude(p=1)",
        "AnyTask()",
        "LayerRanking()",
    ]
    assert not report["verification"]["verified"]
    assert all(group.kept % 4 == 0 for group in plan.groups)
    assert "far.0" not in plan.removals


def test_options_reach_the_compensated_method(tiny, capsys):
    words = "--samples 8 --arbiter minimax --criterion l2 --tasks only=aux.far --no-onnx --no-verify"
    report = report_of(*prune_tiny(*words.split()))
    assert report["deviation"]["samples"] == 8
    assert [task["name"] for task in report["tasks"]] == ["only"]
    assert report["arbiter"] == "Minimax()"
    assert "Magnitude(p=2)" in report["criterion"]


def test_priorities_and_tolerances_are_given_by_task(tiny, capsys):
    words = ("--tasks", "near,far=aux.far", "--no-onnx", "--no-verify")
    report = report_of(*prune_tiny(*words, "--priority", "near=3", "--priority", "far=0.5"))
    assert report["arbiter"] == "Priority(weights={'far': 0.5, 'near': 3.0})"
    report = report_of(*prune_tiny(*words, "--tolerance", "near=0.9"))
    assert report["arbiter"].startswith("Tolerance(")
    assert report["deviation"]["final"]["near"] <= 0.9


OWN = """
from disparse_structured.scoring.criteria import Magnitude


class Own(Magnitude):
    pass


mine = Own(p=2)
"""


def test_a_criterion_of_ones_own_is_named_like_the_model(tiny, capsys):
    Path("own.py").write_text(OWN)
    for name in ("own:Own", "own.py:mine"):
        report = report_of(*prune_tiny(*QUICK, "--no-verify", "--criterion", name))
        assert report["criterion"].startswith("Own(")


def test_the_same_command_gives_the_same_plan_and_another_seed_another(tiny, capsys):
    def plan(*more: str) -> bytes:
        assert main([*prune_tiny(*QUICK, "--criterion", "random"), *more]) == 0
        return Path("out/plan.json").read_bytes()

    assert plan() == plan() != plan("--seed", "1")


def test_attention_and_form_are_read_into_the_structure(tiny, capsys):
    report = report_of(*prune_tiny(*QUICK, "--form", "graph"))
    assert report["graph"]["any_batch"]
    assert set(report["selectors"]) == {"near", "aux"}
    assert set(load("out", the_tiny_namespace()["build"])(torch.zeros(1, 3, 8, 8))) == {"near", "aux"}


def test_a_forward_may_take_its_input_by_name_only(tiny, capsys):
    report = report_of(*prune_tiny(*QUICK, model="tiny:ByName", data="tiny:dicts"))
    assert report["verification"]["verified"]


# What is printed.


def test_people_get_tables_and_no_progress(tiny, capsys):
    assert main(prune_tiny(*QUICK)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "the factory says hello" in shown.out
    for text in ("near votes", "aux votes", "MACs", "label-free", "written to out: plan.json, weights"):
        assert text in shown.out


def test_json_is_all_of_standard_output_though_the_factory_prints(tiny, capsys):
    assert main(prune_tiny(*QUICK, "--json")) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["files"] == [
        "plan.json",
        "weights.safetensors",
        "report.json",
        "settings.toml",
    ]
    assert "the factory says hello" in shown.err


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
        assert main(prune_tiny("--method", "disparse", "--refit", "none", "--no-verify", "--json")) == 0
    watcher.join(timeout=10)
    os.close(controller)
    text = b"".join(drawn).decode()
    for step in ("building the model", "scoring", "exporting to ONNX"):
        assert step in text
    assert document_of(capsys)["folder"] == "out"


# Data.


def test_the_first_samples_of_the_data_are_the_example(tiny, capsys):
    leaves = report_of(*prune_tiny(*QUICK, "--no-verify"))["inputs"]["leaves"]
    assert [leaf["shape"] for leaf in leaves] == [[2, 3, 8, 8]]


@pytest.mark.parametrize(
    ("data", "samples", "read"),
    [
        ("images", None, 12),
        ("generated", None, 12),
        ("one_pass", None, 12),
        ("one_pass", 8, 8),
        ("endless", 8, 8),
    ],
)
def test_data_may_be_a_list_a_generator_or_an_iterator(tiny, capsys, data, samples, read):
    more = [] if samples is None else ["--samples", str(samples)]
    assert report_of(*prune_tiny(*QUICK, "--no-verify", *more, data=f"tiny:{data}"))["samples"] == read


def save_as(name: str, images: torch.Tensor) -> None:
    if name.endswith(".npy"):
        np.save(name, images.double().numpy())
    elif name.endswith(".npz"):
        np.savez(name, images=images.numpy())
    elif name.endswith(".safetensors"):
        save_file({"images": images}, name)
    else:
        torch.save(images, name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pt", "x.pth", "x.safetensors"])
def test_data_comes_from_files_and_from_code_alike(tiny, capsys, name):
    words = (*QUICK, "--no-verify", "--samples", "4")
    expected = report_of(*prune_tiny(*words, data="tiny.py:stacked"))["plan"]
    save_as(name, the_tiny_namespace()["stacked"])
    assert report_of(*prune_tiny(*words, data=name))["plan"] == expected


def test_a_file_of_several_tensors_feeds_a_model_of_two_inputs(tiny, capsys):
    images = the_tiny_namespace()["stacked"].numpy()
    np.savez("both.npz", image=images, scale=np.ones((12, 1, 1, 1), np.float32))
    report = report_of(*prune_tiny("--no-onnx", "--no-verify", model="tiny:pair", data="both.npz"))
    assert [leaf["shape"] for leaf in report["inputs"]["leaves"]] == [[2, 3, 8, 8], [2, 1, 1, 1]]
    assert [task["name"] for task in report["tasks"]] == ["output0", "output1"]


def test_tasks_by_index_and_a_model_of_two_inputs_by_name(tiny, capsys):
    words = ["--tasks", "first=0,last=-1", "--no-verify", "--method", "disparse", "--refit", "none"]
    assert main(prune_tiny(*words, model="tiny:pair", data="tiny:pairs")) == 0
    assert "model.onnx" in capsys.readouterr().out
    graph = onnx.load("out/model.onnx").graph
    assert [value.name for value in graph.input] == ["image", "scale"]
    assert [value.name for value in graph.output] == ["first", "last"]


# Weights.


def tiny_state(scale: float) -> dict[str, torch.Tensor]:
    return {name: tensor * scale for name, tensor in the_tiny_namespace()["Tiny"]().state_dict().items()}


@pytest.mark.parametrize("kind", ["safetensors", "torch", "checkpoint"])
def test_weights_are_loaded(tiny, capsys, kind):
    state = tiny_state(scale=2.0)
    if kind == "safetensors":
        path = "weights.safetensors"
        save_file(state, path)
    else:
        path = "weights.pt"
        torch.save({"state_dict": state} if kind == "checkpoint" else state, path)
    assert main(prune_tiny(*QUICK, "--no-verify", "--weights", path, "--protect", "near", "far.0")) == 0
    saved = load("out", the_tiny_namespace()["build"]).state_dict()
    torch.testing.assert_close(saved["far.2.bias"], state["far.2.bias"], rtol=0, atol=0)


def test_weights_of_a_wrapped_model_are_loaded_and_another_type_is_said(tiny, capsys):
    state = {f"module.{name}": tensor.half() for name, tensor in tiny_state(scale=1.0).items()}
    torch.save(state, "wrapped.pt")

    report_of(*prune_tiny("--weights", "wrapped.pt", "--no-onnx"))

    said = capsys.readouterr().err
    assert "disparse: warning: the weights in 'wrapped.pt' are converted from float16 to float32" in said


def test_weights_of_another_model_are_refused_by_name(tiny, capsys):
    state = tiny_state(scale=1.0)
    state["head.weight"] = state.pop("near.weight")
    state["far.0.bias"] = torch.zeros(5)
    save_file(state, "weights.safetensors")
    said = refusal(capsys, *prune_tiny("--weights", "weights.safetensors"))
    assert "'weights.safetensors' do not fit Tiny: 1 missing (near.weight)" in said
    assert "1 unexpected (head.weight)" in said
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
    assert main(prune_tiny(*QUICK, "--no-verify", "--weights", "weights.safetensors", model="tied:Tied")) == 0


# The folder.


def test_an_old_onnx_file_does_not_stay_beside_a_new_plan(tiny, capsys):
    Path("out").mkdir()
    Path("out/model.onnx").write_bytes(b"of another plan")
    assert main(prune_tiny(*QUICK, "--no-verify")) == 0
    assert not Path("out/model.onnx").exists()


def test_a_folder_of_two_runs_is_not_shown(tiny, capsys):
    for seed, folder in (("0", "one"), ("1", "two")):
        words = [*QUICK, "--no-verify", "--criterion", "random", "--seed", seed, "--out", folder]
        assert main(prune_tiny(*words)) == 0
    os.replace("two/plan.json", "one/plan.json")
    capsys.readouterr()
    assert "plan.json and report.json in 'one' come from different runs" in refusal(capsys, "show", "one")
    Path("one/report.json").write_text('{"plan": 3}')
    assert "is not a report of this package: model is missing" in refusal(capsys, "show", "one")
    Path("one/report.json").write_text("{")
    assert "`disparse train` wrote" in refusal(capsys, "show", "one")


def test_a_failed_export_leaves_the_pruned_model(tiny, capsys):
    Path("out").mkdir()
    Path("out/settings.toml").write_text("# of another run")
    # ONNX Runtime takes no bfloat16, PyTorch does.
    Path("half.py").write_text("from tiny import *\ndef build():\n    return Tiny().bfloat16()\n")
    said = refusal(capsys, *prune_tiny("--method", "disparse", "--refit", "none", model="half:build"))
    assert "bfloat16" in said
    assert "The pruned model itself is saved in 'out'; --no-onnx skips the export." in said
    assert sorted(each.name for each in Path("out").iterdir()) == [
        "plan.json",
        "report.json",
        "settings.toml",
        "weights.safetensors",
    ]
    assert "half:build" in Path("out/settings.toml").read_text()
