"""The rivals of the benchmark without training: what each must do, on tiny networks and random images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.no_training.bench import Bench, reestimated
from benchmarks.no_training.compensation import compensated, input_grams
from benchmarks.no_training.deviation import deviation
from benchmarks.no_training.folding import fold, kmeans
from benchmarks.no_training.methods import METHODS
from disparse_structured.structure import Structure, analyse, count_macs
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from tests.benchmarks.test_no_training_networks import DENSE, TINY, packs

__all__ = ["packs"]

pytestmark = pytest.mark.xdist_group("no training: methods")
"""What one method computes counts for the next in the same process."""

TASK = (Task("all", lambda output: output),)
IMAGES = 8
QUICK = ("random", "magnitude-uniform", "taylor-global", "hessian-isomorphic+bn", "pruner-uniform")
OTHERS = ("grail-magnitude", "grail-ours+bn", "folding+bn", "ours", "no refit")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def shared(cache: Path) -> Bench:
    """One for all tests, so that what several methods need is computed once."""
    return Bench(TINY, 0, IMAGES, cache)


@pytest.fixture
def bench(packs: Path, shared: Bench) -> Bench:
    """The shared one, with the packs that it reads; they are the same in every test."""
    return shared


class Convs(nn.Module):
    """Convolution, batch norm, ReLU, convolution; the last reads what the first makes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


def convs(seed: int = 0) -> tuple[Convs, Tensor, Structure]:
    """A network with statistics of its own, images, and its structure of one group."""
    torch.manual_seed(seed)
    model = Convs()
    with torch.no_grad():
        model.norm.weight.uniform_(-2, 2)
        model.norm.bias.uniform_(-1, 1)
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    images = torch.randn(6, 3, 7, 5)
    model.eval()
    return model, images, analyse(model, images[:2], TASK)


def keep_of(structure: Structure, *kept: int) -> Tensor:
    keep = torch.zeros(structure.units, dtype=torch.bool)
    keep[list(kept)] = True
    return keep


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_every_kind_of_method_meets_its_macs_and_leaves_the_network_alone(bench: Bench, name: str) -> None:
    before = {key: value.clone() for key, value in bench.model.state_dict().items()}
    pruned = METHODS[name].prune(bench, 0.5)
    example = bench.model.example_inputs(1)
    share = count_macs(pruned, example) / count_macs(bench.model, example)
    assert 0.4 < share <= 0.5 + 1e-6
    assert all(torch.equal(value, before[key]) for key, value in bench.model.state_dict().items())
    assert not any(module.training for module in [*bench.model.modules(), *pruned.modules()])
    off = deviation(bench.model, pruned, bench.images, bench.tasks)
    assert all(0 < value < 1e3 for value in off.values())


def test_methods_have_unlike_files_and_one_is_ours() -> None:
    assert len({method.name for method in METHODS.values()}) == len(METHODS)
    assert len({(repr(method.prune), method.fractions) for method in METHODS.values()}) >= len(METHODS) - 1
    stock = [name for name, method in METHODS.items() if method.family == "stock"]
    for kind in ("magnitude", "taylor", "hessian"):
        for ranking in ("uniform", "global", "isomorphic"):
            assert {f"{kind}-{ranking}", f"{kind}-{ranking}+bn"} <= set(stock)
    assert [method.name for method in METHODS.values() if method.family == "ours"] == ["ours"]


def test_what_one_method_has_computed_counts_for_the_next(packs: Path, cache: Path) -> None:
    bench = Bench(TINY, 0, IMAGES, cache)
    first = METHODS["hessian-uniform"].prune(bench, 0.5)
    assert bench.saved() == 0
    second = METHODS["hessian-uniform"].prune(bench, 0.5)
    assert bench.saved() > 0
    assert bench.saved() == 0
    assert same(first, second)


def test_reestimation_makes_channels_of_mean_zero_and_variance_one_before_the_affine_part() -> None:
    model, images, _ = convs()
    with torch.no_grad():
        model.norm.weight.fill_(1)
        model.norm.bias.zero_()
    seen: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert reestimated(model, images) is model
    seen.clear()
    model(images)
    assert torch.allclose(seen[0].mean((0, 2, 3)), torch.zeros(8), atol=1e-5)
    assert torch.allclose(seen[0].var((0, 2, 3), correction=1), torch.ones(8), atol=1e-3)
    assert not any(module.training for module in model.modules())
    assert model.norm.momentum == 0.1


def test_reestimation_leaves_dropout_off_and_everything_else_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9), nn.BatchNorm2d(2)).eval()
    weight = model[0].weight.detach().clone()
    images = torch.randn(4, 1, 3, 3)
    reestimated(model, images)
    inside = model[0](images)
    assert torch.allclose(model[2].running_mean, inside.mean((0, 2, 3)), atol=1e-6)
    assert torch.equal(model[0].weight, weight)


def test_compensation_recovers_what_is_a_combination_of_kept_channels() -> None:
    model, images, structure = convs()
    with torch.no_grad():  # channels 6 and 7 are 2 and 0.5 times channels 0 and 1, also after the ReLU
        for copy, origin, factor in ((6, 0, 2.0), (7, 1, 0.5)):
            model.first.weight[copy] = model.first.weight[origin]
            for name in ("running_mean", "running_var"):
                getattr(model.norm, name)[copy] = getattr(model.norm, name)[origin]
            model.norm.weight[copy] = factor * model.norm.weight[origin]
            model.norm.bias[copy] = factor * model.norm.bias[origin]
    keep = keep_of(structure, 0, 1, 2, 3, 4, 5)
    grams = input_grams(model, structure, images)
    plain = cut(model, structure, keep)
    rebuilt = cut(compensated(model, structure, keep, grams), structure, keep)
    fresh = torch.randn(4, 3, 7, 5)
    (before,), (after,) = (deviation(model, each, fresh, TASK).values() for each in (plain, rebuilt))
    assert after < 0.01  # the ridge
    assert before > 5 * after


def test_compensation_is_the_ridge_solution_of_the_definition() -> None:
    model, images, structure = convs()
    keep = keep_of(structure, 0, 2, 5)
    grams = input_grams(model, structure, images)
    reads = model.norm(model.first(images)).relu().detach().double().transpose(0, 1).flatten(1)
    gram = reads @ reads.mT
    assert torch.allclose(grams["last.weight"], gram, rtol=1e-4)
    kept = [0, 2, 5]
    inner = gram[kept][:, kept]
    ridge = 1e-3 * inner.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    rebuild = gram[:, kept] @ torch.linalg.inv(inner + ridge)
    expected = torch.einsum("oihw,ik->okhw", model.last.weight.double(), rebuild)
    found = compensated(model, structure, keep, grams).last.weight[:, kept]
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_folding_equal_units_changes_nothing() -> None:
    model, images, structure = convs()
    with torch.no_grad():  # units 4..7 repeat units 0..3, but for a factor that the norm takes back
        for copy, origin in ((4, 0), (5, 1), (6, 2), (7, 3)):
            model.first.weight[copy] = 3 * model.first.weight[origin]
            model.norm.running_mean[copy] = 3 * model.norm.running_mean[origin]
            model.norm.running_var[copy] = 9 * (model.norm.running_var[origin] + 1e-5) - 1e-5
            model.norm.weight[copy] = model.norm.weight[origin]
            model.norm.bias[copy] = model.norm.bias[origin]
    folded, keep = fold(model, structure, keep_of(structure, 0, 1, 2, 3))
    assert int(keep.sum()) == 4
    (off,) = deviation(model, cut(folded, structure, keep), images, TASK).values()
    assert off < 1e-3


def test_folding_nothing_changes_nothing() -> None:
    model, images, structure = convs()
    everything = torch.ones(structure.units, dtype=torch.bool)
    folded, keep = fold(model, structure, everything)
    assert bool(keep.all())
    assert deviation(model, folded, images, TASK)["all"] < 1e-4


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 99), st.booleans())
def test_kmeans_uses_every_cluster(points: int, count: int, features: int, seed: int, equal: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(points, features, generator=generator, dtype=torch.float64)
    values = values[:1].expand(points, -1) if equal else values
    count = min(count, points)
    labels = kmeans(values, count, generator)
    assert sorted(labels.unique().tolist()) == list(range(count))
    assert labels.shape == (points,)


def test_kmeans_finds_clusters_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(4, 30, generator=generator, dtype=torch.float64)
    truth = torch.arange(20) % 4
    labels = kmeans(centers[truth] + 0.1 * torch.randn(20, 30, generator=generator), 4, generator)
    assert len({(int(one), int(other)) for one, other in zip(labels, truth, strict=True)}) == 4


def test_the_dense_task_network_is_pruned_as_well(packs: Path, cache: Path) -> None:
    bench = Bench(DENSE, 0, IMAGES, cache)
    for name in ("magnitude-isomorphic+bn", "folding+bn", "grail-magnitude+bn"):
        pruned = METHODS[name].prune(bench, 0.5)
        assert all(value > 0 for value in deviation(bench.model, pruned, bench.images, bench.tasks).values())


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())
