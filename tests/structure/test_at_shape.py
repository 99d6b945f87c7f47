"""The same structure with other inputs and in another precision: captured once, never stale, and right."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured import DiSparse, Task, analyse, criteria, prune
from disparse_structured.errors import BatchError, CaptureError
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_at, structure_for_batch
from disparse_structured.structure.captures import REMEMBERED
from tests.support.plans import random_keep
from tests.support.zoo import BY_ID, named

TASKS = named("left", "right")


class Scaled(nn.Module):
    """Computes with a number, a plain tensor and a function that are not part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 1, 1)
        self.number, self.options = 1.5, {"slope": [0.1, 0.2]}
        self.plain = torch.tensor([2.0])
        self.activation = torch.relu

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.activation(self.stem(image)) * self.number * self.plain
        return {"left": self.left(features) * self.options["slope"][1], "right": self.right(features)}


def images(batch: int = 2, size: int = 9) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def analyzed(model: nn.Module) -> Structure:
    return analyse(model, images(), TASKS)


def outputs(structure: Structure, model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    with torch.no_grad():
        return structure.capture.run(detached_tensors(model), inputs)


def check(structure: Structure, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The graph computes what the model does."""
    found = outputs(structure, model, inputs)
    with torch.no_grad():
        output = model(*inputs)
    for task in structure.task_objects:
        for one, other in zip(found[task.name], task.tensors(output), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


def described(structure: Structure) -> Any:
    return [
        (
            group.name,
            [(m.parameter, m.dim, m.index.tolist()) for m in group.members],
            [
                (c.node, c.arg, c.dim, c.index.tolist(), c.sample and (c.sample[0], c.sample[1].tolist()))
                for c in group.consumers
            ],
        )
        for group in structure.groups
    ]


# Flattened positions, groups, heads within the batch dimension, statistics, tokens and two inputs among them.
NETWORKS = (
    "grouped",
    "avgpool-flatten",
    "tiny-vit",
    "bmm-attention",
    "multihead-attention",
    "two-inputs",
    "residual",
)


@pytest.mark.parametrize("id", NETWORKS)
def test_another_batch_and_precision_have_the_structure_of_a_fresh_analysis(id: str) -> None:
    entry = BY_ID[id]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    for batch, dtype in ((2, torch.float64), (3, torch.float32)):
        other, inputs = copy.deepcopy(model).to(dtype), entry.inputs(batch, dtype)
        found, fresh = structure_at(structure, other, inputs), analyse(other, inputs, entry.tasks)

        assert (found.fingerprint, described(found)) == (fresh.fingerprint, described(fresh))
        assert (found.resizing.batch, found.resizing.places) == (batch, fresh.resizing.places)
        check(found, other, inputs)


def test_a_graph_is_captured_once_for_all_copies_of_a_model() -> None:
    model = Scaled()
    structure = analyzed(model)
    found = structure_at(structure, model, (images(4),))
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    again = structure_at(structure, trained, (images(4) + 1,))

    assert again.capture is found.capture
    check(again, trained, (images(4) + 1,))
    assert structure_at(structure, trained, (images(2),)) is structure


def change_number(model: Scaled) -> None:
    model.number = 3.0


def change_options(model: Scaled) -> None:
    model.options = {"slope": [0.1, 7.0]}


def change_plain(model: Scaled) -> None:
    model.plain = model.plain + 1


def change_activation(model: Scaled) -> None:
    model.activation = torch.tanh


def add_hook(model: Scaled) -> None:
    model.stem.register_forward_hook(lambda module, args, result: -result)


def freeze(model: Scaled) -> None:
    model.stem.requires_grad_(False)


def rearrange(model: Scaled) -> None:
    model.stem.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change", [change_number, change_options, change_plain, change_activation, add_hook, freeze, rearrange]
)
def test_a_model_that_changed_is_captured_again(change: Any) -> None:
    model = Scaled()
    structure = analyzed(model)
    before = structure_at(structure, model, (images(4),)).capture
    change(model)
    found = structure_at(structure, model, (images(4),))

    assert found.capture is not before
    check(found, model, (images(4),))


def test_what_a_model_merely_is_asked_for_changes_nothing() -> None:
    """Running it, its mode, and a copy through a file."""
    model = Scaled()
    structure = analyzed(model)
    before = structure_at(structure, model, (images(4),)).capture
    model.train()
    model(images(4))["left"].sum().backward()

    assert structure_at(structure, model, (images(4),)).capture is before
    assert structure_at(structure, pickle.loads(pickle.dumps(model)), (images(4),)).capture is before


def test_precision_alone_does_not_make_another_structure() -> None:
    model = Scaled()
    structure = analyzed(model)
    double = structure_at(structure, copy.deepcopy(model).double(), (images().double(),))

    assert double.groups is structure.groups
    assert double.cost is structure.cost
    assert double.capture is not structure.capture


class Frozen(nn.Module):
    """An encoder that torch computes by one fused operator where nobody asks for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.left = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.encoder(self.stem(x)))


def test_the_graph_does_not_depend_on_the_callers_gradient_mode() -> None:
    model = Frozen().eval()
    inputs = torch.randn(2, 5, 6)
    structure = analyse(model, inputs, [Task("left", ())])
    with torch.no_grad():
        without = analyse(model, inputs, [Task("left", ())])

    assert structure.groups
    assert described(without) == described(structure)
    assert str(without.capture.graph) == str(structure.capture.graph)


class EvenBatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 1, 1)
        self.calls = []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if len(image) % 2:
            raise ValueError("odd")
        features = self.stem(image).relu()
        return {"left": self.left(features), "right": self.right(features)}


def test_a_refusal_is_remembered_without_what_it_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EvenBatches()
    structure = analyzed(model)
    reasons = []
    for _ in range(2):
        with pytest.raises(CaptureError, match="odd") as caught:
            structure_at(structure, model, (images(3),))
        reasons.append(str(caught.value))
        monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("exported again"))

    assert reasons[0] == reasons[1]


def test_neither_a_structure_nor_its_captures_keep_model_or_inputs_alive() -> None:
    model, inputs = Scaled(), (images(4),)
    structure = analyzed(model)
    structure_at(structure, model, inputs)
    structure_at(structure, copy.deepcopy(model).double(), (images().double(),))
    held = [weakref.ref(model), weakref.ref(model.stem.weight), weakref.ref(inputs[0])]
    del model, inputs
    gc.collect()

    assert [reference() for reference in held] == [None, None, None]
    assert structure.groups


def test_only_the_last_few_captures_are_remembered() -> None:
    model = Scaled()
    structure = analyzed(model)
    first = structure_at(structure, model, (images(3),)).capture
    held = weakref.ref(first)
    assert structure_at(structure, model, (images(3),)).capture is first
    del first
    for batch in range(4, 4 + REMEMBERED):
        structure_at(structure, model, (images(batch),))
    gc.collect()

    assert held() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_structure_works_by_itself(copied: Any) -> None:
    model = Scaled()
    structure = analyzed(model)
    structure_at(structure, model, (images(4),))
    found: Structure = copied(structure)

    assert found.signature == structure.signature
    assert set(found.capture.nodes.values()) == set(found.capture.graph.nodes)
    assert set(found.capture.effects.sources) == set(found.capture.graph.nodes)
    keep = random_keep(structure, 0)
    assert found.cost.macs.total(keep) == structure.cost.macs.total(keep)
    check(found, model, (images(),))
    check(structure_at(found, model, (images(4),)), model, (images(4),))


class SinglesDiffer(nn.Module):
    """An example alone is mirrored along its channels, and no example is told apart in what ``mix`` reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.left = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image).relu()
        features = features + features.flip(1) if len(image) == 1 else features
        return self.left(self.mix(features).relu())


def test_units_that_depend_on_the_number_of_examples_are_refused_with_advice_that_works() -> None:
    torch.manual_seed(0)
    model = SinglesDiffer().eval()
    structure = analyse(model, images(2))
    with pytest.raises(BatchError, match="every number of examples") as caught:
        structure_for_batch(structure, model, (images(1),))

    assert "drop_last=True" in str(caught.value)
    assert "DiSparse(criterion=criteria.Magnitude()), refit=None" in str(caught.value)
    votes = DiSparse(criterion=criteria.Magnitude())
    assert prune(model, images(16), macs=0.6, method=votes, refit=None).report.costs["macs"].ratio <= 0.6


class SmallDiffer(SinglesDiffer):
    """The same for small images."""

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image).relu()
        features = features + features.flip(1) if image.shape[-1] < 8 else features
        return self.left(self.mix(features).relu())


def test_units_that_depend_on_the_size_of_images_are_refused_with_advice_that_works() -> None:
    model = SmallDiffer().eval()
    with pytest.raises(BatchError, match="Pass example inputs of the shape that the batches have"):
        structure_for_batch(analyse(model, images(2)), model, (images(2, 7),))
    small = (images(2, 7),)
    assert structure_for_batch(analyse(model, small), model, (images(4, 7),)).groups
