"""Refits of awkward networks, on awkward inputs, in little memory; and what they leave alone."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.graph.schedule import Step
from disparse_structured.refit import (
    Affine,
    BatchNormStatistics,
    LeastSquares,
    ModelFolding,
    Refit,
    RefitMethod,
    refit,
)
from disparse_structured.refit.context import RefitContext
from disparse_structured.report.refit import SkippedLayer
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task
from tests.support.experts import NAMES, routed
from tests.support.zoo import BY_ID

METHODS = (LeastSquares(), LeastSquares(merge=True), Affine(), BatchNormStatistics(), ModelFolding())

WHOLE = [Task("all", lambda output: output)]


def small(seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm, ReLU, convolution, ReLU, convolution; float64, eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1),
        )  # fmt: skip
    return model.double().eval()


def images(count: int, seed: int = 1, channels: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def thinned(structure: Structure) -> Tensor:
    """Every group that no count constraint binds loses a third of its units."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        if structure.bound_to([group.name]) == {group.name}:
            keep[group.start : group.start + group.units // 3] = False
    return keep


def analyzed(model: nn.Module, x: Tensor | None = None) -> tuple[Structure, Tensor]:
    structure = analyse(model, (images(2) if x is None else x,), WHOLE)
    return structure, thinned(structure)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def finite(done: Refit) -> bool:
    return all(bool(t.isfinite().all()) for t in done.model.state_dict().values() if t.is_floating_point())


AWKWARD = """grouped-chain-2-3 depthwise-multiplier-2 transposed-grouped instancenorm-affine convnext-block
    called-twice tied-convolutions dense-concat chunk-gate two-batchnorms tiny-vit fused-qkv tied-transpose
    nested-output two-inputs""".split()


@pytest.mark.parametrize(
    ("id", "method"),
    [(id, LeastSquares()) for id in AWKWARD] + list(zip(AWKWARD, METHODS[1:] * 3, strict=False))[::3],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_awkward_networks_come_out_nearer_and_can_be_cut(id: str, method: RefitMethod) -> None:
    entry = BY_ID[id]
    model = entry.factory(torch.float64)
    structure = analyse(model, entry.inputs(dtype=torch.float64), entry.tasks)
    keep = thinned(structure)
    data = [(entry.inputs(8, torch.float64, seed),) for seed in range(4)]
    done = refit(model, structure, keep, data, method=method)
    assert apply(done.model, Plan.from_keep(structure, keep), structure).verification is not None
    if isinstance(method, BatchNormStatistics):
        return  # the zoo's statistics are not those of its inputs, so new ones are further off
    facts = done.facts
    assert sum(facts.after.values()) < sum(facts.before.values())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_nothing_removed_is_the_same_network_bit_for_bit(method: RefitMethod) -> None:
    model = small()
    structure, keep = analyzed(model)
    done = refit(model, structure, torch.ones_like(keep), images(16).split(8), method=method)
    assert done.model is not model
    assert same(weights(done.model), weights(model))
    assert done.facts.before == done.facts.after == {"all": 0.0}
    assert done.facts.layers == done.facts.skipped == ()


@pytest.mark.parametrize("method", [LeastSquares(), BatchNormStatistics()], ids=repr)
def test_the_users_model_and_random_states_stay(method: RefitMethod) -> None:
    model = small().train()
    model[1].eval()
    structure, keep = analyzed(model)
    model(images(4)).sum().backward()
    before, grads = weights(model), [parameter.grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002

    def shuffled() -> Iterator[Tensor]:
        for _ in range(4):
            random.random()
            np.random.rand()  # noqa: NPY002
            yield torch.randn(8, 3, 8, 8, dtype=torch.float64)

    done = refit(model, structure, keep, shuffled(), method=method)
    assert same(weights(model), before)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in done.model.modules()] == modes
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_same_seed_gives_the_same_weights() -> None:
    model = small()
    structure, keep = analyzed(model)

    def run(seed: int, outside: int) -> dict[str, Tensor]:
        torch.manual_seed(outside)
        data = (torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(4))
        return weights(refit(model, structure, keep, data, method=LeastSquares(seed=seed)).model)

    with torch.random.fork_rng(devices=[]):
        first = run(0, outside=1)
        assert same(run(0, outside=2), first)
        assert not same(run(1, outside=2), first)


def constant(count: int) -> Tensor:
    return torch.full((count, 3, 8, 8), 0.5, dtype=torch.float64)


def dead(model: nn.Sequential) -> None:
    """Most channels of the first layer are never on."""
    with torch.no_grad():
        model[1].bias[2:] = -100


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(
    ("x", "spoil"),
    [
        (constant(24), lambda model: None),
        (torch.zeros(24, 3, 8, 8, dtype=torch.float64), dead),
        (images(24), dead),
        (images(24), lambda model: nn.init.zeros_(model[3].weight)),
    ],
    ids=["constant", "zeros-dead", "dead", "no-weights"],
)
def test_dead_channels_and_constant_images_are_harmless(
    method: RefitMethod, x: Tensor, spoil: Callable[[nn.Sequential], object]
) -> None:
    model = small()
    spoil(model)
    structure, keep = analyzed(model)
    done = refit(model, structure, keep, x.split(8), method=method)
    assert finite(done)
    if not isinstance(method, BatchNormStatistics):
        assert done.facts.after["all"] <= done.facts.before["all"] * 1.01 + 1e-12


class Logarithm(nn.Module):
    """NaN behind its first layer, not at its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(torch.log(self.first(x))).nan_to_num(0.0))


def test_a_layer_that_reads_nan_is_left_as_it_is_and_named() -> None:
    model = Logarithm().double().eval()
    structure, keep = analyzed(model)
    done = refit(model, structure, keep, images(24).split(8))
    (skipped,) = done.facts.skipped
    assert skipped.layer == "second.weight"
    assert "NaN" in skipped.reason
    assert torch.equal(done.model.second.weight, model.second.weight)
    assert [layer.layer for layer in done.facts.layers] == ["third.weight"]
    assert finite(done)


class Mixer(nn.Module):
    """A product with the sum of two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.one + self.other)


class Standardized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)
        self.mixer = Mixer()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(F.conv2d(x, self.second.weight * 2, self.second.bias))
        return self.mixer(self.head(x))


def test_weights_computed_from_weights_are_left_as_they_are_and_named() -> None:
    model = Standardized().double().eval()
    structure, keep = analyzed(model)
    facts = refit(model, structure, keep, images(24).split(8)).facts
    reasons = {each.layer: each.reason for each in facts.skipped}
    assert "computed from other tensors" in reasons["second.weight"]
    assert "matmul" in reasons["mixer"]
    assert [layer.layer for layer in facts.layers] == ["head.weight"]


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, LeastSquares()) for name in NAMES), *(("best_two", method) for method in METHODS[1:])],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_layers_that_read_a_number_of_rows_that_depends_on_the_data_stay_and_are_named(
    name: str, method: RefitMethod
) -> None:
    model, data = routed(name)
    structure = analyse(model, (data[:2],))
    done = refit(model, structure, thinned(structure), data.split(8), method=method)
    after = dict(done.model.named_parameters())

    for layer, weight in model.named_parameters():
        if layer.startswith("experts"):
            assert torch.equal(after[layer], weight)
    if not isinstance(method, BatchNormStatistics):
        reason = "how many rows it reads depends on the data"
        assert SkippedLayer("experts.0.0.weight", reason) in done.facts.skipped
        assert all(each.layer.startswith("experts") for each in done.facts.skipped)
        assert {"first.2.weight", "near.2.weight"} <= {each.layer for each in done.facts.layers}
        assert sum(done.facts.after.values()) < sum(done.facts.before.values())


class RoutedNorm(nn.Module):
    """A batch norm on the rows that a gate chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.norm = nn.Linear(6, 12), nn.Linear(12, 1), nn.BatchNorm1d(12)
        self.inner, self.last = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 12)), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.inner(x)
        (rows,) = torch.where(self.gate(x)[:, 0].sigmoid() > 0.3)
        torch._check(rows.shape[0] != 0)
        return self.last(x.index_add(0, rows, self.norm(x[rows])))


def test_statistics_of_a_number_of_rows_that_depends_on_the_data_stay_and_are_named() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = RoutedNorm().eval(), torch.randn(64, 6)
    structure = analyse(model, data[:8], WHOLE)
    done = refit(model, structure, thinned(structure), data.split(16), method=BatchNormStatistics())
    (skipped,) = done.facts.skipped
    assert skipped.layer == "norm.running_mean"
    assert "how many rows it reads depends on the data" in skipped.reason
    assert torch.equal(done.model.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize("method", [LeastSquares(), BatchNormStatistics()], ids=repr)
def test_what_is_shared_by_uses_that_wait_for_each_other_stays_and_is_named(method: RefitMethod) -> None:
    entry = BY_ID["called-twice"]
    model = entry.factory(torch.float64)
    structure = analyse(model, entry.inputs(dtype=torch.float64), entry.tasks)
    data = [(entry.inputs(8, torch.float64, seed),) for seed in range(3)]
    done = refit(model, structure, thinned(structure), data, method=method)
    reasons = {each.layer: each.reason for each in done.facts.skipped}
    assert reasons
    after = dict(done.model.named_parameters()) | dict(done.model.named_buffers())
    before = model.state_dict()
    for name, reason in reasons.items():
        assert "depend on each other" in reason
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_weights_keep_their_type(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    structure, keep = analyzed(model, images(2).to(dtype))
    done = refit(model, structure, keep, images(64).split(16))
    assert {tensor.dtype for tensor in done.model.parameters()} == {dtype}
    assert finite(done)
    assert done.facts.after["all"] < 0.7 * done.facts.before["all"]


@pytest.mark.parametrize("method", [LeastSquares(merge=True), BatchNormStatistics()], ids=repr)
def test_values_in_files_are_the_same_values(
    method: RefitMethod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    entry = BY_ID["residual"]
    model = entry.factory(torch.float64)
    structure = analyse(model, entry.inputs(dtype=torch.float64), entry.tasks)
    data = [(entry.inputs(8, torch.float64, seed),) for seed in range(4)]
    wanted = refit(model, structure, thinned(structure), data, method=method)
    settings = {name: value for name, value in vars(method).items() if name != "memory"}
    filed = refit(model, structure, thinned(structure), data, method=type(method)(memory=10_000, **settings))
    assert same(weights(filed.model), weights(wanted.model))
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Interrupted:
    memory: int = 0
    shifts: int = 0
    seed: int = 0

    def visit(self, work: RefitContext, step: Step) -> None:
        raise KeyboardInterrupt


def test_no_files_are_left_when_something_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    model = small()
    structure, keep = analyzed(model)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        refit(model, structure, keep, images(24).split(8), method=Interrupted())
    assert list(tmp_path.iterdir()) == []
    assert same(weights(model), before)


class ScaledBranch(nn.Module):
    """A residual branch behind a layer scale that is a view of its parameter, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.outer(F.gelu(self.inner(x))).mul(self.gamma.reshape(1, -1, 1, 1))
        return self.head(x + branch)


def test_the_scale_of_a_branch_may_be_a_view_of_its_parameter() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ScaledBranch().double().eval()
    structure = analyse(model, images(2), WHOLE)
    facts = refit(model, structure, thinned(structure), [images(32)]).facts
    assert facts.after["all"] < facts.before["all"]


def test_tied_parameters_stay_tied() -> None:
    entry = BY_ID["tied-convolutions"]
    model = entry.factory(torch.float64)
    structure = analyse(model, entry.inputs(dtype=torch.float64), entry.tasks)
    data = [(entry.inputs(8, torch.float64, seed),) for seed in range(3)]
    done = refit(model, structure, thinned(structure), data)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in done.model.named_parameters()] == names
    assert len(list(done.model.parameters())) == len(list(model.parameters()))


def test_the_model_and_its_copy_share_nothing() -> None:
    model = small()
    structure, keep = analyzed(model)
    done = refit(model, structure, keep, images(24).split(8))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for tensor in done.model.state_dict().values():
            tensor.zero_()
    assert same(weights(model), before)


WIDE = """
import resource, torch
from torch import nn
from disparse_structured.refit import refit
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(4, 2048, 1), nn.ReLU(), nn.Conv2d(2048, 64, 3, padding=1)).eval()
x = torch.randn(64, 4, {size}, {size})
structure = analyse(model, (x[:2],), [Task("all", lambda output: output)])
keep = torch.ones(structure.units, dtype=torch.bool)
keep[-1] = False
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
facts = refit(model, structure, keep, [x]).facts
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert facts.layers[0].features == 2047 * 9, facts
print((peak - before) / 2**20, facts.layers[0].rows)
"""


@pytest.mark.sweep
def test_a_wide_convolution_fits_in_four_gigabytes() -> None:
    """2,048 channels, 3x3: 18,432 unknowns an output, and as many rows in each fold."""
    command = [sys.executable, "-c", WIDE.format(size=26)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(found[0]) < 4
    assert int(found[1]) < 9000  # more would be a larger matrix
