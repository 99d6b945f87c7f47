"""The guard is guarded: one rule corrupted at a time, and the masked twin must object.

Labels feed both the pruner and the twin, so a wrong label might fool both in the same way. It does not:
wherever a corruption changes the structure of a network, pruning by it either fails outright, deviates
from the twin, or (the corruption merely pinned more, or found another valid grouping) is right by the
label-free witness, zeroing in place of removing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import disparse_structured.structure.analysis as analysis
import disparse_structured.surgery._torch_pruning as execution
from disparse_structured.graph.operators import OPERATORS
from disparse_structured.structure import Structure, analyse
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.rules import concatenation, convolution, reshape
from disparse_structured.structure.rules.elementwise import elementwise
from disparse_structured.structure.tracing import RULES, Call, Trace, is_value
from tests.support.plans import Case, case, deviation, random_keep, zeroed
from tests.support.zoo import BY_ID, Entry, ids, named, sequence

aten = torch.ops.aten
Patch = pytest.MonkeyPatch


class OneHead(nn.Module):
    """Fused attention with a single head: its scale depends on the width of query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12)
        self.proj = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class SeveralHeads(OneHead):
    """Separate query, key and value that meet in nothing but the fused operator; widths inferred."""

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k)]
        value = self.v(x).unflatten(2, (-1, 6)).transpose(1, 2)
        return self.proj(F.scaled_dot_product_attention(*heads, value).transpose(1, 2).flatten(2))


class Shuffled(nn.Module):
    """``pixel_shuffle`` and back, and the one operator for a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(24, 12, 1),
        )
        self.left, self.right = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.pixel_shuffle(torch.relu(self.stem(x)), 2)
        x = F.pixel_unshuffle(torch.relu(self.body(x)), 2)
        x = F.channel_shuffle(torch.relu(self.last(x)), 3)
        return {"left": self.left(x), "right": self.right(x)}


class Pieces(nn.Module):
    """Zero channels in front, a slice of as many as a number says, halves read apart, and a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 5
        self.stem = nn.Conv2d(3, 9, 3, padding=1)
        self.body, self.other = nn.Conv2d(11, 8, 3, padding=1), nn.Conv2d(9, 8, 1)
        self.left, self.above, self.below = nn.Conv2d(5, 2, 1), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(x))
        y = torch.stack([self.body(F.pad(x, (0, 0, 0, 0, 2, 0))), torch.tanh(self.other(x))])
        above, below = torch.relu(y.sum(0)).chunk(2, 1)
        return {
            "left": self.left(x[:, : self.first]),
            "right": torch.cat([self.above(above), self.below(below)], 1),
        }


EXTRA = (
    sequence("one-head", OneHead, 12),
    sequence("several-heads", SeveralHeads, 12),
    Entry("shuffles", Shuffled, ((3, 6, 6),), named("left", "right")),
    Entry("pieces", Pieces, ((3, 6, 6),), named("left", "right")),
)


@functools.cache
def subject(id: str) -> Case:
    extra = {entry.id: entry for entry in EXTRA}.get(id)
    if extra is None:
        return case(id)
    return Case.of(extra.factory(torch.float64), extra.inputs(dtype=torch.float64), extra.tasks)


# Ways to corrupt. Each returns a function that does it, to be undone by monkeypatch.


class Altered(Call):
    """A call one of whose arguments reads otherwise."""

    def __init__(self, call: Call, name: str, change: Callable[[Value], Value]) -> None:
        self.__dict__.update(call.__dict__)
        self._altered, self._change = name, change

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return self._change(found) if name == self._altered else found

    def values(self) -> list[Value]:
        return [value for value in (self[name] for name in self.raw) if is_value(value)]


class Deaf:
    """A trace on which some statements of the rules fall silent."""

    def __init__(self, trace: Trace, silent: Iterable[str]) -> None:
        self._trace, self._silent = trace, set(silent)

    def __getattr__(self, name: str) -> Any:
        if name not in self._silent:
            return getattr(self._trace, name)
        first_of = {"join": lambda call, axes: axes[0], "broadcast": lambda call, values: values[0]}
        return first_of.get(name, lambda *args, **options: None)


def wrapped(
    operators: Iterable[Any], wrap: Callable[[Any], Callable[[Trace, Call], Any]]
) -> Callable[[Patch], None]:
    def corrupt(patch: Patch) -> None:
        for each in operators:
            patch.setitem(RULES, each, wrap(RULES[each]))

    return corrupt


def result(operators: Iterable[Any], dim: int, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The labels of dimension ``dim`` of what the operators return are changed."""

    def changed(value: Any) -> Any:
        if not is_value(value):
            return [changed(each) for each in value]
        return relabeled(value, dim, change)

    return wrapped(operators, lambda right: lambda trace, call: changed(right(trace, call)))


def argument(
    operators: Iterable[Any], name: str, dim: int, change: Callable[[np.ndarray], np.ndarray]
) -> Any:
    """The labels of dimension ``dim`` of the argument ``name`` are changed before the rule sees them."""
    return wrapped(
        operators,
        lambda right: (
            lambda trace, call: right(trace, Altered(call, name, lambda v: relabeled(v, dim, change)))
        ),
    )


def silent(operators: Iterable[Any], *statements: str) -> Any:
    """The rules of the operators run, but what they say by these methods of the trace is lost."""
    return wrapped(operators, lambda right: lambda trace, call: right(Deaf(trace, statements), call))


def treated_as(operators: Iterable[Any], rule: Callable[[Trace, Call], Any]) -> Callable[[Patch], None]:
    def corrupt(patch: Patch) -> None:
        for each in operators:
            patch.setitem(RULES, each, rule)

    return corrupt


def replaced(owner: Any, name: str, wrong: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, wrong)


def recorded(operators: Iterable[Any], **facts: Any) -> Callable[[Patch], None]:
    """The records of the operators state other facts."""

    def corrupt(patch: Patch) -> None:
        for each in operators:
            patch.setitem(OPERATORS, each, replace(OPERATORS[each], **facts))

    return corrupt


def both(*corruptions: Callable[[Patch], None]) -> Callable[[Patch], None]:
    def corrupt(patch: Patch) -> None:
        for each in corruptions:
            each(patch)

    return corrupt


def relabeled(value: Value, dim: int, change: Callable[[np.ndarray], np.ndarray]) -> Value:
    if not -len(value) <= dim < len(value) or value[dim].labels is None:
        return value
    dim %= len(value)
    axis = value[dim]
    return (*value[:dim], Axis(axis.size, change(axis.labels), axis.sample), *value[dim + 1 :])


def reverse(labels: np.ndarray) -> np.ndarray:
    return labels[::-1].copy()


def shift(labels: np.ndarray) -> np.ndarray:
    return np.roll(labels, 1)


def interleave(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([labels[::2], labels[1::2]])


# The corrupted helpers.


def transposed_slabs(trace: Trace, call: Call, inputs: Axis, outputs: Axis, groups: int) -> None:
    slabs = outputs.atoms().reshape(-1, groups).T
    trace.unite(call, inputs.atoms()[:, None], slabs)
    trace.literal(call, call.expressions([groups])[0], inputs)


def neighbors_in_a_group(
    trace: Trace, call: Call, atoms: np.ndarray, groups: int, weight: np.ndarray | None = None
) -> None:
    rows = atoms.reshape(-1, groups).T
    trace.unite(call, rows, rows[0] if weight is None else weight)


def tiled(axes: list[Axis], owner: int | None) -> np.ndarray | None:
    if owner is None:
        return None
    labels = axes[owner].labels
    assert labels is not None
    return np.tile(labels, int(np.prod([axis.size for axis in axes])) // len(labels))


def padded_behind(trace: Trace, call: Call) -> Value:
    value: Value = concatenation.pad(trace, call)
    added = sum(call["pad"][4:6]) if len(call["pad"]) > 4 else 0
    return relabeled(value, 1, lambda labels: np.roll(labels, -added if call["pad"][4] else added))


def keeps_numbers(self: execution.StructureGraph) -> None:
    """Leaves the modules' own numbers as they were."""


CONV = (aten.conv1d, aten.conv2d)
TRANSPOSED = (aten.conv_transpose2d,)
NORMS = (aten.batch_norm, aten.instance_norm)
SPLIT = (aten.split, aten.split_with_sizes, aten.chunk)
PRODUCTS = (aten.matmul, aten.bmm)
ARITHMETIC = (aten.add, aten.add_, aten.mul, aten.mul_, aten.sub, aten.div)
LAYERNORM_REVERSED = argument((aten.layer_norm,), "input", -1, reverse)
VIEWS = (aten.view, aten.reshape, aten.flatten, aten.unflatten)


@dataclass(frozen=True)
class Mutation:
    """``networks`` are those on which the corruption must show.

    ``executes`` is True where not the structure but its execution is corrupted.
    """

    id: str
    corrupt: Callable[[Patch], None]
    networks: tuple[str, ...]
    executes: bool = False


MUTATIONS = (
    Mutation("conv-input-shifted", argument(CONV, "input", -3, shift), ("plain", "residual", "grouped")),
    Mutation("conv-output-shifted", result(CONV, -3, shift), ("plain", "two-batchnorms")),
    Mutation("conv-input-not-united", silent(CONV, "unite"), ("plain", "depthwise-separable", "grouped")),
    Mutation("conv-reads-nothing", silent(CONV, "consume"), ("plain", "tied-convolutions")),
    Mutation("transposed-output-reversed", result(TRANSPOSED, 1, reverse), ("transposed",)),
    Mutation("transposed-input-reversed", argument(TRANSPOSED, "input", 1, reverse), ("transposed",)),
    Mutation("depthwise-slabs-transposed", replaced(convolution, "_depthwise", transposed_slabs),
             ("depthwise-multiplier-2",)),
    Mutation("grouped-neighbors", replaced(convolution, "_same_in_every_group", neighbors_in_a_group),
             ("grouped", "transposed-grouped", "grouped-chain-2-3")),
    Mutation("linear-input-reversed", argument((aten.linear,), "input", -1, reverse), ("mlp", "fused-qkv")),
    Mutation("linear-output-shifted", result((aten.linear,), -1, shift), ("mlp", "tied-linears")),
    Mutation("linear-not-united", silent((aten.linear,), "unite"), ("mlp", "token-mean")),
    Mutation("matmul-key-reversed", argument(PRODUCTS, "mat2", -2, reverse), ("bmm-attention",)),
    Mutation("matmul-not-united", silent(PRODUCTS, "unite"), ("bmm-attention",)),
    Mutation("attention-width-free", silent((aten.scaled_dot_product_attention,), "pin"), ("one-head",)),
    Mutation("attention-heads-not-united", silent((aten.scaled_dot_product_attention,), "broadcast"),
             ("several-heads",)),
    Mutation("batchnorm-not-united", silent(NORMS, "join"), ("plain", "instancenorm-affine", "dense-concat")),
    Mutation("batchnorm-shifted", argument(NORMS, "input", 1, shift), ("plain", "two-batchnorms")),
    Mutation("layernorm-over-all", silent((aten.layer_norm,), "consume"), ("convnext-block", "tiny-vit")),
    Mutation("layernorm-reversed", both(silent((aten.layer_norm,), "literal"), LAYERNORM_REVERSED),
             ("convnext-block", "tiny-vit")),
    Mutation("groupnorm-over-all", silent((aten.group_norm,), "consume"), ("groupnorm",)),
    Mutation("groupnorm-any-channel", silent((aten.group_norm,), "unite"), ("groupnorm-no-affine",)),
    Mutation("layernorm-recorded-as-plain", recorded((aten.layer_norm,), normalizes=None),
             ("convnext-block", "tiny-vit")),
    Mutation("groupnorm-recorded-as-plain", recorded((aten.group_norm,), normalizes=None), ("groupnorm",)),
    Mutation("mean-recorded-as-sum", recorded((aten.mean, aten.amax), averages=False),
             ("channel-mean-gate",)),
    Mutation("prelu-reversed", argument((aten.prelu,), "weight", 0, reverse), ("prelu-each-channel",)),
    Mutation("arithmetic-not-united", silent(ARITHMETIC, "broadcast"), ("residual", "layerscale")),
    Mutation("second-operand-shifted", argument(ARITHMETIC, "other", 1, shift), ("residual",)),
    Mutation("cat-reversed", result((aten.cat,), 1, reverse), ("dense-concat", "concat-input")),
    Mutation("cat-shifted", result((aten.cat,), 1, shift), ("tied-convolutions", "parameter-twice")),
    Mutation("stack-not-united", silent((aten.stack,), "broadcast"), ("pieces",)),
    Mutation("split-shifted", argument(SPLIT, "self", 1, shift), ("chunk-gate", "two-inputs")),
    Mutation("split-interleaved", argument(SPLIT, "self", 1, interleave), ("chunk-gate", "two-inputs")),
    Mutation("halves-free", silent(SPLIT, "unite", "literal"), ("pieces",)),
    Mutation("split-sizes-free", silent(SPLIT, "literal"), ("unequal-split",)),
    Mutation("glu-halves-free", silent((aten.glu,), "unite"), ("glu",)),
    Mutation("glu-interleaved", argument((aten.glu,), "self", 1, interleave), ("glu",)),
    Mutation("pad-on-the-other-side", treated_as((aten.pad,), padded_behind), ("pieces",)),
    Mutation("slice-shifted", argument((aten.slice,), "self", 1, shift), ("pieces",)),
    Mutation("slice-bounds-free", silent((aten.slice,), "literal"), ("pieces",)),
    Mutation("slice-from-the-end-free", silent((aten.slice,), "pin"), ("channel-slice",)),
    Mutation("roll-is-elementwise", treated_as((aten.roll,), elementwise), ("channel-roll",)),
    Mutation("cumsum-is-elementwise", treated_as((aten.cumsum,), elementwise), ("no-rule-cumsum",)),
    Mutation("channel-statistics-over-all", silent((aten.mean, aten.amax), "consume"),
             ("channel-mean-gate",)),
    Mutation("flatten-tiles", replaced(reshape, "_flat", tiled), ("avgpool-flatten",)),
    Mutation("reshape-reversed", result(VIEWS, 2, reverse), ("fused-qkv",)),
    Mutation("reshape-merged-shifted", result(VIEWS, -1, shift), ("fused-qkv", "maxpool-flatten")),
    Mutation("reshape-numbers-free", silent(VIEWS, "literal"), ("separate-qkv", "heads-bound-to-width")),
    Mutation("permute-shifted", result((aten.permute, aten.transpose), 1, shift), ("tiny-vit",)),
    Mutation("pixel-shuffle-tiled", argument((aten.pixel_shuffle,), "self", -3, interleave), ("shuffles",)),
    Mutation("pixel-unshuffle-reversed", result((aten.pixel_unshuffle,), -3, reverse), ("shuffles",)),
    Mutation("channel-shuffle-free", silent((aten.channel_shuffle,), "unite"), ("shuffles",)),
    Mutation("numbers-not-followed", replaced(execution.StructureGraph, "_follow_numbers", keeps_numbers),
             ("fused-qkv", "unequal-split", "depthwise-multiplier-2"), True),
    Mutation("stock-layer-norm", replaced(execution, "_LayerNormDependency", execution.Dependency),
             ("tiny-vit",), True),
)  # fmt: skip

HARMLESS = (
    # A number that counts the labels elsewhere disagrees, so they pin.
    Mutation("layernorm-reversed", LAYERNORM_REVERSED, ("convnext-block", "tiny-vit")),
    Mutation("split-shifted", argument(SPLIT, "self", 1, shift), ("unequal-split",)),
    # The wrong axis of a split is taken: what it means is pinned elsewhere, so less is pruned.
    Mutation("reshape-last-axis", replaced(reshape, "_pick_axis", lambda node, sizes, wide, first: wide[-1]),
             ("fused-qkv", "position-bias-heads")),
    Mutation("reshape-first-axis", replaced(reshape, "_pick_axis", lambda node, sizes, wide, first: wide[0]),
             ("channel-shuffle", "fused-qkv")),
    # Too much is united: fewer and larger units, each of them a sound one.
    Mutation("expand-as-shifted", result((aten.expand_as,), 1, shift), ("expand-gate",)),
)  # fmt: skip


# The judge.


def described(structure: Structure) -> Any:
    """Everything of a structure that pruning and the twin go by."""
    groups = [
        (
            group.kind,
            [(m.parameter, m.dim, m.index.tolist()) for m in group.members],
            [(c.node, c.arg, c.dim, c.normalizes, c.averages, c.index.tolist()) for c in group.consumers],
        )
        for group in structure.groups
    ]
    return groups, structure.constraints, structure.attributes


SAME, RIGHT, CAUGHT = "the structure is the same", "live, and right", "caught"


def verdict(id: str, mutation: Mutation) -> str:
    """What becomes of network ``id`` when it is analyzed and pruned with ``mutation``."""
    right = subject(id)
    captured = right.structure.capture
    with Patch.context() as patch:
        patch.setattr(analysis, "capture", lambda *args, **options: captured)
        mutation.corrupt(patch)
        try:
            structure = analyse(right.model, right.inputs, right.structure.task_objects)
        except Exception:
            return CAUGHT
        corrupted = Case(right.model, right.inputs, structure)
        if described(structure) == described(right.structure) and not mutation.executes:
            return SAME
        for seed, share in itertools.product(range(3), (None, 0.5, 0.3)):
            keep = random_keep(structure, seed, share)
            try:
                pruned = corrupted.pruned(keep)
                found = corrupted.outputs(pruned)
            except Exception:
                return CAUGHT
            if not deviation(found, corrupted.twin(keep)) <= 1e-9:
                return CAUGHT
            if not statistics(id):
                zeros = corrupted.outputs(zeroed(right.model, structure, keep))
                assert deviation(found, zeros) <= 1e-9, f"{mutation.id} on {id}: the twin was fooled"
    return RIGHT


def statistics(id: str) -> bool:
    return id in BY_ID and BY_ID[id].statistics


@pytest.mark.parametrize("id", [entry.id for entry in EXTRA])
def test_networks_made_for_this_file_are_right_to_begin_with(id: str) -> None:
    animal = subject(id)
    for seed in range(3):
        assert animal.deviation(random_keep(animal.structure, seed)) <= 1e-9


def on_networks(mutations: Iterable[Mutation]) -> list[Any]:
    return [pytest.param(each, id, id=f"{each.id}-{id}") for each in mutations for id in each.networks]


@pytest.mark.parametrize(("mutation", "id"), on_networks(MUTATIONS))
def test_a_corrupted_rule_is_caught(mutation: Mutation, id: str) -> None:
    assert verdict(id, mutation) == CAUGHT


@pytest.mark.parametrize(("mutation", "id"), on_networks(HARMLESS))
def test_a_rule_that_errs_on_the_safe_side_prunes_less_and_right(mutation: Mutation, id: str) -> None:
    assert verdict(id, mutation) == RIGHT


@pytest.mark.sweep
@pytest.mark.parametrize("mutation", [pytest.param(each, id=each.id) for each in MUTATIONS])
def test_a_corrupted_rule_never_fools_the_twin_on_any_network(mutation: Mutation) -> None:
    verdicts = {id: verdict(id, mutation) for id in (*ids, *(entry.id for entry in EXTRA))}

    assert CAUGHT in verdicts.values()
