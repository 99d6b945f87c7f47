"""WeightMasks: the network with units off is the masked twin, and comes back as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.errors import PlanError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.weight_masks import WeightMasks
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import masked_twin
from tests.support.plans import case, deviation, random_keep
from tests.support.zoo import BY_ID, ids


def _outputs(
    structure: Structure, model: nn.Module, inputs: tuple[Tensor, ...]
) -> dict[str, Sequence[Tensor]]:
    with torch.no_grad():
        output = model(*inputs)
    return {task.name: task.tensors(output) for task in structure.task_objects}


def _twin(structure: Structure, model: nn.Module, inputs: tuple[Tensor, ...], keep: Tensor) -> object:
    state = {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}
    with torch.no_grad():
        return structure.capture.run(state, inputs, masked_twin(structure, keep))


def _maskable(structure: Structure, masks: WeightMasks, seed: int) -> Tensor:
    keep = random_keep(structure, seed)
    for name in masks.held:
        keep[structure.group(name).slice] = True
    return keep


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("id", ids)
def test_a_masked_network_is_the_masked_twin_and_comes_back(id: str) -> None:
    model = copy.deepcopy(case(id).model)
    inputs, structure = case(id).inputs, case(id).structure
    before = _weights(model)
    masks = WeightMasks(model, structure)
    keep = _maskable(structure, masks, seed=1)
    wanted = _twin(structure, model, inputs, keep)
    masks.switch(keep)
    assert deviation(_outputs(structure, model, inputs), wanted) <= 1e-9
    with masks.revealed():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert deviation(_outputs(structure, model, inputs), wanted) <= 1e-9
    masks.switch(torch.ones_like(keep))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _chain() -> tuple[nn.Module, Structure]:
    entry = BY_ID["plain"]
    model = entry.factory()
    return model, analyse(model, entry.inputs(), entry.tasks)


def test_most_of_a_convolutional_network_can_be_masked() -> None:
    model, structure = _chain()
    assert WeightMasks(model, structure).held == frozenset()


def test_training_leaves_what_is_off_at_zero() -> None:
    model, structure = _chain()
    masks = WeightMasks(model, structure)
    keep = _maskable(structure, masks, seed=2)
    masks.switch(keep)
    dense = _weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert any(not torch.equal(v, dense[n]) for n, v in model.state_dict().items())
    masks.enforce()
    weights = {name: value for name, value in dense.items() if value.ndim > 1}
    assert any(bool((value == 0).any()) for value in weights.values())
    for name, value in weights.items():
        assert bool((model.state_dict()[name][value == 0] == 0).all())


def test_a_unit_that_returns_is_forgotten_by_the_optimizer() -> None:
    model, structure = _chain()
    masks = WeightMasks(model, structure)
    everything = torch.ones(structure.units, dtype=torch.bool)
    keep = _maskable(structure, masks, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    masks.switch(keep, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    masks.switch(everything, optimizer)
    moments = [optimizer.state[p]["exp_avg"] for p in model.parameters() if p.ndim > 1]
    assert any(bool((moment == 0).any()) for moment in moments)
    assert any(bool((moment != 0).any()) for moment in moments)


def test_a_saved_mask_continues_in_another_process() -> None:
    model, structure = _chain()
    dense = _weights(model)
    masks = WeightMasks(model, structure)
    keep = _maskable(structure, masks, seed=4)
    masks.switch(keep)
    state, weights = masks.state_dict(), _weights(model)
    other, same = _chain()
    again = WeightMasks(other, same)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    assert torch.equal(again.keep, keep)
    again.switch(torch.ones_like(keep))
    assert all(torch.equal(value, dense[name]) for name, value in other.state_dict().items())


def test_what_a_normalization_averages_over_is_held() -> None:
    entry = BY_ID["convnext-block"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    masks = WeightMasks(model, structure)
    assert masks.held
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[structure.group(next(iter(masks.held))).start] = False
    before = _weights(model)
    with pytest.raises(PlanError, match="cannot be masked"):
        masks.switch(keep)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class _Tied(nn.Module):
    """An autoencoder with one weight, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.weight = nn.Parameter(torch.randn(12, 8, 1, 1))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        coded = torch.relu(nn.functional.conv2d(x, self.weight))
        out: Tensor = self.head(torch.relu(nn.functional.conv_transpose2d(coded, self.weight)))
        return out


class _Fixed(nn.Module):
    """A filter that is not trained, and no parameter, reads the first convolution."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)
        self.register_buffer("filter", torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(nn.functional.conv2d(torch.relu(self.stem(x)), self.filter))
        return out


@pytest.mark.parametrize(("kind", "held"), [(_Tied, {"weight", "wide"}), (_Fixed, set())])
def test_tied_and_fixed_weights(kind: type[nn.Module], held: set[str]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    structure = analyse(model, inputs, [Task("all", lambda output: output)])
    before = _weights(model)
    masks = WeightMasks(model, structure)
    assert masks.held == held
    keep = _maskable(structure, masks, seed=1)
    assert not keep.all()
    wanted = _twin(structure, model, inputs, keep)
    masks.switch(keep)
    assert deviation(_outputs(structure, model, inputs), wanted) <= 1e-9
    masks.switch(torch.ones_like(keep))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_follow_a_model_of_another_type_and_with_other_tensors() -> None:
    model, structure = _chain()
    dense = _weights(model)
    masks = WeightMasks(model, structure)
    keep = _maskable(structure, masks, seed=2)
    masks.switch(keep)
    zeros = {name: value == 0 for name, value in model.state_dict().items() if value.ndim > 1}
    model.double().load_state_dict({name: value.double() for name, value in dense.items()}, assign=True)
    masks.enforce()
    for name, off in zeros.items():
        assert bool((model.state_dict()[name][off] == 0).all())
    masks.switch(torch.ones_like(keep))
    assert all(torch.equal(value, dense[name].double()) for name, value in model.state_dict().items())
