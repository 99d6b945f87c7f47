"""Parity is judged by channel and column: large values of an output do not hide small ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import Tensor, nn

from disparse_structured.errors import ExportError
from disparse_structured.export import check_parity, export_onnx

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels": lambda found: found.flatten(2),
    "columns": lambda found: found.flatten(2).transpose(1, 2),
    "vectors": lambda found: found.mean((2, 3)),
}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """Boxes up to 640 and a score of about 0.06 in one tensor."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layout = LAYOUTS[layout]
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)
        nn.init.constant_(self.score.bias, -2.75)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.layout(torch.cat([640 * self.box(y).sigmoid(), self.score(y).sigmoid()], 1))


def whole(found: Tensor) -> Tensor:
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_score_beside_large_boxes_is_refused(layout: str, tmp_path: Path) -> None:
    model, path = Detector(layout).eval(), tmp_path / "m.onnx"
    facts = export_onnx(model, (IMAGES,), path, outputs={"found": whole}, dynamic_size=False)
    assert max(fact.max_rel for fact in facts.parity) <= 1e-4
    expected = model(IMAGES)
    assert expected.amax() > 300
    assert expected.amin() < 0.1

    changed = onnx.load(path)
    (bias,) = (each for each in changed.graph.initializer if each.name == "model.score.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([-2.6]), bias.name))
    onnx.save(changed, path)
    with pytest.raises(ExportError, match=r"task 'found': max abs 0\.0\d+, max rel 0\.\d+ \(tolerance"):
        check_parity(model, path, [(IMAGES,)], outputs={"found": whole})


class Cancels(nn.Module):
    """One channel is what is left of two large numbers: a float32 holds few of its digits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.large, self.left = nn.Conv2d(64, 3, 3), nn.Conv2d(64, 1, 3)
        with torch.no_grad():  # the second half of the stem is the first again, and is subtracted
            self.stem.weight[32:], self.stem.bias[32:] = self.stem.weight[:32], self.stem.bias[:32]
            self.left.weight[:, 32:] = -self.left.weight[:, :32].flip(1) * (1 + 1e-5)
            self.left.weight[:, :32] = self.left.weight[:, :32].flip(1)
            self.left.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return torch.cat([self.large(y), self.left(y)], 1)


def test_a_channel_of_rounding_is_no_difference(tmp_path: Path) -> None:
    model = Cancels().eval()
    with torch.no_grad():
        found, exact = model(IMAGES)[:, 3], model.double()(IMAGES.double())[:, 3]
        model.float()
    assert (found - exact).abs().max() > 1e-4 * exact.abs().max(), "the case is what it says"
    facts = export_onnx(model, (IMAGES,), tmp_path / "m.onnx", outputs={"found": whole}, dynamic_size=False)
    assert facts.dynamic == "batch"
    assert max(fact.max_rel for fact in facts.parity) <= 1e-4


def test_a_single_row_of_logits_is_no_difference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=300).eval()
    size = model.pretrained_cfg["input_size"][1]
    images = torch.rand(1, 3, size, size)
    facts = export_onnx(model, (images,), tmp_path / "m.onnx", outputs={"logits": whole}, dynamic_size=False)
    assert facts.dynamic == "batch"
    assert {fact.batch for fact in facts.parity} == {1, 2, 3}
