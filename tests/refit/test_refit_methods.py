"""Every way of repairing a network, on a small multi-task network as after training."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import OptionError
from disparse_structured.refit import (
    Affine,
    BatchNormStatistics,
    LeastSquares,
    ModelFolding,
    Refit,
    RefitMethod,
    refit,
)
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import apply, cut
from disparse_structured.tasks import Task

METHODS = (LeastSquares(), LeastSquares(merge=True), Affine(), BatchNormStatistics(), ModelFolding())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.before, self.after = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.after(self.second(F.relu_(self.before(self.first(x))))), inplace=True)


class TwoTasks(nn.Module):
    """A residual trunk, a head for the whole image and one for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(True)
        )
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.kind = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
        self.dense = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(x))
        return {"kind": self.kind(x.mean((2, 3))), "dense": self.dense(x)}


def images(count: int, seed: int, size: int = 12) -> Tensor:
    """Smooth random images with a little noise, ``[count, 3, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    return F.interpolate(coarse, size=size, mode="bilinear") + 0.1 * noise


def two_tasks() -> nn.Module:
    """In float64 and eval mode, with the statistics of its batch norms taken from images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoTasks().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.7, 0.3)
        with torch.no_grad():
            model(images(64, seed=5))
    return model.eval()


def third_gone(structure: Structure) -> Tensor:
    """Inner channels of the blocks and hidden ones of the heads lose a third; the stream is whole."""
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        if group.name != "stem.0":
            keep[group.start : group.start + group.units // 3] = False
    return keep


@functools.cache
def case() -> tuple[nn.Module, Structure, Tensor]:
    model = two_tasks()
    structure = analyse(model, (images(2, 0),), [Task("kind", "kind"), Task("dense", "dense")])
    return model, structure, third_gone(structure)


@functools.cache
def repaired(method: RefitMethod) -> Refit:
    model, structure, keep = case()
    return refit(model, structure, keep, images(64, seed=1).split(20), method=method)


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        found: dict[str, Tensor] = model(x)
    return found


def deviation(model: nn.Module, reference: nn.Module, x: Tensor) -> dict[str, float]:
    wanted = outputs(reference, x)
    return {
        task: float((y - wanted[task]).norm() / wanted[task].norm()) for task, y in outputs(model, x).items()
    }


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_brings_the_outputs_nearer(method: RefitMethod) -> None:
    model, structure, keep = case()
    facts = repaired(method).facts
    assert mean(facts.after) < 0.95 * mean(facts.before)
    fresh = images(32, seed=2)
    small = deviation(cut(repaired(method).model, structure, keep), model, fresh)
    sliced = deviation(cut(model, structure, keep), model, fresh)
    assert mean(small) < 0.95 * mean(sliced)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_layer_is_worse_on_what_it_was_not_fitted_on(method: RefitMethod) -> None:
    layers = repaired(method).facts.layers
    assert any(layer.after < 0.95 * layer.before for layer in layers)
    if not isinstance(method, BatchNormStatistics):  # which holds nothing back
        assert all(layer.after <= layer.before for layer in layers)


def test_least_squares_is_better_than_what_is_cheaper() -> None:
    best = mean(repaired(LeastSquares()).facts.after)
    for method in (Affine(), BatchNormStatistics(), ModelFolding()):
        assert best < 0.8 * mean(repaired(method).facts.after)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_cut_network_deviates_by_what_the_facts_say(method: RefitMethod) -> None:
    model, structure, keep = case()
    done = repaired(method)
    calibration = Calibration.of(model, images(64, seed=1).split(20))
    operation = apply(done.model, Plan.from_keep(structure, keep), structure)
    assert operation.verification is not None
    assert max(operation.verification.deviation.values()) <= operation.verification.tolerance
    checks = torch.cat([chunk[0] for chunk in calibration.checks])
    assert len(checks) == done.facts.checked
    assert deviation(operation.model, model, checks) == pytest.approx(done.facts.after, rel=1e-9)
    assert deviation(cut(model, structure, keep), model, checks) == pytest.approx(done.facts.before, rel=1e-9)


def test_facts_are_plain_data() -> None:
    facts = repaired(LeastSquares()).facts
    read = json.loads(json.dumps(dataclasses.asdict(facts)))
    assert read["samples"] == 64
    assert read["checked"] == 8
    assert read["method"] == "LeastSquares()"
    assert set(read["before"]) == set(read["after"]) == {"kind", "dense"}
    # All but those that read the same in both networks: the stem and the first block's first layer.
    assert [layer["layer"] for layer in read["layers"]] == [
        "blocks.0.second.weight",
        "blocks.1.first.weight",
        "blocks.1.second.weight",
        "kind.0.weight",
        "kind.2.weight",
        "dense.0.weight",
        "dense.2.weight",
    ]
    first = read["layers"][0]
    assert first["features"] == 8 * 9
    assert first["rows"] == 224 * 37  # a quarter of 144 positions of 56 images and three copies of each
    assert read["skipped"] == []


def test_a_batch_norm_gets_the_statistics_of_what_it_reads_now() -> None:
    """In the cut network, in training mode, the batches' statistics are the running ones."""
    model, structure, keep = case()
    data = images(12, seed=3)  # too few to set any aside
    done = refit(model, structure, keep, [data], method=BatchNormStatistics())
    small = cut(done.model, structure, keep)
    read: list[Tensor] = []
    norm = small.get_submodule("blocks.0.after")
    norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    outputs(small, data)
    found = read[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, found.mean(1))
    torch.testing.assert_close(norm.running_var, found.var(1))


class Multiples(nn.Module):
    """Hidden channels in pairs, one a multiple of the other, more than there are examples to regress on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 40).double(), nn.Linear(40, 3).double()
        with torch.no_grad():
            factors = torch.linspace(0.5, 2, 20, dtype=torch.float64)
            self.first.weight[20:] = factors[:, None] * self.first.weight[:20]
            self.first.bias[20:] = factors * self.first.bias[:20]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("method", [ModelFolding(), LeastSquares(merge=True)], ids=repr)
def test_multiples_of_kept_channels_are_merged_from_a_handful_of_examples(method: RefitMethod) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Multiples().eval()
        x = torch.randn(14, 6, dtype=torch.float64)
        fresh = torch.randn(200, 6, dtype=torch.float64)
    structure = analyse(model, (x[:2],), [Task("all", lambda output: output)])
    keep = torch.arange(40) < 20
    done = refit(model, structure, keep, [x], method=method)
    small = cut(done.model, structure, keep)
    with torch.no_grad():
        assert float((small(fresh) - model(fresh)).norm() / model(fresh).norm()) < 1e-9
    regressed = refit(model, structure, keep, [x]).model
    with torch.no_grad():
        assert float((cut(regressed, structure, keep)(fresh) - model(fresh)).norm()) > 1e-3


class TwoBranches(nn.Module):
    """Both branches see all of the input; the first is left with too little of it."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(6, 8), nn.Linear(6, 8)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.narrow(x)) + self.second(self.wide(x))


def test_with_streams_the_last_branch_makes_up_for_the_others() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoBranches().double().eval()
        x = torch.randn(48, 6, dtype=torch.float64)
    structure = analyse(model, (x[:2],), [Task("all", lambda output: output)])
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[structure.group("narrow").slice] = torch.arange(8) < 3
    keep[structure.group("wide").start] = False
    facts = {
        streams: refit(model, structure, keep, [x], method=LeastSquares(streams=streams)).facts
        for streams in (True, False)
    }
    assert facts[True].after["all"] < 1e-6
    assert facts[False].after["all"] > 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows": 0}, "rows=0 must be a whole number of at least 1"),
        ({"ridges": (1.0, 0.0)}, r"ridges\[1\]=0.0 must be a finite number above 0"),
        ({"ridges": (-1.0,)}, r"ridges\[0\]=-1.0 must be a finite number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        LeastSquares(**wrong)
