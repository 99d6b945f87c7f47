"""Curves that predict the refit: the partial re-runs, the closed form, and the scores made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.data.deviation import Movement
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import decide
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.pipeline import Compensated, Problem
from disparse_structured.refit.contraction import DenseLayers, contractions
from disparse_structured.scoring import damage_curves
from disparse_structured.scoring.compensation import RIDGE, Compensation
from disparse_structured.scoring.damage_curves import DamageCurves, measure_damage_curves
from disparse_structured.scoring.execution import Execution, Outputs
from disparse_structured.structure import Structure, analyse
from disparse_structured.structure.cost import AnalyticCost
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import MaskedReads, masked_twin
from tests.support.experts import NAMES, routed
from tests.support.plans import case, random_keep, snapshot
from tests.support.redundant import Similarity
from tests.support.zoo import BY_ID, ids

OUT = (Task("out", lambda output: output),)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in named_tensors(model)[0].items()}


def calibration_of(model: nn.Module, *inputs: Tensor) -> Calibration:
    return Calibration.of(model, [inputs], to_inputs=lambda batch: batch)


def expected(
    structure: Structure, state: Mapping[str, Tensor], keep: Tensor, inputs: tuple[Tensor, ...]
) -> Outputs:
    """The oracle: the whole masked twin, from scratch."""
    with torch.no_grad():
        found = structure.capture.run(state, inputs, masked_twin(structure, keep))
    return {task: list(tensors) for task, tensors in found.items()}


def same(found: Outputs, wanted: Outputs) -> bool:
    return found.keys() == wanted.keys() and all(
        len(found[task]) == len(wanted[task])
        and all(torch.equal(a, b) for a, b in zip(found[task], wanted[task], strict=True))
        for task in wanted
    )


def narrower(structure: Structure, keep: Tensor, seed: int) -> Tensor:
    """``keep`` with fewer units in some groups; every group keeps one."""
    other = random_keep(structure, seed)
    result = keep.clone()
    for number, group in enumerate(structure.groups):
        both = keep[group.slice] & other[group.slice]
        if number % 2 == seed % 2 and both.any():
            result[group.slice] = both
    return result


# Execution


def check_execution(
    structure: Structure,
    state: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    keep: Tensor,
    seeds: tuple[int, ...] = (1, 2, 1),
) -> None:
    """Values and variants are those of whole runs, bit for bit, in any order."""
    given = [each.clone() for each in inputs]
    masking = MaskedReads(structure, keep)
    execution = Execution(structure, masking)
    values = execution.values(state, inputs)
    assert same(execution.outputs(values), expected(structure, state, keep, inputs))

    floating = [name for name, tensor in state.items() if tensor.is_floating_point() and "var" not in name]
    for seed in seeds:  # the first once more: nothing that is remembered has changed
        without = narrower(structure, keep, seed)
        changed = {name: state[name] * 1.25 for name in floating[seed::3]}
        found = execution.variant(values, state, changed, masking.under(without), inputs)
        assert same(found, expected(structure, {**state, **changed}, without, inputs))
    assert same(execution.outputs(values), expected(structure, state, keep, inputs))
    assert all(torch.equal(a, b) for a, b in zip(inputs, given, strict=True))


@pytest.mark.parametrize("id", ids)
def test_a_variant_is_the_masked_twin_with_other_weights(id: str) -> None:
    animal = case(id)
    everything = torch.ones(animal.structure.units, dtype=torch.bool)
    some = narrower(animal.structure, everything, 0)

    check_execution(animal.structure, state_of(animal.model), animal.inputs, everything, (2,))
    check_execution(animal.structure, state_of(animal.model), animal.inputs, some)


@pytest.mark.parametrize("id", ["grouped", "depthwise-separable", "residual", "tiny-vit"])
def test_only_the_readers_of_a_narrowed_group_lose_columns(id: str) -> None:
    structure = case(id).structure
    everything = torch.ones(structure.units, dtype=torch.bool)
    dense = DenseLayers.of(structure)
    before = {each.weight: each for each in dense.under(everything).contractions}
    for group in structure.groups:
        keep = everything.clone()
        keep[group.start] = False
        members = {member.parameter for member in group.members}
        after = {each.weight: each for each in contractions(structure, keep)}
        narrowed = {each.weight: each for each in dense.under(keep, only=members).contractions}

        assert narrowed.keys() == after.keys() & members
        for weight, found in after.items():
            other = narrowed.get(weight, before[weight])
            assert (found.nodes, found.bias, found.groups) == (other.nodes, other.bias, other.groups)
            assert torch.equal(found.columns, other.columns)
            assert torch.equal(found.rows, other.rows)
            assert torch.equal(found.inputs, other.inputs)
            assert torch.equal(found.outputs, other.outputs)


class Writing(nn.Module):
    """Two convolutions with something between them that writes to memory."""

    def __init__(self, write: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 4, 1)
        self.register_buffer("whole", torch.arange(4))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.write(self, x))


def residual_in_place(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x).relu_()
    x += net.second(x)
    return x.relu_()


def part_of_a_view(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x)
    x[:, :, 1:].relu_()
    return net.second(x)


def read_by_the_old_name(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x)
    view = x.view(x.shape)
    view.add_(1.0)
    return net.second(view + x)


def written_through_a_view(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.second(x.view(-1).relu_().view(x.shape))


def two_slices(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x)
    x[:, :, ::2].mul_(2.0)
    first = net.second(x)
    x[:, :, 1::2].add_(1.0)
    return first + x


def behind_an_idle_dropout(net: nn.Module, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.second(F.dropout(x, 0.5, False).relu_() + x)


def the_input_itself(net: nn.Module, x: Tensor) -> Tensor:
    return net.second(net.first(x.mul_(2.0)))


WRITING = [
    residual_in_place, part_of_a_view, read_by_the_old_name, written_through_a_view, two_slices,
    behind_an_idle_dropout, the_input_itself,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITING)
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 3, 7, 5)], ids=str)
def test_variants_of_networks_that_write_in_place(
    write: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    model, inputs = Writing(write).eval(), (torch.randn(shape),)
    structure = analyse(model, inputs, OUT)
    everything = torch.ones(structure.units, dtype=torch.bool)

    check_execution(structure, state_of(model), inputs, everything)
    check_execution(structure, state_of(model), inputs, narrower(structure, everything, 1))


def test_tensors_of_integers_are_no_outputs_to_compare() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            scores = self.head(self.body(x))
            return {"scores": scores, "label": scores.argmax(1)}

    model, inputs = Labels().eval(), (torch.randn(2, 4),)
    structure = analyse(model, inputs, (Task("both", lambda output: list(output.values())),))
    execution = Execution(structure, MaskedReads(structure, torch.ones(structure.units, dtype=torch.bool)))
    outputs = execution.outputs(execution.values(state_of(model), inputs))

    assert [each.dtype for each in outputs["both"]] == [torch.float32]


# Compensation


def compensated(
    model: nn.Module, inputs: Tensor, share: float = 0.6
) -> tuple[Structure, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Structure, keep, state and what changes when the only group keeps ``share`` of its units."""
    structure = analyse(model, (inputs[:2],), OUT)
    (group,) = structure.groups
    keep = torch.zeros(structure.units, dtype=torch.bool)
    keep[torch.randperm(group.units)[: round(share * group.units)]] = True
    everything, state = torch.ones_like(keep), state_of(model)
    shaped = analyse(model, (inputs,), OUT)
    base = contractions(shaped, everything)
    compensation = Compensation(base)
    execution = Execution(shaped, MaskedReads(shaped, everything))
    compensation.observe(execution, state, [(inputs,)], torch.Generator().manual_seed(0))
    changed: dict[str, Tensor] = {}
    for before, after in zip(base, contractions(shaped, keep), strict=True):
        changed.update(compensation.without(before, after, state))
    return structure, keep, state, changed


def columns_of(
    layer: nn.Module, value: Tensor, group: int, groups: int
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """The design matrix of one output, one column a weight, by running the layer on unit weights."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    probe = copy.deepcopy(layer).double()
    if probe.bias is not None:
        nn.init.zeros_(probe.bias)
    inward, outward = (0, 1) if transposed else (1, 0)
    output = group * (layer.weight.shape[outward] // groups)
    found, places = [], []
    for index in np.ndindex(*[size for dim, size in enumerate(layer.weight.shape) if dim != outward]):
        place = (index[0], output, *index[1:]) if transposed else (output, *index)
        nn.init.zeros_(probe.weight)
        with torch.no_grad():
            probe.weight[place] = 1.0
            result = probe(value.double())
        found.append((result[..., output] if result.ndim == 2 else result[:, output]).reshape(-1).numpy())
        places.append((place[inward], *index[1:]))
    return np.stack(found, 1), places


def ridge(near: np.ndarray, target: np.ndarray, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """``(coefficients, constant)`` of the regression of ``target`` on ``near``, by its singular values."""
    means = (near.mean(0), target.mean(0)) if center else (0 * near.mean(0), 0 * target.mean(0))
    u, s, v = np.linalg.svd(near - means[0], full_matrices=False)
    damping = RIDGE * (s**2).sum() / near.shape[1]
    found = v.T @ (u.T @ (target - means[1]) * (s / (s**2 + damping))[:, None])
    return found, means[1] - means[0] @ found


READERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(8, 4, 3, padding=1),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "dilated": lambda: nn.Conv2d(8, 4, 3, dilation=2, stride=(1, 2), padding=1),
    "even": lambda: nn.Conv2d(8, 4, 2, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
    "no-bias": lambda: nn.Conv2d(8, 4, 3, bias=False),
}


def check_against_the_oracle(first: nn.Module, reader: nn.Module, inputs: Tensor, groups: int = 1) -> None:
    structure, keep, state, changed = compensated(nn.Sequential(first, reader).eval(), inputs)
    with torch.no_grad():
        value = first(inputs)
    (group,) = structure.groups
    (member,) = [each for each in group.members if each.parameter == "1.weight"]
    stays = set(member.index[keep.numpy()].reshape(-1).tolist())
    transposed = isinstance(reader, nn.ConvTranspose2d)
    before, after = state["1.weight"].double().numpy(), changed["1.weight"].double().numpy()
    if transposed:
        before, after = before.swapaxes(0, 1), after.swapaxes(0, 1)
    each = len(before) // groups
    shift = np.zeros(len(before))
    for number in range(groups):
        rows = slice(number * each, (number + 1) * each)
        design, places = columns_of(reader, value, number, groups)
        near = np.array([place[0] in stays for place in places])
        weights = before[rows].reshape(each, -1)
        change, shift[rows] = ridge(
            design[:, near], design[:, ~near] @ weights[:, ~near].T, reader.bias is not None
        )
        wanted, found = weights[:, near] + change.T, after[rows].reshape(each, -1)[:, near]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * abs(weights).max())
    if reader.bias is None:
        assert changed.keys() == {"1.weight"}
    else:
        assert changed.keys() == {"1.weight", "1.bias"}
        np.testing.assert_allclose((changed["1.bias"] - state["1.bias"]).double().numpy(), shift, atol=1e-4)


@pytest.mark.parametrize("name", READERS)
def test_the_closed_form_is_ridge_regression_on_the_kept_columns(name: str) -> None:
    reader = READERS[name]()
    check_against_the_oracle(
        nn.Conv2d(3, 8, 3), reader, torch.randn(6, 3, 11, 10) + 1.0, 2 if name == "grouped" else 1
    )


def test_the_closed_form_of_a_linear_layer() -> None:
    first = nn.Sequential(nn.Linear(6, 9), nn.ReLU())
    check_against_the_oracle(first, nn.Linear(9, 4), torch.randn(40, 6) + 0.5)


def test_more_features_than_a_gram_matrix_may_have_are_kept_as_rows() -> None:
    first = nn.Sequential(nn.Linear(5, 8200), nn.ReLU())
    inputs = torch.randn(24, 5) + 0.5
    _, keep, state, changed = compensated(nn.Sequential(first, nn.Linear(8200, 2)).eval(), inputs)
    with torch.no_grad():
        value = first(inputs).double().numpy()
    stays, weights = keep.numpy(), state["1.weight"].double().numpy()
    change, shift = ridge(value[:, stays], value[:, ~stays] @ weights[:, ~stays].T, True)

    np.testing.assert_allclose(changed["1.weight"][:, stays].numpy(), weights[:, stays] + change.T, atol=2e-5)
    np.testing.assert_allclose((changed["1.bias"] - state["1.bias"]).numpy(), shift, atol=1e-3)


def test_a_constant_without_a_bias_is_added_to_the_running_mean_that_follows() -> None:
    first, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    model = nn.Sequential(first, nn.Conv2d(8, 4, 1, bias=False), norm, nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        first.weight[5:] = 0.0  # constants: nothing but an intercept makes up for them
        first.bias[5:] = 3.0
    inputs = torch.randn(4, 3, 6, 6)
    structure = analyse(model, (inputs,), OUT)
    keep = torch.ones(structure.units, dtype=torch.bool)
    state, execution = state_of(model), Execution(structure, MaskedReads(structure, keep))
    base = contractions(structure, keep)
    compensation = Compensation(base)
    compensation.observe(execution, state, [(inputs,)], torch.Generator().manual_seed(0))
    group = next(each for each in structure.groups if each.units == 8)
    without = keep.clone()
    without[group.start + 5 : group.start + 8] = False
    changed: dict[str, Tensor] = {}
    for before, after in zip(base, contractions(structure, without), strict=True):
        changed.update(compensation.without(before, after, state))

    assert changed.keys() == {"1.weight", "2.running_mean"}
    found = expected(structure, {**state, **changed}, without, (inputs,))["out"][0]
    with torch.no_grad():
        torch.testing.assert_close(found, model(inputs), rtol=1e-4, atol=1e-4)


def test_dead_and_constant_channels_are_no_trouble() -> None:
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[2:] = 0.0
        first.bias[4:] = 0.0
    *_, changed = compensated(
        nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.randn(4, 3, 7, 7)
    )

    assert changed
    assert all(bool(tensor.isfinite().all()) for tensor in changed.values())


# DamageCurves and saliency


def foreseen(
    model: nn.Module, structure: Structure, calibration: Calibration, seed: int = 0, **options: Any
) -> DamageCurves:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(structure.reach.shape, generator=generator, dtype=torch.float64) * structure.reach
    return measure_damage_curves(model, structure, lambda: scores, calibration, **options)


def two_layers(last: int = 8) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, last, 3), nn.ReLU(), nn.Conv2d(last, 4, 3))
    return model.eval(), torch.randn(24, 3, 8, 8)


@pytest.mark.parametrize(("useless", "low", "high"), [(True, 0.0, 1e-4), (False, 1e-2, 10.0)])
def test_channels_that_others_make_up_for_cost_nothing(useless: bool, low: float, high: float) -> None:
    model, inputs = two_layers()
    with torch.no_grad():
        model[0].weight[5:], model[0].bias[5:] = model[0].weight[:3], model[0].bias[:3]
    structure = analyse(model, (inputs[:2],), OUT)
    scores = torch.tensor([[4.0, 5, 6, 7, 8, 1, 2, 3] if useless else [4.0, 5, 6, 1, 2, 3, 7, 8]]).double()
    (curve,) = measure_damage_curves(
        model, structure, lambda: scores, calibration_of(model, inputs), left=(5 / 8, 2 / 8)
    ).curves

    assert curve.removed == (3, 6)
    assert low <= curve.damage[0][0] <= high
    assert curve.damage[0][1] > 1e-2


@pytest.mark.parametrize("id", ["plain", "residual", "private-branches", "convnext-block", "two-batchnorms"])
def test_damage_is_what_surgery_on_the_compensated_weights_does(id: str) -> None:
    entry = BY_ID[id]
    model, data = entry.factory(torch.float64), entry.inputs(24, torch.float64, seed=3)
    structure = analyse(model, entry.inputs(dtype=torch.float64), entry.tasks)
    calibration = calibration_of(model, *data)
    scores = torch.rand(structure.reach.shape, dtype=torch.float64) * structure.reach
    curves = measure_damage_curves(
        model,
        structure,
        lambda: scores,
        calibration,
        left=(0.5,),
        judged=len(calibration.chunks[0][0]),
        seed=7,
    ).curves

    shaped = analyse(model, calibration.chunks[0], entry.tasks)
    everything, state = torch.ones(structure.units, dtype=torch.bool), state_of(model)
    base = contractions(shaped, everything)
    compensation = Compensation(base)
    execution = Execution(shaped, MaskedReads(shaped, everything))
    compensation.observe(execution, state, calibration.chunks[::2], torch.Generator().manual_seed(7))
    order = (scores / scores.sum(1, keepdim=True)).sum(0)
    for group, curve in zip(structure.groups, curves, strict=True):
        if any(group.name in constraint.groups for constraint in structure.constraints):
            continue
        keep = everything.clone()
        keep[group.start + order[group.slice].argsort()[: curve.removed[0]]] = False
        changed: dict[str, Tensor] = {}
        for before, after in zip(base, contractions(shaped, keep), strict=True):
            changed.update(compensation.without(before, after, state))
        other = copy.deepcopy(model)
        other.load_state_dict({**state, **changed}, strict=False)
        pruned = cut(other, structure, keep)
        with torch.no_grad():
            wanted, found = model(*calibration.chunks[1]), pruned(*calibration.chunks[1])
        for task, (damage,) in zip(structure.task_objects, curve.damage, strict=True):
            moved = Movement()
            moved.add(task.tensors(found), task.tensors(wanted))
            assert damage == pytest.approx(moved.damage, rel=1e-6, abs=1e-12)


SCORED = [
    "plain", "grouped-chain-2-3", "partial-reach", "untasked-head", "position-bias-heads",
    "heads-bound-to-width", "convnext-block", "two-inputs", "weight-from-weight",
]  # fmt: skip


@pytest.mark.parametrize("id", SCORED)
@pytest.mark.parametrize(("narrow", "eliminate"), [(False, False), (True, False), (True, True)])
def test_scores_are_usable_everywhere_and_zero_where_nothing_can_be_lost(
    id: str, narrow: bool, eliminate: bool
) -> None:
    entry = BY_ID[id]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    keep = random_keep(structure, 2) if narrow else torch.ones(structure.units, dtype=torch.bool)
    calibration = calibration_of(model, *entry.inputs(16, seed=1))
    found = foreseen(model, structure, calibration, keep=keep, eliminate=eliminate)

    assert found.tasks == structure.tasks
    assert found.scores.shape == structure.reach.shape
    assert found.scores.dtype == torch.float64
    assert bool(found.scores.isfinite().all())
    assert bool((found.scores >= 0).all())
    assert not found.scores[:, ~keep].any()
    assert not found.scores[~structure.reach].any()
    assert bool((found.scores > 0).any(dim=1).all())
    for group, curve in zip(structure.groups, found.curves, strict=True):
        assert curve.group == group.name
        assert all(0 < count < int(keep[group.slice].sum()) for count in curve.removed)
        assert list(curve.removed) == sorted(set(curve.removed))


def test_scores_along_the_order_add_up_to_the_lower_convex_hull_of_the_damage() -> None:
    model, inputs = two_layers(24)
    structure = analyse(model, (inputs[:2],), OUT)
    scores = torch.rand(1, 24, dtype=torch.float64) ** 2 + 0.01
    found = measure_damage_curves(model, structure, lambda: scores, calibration_of(model, inputs))
    (curve,) = found.curves
    steps = found.scores[0, scores[0].argsort()].numpy()
    total = np.concatenate([[0.0], steps.cumsum()])
    damage = np.maximum.accumulate(curve.damage[0])
    at = total[list(curve.removed)]

    assert (np.diff(steps) >= 0).all()
    assert (at <= damage * (1 + 1e-6)).all()
    # A hull touches what it is the hull of: at its end it is the last damage, in proportion.
    cumulative = np.concatenate([[0.0], np.sort(scores[0].numpy()).cumsum()])
    end = damage[-1] * cumulative[-1] / cumulative[curve.removed[-1]]
    assert total[-1] == pytest.approx(end, rel=1e-6)


def test_the_scores_keep_each_tasks_own_order() -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    scores = torch.rand(structure.reach.shape, dtype=torch.float64)
    found = measure_damage_curves(model, structure, lambda: scores, calibration_of(model, *entry.inputs(16)))

    for group in structure.groups:
        for row, task in enumerate(structure.tasks):
            if task in group.reach:
                order = scores[row, group.slice].argsort()
                assert bool((found.scores[row, group.slice][order].diff() > 0).all())


def test_elimination_keeps_one_of_two_units_that_are_alike_whatever_the_scores() -> None:
    model, inputs = two_layers(24)
    with torch.no_grad():
        model[0].weight[12:], model[0].bias[12:] = model[0].weight[:12], model[0].bias[:12]
    structure = analyse(model, (inputs[:2],), OUT)
    scores = torch.arange(1, 25, dtype=torch.float64)[None]
    scores[0, ::2] = scores[0, ::2].flip(0)
    options: dict[str, Any] = {"left": (0.5,), "eliminate": True}
    found = measure_damage_curves(model, structure, lambda: scores, calibration_of(model, inputs), **options)
    going = found.scores[0].argsort()[:12]

    assert sorted((going % 12).tolist()) == list(range(12))
    assert found.curves[0].damage[0][0] < 1e-4


def test_where_no_layer_makes_up_for_units_or_they_are_too_many_their_scores_order_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs = two_layers(24)
    structure = analyse(model, (inputs[:2],), OUT)
    calibration = calibration_of(model, inputs)
    by_score = foreseen(model, structure, calibration)
    monkeypatch.setattr(damage_curves, "MOST", 24**2 - 1)

    assert torch.equal(foreseen(model, structure, calibration, eliminate=True).scores, by_score.scores)

    monkeypatch.setattr(damage_curves, "MOST", 24**2)
    unread = Similarity().eval()
    inputs = torch.randn(24, 4)
    structure, calibration = analyse(unread, (inputs[:2],), OUT), calibration_of(unread, inputs)
    by_score = foreseen(unread, structure, calibration)
    assert torch.equal(foreseen(unread, structure, calibration, eliminate=True).scores, by_score.scores)


@pytest.mark.parametrize(("units", "removed"), [(1, ()), (2, (1,)), (3, (1, 2))])
def test_narrow_groups_and_shares_that_coincide(units: int, removed: tuple[int, ...]) -> None:
    model, inputs = two_layers(units)
    structure = analyse(model, (inputs[:2],), OUT)
    options: dict[str, Any] = {"left": (0.7, 0.3, 0.31, 0.05), "eliminate": True}
    found = foreseen(model, structure, calibration_of(model, inputs), **options)

    assert [curve.removed for curve in found.curves] == ([] if not structure.groups else [removed])
    assert bool(found.scores.isfinite().all())


def test_a_group_of_one_unit_beside_others() -> None:
    model, inputs = two_layers()
    structure = analyse(model, (inputs[:2],), OUT)
    keep = torch.zeros(8, dtype=torch.bool)
    keep[3] = True
    found = foreseen(model, structure, calibration_of(model, inputs), keep=keep)

    assert found.curves[0].removed == ()
    assert found.scores[0].nonzero().tolist() == [[3]]


def test_the_same_seed_gives_the_same_and_the_model_and_random_states_stay() -> None:
    entry = BY_ID["residual"]
    model = entry.factory().train()
    structure = analyse(model, entry.inputs(), entry.tasks)
    calibration = calibration_of(model, *entry.inputs(16))
    before, numbers = snapshot(model), torch.get_rng_state()
    first = foreseen(model, structure, calibration)
    second = foreseen(model, structure, calibration)

    assert first.curves == second.curves
    assert torch.equal(first.scores, second.scores)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precisions(dtype: torch.dtype) -> None:
    model, inputs = two_layers()
    reference = foreseen(model, analyse(model, (inputs[:2],), OUT), calibration_of(model, inputs))
    model, inputs = copy.deepcopy(model).to(dtype), inputs.to(dtype)
    found = foreseen(model, analyse(model, (inputs[:2],), OUT), calibration_of(model, inputs))
    eliminated = foreseen(
        model, analyse(model, (inputs[:2],), OUT), calibration_of(model, inputs), eliminate=True
    )

    torch.testing.assert_close(found.scores, reference.scores, rtol=0.1, atol=1e-3)
    assert bool((eliminated.scores > 0).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu() -> None:
    model, inputs = two_layers()
    reference = foreseen(model, analyse(model, (inputs[:2],), OUT), calibration_of(model, inputs))
    model, inputs = model.cuda(), inputs.cuda()
    found = foreseen(model, analyse(model, (inputs[:2],), OUT), calibration_of(model, inputs))

    assert found.scores.device.type == "cpu"
    torch.testing.assert_close(found.scores, reference.scores, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_curves_around_layers_that_read_a_number_of_rows_that_depends_on_the_data(name: str) -> None:
    model, data = routed(name)
    structure = analyse(model, (data[:2],))
    found = foreseen(model, structure, calibration_of(model, data))

    assert [curve.group for curve in found.curves] == [group.name for group in structure.groups]
    assert {"first.0", "near.0"} <= {curve.group for curve in found.curves}
    for curve in found.curves:
        reached = structure.group(curve.group).reach
        for task, damage in zip(structure.tasks, curve.damage, strict=True):
            assert all(0 < each < 10 if task in reached else each == 0 for each in damage)
    assert bool(((found.scores > 0) == structure.reach).all())


class Roots(nn.Module):
    """Square roots of numbers that may be negative."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.body(x)) + self.shift).sqrt()


def test_outputs_that_are_no_numbers_are_left_out() -> None:
    model, inputs = Roots(0.3).eval(), torch.randn(24, 4)
    assert bool(model(inputs).isnan().any())
    structure = analyse(model, (inputs[:2],), OUT)
    found = foreseen(model, structure, calibration_of(model, inputs))

    assert bool(found.scores.isfinite().all())


def test_outputs_without_any_number_are_refused() -> None:
    model, inputs = Roots(-100.0).eval(), torch.randn(24, 4)
    structure = analyse(model, (inputs[:2],), OUT)
    with pytest.raises(BatchError, match=r"'out'.*no finite number"):
        foreseen(model, structure, calibration_of(model, inputs))


def test_large_networks_are_judged_on_fewer_examples_at_fewer_widths() -> None:
    model, inputs = two_layers(24)
    structure = analyse(model, (inputs[:2],), OUT)
    calibration = calibration_of(model, inputs)
    whole = foreseen(model, structure, calibration)
    few = foreseen(model, structure, calibration, work=1.0)

    assert few.curves[0].removed == tuple(whole.curves[0].removed[place] for place in (0, 2, 3))
    torch.testing.assert_close(few.scores, whole.scores, rtol=1.0, atol=1e-2)


# The way to a budget


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_end_at_the_budget(rounds: int) -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    calibration = calibration_of(model, *entry.inputs(16))
    before = snapshot(model)
    problem = Problem(model, structure, [entry.inputs(16)], lambda: calibration, Budget(macs=0.5))

    decision, saliency = Compensated(rounds=rounds).decide(problem)

    assert structure.cost.macs.total(decision.keep) <= 0.5 * structure.cost.macs.dense
    assert saliency.scores.shape == structure.reach.shape
    assert saliency.criterion == "elimination"
    assert snapshot(model) == before


def test_what_an_earlier_search_removed_is_removed_first() -> None:
    animal = case("plain")
    structure = animal.structure
    scores = torch.rand(
        structure.reach.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    first = decide(structure, scores, Budget(macs=0.7)).keep
    second = decide(structure, scores.flip(1), Budget(macs=0.4), left=first).keep

    assert not bool((second & ~first).any())
    assert bool((decide(structure, scores.flip(1), Budget(macs=0.4)).keep & ~first).any())


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_a_unit_costs_what_its_removal_saves_where_others_are_removed(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)).eval()
    structure = analyse(model, (torch.randn(2, 3, 8, 8),), OUT)
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[[0, 1, 7]] = False
    cost: AnalyticCost = getattr(structure.cost, kind)
    for start in (keep, torch.ones_like(keep)):
        given = cost.marginal(start)
        for unit in start.nonzero()[:, 0].tolist():
            without = start.clone()
            without[unit] = False
            assert float(given[unit]) == pytest.approx(cost.total(start) - cost.total(without))
