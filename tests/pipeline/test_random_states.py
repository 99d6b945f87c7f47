"""A network that draws random numbers leaves the global random states alone, and results repeat."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class LayerDrop(nn.Module):
    """Leaves a layer out in train mode, by all three libraries' draws; registers a buffer when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(1))
        x = self.first(x).relu()
        draws = random.random() + np.random.rand()  # noqa: NPY002
        noise = torch.rand(())
        if not self.training or draws + float(noise) > 1.5:
            x = x + self.second(x).relu()
        return self.head(x) * self.scale


def build() -> LayerDrop:
    """The network, with the same weights whatever the global states are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LayerDrop().eval()


def states() -> list[Any]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    return [python, [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy],
            torch.get_rng_state().tolist()]  # fmt: skip


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def analysed(folder: Path) -> Any:
    return ds.analyse(build(), X[:2]).fingerprint


def pruned(folder: Path) -> Any:
    result = ds.prune(build(), X, macs=0.5)
    return result.plan.to_json(), {k: v.tolist() for k, v in result.model.state_dict().items()}


def loaded(folder: Path) -> Any:
    return {k: v.tolist() for k, v in ds.load(folder, build).state_dict().items()}


def counted(folder: Path) -> Any:
    return ds.costs.MACs().count(build(), (X[:2],))


@pytest.mark.parametrize("action", [analysed, pruned, loaded, counted])
def test_global_random_states_are_neither_changed_nor_read(
    action: Callable[[Path], Any], tmp_path: Path
) -> None:
    model = build()
    model(X)  # from now on it has the buffer, which a new one has not
    ds.prune(model, X, macs=0.5).save(tmp_path / "small")
    found = []
    for seed in (1, 2):
        seed_everything(seed)
        before = states()
        found.append(action(tmp_path / "small"))
        assert states() == before

    assert found[0] == found[1]
