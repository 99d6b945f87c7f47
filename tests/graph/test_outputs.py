"""Tasks read off what a model returns: which entries are tasks, what is left out, what is untouched."""

from __future__ import annotations

import copy
import dataclasses
import random
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disparse_structured import analyse, score
from disparse_structured.errors import BatchError, DisparseWarning, TaskError
from disparse_structured.graph.outputs import resolve_tasks, tasks_from_outputs
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.tasks import Task


class Both(NamedTuple):
    depth: Tensor
    classes: Tensor


@dataclasses.dataclass
class Found:
    depth: Tensor
    edges: Tensor


class Plain:
    def __init__(self, depth: Tensor) -> None:
        self.depth = depth
        self.size = depth.shape[-1]


class Returns(nn.Module):
    """Two heads; ``shape`` makes of their outputs whatever a user's model returns."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.depth, self.logits = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)
        self.shape = shape

    def forward(self, image: Tensor) -> Any:
        features = self.trunk(image)
        return self.shape(self.depth(features), self.logits(features), image)


EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "dict": (lambda d, c, x: {"depth": d, "classes": c}, ("depth", "classes")),
    "dict with a dot in a key": (lambda d, c, x: {"heads.depth": d}, ("heads.depth",)),
    "tuple": (lambda d, c, x: (d, c), ("output0", "output1")),
    "list": (lambda d, c, x: [d, c], ("output0", "output1")),
    "tuple of one": (lambda d, c, x: (d,), ("output0",)),
    "named tuple": (lambda d, c, x: Both(d, c), ("depth", "classes")),
    "tensor": (lambda d, c, x: d, ("output",)),
    "nested": (lambda d, c, x: {"maps": {"depth": d, "edge": [c]}, "scene": (c,)}, ("maps", "scene")),
    "argmax left out": (lambda d, c, x: {"depth": d, "classes": c.argmax(1)}, ("depth",)),
    "argmax in between": (lambda d, c, x: (d, c.argmax(1), c), ("output0", "output2")),
    "None left out": (lambda d, c, x: {"depth": d, "aux": None}, ("depth",)),
    "input left out": (lambda d, c, x: {"depth": d, "image": x}, ("depth",)),
    "constant left out": (lambda d, c, x: {"depth": d, "anchors": torch.ones(3)}, ("depth",)),
    "with classes in one entry": (lambda d, c, x: {"both": (c, c.argmax(1)), "depth": d}, ("both", "depth")),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_entries_are_tasks_that_every_criterion_can_score(kind: str) -> None:
    shape, names = SHAPES[kind]
    model = Returns(shape).eval()

    tasks = tasks_from_outputs(model, EXAMPLE)

    assert tuple(task.name for task in tasks) == names
    assert all(task.loss is None for task in tasks)
    structure = analyse(model, (EXAMPLE,), tasks)
    scores = score(model, structure, [EXAMPLE], Fisher()).scores
    assert (scores.sum(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (lambda d, c, x: Found(d, c), ("depth", "edges")),
        (lambda d, c, x: Found(d, c.argmax(1)), ("depth",)),
        (lambda d, c, x: Plain(d), ("depth",)),
        (lambda d, c, x: {0: d, 1: c}, ("0", "1")),
        (lambda d, c, x: {"depth": d.detach(), "classes": c}, ("depth", "classes")),
    ],
)
def test_fields_of_objects_are_tasks_and_whatever_depends_on_parameters(
    shape: Any, names: tuple[str, ...]
) -> None:
    model = Returns(shape).eval()

    tasks = tasks_from_outputs(model, EXAMPLE)

    assert tuple(task.name for task in tasks) == names
    assert all(task.tensors(model(EXAMPLE)) for task in tasks)


@pytest.mark.parametrize(
    "silent",
    [lambda c: 0 * c, lambda c: torch.sigmoid(c + 1000), lambda c: torch.relu(c - 1000)],
    ids=["times zero", "saturated", "dead"],
)
def test_an_output_that_does_not_vary_is_left_out_with_a_word(silent: Any) -> None:
    model = Returns(lambda d, c, x: {"depth": d, "alarm": silent(c)}).eval()
    model.requires_grad_(False)

    with pytest.warns(
        DisparseWarning,
        match=r"^'alarm' in the output of Returns is not used as a task: it is computed from param",
    ):
        tasks = tasks_from_outputs(model, EXAMPLE)

    assert [task.name for task in tasks] == ["depth"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Uncertain(Returns):
    """Also returns what its loss weights the tasks with."""

    def __init__(self, returned: Any) -> None:
        super().__init__(lambda d, c, x: {"depth": d, "logsigma": returned(self.sigmas)})
        self.sigmas = nn.Parameter(torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("returned", [lambda p: p, lambda p: p.view(2, 1), lambda p: [p[0], p[1:]]])
def test_a_parameter_that_is_returned_is_no_task_and_is_called_what_it_is(returned: Any) -> None:
    with pytest.warns(
        DisparseWarning,
        match=r"^'logsigma' in the output of Uncertain is not used as a task: it is the parameter 'sigmas'",
    ) as found:
        tasks = tasks_from_outputs(Uncertain(returned).eval(), EXAMPLE)

    assert [task.name for task in tasks] == ["depth"]
    assert len(found) == 1


@pytest.mark.parametrize("kind", ["input left out", "constant left out", "argmax left out"])
def test_an_output_that_depends_on_no_parameter_is_left_out_without_a_word(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks_from_outputs(Returns(SHAPES[kind][0]).eval(), EXAMPLE)


def test_a_model_that_runs_without_gradients_only_has_tasks() -> None:
    def written_in_place(d: Tensor, c: Tensor, x: Tensor) -> dict[str, Tensor]:
        first, second = c.chunk(2, dim=1)
        first.add_(1)  # refused with gradients: a view of several
        return {"depth": d, "classes": second, "anchors": torch.ones(3)}

    model = Returns(written_in_place).eval()
    model.requires_grad_(False)

    assert [task.name for task in tasks_from_outputs(model, EXAMPLE)] == ["depth", "classes"]


def test_each_task_picks_its_own_entry() -> None:
    model = Returns(SHAPES["named tuple"][0]).eval()
    output = model(EXAMPLE)

    depth, classes = tasks_from_outputs(model, (EXAMPLE,))

    assert torch.equal(depth.tensors(output)[0], output.depth)
    assert torch.equal(classes.tensors(output)[0], output.classes)


def test_the_model_and_the_random_states_stay_as_they_are() -> None:
    class Counts(Returns):
        calls = 0

        def forward(self, image: Tensor) -> Any:
            self.calls += 1
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 (the global one on purpose)
            return super().forward(image)

    model = Counts(SHAPES["dict"][0])
    model.depth.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the global one on purpose)

    tasks_from_outputs(model, EXAMPLE)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002 (the global one on purpose)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (
            lambda d, c, x: {"classes": c.argmax(1)},
            r"classes: int64 \[2, 6, 6\]. A task needs real or complex",
        ),
        (lambda d, c, x: c.argmax(1), r"output: int64 \[2, 6, 6\]"),
        (lambda d, c, x: None, "what Returns returns: NoneType None"),
        (lambda d, c, x: {}, r"what Returns returns: dict \{\}"),
        (lambda d, c, x: {"image": x}, "does not depend on any parameter"),
    ],
)
def test_nothing_to_measure_is_an_error_that_says_what_there_is(shape: Any, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        tasks_from_outputs(Returns(shape), EXAMPLE)


def test_inputs_that_the_model_refuses_are_named() -> None:
    with pytest.raises(BatchError, match=r"Returns refused a batch, called with \(\(2, 5, 8, 8\)"):
        tasks_from_outputs(Returns(SHAPES["dict"][0]), torch.randn(2, 5, 8, 8))


def named(shape: Any, tasks: Any) -> tuple[Task, ...]:
    return resolve_tasks(Returns(shape).eval(), EXAMPLE, tasks)


def test_a_name_is_the_entry_that_has_it() -> None:
    assert named(SHAPES["dict"][0], ["classes"]) == (Task("classes", "classes"),)
    assert named(SHAPES["tuple"][0], ["output1", "output0"]) == (Task("output1", 1), Task("output0", 0))
    assert named(SHAPES["tensor"][0], ["output"]) == (Task("output", ()),)
    assert named(lambda d, c, x: {0: d, 1: c}, ["1"]) == (Task("1", 1),)


def test_names_may_come_from_any_iterable_and_beside_tasks() -> None:
    own = Task("mine", "depth")

    found = named(SHAPES["dict"][0], (task for task in ("classes", own)))

    assert found == (Task("classes", "classes"), own)


def test_a_name_that_no_entry_has_is_looked_for_as_a_path() -> None:
    shape = SHAPES["nested"][0]

    (found,) = named(shape, ["maps.depth"])

    output = Returns(shape).eval()(EXAMPLE)
    assert torch.equal(found.tensors(output)[0], output["maps"]["depth"])


@pytest.mark.parametrize("tasks", ["depth", Task("depth"), 0.5, []])
def test_what_is_not_a_list_of_tasks_is_refused(tasks: Any) -> None:
    with pytest.raises(TaskError, match=r"tasks must be a list|no task was given"):
        named(SHAPES["dict"][0], tasks)
