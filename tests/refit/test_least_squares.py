"""Least squares finds what is there to be found: removed channels that the kept ones make up for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.refit import refit
from disparse_structured.refit.contraction import Operands, contractions
from disparse_structured.refit.design import design, positions, target
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task

KEPT = 5
"""Of eight channels, the last three are combinations of the first five."""


def combine(*layers: nn.Module, shift: float = 0.0, groups: int = 1) -> None:
    """Makes the last channels of each layer the same linear combinations of the first, plus a constant."""
    mix = torch.randn(groups, 8 // groups - KEPT // groups, KEPT // groups)
    with torch.no_grad():
        for layer in layers:
            rows = layer.weight.view(groups, 8 // groups, -1)
            rows[:, KEPT // groups :] = mix @ rows[:, : KEPT // groups]
            if layer.bias is not None:
                bias = layer.bias.view(groups, 8 // groups, 1)
                bias[:, KEPT // groups :] = mix @ bias[:, : KEPT // groups] + shift


def duplicate(*tensors: Tensor) -> None:
    """The last positions of the first dimension as copies of the first ones."""
    with torch.no_grad():
        for tensor in tensors:
            tensor[KEPT:] = tensor[: len(tensor) - KEPT]


def convolution(**options: int | str) -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=1)
    combine(first)
    return nn.Sequential(first, nn.Conv2d(8, 4, 3, **options))


def grouped() -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=1)
    combine(first, groups=2)
    return nn.Sequential(first, nn.Conv2d(8, 6, 3, groups=2))


def depthwise() -> nn.Module:
    first, middle = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False)
    combine(first)
    with torch.no_grad():
        middle.weight.copy_(middle.weight[:1].expand_as(middle.weight))
    return nn.Sequential(first, middle, nn.Conv2d(8, 4, 1))


def transposed(groups: int = 1) -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=1)
    combine(first, groups=groups)
    return nn.Sequential(
        first, nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=groups)
    )


def through_batch_norm() -> nn.Module:
    """The removed channels' constant can only go into the running mean."""
    first = nn.Conv2d(3, 8, 3)
    combine(first, shift=2.0)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return nn.Sequential(first, nn.Conv2d(8, 4, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(4, 2, 1))


def linear() -> nn.Module:
    first = nn.Linear(6, 8)
    combine(first, shift=1.0)
    return nn.Sequential(first, nn.Linear(8, 4))


def one_dimension() -> nn.Module:
    first = nn.Conv1d(3, 8, 3)
    combine(first)
    return nn.Sequential(first, nn.Conv1d(8, 4, 3, stride=2, padding="valid"))


def three_dimensions() -> nn.Module:
    first = nn.Conv3d(2, 8, 1)
    combine(first)
    return nn.Sequential(first, nn.Conv3d(8, 4, (1, 2, 3), padding="same"))


class ResidualBlocks(nn.Module):
    """Two blocks whose inner channels, after batch norm and ReLU, come in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1) for _ in range(2))
        for layer, norm in zip(self.inner, self.norms, strict=True):
            nn.init.normal_(norm.bias)
            duplicate(layer.weight, layer.bias, norm.weight, norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, norm, outer in zip(self.inner, self.norms, self.outer, strict=True):
            x = x + outer(F.relu_(norm(inner(x))))
        return x


class PatchTransformer(nn.Module):
    """Patch embedding and one block; three of eight heads and of eight hidden units are copies of others."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 8), nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)
        duplicate(self.up.weight, self.up.bias)
        for part in range(3):
            rows = slice(16 * part, 16 * (part + 1))
            duplicate(self.qkv.weight[rows].view(8, 2, 16), self.qkv.bias[rows].view(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 8, 2).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, -1))
        return self.head(x + self.down(F.gelu(self.up(x))))


class SharedHead(nn.Module):
    """One head for two levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, stride=2)
        combine(self.fine, self.coarse)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.fine(x)), self.head(self.coarse(x))


class Unbatched(nn.Module):
    """The second convolution reads one image, the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        combine(self.first, shift=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).mean(0))


IMAGE = (3, 8, 8)

REDUNDANT: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (convolution, IMAGE),
    "conv-padded": (lambda: convolution(padding=1), IMAGE),
    "dilated-strided": (lambda: convolution(padding=2, dilation=2, stride=2), IMAGE),
    "same-padding": (lambda: convolution(padding="same"), IMAGE),
    "grouped": (grouped, IMAGE),
    "depthwise-pointwise": (depthwise, IMAGE),
    "transposed": (transposed, IMAGE),
    "transposed-grouped": (lambda: transposed(2), IMAGE),
    "batch-norm": (through_batch_norm, IMAGE),
    "linear": (linear, (6,)),
    "conv1d": (one_dimension, (3, 12)),
    "conv3d": (three_dimensions, (2, 4, 4, 4)),
    "residual": (ResidualBlocks, IMAGE),
    "transformer": (PatchTransformer, IMAGE),
    "unbatched": (Unbatched, (3, 12, 12)),
    "shared-head": (SharedHead, (3, 12, 12)),
}


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().double()


def examples(shape: tuple[int, ...], count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def redundant(structure: Structure) -> Tensor:
    """Without the redundant units: of eight the last three, of four that are channel pairs the last two."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        if group.units == 8:
            keep[group.start + KEPT : group.slice.stop] = False
        elif group.units == 4 and group.members[0].index.shape[1] == 2:
            keep[group.start + KEPT // 2 : group.slice.stop] = False
    return keep


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", REDUNDANT)
def test_removed_channels_that_the_kept_ones_span_are_recovered_exactly(name: str) -> None:
    make, shape = REDUNDANT[name]
    model = build(make)
    tasks = [Task("all", lambda output: output)]
    structure = analyse(model, (examples(shape, 2),), tasks)
    keep = redundant(structure)
    assert not keep.all()
    done = refit(model, structure, keep, examples(shape, 48).split(16))
    small = apply(done.model, Plan.from_keep(structure, keep), structure)
    assert small.verification is not None
    assert sum(p.numel() for p in small.model.parameters()) < sum(p.numel() for p in model.parameters())
    fresh = examples(shape, 8, seed=2)
    for found, wanted in zip(outputs(small.model, fresh), outputs(model, fresh), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert done.facts.before["all"] > 1e-2
    assert done.facts.after["all"] < 1e-6


def outer_model(layer: nn.Module, before: int, after: int, dims: int) -> nn.Module:
    pointwise = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(pointwise(2, before, 1), layer, pointwise(after, 2, 1))


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, int]:
    """A convolution of any kind, and the size of its input."""
    dims = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 3]))
    multiplier = draw(st.sampled_from([1, 2]))
    depthwise = draw(st.booleans())
    before = 6
    after = before * multiplier
    options = {
        "kernel_size": tuple(draw(st.integers(1, 3)) for _ in range(dims)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(dims)),
        "groups": before if depthwise else groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        strides = tuple(draw(st.integers(1, 3)) for _ in range(dims))
        extra = tuple(
            draw(st.integers(0, max(step, far) - 1))
            for step, far in zip(strides, options["dilation"], strict=True)
        )
        transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
        padding = tuple(draw(st.integers(0, 1)) for _ in range(dims))
        return outer_model(
            transposed(before, after, stride=strides, padding=padding, output_padding=extra, **options),
            before,
            after,
            dims,
        ), dims
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    padding = draw(st.sampled_from(["same", "valid", *range(3)]))
    stride = 1 if padding == "same" else tuple(draw(st.integers(1, 2)) for _ in range(dims))
    return outer_model(
        plain(before, after, stride=stride, padding=padding, **options), before, after, dims
    ), dims


@settings(max_examples=40, deadline=None)
@given(layers(), st.integers(0, 2**16))
def test_a_convolution_is_its_design_times_its_matrix(made: tuple[nn.Module, int], seed: int) -> None:
    """``Y = X W^T`` for every kind of convolution, at the kept channels and at drawn positions."""
    model, dims = made
    model = model.eval().double()
    x = examples((2, *(7,) * dims), 2, seed)
    structure = analyse(model, (x,), [Task("all", lambda output: output)])
    keep = torch.ones(structure.units, dtype=torch.bool)
    rng = np.random.default_rng(seed)
    for group in structure.groups:
        keep[group.slice] = torch.from_numpy(rng.permutation(group.units) >= rng.integers(group.units))
    layer = model[1]
    contraction = next(each for each in contractions(structure, keep) if each.weight == "1.weight")
    (node,) = contraction.nodes
    value = model[0](x).detach()
    masked = torch.zeros_like(value)
    reads = contraction.inputs.reshape(-1)
    masked[:, reads] = value[:, reads]
    result = layer(masked).detach()
    total, each = positions(node, result)
    assert (total, each) == (result[0, 0].numel(), 2)
    places = torch.from_numpy(rng.permutation(total)[: max(1, total // 2)].copy())
    bias = 0 if layer.bias is None else layer.bias.detach()[contraction.outputs][:, None]
    weight = layer.weight.detach()
    matrix = contraction.matrix(weight)
    torch.testing.assert_close(
        design(contraction, node, value, places) @ matrix.mT + bias, target(contraction, node, result, places)
    )
    assert torch.equal(contraction.with_matrix(weight, matrix), weight)
    assert Operands.of(node).groups == layer.groups
    changed = contraction.with_matrix(weight, matrix + 1)
    assert int((changed != weight).sum()) == matrix.numel()
