"""``prune``: what one call hands back, what it reads, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from disparse_structured import Budget, DiSparse, Task, analyse, apply, prune
from disparse_structured.decision.arbiters import Majority
from disparse_structured.errors import BatchError, BudgetError, DisparseError, TaskError
from disparse_structured.pipeline import Compensated, PruningResult
from tests.support.plans import snapshot
from tests.support.redundant import AsTuple, Redundant, build, deviation, images, macs_left, removed
from tests.support.zoo import BY_ID

QUICK = Compensated(rounds=1, left=(0.5,), judged=4)
VOTES: dict[str, Any] = {"method": DiSparse(), "refit": None, "verify": False}
"""The quickest way to a plan."""


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


class Noisy(Redundant):
    """Draws random numbers in eval mode, so that nothing can be verified."""

    def forward(self, image: Tensor) -> Any:
        return {name: value + torch.rand(1) for name, value in super().forward(image).items()}


@pytest.fixture(scope="module")
def result() -> PruningResult:
    """The first call of a newcomer, for a network that is narrower than rounding is for."""
    return prune(build(), images(), budget=Budget(macs=0.5, round_to=1))


# The first call.


def test_the_first_call_needs_a_model_images_and_a_budget(result: PruningResult) -> None:
    report = result.report

    assert isinstance(result.model, Redundant)
    assert [(task.name, task.labeled) for task in report.tasks] == [("depth", False), ("edges", False)]
    assert report.costs["parameters"].counted == sum(p.numel() for p in result.model.parameters())
    assert report.costs["macs"].counted == pytest.approx(report.costs["macs"].predicted, rel=1e-3)
    assert macs_left(result) <= 0.5
    assert report.verification.verified
    assert max(report.verification.deviation.values()) <= 1e-9
    assert report.plan == result.plan.hash
    assert report.refit is not None


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (AsTuple, ["output0", "output1"]),
        (AsTensor, ["output"]),
        (AsDataclass, ["depth", "edges"]),
    ],
)
def test_tasks_are_read_off_whatever_the_model_returns(kind: type[nn.Module], names: list[str]) -> None:
    found = prune(build(kind), images(8), macs=0.6, **VOTES)

    assert [task.name for task in found.tasks] == names
    assert macs_left(found) <= 0.6
    assert type(found.model(images(2))) is type(build(kind)(images(2)))


def test_the_refit_brings_the_outputs_close_to_the_dense_ones(result: PruningResult) -> None:
    dense, fresh = build(), torch.randn(16, 3, 9, 9)
    structure = analyse(dense, images(2), [Task("all", lambda output: output)])
    cut = apply(dense, result.plan, structure).model

    assert deviation(result.model, dense, fresh) < 0.5 * deviation(cut, dense, fresh)


def test_without_a_refit_the_remaining_weights_are_those_of_the_dense_model() -> None:
    found = prune(build(), images(), macs=0.5, method=QUICK, refit=None)

    assert found.report.refit is None
    dense = {tuple(row.flatten().tolist()) for row in build().depth.weight.reshape(-1, 1)}
    assert {tuple(row.flatten().tolist()) for row in found.model.depth.weight.reshape(-1, 1)} <= dense


def test_without_verification_the_report_says_so() -> None:
    found = prune(build(), images(8), macs=0.5, **VOTES)

    assert not found.report.verification.verified
    assert "NOT VERIFIED" in str(found.report)


def test_a_limit_on_parameters() -> None:
    found = prune(build(), images(8), parameters=0.5, **VOTES)

    assert found.report.costs["parameters"].ratio <= 0.5
    assert sum(p.numel() for p in found.model.parameters()) == found.report.costs["parameters"].counted


# Tasks.


def test_a_name_stands_for_the_entry_of_the_output_that_is_called_so() -> None:
    by_name = prune(build(), images(8), ["edges", "depth"], macs=0.5, **VOTES)

    assert by_name.tasks == (Task("edges", "edges"), Task("depth", "depth"))
    as_tasks = prune(build(), images(8), [Task("edges", "edges"), Task("depth")], macs=0.5, **VOTES)
    assert by_name.plan.to_json() == as_tasks.plan.to_json()


def test_names_and_tasks_may_be_mixed() -> None:
    loss = Task("flat", "edges", lambda output, batch: output.square().mean())

    found = prune(build(), images(8), ["depth", loss], macs=0.5, **VOTES)

    assert found.tasks == (Task("depth"), loss)
    assert [task.labeled for task in found.report.tasks] == [False, True]


def test_a_position_of_a_tuple_has_a_name_too() -> None:
    found = prune(build(AsTuple), images(8), ["output1"], macs=0.5, **VOTES)

    assert found.tasks == (Task("output1", 1),)
    assert found.plan.tasks == ("output1",)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (["height"], r"'height'.*there the model returns a dict with keys \['depth', 'edges'\]"),
        (["depth", "depth"], "task name 'depth' is used 2 times"),
        ("depth", "tasks must be a list, got the str 'depth'. Pass a list of one"),
        (Task("depth"), "tasks must be a list, got the Task 'depth'"),
        ([], "no task was given"),
        ([3], "expected Task objects, found int"),
        (0.5, "tasks must be a list of Task objects or names, got 0.5"),
        ([Task("x", "normals")], "the selector 'normals' misses"),
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(tasks: Any, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        prune(build(), images(8), tasks, macs=0.5, **VOTES)


def test_an_unknown_position_of_a_tuple_is_refused_with_what_there_is() -> None:
    with pytest.raises(TaskError, match=r"'output2'.*there the model returns a tuple of 2"):
        prune(build(AsTuple), images(8), ["output2"], macs=0.5, **VOTES)


class Chosen(Redundant):
    """Also returns the depths above a threshold: how many differs between networks."""

    def forward(self, image: Tensor) -> Any:
        found = super().forward(image)
        return {**found, "near": found["depth"][found["depth"] > 0]}


def test_a_task_whose_size_depends_on_the_data_is_refused() -> None:
    model = build(Chosen)
    with pytest.raises(TaskError, match=r"'near': the size of its output depends on the data.*tasks="):
        prune(model, images(), macs=0.5)

    assert prune(model, images(), ["depth", "edges"], macs=0.5, **VOTES).report.tasks


def test_compensated_does_not_use_losses() -> None:
    def fails(output: Tensor, batch: Any) -> Tensor:
        raise AssertionError("there are no labels")

    tasks = [Task("depth", "depth", fails), Task("edges", "edges")]
    options: dict[str, Any] = {"method": QUICK, "refit": None, "verify": False}

    found = prune(build(), images(), tasks, macs=0.5, **options)

    assert removed(found) == removed(prune(build(), images(), macs=0.5, **options))


def test_votes_use_losses_and_the_refit_follows() -> None:
    tasks = [Task("depth", "depth", lambda output, batch: output.square().mean()), Task("edges", "edges")]
    dense, batches = build(), list(images(16).split(8))

    found = prune(dense, batches, tasks, macs=0.5, method=DiSparse(), verify=False)

    assert [task.labeled for task in found.report.tasks] == [True, False]
    plain = prune(dense, batches, tasks, macs=0.5, **VOTES)
    assert removed(plain) == removed(found)
    assert deviation(found.model, dense, images()) < deviation(plain.model, dense, images())


# Data.


class Endless:
    """Counts how often it is iterated and how many batches are drawn; never ends."""

    def __init__(self, size: int) -> None:
        self.size, self.started, self.drawn = size, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.started += 1
        while True:
            self.drawn += 1
            yield images(64)[: self.size], torch.zeros(self.size)


def test_data_is_read_no_further_than_needed() -> None:
    loader = Endless(5)

    found = prune(build(), loader, macs=0.6, samples=12, method=QUICK, verify=False)

    assert (loader.started, loader.drawn) == (1, 3)
    assert found.report.refit is not None
    assert found.report.refit.samples == 12


@pytest.mark.parametrize(
    ("data", "samples", "read"),
    [
        (images(24), None, 24),
        (images(24), 5, 5),
        (DataLoader(TensorDataset(images(24)), batch_size=7), None, 24),
        (DataLoader(TensorDataset(images(24)), batch_size=7), 10, 14),  # whole batches
        ([images(24)], 4, 24),
    ],
)
def test_votes_read_all_of_the_data_or_the_first_samples(data: Any, samples: int | None, read: int) -> None:
    found = prune(build(), data, macs=0.6, samples=samples, **VOTES)

    assert found.report.samples == read


def test_a_generator_is_drawn_once_though_scores_and_refit_both_read_it() -> None:
    drawn: list[int] = []

    def batches() -> Iterator[Tensor]:
        for batch in images(16).split(8):
            drawn.append(len(batch))
            yield batch

    found = prune(build(), batches(), macs=0.6, method=DiSparse(), verify=False)

    assert drawn == [8, 8]
    again = prune(build(), list(images(16).split(8)), macs=0.6, method=DiSparse(), verify=False)
    assert found.report == again.report


def test_a_tensor_a_generator_a_loader_and_a_dict_of_the_same_images_give_the_same() -> None:
    def plan(data: Any) -> str:
        return prune(build(), data, macs=0.6, method=QUICK, refit=None, verify=False).plan.hash

    expected = plan(images())

    assert plan(part for part in images().split(5)) == expected
    assert plan(DataLoader(TensorDataset(images(), torch.zeros(24)), batch_size=7)) == expected
    assert plan({"image": images()}) == expected
    assert plan((images(), torch.zeros(24))) == expected
    assert plan([[image[None]] for image in images()]) == expected


def test_a_tuple_is_one_batch_of_inputs_and_labels() -> None:
    labels = torch.zeros(8)
    seen: list[Tensor] = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        seen.append(batch[1])
        return output.square().mean()

    prune(build(), (images(8), labels), [Task("depth", "depth", loss)], macs=0.6, **VOTES)

    assert seen
    assert all(torch.equal(each, labels[: len(each)]) for each in seen)


def test_a_model_of_two_inputs_takes_them_as_a_tuple_in_front_of_the_labels() -> None:
    entry = BY_ID["two-inputs"]

    found = prune(entry.factory(), [(entry.inputs(16),)], macs=0.7, **VOTES)

    assert [task.name for task in found.tasks] == ["kind", "dense"]
    assert [len(each) for each in found.example_inputs] == [2, 2]


def test_to_inputs_says_what_of_a_batch_is_the_input() -> None:
    batches = [{"frame": images(8), "depth": torch.zeros(8)}]
    with pytest.raises(BatchError, match="to_inputs="):
        prune(build(), batches, macs=0.6, **VOTES)

    found = prune(build(), batches, macs=0.6, to_inputs=lambda batch: (batch["frame"],), **VOTES)

    assert removed(found) == removed(prune(build(), [images(8)], macs=0.6, **VOTES))


def test_one_example_is_enough_for_votes_without_a_refit() -> None:
    found = prune(build(), images(1), macs=0.5, method=DiSparse(), refit=None)

    assert macs_left(found) <= 0.5
    assert found.report.samples == 1
    assert found.report.deviation is not None
    assert found.report.deviation.samples == 1


def test_batches_of_several_shapes_are_enough_for_votes_without_a_refit() -> None:
    batches = [images(4), torch.randn(4, 3, 7, 7)]

    found = prune(build(), batches, macs=0.5, **VOTES)

    assert found.report.samples == 8
    with pytest.raises(BatchError, match="the batches differ"):
        prune(build(), batches, macs=0.5, method=DiSparse())


def with_nan() -> Tensor:
    found = images()
    found[9, 1, 2, 2] = float("nan")
    return found


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (images(1), "1 example is too few"),
        (images(0), r"shape \[0, 3, 9, 9\], which contains no examples. Pass \[N, ...\]"),
        (torch.tensor(1.0), r"shape \[\], which contains no examples"),
        ([], "yields no batch"),
        (iter([]), "yields no batch"),
        (7, "data must be a tensor .*, a loader or a list of batches, got 7"),
        (None, "data must be a tensor .* got None"),
        (["a.png"], "the batch is a str; expected a tensor"),
        (with_nan(), "holds NaN or infinite values"),
        (torch.zeros(8, 3, 9, 9, dtype=torch.uint8), "Redundant refused a batch"),
        (torch.randn(8, 5, 9, 9), "Redundant refused a batch"),
        (list(torch.randn(8, 3, 9, 9)), "put single images together with torch.stack"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_the_remedy(data: Any, says: str) -> None:
    with pytest.raises(BatchError, match=says):
        prune(build(), data, macs=0.5)


# The model stays as it is.


def test_the_model_is_untouched_and_the_result_is_the_same_again(result: PruningResult) -> None:
    model = build()
    model.stem.train()
    before, random = snapshot(model), torch.get_rng_state()

    again = prune(model, images(), budget=Budget(macs=0.5, round_to=1))

    assert snapshot(model) == before  # weights, modes, flags and the identity of every tensor
    assert torch.equal(torch.get_rng_state(), random)
    assert again.plan.to_json() == result.plan.to_json()
    assert again.report == result.report
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())


def test_the_result_shares_no_tensor_with_the_model() -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())

    found = prune(model, images(8), macs=0.5, **VOTES)
    with torch.no_grad():
        for tensor in found.model.state_dict().values():
            tensor.fill_(7)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "macs", "error"),
    [(Redundant, 1e-6, BudgetError), (Noisy, 0.5, DisparseError)],
    ids=["budget-out-of-reach", "not-verifiable"],
)
def test_a_model_whose_pruning_is_refused_is_untouched(
    kind: type[nn.Module], macs: float, error: type[Exception]
) -> None:
    model = build(kind)
    model.mid.train()
    before = snapshot(model)

    with pytest.raises(error):
        prune(model, images(8), macs=macs, method=QUICK)

    assert snapshot(model) == before


# What ``forward`` cannot follow.


class ScaledByWidth(nn.Module):
    """Three hidden layers; forward scales the second by its width, which pruning cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.third(x * (1.0 / x.shape[1]))))


def test_the_refit_does_not_compensate_for_a_group_that_was_refused() -> None:
    torch.manual_seed(0)
    dense, inputs = ScaledByWidth().eval(), torch.randn(12, 6)

    found = prune(dense, inputs, macs=0.6, method=QUICK)

    report = found.report
    assert [each.group for each in report.refused] == ["second"]
    assert found.model.second.out_features == 10
    assert found.model.first.out_features < 12
    assert report.verification.verified
    # The figures are those of the model as it is handed out, not of the plan that was refused.
    assert report.deviation is not None
    actual = deviation(found.model, dense, inputs)
    assert report.deviation.final["output"] == pytest.approx(actual, rel=1e-3)
    assert report.deviation.final["output"] < report.deviation.cut["output"]


def test_what_is_refused_counts_as_left_alone_without_a_refit_too() -> None:
    torch.manual_seed(0)
    dense, inputs = ScaledByWidth().eval(), torch.randn(12, 6)

    found = prune(dense, inputs, macs=0.6, method=DiSparse(arbiter=Majority()), refit=None)

    assert [each.group for each in found.report.refused] == ["second"]
    assert "second" not in removed(found)
    assert found.report.deviation is not None
    actual = deviation(found.model, dense, inputs)
    assert found.report.deviation.final["output"] == pytest.approx(actual, rel=1e-3)
