"""Models and inputs meant to fool the engine: each comes out right, or refused by name, and never changed."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as masks

from disparse_structured import Compensated, DiSparse, prune
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import (
    BatchError,
    BudgetError,
    CaptureError,
    DisparseError,
    GradientError,
    LoadError,
    PatternError,
    TaskError,
    UnsupportedModelError,
    VerificationError,
)
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import Applied, apply, cut
from disparse_structured.surgery.saving import load
from disparse_structured.tasks import Task
from disparse_structured.verification.verifier import Verifier
from tests.support.plans import random_keep, snapshot
from tests.support.zoo import BY_ID, randomize_norms

Body = Callable[[Tensor, nn.ModuleDict], Tensor]
WHOLE = (Task("whole", lambda output: output),)
VOTES: dict[str, Any] = {"method": DiSparse(), "refit": None}


class Around(nn.Module):
    """A layer of 8 outputs, anything, and a layer that reads ``read`` channels."""

    def __init__(self, body: Body, read: int = 8, tokens: bool = False, **layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8) if tokens else nn.Conv2d(3, 8, 3, padding=1)
        self.body = body
        self.layers = nn.ModuleDict(layers)
        self.last = nn.Linear(read, 4) if tokens else nn.Conv2d(read, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x), self.layers))


def inputs_of(model: nn.Module) -> tuple[Tensor, ...]:
    shape = (2, 5, 6) if isinstance(next(model.children()), nn.Linear) else (2, 3, 6, 6)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def applied(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0, **options: Any) -> Applied:
    """A random plan of half the units, applied and verified; the model must be left as it was."""
    model.eval()
    before, state = snapshot(model), torch.get_rng_state()
    structure = analyse(model, inputs, WHOLE)
    plan = Plan.from_keep(structure, random_keep(structure, seed, 0.5))
    try:
        return apply(model, plan, structure, **options)
    finally:
        assert snapshot(model) == before
        assert torch.equal(torch.get_rng_state(), state)


# Operators and layers: what may be pruned is pruned right.


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def write_into_zeros(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = layers["upper"](x)
    y[:, 4:] = layers["lower"](x)
    return y


def add_to_a_slice(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    y = x.clone()
    y[:, :4] += layers["inner"](x)
    return y


def write_through_a_view(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    y = layers["inner"](x)
    y.flatten(2).mul_(2).transpose(1, 2).add_(1)
    return y


def without_gradients(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    with torch.no_grad():
        y = layers["inner"](x).relu()
        with torch.autocast("cpu", enabled=False):
            z = layers["inner"](y)
    return x + y * z


def causal_attention(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in layers["qkv"](x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def rotated(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat([-right, left], -1) * 0.3 + x * 0.7


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Centered(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


class Whitened(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.reshape(1, weight.shape[0], -1)
        return F.batch_norm(flat, None, None, training=True).reshape_as(weight)


def parametrized(layer: nn.Module, parametrization: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def masked_layer() -> nn.Module:
    return masks.l1_unstructured(conv(8, 6), "weight", 0.3)


def inner(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    return layers["inner"](x)


def bias_apart(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    layer = layers["inner"]
    return F.conv2d(x, layer.weight) + layer.bias.mean()


def image(body: Body, read: int = 8, **layers: nn.Module) -> Callable[[], Around]:
    return lambda: Around(body, read, **copy.deepcopy(layers))


def tokens(body: Body, read: int = 8, **layers: nn.Module) -> Callable[[], Around]:
    return lambda: Around(body, read, tokens=True, **copy.deepcopy(layers))


PRUNABLE: dict[str, Callable[[], nn.Module]] = {
    # memory written in place
    "write-into-zeros": image(write_into_zeros, upper=conv(8, 4), lower=conv(8, 4)),
    "add-to-a-slice": image(add_to_a_slice, inner=conv(8, 4)),
    "write-through-a-view": image(write_through_a_view, inner=conv(8, 8)),
    "inplace-activation": image(inner, inner=nn.Sequential(nn.ReLU6(inplace=True), nn.Hardswish(True))),
    # regions
    "no-grad-region": image(without_gradients, inner=conv(8, 8)),
    # shapes
    "view-of-another-type": image(lambda x, _: x.view(torch.int32).view(x.dtype) if x.itemsize == 4 else x),
    "cast-like-a-stranger": image(lambda x, layers: x.type_as(layers["it"].weight), it=nn.Linear(5, 7)),
    "concat-with-empty": image(lambda x, _: torch.cat([torch.empty(0), x, x[:, :0]], 1)),
    "concat-of-empties": image(lambda x, _: x + torch.cat([torch.empty(0), torch.empty(0)]).sum()),
    "new-leading-dimension": image(lambda x, _: x.expand(2, *x.shape).sum(0) + x.repeat(2, 1, 1, 1, 1)[0]),
    "kernel-for-every-channel": image(
        lambda x, _: F.conv2d(x, torch.ones(1, 1, 3, 3).to(x).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])
    ),
    "negative-dimensions": image(lambda x, _: x.permute(0, -2, -1, -3).movedim(-1, -3)),
    "unflatten-from-the-end": image(lambda x, _: x.unflatten(-3, (2, -1)).sum(1), 4),
    "slices-from-both-ends": image(lambda x, _: x[:, 2:-2], 4),
    "split-by-the-width": image(lambda x, _: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1)),
    "outer-sum": image(lambda x, _: (x.unsqueeze(1) * x.unsqueeze(2)).sum(1)),
    "where-with-a-number": image(lambda x, _: torch.where(x > 0, x, 0.5)),
    # layers
    "same-padding": image(inner, 6, inner=nn.Conv2d(8, 6, 3, padding="same")),
    "circular-padding": image(inner, 6, inner=nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")),
    "batch-statistics": image(inner, inner=nn.BatchNorm2d(8, track_running_stats=False)),
    "norm-without-anything": image(inner, inner=nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
    "weight-norm": image(
        inner, 6, inner=nn.Sequential(parametrizations.weight_norm(conv(8, 6)), nn.ReLU(), conv(6, 6))
    ),
    "computed-weight": image(
        inner, 6, inner=nn.Sequential(parametrized(conv(8, 6), Doubled()), nn.ReLU(), conv(6, 6))
    ),
    "centered-weight": image(inner, 6, inner=parametrized(conv(8, 6), Centered())),
    "weight-through-batch-norm": image(inner, 6, inner=parametrized(conv(8, 6), Whitened())),
    "computed-scale": image(inner, inner=parametrized(nn.BatchNorm2d(8), Doubled())),
    "masked-weight": lambda: Around(inner, 6, inner=nn.Sequential(masked_layer(), nn.ReLU(), conv(6, 6))),
    "bias-used-apart": image(bias_apart, 8, inner=conv(8, 8)),
    "weight-used-alone": image(
        lambda x, layers: torch.einsum("bchw,oc->bohw", x, layers["it"].weight), 7, it=nn.Linear(8, 7)
    ),
    "causal-attention": tokens(causal_attention, qkv=nn.Linear(8, 24)),
    "rotary-halves": tokens(rotated),
    "transformer-layer": tokens(inner, inner=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "vector-input": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("id", PRUNABLE)
def test_awkward_networks_are_pruned_right(id: str) -> None:
    torch.manual_seed(1)
    model = PRUNABLE[id]().eval()
    randomize_norms(model)
    inputs = inputs_of(model)
    before = snapshot(model)
    structure = analyse(model, inputs, WHOLE)
    assert snapshot(model) == before
    verifier = Verifier(model, structure, cut)

    assert structure.groups
    for seed in range(3):
        keep = random_keep(structure, seed)
        assert verifier.mismatch(keep) is None
        pruned = cut(model, structure, keep)
        counted = sum(parameter.numel() for parameter in pruned.parameters())
        assert counted == structure.cost.parameters.total(keep)
    assert snapshot(model) == before


def as_bytes(x: Tensor, layers: nn.ModuleDict) -> Tensor:
    return x.transpose(1, 3).contiguous().view(torch.uint8).transpose(1, 3)[:, :8].to(x.dtype)


PINNED: dict[str, Callable[[], nn.Module]] = {
    # the positions of what is taken are numbers that do not follow
    "narrow-from-the-end": image(lambda x, _: torch.narrow(x, 1, -4, 4), 4),
    "cut-at-a-position": image(lambda x, _: torch.cat(torch.tensor_split(x, [4], 1)[::-1], 1)),
    "indexed-by-a-mask": image(lambda x, _: x + x[torch.ones(x.shape, dtype=torch.bool)].sum()),
    "values-select": image(lambda x, _: x + x[x > 0].sum() + torch.nonzero(x > 0).sum()),
    "view-as-bytes": image(as_bytes),
    "vector-of-weights": tokens(
        lambda x, layers: x * F.linear(x, layers["it"].weight[0])[..., None], it=nn.Linear(8, 3)
    ),
    # a number computed from the width, where it must stay
    "resized-to-the-width": image(lambda x, _: F.interpolate(x, size=(x.shape[1], x.shape[1]))),
    "divided-by-the-width": image(lambda x, _: x + x.sum(1, keepdim=True) / x.shape[1]),
    "repeated-by-the-width": image(lambda x, _: x.repeat(1, x.shape[1], 1, 1), 64),
    "groups-by-the-width": image(lambda x, _: F.group_norm(x, x.shape[1] // 4)),
    "padded-up-to-a-width": image(lambda x, _: F.pad(x, (0, 0, 0, 0, 0, 16 - x.shape[1])), 16),
}


@pytest.mark.parametrize("id", PINNED)
def test_what_cannot_follow_is_frozen_from_the_start(id: str) -> None:
    model = PINNED[id]().eval()
    structure = analyse(model, inputs_of(model), WHOLE)

    assert all(member.parameter != "first.weight" for group in structure.groups for member in group.members)
    assert any("first" in pin.module or pin.parameters for pin in structure.pinned)


class SingleParts(nn.Module):
    """Splits off single channels that broadcast. None can be removed: nothing does not broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.sizes = [6, 1, 1]
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        many, one, other = self.first(x).split(self.sizes, 1)
        return self.last(many * one + other)


def test_single_channels_that_broadcast_stay() -> None:
    model = SingleParts()
    structure = analyse(model, inputs_of(model), WHOLE)

    assert [group.units for group in structure.groups] == [6]
    assert applied(model, inputs_of(model)).refused == ()


class LateWrite(nn.Module):
    """Task ``sum`` sees layer ``side`` only through an in-place write; ``early`` reads before it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1))
        self.early = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.sum = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.trunk(x).clone()
        early = self.early(y)
        y[:, :4] += self.side(x)
        return {"sum": self.sum(y), "early": early}


def test_reach_and_votes_go_through_writes_in_place() -> None:
    model = LateWrite().eval()
    tasks = [Task("sum", "sum"), Task("early", "early")]
    structure = analyse(model, (torch.randn(2, 3, 6, 6),), tasks)
    reach = {group.name: group.reach for group in structure.groups}

    assert reach["side.0"] == ("sum",)
    assert reach["early.0"] == ("early",)
    pruned = prune(model, torch.randn(2, 3, 6, 6), tasks, macs=0.6, **VOTES)
    assert pruned.report.verification.verified
    assert pruned.report.refused == ()


# Numbers that a module keeps to itself.


@dataclasses.dataclass
class Config:
    dim: int = 8


Pair = collections.namedtuple("Pair", "left right")


class Numbers(nn.Module):
    def __init__(self, forward: Callable[[Numbers, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 4)
        self.dim = 8
        self.config = Config()
        self.numbers = {"dim": 8}
        self.pair = Pair(4, 4)
        self.parts = [4, 4]
        self.size = torch.Size([2, 4])
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self, self.first(x)))


def swap(x: Tensor, sizes: Any) -> Tensor:
    left, right = x.split(sizes, -1)
    return torch.cat([right, left], -1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.reshape(*x.shape[:-1], self.config.dim),
        lambda self, x: x.reshape(*x.shape[:-1], self.numbers["dim"]),
        lambda self, x: swap(x, self.pair),
        lambda self, x: x.reshape(*x.shape[:-1], *self.size).transpose(-1, -2).flatten(-2),
    ],
    ids=["dataclass", "dict", "namedtuple", "size"],
)
def test_hidden_numbers_freeze_what_they_count(forward: Callable[[Numbers, Tensor], Tensor]) -> None:
    model = Numbers(forward)
    before = snapshot(model)
    structure = analyse(model, (torch.randn(2, 5, 6),), WHOLE)

    assert structure.groups == ()
    assert snapshot(model) == before


def test_numbers_in_a_list_follow_and_stay_plain_integers() -> None:
    pruned = applied(Numbers(lambda self, x: swap(x, self.parts)), (torch.randn(2, 5, 6),)).model

    assert pruned.parts == [2, 2]
    assert [type(number) for number in pruned.parts] == [int, int]
    assert (type(pruned.size), type(pruned.pair)) == (torch.Size, Pair)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.reshape(*x.shape[:-1], self.dim) * self.dim**-0.5,
        lambda self, x: x / x.shape[-1] ** 0.5,
        lambda self, x: x * len("x" * x.shape[-1]),
    ],
    ids=["scale-of-an-attribute", "scale-of-the-width", "scale-through-a-string"],
)
def test_a_scale_keeps_the_width_that_it_is_computed_from(
    forward: Callable[[Numbers, Tensor], Tensor],
) -> None:
    structure = analyse(Numbers(forward), (torch.randn(2, 5, 6),), WHOLE)

    assert structure.groups == ()
    assert "forward computes a real number from the width" in {pin.reason for pin in structure.pinned}


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.relu() if self.dim == 8 and x.shape[-1] == 8 else x,
        lambda self, x: x if x.shape[-1] == 8 else x * float("nan"),
        lambda self, x: x + torch.tensor([[float("inf")], *[[0.0]] * 4]) if x.shape[-1] == 8 else x,
    ],
    ids=[
        "branch-on-the-width",
        "nan-below-the-width",
        "infinite-at-full-width",
    ],
)
def test_what_shifts_with_the_width_is_refused_by_name(forward: Callable[[Numbers, Tensor], Tensor]) -> None:
    done = applied(Numbers(forward), (torch.randn(2, 5, 6),))

    assert [refusal.group for refusal in done.refused] == ["first"]
    assert "deviates from the masked twin" in done.refused[0].reason
    assert done.plan.removals == {}


def test_only_the_culprit_is_left_alone() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6 if i == 0 else 8, 8) for i in range(9))
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = layer(x).relu()
                x = x * 2 if i in (2, 6) and x.shape[-1] == 8 else x
            return self.last(x)

    done = applied(Chain(), (torch.randn(2, 6),))

    assert {refusal.group for refusal in done.refused} == {"layers.2", "layers.6"}
    assert len(done.plan.removals) == 7


def test_layers_know_their_new_widths() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 8, padding_idx=0)
            self.mix = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), parametrized(nn.Linear(10, 8), Doubled()))
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.table.weight

        def forward(self, words: Tensor) -> Tensor:
            x = self.table(words)
            return self.out(x + self.mix(x))

    pruned = applied(Tied(), (torch.randint(0, 11, (2, 5)),)).model

    assert pruned.out.weight is pruned.table.weight
    assert repr(pruned.table) == "Embedding(11, 4, padding_idx=0)"
    assert repr(pruned.mix[0]) == "Linear(in_features=4, out_features=5, bias=True)"
    assert (pruned.mix[2].in_features, pruned.mix[2].out_features) == (5, 4)
    assert repr(pruned.out) == "Linear(in_features=4, out_features=11, bias=False)"


# Verification.


class HiddenBehindZero(nn.Module):
    """Wrong below full width, but multiplied by a scale that starts at zero."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.branch = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.zeros(8) if zero else torch.ones(8))
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.scale * self.branch(x) * (1.0 / x.shape[-1]))


@pytest.mark.parametrize("zero", [True, False])
def test_a_scale_of_zero_hides_no_mistake(zero: bool) -> None:
    assert len(applied(HiddenBehindZero(zero), (torch.randn(2, 6),)).refused) == 1


def test_infinite_outputs_hide_no_mistake() -> None:
    def masked(self: Numbers, x: Tensor) -> Tensor:
        return x * (1.0 / x.shape[-1])

    class Masked(Numbers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.eye(5, 4) > 0, float("-inf"))

    assert len(applied(Masked(masked), (torch.randn(2, 5, 6),)).refused) == 1
    assert applied(Masked(lambda self, x: x.relu()), (torch.randn(2, 5, 6),)).refused == ()


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (lambda self, x: x + torch.randn_like(x), "does not agree with its own exported graph, with nothing"),
        (lambda self, x: x * float("nan"), "holds no finite number"),
    ],
    ids=["noise", "nan"],
)
def test_a_model_that_proves_nothing_is_refused(
    forward: Callable[[Numbers, Tensor], Tensor], text: str
) -> None:
    with pytest.raises(VerificationError, match=text):
        applied(Numbers(forward), (torch.randn(2, 5, 6),))


class Casting(Numbers):
    """Its weights in float64 would meet inputs in float32, if casts were followed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Table(Numbers):
    """Has a factor in float32 that no ``model.double()`` reaches."""

    def __init__(self, forward: Callable[[Numbers, Tensor], Tensor]) -> None:
        super().__init__(forward)
        self.table = {"factor": torch.eye(4)}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.table["factor"]


@pytest.mark.parametrize(("kind", "dtype"), [(Casting, "torch.float64"), (Table, "torch.float32")])
def test_a_model_is_proven_in_the_widest_type_it_runs_in(kind: type[Numbers], dtype: str) -> None:
    done = applied(kind(lambda self, x: x.relu()), (torch.randn(2, 5, 6),))

    assert done.verification is not None
    assert done.verification.dtype == dtype
    assert done.refused == ()
    assert done.plan.removals


class Half(nn.Sequential):
    """Runs in half precision only, whatever the type of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16())


def test_a_model_that_runs_in_half_precision_only_is_named_with_the_way_out() -> None:
    model = Half(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).bfloat16().eval()
    structure = analyse(model, (torch.randn(2, 3, 6, 6),), WHOLE)
    plan = Plan.from_keep(structure, random_keep(structure, 0, 0.5))

    with pytest.raises(
        CaptureError, match=r"^Half does not run in float32, .*verification with verify=False"
    ):
        apply(model, plan, structure)
    assert apply(model, plan, structure, verify=False).plan.removals


# The user's model.


class Merging(nn.Linear):
    """Merges its update into the weight in eval mode, as low-rank adapters do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.update = nn.Parameter(torch.randn(outputs, inputs))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        with torch.no_grad():
            if mode == self.merged:
                self.weight.add_(self.update, alpha=-1 if mode else 1)
                self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + self.update, self.bias)


def test_a_train_method_of_the_users_own_is_not_called() -> None:
    model = nn.Sequential(Merging(6, 8), nn.ReLU(), Merging(8, 4)).train()
    before = snapshot(model)
    pruned = prune(model, torch.randn(2, 6), WHOLE, parameters=0.6, **VOTES)

    assert snapshot(model) == before
    assert pruned.report.verification.verified
    assert not pruned.model[0].merged


def test_activations_that_a_layer_remembers_do_not_hinder() -> None:
    class Watched(Numbers):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = [super().forward(x)]
            return self.seen[0]

    model = Watched(lambda self, x: x.relu())
    seen = model(torch.randn(2, 5, 6))
    done = applied(model, (torch.randn(2, 5, 6),))

    assert done.refused == ()
    assert model.seen[0] is seen


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        self.grids: dict[tuple[int, ...], Tensor] = {}
        self.scale: Tensor | None = None
        self.height = 0

    def forward(self, x: Tensor) -> Tensor:
        self.height = x.shape[2]
        size = tuple(x.shape[2:])
        if size not in self.grids:
            self.grids[size] = torch.ones(size) * 2
        if self.scale is None:
            self.scale = self.first.bias * 2
        return self.last(self.first(x) * self.grids[size] + self.scale[:, None, None])


def test_what_forward_remembers_is_not_left_behind() -> None:
    model = Remembering().eval()
    analyse(model, (torch.randn(2, 3, 6, 6),), WHOLE)

    assert (model.grids, model.scale, model.height, type(model.height)) == ({}, None, 0, int)
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


X = torch.linspace(-1, 1, 12).reshape(2, 6)


def losing(loss: Callable[[Tensor, Any], Any]) -> dict[str, Any]:
    return {"tasks": [Task("whole", lambda output: output, loss=loss)], "data": [(X, X)]}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tasks": []}, TaskError, "no task was given"),
        ({"tasks": WHOLE[0]}, TaskError, "Pass a list of one"),
        ({"tasks": [Task("a", "depth")]}, TaskError, "misses at 'depth'"),
        ({"tasks": [*WHOLE, Task("b", lambda _: X)]}, TaskError, "'b' reaches nothing"),
        (losing(lambda output, _: output), TaskError, "expected a floating-point tensor with one value"),
        (losing(lambda output, _: output.sum() * float("inf")), TaskError, "its loss is"),
        (losing(lambda output, _: (output * 0).abs().sqrt().sum()), GradientError, "layer '4' is NaN"),
        ({"data": []}, BatchError, "yields no batch"),
        ({"data": [torch.randn(2, 7)]}, BatchError, "refused a batch"),
        ({"macs": 0.0}, BudgetError, "would leave no model"),
        ({"macs": 1.0}, BudgetError, "Use a fraction between 0 and 1"),
        ({"macs": 1e-6}, BudgetError, "cannot be met"),
        ({"macs": None, "budget": Budget(macs=0.5, protected=("nothing*",))}, PatternError, "nothing"),
        ({"model": nn.DataParallel(mlp())}, UnsupportedModelError, "its .module"),
        ({"model": "mlp"}, UnsupportedModelError, "the model is a str"),
    ],
)
def test_bad_input_is_refused_and_nothing_changes(
    options: dict[str, Any], error: type[DisparseError], text: str
) -> None:
    dense = mlp().train()
    dense[2].eval()
    before, state = snapshot(dense), torch.get_rng_state()

    with pytest.raises(error, match=text):
        prune(**({"model": dense, "data": X, "tasks": WHOLE, "macs": 0.5} | VOTES | options))
    assert snapshot(dense) == before
    assert torch.equal(torch.get_rng_state(), state)


# Saving and loading.


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("shift", torch.arange(16.0), persistent=False)
        self.register_buffer("scale", torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scale + self.shift)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, batch: dict[str, Tensor], times: int) -> dict[str, Tensor]:
        return {"out": self.last((self.left(batch["left"]) + self.right(batch["right"])) * times)}


class OwnState(Buffers):
    """Its state has other names, leaves a layer out, and holds more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        """Nothing depends on it."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {f"net.{name}": value for name, value in state.items() if "last" not in name}


@pytest.mark.parametrize(
    ("factory", "inputs", "output"),
    [
        (OwnState, (X,), lambda output: output),
        (Buffers, (X,), lambda output: output),
        (TwoInputs, ({"left": X, "right": X[:, :3]}, 3), "out"),
        (lambda: mlp().bfloat16(), (X.bfloat16(),), lambda output: output),
        (lambda: nn.Sequential(*mlp(), scaled_tail()), (X,), lambda output: output),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), *mlp()), (X,), lambda o: o),
    ],
    ids=["own-state", "buffers", "two-inputs", "bfloat16", "refused-group", "weight-norm"],
)
def test_what_was_saved_loads_bit_by_bit(
    factory: Callable[[], nn.Module], inputs: tuple[Any, ...], output: Any, tmp_path: Path
) -> None:
    pruned = prune(
        factory().eval(), [inputs], [Task("out", output)], parameters=0.7, to_inputs=tuple, **VOTES
    )
    pruned.save(tmp_path)
    torch.manual_seed(5)
    loaded = load(tmp_path, factory)

    assert list(loaded.state_dict()) == list(pruned.model.state_dict())
    for found, wanted in zip(
        torch.utils._pytree.tree_leaves(loaded(*inputs)),
        torch.utils._pytree.tree_leaves(pruned.model(*inputs)),
        strict=True,
    ):
        assert torch.equal(found, wanted)


def scaled_tail() -> nn.Module:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return self.last(x * (1.0 / x.shape[-1]))

    return Tail()


def test_a_model_pruned_twice_loads_through_its_first_folder(tmp_path: Path) -> None:
    first = prune(mlp(), X, WHOLE, macs=0.6, **VOTES)
    first.save(tmp_path / "first")
    second = prune(first.model, X, WHOLE, macs=0.6, **VOTES)
    second.save(tmp_path / "second")
    loaded = load(tmp_path / "second", lambda: load(tmp_path / "first", mlp))

    assert torch.equal(loaded(X), second.model(X))
    with pytest.raises(DisparseError, match="another model"):
        load(tmp_path / "second", mlp)


def test_inputs_that_json_cannot_hold_are_asked_for(tmp_path: Path) -> None:
    class TakesPair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, pair: Any) -> Tensor:
            return self.net(pair.left)

    inputs = (Pair(X, X),)
    pruned = prune(TakesPair(), [inputs], WHOLE, macs=0.6, to_inputs=tuple, **VOTES)
    pruned.save(tmp_path)

    with pytest.raises(LoadError, match="Pass example_inputs="):
        load(tmp_path, TakesPair)
    assert torch.equal(load(tmp_path, TakesPair, example_inputs=inputs)(*inputs), pruned.model(*inputs))


# Determinism.


def plans() -> list[str]:
    """Of two networks, by two methods."""
    made = []
    for id, method in (("tiny-vit", DiSparse()), ("squeeze-excite", Compensated(rounds=1))):
        entry = BY_ID[id]
        options: dict[str, Any] = {"macs": 0.6, "method": method, "refit": None, "verify": False, "seed": 3}
        made.append(prune(entry.factory(), entry.inputs(), entry.tasks, **options).plan.to_json())
    return made


SCRIPT = """
import json, torch
torch.set_num_threads(1)
from tests.pipeline.test_adversarial import plans
print(json.dumps(plans()))
"""


def test_the_plan_is_the_same_in_every_process() -> None:
    """Here, and in a process whose sets have another order."""
    root = Path(__file__).parents[2]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)

    here = plans()
    assert json.loads(run.stdout) == here
    assert all("fingerprint" in plan for plan in here)
