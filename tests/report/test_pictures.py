"""Inputs with the outputs of the dense and of the pruned network, as pictures on a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import OptionError
from disparse_structured.report.page.html import LARGEST as PAGE_LARGEST
from disparse_structured.report.page.html import page
from disparse_structured.report.page.pictures import LARGEST, Example, drawn
from disparse_structured.report.page.run import Run
from tests.support.pages import Page, folder

RANDOM = np.random.default_rng(0)
SEEN = RANDOM.integers(0, 255, (48, 64, 3), dtype=np.uint8)


def shown(dense: np.ndarray, pruned: np.ndarray | None = None, seen: np.ndarray | None = SEEN) -> Any:
    """How one tensor of a task is drawn."""
    other = dense if pruned is None else pruned
    (example,) = drawn([Example("1", seen, {"task": [dense]}, {"task": [other]})])
    return example.outputs[0]


def pixels(picture: Any) -> np.ndarray:
    data = base64.b64decode(picture.href.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_map_has_the_dense_output_s_scale() -> None:
    ramp = np.tile(np.linspace(1, 9, 40, dtype=np.float32), (30, 1))[None]
    found = shown(ramp, ramp + 4)
    assert found.title == "task: deviates by 72.3 %"
    assert found.how == "dark to light: 1 to 9"
    dense, pruned = map(pixels, found.pictures)
    assert dense.shape == (132, 176, 3)
    assert dense[0, 0].sum() < dense[0, -1].sum()
    assert (pruned[0, -60:] == pruned[0, -1]).all()


def test_the_largest_channel_is_a_class() -> None:
    scores = np.zeros((5, 8, 8), np.float32)
    scores[2, :, :4], scores[4, :, 4:] = 1, 1
    found = shown(scores, scores[::-1])
    assert found.how == "largest of 5 channels"
    dense, pruned = map(pixels, found.pictures)
    left, right = dense[5, 5], dense[5, -5]
    assert (left != right).any()
    assert (pruned[5, 5] == left).all()
    assert (pruned[5, -5] != right).any()


def test_scores_are_bars() -> None:
    found = shown(np.array([0.1, 0.7, 0.2], np.float32), np.array([0.3, 0.35, -0.2], np.float32))
    assert [(bar.name, bar.dense, bar.pruned) for bar in found.bars] == [
        ("1", "0.7", "0.35"),
        ("2", "0.2", "-0.2"),
        ("0", "0.1", "0.3"),
    ]
    assert (found.bars[0].dense_share, found.bars[0].pruned_share) == pytest.approx((1, 0.5))
    assert found.bars[1].pruned_share == 0
    assert not found.pictures


@pytest.mark.parametrize("turned", [False, True])
def test_boxes_are_drawn_on_the_input(turned: bool) -> None:
    corners = np.array([[10, 8, 40, 30], [11, 8, 40, 31], [0, 0, 5, 5], [50, 30, 60, 40.0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.2], [0.1, 0.7]])
    table = np.concatenate([corners, scores], 1).astype(np.float32)
    gray = np.full((48, 64, 3), 128, np.uint8)
    found = shown(table.T if turned else table, seen=gray)
    assert found.how == "boxes with a score above 0.25"
    marked = np.abs(pixels(found.pictures[0]) - 128).max(-1) > 60
    scale = 176 / 64
    for x, y, there in [(10, 20, True), (55, 30, True), (0, 3, False), (30, 20, False)]:
        around = marked[
            round(y * scale) - 3 : round(y * scale) + 4, max(0, round(x * scale) - 3) : round(x * scale) + 4
        ]
        assert around.any() == there, (x, y)


@pytest.mark.parametrize(
    ("tensor", "how"),
    [
        (RANDOM.integers(0, 9, (6, 6)), "classes"),
        (RANDOM.random((7, 9)).astype(np.float32), "dark to light: "),
        (RANDOM.random((4, 3, 5, 5)).astype(np.float32), "dark to light: "),
        (np.full((1, 4, 4), np.nan, np.float32), "dark to light: "),
        (np.stack([np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32), "unit vectors"),
    ],
)
def test_other_tensors(tensor: np.ndarray, how: str) -> None:
    found = shown(tensor)
    assert found.how.startswith(how)
    assert [picture.label for picture in found.pictures] == ["dense", "pruned"]


def test_many_large_outputs_stay_within_the_page(tmp_path: Path) -> None:
    noise = {f"task {number}": [RANDOM.random((1, 300, 300)).astype(np.float32)] for number in range(4)}
    examples = [Example(str(number), SEEN, noise, noise) for number in range(3)]
    found = drawn(examples)
    assert found
    assert sum(len(p.href) for each in found for output in each.outputs for p in output.pictures) <= LARGEST
    assert len(page(Run.of_folder(folder(tmp_path)), examples).encode()) < PAGE_LARGEST


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.depth, self.kind = nn.Conv2d(16, 1, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.trunk(x)
        return {"depth": self.depth(x), "kind": self.kind(x.mean((2, 3)))}


def test_the_page_of_a_result(tmp_path: Path) -> None:
    dense, images = Net().eval(), torch.randn(16, 3, 16, 16)
    result = ds.prune(dense, images, macs=0.6)
    pairs = [{"id": torch.arange(16), "photo": images}]
    result.to_html(
        tmp_path / "page.html", inputs=pairs, dense=dense, to_inputs=lambda batch: (batch["photo"],), number=2
    )
    section = Page((tmp_path / "page.html").read_text()).root.id("pictures")
    assert [image.attributes["alt"] for image in section.all("img")] == [
        alt
        for number in (1, 2)
        for alt in (f"input {number}", *(f"depth of input {number}, {name}" for name in ("dense", "pruned")))
    ]
    assert len(section.all("table")) == 2
    with pytest.raises(OptionError, match="Pass dense= too"):
        result.to_html(tmp_path / "other.html", inputs=images)
    assert not (tmp_path / "other.html").exists()


def test_the_page_of_a_graph_with_a_fixed_batch(tmp_path: Path) -> None:
    dense, images = Net().eval(), torch.randn(16, 3, 16, 16)
    structure = ds.analyse(dense, images[:2], form="graph")
    result = ds.prune(dense, images, macs=0.6, method=ds.DiSparse(), structure=structure, verify=False)
    assert not result.model.any_batch
    result.to_html(tmp_path / "page.html", inputs=images, dense=dense, number=3)
    section = Page((tmp_path / "page.html").read_text()).root.id("pictures")
    seen = [image.attributes["alt"] for image in section.all("img")]
    assert [alt for alt in seen if alt.startswith("input")] == ["input 1", "input 2", "input 3"]
