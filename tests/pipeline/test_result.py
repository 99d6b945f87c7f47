"""What a result carries, and what becomes of it: saved, loaded, exported."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from disparse_structured import Budget, DiSparse, Task, analyse, load, prune
from disparse_structured.errors import ExportError, LoadError
from disparse_structured.pipeline import PruningResult
from disparse_structured.refit import Affine
from disparse_structured.surgery.pruned_graph import PrunedGraph
from tests.support.plans import snapshot
from tests.support.redundant import AsTuple, Redundant, build, deviation, deviations, images, set_aside

EXAMPLE = images(2)


def made(kind: type[nn.Module] = Redundant, *, form: str = "module", refit: Any = None) -> PruningResult:
    structure = analyse(build(kind), EXAMPLE, form=form)
    return prune(build(kind), images(8), macs=0.6, structure=structure, method=DiSparse(), refit=refit)


@pytest.fixture(scope="module", params=["module", "graph"])
def result(request: pytest.FixtureRequest) -> PruningResult:
    """The smaller network in either form; its outputs are a tuple as module, and a dict as graph."""
    return made(AsTuple, form=request.param, refit=Affine())


@pytest.fixture(scope="module")
def plain() -> PruningResult:
    """Tasks chosen by name and by a function; the module, not refit."""
    tasks = ["edges", Task("far", lambda output: output["depth"])]
    return prune(build(), images(8), tasks, macs=0.6, method=DiSparse(), refit=None)


def of(kind: type[nn.Module] = AsTuple, train: bool = False) -> Callable[[], nn.Module]:
    return lambda: build(kind).train(train)


# What it carries.


def test_example_inputs_are_the_first_two_examples(result: PruningResult) -> None:
    (example,) = result.example_inputs

    assert torch.equal(example, EXAMPLE)


def test_tasks_pick_the_outputs_of_the_smaller_model(result: PruningResult) -> None:
    output = result.model(*result.example_inputs)

    assert [task.name for task in result.tasks] == ["output0", "output1"]
    assert [task.pick(output).shape[1] for task in result.tasks] == [1, 2]


def test_a_result_shows_its_plan_and_report(result: PruningResult) -> None:
    assert repr(result) == f"PruningResult({type(result.model).__name__}, plan {result.plan.hash[:12]})"
    assert str(result) == f"{result.plan}\n{result.report}"


# How far the outputs moved.


@pytest.mark.parametrize("count", [8, 24], ids=["measured-on-all", "measured-on-those-set-aside"])
@pytest.mark.parametrize("refit", [None, Affine()], ids=["no-refit", "refit"])
def test_the_report_says_how_far_each_output_moved(refit: Any, count: int) -> None:
    dense, data = build(), images(count)
    method: dict[str, Any] = {"macs": 0.5, "method": DiSparse(), "verify": False}

    found = prune(dense, data, refit=refit, **method)

    report = found.report
    assert report.deviation is not None
    cut = found if refit is None else prune(dense, data, refit=None, **method)
    measured_on = set_aside(dense, data)
    assert report.deviation.cut == pytest.approx(deviations(cut.model, dense, measured_on), rel=1e-4)
    assert report.deviation.final == pytest.approx(deviations(found.model, dense, measured_on), rel=1e-4)
    assert (report.deviation.final == report.deviation.cut) == (refit is None)
    assert report.deviation.samples == count
    assert report.deviation.checked == (len(measured_on) if count == 24 else 0)
    shown = str(report)
    values = [*report.deviation.cut.values(), *report.deviation.final.values()]
    assert all(f"{100 * value:.3g} %" in shown for value in values)
    where = f"{len(measured_on)} inputs set aside" if count == 24 else "8 inputs"
    assert f"deviation measured on {where}" in shown
    assert json.loads(report.to_json())["deviation"] == {
        "samples": count,
        "checked": report.deviation.checked,
        "cut": dict(report.deviation.cut),
        "final": dict(report.deviation.final),
        "columns": {},
        "refit": {},
    }


def test_a_refit_says_what_it_did() -> None:
    found = prune(build(), images(24), budget=Budget(macs=0.5, round_to=1), verify=False)

    refit, moved = found.report.refit, found.report.deviation
    assert refit is not None
    assert moved is not None
    assert (dict(refit.before), dict(refit.after)) == (dict(moved.cut), dict(moved.final))
    assert all(refit.after[task] < 0.5 * refit.before[task] for task in ("depth", "edges"))
    assert refit.samples == 24
    assert 0 < refit.checked < 12
    assert 0 < refit.improved <= len(refit.layers)
    assert found.report.samples == 24 - refit.checked  # what the scores have not seen either
    assert f"{refit.improved} of {len(refit.layers)} layers improved" in str(found.report)


def test_a_refit_on_few_inputs_is_measured_on_the_same(result: PruningResult) -> None:
    assert result.report.refit is not None
    assert (result.report.refit.samples, result.report.refit.checked) == (8, 0)
    assert "refit on 8 inputs, measured on the same" in str(result.report)


# On disk.


@pytest.mark.parametrize("train", [False, True], ids=["factory-in-eval", "factory-in-train"])
def test_a_saved_result_loads_in_eval_mode_with_the_same_outputs(
    result: PruningResult, train: bool, tmp_path: Path
) -> None:
    result.save(tmp_path)

    loaded = load(tmp_path, of(train=train))

    assert not any(module.training for module in loaded.modules())
    assert type(loaded) is type(result.model)
    assert deviation(loaded, result.model, images(4)) == 0


def test_load_leaves_the_model_that_the_factory_returns_as_it_is(
    result: PruningResult, tmp_path: Path
) -> None:
    result.save(tmp_path)
    dense = build(AsTuple)
    dense.mid.train()
    before = snapshot(dense)

    loaded = load(tmp_path, lambda: dense)

    assert snapshot(dense) == before
    assert loaded is not dense


def test_a_result_is_saved_as_it_is_now(plain: PruningResult, tmp_path: Path) -> None:
    trained = dataclasses.replace(plain, model=copy.deepcopy(plain.model))
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(torch.randn_like(parameter))

    trained.save(tmp_path)

    assert deviation(load(tmp_path, of(Redundant)), trained.model, images(4)) == 0
    assert deviation(trained.model, plain.model, images(4)) > 0


def test_a_report_of_another_run_is_refused(plain: PruningResult, tmp_path: Path) -> None:
    plain.save(tmp_path / "first")
    other = prune(build(), images(8), macs=0.5, method=DiSparse(), refit=None, verify=False)
    other.save(tmp_path / "second")
    (tmp_path / "first" / "report.json").write_bytes((tmp_path / "second" / "report.json").read_bytes())

    with pytest.raises(LoadError, match="The folder mixes two runs"):
        load(tmp_path / "first", of(Redundant))


# As ONNX.


def test_an_exported_result_runs_in_onnx_runtime_with_outputs_named_after_tasks(
    result: PruningResult, tmp_path: Path
) -> None:
    facts = result.export(tmp_path / "small.onnx", dynamic_size=False)

    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["output0", "output1"]
    inputs = images(5)
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        wanted = result.model(inputs)
    for task, values in zip(result.tasks, found, strict=True):
        np.testing.assert_allclose(values, task.pick(wanted).numpy(), rtol=1e-3, atol=1e-5)
    assert facts.dynamic == "batch"
    written = {entry.key: entry.value for entry in onnx.load(tmp_path / "small.onnx").metadata_props}
    assert written["plan"] == result.plan.hash
    assert json.loads(written["tasks"]) == ["output0", "output1"]


def test_options_of_the_export_are_passed_on(plain: PruningResult, tmp_path: Path) -> None:
    fixed: dict[str, Any] = {"dynamic_batch": False, "dynamic_size": False}

    facts = plain.export(tmp_path / "small.onnx", metadata={"who": "me"}, **fixed)

    assert facts.dynamic == "static"
    assert facts.metadata["who"] == "me"
    assert [fact.name for fact in facts.outputs] == ["edges", "far"]
    with pytest.raises(ExportError):
        plain.export(tmp_path / "small.onnx", tolerance=0.0, **fixed)


def test_a_pruned_graph_returns_its_tasks_by_name() -> None:
    found = made(form="graph")

    assert isinstance(found.model, PrunedGraph)
    assert set(found.model(images(3))) == {"depth", "edges"}
    assert [task.output for task in found.tasks] == ["depth", "edges"]


def test_a_count_that_contradicts_the_prediction_is_said(plain: PruningResult) -> None:
    facts = plain.report
    wrong = dataclasses.replace(facts.costs["macs"], counted=facts.costs["macs"].predicted * 1.01)
    assert "Please report this model" not in str(facts)
    said = " ".join(str(dataclasses.replace(facts, costs={**facts.costs, "macs": wrong})).split())
    assert "MACs predicted, but" in said
    assert "Please report this model" in said


def test_all_files_have_the_mode_of_a_new_file(plain: PruningResult, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    plain.save(tmp_path / "small")
    modes = {path.stat().st_mode for path in (tmp_path / "small").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_report_without_inputs_is_named_when_it_is_loaded(plain: PruningResult, tmp_path: Path) -> None:
    plain.save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    del report["inputs"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(LoadError, match="has no entry 'inputs'"):
        load(tmp_path, of(Redundant))
