"""Boxes up to 640 do not hide scores of 0.06: deviations and tolerances also look at columns of one size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.cli import main
from disparse_structured.data.deviation import Movement
from disparse_structured.errors import BudgetError
from disparse_structured.pipeline import PruningResult
from tests.support.redundant import removed, set_aside

LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "maps": (lambda found: found, 1),
    "channels": (lambda found: found.flatten(2), 1),
    "columns": (lambda found: found.flatten(2).transpose(1, 2), 2),
    "vectors": (lambda found: found.mean((2, 3)), 1),
}
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(2))
BUDGET = ds.Budget(macs=0.6, round_to=1)
QUICK = ds.Compensated(rounds=1)


class Detector(nn.Module):
    """Boxes up to 640 and scores of about 0.06 in one tensor, from two branches."""

    def __init__(self, layout: str = "columns", *, scale: float = 640.0, scores_only: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layout, self.scale, self.scores_only = layout, scale, scores_only
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.wide, self.fine = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 24, 1)
        self.box, self.score = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 2, 1)
        nn.init.constant_(self.score.bias, -2.75)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.stem(x))
        scores = self.score(self.fine(y).relu()).sigmoid()
        boxes = self.scale * self.box(self.wide(y).relu()).sigmoid()
        return {
            "found": LAYOUTS[self.layout][0](scores if self.scores_only else torch.cat([boxes, scores], 1))
        }


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def by_hand(result: PruningResult, dense: nn.Module, dim: int) -> tuple[float, float]:
    """How far the whole output and the scores moved."""
    inputs = set_aside(dense, IMAGES)
    with torch.no_grad():
        found, wanted = (each(inputs)["found"] for each in (result.model, dense))
    scores = torch.tensor([4, 5])
    return relative(found, wanted), relative(
        found.index_select(dim, scores), wanted.index_select(dim, scores)
    )


@pytest.mark.parametrize(
    ("layout", "refit"), [*((each, None) for each in LAYOUTS), ("columns", ds.refits.LeastSquares())]
)
def test_the_report_names_the_columns_that_moved_most(layout: str, refit: Any) -> None:
    dense = Detector(layout).eval()

    result = ds.prune(dense, IMAGES, budget=BUDGET, method=ds.DiSparse(), refit=refit)

    moved = result.report.deviation
    assert moved is not None
    dim = LAYOUTS[layout][1]
    whole, scores = by_hand(result, dense, dim)
    assert moved.final["found"] == pytest.approx(whole, rel=1e-4)
    assert scores > whole
    assert moved.columns["found"].place == f"columns 4-5 of dimension {dim}"
    assert moved.columns["found"].deviation == pytest.approx(scores, rel=1e-4)
    assert moved.judged["found"] == moved.columns["found"].deviation
    line = f"found, columns 4-5 of dimension {dim}: {100 * scores:.3g} % relative to those columns alone"
    assert line in str(result.report)


def test_outputs_of_one_size_are_judged_as_a_whole() -> None:
    result = ds.prune(Detector(scores_only=True).eval(), IMAGES, budget=BUDGET, method=ds.DiSparse())

    moved = result.report.deviation
    assert moved is not None
    assert moved.columns == {}
    assert moved.judged == moved.final
    assert str(result.report).count("found") == 2


def test_damage_is_measured_by_size_so_the_scale_of_boxes_does_not_matter() -> None:
    removed_by = [
        removed(ds.prune(Detector(scale=scale).eval(), IMAGES, budget=BUDGET, method=QUICK, verify=False))
        for scale in (640.0, 64000.0)
    ]

    assert removed_by[0] == removed_by[1]


def test_a_tolerance_that_only_small_columns_pass_is_refused_by_their_name() -> None:
    dense = Detector().eval()
    votes: dict[str, Any] = {"budget": BUDGET, "verify": False}
    whole, scores = by_hand(ds.prune(dense, IMAGES, method=ds.DiSparse(), **votes), dense, 2)
    limit = {"found": (whole + scores) / 2}

    pattern = r"'found' deviates by 0\.\d+ in columns 4-5 of dimension 2 \(limit 0\."
    with pytest.raises(BudgetError, match=pattern):
        ds.prune(dense, IMAGES, method=ds.DiSparse(), tolerance=limit, **votes)
    # Where damage is measured, it is by size, so that both sizes come within the limit.
    held = ds.prune(dense, IMAGES, method=QUICK, tolerance=limit, **votes)
    assert max(by_hand(held, dense, 2)) <= limit["found"]


def test_int8_keeps_its_tolerance_for_small_columns_too(tmp_path: Path) -> None:
    result = ds.prune(Detector().eval(), IMAGES, budget=BUDGET, method=ds.DiSparse())
    loose = result.quantize(IMAGES, tmp_path / "loose.onnx", tolerance=10.0, rounds=0).tasks["found"]
    assert loose.columns is not None
    assert loose.columns.place == "columns 4-5 of dimension 2"
    assert loose.columns.deviation > 2 * loose.int8
    limit = (loose.int8 + loose.columns.deviation) / 2

    facts = result.quantize(IMAGES, tmp_path / "model.onnx", tolerance=limit, rounds=0)

    found = facts.tasks["found"]
    assert found.columns is None or found.columns.deviation <= limit
    assert len(facts.quantized) < len(facts.layers)


def test_the_command_reports_the_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(IMAGES, tmp_path / "images.pt")
    (tmp_path / "net.py").write_text(
        "from tests.pipeline.test_columns import Detector\n\n\ndef build():\n    return Detector().eval()\n"
    )
    arguments = ["--model", f"{tmp_path}/net.py:build", "--data", f"{tmp_path}/images.pt", "--macs", "0.6"]
    assert main(["prune", *arguments, "--method", "disparse", "--out", f"{tmp_path}/small"]) == 0
    (name,) = re.findall(r"found, (columns [^:]*):", capsys.readouterr().out)

    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["deviation"]["columns"]["found"]["place"] == name
    assert main(["show", f"{tmp_path}/small"]) == 0
    assert f"found, {name}: " in capsys.readouterr().out


# Which columns are compared by themselves.


def moved(*pairs: tuple[Tensor, Tensor]) -> Any:
    movement = Movement()
    movement.add(*zip(*pairs, strict=True))
    return movement.deviation


def test_columns_without_a_size_of_their_own_count_in_the_whole_only() -> None:
    wanted = torch.tensor([[640.0, 320.0, 1e-5, 0.0]])
    found = torch.tensor([[640.0, 320.0, 3.0, 4.0]])

    assert moved((found, wanted)).columns is None
    assert moved((found, wanted)).whole == pytest.approx(5 / 715.54, rel=1e-4)


def test_columns_of_like_size_are_compared_together() -> None:
    wanted = torch.tensor([[640.0, 0.06, 0.05, 0.007]])
    found = wanted + torch.tensor([[0.0, 0.01, 0.0, 0.007]])
    place, deviation = (getattr(moved((found, wanted)).columns, name) for name in ("place", "deviation"))

    assert (place, deviation) == (
        "columns 1-3 of dimension 1",
        pytest.approx((0.01**2 + 0.007**2) ** 0.5 / 0.0784, rel=1e-3),
    )


def test_damage_is_the_mean_over_the_sizes() -> None:
    wanted = torch.tensor([[640.0, 0.06]])
    several, one = Movement(), Movement()
    several.add([torch.tensor([[704.0, 0.078]])], [wanted])
    one.add([torch.tensor([[704.0, 640.0]])], [torch.full((1, 2), 640.0)])

    assert several.damage == pytest.approx((0.1**2 + 0.3**2) / 2, rel=1e-5)
    assert one.damage == pytest.approx(one.deviation.whole**2)


def test_a_logit_near_zero_is_not_judged_alone() -> None:
    wanted = torch.tensor([[0.6, 0.3, 0.011]])

    assert moved((wanted + 0.01, wanted)).columns is None


def test_tensors_of_one_task_are_compared_by_size_too() -> None:
    boxes, scores = 640 * torch.rand(2, 5, 4), 0.06 * torch.rand(2)

    found = moved((boxes, boxes), (scores * 1.5, scores))

    assert found.columns.place == "tensor 1"
    assert found.columns.deviation == pytest.approx(0.5)
    assert found.whole < 1e-3


def test_places_of_a_picture_are_no_columns() -> None:
    wanted = torch.ones(2, 1, 4, 4)
    wanted[..., 0] = 1e-3

    assert moved((wanted + 0.01, wanted)).columns is None


def test_chunks_add_up() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(6, 5) * torch.tensor([640.0, 640.0, 1.0, 1.0, 1.0])
    found = wanted + 0.1 * torch.rand(6, 5)
    movement = Movement()
    for rows in (slice(0, 2), slice(2, 6)):
        movement.add([found[rows]], [wanted[rows]])

    assert movement.deviation.whole == pytest.approx(relative(found, wanted), rel=1e-6)
    assert movement.deviation.columns.deviation == pytest.approx(
        relative(found[:, 2:], wanted[:, 2:]), rel=1e-6
    )


def test_values_that_are_no_longer_finite_are_infinitely_far() -> None:
    assert moved((torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2))).whole == torch.inf
