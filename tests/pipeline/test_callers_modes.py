"""Calls inside ``torch.autocast`` or ``torch.inference_mode`` compute as they do outside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import UnsupportedModelError
from disparse_structured.pipeline import check_folder
from disparse_structured.regimes import Iterative, Pretrained
from disparse_structured.structure import count_macs
from disparse_structured.training.finetune import finetune

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
}


class Net(nn.Module):
    """Two heads on convolutions with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.near, self.far = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.second(self.norm(self.first(x)).relu()).relu()
        return {"near": self.near(y), "far": self.far(y)}


class Keeps(Net):
    """Computes a tensor once, and multiplies by it."""

    grid: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1]) + 0
        return super().forward(x * self.grid)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def images() -> torch.Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def modes() -> tuple[bool, bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def by_prune(model: nn.Module, folder: Path) -> nn.Module:
    result = ds.prune(model, images(), macs=0.5)
    result.export(folder / "model.onnx")
    result.save(folder)
    result.to_html(folder / "report.html", inputs=images(), dense=model)
    assert all(check.passed for check in check_folder(folder, build).checks)
    loaded = ds.load(folder, build)
    assert _equal(loaded, result.model)
    return loaded


def by_votes(model: nn.Module, folder: Path) -> nn.Module:
    return ds.prune(model, [images()], macs=0.5, method=ds.DiSparse()).model


def by_steps(model: nn.Module, folder: Path) -> nn.Module:
    structure = ds.analyse(model, images()[:2])
    plan = ds.plan(structure, ds.score(model, structure, images()).scores, ds.Budget(macs=0.5))
    return ds.apply(model, plan, structure).model


def by_training(model: nn.Module, folder: Path) -> nn.Module:
    tasks = [
        ds.Task("near", "near", lambda output, batch: output.square().mean()),
        ds.Task("far", "far", lambda output, batch: (output - 1).abs().mean()),
    ]
    finetune(model, tasks, [images()], epochs=2, lr=1e-3)
    return model


def by_distillation(model: nn.Module, folder: Path) -> nn.Module:
    recover = ds.recovery.Distillation(images(), steps=2)
    return ds.prune(model, images(), macs=0.5, recover=recover).model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compute", [by_prune, by_votes, by_steps, by_training, by_distillation])
def test_a_call_leaves_the_callers_mode_and_returns_to_it(
    compute: Callable[[nn.Module, Path], nn.Module], mode: str, tmp_path: Path
) -> None:
    wanted = compute(build(), tmp_path / "outside")
    model = build()
    with MODES[mode]():
        before = modes()
        found = compute(model, tmp_path / "inside")
        assert modes() == before
    assert _equal(found, wanted)
    assert not any(tensor.is_inference() for tensor in found.state_dict().values())


def test_a_model_with_compiled_methods_is_not_compiled_meanwhile() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    class Compiled(Net):
        forward = torch.compile(Net.forward, backend=backend)

    result = ds.prune(Compiled().eval(), images(), macs=0.5, method=ds.DiSparse(), refit=None)

    assert compiled == []
    result.model(images())
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", [Iterative, Pretrained])
def test_a_regime_decides_outside_of_autocast(kind: Any) -> None:
    def pruned() -> nn.Module:
        given = {"stages": 2, "steps": 2, "until": 0.5} if kind is Iterative else {}
        regime = kind(model, images()[:2], ["near", "far"], [images()], budget=ds.Budget(macs=0.5), **given)
        regime.step(torch.optim.SGD(regime.model.parameters(), lr=0.0))
        return regime.finish().model

    model = build()
    wanted = pruned()
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        found = pruned()
    assert _equal(found, wanted)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("inside", [True, False])
def test_data_that_was_made_in_inference_mode(inside: bool) -> None:
    with torch.inference_mode():
        data, batches = images(), [{"x": images(), "label": torch.zeros(24)}]
    assert data.is_inference()

    model = build()
    with torch.inference_mode() if inside else nullcontext():
        found = ds.prune(model, data, macs=0.5)
        voted = ds.prune(model, batches, macs=0.5, method=ds.DiSparse())
        structure = ds.analyse(model, data[:2])

    assert _equal(found.model, ds.prune(model, images(), macs=0.5).model)
    assert _equal(voted.model, ds.prune(model, [images()], macs=0.5, method=ds.DiSparse()).model)
    assert not structure.example_inputs[0].is_inference()


@pytest.mark.parametrize("export", [False, True])
def test_a_model_that_ran_in_inference_mode_and_kept_what_it_computed(export: bool, tmp_path: Path) -> None:
    model = Keeps().eval()
    with torch.inference_mode():
        model(images())
    assert model.grid is not None
    assert model.grid.is_inference()
    result = ds.prune(model, images(), macs=0.5, method=ds.DiSparse() if export else ds.Compensated())
    if export:
        result.export(tmp_path / "model.onnx")
    assert count_macs(result.model, (images(),)) < count_macs(model, (images(),))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: ds.prune(model, images(), macs=0.5),
        lambda model: ds.analyse(model, images()[:2]),
    ],
)
def test_a_model_that_was_made_in_inference_mode_is_named(call: Callable[[nn.Module], Any]) -> None:
    with torch.inference_mode():
        model = build()
    with pytest.raises(UnsupportedModelError, match=r"layer 'first' .* torch.inference_mode.*copy.deepcopy"):
        call(model)
    assert call(copy.deepcopy(model)) is not None
