"""Windows cut out of space and put back: ``Tensor.unfold``, ``F.unfold`` and ``F.fold``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.volo import VOLO
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.structure import analyse
from disparse_structured.structure.counting import count_macs, count_parameters
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import RULES, Call, Trace
from disparse_structured.surgery import module as surgery
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.tasks import Task
from tests.support.plans import Case, deviation, learns, onnx_parity, random_keep, random_plan, zeroed

aten = torch.ops.aten

EXACT = 1e-9
SIZE = 8


def stem(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU())


class Windows(nn.Module):
    """Overlapping windows in both directions, each read as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = stem(), nn.Linear(9, 4)
        self.dense, self.kind = nn.Conv2d(6, 2, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        windows = self.stem(x).unfold(2, 3, 2).unfold(-2, 3, 2)
        dense = torch.relu(self.inside(windows.flatten(-2))).sum(-1)
        return {"dense": self.dense(dense), "kind": self.kind(windows.amax((2, 3, 4, 5)))}


class Halo(nn.Module):
    """Blocks of queries that look at a window around them; heads split off in front of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.both = stem(), nn.Conv2d(6, 12, 1), nn.Conv2d(6, 24, 1)
        self.dense, self.kind = nn.Linear(12, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        query = self.query(x).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(2, 3)
        both = F.pad(self.both(x), (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4).flatten(4).flatten(2, 3)
        query = query.unflatten(1, (-1, 3)).permute(0, 1, 3, 4, 2)
        key, value = both.unflatten(1, (-1, 6)).permute(0, 1, 3, 4, 2).split([3, 3], -1)
        y = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        y = y.permute(0, 2, 3, 1, 4).flatten(3)
        return {"dense": self.dense(y), "kind": self.kind(y.mean((1, 2)))}


class Columns(nn.Module):
    """A convolution spelt out as a matrix product over the columns of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = stem(), nn.Conv2d(6, 8, 3, padding=1)
        self.dense, self.kind = nn.Conv2d(8, 2, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        columns = F.unfold(self.stem(x), 3, padding=1)
        y = self.body.weight.flatten(1) @ columns + self.body.bias[:, None]
        return {"dense": self.dense(torch.relu(y).unflatten(2, (8, 8))), "kind": self.kind(y.mean(2))}


class SoftSplit(nn.Module):
    """Patches that overlap become tokens, and tokens an image again (arXiv:2101.11986)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.split, self.project = nn.Unfold(4, stride=2, padding=1), nn.Linear(6 * 16, 10)
        self.back, self.join = nn.Linear(10, 5 * 16), nn.Fold((8, 8), 4, stride=2, padding=1)
        self.dense, self.kind = nn.Conv2d(5, 2, 3, padding=1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = torch.relu(self.project(self.split(self.stem(x)).transpose(1, 2)))
        image = self.join(self.back(tokens).transpose(1, 2))
        return {"dense": self.dense(torch.tanh(image)), "kind": self.kind(tokens.mean(1))}


class ThereAndBack(nn.Module):
    """Unfolded and folded at once, one example at a time, and divided by how often each place was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = stem(), nn.Conv2d(6, 7, 1)
        self.dense, self.kind = nn.Conv2d(7, 2, 1), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        seen = F.fold(F.unfold(torch.ones_like(x[:, :1]), 3), 8, 3)
        smooth = torch.stack([F.fold(F.unfold(each, 3).tanh(), 8, 3) for each in x.unbind(0)])
        y = torch.relu(self.body(smooth / seen))
        return {"dense": self.dense(y), "kind": self.kind(y.mean((2, 3)))}


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "windows": Windows,
    "halo": Halo,
    "columns": Columns,
    "soft-split": SoftSplit,
    "there-and-back": ThereAndBack,
}
TASKS = (Task("dense", "dense"), Task("kind", "kind"))


def inputs(batch: int = 2, seed: int = 0) -> tuple[Tensor]:
    return (torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double(),)


@functools.cache
def network(id: str) -> Case:
    torch.manual_seed(0)
    return Case.of(NETWORKS[id]().double().eval(), inputs(), TASKS)


@pytest.mark.parametrize("id", NETWORKS)
def test_pruned_is_the_twin_and_what_zeros_leave(id: str) -> None:
    subject = network(id)
    for seed in range(3):
        keep = random_keep(subject.structure, seed)
        pruned = subject.pruned(keep)
        found, twin = subject.outputs(pruned), subject.twin(keep)

        assert deviation(found, twin) <= EXACT
        assert deviation(found, subject.outputs(zeroed(subject.model, subject.structure, keep))) <= EXACT
        assert deviation(twin, subject.outputs(subject.model)) > 1e-3
        assert count_parameters(pruned) == subject.structure.cost.parameters.total(keep)
        assert count_macs(pruned, subject.inputs) == subject.structure.cost.macs.total(keep)


@pytest.mark.parametrize("id", NETWORKS)
def test_the_public_way_removes_what_was_planned(id: str) -> None:
    subject = network(id)
    plan = Plan.from_keep(subject.structure, random_keep(subject.structure, 1, 0.5))
    done = surgery.apply(subject.model, plan, subject.structure)

    assert not done.refused
    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= EXACT
    assert count_parameters(done.model) <= 0.65 * count_parameters(subject.model)


@pytest.mark.parametrize("id", NETWORKS)
def test_the_graph_is_the_twin(id: str) -> None:
    subject = network(id)
    structure = analyse(subject.model, subject.inputs, TASKS, form="graph")
    done = apply_graph(subject.model, random_plan(structure, 0, 0.5), structure)

    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= EXACT
    assert count_parameters(done.model) <= 0.65 * count_parameters(subject.model)


def test_every_channel_is_a_slab_of_rows() -> None:
    groups = {group.name: group for group in network("soft-split").structure.groups}

    assert {name: group.units for name, group in groups.items()} == {"stem.0": 6, "project": 10, "back": 5}
    rows = {member.parameter: member.index for member in groups["back"].members}
    assert np.array_equal(rows["back.weight"], np.arange(5 * 16).reshape(5, 16))
    columns = {member.parameter: member.index for member in groups["stem.0"].members}
    assert np.array_equal(columns["project.weight"], np.arange(6 * 16).reshape(6, 16))
    assert groups["back"].kind == "bundle"


def test_outlook_attention_of_timm() -> None:
    torch.manual_seed(0)
    widths, heads = (24, 48, 48, 48), (2, 4, 4, 4)
    model = VOLO((1, 1, 1, 1), img_size=64, num_classes=10, embed_dims=widths, num_heads=heads)
    images = (torch.randn(2, 3, 64, 64).double(),)
    subject = Case.of(model.double().eval(), images, (Task("kind", lambda output: output),))
    keep = random_keep(subject.structure, 0, 0.5)

    assert {"network.0.0.attn.v"} <= {group.name for group in subject.structure.groups}
    assert subject.deviation(keep) <= EXACT
    assert count_parameters(subject.pruned(keep)) <= 0.35 * count_parameters(model)
    assert count_macs(subject.pruned(keep), images) == subject.structure.cost.macs.total(keep)


class Across(nn.Module):
    """Windows over channels and over a row of space that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rows = stem(), nn.Linear(SIZE, SIZE)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.rows(self.stem(x))
        return {"dense": self.head(x.unfold(1, 3, 1)), "kind": x.unfold(3, 3, 2).sum((1, 2, 3))}


def test_what_windows_run_along_stays() -> None:
    structure = analyse(Across().double().eval(), inputs(), TASKS)

    assert not structure.groups
    assert {(f.reason, f.operator) for f in structure.pinned} >= {("windows along it", "aten.unfold.default")}


@pytest.mark.parametrize("id", ["windows", "soft-split"])
def test_one_step_of_training_lowers_the_loss(id: str) -> None:
    subject = network(id)
    assert learns(subject.pruned(random_keep(subject.structure, 0, 0.5)), subject.inputs)


@pytest.mark.parametrize("id", ["halo", "soft-split"])
def test_pruned_exports(id: str, tmp_path: Path) -> None:
    subject = network(id)
    keep = random_keep(subject.structure, 1, 0.5)
    assert onnx_parity(subject, keep, tmp_path / "pruned.onnx") <= 1e-4


# The guard is guarded.


def _next_channel(value: Value) -> Value:
    """``value`` with every channel taken for the one before."""

    def shifted(axis: Axis) -> Axis:
        if axis.labels is None:
            return axis
        return axis.with_labels(np.roll(axis.labels, axis.size // len(np.unique(axis.labels))))

    return tuple(shifted(axis) for axis in value)


@pytest.mark.parametrize(
    ("id", "operator"),
    [
        ("windows", aten.unfold),
        ("halo", aten.unfold),
        ("columns", aten.im2col),
        ("soft-split", aten.im2col),
        ("soft-split", aten.col2im),
    ],
)
def test_a_corrupted_rule_is_caught(id: str, operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, original = network(id), RULES[operator]

    def corrupted(trace: Trace, call: Call) -> Value:
        return _next_channel(original(trace, call))

    monkeypatch.setitem(RULES, operator, corrupted)
    structure = analyse(subject.model, subject.inputs, TASKS)
    wrong = Case(subject.model, subject.inputs, structure)

    assert structure.groups
    assert wrong.deviation(random_keep(structure, 0, 0.5)) > 1e-6


def test_rows_that_are_not_united_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = RULES[aten.col2im]

    def corrupted(trace: Trace, call: Call) -> Value:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trace, "unite", lambda *given: None)
            return original(trace, call)  # type: ignore[no-any-return]

    monkeypatch.setitem(RULES, aten.col2im, corrupted)
    subject = network("soft-split")
    structure = analyse(subject.model, subject.inputs, TASKS)
    wrong = Case(subject.model, subject.inputs, structure)

    with pytest.raises(RuntimeError):  # fold is given rows that are not whole slabs
        wrong.deviation(random_keep(structure, 0, 0.5))
