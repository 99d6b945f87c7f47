"""``shrink``: what one call on a model and unlabelled inputs hands back, leaves alone, and refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from disparse_structured import LeastSquares, Task, analyse, apply, load, prune
from disparse_structured.cli.views import pruning_report
from disparse_structured.decision.arbiters import Minimax
from disparse_structured.errors import BatchError, BudgetError, DisparseError, PlanError, TaskError
from disparse_structured.pipeline import Pruned, calibrate
from tests.support.zoo import BY_ID


class Redundant(nn.Module):
    """As trained networks are: wide layers whose channels are nearly combinations of a few."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.wide, self.mid = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 16, 3)
        self.depth, self.edges = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 2, 1)
        with torch.no_grad():
            for layer in (self.wide, self.mid):
                few = layer.weight[:5].flatten(1)
                mix = torch.randn(layer.out_channels, 5) @ few
                layer.weight.copy_((mix + 0.01 * torch.randn_like(mix)).view_as(layer.weight))

    def forward(self, image: Tensor) -> Any:
        features = self.mid(self.wide(self.stem(image)))
        return {"depth": self.depth(features), "edges": self.edges(features)}


class AsTuple(Redundant):
    def forward(self, image: Tensor) -> Any:
        return tuple(super().forward(image).values())


class AsTensor(Redundant):
    def forward(self, image: Tensor) -> Any:
        return torch.cat(list(super().forward(image).values()), dim=1)


@dataclasses.dataclass
class Maps:
    depth: Tensor
    edges: Tensor


torch.export.register_dataclass(Maps)


class AsDataclass(Redundant):
    def forward(self, image: Tensor) -> Any:
        return Maps(**super().forward(image))


class ScaledByWidth(nn.Module):
    """Three hidden layers; forward scales the second by its width, which pruning cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.third(x * x.shape[1] ** -0.5)))


def build(kind: type[nn.Module] = Redundant) -> nn.Module:
    torch.manual_seed(5)
    return kind().eval()


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(2))


def deviation(model: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    """The whole output's, relative in the Euclidean norm."""
    with torch.no_grad():
        pairs = [(torch.utils._pytree.tree_leaves(each(inputs))) for each in (model, dense)]
    off = sum(float((a - b).square().sum()) for a, b in zip(*pairs, strict=True))
    return (off / sum(float(b.square().sum()) for b in pairs[1])) ** 0.5


def set_aside(dense: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs that a refit is measured on."""
    return torch.cat([chunk[0] for chunk in calibrate(dense, inputs).checks])


def part(model: nn.Module, name: str) -> nn.Module:
    """``model`` with one of its outputs only."""

    class Part(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            return model(inputs)[name]

    return Part()


@pytest.fixture(scope="module")
def shrunk() -> Pruned:
    with torch.random.fork_rng():
        return prune(build(), images(), macs=0.5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (AsTuple, ["output0", "output1"]),
        (AsTensor, ["output"]),
        (AsDataclass, ["depth", "edges"]),
    ],
)
def test_whatever_the_model_returns_one_call_is_enough(kind: type[nn.Module], names: list[str]) -> None:
    pruned = prune(build(kind), images(), macs=0.6)

    report = pruned.report
    assert [(task.name, task.labelled) for task in report.tasks] == [(name, False) for name in names]
    assert report.costs["macs"].ratio <= 0.6
    assert report.verification.verified
    assert type(pruned.model(images(2))) is type(build(kind)(images(2)))


def test_the_refit_brings_the_outputs_close_to_the_dense_ones(shrunk: Pruned) -> None:
    dense, fresh = build(), torch.randn(16, 3, 9, 9)
    structure = analyse(dense, images(2), [Task("all", lambda output: output)])
    cut = apply(dense, shrunk.plan, structure).model

    assert deviation(shrunk.model, dense, fresh) < 0.5 * deviation(cut, dense, fresh)


def test_the_report_says_what_the_refit_brought(shrunk: Pruned) -> None:
    refit = shrunk.report.refit

    assert refit is not None
    assert set(refit.before) == set(refit.after) == {"depth", "edges"}
    dense, inputs = build(), set_aside(build(), images())
    cut = apply(dense, shrunk.plan, analyse(dense, images(2), [Task("all", lambda output: output)])).model
    for task in ("depth", "edges"):
        of_cut, of_refit = (
            deviation(part(each, task), part(dense, task), inputs) for each in (cut, shrunk.model)
        )
        assert refit.before[task] == pytest.approx(of_cut, rel=1e-3)
        assert refit.after[task] == pytest.approx(of_refit, rel=1e-3)
        assert refit.after[task] < 0.5 * refit.before[task]
    assert refit.samples == 24
    assert 0 < refit.checked < 12
    assert 0 < refit.improved <= len(refit.layers)
    assert shrunk.report.samples == 24 - refit.checked  # what the votes have not seen either
    shown = str(shrunk.report)
    assert f"{100 * refit.before['depth']:.3g} %" in shown
    assert f"{100 * refit.after['depth']:.3g} %" in shown
    assert f"{refit.improved} of {len(refit.layers)} layers improved" in shown
    assert pruning_report(json.loads(shrunk.report.to_json()), "it").refit == refit


def test_without_a_refit_weights_stay_and_the_report_has_none() -> None:
    pruned = prune(build(), images(), macs=0.5, refit=None)

    assert pruned.report.refit is None
    dense = {tuple(row.flatten().tolist()) for row in build().depth.weight.reshape(-1, 1)}
    assert {tuple(row.flatten().tolist()) for row in pruned.model.depth.weight.reshape(-1, 1)} <= dense


def test_the_model_is_bit_identical_and_the_result_the_same_again(shrunk: Pruned) -> None:
    model = build()
    model.stem.train()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()

    again = prune(model, images(), macs=0.5)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.stem.training
    assert not model.mid.training
    assert torch.equal(torch.get_rng_state(), random)
    assert again.plan.to_json() == shrunk.plan.to_json()
    assert again.report == shrunk.report
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in shrunk.model.state_dict().items())


def test_a_saved_folder_loads_with_the_refitted_weights(shrunk: Pruned, tmp_path: Path) -> None:
    shrunk.save(tmp_path)

    model = load(tmp_path, Redundant).eval()

    assert deviation(model, shrunk.model, images(4)) == 0


def test_in_place_the_model_becomes_the_result(shrunk: Pruned) -> None:
    model = build()
    trunk = model.stem

    pruned = prune(model, images(), macs=0.5)

    assert pruned.model is model
    assert model.stem is trunk
    assert deviation(model, shrunk.model, images(4)) == 0
    assert pruned.report.verification.verified


def test_what_was_refused_is_not_made_up_for() -> None:
    torch.manual_seed(0)
    dense, inputs = ScaledByWidth().eval(), torch.randn(64, 6)

    pruned = prune(dense, inputs, macs=0.6)

    report = pruned.report
    assert [each.group for each in report.refused] == ["second"]
    assert pruned.model.second.out_features == 10
    assert pruned.model.first.out_features < 12
    assert report.verification.verified
    # The figures are those of the model as it is handed out, not of the plan that was refused.
    assert report.refit is not None
    found = deviation(pruned.model, dense, set_aside(dense, inputs))
    assert report.refit.after["output"] == pytest.approx(found, rel=1e-3)
    assert report.refit.after["output"] < report.refit.before["output"]


class Once:
    """Counts how often it is iterated and how many batches are drawn; would go on for ever."""

    def __init__(self, size: int) -> None:
        self.size, self.started, self.drawn = size, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.started += 1
        while True:
            self.drawn += 1
            yield images(64)[: self.size], torch.zeros(self.size)


def test_inputs_are_read_once_and_no_further_than_needed() -> None:
    loader = Once(5)

    pruned = prune(build(), loader, macs=0.6, samples=12)

    assert (loader.started, loader.drawn) == (1, 3)
    assert pruned.report.refit is not None
    assert pruned.report.refit.samples == 12


def test_a_tensor_a_generator_a_loader_and_a_dict_of_the_same_images_give_the_same() -> None:
    def plan(inputs: Any) -> str:
        return prune(build(), inputs, macs=0.6, verify=False).plan.hash

    expected = plan(images())

    assert plan(part for part in images().split(5)) == expected
    assert plan(DataLoader(TensorDataset(images(), torch.zeros(24)), batch_size=7)) == expected
    assert plan({"image": images()}) == expected
    assert plan([[image[None]] for image in images()]) == expected


def test_a_model_of_two_inputs() -> None:
    entry = BY_ID["two-inputs"]

    pruned = prune(entry.factory(), [(entry.inputs(16),)], macs=0.7)

    assert [task.name for task in pruned.report.tasks] == ["kind", "dense"]
    assert pruned.report.verification.verified


def test_losses_are_not_used() -> None:
    def fails(output: Tensor, batch: Any) -> Tensor:
        raise AssertionError("there are no labels")

    tasks = [Task("depth", "depth", fails), Task("edges", "edges")]

    pruned = prune(build(), images(), tasks, macs=0.5)

    assert [task.labelled for task in pruned.report.tasks] == [False, False]
    assert pruned.plan.removals == prune(build(), images(), macs=0.5, verify=False).plan.removals


def test_prune_refits_too_when_asked() -> None:
    tasks = [Task("depth", "depth", lambda output, batch: output.square().mean()), Task("edges", "edges")]
    dense = build()

    pruned = prune(dense, iter(images(16).split(8)), tasks, macs=0.5, refit=LeastSquares(), method=DiSparse())

    assert pruned.report.refit is not None
    assert pruned.report.refit.after["edges"] < pruned.report.refit.before["edges"]
    assert pruned.report.tasks[0].labelled
    plain = prune(dense, list(images(16).split(8)), tasks, macs=0.5, refit=None, method=DiSparse())
    assert plain.plan.removals == pruned.plan.removals
    assert deviation(pruned.model, dense, images()) < deviation(plain.model, dense, images())


def test_prune_refits_on_the_example_where_there_is_no_data() -> None:
    tasks = [Task("depth", "depth"), Task("edges", "edges")]

    pruned = prune(build(), images(8), tasks, macs=0.5, refit=LeastSquares(), method=DiSparse())

    assert pruned.report.refit is not None
    assert (pruned.report.refit.samples, pruned.report.refit.checked) == (8, 0)
    assert "refit on 8 inputs, measured on the same" in str(pruned.report)


def test_in_place_with_a_refused_group_is_the_same_as_on_a_copy() -> None:
    torch.manual_seed(0)
    model, inputs = ScaledByWidth().eval(), torch.randn(64, 6)
    expected = prune(model, inputs, macs=0.6)

    pruned = prune(model, inputs, macs=0.6)

    assert pruned.model is model
    assert pruned.report == expected.report
    assert torch.equal(model(inputs), expected.model(inputs))


def test_in_place_nothing_happens_when_it_fails() -> None:
    class Noisy(Redundant):
        """Draws random numbers in eval mode, so that nothing can be proven."""

        def forward(self, image: Tensor) -> Any:
            return {name: value + torch.rand(1) for name, value in super().forward(image).items()}

    model = build(Noisy)
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(DisparseError):
        prune(model, images(), macs=0.5)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "shrink.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, "shrink.md", "exec"), names)

    assert names["pruned"].report.costs["macs"].ratio <= 0.6
    assert [task.name for task in names["pruned"].report.tasks] == ["depth", "scene"]
    assert (tmp_path / "small" / "report.json").is_file()


def with_nan() -> Tensor:
    found = images()
    found[9, 1, 2, 2] = float("nan")
    return found


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        (images(1), BatchError, "1 example is too few"),
        (images(0), BatchError, r"shape \[0, 3, 9, 9\], which holds no example. Pass \[N, ...\]"),
        (torch.tensor(1.0), BatchError, r"shape \[\], which holds no example"),
        ([], BatchError, "yields no batch"),
        (iter([]), BatchError, "yields no batch"),
        (7, BatchError, "the inputs are int 7, which cannot be iterated. Pass a tensor"),
        (["a.png"], BatchError, "the batch is a str; expected a tensor"),
        (with_nan(), BatchError, "holds NaN or infinite values"),
        ([images(4), torch.randn(4, 3, 7, 7)], BatchError, "batches differ"),
        (torch.zeros(8, 3, 9, 9, dtype=torch.uint8), BatchError, "Redundant refused a batch"),
        (torch.randn(8, 5, 9, 9), BatchError, "Redundant refused a batch"),
    ],
)
def test_inputs_that_will_not_do_are_refused_with_the_remedy(
    inputs: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        prune(build(), inputs, macs=0.5)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"macs": 0.5, "samples": 1}, BatchError, "samples=1 is too few"),
        ({"macs": 0.5, "criterion": "fisher"}, PlanError, "criterion='fisher' is no criterion"),
        ({"macs": 0.5, "refit": "affine"}, PlanError, "refit='affine' is no way to refit. Pass an object"),
        ({"macs": 0.5, "refit": LeastSquares}, PlanError, "is no way to refit"),
        ({"macs": 0.5, "tasks": []}, TaskError, "no task was given"),
        ({"macs": 0.5, "tasks": [Task("x", "normals")]}, TaskError, "the selector 'normals' misses"),
        ({}, BudgetError, "macs"),
        ({"macs": 1e-6}, BudgetError, "cannot be met"),
        ({"macs": 0.5, "tolerance": {}}, BudgetError, "tolerance={} will not do. Tolerance needs a limit"),
        ({"macs": 0.5, "tolerance": {"depth": -1}}, BudgetError, "the limit of 'depth' is -1"),
        ({"macs": 0.5, "tolerance": {"height": 1}}, TaskError, "tolerance names 'height'; the tasks are"),
        (
            {"macs": 0.5, "tolerance": {"depth": 1}, "refit": None},
            BudgetError,
            "needs a refit, which measures",
        ),
        ({"macs": 0.5, "tolerance": {"depth": 1}, "arbiter": Minimax()}, BudgetError, "Leave one out"),
    ],
)
def test_options_that_will_not_do_are_refused(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        prune(build(), images(), **options)
