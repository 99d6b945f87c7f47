"""The order of removal: what is left of an error after least squares, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.refit.contraction import contractions
from disparse_structured.scoring import elimination
from disparse_structured.scoring.compensation import Compensation
from disparse_structured.scoring.elimination import elimination_costs
from disparse_structured.scoring.execution import Execution
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import MaskedReads

OUT = (Task("out", lambda output: output),)
TINY = 1e-9


def random_reader(units: int, outputs: int = 3, rows: int = 60) -> tuple[Tensor, Tensor]:
    """Inputs that can stand in for each other, and a weight."""
    inputs = torch.randn(rows, units, dtype=torch.float64) @ torch.randn(units, units, dtype=torch.float64)
    return inputs, torch.randn(outputs, units, dtype=torch.float64)


def lost(inputs: Tensor, weight: Tensor, left: Sequence[int]) -> float:
    """The squared error of the best weights on the columns ``left``."""
    target = inputs @ weight.T
    if not left:
        return float(target.square().sum())
    near = inputs[:, list(left)].numpy()
    found = near @ np.linalg.lstsq(near, target.numpy(), rcond=None)[0]
    return float(((target.numpy() - found) ** 2).sum())


def as_given(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return (inputs.T @ inputs)[None], weight[None]


def test_the_unit_goes_whose_removal_leaves_the_least_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "PARTS", 10**6)
    readers = [random_reader(9), random_reader(9, outputs=2)]
    costs = elimination_costs([as_given(*each) for each in readers], TINY)

    left = list(range(9))
    total = 0.0
    for unit in costs.argsort().tolist():

        def error(without: int) -> float:
            return sum(lost(*each, [other for other in left if other != without]) for each in readers)

        assert error(unit) == pytest.approx(min(map(error, left)), rel=1e-5)
        before, total = total, error(unit)
        # Costs ascend; where they would not, a unit takes the cost of the one before.
        assert float(costs[unit]) >= (total - before) * (1 - 1e-5)
        left.remove(unit)
    assert total == pytest.approx(sum(lost(*each, []) for each in readers))


def test_of_two_units_that_say_the_same_one_goes_first_and_the_other_late() -> None:
    inputs, weight = random_reader(16)
    inputs[:, 5] = 2 * inputs[:, 9]
    costs = elimination_costs([as_given(inputs, weight)], 1e-6)
    place = costs.argsort().argsort()

    assert sorted(place[[5, 9]].tolist())[0] == 0
    assert float(costs[[5, 9]].min()) < 1e-4 * float(costs.median())
    assert float(costs[[5, 9]].max()) > float(costs.sort().values[3])


def test_many_units_go_together_and_no_two_cost_the_same() -> None:
    inputs, weight = random_reader(200, rows=400)
    costs = elimination_costs([as_given(inputs, weight)], 1e-3)

    assert len(costs.unique()) == 200
    assert bool((costs > 0).all())


def test_dead_units_go_first() -> None:
    inputs, weight = random_reader(8)
    inputs[:, 2] = 0
    weight[:, 4] = 0
    costs = elimination_costs([as_given(inputs, weight)], 1e-3)

    assert sorted(costs.argsort()[:2].tolist()) == [2, 4]
    assert float(costs[[2, 4]].max()) < 1e-3 * float(costs.max())


READERS = {
    "linear": (nn.Linear(6, 8), nn.Linear(8, 3), (40, 6)),
    "kernel": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1), (4, 3, 9, 8)),
    "grouped": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2, bias=False), (4, 3, 9, 8)),
    "transposed": (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, stride=2), (4, 3, 9, 8)),
    "few rows": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_a_layer_reads_of_its_units(name: str) -> None:
    first, reader, shape = READERS[name]
    model, inputs = nn.Sequential(first, nn.ReLU(), reader).eval(), torch.randn(shape)
    structure = analyse(model, (inputs,), OUT)
    (group,) = structure.groups
    everything, state = torch.ones(structure.units, dtype=torch.bool), detached_tensors(model)
    base = {each.weight: each for each in contractions(structure, everything)}
    compensation = Compensation(tuple(base.values()))
    execution = Execution(structure, MaskedReads(structure, everything))
    compensation.observe(execution, state, [(inputs,)], torch.Generator().manual_seed(0))
    (member,) = [each for each in group.members if each.reads]
    found = compensation.read(base["2.weight"], member.index, state)

    assert found is not None
    gram, weight = found
    dim = 0 if name == "transposed" else 1
    squares = state["2.weight"].double().square()
    squares = squares.sum([each for each in range(squares.ndim) if each != dim])
    relative = weight.square().sum(1)
    assert gram.shape[1:] == (group.units, group.units)
    torch.testing.assert_close(gram, gram.mT, rtol=1e-4, atol=1e-4 * float(gram.abs().max()))
    assert float(((weight @ gram) * weight).sum()) == pytest.approx(1.0)
    for number, unit in enumerate(member.index[:, 0].tolist()):
        ratio = float(relative[:, number].sum() / relative.sum())
        assert ratio == pytest.approx(float(squares[unit] / squares[member.index[:, 0]].sum()), rel=1e-5)


def test_layers_that_read_nothing_or_zeros_take_no_part() -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval(), torch.randn(20, 4)
    with torch.no_grad():
        model[1].weight.zero_()
    structure = analyse(model, (inputs,), OUT)
    everything, state = torch.ones(structure.units, dtype=torch.bool), detached_tensors(model)
    base = {each.weight: each for each in contractions(structure, everything)}
    compensation = Compensation(tuple(base.values()))
    index = np.arange(6)[:, None]

    assert compensation.read(base["1.weight"], index, state) is None
    execution = Execution(structure, MaskedReads(structure, everything))
    compensation.observe(execution, state, [(inputs,)], torch.Generator().manual_seed(0))
    assert compensation.read(base["1.weight"], index, state) is None
