"""Attention whose units are indices of the head dimension: whole heads stay, and so do the scales.

The masked twin divides by the root of the dense head dimension. A smaller module does so too, by smaller
queries or by a scale that it was given; a width that decides a scale stays whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import disparse_structured.structure.analysis as analysis
import disparse_structured.surgery._torch_pruning as execution
from disparse_structured import Compensated, DiSparse, load, prune
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError, PlanError
from disparse_structured.export import export_onnx
from disparse_structured.graph.copies import copied
from disparse_structured.refit import Affine, RefitMethod
from disparse_structured.structure import ChannelGroup, Form, Structure, analyse
from disparse_structured.structure.rules import attention
from disparse_structured.structure.size_constraints import follow
from disparse_structured.surgery import module as surgery
from disparse_structured.surgery._torch_pruning import StructureGraph
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.tasks import Task
from tests.support.plans import Case, case, deviation, onnx_parity, random_keep, random_plan, zeroed
from tests.support.zoo import BY_ID, ids, randomize_norms

Patch = pytest.MonkeyPatch
EXACT = 1e-9
TOKENS, WIDTH, HEADS, DEPTH = 5, 8, 3, 4
TASKS = (Task("out", lambda output: output),)


class Attention(nn.Module):
    """One projection for query, key and value; subclasses say what becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = HEADS, DEPTH, 0.4
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * HEADS * DEPTH), nn.Linear(HEADS * DEPTH, WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attend(*self.project(x))
        return self.out(x + self.proj(mixed.transpose(1, 2).flatten(2)))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, ``[batch, heads, tokens, head_dim]``."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class ExplicitScale(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=self.scale)


class Unfused(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query * self.scale @ key.transpose(-2, -1)).softmax(-1) @ value


class Chunked(Attention):
    """Each head's query, key and value side by side, as in GPT-NeoX."""

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2).chunk(3, -1)


class Biased(Attention):
    """A table with a row for each head, which is no unit."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.table)


class Assembled(Attention):
    """A bias put together of those for query and value, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * DEPTH, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(HEADS * DEPTH)) for _ in range(2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)


class Normed(Attention):
    """Queries and keys normalized over the head dimension."""

    norm: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = type(self).norm(DEPTH), type(self).norm(DEPTH)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return super().attend(self.q_norm(query), self.k_norm(key), value)


class RootMeanSquare(Normed):
    norm = nn.RMSNorm


class Separate(Attention):
    """A projection each; ``shared`` key and value heads, whose widths are inferred."""

    shared = HEADS

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q = nn.Linear(WIDTH, HEADS * DEPTH)
        self.k, self.v = (nn.Linear(WIDTH, self.shared * DEPTH, bias=False) for _ in range(2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = {self.q: HEADS, self.k: self.shared, self.v: self.shared}
        return tuple(each(x).unflatten(2, (count, -1)).transpose(1, 2) for each, count in heads.items())


class Grouped(Separate):
    shared = 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


class GroupedByNumber(Grouped):
    """Query heads in a multiple of the key heads; the head dimension is one number of the module."""

    shared = 1

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, _ = x.shape
        return tuple(
            each(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )


class Einsum(Separate):
    """The products are written by letters."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", query, key) * self.scale
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value)


class Cross(Separate):
    """Queries of the tokens, keys and values of their differences, by one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(WIDTH, 2 * HEADS * DEPTH)
        del self.k, self.v

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, _ = x.shape
        query = self.q(x).view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        both = self.kv(x.diff(dim=1)).view(batch, tokens - 1, 2, self.num_heads, self.head_dim)
        key, value = both.permute(2, 0, 3, 1, 4)
        return query, key, value


class Convolved(Separate):
    """The query comes out of a convolution over the tokens and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.Conv1d(WIDTH, HEADS * DEPTH, 3, padding=1), nn.BatchNorm1d(HEADS * DEPTH))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        query = self.q(x.transpose(1, 2)).unflatten(1, (HEADS, -1)).transpose(-2, -1)
        return query, *(each(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (self.k, self.v))


class WidthBound(Attention):
    """The head dimension is the residual width divided by the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(WIDTH, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        mixed = self.attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.out(x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class PowerOfWidth(Attention):
    """The scale is computed from the number that counts the head dimension."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=self.head_dim**-0.5)


class RootOfSize(Attention):
    """The scale is computed from the size of a tensor."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])
        return scores.softmax(-1) @ value


class NoAffine(Normed):
    norm: Callable[[int], nn.Module] = functools.partial(nn.LayerNorm, elementwise_affine=False)


class SharedNorm(Normed):
    """One normalization for query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.k_norm = self.q_norm


class ReadTwice(Attention):
    """What the query is made of is mixed in again."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return super().attend(query, key, value) + query.tanh()


class QueryIsKey(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return super().attend(query, query, value)


class Rotary(Attention):
    """Positions turn pairs of query and key dimensions."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return super().attend(self.turn(query), self.turn(key), value)

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.arange(TOKENS, dtype=x.dtype)[:, None]
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


FREE = [
    Attention, ExplicitScale, Unfused, Chunked, Biased, Assembled, Normed, RootMeanSquare, Separate, Grouped,
    GroupedByNumber, Cross, Convolved, WidthBound,
]  # fmt: skip
HELD = {
    PowerOfWidth: "forward computes a real number from the width",
    RootOfSize: "forward computes a real number from the width",
    NoAffine: "comes out of aten.layer_norm.default without a weight to make up for it",
    SharedNorm: "the weights of aten.layer_norm.default, which makes the query, are computed or shared",
    ReadTwice: "the query is read elsewhere too",
    QueryIsKey: "the query is read elsewhere too",
    Rotary: "comes out of aten.add.Tensor without a weight to make up for it",
}
"""Why the head dimension stays whole in a module."""

COMPENSATED = [Attention, Chunked, Biased, Assembled, Normed, RootMeanSquare, Separate, Grouped,
               GroupedByNumber, Cross, Convolved, WidthBound]  # fmt: skip
"""Whose scale is that of the width."""

WITHOUT_STATISTICS = [kind for kind in FREE if not issubclass(kind, Normed)]


@functools.cache
def analyzed(kind: type[nn.Module], form: Form = "module") -> Case:
    """The network in float64 and its structure; one object a process, never to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = kind().double().eval()
        randomize_norms(model)
        inputs = (torch.randn(2, TOKENS, WIDTH, dtype=torch.float64),)
    return Case(model, inputs, analyse(model, inputs, TASKS, form=form, attention="head_dim"))


def owned(group: ChannelGroup) -> dict[tuple[str, int], list[list[int]]]:
    return {(member.parameter, member.dim): member.index.tolist() for member in group.members}


# Units.


@pytest.mark.parametrize("kind", [Attention, ExplicitScale, Unfused, Biased])
def test_one_index_of_the_head_dimension_in_all_heads_is_a_unit(kind: type[Attention]) -> None:
    structure = analyzed(kind).structure
    (group,) = structure.groups
    rows = [[unit + DEPTH * slab for slab in range(3 * HEADS)] for unit in range(DEPTH)]

    assert (group.units, group.kind) == (DEPTH, "bundle")
    assert owned(group) == {
        ("qkv.weight", 0): rows,
        ("qkv.bias", 0): rows,
        ("proj.weight", 1): [row[:HEADS] for row in rows],
    }


@pytest.mark.parametrize("kind", [Separate, Grouped])
def test_the_value_has_a_dimension_of_its_own(kind: type[Separate]) -> None:
    structure = analyzed(kind).structure
    query, value = (owned(structure.group(name)) for name in ("q", "v"))

    assert set(query) == {("q.weight", 0), ("q.bias", 0), ("k.weight", 0)}
    assert set(value) == {("v.weight", 0), ("proj.weight", 1)}
    assert not structure.constraints
    assert query["k.weight", 0] == [
        [unit + DEPTH * head for head in range(kind.shared)] for unit in range(DEPTH)
    ]


def test_one_number_for_both_dimensions_binds_them() -> None:
    (bound,) = analyzed(GroupedByNumber).structure.constraints

    assert (bound.groups, bound.shares) == (("q", "v"), (1, 1))
    assert "head_dim counts two different things" in bound.reason


def test_a_dimension_that_is_a_share_of_the_width_is_bound_to_it() -> None:
    (bound,) = analyzed(WidthBound).structure.constraints

    assert dict(bound.sides) == {("proj",): HEADS, ("qkv",): 1}


def test_what_einsum_contracts_shrinks_as_in_a_matrix_product() -> None:
    animal = analyzed(Einsum)
    value, pair = animal.structure.groups

    assert set(owned(pair)) == {("q.weight", 0), ("q.bias", 0), ("k.weight", 0)}
    assert set(owned(value)) == {("v.weight", 0), ("proj.weight", 1)}
    assert animal.deviation(random_keep(animal.structure, 0)) <= EXACT


@pytest.mark.parametrize(("kind", "reason"), HELD.items())
def test_the_dimension_stays_whole_where_the_scale_cannot(kind: type[Attention], reason: str) -> None:
    structure = analyzed(kind).structure

    assert not [group for group in structure.groups if group.kind == "bundle"]
    assert any(reason in pin.reason and pin.parameters for pin in structure.pinned)


@pytest.mark.parametrize("id", ["fused-qkv", "separate-qkv", "tiny-vit", "heads-bound-to-width"])
def test_heads_or_their_dimension(id: str) -> None:
    entry, heads = BY_ID[id], case(id).structure
    model, inputs = entry.factory(torch.float64), entry.inputs(dtype=torch.float64)
    depths = analyse(model, inputs, entry.tasks, attention="head_dim")

    assert "head" in {group.kind for group in heads.groups}
    assert "head" not in {group.kind for group in depths.groups}
    assert (heads.attention, depths.attention) == ("heads", "head_dim")
    assert dense_costs(heads) == dense_costs(depths)


def dense_costs(structure: Structure) -> tuple[float, float]:
    everything = torch.ones(structure.units, dtype=torch.bool)
    return structure.cost.macs.total(everything), structure.cost.parameters.total(everything)


FINGERPRINTS = {
    "fused-qkv": "f8a82942865e4ed294593d37ed16135b6b9bf9525d5e8de8e29483364542b98a",
    "separate-qkv": "25cd3368340d9b0dc83d4f7dbe7eaa4e2cfd1a4c561bcdb1f0aa44fdf2316acc",
    "tiny-vit": "4ae86864fdb3ca9e98f233b509b9de1257da6279615e2573c1b4ad3e11d4dda1",
}


@pytest.mark.parametrize(("id", "fingerprint"), FINGERPRINTS.items())
def test_plans_of_whole_heads_fit_as_before(id: str, fingerprint: str) -> None:
    assert case(id).structure.fingerprint == fingerprint


# Soundness.


@pytest.mark.parametrize("kind", FREE)
def test_pruned_module_is_the_masked_twin(kind: type[Attention]) -> None:
    animal = analyzed(kind)
    for seed in range(4):
        done = surgery.apply(animal.model, random_plan(animal.structure, seed), animal.structure)

        assert not done.refused
        assert done.verification is not None
        assert done.verification.deviation["out"] <= EXACT


@pytest.mark.parametrize("kind", [*FREE, *(kind for kind in HELD if kind is not Rotary)])
def test_pruned_graph_is_the_masked_twin(kind: type[Attention]) -> None:
    """There the scale is written down, whatever makes the query."""
    animal = analyzed(kind, "graph")
    assert "bundle" in {group.kind for group in animal.structure.groups}
    for seed in range(2):
        plan = random_plan(animal.structure, seed)
        pruned = apply_graph(animal.model, plan, animal.structure).model

        with torch.no_grad():
            found = {"out": (pruned(*animal.inputs)["out"],)}
        assert deviation(found, animal.twin(plan.keep(animal.structure))) <= EXACT


@pytest.mark.parametrize("kind", COMPENSATED)
def test_the_graph_of_a_module_that_can_be_pruned(kind: type[Attention]) -> None:
    animal = analyzed(kind)
    verification = apply_graph(animal.model, random_plan(animal.structure, 3), animal.structure).verification

    assert verification is not None
    assert verification.deviation["out"] <= EXACT


@pytest.mark.parametrize("kind", WITHOUT_STATISTICS)
def test_removing_is_zeroing_without_the_twin(kind: type[Attention]) -> None:
    """Zeros in the dense module, which divides by the root of the dense head dimension."""
    animal = analyzed(kind)
    keep = random_keep(animal.structure, 1)
    zeroes = zeroed(animal.model, animal.structure, keep)

    assert not keep.all()
    assert deviation(animal.outputs(animal.pruned(keep)), animal.outputs(zeroes)) <= EXACT


@pytest.mark.parametrize("id", ids)
def test_every_network_of_the_zoo(id: str) -> None:
    entry = BY_ID[id]
    model, inputs = entry.factory(torch.float64), entry.inputs(dtype=torch.float64)
    animal = Case(model, inputs, analyse(model, inputs, entry.tasks, attention="head_dim"))

    for seed in range(2):
        assert animal.deviation(random_keep(animal.structure, seed)) <= EXACT


def test_the_numbers_of_the_module_follow() -> None:
    animal = analyzed(Normed)
    keep = torch.tensor([True, False, False, True])
    pruned = animal.pruned(keep)

    assert (pruned.num_heads, pruned.head_dim, pruned.scale) == (HEADS, 2, 0.4)
    assert pruned.q_norm.normalized_shape == pruned.k_norm.normalized_shape == (2,)


def test_what_makes_the_query_and_nothing_else_makes_up_for_the_scale() -> None:
    animal = analyzed(Assembled)
    keep = torch.tensor([True, False, False, False])
    pruned = animal.pruned(keep)
    weights, rows = animal.model.qkv.weight, slice(0, 3 * HEADS * DEPTH, DEPTH)

    ratio = torch.ones(3 * HEADS, 1, dtype=torch.float64)
    ratio[:HEADS] = 0.5  # a quarter of the dimension is left
    torch.testing.assert_close(pruned.qkv.weight, weights[rows] * ratio)
    torch.testing.assert_close(pruned.q_bias, 0.5 * animal.model.q_bias[::DEPTH])
    torch.testing.assert_close(pruned.v_bias, animal.model.v_bias[::DEPTH])


@pytest.mark.parametrize("kind", COMPENSATED)
def test_a_scale_that_is_not_compensated_is_noticed(kind: type[Attention], monkeypatch: Patch) -> None:
    """The twin objects to the weights as they were, and names the group."""
    animal = analyzed(kind)
    plan = random_plan(animal.structure, 0, share=0.5)
    monkeypatch.setattr(execution.StructureGraph, "_keep_scales", lambda graph, before: None)
    done = surgery.apply(animal.model, plan, animal.structure)

    scaled = {group.name for group in animal.structure.groups if kind is not Separate or group.name == "q"}
    assert not animal.deviation(plan.keep(animal.structure)) <= 1e-5
    assert {refusal.group for refusal in done.refused} & scaled
    assert all("deviates from the masked twin" in refusal.reason for refusal in done.refused)


@pytest.mark.parametrize("kind", COMPENSATED)
def test_a_scale_that_the_graph_is_not_given_is_noticed(kind: type[Attention]) -> None:
    animal = analyzed(kind, "graph")
    keep = random_keep(animal.structure, 0, share=0.5)
    silent = dataclasses.replace(animal.structure, scales=())
    with torch.no_grad():
        found = {"out": (PrunedGraph(animal.model, silent, keep)(*animal.inputs)["out"],)}

    assert not deviation(found, animal.twin(keep)) <= 1e-5


def test_a_wrong_part_of_the_projection_is_noticed(monkeypatch: Patch) -> None:
    """The rows of the value in place of those of the query."""
    right = attention.query_rows

    def of_the_value(*arguments: Any) -> Any:
        return {name: rows + 2 * HEADS * DEPTH for name, rows in right(*arguments).items()}

    monkeypatch.setattr(attention, "query_rows", of_the_value)
    model, inputs = analyzed(Attention).model, analyzed(Attention).inputs
    animal = Case(model, inputs, analyse(model, inputs, TASKS, attention="head_dim"))

    assert not animal.deviation(random_keep(animal.structure, 0, share=0.5)) <= 1e-3


def test_a_scale_that_follows_the_width_is_noticed(monkeypatch: Patch) -> None:
    """Computed in ``forward`` from a number that follows: without the pin the twin objects."""
    monkeypatch.setattr(analysis, "follow", lambda *arguments: follow(*arguments[:5]))
    model, inputs = analyzed(PowerOfWidth).model, analyzed(PowerOfWidth).inputs
    animal = Case(model, inputs, analyse(model, inputs, TASKS, attention="head_dim"))
    done = surgery.apply(model, random_plan(animal.structure, 0, share=0.5), animal.structure)

    assert [refusal.group for refusal in done.refused] == ["qkv"]


# Surgery.


@pytest.mark.parametrize("kind", [kind for kind in COMPENSATED if kind is not WidthBound])
def test_pruned_twice_in_a_row(kind: type[Attention]) -> None:
    """By two plans, and by Torch-Pruning's groups of one graph: as if it had been cut at once."""
    animal = analyzed(kind)
    structure = animal.structure
    keep = random_keep(structure, 0, share=0.3)
    first = keep.clone()
    for group in structure.groups:
        gone = (~keep[group.slice]).nonzero().flatten() + group.start
        first[gone[1:]] = True
    once = animal.outputs(animal.pruned(keep))

    graph = StructureGraph(copied(animal.model), structure)
    for step in (~first, first & ~keep):
        graph.units_group(step.nonzero().flatten().numpy()).prune()
    assert deviation(animal.outputs(graph.model), once) <= EXACT

    half = animal.pruned(first)
    again = analyse(half, animal.inputs, TASKS, attention="head_dim")
    done = surgery.apply(half, Plan.from_keep(again, keep[first]), again)
    assert done.verification is not None
    assert deviation(animal.outputs(done.model), once) <= EXACT


def test_what_does_not_learn_stays_so() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Attention().eval()
    model.qkv.weight.requires_grad_(False)
    inputs = (torch.randn(2, TOKENS, WIDTH),)
    structure = analyse(model, inputs, TASKS, attention="head_dim")
    plan = random_plan(structure, 0, share=0.5)
    pruned = surgery.apply(model, plan, structure).model

    assert [parameter.requires_grad for parameter in pruned.parameters()] == [False, *[True] * 5]
    assert all(parameter.is_leaf for parameter in pruned.parameters())
    pruned(*inputs).sum().backward()
    assert pruned.qkv.bias.grad is not None


@pytest.mark.parametrize("made", ["heads", "head_dim"])
def test_a_plan_of_the_other_units_is_refused(made: Any) -> None:
    model = analyzed(Attention).model
    heads, depths = case_of_heads().structure, analyzed(Attention).structure
    plan, structure = (random_plan(heads, 0), depths) if made == "heads" else (random_plan(depths, 0), heads)

    for act in (surgery.apply, apply_graph):
        with pytest.raises(
            PlanError, match=rf"units of attention.*Analyze the model with attention='{made}'"
        ):
            act(model, Plan.from_json(plan.to_json()), structure)
    assert surgery.apply(model, random_plan(structure, 0), structure).verification is not None


def case_of_heads() -> Case:
    animal = analyzed(Attention)
    return Case.of(animal.model, animal.inputs, TASKS)


def test_there_are_two_kinds_of_units() -> None:
    wrong: Any = "head"
    with pytest.raises(OptionError, match="attention must be 'heads' or 'head_dim', got 'head'"):
        analyse(analyzed(Attention).model, analyzed(Attention).inputs, TASKS, attention=wrong)


# From end to end.


@pytest.mark.parametrize("kind", [Attention, Normed, Grouped, ExplicitScale])
def test_onnx_runtime_agrees(kind: type[Attention], tmp_path: Path) -> None:
    animal = analyzed(kind)
    assert onnx_parity(animal, random_keep(animal.structure, 2), tmp_path / "pruned.onnx") <= 1e-4


def test_onnx_runtime_agrees_with_the_graph(tmp_path: Path) -> None:
    animal = analyzed(RootOfSize, "graph")
    pruned = PrunedGraph(animal.model, animal.structure, random_keep(animal.structure, 2)).float()
    inputs = tuple(tensor.float() for tensor in animal.inputs)
    outputs = {"out": lambda output: (output["out"],)}
    facts = export_onnx(pruned, inputs, tmp_path / "pruned.onnx", outputs=outputs, dynamic_size=False)

    assert max(fact.max_rel for fact in facts.parity) <= 1e-4


def tiny_vit() -> nn.Module:
    return BY_ID["tiny-vit"].factory()


@pytest.mark.parametrize("refit", [None, Affine()], ids=["as-cut", "refit"])
def test_pruned_saved_and_loaded(refit: RefitMethod | None, tmp_path: Path) -> None:
    images = BY_ID["tiny-vit"].inputs(8)
    structure = analyse(tiny_vit(), images, attention="head_dim")
    result = prune(tiny_vit(), images, structure=structure, parameters=0.6, method=DiSparse(), refit=refit)
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", tiny_vit)

    assert result.report.verification.verified
    assert "attention.qkv" in result.plan.removals
    assert result.model.attention.num_heads == 3
    assert result.model.attention.head_dim < 4
    for name, tensor in result.model(*images).items():
        torch.testing.assert_close(loaded(*images)[name], tensor)


def test_damage_curves_of_head_dimensions() -> None:
    images = BY_ID["tiny-vit"].inputs(8)
    structure = analyse(tiny_vit(), images, attention="head_dim")
    method = Compensated(rounds=1, left=(0.5,), judged=4)

    result = prune(tiny_vit(), images, structure=structure, parameters=0.6, method=method, refit=None)

    assert result.report.verification.verified
    assert "attention.qkv" in result.plan.removals
    assert result.model.attention.num_heads == 3


# timm.

SMALL = {"num_classes": 7, "img_size": 64}
SHALLOW = {**SMALL, "depth": 2}
WINDOWS = {**SMALL, "window_size": 2}


@pytest.mark.parametrize(
    ("name", "options", "fused"),
    [
        ("vit_tiny_patch16_224", SHALLOW, True),
        ("vit_tiny_patch16_224", SHALLOW, False),
        ("vit_tiny_patch16_224", {**SHALLOW, "qk_norm": True}, True),
        pytest.param("swin_tiny_patch4_window7_224", WINDOWS, True, marks=pytest.mark.sweep),
        pytest.param("swin_tiny_patch4_window7_224", WINDOWS, False, marks=pytest.mark.sweep),
        pytest.param("pvt_v2_b0", {"num_classes": 7}, True, marks=pytest.mark.sweep),
    ],
)
def test_timm(name: str, options: dict[str, Any], fused: bool, monkeypatch: Patch, tmp_path: Path) -> None:
    """Half of every head dimension goes, and with it half of what attention owns."""
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 2 if fused else 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **options)
        randomize_norms(model)
        inputs = (torch.randn(2, 3, 64, 64, dtype=torch.float64),)
    model = model.double().eval()
    animal = Case(model, inputs, analyse(model, inputs, TASKS, attention="head_dim"))
    depths = [group for group in animal.structure.groups if group.kind == "bundle"]
    keep = random_keep(animal.structure, 0, 0.5, only=[group.name for group in depths])
    pruned = animal.pruned(keep)

    assert len(depths) >= sum(hasattr(module, "num_heads") for module in model.modules())
    assert bool(animal.structure.scales) == fused
    assert animal.deviation(keep) <= EXACT
    assert attention_parameters(pruned) <= 0.55 * attention_parameters(model)
    assert [m.num_heads for m in pruned.modules() if hasattr(m, "num_heads")] == [
        m.num_heads for m in model.modules() if hasattr(m, "num_heads")
    ]
    assert onnx_parity(animal, keep, tmp_path / "pruned.onnx") <= 1e-4


def attention_parameters(model: nn.Module) -> int:
    """Of all query, key, value and output projections."""
    return sum(p.numel() for name, p in model.named_parameters() if ".attn." in name and "weight" in name)
