"""The pruned exported graph: right on every network of the zoo, and where a ``forward`` cannot follow."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError, PlanError, VerificationError
from disparse_structured.export import export_onnx
from disparse_structured.graph.operators import OPERATORS
from disparse_structured.pipeline import DiSparse, prune
from disparse_structured.refit import LeastSquares
from disparse_structured.structure import analyse, resizing
from disparse_structured.structure.labels import Axis
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import apply
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.tasks import Task
from tests.support.plans import Case, case, deviation, random_keep, random_plan, snapshot
from tests.support.zoo import BY_ID, Entry, ids, named

aten = torch.ops.aten
EXACT = 1e-9
Corruption = Callable[[pytest.MonkeyPatch], None]


class HardCodedHeads(nn.Module):
    """Attention whose ``forward`` spells out heads, head dimension and width as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(6, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.pooled, self.dense = nn.Linear(12, 5), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x)
        qkv = (
            self.qkv(F.layer_norm(x, (12,), self.norm.weight, self.norm.bias))
            .view(-1, 7, 3, 4, 3)
            .permute(2, 0, 3, 1, 4)
        )
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(y.transpose(1, 2).reshape(-1, 7, 12))
        return {"pooled": self.pooled(x.mean(1)), "dense": self.dense(x)}


class HardCodedPieces(nn.Module):
    """Widths of pieces, of a bound, of a number of groups and of zeros, all spelt out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.body, self.shift = nn.Conv2d(12, 10, 1), nn.Parameter(torch.randn(1, 1, 1))
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        x = F.conv2d(x, self.depthwise.weight, self.depthwise.bias, padding=1, groups=12)
        left, right = torch.split(x, [4, 8], 1)
        body = F.gelu(self.body(x)) * self.shift.expand(10, 1, 1)
        extra = torch.cat([right, body[:, :5]], 1)
        return {"left": self.left(left), "right": self.right(extra) + self.right(extra.narrow(1, 0, 13))}


class Watchful(nn.Module):
    """Its ``forward`` looks at a width, and stops where it is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.left, self.right = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        if x.shape[1] != 8:
            raise RuntimeError("eight channels were agreed upon")
        x = F.relu(self.body(x))
        return {"left": self.left(x), "right": self.right(x)}


class Baggage(nn.Module):
    """A dict for an input, one layer under two names, an unsaved buffer, constants, an idle weight."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.again = self.stem[1]
        self.idle = nn.Linear(3, 3)
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.constant = torch.tensor([0.5, 2.0])
        self.left, self.right = nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, batch: dict[str, Tensor], times: int) -> dict[str, Tensor]:
        x = self.again(torch.relu(self.stem[1](torch.relu(self.stem[0](batch["x"]))))) * self.scale * times
        return {"left": self.left(x) * self.constant, "right": self.right(x) + batch["shift"].mean()}


class FixedBatch(nn.Module):
    """Each example of the batch has a place of its own in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 1)
        self.table = nn.Parameter(torch.randn(2, 1, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.tanh(self.stem(x)) + self.table
        return {"left": self.left(x), "right": self.right(x)}


HARD_CODED = {
    "heads": Entry("heads", HardCodedHeads, ((7, 6),), named("pooled", "dense"), statistics=True),
    "pieces": Entry("pieces", HardCodedPieces, ((3, 6, 6),), named("left", "right")),
}
WATCHFUL = Entry("watchful", Watchful, ((3, 6, 6),), named("left", "right"))
FIXED_BATCH = Entry("fixed-batch", FixedBatch, ((7, 6),), named("left", "right"))
SAMPLE = ("depthwise-separable", "multihead-attention", "tied-convolutions", "nested-output", "unequal-split")
"""Networks for what needs not be tried on all."""


def subject(entry: Entry, batch: int = 2) -> Case:
    """The network in float64 and the structure of its graph."""
    model, inputs = entry.factory(torch.float64), entry.inputs(batch, torch.float64)
    return Case(model, inputs, analyse(model, inputs, entry.tasks, form="graph"))


@functools.cache
def graph_case(id: str) -> Case:
    """Of a zoo network; one object a process, never to be changed."""
    return subject(HARD_CODED.get(id) or BY_ID[id])


def by_task(returned: Mapping[str, Any]) -> dict[str, tuple[Tensor, ...]]:
    return {task: (found,) if isinstance(found, Tensor) else found for task, found in returned.items()}


def outputs(graph: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[Tensor, ...]]:
    with torch.no_grad():
        return by_task(graph(*inputs))


# Soundness.


@pytest.mark.parametrize("id", [*ids, *HARD_CODED])
def test_pruned_graph_is_the_masked_twin(id: str) -> None:
    animal = graph_case(id)
    for seed in range(2):
        plan = random_plan(animal.structure, seed)
        pruned = apply_graph(animal.model, plan, animal.structure, verify=False).model
        twin = animal.twin(plan.keep(animal.structure))

        assert deviation(outputs(pruned, animal.inputs), twin) <= EXACT
        assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.costs["parameters"].after


@pytest.mark.parametrize("id", SAMPLE)
def test_it_is_proven_before_it_is_handed_back(id: str) -> None:
    animal = graph_case(id)
    done = apply_graph(animal.model, random_plan(animal.structure, 2), animal.structure)

    assert done.verification is not None
    assert done.verification.dtype == "torch.float64"
    assert set(done.verification.deviation) == set(animal.structure.tasks)
    assert max(done.verification.deviation.values()) <= EXACT


def test_no_number_binds_or_freezes_a_graph() -> None:
    bound = case("heads-bound-to-width").structure
    graph = graph_case("heads-bound-to-width").structure

    assert bound.constraints
    assert not graph.constraints
    assert not graph.attributes


@pytest.mark.parametrize("id", HARD_CODED)
def test_what_forward_hard_codes_is_lost_to_the_graph_only(id: str) -> None:
    animal = graph_case(id)
    module = analyse(animal.model, animal.inputs, HARD_CODED[id].tasks)
    plan = random_plan(animal.structure, 0, share=0.5)
    pruned = apply_graph(animal.model, plan, animal.structure).model

    assert any("forward" in pin.reason for pin in module.pinned)
    assert not any("forward" in pin.reason for pin in animal.structure.pinned)
    assert animal.structure.units > module.units
    assert pruned.get_parameter(LOST[id]).shape < animal.model.get_parameter(LOST[id]).shape


LOST = {
    "heads": "qkv.weight",
    "pieces": "stem.weight",
}


def test_groups_that_the_module_refused() -> None:
    """The module's own structure serves as well, and its plan is carried out as it was made."""
    animal = Case.of(WATCHFUL.factory(), WATCHFUL.inputs(), WATCHFUL.tasks)
    plan = random_plan(animal.structure, 0)
    as_module = apply(animal.model, plan, animal.structure)
    as_graph = apply_graph(animal.model, plan, animal.structure)

    assert [refusal.group for refusal in as_module.refused] == ["stem"]
    assert as_graph.plan == plan
    assert as_graph.model.get_parameter("stem.weight").shape[0] < 8
    assert (
        deviation(
            outputs(as_graph.model, animal.inputs),
            animal.twin(plan.keep(animal.structure)),
        )
        <= 1e-4
    )


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_plan_of_the_other_form_is_refused(form: str) -> None:
    entry = HARD_CODED["heads"]
    graph = graph_case("heads")
    module = analyse(graph.model, graph.inputs, entry.tasks)
    plan, structure = (
        (random_plan(module, 0), graph.structure)
        if form == "module"
        else (random_plan(graph.structure, 0), module)
    )

    with pytest.raises(PlanError, match=rf"made for the .*Analyze the model with form='{form}'"):
        apply_graph(graph.model, Plan.from_json(plan.to_json()), structure)
    with pytest.raises(PlanError, match="graph"):
        apply(graph.model, plan, structure)


def test_there_are_two_forms() -> None:
    entry = BY_ID["plain"]
    wrong: Any = "Graph"
    with pytest.raises(OptionError, match="form must be 'module' or 'graph', got 'Graph'"):
        analyse(entry.factory(), entry.inputs(), entry.tasks, form=wrong)


def test_apply_cuts_what_the_structure_is_of() -> None:
    animal = graph_case("plain")
    plan = random_plan(animal.structure, 0)

    done = apply(animal.model, plan, animal.structure)

    assert isinstance(done.model, PrunedGraph)
    assert (done.plan, done.refused) == (plan, ())


# What is handed back.


@pytest.mark.parametrize("id", SAMPLE)
def test_the_model_is_as_it_was(id: str) -> None:
    animal = graph_case(id)
    model = copy.deepcopy(animal.model).train()
    before = snapshot(model)
    state = torch.random.get_rng_state()
    pruned = apply_graph(model, random_plan(animal.structure, 0), animal.structure).model

    assert snapshot(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*pruned.parameters(), *pruned.buffers())}
    assert not theirs & ours


@pytest.mark.parametrize("id", [*SAMPLE, "frozen-branch", "channel-buffer", "dead-branch", "tied-linears"])
def test_names_ties_and_flags_are_the_models(id: str) -> None:
    animal = graph_case(id)
    pruned = apply_graph(animal.model, random_plan(animal.structure, 1), animal.structure, verify=False).model

    assert list(pruned.state_dict()) == list(animal.model.state_dict())
    assert identities(pruned) == identities(animal.model)
    for name, parameter in animal.model.named_parameters():
        assert pruned.get_parameter(name).requires_grad == parameter.requires_grad


def identities(model: nn.Module) -> set[frozenset[str]]:
    """Which names are of one tensor."""
    found: dict[int, set[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if not name.startswith("_"):
            found.setdefault(id(tensor), set()).add(name)
    return {frozenset(names) for names in found.values()}


def test_all_that_a_model_carries_along() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Baggage().eval()
        inputs = ({"x": torch.randn(2, 7, 6), "shift": torch.randn(4)}, 3)
    structure = analyse(model, inputs, named("left", "right"), form="graph")
    animal = Case(model, inputs, structure)
    plan = random_plan(structure, 0)
    pruned = apply_graph(model, plan, structure).model

    assert set(pruned.state_dict()) == set(model.state_dict())
    assert identities(pruned) == identities(model)
    assert pruned.get_buffer("scale").shape == (plan.groups[-1].kept,)
    assert deviation(outputs(pruned, inputs), animal.twin(plan.keep(structure))) <= 1e-5
    assert {tensor.dtype for (tensor,) in outputs(pruned.double(), double(inputs)).values()} == {
        torch.float64
    }
    with pytest.raises(ValueError, match="input 2 is 4, but the graph was made for 3"):
        pruned.double()(double(inputs)[0], 4)


def double(inputs: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) else leaf, inputs)


def test_memory_format_is_kept() -> None:
    animal = graph_case("plain")
    model = copy.deepcopy(animal.model).to(memory_format=torch.channels_last)
    pruned = apply_graph(model, random_plan(animal.structure, 0), animal.structure, verify=False).model
    weight = pruned.get_parameter("trunk.1.0.weight")

    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize("id", SAMPLE)
def test_it_learns(id: str) -> None:
    animal = graph_case(id)
    pruned = apply_graph(animal.model, random_plan(animal.structure, 0), animal.structure, verify=False).model
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)

    def loss() -> Tensor:
        found = by_task(pruned(*animal.inputs))
        return torch.stack([tensor.square().mean() for tensors in found.values() for tensor in tensors]).sum()

    before = loss()
    before.backward()
    assert any(parameter.grad is not None for parameter in pruned.parameters())
    assert all(p.grad.isfinite().all() for p in pruned.parameters() if p.grad is not None)
    optimizer.step()
    assert float(loss().detach()) < float(before.detach())


def test_it_can_be_saved_and_copied(tmp_path: Path) -> None:
    animal = graph_case("multihead-attention")
    pruned = apply_graph(animal.model, random_plan(animal.structure, 0), animal.structure, verify=False).model
    torch.save(pruned, tmp_path / "pruned.pt")
    loaded = torch.load(tmp_path / "pruned.pt", weights_only=False)

    for other in (copy.deepcopy(pruned), loaded):
        assert deviation(outputs(other, animal.inputs), outputs(pruned, animal.inputs)) == 0


# Batches and sizes.


@pytest.mark.parametrize("id", ["tiny-vit", "multihead-attention", "fused-qkv", "channel-shuffle", "heads"])
def test_batches_that_were_not_analysed(id: str) -> None:
    animal = graph_case(id)
    plan = random_plan(animal.structure, 5)
    done = apply_graph(animal.model, plan, animal.structure)
    five = (HARD_CODED.get(id) or BY_ID[id]).inputs(5, torch.float64, seed=7)
    found = outputs(done.model, five)

    assert done.model.any_batch
    for start in (0, 2, 3):
        window = slice(start, start + 2)
        part = tuple(tensor[window] for tensor in five)
        of_part = {task: tuple(tensor[window] for tensor in tensors) for task, tensors in found.items()}
        assert deviation(of_part, animal.twin(plan.keep(animal.structure), part)) <= EXACT


def test_a_structure_of_a_single_example() -> None:
    """One example does not tell a batch from other things of size 1."""
    animal = subject(BY_ID["tiny-vit"], batch=1)
    plan = random_plan(animal.structure, 5)
    done = apply_graph(animal.model, plan, animal.structure)
    three = BY_ID["tiny-vit"].inputs(3, torch.float64, seed=7)
    found = outputs(done.model, three)

    assert done.model.any_batch
    for i in range(3):
        part = tuple(tensor[i : i + 1] for tensor in three)
        of_part = {task: tuple(tensor[i : i + 1] for tensor in tensors) for task, tensors in found.items()}
        assert deviation(of_part, animal.twin(plan.keep(animal.structure), part)) <= EXACT


def test_a_batch_that_cannot_be_another_stays() -> None:
    animal = subject(FIXED_BATCH)
    done = apply_graph(animal.model, random_plan(animal.structure, 0), animal.structure)
    (inputs,) = animal.inputs

    assert not done.model.any_batch
    with pytest.raises(ValueError, match=r"input 0 is \(4, 7, 6\), but the graph was made for \(2, 7, 6\)"):
        done.model(torch.cat([inputs, inputs]))


def test_other_sizes_are_refused() -> None:
    animal = graph_case("resize")
    done = apply_graph(animal.model, random_plan(animal.structure, 0), animal.structure)

    with pytest.raises(ValueError, match=r"\(3, 3, 16, 12\), but the graph was made for \(any, 3, 12, 12\)"):
        done.model(torch.randn(3, 3, 16, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="takes 1 inputs, found 2"):
        done.model(*animal.inputs, *animal.inputs)


# The whole pipeline.


@pytest.mark.parametrize("refit", [None, LeastSquares()], ids=["as-it-is", "refitted"])
def test_prune_to_a_graph(refit: LeastSquares | None) -> None:
    entry = HARD_CODED["pieces"]
    model, data = entry.factory(), [entry.inputs(4, seed=seed) for seed in range(3)]
    before = snapshot(model)
    pruned = prune(
        model,
        data,
        structure=analyse(model, entry.inputs(), entry.tasks, form="graph"),
        parameters=0.5,
        to_inputs=tuple,
        refit=refit,
        method=DiSparse(),
    )

    assert isinstance(pruned.model, PrunedGraph)
    assert pruned.report.costs["parameters"].counted <= 0.5 * pruned.plan.costs["parameters"].before
    assert pruned.report.costs["macs"].counted == pruned.plan.costs["macs"].after
    assert pruned.report.verification.verified
    assert set(pruned.model(*entry.inputs(3))) == {"left", "right"}
    assert snapshot(model) == before


# ONNX.


@pytest.mark.parametrize("id", ["heads", "pieces", "tiny-vit"])
def test_onnx_runtime_agrees(id: str, tmp_path: Path) -> None:
    animal = graph_case(id)
    model = copy.deepcopy(animal.model).float()
    inputs = tuple(tensor.float() for tensor in animal.inputs)
    pruned = apply_graph(model, random_plan(animal.structure, 1), animal.structure).model
    facts = export_onnx(
        pruned,
        inputs,
        tmp_path / "pruned.onnx",
        outputs={name: operator.itemgetter(name) for name in animal.structure.tasks},
        tolerance=1e-4,
    )

    assert facts.dynamic == "batch"
    assert {fact.task for fact in facts.parity} == set(animal.structure.tasks)
    assert {fact.batch for fact in facts.parity} >= {1, 2, 3}
    assert max(fact.max_rel for fact in facts.parity) <= 1e-4


# The guard is guarded.


def lost(packet: Any, argument: str) -> Corruption:
    """The operator's record does not say that the argument is a size."""
    record = OPERATORS[packet]
    sizes = {name: counts for name, counts in record.sizes.items() if name != argument}
    return lambda patch: patch.setitem(OPERATORS, packet, replace(record, sizes=sizes))


def from_the_end(patch: pytest.MonkeyPatch) -> None:
    """A bound of a slice counts as many positions as it says, but the last ones."""

    def counted(call: Any, result: Any, argument: str) -> list[Axis]:
        axis, bound = call["self"][call["dim"]], call.raw[argument]
        return [Axis(bound, axis.atoms()[-bound:])]

    patch.setitem(resizing.COUNTED, "before", counted)


MUTATIONS: dict[str, tuple[Corruption, str]] = {
    "view-lost": (lost(aten.view, "size"), "heads"),
    "reshape-lost": (lost(aten.reshape, "shape"), "heads"),
    "normalized-shape-lost": (lost(aten.layer_norm, "normalized_shape"), "heads"),
    "split-lost": (lost(aten.split_with_sizes, "split_sizes"), "pieces"),
    "expand-lost": (lost(aten.expand, "size"), "pieces"),
    "groups-lost": (lost(aten.conv2d, "groups"), "pieces"),
    "bound-lost": (lost(aten.slice, "end"), "pieces"),
    "bound-from-the-end": (from_the_end, "pieces"),
    "length-lost": (lost(aten.narrow, "length"), "pieces"),
}


@pytest.mark.parametrize("id", MUTATIONS)
def test_a_corrupted_entry_of_the_table_is_caught(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt, network = MUTATIONS[id]
    right = graph_case(network)
    before = snapshot(right.model)
    keep = random_keep(right.structure, 1)
    corrupt(monkeypatch)
    structure = analyse(right.model, right.inputs, right.structure.task_objects, form="graph")

    with pytest.raises(VerificationError, match=r"pruned graph of .* is not the masked twin"):
        apply_graph(right.model, Plan.from_keep(structure, keep), structure)
    assert snapshot(right.model) == before


def test_what_is_no_parameter_of_the_structure_is_whole() -> None:
    """Nothing removed: the graph is the dense network, tensor by tensor."""
    animal = graph_case("tied-convolutions")
    plan = Plan.from_keep(animal.structure, torch.ones(animal.structure.units, dtype=torch.bool))
    pruned = apply_graph(animal.model, plan, animal.structure).model

    assert isinstance(pruned, PrunedGraph)
    for name, tensor in animal.model.state_dict().items():
        assert np.array_equal(pruned.state_dict()[name].numpy(), tensor.numpy())
    assert deviation(outputs(pruned, animal.inputs), animal.outputs(animal.model)) <= EXACT


def test_a_forward_that_draws_random_numbers_is_not_proven() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.stem(x), 0.5, training=True))

    model, inputs = Noisy().eval(), torch.randn(2, 6)
    structure = analyse(model, inputs, [Task("out", lambda output: output)], form="graph")

    with pytest.raises(VerificationError, match=r"pruned graph of Noisy .*draws random numbers in eval mode"):
        apply_graph(model, random_plan(structure, 0), structure)
