"""Entry points besides ``forward``: named by the user, followed by the structure, verified, saved."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import CaptureError, LoadError, OptionError
from tests.support.fusing import Rep

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VECTORS = torch.rand(32, 6, generator=torch.Generator().manual_seed(0))


class Auto(nn.Module):
    """Its ``encode`` computes with a number that ``forward`` does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 24
        self.wide, self.narrow = nn.Linear(6, 24), nn.Linear(24, 8)
        self.back, self.out = nn.Linear(8, 24), nn.Linear(24, 6)

    def encode(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(x)).reshape(-1, self.width))

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.relu(self.back(z)))

    def patched(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x))[:, :24].reshape(-1, 2, 12).flatten(1) @ self.narrow.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.narrow(torch.relu(self.wide(x))))


class Fusable(nn.Sequential):
    def fuse(self) -> Fusable:
        for each in self:
            if isinstance(each, Rep):
                each.fuse()
        return self


def fusable(*widths: int) -> Fusable:
    torch.manual_seed(0)
    blocks = [Rep(*pair) for pair in zip((3, *widths), widths)]  # noqa: B905
    return Fusable(*blocks, nn.Conv2d(widths[-1], 4, 1)).eval()


def auto() -> Auto:
    torch.manual_seed(0)
    return Auto().eval()


def test_without_its_name_a_method_does_not_follow() -> None:
    small = ds.prune(auto(), VECTORS, parameters=0.5, refit=None).model
    assert small.wide.out_features < 24

    with pytest.raises(RuntimeError):
        small.encode(VECTORS)


def test_a_named_method_follows_and_is_verified() -> None:
    model = auto()
    structure = ds.analyse(
        model,
        VECTORS[:2],
        entry_points={"encode": VECTORS[:3], "decode": (VECTORS[:2, :1] + torch.zeros(8),)},
    )
    result = ds.prune(model, VECTORS, parameters=0.6, structure=structure)
    small: Any = result.model

    assert small.width == small.wide.out_features < 24
    assert torch.allclose(small.decode(small.encode(VECTORS)), small(VECTORS), atol=1e-6)
    assert small.encode(VECTORS).shape == (32, 8)
    assert {"entry point 'encode'", "entry point 'decode'"} <= set(result.report.verification.beyond)
    assert model.width == 24


def test_what_a_method_returns_keeps_its_width_and_a_function_may_compose_them() -> None:
    model = auto()

    def groups(**entry_points: Any) -> dict[str, int]:
        structure = ds.analyse(model, VECTORS[:2], entry_points=entry_points)
        return {group.name: group.units for group in structure.groups}

    assert groups(encode=(VECTORS[:2],)) == {"wide": 24, "back": 24}
    assert groups(both=lambda model, x: model.decode(model.encode(x))) == {
        "wide": 24,
        "narrow": 8,
        "back": 24,
    }


def test_a_number_that_a_method_hard_codes_pins_what_it_counts() -> None:
    structure = ds.analyse(auto(), VECTORS[:2], entry_points={"patched": (VECTORS[:2],)})

    assert "wide" not in {group.name for group in structure.groups}


def test_a_method_that_fuses_works_on_the_pruned_model() -> None:
    model = fusable(16, 32, 32)
    structure = ds.analyse(model, IMAGES[:2], entry_points={"fuse": ()})
    result = ds.prune(model, IMAGES, macs=0.5, structure=structure)
    fused = deepcopy(result.model).fuse()

    assert all(each.fused is None for each in model[:3])
    assert [each.fused.out_channels for each in fused[:3]] != [16, 32, 32]
    assert torch.allclose(fused(IMAGES), result.model(IMAGES), atol=1e-5)
    assert "entry point 'fuse'" in result.report.verification.beyond
    assert result.report.stale == ()


def test_numbers_that_may_count_either_of_two_widths_keep_them_equal() -> None:
    model = Fusable(nn.Conv2d(3, 16, 1), Rep(16, 16), nn.Conv2d(16, 4, 1)).eval()
    structure = ds.analyse(model, IMAGES[:2], entry_points={"fuse": ()})
    small: Any = ds.prune(model, IMAGES, macs=0.6, structure=structure).model

    assert small[0].out_channels == small[1].three.out_channels < 16
    assert torch.allclose(deepcopy(small).fuse()(IMAGES), small(IMAGES), atol=1e-5)


class Hidden(Rep):
    """Its ``fuse`` takes a width from outside the module, which nothing follows."""

    sizes = (16, 16)

    def fuse(self) -> None:
        self.in_channels, self.out_channels = (3, self.sizes[1])
        super().fuse()


def test_groups_that_an_entry_point_cannot_follow_are_left_whole() -> None:
    torch.manual_seed(0)
    model = Fusable(Hidden(3, 16), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()
    structure = ds.analyse(model, IMAGES[:2], entry_points={"fuse": ()})
    budget = ds.Budget(macs=0.6, round_to=1)
    result = ds.prune(model, IMAGES, budget=budget, structure=structure, refit=None)

    assert [refused.group for refused in result.report.refused] == ["0.three"]
    assert "entry point 'fuse'" in result.report.refused[0].reason
    assert torch.allclose(deepcopy(result.model).fuse()(IMAGES), result.model(IMAGES), atol=1e-5)


def test_a_method_that_switches_another_forward_on_is_followed() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.splits = 8, False
            self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            left, right = x.split((self.c, self.c), 1) if self.splits else x.chunk(2, 1)
            return self.last(left * right)

        def switch(self) -> None:
            self.splits = True

    model = Split().eval()
    structure = ds.analyse(model, IMAGES[:2], entry_points={"switch": ()})
    small: Any = ds.prune(model, IMAGES, macs=0.5, structure=structure).model
    before = small(IMAGES)
    small.switch()

    assert small.c < 8
    assert torch.equal(small(IMAGES), before)


class Apart(nn.Module):
    """Two tasks that run on their own; there is no common forward."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 24)
        self.near, self.far = nn.Linear(24, 3), nn.Linear(24, 1)

    def task_near(self, x: Tensor) -> Tensor:
        return self.near(self.trunk(x).relu())

    def task_far(self, x: Tensor) -> Tensor:
        return self.far(self.trunk(x).relu())


class Together(nn.Module):
    def __init__(self, net: Apart) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"near": self.net.task_near(x), "far": self.net.task_far(x)}


def test_tasks_that_run_on_their_own_are_pruned_through_a_wrapper() -> None:
    torch.manual_seed(0)
    net = Apart().eval()
    result = ds.prune(Together(net), VECTORS, parameters=0.5)
    small: Any = result.model

    assert isinstance(small.net, Apart)
    assert [task.shared for task in result.report.tasks] == [24, 24]
    assert small.net.trunk.out_features < 24 == net.trunk.out_features
    assert torch.equal(small.net.task_near(VECTORS), small(VECTORS)["near"])


def test_a_saved_model_has_its_entry_points(tmp_path: Path) -> None:
    model = auto()
    structure = ds.analyse(model, VECTORS[:2], entry_points={"encode": (VECTORS[:2],)})
    result = ds.prune(model, VECTORS, parameters=0.6, structure=structure)
    result.save(tmp_path)
    loaded: Any = ds.load(tmp_path, Auto)

    assert torch.equal(loaded.encode(VECTORS), result.model.encode(VECTORS))  # type: ignore[operator]


def test_functions_are_passed_to_load_again(tmp_path: Path) -> None:
    def both(model: Any, x: Tensor) -> Tensor:
        return model.decode(model.encode(x))  # type: ignore[no-any-return]

    model = auto()
    structure = ds.analyse(model, VECTORS[:2], entry_points={"both": both})
    result = ds.prune(model, VECTORS, parameters=0.6, structure=structure)
    result.save(tmp_path)

    with pytest.raises(LoadError, match=r"'both'.*are functions.*Pass entry_points="):
        ds.load(tmp_path, Auto)
    loaded = ds.load(tmp_path, Auto, entry_points={"both": both})
    assert torch.equal(both(loaded, VECTORS), both(result.model, VECTORS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encod": (VECTORS,)}, "no method of that name"),
        ({"encode": (VECTORS, VECTORS)}, "do not fit"),
        ({"encode": (VECTORS[:, :3],)}, "fails on the model itself"),
        ({"encode": 3}, "is given as int"),
        ([VECTORS], "must be a dict by name"),
    ],
)
def test_bad_entry_points_are_refused(given: Any, message: str) -> None:
    model = auto()
    before = dict(vars(model))

    with pytest.raises(OptionError, match=message):
        ds.analyse(model, VECTORS[:2], entry_points=given)
    assert vars(model) == before


def test_a_graph_has_no_methods() -> None:
    with pytest.raises(OptionError, match="exported graph does not have"):
        ds.analyse(auto(), VECTORS[:2], form="graph", entry_points={"encode": VECTORS[:2]})


def test_a_change_that_cannot_be_compared_is_refused() -> None:
    def scaled(model: Any, x: Tensor) -> None:
        model.narrow = nn.Sequential(model.narrow, nn.Linear(8, 8))

    with pytest.raises(CaptureError, match="changes what forward computes"):
        ds.analyse(auto(), VECTORS[:2], entry_points={"scaled": scaled})
