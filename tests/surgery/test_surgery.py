"""Applying a plan: all or nothing, verified, and a module whose numbers are all right afterwards."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from disparse_structured.decision.plan import GroupPlan, Plan, Provenance
from disparse_structured.errors import PlanError, VerificationError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Form, Structure, analyse
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import Applied, apply
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.tasks import Task
from tests.support.plans import case, deviation, random_keep, random_plan, snapshot
from tests.support.zoo import BY_ID, ids

WHOLE = (Task("out", lambda output: output),)
TABLE = [0.1 * width for width in range(20)]


# Networks whose forward cannot follow.


class Stubborn(nn.Module):
    """Three hidden layers; the second is wrapped in something that pruning cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.out = nn.Linear(8, 2)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.third(self.middle(x))))


class ScaledByWidth(Stubborn):
    """A scale that ``forward`` computes from the width in a way that leaves no trace in the graph."""

    def middle(self, x: Tensor) -> Tensor:
        return x * (1.0 / x.shape[1])


class AssertsWidth(Stubborn):
    def middle(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 10, "ten channels, please"
        return x


class BranchesOnWidth(Stubborn):
    def middle(self, x: Tensor) -> Tensor:
        return x if x.shape[1] >= 10 else -x


class LooksUpWidth(Stubborn):
    """A number from a table outside the module, at the place of the width."""

    def middle(self, x: Tensor) -> Tensor:
        return x + TABLE[x.shape[1]]


STUBBORN: list[tuple[type[Stubborn], str]] = [
    (ScaledByWidth, "task 'out' deviates from the masked twin by"),
    (AssertsWidth, "AssertionError: ten channels, please"),
    (BranchesOnWidth, "task 'out' deviates from the masked twin by"),
    (LooksUpWidth, "task 'out' deviates from the masked twin by"),
]


def subject(model: nn.Module) -> tuple[nn.Module, Structure, Plan]:
    model = model.eval()
    structure = analyse(model, (torch.randn(2, 6),), WHOLE)
    return model, structure, random_plan(structure, 0, 0.5)


@pytest.mark.parametrize(("kind", "reason"), STUBBORN, ids=lambda value: getattr(value, "__name__", None))
def test_a_group_that_forward_cannot_follow_is_named_and_left_alone(
    kind: type[Stubborn], reason: str
) -> None:
    model, structure, plan = subject(kind())
    assert set(plan.removals) == {"first", "second", "third"}
    before = snapshot(model)

    done = apply(model, plan, structure)

    assert [refusal.group for refusal in done.refused] == ["second"]
    assert done.refused[0].reason.startswith(reason)
    assert done.plan.removals == {name: plan.removals[name] for name in ("first", "third")}
    assert done.plan.costs["parameters"].after == sum(p.numel() for p in done.model.parameters())
    assert (done.model.first.out_features, done.model.second.out_features) == (6, 10)
    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= done.verification.tolerance
    assert snapshot(model) == before


def test_two_groups_that_cannot_follow_are_both_named() -> None:
    class Twice(ScaledByWidth):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            x = torch.tanh(self.second(x * (1.0 / x.shape[1])))
            return self.out(torch.tanh(self.third(self.middle(x))))

    model, structure, plan = subject(Twice())

    done = apply(model, plan, structure)

    assert {refusal.group for refusal in done.refused} == {"first", "second"}
    assert set(done.plan.removals) == {"third"}


def test_groups_bound_to_a_refused_one_are_left_alone_with_it() -> None:
    class Bound(nn.Module):
        """Heads are bound to the width, and a scale to the width too."""

        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 4
            self.embed, self.qkv = nn.Linear(6, 16), nn.Linear(16, 48)
            self.proj, self.hidden, self.out = nn.Linear(16, 16), nn.Linear(16, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            batch, tokens, width = x.shape
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
            y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
            x = x * (1.0 / width) + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
            return self.out(torch.tanh(self.hidden(x)))

    model = Bound().eval()
    structure = analyse(model, (torch.randn(2, 5, 6),), WHOLE)
    assert structure.constraints

    done = apply(model, random_plan(structure, 0, 0.5), structure)

    assert {refusal.group for refusal in done.refused} == {"embed", "qkv"}
    assert set(done.plan.removals) == {"hidden"}
    assert done.model.num_heads == 4
    assert done.model.embed.out_features == 16


class Noisy(nn.Module):
    """Draws random numbers in eval mode: nothing can be verified about it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.hidden(x), 0.5, training=True))


def test_a_model_that_is_not_repeatable_is_refused_and_stays() -> None:
    model, structure, plan = subject(Noisy())
    before = snapshot(model)

    with pytest.raises(VerificationError, match=r"does not agree with its own exported graph.*verify=False"):
        apply(model, plan, structure)
    assert snapshot(model) == before


# Plans that do not fit.


def tampered(plan: Plan, **changes: object) -> Plan:
    first, *rest = plan.groups
    return dataclasses.replace(plan, groups=(dataclasses.replace(first, **changes), *rest))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: tampered(plan, removed=(0, 12)), r"group 'first': unit 12 is out of range.* 0 to 11"),
        (lambda plan: tampered(plan, removed=(-1,)), "unit -1 is out of range"),
        (lambda plan: tampered(plan, removed=(3, 3)), "unit 3 is listed twice"),
        (lambda plan: tampered(plan, removed=tuple(range(12))), "all 12 units would be removed"),
        (lambda plan: tampered(plan, units=13), "the plan says 13 units, this model has 12"),
        (lambda plan: tampered(plan, name="frist"), r"no channel group 'frist'\. Did you mean 'first'"),
        (lambda plan: dataclasses.replace(plan, fingerprint="0" * 64), "made for another model"),
        (lambda plan: dataclasses.replace(plan, schema=99), "schema version 99"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: Callable[[Plan], Plan], says: str) -> None:
    model, structure, plan = subject(ScaledByWidth())
    before = snapshot(model)

    with pytest.raises(PlanError, match=says):
        apply(model, change(plan), structure)
    assert snapshot(model) == before


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("width", [9, 15])
def test_another_model_than_the_one_analysed_is_refused(width: int, verify: bool) -> None:
    _, structure, plan = subject(ScaledByWidth())
    other = ScaledByWidth()
    other.first, other.second = nn.Linear(6, width), nn.Linear(width, 10)
    before = snapshot(other)

    with pytest.raises(
        PlanError, match=rf"'first.weight' has shape \({width}, 6\), not \(12, 6\)\. Call analyse"
    ):
        apply(other, plan, structure, verify=verify)
    assert snapshot(other) == before


def test_a_plan_is_not_applied_twice() -> None:
    animal = case("plain")
    plan = random_plan(animal.structure, 0)
    once = apply(animal.model, plan, animal.structure).model

    with pytest.raises(PlanError, match=r"the structure does not describe this model.*has shape"):
        apply(once, plan, animal.structure)


# Plan.without.


def test_without_leaves_named_groups_whole_and_keeps_the_rest_of_the_plan() -> None:
    structure = case("private-branches").structure
    keep = random_keep(structure, 0)
    made_by = Provenance(criterion="hand", seed=3)
    votes = keep.expand(2, -1)
    plan = Plan.from_keep(structure, keep, votes=votes, budget=(("macs", 0.5),), provenance=made_by)

    rest = plan.without(structure, ["left.0.0"])

    assert rest.removals == {name: gone for name, gone in plan.removals.items() if name != "left.0.0"}
    assert [group.votes for group in rest.groups] == [group.votes for group in plan.groups]
    assert (rest.budget, rest.provenance, rest.tasks) == (plan.budget, plan.provenance, plan.tasks)
    kept = rest.keep(structure)
    assert rest.costs["macs"].before == plan.costs["macs"].before
    assert rest.costs["macs"].after == structure.cost.macs.total(kept) > plan.costs["macs"].after
    assert (
        rest.costs["parameters"].after
        == structure.cost.parameters.total(kept)
        > plan.costs["parameters"].after
    )
    assert plan.without(structure, []) == plan


def test_without_follows_count_constraints() -> None:
    structure = case("heads-bound-to-width").structure
    plan = random_plan(structure, 0)
    assert set(plan.removals) == {"trunk.embed", "trunk.qkv", "dense.0"}

    assert set(plan.without(structure, ["trunk.qkv"]).removals) == {"dense.0"}


def test_without_an_unknown_group_is_refused() -> None:
    structure = case("plain").structure
    with pytest.raises(PlanError, match=r"no channel group 'trunk\.0\.1'\. Did you mean"):
        random_plan(structure, 0).without(structure, ["trunk.0.1"])


# Options.


def test_without_verification_there_is_nothing_to_report() -> None:
    animal = case("plain")
    plan = random_plan(animal.structure, 0)
    done = apply(animal.model, plan, animal.structure, verify=False)

    assert done == Applied(done.model, plan, None, ())
    assert deviation(animal.outputs(done.model), animal.twin(plan.keep(animal.structure))) <= 1e-9


def test_what_is_tied_stays_tied() -> None:
    animal = case("tied-convolutions")
    plan = random_plan(animal.structure, 0)

    done = apply(animal.model, plan, animal.structure)

    assert done.model.trunk.right.weight is done.model.trunk.left.weight
    assert deviation(animal.outputs(done.model), animal.twin(plan.keep(animal.structure))) <= 1e-9


def test_the_model_is_as_it_was_when_verification_fails() -> None:
    model, structure, plan = subject(Noisy())
    before = snapshot(model)
    with pytest.raises(VerificationError):
        apply(model, plan, structure)
    assert snapshot(model) == before


@pytest.mark.parametrize("form", ["module", "graph"])
def test_the_structure_says_which_form_is_pruned(form: Form) -> None:
    entry = BY_ID["plain"]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks, form=form)
    plan = random_plan(structure, 0)
    before = snapshot(model)

    done = apply(model, plan, structure)

    assert isinstance(done.model, PrunedGraph if form == "graph" else type(model))
    assert (done.plan, done.refused) == (plan, ())
    assert done.verification is not None
    assert apply(model, plan, structure, verify=False).verification is None
    assert snapshot(model) == before


def test_the_copy_shares_nothing_with_the_model() -> None:
    animal = case("residual")
    done = apply(animal.model, random_plan(animal.structure, 0), animal.structure)
    before = snapshot(animal.model)
    with torch.no_grad():
        for tensor in (*done.model.parameters(), *done.model.buffers()):
            tensor.fill_(1)

    assert snapshot(animal.model) == before


# A forward that computes in float32, whatever the model's own precision.


class Float32Inside(nn.Module):
    """Every unit is there twice; ``total``, over those that are kept, is made or rounded in float32."""

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.total = total
        self.hidden, self.out = nn.Linear(64, 128, bias=False), nn.Linear(1, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(64).repeat(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.total(self.hidden(x)).to(x.dtype))


TOTALS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounds": lambda hidden: hidden.sum(-1, keepdim=True).float(),
    "sums": lambda hidden: hidden.sum(-1, keepdim=True, dtype=torch.float32),
    "multiplies by a tensor of torch's default type": lambda hidden: (
        hidden.float().sum(-1, keepdim=True) @ torch.eye(1)
    ),
}


def halfway(total: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Structure, Plan]:
    """With sums halfway between two numbers of float32, where the order of the terms decides."""
    model = Float32Inside(total).double().eval()
    x = torch.randn(256, 64, dtype=torch.float64)
    x[:, -1] = 1 + 2**-24 - x[:, :-1].sum(-1)
    structure = analyse(model, (x,), WHOLE)
    once = torch.rand(64) < 0.5
    return model, structure, Plan.from_keep(structure, torch.cat([once, ~once]))


@pytest.mark.parametrize("total", TOTALS.values(), ids=TOTALS)
def test_what_computes_in_float32_is_verified_in_float64(total: Callable[[Tensor], Tensor]) -> None:
    model, structure, plan = halfway(total)

    done = apply(model, plan, structure)

    assert done.refused == ()
    graph = apply_graph(model, plan, structure)
    for verification in (done.verification, graph.verification):
        assert verification is not None
        assert verification.dtype == "torch.float64"
        assert max(verification.deviation.values()) <= 1e-12
    assert torch.get_default_dtype() is torch.float32


# Afterwards.


def memory(model: nn.Module) -> set[int]:
    tensors = named_tensors(model)[0].values()
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


@pytest.mark.parametrize("id", ids)
def test_result_is_verified_and_the_model_is_bit_identical(id: str) -> None:
    entry = BY_ID[id]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    before, state = snapshot(model), torch.get_rng_state()
    plan = random_plan(structure, 0)

    done = apply(model, plan, structure)

    assert snapshot(model) == before
    assert memory(model).isdisjoint(memory(done.model))
    assert torch.equal(torch.get_rng_state(), state)
    assert (done.refused, done.plan) == ((), plan)
    assert done.verification is not None
    assert (done.verification.dtype, done.verification.tolerance) == ("torch.float64", 1e-9)
    assert set(done.verification.deviation) == set(structure.tasks)
    assert max(done.verification.deviation.values()) <= 1e-9
    assert {p.dtype for p in done.model.parameters()} == {torch.float32}
    numbers_are_right(done.model)
    assert kinds_of_integers(done.model) == kinds_of_integers(model)


def numbers_are_right(model: nn.Module) -> None:
    """What every layer says of itself, and so what ``print(model)`` shows, is what its tensors are."""
    for name, layer in model.named_modules():
        shape = tuple(layer.weight.shape) if isinstance(getattr(layer, "weight", None), Tensor) else ()
        if isinstance(layer, _ConvNd):
            first, second = shape[:2]
            sizes = (second * layer.groups, first) if not layer.transposed else (first, second * layer.groups)
            assert (layer.in_channels, layer.out_channels) == sizes, name
            assert f"({sizes[0]}, {sizes[1]}, " in repr(layer).replace("Conv2d(", "(").replace("d(", "(")
            assert layer.bias is None or layer.bias.shape == (layer.out_channels,), name
        elif isinstance(layer, nn.Linear):
            assert (layer.out_features, layer.in_features) == shape, name
            assert f"in_features={shape[1]}, out_features={shape[0]}" in repr(layer)
            assert layer.bias is None or layer.bias.shape == shape[:1], name
        elif isinstance(layer, _NormBase):
            sizes = {t.numel() for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                     if t is not None}  # fmt: skip
            assert sizes <= {layer.num_features}, name
        elif isinstance(layer, nn.LayerNorm):
            assert layer.normalized_shape == shape, name
        elif isinstance(layer, nn.GroupNorm):
            assert layer.num_channels % layer.num_groups == 0, name
            assert shape in ((), (layer.num_channels,)), name
        elif isinstance(layer, nn.PReLU):
            assert shape == (layer.num_parameters,), name


def kinds_of_integers(model: nn.Module) -> dict[str, type]:
    return {
        f"{path}.{name}": type(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | tuple | list)
    }


@pytest.mark.parametrize("id", ids)
def test_result_is_an_ordinary_module(id: str) -> None:
    """Copies, saves, loads, keeps its flags and ties, and learns."""
    animal = case(id)
    keep = random_keep(animal.structure, 1)
    pruned = animal.pruned(keep)
    outputs = animal.outputs(pruned)

    assert flags(pruned) == flags(animal.model)
    assert ties(pruned) == ties(animal.model)
    copied = copy.deepcopy(pruned)
    assert deviation(animal.outputs(copied), outputs) == 0
    for tensor in named_tensors(copied)[0].values():
        tensor.data.zero_()
    copied.load_state_dict(pruned.state_dict(), strict=True)
    assert deviation(animal.outputs(copied), outputs) == 0
    assert deviation(animal.outputs(pruned), outputs) == 0
    learns(pruned, animal.inputs, animal.structure.task_objects)


def flags(model: nn.Module) -> dict[str, tuple[bool, torch.dtype]]:
    return {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters(remove_duplicate=False)}


def ties(model: nn.Module) -> set[frozenset[str]]:
    by_object: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_object.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in by_object.values()}


def learns(model: nn.Module, inputs: tuple[Tensor, ...], tasks: Iterable[Task]) -> None:
    """A small step down the gradient, in train mode, lowers the loss."""
    model = copy.deepcopy(model).train()

    def loss() -> Tensor:
        torch.manual_seed(0)
        output = model(*inputs)
        return sum((tensor - 0.3).square().mean() for task in tasks for tensor in task.tensors(output))

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = loss()
    before.backward()
    slope = sum(p.grad.square().sum() for p in parameters if p.grad is not None)
    optimizer = torch.optim.SGD(parameters, lr=float(1e-4 * before.detach() / slope))
    optimizer.step()
    with torch.no_grad():
        assert loss() < before


@pytest.mark.parametrize(
    "id",
    [
        "depthwise-multiplier-2", "grouped-chain-2-3", "transposed-grouped", "instancenorm-affine",
        "groupnorm",
        "tied-convolutions", "dense-concat", "channel-shuffle", "unequal-split", "two-batchnorms",
        "maxpool-flatten", "tiny-vit", "heads-bound-to-width", "position-bias-heads", "tied-transpose",
    ],
)  # fmt: skip
def test_result_can_be_analysed_and_pruned_again(id: str) -> None:
    entry = BY_ID[id]
    model = entry.factory()
    structure = analyse(model, entry.inputs(), entry.tasks)
    once = apply(model, random_plan(structure, 0, 0.7), structure).model
    again = analyse(once, entry.inputs(), entry.tasks)
    total = torch.ones(again.units, dtype=torch.bool)

    assert again.cost.parameters.total(total) == sum(p.numel() for p in once.parameters())
    assert again.groups
    done = apply(once, random_plan(again, 1, 0.6), again)

    assert done.refused == ()
    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= 1e-9
    numbers_are_right(done.model)
    assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in once.parameters())


def test_memory_format_is_kept() -> None:
    entry = BY_ID["residual"]
    model = entry.factory().to(memory_format=torch.channels_last)
    structure = analyse(model, entry.inputs(), entry.tasks)

    done = apply(model, random_plan(structure, 0), structure)

    convolutions = [
        m.weight for m in done.model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert convolutions
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_modes_and_gradients_are_those_of_the_model() -> None:
    entry = BY_ID["private-branches"]
    model = entry.factory().train()
    model.left.eval()
    structure = analyse(model, entry.inputs(), entry.tasks)

    done = apply(model, random_plan(structure, 0), structure)

    assert {name: m.training for name, m in done.model.named_modules()} == {
        name: m.training for name, m in model.named_modules()
    }


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_what_is_left_of_a_normalized_weight_keeps_its_value(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), norm(nn.Linear(8, 10)), nn.ReLU(),
        nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 2),
    ).eval()  # fmt: skip
    structure = analyse(model, (torch.randn(2, 6),), WHOLE)
    plan = random_plan(structure, 0)

    done = apply(model, plan, structure)

    rows = plan.keep(structure)[structure.group("2").slice]
    columns = plan.keep(structure)[structure.group("0").slice]
    assert 0 < len(done.model[2].weight) < 10
    assert torch.allclose(done.model[2].weight, model[2].weight[rows][:, columns])


def test_a_normalized_layer_that_runs_twice_keeps_its_value() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(10, 2)
            self.shared = nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(self.shared(x.relu()).relu() + self.shared((-x).relu()).relu())

    torch.manual_seed(0)
    model = Twice().eval()
    structure = analyse(model, (torch.randn(2, 6),), WHOLE)
    plan = random_plan(structure, 0)

    done = apply(model, plan, structure)

    keep = plan.keep(structure)
    rows, columns = keep[structure.group("shared").slice], keep[structure.group("first").slice]
    assert 0 < int(columns.sum()) < 8
    assert done.refused == ()
    assert torch.allclose(done.model.shared.weight, model.shared.weight[rows][:, columns])


def test_a_refused_group_is_data_of_the_plan() -> None:
    """The plan that was carried out can be written and read like any other."""
    model, structure, plan = subject(ScaledByWidth())
    done = apply(model, plan, structure)

    assert Plan.from_json(done.plan.to_json()) == done.plan
    entry = next(group for group in done.plan.groups if group.name == "second")
    assert entry == GroupPlan("second", "channel", 10, ("out",), ())
