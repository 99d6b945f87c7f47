"""Saliency against naive oracles, its laws, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset

from disparse_structured.errors import BatchError, DisparseError, GradientError, PlanError, TaskError
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.graph.instrument import instrumented
from disparse_structured.scoring import Criterion, Probe, Saliency, score
from disparse_structured.scoring.criteria import SNIP, DiagonalHessian, Fisher, Magnitude, Random, Taylor
from disparse_structured.structure import Structure, analyse
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import masked_twin
from tests.support.zoo import BY_ID, ZOO, Entry, ids

DATA_DRIVEN: tuple[Criterion, ...] = (Fisher(), Taylor(), SNIP(), DiagonalHessian())
EVERY: tuple[Criterion, ...] = (*DATA_DRIVEN, Magnitude(), Random())

AWKWARD = (
    "plain transposed-grouped weight-from-weight conv1d convnext-block dense-concat channel-shuffle "
    "no-rule avgpool-flatten tiny-vit bmm-attention tied-transpose called-twice two-inputs "
    "object-output nested-output partial-reach"
).split()


def as_inputs(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch


def mean_loss(picked: Any, batch: Any) -> Tensor:
    """Not linear, and a mean over the samples."""
    return torch.stack([each.sin().flatten(1).sum(1).mean() for each in tensor_leaves(picked)]).sum()


def with_loss(tasks: Sequence[Task], loss: Callable[[Any, Any], Tensor] = mean_loss) -> tuple[Task, ...]:
    return tuple(replace(task, loss=loss) for task in tasks)


def scores(model: nn.Module, structure: Structure, criterion: Criterion, data: Any, **options: Any) -> Tensor:
    return score(model, structure, data, criterion, **options).scores


# Naive oracles.


class Multiplied(nn.Module):
    """What is read along ``dim``, times gates: one loop, one tensor a position."""

    def __init__(self, dim: int, units: dict[int, int], gates: list[Tensor]) -> None:
        super().__init__()
        self.dim, self.units, self.gates = dim, units, gates

    def forward(self, value: Tensor) -> Tensor:
        slices = [
            part * self.gates[0][self.units[i]] if i in self.units else part
            for i, part in enumerate(value.unbind(self.dim))
        ]
        return torch.stack(slices, self.dim)


GatedNetwork = Callable[[tuple[Tensor, ...], Tensor], dict[str, tuple[Tensor, ...]]]


def gated_network(model: nn.Module, tasks: Sequence[Task], inputs: tuple[Tensor, ...]) -> GatedNetwork:
    """``(inputs, gates) -> tensors by task``, with real gates in the graph made for inputs of this shape."""
    structure = analyse(model, inputs, tasks)
    places: dict[tuple[str, int, int], dict[int, int]] = {}
    for group in structure.groups:
        seen = set()
        for consumer in group.consumers:
            if consumer.normalizes or consumer.node in seen:
                continue
            seen.add(consumer.node)
            units = places.setdefault((consumer.node, consumer.arg, consumer.dim), {})
            for unit, positions in enumerate(consumer.index):
                units.update({int(position): group.start + unit for position in positions})
    gates: list[Tensor] = []
    readers: dict[tuple[str, int], list[nn.Module]] = {}
    for (node, arg, dim), units in places.items():
        readers.setdefault((node, arg), []).append(Multiplied(dim, units, gates))
    state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    module = instrumented(structure.capture, readers, {})

    def run(inputs: tuple[Tensor, ...], given: Tensor) -> dict[str, tuple[Tensor, ...]]:
        gates[:] = [given]
        return structure.capture.run(state, inputs, module)

    return run


def naive_gradients(model: nn.Module, entry: Entry, data: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """``[samples, tasks, units]``: every sample by itself, real gates, plain autograd."""
    samples = [tuple(t[n : n + 1] for t in batch) for batch in data for n in range(len(batch[0]))]
    units = analyse(model, data[0], entry.tasks).units
    network = gated_network(model, entry.tasks, samples[0])
    found = []
    for one in samples:
        gates = torch.ones(units, dtype=torch.float64, requires_grad=True)
        outputs = network(one, gates)
        losses = [mean_loss(outputs[task.name], one) for task in entry.tasks]
        rows = [
            torch.autograd.grad(loss, gates, retain_graph=True, allow_unused=True)[0]
            if loss.requires_grad
            else None
            for loss in losses
        ]
        found.append(torch.stack([torch.zeros(units).double() if row is None else row for row in rows]))
    return torch.stack(found)


def check_against_naive(entry: Entry) -> None:
    model = entry.factory(torch.float64)
    data = [entry.inputs(3, torch.float64, seed=1), entry.inputs(2, torch.float64, seed=2)]
    structure = analyse(model, entry.inputs(2, torch.float64), with_loss(entry.tasks))
    gradients = naive_gradients(model, entry, data)
    assert gradients.abs().max() > 1e-6
    expected = {
        Fisher(): gradients.square().mean(0) / 2,
        Taylor(): gradients.abs().mean(0),
        SNIP(): gradients.mean(0).abs(),
    }
    for criterion, wanted in expected.items():
        found = scores(model, structure, criterion, data, to_inputs=as_inputs)
        assert not wanted.masked_fill(structure.reach, 0).any()
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, msg=f"{entry.id}: {criterion}")


@pytest.mark.parametrize("name", AWKWARD)
def test_gradient_criteria_equal_a_loop_over_samples_with_real_gates(name: str) -> None:
    check_against_naive(BY_ID[name])


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(set(ids) - set(AWKWARD)))
def test_gradient_criteria_equal_the_loop_on_the_rest_of_the_zoo(name: str) -> None:
    check_against_naive(BY_ID[name])


class Windows(nn.Module):
    """Shifted-window attention: examples and windows are merged into one dimension and parted again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, 9, 9))
        self.kind, self.dense = nn.Linear(8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(batch, height // 3, 3, width // 3, 3, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, 9, channels)
        q, k, v = self.qkv(y).reshape(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.5 + self.bias).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 9, 8))
        y = y.view(batch, height // 3, width // 3, 3, 3, channels).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(batch, height, width, channels), (1, 1), (1, 2))
        x = x.permute(0, 3, 1, 2)
        return {"kind": self.kind(x.mean((2, 3))), "dense": self.dense(x)}


def test_examples_are_followed_through_windows() -> None:
    entry = Entry("windows", Windows, ((3, 12, 12),), (Task("kind", "kind"), Task("dense", "dense")))
    check_against_naive(entry)
    model = entry.factory()
    found = score(model, analyse(model, entry.inputs(2), entry.tasks), [entry.inputs(3)], Fisher())
    assert found.notes == ()


def test_examples_that_cannot_be_followed_run_one_at_a_time_and_it_is_said() -> None:
    entry = BY_ID["no-rule"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    for criterion in (Fisher(), DiagonalHessian()):
        found = score(model, structure, [entry.inputs(3)], criterion)
        assert len(found.notes) == 1
        assert "one at a time" in found.notes[0]
        assert (found.batches, found.samples) == (1, 3)
    assert score(model, structure, [entry.inputs(3)], SNIP()).notes == ()


@pytest.mark.parametrize("name", ["plain", "dilated-strided", "residual", "dense-concat", "tiny-vit"])
def test_signed_gradient_is_weight_times_weight_gradient(name: str) -> None:
    """An oracle without the exported graph: a gate in front of a layer scales the weights that read it."""
    entry = BY_ID[name]
    model = entry.factory(torch.float64)
    inputs = entry.inputs(4, torch.float64)
    structure = analyse(model, inputs, with_loss(entry.tasks))
    signed = Probe(model, structure, [inputs], to_inputs=as_inputs).average(lambda x: x, per_sample=False)
    for row, task in enumerate(structure.task_objects):
        model.zero_grad()
        mean_loss(task.pick(model(*inputs)), None).backward()
        weights = dict(model.named_parameters())
        for group in structure.groups:
            expected = torch.zeros(group.units, dtype=torch.float64)
            for member in group.members:
                weight = weights.get(member.parameter)
                if weight is None or weight.grad is None or member.dim != 1:
                    continue
                if member.parameter.endswith(".weight"):  # neither class token nor position table
                    share = (weight * weight.grad).detach().movedim(1, 0).flatten(1).sum(1)
                    expected += share[torch.from_numpy(member.index)].sum(1)
            torch.testing.assert_close(signed[row, group.slice], expected, rtol=1e-9, atol=1e-12)


def test_signed_gradient_agrees_with_finite_differences() -> None:
    entry = BY_ID["tiny-vit"]
    model = entry.factory(torch.float64)
    inputs = entry.inputs(2, torch.float64)
    structure = analyse(model, inputs, with_loss(entry.tasks))
    signed = Probe(model, structure, [inputs], to_inputs=as_inputs).average(lambda x: x, per_sample=False)

    network = gated_network(model, entry.tasks, inputs)

    def losses(gates: Tensor) -> Tensor:
        outputs = network(inputs, gates)
        return torch.stack([mean_loss(outputs[task.name], None) for task in entry.tasks]).detach()

    step = 1e-5
    for unit in range(0, structure.units, 6):
        change = torch.zeros(structure.units, dtype=torch.float64)
        change[unit] = step
        slope = (losses(1 + change) - losses(1 - change)) / (2 * step)
        torch.testing.assert_close(signed[:, unit], slope, rtol=1e-5, atol=1e-7)


class Linear3(nn.Module):
    """Two linear layers without anything in between: closing a gate changes the output exactly linearly."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def whole(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Case:
    model: nn.Module
    structure: Structure
    x: Tensor


def linear_case(outputs: int = 3, loss: Callable[[Any, Any], Tensor] | None = None) -> Case:
    model = Linear3(outputs).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    return Case(model, analyse(model, (x,), [Task("only", whole, loss)]), x)


def removal_response(case: Case) -> Tensor:
    """``[units]``: half the mean squared change of the output when the masked twin removes the unit."""
    state = dict(case.model.state_dict())
    dense = case.model(case.x)
    found = []
    for unit in range(case.structure.units):
        keep = torch.ones(case.structure.units, dtype=torch.bool)
        keep[unit] = False
        (without,) = case.structure.capture.run(state, (case.x,), masked_twin(case.structure, keep))["only"]
        found.append((without - dense).square().mean().detach() / 2)
    return torch.stack(found)


def test_label_free_fisher_of_one_output_is_the_squared_response_to_removal() -> None:
    case = linear_case(outputs=1)
    # One output has two sign vectors, and their squares agree: one projection is exact.
    found = scores(case.model, case.structure, Fisher(), [case.x])
    torch.testing.assert_close(found[0], removal_response(case))


def test_label_free_fisher_approaches_the_squared_response_with_projections() -> None:
    case = linear_case()
    exact = removal_response(case)

    def error(projections: int) -> float:
        found = scores(case.model, case.structure, Fisher(), [case.x], projections=projections)
        return float(((found[0] - exact).abs() / exact).max())

    assert error(3000) < 0.1 < error(1)


def test_label_free_hessian_approaches_the_squared_response() -> None:
    case = linear_case()
    found = scores(case.model, case.structure, DiagonalHessian(directions=3000), [case.x])
    exact = removal_response(case)
    torch.testing.assert_close(found[0], exact, rtol=0.1, atol=0.05 * float(exact.max()))


class Apart(nn.Module):
    """Each hidden unit has an output of its own, so that the Hessian by the gates is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 6)
        with torch.no_grad():
            self.head.weight.copy_(torch.diag(torch.arange(1.0, 7.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).tanh())


def test_hessian_is_exact_where_the_hessian_is_diagonal() -> None:
    model = Apart().double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    structure = analyse(model, (x,), [Task("only", whole, lambda output, batch: output.pow(4).sum(1).mean())])

    def loss(gates: Tensor) -> Tensor:
        output = model.head(model.hidden(x).tanh() * gates)
        return output.pow(4).sum(1).mean()

    hessian = torch.autograd.functional.hessian(loss, torch.ones(6, dtype=torch.float64))
    found = scores(model, structure, DiagonalHessian(), [x])
    torch.testing.assert_close(found[0], torch.diagonal(hessian).clamp_min(0) / 2)


@pytest.mark.parametrize("name", ["tiny-vit", "squeeze-excite"])
def test_hessian_approaches_that_of_plain_autograd(name: str) -> None:
    """Through fused attention and hard sigmoid, which torch differentiates once only."""
    entry = BY_ID[name]
    model = entry.factory(torch.float64)
    inputs = entry.inputs(8, torch.float64)
    tasks = with_loss(entry.tasks[:1], lambda output, batch: output.square().sum(1).mean())
    structure = analyse(model, inputs, tasks)
    network = gated_network(model, tasks, inputs)
    step = 1e-6  # small, because ReLU has kinks

    def slope(gates: Tensor) -> Tensor:
        gates = gates.clone().requires_grad_()
        (output,) = network(inputs, gates)[tasks[0].name]
        return torch.autograd.grad(output.square().sum(1).mean(), gates)[0]

    changes = torch.eye(structure.units, dtype=torch.float64) * step
    exact = torch.stack([(slope(1 + each) - slope(1 - each)) @ each / (2 * step**2) for each in changes])

    def error(directions: int) -> float:
        criterion = DiagonalHessian(directions)
        found = scores(model, structure, criterion, [inputs], to_inputs=as_inputs)[0]
        return float((found - exact.clamp_min(0) / 2).norm() / (exact / 2).norm())

    assert error(200) < 0.2 < error(1)


def test_magnitude_is_the_norm_of_what_makes_and_reads_a_unit() -> None:
    case = linear_case()
    made, read = case.model.hidden.weight.detach(), case.model.head.weight.detach()
    one = scores(case.model, case.structure, Magnitude(1), None)[0]
    two = scores(case.model, case.structure, Magnitude(2), None)[0]
    torch.testing.assert_close(one, made.abs().sum(1) + read.abs().sum(0))
    torch.testing.assert_close(two, (made.square().sum(1) + read.square().sum(0)).sqrt())


def test_random_is_drawn_for_each_task_from_the_seed_alone() -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    first, again, other = (scores(model, structure, Random(), None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shared = structure.reach.all(0)
    assert not torch.equal(first[0, shared], first[1, shared])


# Laws.


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("name", ["plain", "tiny-vit"])
def test_the_cut_into_batches_does_not_matter(name: str, labeled: bool) -> None:
    entry = BY_ID[name]
    model = entry.factory(torch.float64)
    tasks = with_loss(entry.tasks) if labeled else entry.tasks
    structure = analyse(model, entry.inputs(2, torch.float64), tasks)
    (x,) = entry.inputs(6, torch.float64, seed=3)
    for criterion in (Fisher(), Taylor(), SNIP()):
        one, *others = (
            scores(model, structure, criterion, x.split(sizes)) for sizes in ([6], [2, 2, 2], [5, 1])
        )
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-13)


def test_another_image_size_is_another_graph_of_the_same_units() -> None:
    entry = BY_ID["plain"]
    model = entry.factory(torch.float64)
    structure = analyse(model, entry.inputs(2, torch.float64), with_loss(entry.tasks))
    found = score(model, structure, [torch.randn(2, 3, 20, 16).double()], Taylor())
    assert found.scores[structure.reach].count_nonzero() > 0.5 * structure.reach.sum()


def test_scaling_one_loss_scales_its_own_scores_only() -> None:
    entry = BY_ID["plain"]
    model = entry.factory(torch.float64)
    inputs = entry.inputs(3, torch.float64)
    quiet = with_loss(entry.tasks)
    loud = (quiet[0], replace(quiet[1], loss=lambda output, batch: 20 * mean_loss(output, batch)), quiet[2])
    for criterion, factor in ((Fisher(), 400.0), (Taylor(), 20.0), (SNIP(), 20.0), (DiagonalHessian(), 20.0)):
        one, other = (
            scores(model, analyse(model, inputs, tasks), criterion, inputs) for tasks in (quiet, loud)
        )
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert one[1].max() > 0
        torch.testing.assert_close(other[1], one[1] * factor, rtol=1e-9, atol=0)


@pytest.mark.parametrize("labeled", [True, False])
def test_a_unit_that_nothing_depends_on_has_no_saliency(labeled: bool) -> None:
    case = linear_case(loss=mean_loss if labeled else None)
    with torch.no_grad():
        case.model.head.weight[:, 2] = 0  # never read
        case.model.hidden.weight[4] = 0  # always zero
        case.model.hidden.bias[4] = 0
    for criterion in DATA_DRIVEN:
        found = scores(case.model, case.structure, criterion, [case.x])[0]
        assert found[[2, 4]].tolist() == [0, 0]
    assert (scores(case.model, case.structure, Fisher(), [case.x])[0][[0, 1, 3, 5]] > 0).all()


@pytest.mark.parametrize("criterion", EVERY, ids=str)
def test_same_seed_same_scores_whatever_the_global_state(criterion: Criterion) -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    loader = DataLoader(TensorDataset(entry.inputs(8)[0]), batch_size=2, shuffle=True)
    torch.manual_seed(1)
    first = scores(model, structure, criterion, loader, seed=5)
    torch.manual_seed(2)
    assert torch.equal(scores(model, structure, criterion, loader, seed=5), first)
    if criterion != Magnitude():
        assert not torch.equal(scores(model, structure, criterion, loader, seed=6), first)


@pytest.mark.parametrize("entry", ZOO[::9], ids=ids[::9])
def test_scores_are_finite_non_negative_and_zero_outside_reach(entry: Entry) -> None:
    model = entry.factory()
    structure = analyse(model, entry.inputs(2), entry.tasks)
    for criterion in EVERY:
        found = score(model, structure, [entry.inputs(2)], criterion, to_inputs=as_inputs)
        assert found.scores.dtype == torch.float64
        assert found.scores.shape == structure.reach.shape
        assert found.scores.isfinite().all()
        assert (found.scores >= 0).all()
        assert not found.scores[~structure.reach].any()
        assert found.tasks == structure.tasks


def test_half_precision_models_are_scored_much_like_single_precision_ones() -> None:
    entry = BY_ID["mlp"]
    model = entry.factory()
    found = []
    for each in (model, copy.deepcopy(model).to(torch.bfloat16)):
        dtype = next(each.parameters()).dtype
        structure = analyse(each, entry.inputs(4, dtype), with_loss(entry.tasks))
        found.append(scores(each, structure, Taylor(), entry.inputs(16)))
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0.05 * float(found[0].max()))


# Nothing is touched.


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {
            name: (id(tensor), tensor.detach().numpy().tobytes(), tensor.requires_grad, tensor._version)
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
            for name, p in model.named_parameters()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "grad mode": torch.is_grad_enabled(),
    }


def restless_loss(picked: Any, batch: Any) -> Tensor:
    random.random()
    np.random.rand()  # noqa: NPY002
    return mean_loss(picked, batch) * torch.rand(())


@pytest.mark.parametrize("criterion", EVERY, ids=str)
@pytest.mark.parametrize("labeled", [True, False])
def test_the_model_and_the_random_states_are_left_as_found(criterion: Criterion, labeled: bool) -> None:
    entry = BY_ID["frozen-branch"]
    model = entry.factory()
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    sum(leaf.sum() for leaf in tensor_leaves(model(*entry.inputs(2)))).backward()
    structure = analyse(
        model, entry.inputs(2), with_loss(entry.tasks, restless_loss) if labeled else entry.tasks
    )
    loader = DataLoader(TensorDataset(entry.inputs(5)[0]), batch_size=2, shuffle=True)
    before = snapshot(model)
    with torch.no_grad():
        found = score(model, structure, loader, criterion)
    assert snapshot(model) == before
    assert found.scores.max() > 0


def test_the_model_is_left_as_found_when_a_loss_fails_half_way() -> None:
    entry = BY_ID["plain"]
    model = entry.factory().train()
    tasks = (
        *with_loss(entry.tasks[:2]),
        replace(entry.tasks[2], loss=lambda output, batch: output.mean() / 0),
    )
    structure = analyse(model, entry.inputs(2), tasks)
    before = snapshot(model)
    with pytest.raises(TaskError, match=r"'edge': its loss is (inf|-inf|nan)"):
        score(model, structure, [entry.inputs(2)], Fisher())
    assert snapshot(model) == before


def test_random_states_between_two_yields_are_the_callers_own() -> None:
    case = linear_case()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    stream = Probe(case.model, case.structure, [case.x, case.x, case.x]).gate_gradients()
    assert torch.equal(torch.cat([torch.rand(1) for _ in stream]), expected)


# Criteria of one's own.


def first_order_rise(probe: Probe) -> Tensor:
    """The predicted rise of the loss when the gate closes: minus the gradient, where that is a rise."""
    return probe.average(lambda gradients: -gradients, per_sample=False).clamp_min(0)


def test_any_callable_is_a_criterion() -> None:
    case = linear_case(loss=mean_loss)
    found = score(case.model, case.structure, [case.x, case.x], first_order_rise)
    assert isinstance(found, Saliency)
    assert found.criterion == "first_order_rise"
    assert (found.batches, found.samples) == (2, 10)
    assert found.scores.any()


def test_a_criterion_is_named_with_its_settings() -> None:
    case = linear_case()
    assert score(case.model, case.structure, criterion=Magnitude(1)).criterion == "Magnitude(p=1)"
    assert score(case.model, case.structure, [case.x], Fisher()).criterion == "Fisher()"


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda probe: torch.ones(3), r"torch.float32 \[3\], expected floating point .* = \[1, 6\]"),
        (lambda probe: torch.ones(1, 6, dtype=torch.int64), r"torch.int64 \[1, 6\]"),
        (lambda probe: [1.0], "list, expected"),
        (lambda probe: -torch.ones(1, 6), r"6 values .* -1\.0 for task 'only', unit 0 of 'hidden'"),
        (lambda probe: torch.full((1, 6), torch.nan), "6 values that are not finite"),
    ],
)
def test_what_is_no_saliency_is_refused(made: Callable[[Probe], Any], found: str) -> None:
    case = linear_case()
    with pytest.raises(PlanError, match=found):
        score(case.model, case.structure, criterion=made)


def test_settings_that_make_no_sense_are_refused() -> None:
    case = linear_case()
    with pytest.raises(ValueError, match="projections=0"):
        score(case.model, case.structure, [case.x], Fisher(), projections=0)
    with pytest.raises(ValueError, match="directions=0"):
        DiagonalHessian(directions=0)
    with pytest.raises(ValueError, match="p=3"):
        Magnitude(3)


# Data.


def test_data_is_read_up_to_max_batches_and_labels_reach_the_loss() -> None:
    seen = []

    def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        seen.append(batch["target"].dtype)
        return (output - batch["target"]).square().mean()

    case = linear_case(loss=loss)
    batch = {"x": torch.randn(4, 4), "target": torch.randn(4, 3)}  # the model is in double precision
    endless: Iterator[dict[str, Tensor]] = iter(lambda: batch, None)
    found = score(case.model, case.structure, endless, Fisher(), max_batches=3)
    assert (found.batches, found.samples) == (3, 12)
    assert seen == [torch.float64] * 3


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    case = linear_case()
    score(case.model, case.structure, [case.x], Fisher(), progress=True)
    assert capsys.readouterr() == ("", "")


def refuse(
    exception: type[DisparseError], text: str, data: Any, loss: Any = mean_loss, **options: Any
) -> None:
    case = linear_case(loss=loss)
    before = snapshot(case.model)
    with pytest.raises(exception, match=text):
        score(case.model, case.structure, data, options.pop("criterion", Fisher()), **options)
    assert snapshot(case.model) == before


GOOD = torch.randn(5, 4)


@pytest.mark.parametrize("criterion", DATA_DRIVEN, ids=str)
def test_no_data_is_named(criterion: Criterion) -> None:
    refuse(BatchError, r"needs data, and none was given. Pass data=", None, criterion=criterion)
    refuse(BatchError, "yields no batch", [], criterion=criterion)


def test_a_batch_that_the_model_refuses_is_named_with_its_shape() -> None:
    refuse(BatchError, r"Linear3 refuses a batch with inputs \(5, 7\) .*torch.export", [torch.randn(5, 7)])
    refuse(BatchError, r"Linear3 refuses .*\(5, 4\) torch.int64", [torch.ones(5, 4, dtype=torch.int64)])
    refuse(BatchError, "does not fit Linear3.forward: too many", [((GOOD, GOOD), GOOD)])
    refuse(BatchError, "to_inputs= returned a Tensor", [GOOD], to_inputs=lambda batch: batch)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda output, batch: output, r"'only': its loss returned torch.float64 \(5, 3\); expected"),
        (lambda output, batch: 3.0, "'only': its loss returned float; expected"),
        (lambda output, batch: output.mean() * torch.nan, "'only': its loss is nan"),
        (lambda output, batch: output.detach().mean(), "'only': its loss does not depend on its output"),
        (lambda output, batch: {}["y"], "'only': its loss raised .*Error: .* on outputs"),
    ],
)
def test_a_loss_that_is_none_is_named(loss: Callable[[Any, Any], Any], text: str) -> None:
    refuse(TaskError, text, [GOOD], loss)
    refuse(TaskError, text, [GOOD], loss, criterion=DiagonalHessian())


class RootInside(nn.Module):
    """The gradient of a square root at zero is infinite; the loss is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.second(self.first(x))
        return {"good": self.head(h), "bad": self.head((h - h).sqrt())}


def test_a_gradient_that_is_not_finite_names_task_and_layer() -> None:
    model = RootInside().eval()
    x = torch.randn(3, 4)
    structure = analyse(model, (x,), [Task("good", "good"), Task("bad", "bad")])
    before = snapshot(model)
    with pytest.raises(GradientError, match="task 'bad': the gradient at the input of layer 'second' is NaN"):
        score(model, structure, [x], Fisher())
    with pytest.raises(GradientError, match="task 'bad': a second derivative is NaN or infinite"):
        score(model, structure, [x], DiagonalHessian())
    assert snapshot(model) == before


def test_an_output_that_cannot_be_differentiated_is_named() -> None:
    model = Linear3().eval()
    tasks = [Task("only", whole), Task("best", lambda output: output.argmax(1))]
    structure = analyse(model, (GOOD,), tasks)
    with pytest.raises(TaskError, match=r"'best' has no loss, and its output \['torch.int64'\] cannot"):
        score(model, structure, [GOOD], Fisher())


def test_a_structure_of_another_model_is_refused() -> None:
    case = linear_case()
    with pytest.raises(PlanError, match=r"'head.weight' has shape \(5, 6\), not \(3, 6\)"):
        score(linear_case(outputs=5).model, case.structure, criterion=Magnitude())
    with pytest.raises(PlanError, match=r"'hidden.weight' is missing"):
        score(nn.Linear(4, 6), case.structure, criterion=Magnitude())


def test_what_a_selector_picks_reaches_the_loss_as_the_model_returns_it() -> None:
    entry = BY_ID["nested-output"]
    model = entry.factory()
    kinds = []

    def loss(picked: Any, batch: Any) -> Tensor:
        kinds.append(pytree.tree_structure(picked))
        return mean_loss(picked, batch)

    output = model(*entry.inputs(2))
    structure = analyse(model, entry.inputs(2), with_loss(entry.tasks, loss))
    score(model, structure, [entry.inputs(2)], Fisher(), to_inputs=as_inputs)
    assert kinds == [pytree.tree_structure(task.pick(output)) for task in entry.tasks]
    assert len(set(map(str, kinds))) > 1


class Box:
    def __init__(self, **content: Any) -> None:
        vars(self).update(content)


class Boxed(Linear3):
    def forward(self, x: Tensor) -> Box:
        hidden = self.hidden(x)
        return Box(
            flat=Box(logits=self.head(hidden)), nested=Box(logits=self.head(hidden), more=Box(x=hidden))
        )


def test_plain_objects_reach_the_loss_but_not_objects_within_them() -> None:
    model = Boxed().double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(picked: Box, batch: Tensor) -> Tensor:
        return mean_loss(picked.logits, batch)

    found = [
        scores(model, analyse(model, (x,), [task]), Fisher(), [x])
        for task in (Task("only", "flat", loss), Task("only", "flat.logits", mean_loss))
    ]
    assert torch.equal(*found)
    structure = analyse(model, (x,), [Task("deep", "nested", loss)])
    with pytest.raises(
        TaskError, match=r"'deep': its selector picks a Box that holds a Box; .* point further in"
    ):
        score(model, structure, [x], Fisher())


class NeedsTwo(Linear3):
    """Refuses a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ValueError("at least two")
        return super().forward(x)


def test_a_model_that_takes_no_batch_of_one_is_scored() -> None:
    model = NeedsTwo().eval()
    structure = analyse(model, (GOOD,), [Task("only", whole, mean_loss)])
    assert (score(model, structure, [GOOD], Fisher()).scores > 0).all()
    with pytest.raises(BatchError, match=r"NeedsTwo refuses .*\(1, 4\).*at least two"):
        score(model, structure, [GOOD, GOOD[:1]], Fisher())


def test_gates_of_units_that_are_off_say_what_switching_them_on_would_do() -> None:
    """Against finite differences of the masked twin's own loss, for units on and off."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Conv2d(5, 2, 1)
    ).double()
    data = [torch.randn(4, 3, 8, 8, dtype=torch.float64)]
    task = Task("all", lambda output: output, lambda output, batch: output.square().mean())
    structure = analyse(model, (data[0],), [task])
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[::3] = False
    found = score(model, structure, data, SNIP(), keep=keep).scores[0]
    group = {unit: g for g in structure.groups for unit in range(g.start, g.slice.stop)}
    readers = {"0": model[2], "2": model[4]}
    weights = {name: module.weight.detach().clone() for name, module in readers.items()}

    def loss(gates: torch.Tensor) -> float:
        with torch.no_grad():
            for unit, gate in enumerate(gates):
                owner = group[unit].name
                reader = readers[owner.split(".")[0]]
                column = unit - group[unit].start
                reader.weight[:, column] = gate * weights[owner.split(".")[0]][:, column]
            value = float(model(data[0]).square().mean())
            for name, module in readers.items():
                module.weight.copy_(weights[name])
        return value

    step = 1e-6
    for unit in range(structure.units):
        up, down = keep.double(), keep.double()
        up[unit] += step
        down[unit] -= step
        slope = (loss(up) - loss(down)) / (2 * step)
        assert float(found[unit]) == pytest.approx(abs(slope), rel=1e-5, abs=1e-10)


def test_a_mask_of_another_size_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    data = [torch.randn(3, 4)]
    structure = analyse(model, (data[0],), [Task("all", lambda output: output)])
    with pytest.raises(PlanError, match=r"expected torch.bool \[6\]"):
        score(model, structure, data, SNIP(), keep=torch.ones(5, dtype=torch.bool))
