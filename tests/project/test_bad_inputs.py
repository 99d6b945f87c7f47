"""Every kind of bad input gets an error of its kind, and leaves the model as it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.cli import main
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import (
    BatchError,
    DisparseError,
    DisparseWarning,
    ExportError,
    LoadError,
    OptionError,
    PlanError,
    SaveError,
    TaskError,
    UnsupportedModelError,
)
from disparse_structured.pipeline import Iterative, PruningResult

Call = Callable[[], Any]

NAN, INF = math.nan, math.inf


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.near, self.far = nn.Linear(width, 2), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x).relu()
        return {"near": self.near(x), "far": self.far(x)}


def build() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
MODEL = build()
BUDGET = ds.Budget(macs=0.5)


@functools.cache
def structure() -> Any:
    return ds.analyse(MODEL, X[:2])


@functools.cache
def scores() -> Tensor:
    return torch.rand(2, 16, generator=torch.Generator().manual_seed(2))


@functools.cache
def result() -> PruningResult:
    return ds.prune(MODEL, X, macs=0.5, method=ds.DiSparse(), refit=None)


def prune(**options: Any) -> Any:
    return ds.prune(**{"model": MODEL, "data": X, "macs": 0.5, **options})


def score(**options: Any) -> Any:
    return ds.score(**{"model": MODEL, "structure": structure(), "data": [X], **options})


def plan(**options: Any) -> Any:
    return ds.plan(**{"structure": structure(), "scores": scores(), "budget": BUDGET, **options})


def apply(**options: Any) -> Any:
    return ds.apply(**{"model": MODEL, "plan": result().plan, "structure": structure(), **options})


def analyse(**options: Any) -> Any:
    return ds.analyse(**{"model": MODEL, "example_inputs": X[:2], **options})


JUNK = {
    "None": None,
    "a number": 3,
    "a negative number": -1,
    "a fraction": 1.5,
    "NaN": NAN,
    "True": True,
    "text": "abc",
    "bytes": b"x",
    "a list": [1],
    "a dict": {"a": 1},
    "a class": Net,
    "an object": object(),
    "a tensor": torch.ones(2),
    "a function": lambda: None,
    "a generator": (each for each in [1]),
}

ARGUMENTS: dict[str, tuple[Callable[[Any], Any], type[DisparseError], str]] = {
    "prune(model)": (lambda junk: prune(model=junk), UnsupportedModelError, ""),
    "prune(data)": (lambda junk: prune(data=junk), DisparseError, "a class"),
    "prune(tasks)": (lambda junk: prune(tasks=junk), TaskError, "None"),
    "prune(macs)": (lambda junk: prune(macs=junk), OptionError, "a number"),
    "prune(budget)": (lambda junk: prune(macs=None, budget=junk), OptionError, ""),
    "prune(method)": (lambda junk: prune(method=junk), OptionError, ""),
    "prune(refit)": (lambda junk: prune(refit=junk), OptionError, "None"),
    "prune(tolerance)": (lambda junk: prune(tolerance=junk), DisparseError, "None"),
    "prune(to_inputs)": (lambda junk: prune(to_inputs=junk), DisparseError, "None"),
    "prune(structure)": (lambda junk: prune(structure=junk), OptionError, "None"),
    "prune(batched)": (lambda junk: prune(batched=junk), OptionError, "None"),
    "prune(samples)": (lambda junk: prune(samples=junk), OptionError, "None, a number"),
    "prune(seed)": (lambda junk: prune(seed=junk), OptionError, "a number"),
    "prune(latency)": (lambda junk: prune(macs=None, latency=junk), OptionError, "a number, a fraction"),
    "prune(runtime)": (lambda junk: prune(macs=None, latency=0.5, runtime=junk), OptionError, "None"),
    "analyse(model)": (lambda junk: analyse(model=junk), UnsupportedModelError, ""),
    "analyse(example_inputs)": (lambda junk: analyse(example_inputs=junk), DisparseError, "a tensor"),
    "analyse(tasks)": (lambda junk: analyse(tasks=junk), TaskError, "None"),
    "analyse(form)": (lambda junk: analyse(form=junk), OptionError, ""),
    "analyse(attention)": (lambda junk: analyse(attention=junk), OptionError, ""),
    "analyse(outputs)": (lambda junk: analyse(outputs=junk), OptionError, ""),
    "analyse(entry_points)": (lambda junk: analyse(entry_points=junk), OptionError, "None"),
    "analyse(batched)": (lambda junk: analyse(batched=junk), OptionError, "None"),
    "score(model)": (lambda junk: score(model=junk), UnsupportedModelError, ""),
    "score(structure)": (lambda junk: score(structure=junk), OptionError, ""),
    "score(data)": (lambda junk: score(data=junk), DisparseError, ""),
    "score(criterion)": (lambda junk: score(criterion=junk), OptionError, ""),
    "score(to_inputs)": (lambda junk: score(to_inputs=junk), DisparseError, "None"),
    "score(seed)": (lambda junk: score(seed=junk), OptionError, "a number"),
    "score(max_batches)": (lambda junk: score(max_batches=junk), OptionError, "None, a number"),
    "score(keep)": (lambda junk: score(keep=junk), DisparseError, "None"),
    "plan(structure)": (lambda junk: plan(structure=junk), OptionError, ""),
    "plan(scores)": (lambda junk: plan(scores=junk), OptionError, ""),
    "plan(budget)": (lambda junk: plan(budget=junk), OptionError, ""),
    "plan(ranking)": (lambda junk: plan(ranking=junk), OptionError, ""),
    "plan(arbiter)": (lambda junk: plan(arbiter=junk), OptionError, ""),
    "plan(weights)": (lambda junk: plan(weights=junk), OptionError, "None, a tensor"),
    "plan(method)": (lambda junk: plan(method=junk), OptionError, "None, text"),
    "plan(seed)": (lambda junk: plan(seed=junk), OptionError, "None, a number"),
    "apply(model)": (lambda junk: apply(model=junk), UnsupportedModelError, ""),
    "apply(plan)": (lambda junk: apply(plan=junk), OptionError, ""),
    "apply(structure)": (lambda junk: apply(structure=junk), OptionError, ""),
    "load(folder)": (lambda junk: ds.load(junk, build), DisparseError, ""),
    "load(factory)": (lambda junk: ds.load("absent", junk), DisparseError, ""),
    "Task(name)": (ds.Task, TaskError, "text"),
    "Task(output)": (
        lambda junk: ds.Task("near", junk),
        TaskError,
        "None, a number, a negative number, text",
    ),
    "Task(loss)": (lambda junk: ds.Task("near", loss=junk), TaskError, "None"),
    "Task(weight)": (lambda junk: ds.Task("near", weight=junk), TaskError, "a number, a fraction"),
    "Budget(of)": (lambda junk: ds.Budget(0.5, of=junk), OptionError, ""),
    "Budget(floor)": (lambda junk: ds.Budget(macs=0.5, floor=junk), OptionError, ""),
    "Budget(min_width)": (lambda junk: ds.Budget(macs=0.5, min_width=junk), OptionError, "a number"),
    "Budget(round_to)": (lambda junk: ds.Budget(macs=0.5, round_to=junk), OptionError, "a number"),
    "Budget(uniform)": (lambda junk: ds.Budget(macs=0.5, uniform=junk), OptionError, "True"),
    "DiSparse(criterion)": (ds.DiSparse, OptionError, ""),
    "DiSparse(arbiter)": (lambda junk: ds.DiSparse(arbiter=junk), OptionError, ""),
    "DiSparse(ranking)": (lambda junk: ds.DiSparse(ranking=junk), OptionError, ""),
    "Compensated(rounds)": (lambda junk: ds.Compensated(rounds=junk), OptionError, "None, a number"),
    "Compensated(scored)": (lambda junk: ds.Compensated(scored=junk), OptionError, "a number"),
    "Compensated(left)": (lambda junk: ds.Compensated(left=junk), OptionError, ""),
    "Compensated(refit)": (lambda junk: ds.Compensated(refit=junk), OptionError, "None"),
    "Iterative(rounds)": (lambda junk: Iterative(rounds=junk), OptionError, "a number"),
    "Magnitude(p)": (ds.criteria.Magnitude, OptionError, ""),
    "Learned(steps)": (ds.criteria.Learned, OptionError, "a number"),
    "Learned(lr)": (lambda junk: ds.criteria.Learned(lr=junk), OptionError, "a number, a fraction"),
    "DiagonalHessian(directions)": (ds.criteria.DiagonalHessian, OptionError, "a number"),
    "Quorum(k)": (ds.arbiters.Quorum, DisparseError, "a number"),
    "Priority(weights)": (ds.arbiters.Priority, DisparseError, "a dict"),
    "Tolerance(limits)": (ds.arbiters.Tolerance, DisparseError, "a dict"),
    "LeastSquares(ridges)": (lambda junk: ds.refits.LeastSquares(ridges=junk), OptionError, ""),
    "LeastSquares(rows)": (lambda junk: ds.refits.LeastSquares(rows=junk), OptionError, "a number"),
    "LeastSquares(streams)": (lambda junk: ds.refits.LeastSquares(streams=junk), OptionError, "True"),
    "LeastSquares(merge)": (lambda junk: ds.refits.LeastSquares(merge=junk), OptionError, "True"),
    "LeastSquares(memory)": (lambda junk: ds.refits.LeastSquares(memory=junk), OptionError, "a number"),
    "Affine(shifts)": (lambda junk: ds.refits.Affine(shifts=junk), OptionError, "a number"),
    "BatchNormStatistics(seed)": (
        lambda junk: ds.refits.BatchNormStatistics(seed=junk),
        OptionError,
        "a number",
    ),
    "ModelFolding(rows)": (lambda junk: ds.refits.ModelFolding(rows=junk), OptionError, "a number"),
    "Plan.load(path)": (Plan.load, DisparseError, ""),
    "Plan.from_json(text)": (Plan.from_json, DisparseError, ""),
    "Plan.of(structure)": (lambda junk: Plan.of(junk, {}), OptionError, ""),
    "Plan.of(removals)": (lambda junk: Plan.of(structure(), junk), DisparseError, ""),
    "Plan.from_keep(keep)": (lambda junk: Plan.from_keep(structure(), junk), DisparseError, ""),
    "Plan.check(structure)": (lambda junk: result().plan.check(junk), OptionError, ""),
    "Plan.without(names)": (
        lambda junk: result().plan.without(structure(), junk),
        DisparseError,
        "a generator",
    ),
    "Plan.save(path)": (lambda junk: result().plan.save(junk), DisparseError, "text"),
    "save(folder)": (lambda junk: result().save(junk), DisparseError, "text"),
    "to_html(path)": (lambda junk: result().to_html(junk), DisparseError, "text"),
    "export(path)": (lambda junk: result().export(junk), DisparseError, "text"),
    "export(outputs)": (lambda junk: result().export("x.onnx", outputs=junk), OptionError, ""),
    "export(check_inputs)": (
        lambda junk: result().export("x.onnx", check_inputs=junk),
        DisparseError,
        "None",
    ),
    "export(metadata)": (lambda junk: result().export("x.onnx", metadata=junk), DisparseError, "None"),
    "export(tolerance)": (
        lambda junk: result().export("x.onnx", tolerance=junk),
        OptionError,
        "a number, a fraction",
    ),
}
"""For each argument: the call that takes it, the class of the error, and which junk is valid."""


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_of_the_wrong_kind_is_refused_by_name(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, error, valid = ARGUMENTS[argument]
    before = copy.deepcopy(MODEL.state_dict())
    for name, junk in JUNK.items():
        if name not in valid.split(", "):
            with pytest.raises(error) as refused:
                call(junk)
            assert len(str(refused.value)) > 20, name
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())
    assert not list(tmp_path.iterdir())


def endless() -> Iterator[Tensor]:
    while True:
        yield X[:4].repeat(64, 1)


DATA: dict[str, tuple[Call, type[DisparseError], str]] = {
    "no example": (lambda: prune(data=X[:0]), BatchError, "contains no examples"),
    "a scalar": (lambda: prune(data=torch.tensor(1.0)), BatchError, "contains no examples"),
    "one example": (lambda: prune(data=X[:1]), BatchError, "1 example is too few"),
    "an empty generator": (lambda: prune(data=iter(())), BatchError, "yields no batch"),
    "a generator of text": (lambda: prune(data=iter("ab")), BatchError, "the batch is a str"),
    "another shape": (lambda: prune(data=torch.rand(8, 5)), BatchError, "Net refused a batch"),
    "whole numbers": (lambda: prune(data=X.long()), BatchError, "Net refused a batch"),
    "complex numbers": (lambda: prune(data=X + 0j), BatchError, "Net refused a batch"),
    "the meta device": (lambda: prune(data=X.to("meta")), BatchError, "meta device, which has no values"),
    "a sparse tensor": (lambda: prune(data=X.to_sparse()), BatchError, "sparse or nested"),
    "NaN": (lambda: prune(data=X * NAN), BatchError, "holds NaN or infinite values"),
    "infinity": (lambda: prune(data=X * INF), BatchError, "holds NaN or infinite values"),
    "a data set": (lambda: prune(data=torch.utils.data.TensorDataset(X)), BatchError, "got .*Pass a loader"),
    "an array": (lambda: prune(data=X.numpy()), BatchError, "an array; .* Pass torch.from_numpy"),
    "another name": (lambda: prune(data={"y": X}), BatchError, r"keys \['y'\]"),
    "shapes that differ": (lambda: prune(data=[X, X[:, :3]]), BatchError, "the batches differ"),
    "example inputs without an example": (lambda: analyse(example_inputs=X[:0]), BatchError, "no example"),
    "a batch without an example": (lambda: score(data=[X[:0]]), BatchError, "no example"),
    "scores of another shape": (lambda: plan(scores=scores()[:1]), OptionError, r"has shape \(1, 16\)"),
    "negative scores": (lambda: plan(scores=-scores()), OptionError, "not a finite number >= 0"),
    "NaN scores": (lambda: plan(scores=scores() * NAN), OptionError, "not a finite number >= 0"),
    "complex scores": (lambda: plan(scores=scores() + 0j), OptionError, "complex, sparse or on the meta"),
    "scores without values": (lambda: plan(scores=scores().to("meta")), OptionError, "on the meta device"),
    "a keep of another shape": (lambda: score(keep=torch.ones(3, dtype=torch.bool)), PlanError, "keep is"),
    "a keep of numbers": (lambda: Plan.from_keep(structure(), torch.ones(16)), PlanError, "keep is"),
    "nothing kept": (
        lambda: Plan.from_keep(structure(), torch.zeros(16, dtype=torch.bool)),
        PlanError,
        "all 16 units would be removed",
    ),
    "no such task": (lambda: prune(tasks=["q"]), TaskError, "'q'"),
    "a task twice": (lambda: prune(tasks=["near", "near"]), TaskError, "is used 2 times"),
    "an unnamed task": (lambda: ds.Task(""), TaskError, "task name '' cannot be written"),
    "a task name of two lines": (lambda: ds.Task("a\nb", 0), TaskError, "cannot be written in plans"),
    "a loss that is a class": (lambda: ds.Task("near", loss=nn.MSELoss), TaskError, r"MSELoss\(\)"),
    "a loss of one argument": (lambda: ds.Task("a", loss=lambda x: x), TaskError, "with 2 arguments"),
    "a criterion of no argument": (
        lambda: ds.DiSparse(lambda: 1),  # type: ignore[arg-type, misc]  # wrong on purpose
        OptionError,
        r"criterion is called with 1 argument, but takes \(\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), DATA.values(), ids=list(DATA))
def test_data_scores_and_tasks_that_cannot_be_used_are_named(
    call: Call, error: type[DisparseError], says: str
) -> None:
    with pytest.raises(error, match=says):
        call()


def test_a_generator_without_end_is_read_as_far_as_needed() -> None:
    read = []

    def counted() -> Iterator[Tensor]:
        for batch in endless():
            read.append(len(batch))
            yield batch[:8]

    assert isinstance(prune(data=counted(), method=ds.Compensated(rounds=1)), PruningResult)
    assert len(read) == 32  # 256 examples of a small network
    with pytest.raises(BatchError, match=r"has not ended\. Pass samples="):
        prune(data=endless(), method=ds.DiSparse())
    assert prune(data=endless(), method=ds.DiSparse(), samples=8).report.samples >= 8


def test_equal_examples_are_a_warning() -> None:
    with pytest.warns(DisparseWarning, match="all 16 examples are equal"):
        prune(data=torch.zeros(16, 4), method=ds.DiSparse(), refit=None)


class Detached(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().forward(x).items()}


class Unnamed(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"": super().forward(x)["near"]}


class Silent(Net):
    def forward(self, x: Tensor) -> None:  # type: ignore[override]  # wrong on purpose
        super().forward(x)


def changed(change: Callable[[Net], object]) -> Net:
    model = build()
    change(model)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], type[DisparseError], str]] = {
    "without a forward": (nn.Module, BatchError, "missing the required"),
    "without a parameter": (nn.Identity, TaskError, "does not depend on any parameter"),
    "that returns nothing": (Silent, TaskError, "no task can be inferred"),
    "with an unnamed output": (Unnamed, TaskError, "task name '' cannot be written"),
    "with detached outputs": (Detached, DisparseError, "zero"),
    "on the meta device": (lambda: build().to("meta"), UnsupportedModelError, "has no weights"),
    "that is lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), UnsupportedModelError, "is lazy"),
    "that is wrapped": (lambda: nn.DataParallel(build()), UnsupportedModelError, "module inside"),
    "with NaN weights": (lambda: changed(lambda net: net.first.weight.data.fill_(NAN)), DisparseError, "NaN"),
    "of two types": (lambda: changed(lambda net: net.near.double()), BatchError, "Net refused a batch"),
    "without a layer": (lambda: changed(lambda net: setattr(net, "near", None)), BatchError, "NoneType"),
}


@pytest.mark.parametrize(("make", "error", "says"), MODELS.values(), ids=list(MODELS))
def test_a_model_that_cannot_be_pruned_is_named_and_stays(
    make: Callable[[], nn.Module], error: type[DisparseError], says: str
) -> None:
    model = make()
    before = {name: id(value) for name, value in model.named_parameters()}
    with pytest.raises(error, match=says):
        ds.prune(model, X, macs=0.5, method=ds.DiSparse(), refit=None)
    assert {name: id(value) for name, value in model.named_parameters()} == before


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    result().save(folder)
    return folder


FACTORIES: dict[str, tuple[Any, type[DisparseError], str]] = {
    "a model": (MODEL, OptionError, "factory is a Net object. Pass a function"),
    "nothing": (lambda: None, UnsupportedModelError, "NoneType"),
    "a class": (lambda: Net, UnsupportedModelError, r"the class Net. Create one: Net\(\)"),
    "another width": (lambda: Net(8), PlanError, "made for another model"),
    "another type": (lambda: build().half(), LoadError, "saved as torch.float32"),
    "no weights": (lambda: build().to("meta"), UnsupportedModelError, "has no weights"),
    "an argument": (lambda x: x, OptionError, "is called with 0 arguments"),
}


@pytest.mark.parametrize(("factory", "error", "says"), FACTORIES.values(), ids=list(FACTORIES))
def test_a_factory_that_builds_something_else_is_named(
    saved: Path, factory: Any, error: type[DisparseError], says: str
) -> None:
    with pytest.raises(error, match=says):
        ds.load(saved, factory)


@pytest.mark.parametrize("name", ["example_inputs", "entry_points", "tasks"])
def test_load_checks_its_other_arguments(saved: Path, name: str) -> None:
    for junk in (3, "abc", object(), torch.ones(2, 3)):
        with pytest.raises(DisparseError):
            ds.load(saved, build, **{name: junk})


WRITERS: dict[str, Callable[[str], Any]] = {
    "save": lambda path: result().save(path),
    "to_html": lambda path: result().to_html(path),
    "export": lambda path: result().export(path),
    "Plan.save": lambda path: result().plan.save(path),
    "Plan.load": Plan.load,
    "load": lambda path: ds.load(path, build),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "file/below", "/proc/below"])
def test_a_path_that_cannot_be_is_named(
    writer: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises((OptionError, SaveError, LoadError, ExportError)):
        WRITERS[writer](path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "mine"


CONTENTS = {
    "empty": b"",
    "zeros": b"\0" * 8,
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "null": b"null",
    "NaN": b"NaN",
    "a huge number": b"9" * 6000,
    "a list": b"[]",
    "another object": b"{}",
}


@pytest.mark.parametrize("name", ["plan.json", "report.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [*CONTENTS, "cut", "longer"])
def test_a_damaged_file_is_named_by_load_show_and_report(
    saved: Path, name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    whole = (folder / name).read_bytes()
    found = {**CONTENTS, "cut": whole[: len(whole) // 2], "longer": whole + b"]"}[content]
    (folder / name).write_bytes(found)
    with pytest.raises((LoadError, PlanError)):
        ds.load(folder, build)
    if name != "weights.safetensors":  # the others read no weights
        for command in ("show", "report"):
            assert main([command, str(folder)]) == 2
            assert "error: " in capsys.readouterr().err


VALUES = (None, -1, 10**30, NAN, "abc", "9" * 5000, "\ud800", [], [1], [[[]]], {}, {"a": 1}, True)


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry of a document; of a list, those of the first."""
    yield at
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], (*at, key))
    elif isinstance(document, list) and document:
        yield from places(document[0], (*at, 0))


def with_value(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return document


@pytest.mark.parametrize("name", ["plan.json", "report.json"])
def test_any_value_in_any_entry_is_read_or_refused(
    saved: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(saved, folder)
    document = json.loads((folder / name).read_text())
    # Which value an entry gets depends on its place, so that every value is in many of them.
    for number, at in enumerate(places(document)):
        value = VALUES[number % len(VALUES)]
        (folder / name).write_text(json.dumps(with_value(document, at, value)))
        if name == "plan.json":
            with contextlib.suppress(PlanError):
                Plan.load(folder / name)
        command = ("show", "report")[number % 2]
        assert main([command, str(folder)]) in (0, 2), (command, at, value)
        capsys.readouterr()


INPUTS: dict[str, Any] = {
    "no leaves": {"tree": "[]"},
    "leaves that are text": {"leaves": "abc", "tree": "[]"},
    "a type that is a function": {"leaves": [{"shape": [2, 4], "dtype": "load"}]},
    "a type that is unknown": {"leaves": [{"shape": [2, 4], "dtype": "float31"}]},
    "a negative size": {"leaves": [{"shape": [-2, 4], "dtype": "float32"}]},
    "sizes that fill the memory": {"leaves": [{"shape": [2, 3, 400_000, 400_000], "dtype": "float32"}]},
    "a size that is text": {"leaves": [{"shape": ["2", 4], "dtype": "float32"}]},
    "a tree that is text": {"tree": "abc"},
    "a tree that is deep": {"tree": "[" * 10_000},
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=list(INPUTS))
def test_described_inputs_are_checked_before_anything_is_allocated_or_looked_up(
    saved: Path, inputs: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(saved, folder)
    report = json.loads((folder / "report.json").read_text())
    known = report["inputs"]
    report["inputs"] = {**known, **inputs} if isinstance(inputs, dict) else inputs
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(DisparseError):
        ds.load(folder, build)


SETTINGS = {
    "an unknown key": ('macz = 0.5\nmodel = "a:b"', "'macz' is not an option. Did you mean 'macs'?"),
    "a key of another kind": ("macs = []", "macs"),
    "no TOML": ("macs = ", "cannot be read as TOML"),
    "a table": ("[model]\nname = 3", "model"),
    "NaN": ('macs = nan\nmodel = "a:b"', "macs"),
    "a date": ("seed = 1979-05-27", "seed"),
    "deep": ("macs = " + "[" * 10_000, "cannot be read as TOML"),
}


@pytest.mark.parametrize(("text", "says"), SETTINGS.values(), ids=list(SETTINGS))
def test_a_settings_file_that_cannot_be_meant_is_refused(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert main(["prune", str(path)]) == 2
    assert says in capsys.readouterr().err
