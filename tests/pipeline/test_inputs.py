"""Inputs as models take them: by name, keyword-only, optional and omitted, nested, with constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import BatchError

GENERATOR = torch.Generator().manual_seed(0)
IMAGE, MASK = torch.rand(16, 3, 12, 12, generator=GENERATOR), torch.rand(16, 1, 12, 12, generator=GENERATOR)


class Core(nn.Module):
    """Two inputs, the second of which may be missing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.mask = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.body, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def core(self, image: Tensor, mask: Tensor | None, gain: float = 1.0) -> dict[str, Tensor]:
        y = torch.relu(self.image(image))
        y = y if mask is None else y + gain * torch.relu(self.mask(mask))
        return {"seg": self.head(torch.relu(self.body(y)))}


class Named(Core):
    def forward(self, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return self.core(image, mask)


class KeywordOnly(Core):
    def forward(self, *, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return self.core(image, mask)


class Skips(Core):
    def forward(
        self, image: Tensor, boxes: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        assert boxes is None
        return self.core(image, mask)


class Variadic(Core):
    def forward(self, image: Tensor, **others: Tensor) -> dict[str, Tensor]:
        return self.core(image, others.get("mask"))


MODELS = [Named, KeywordOnly, Skips, Variadic]


@pytest.mark.parametrize("method", [ds.Compensated(), ds.DiSparse()], ids=["compensated", "votes"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_dict_holds_the_arguments_by_name(kind: type[Core], method: Any, tmp_path: Path) -> None:
    model = kind().eval()
    result = ds.prune(model, {"image": IMAGE, "mask": MASK}, macs=0.2, method=method)

    assert result.report.verification.verified
    assert result.model.mask.out_channels < 16, "the path of the mask was pruned too"
    output = result.model(image=IMAGE, mask=MASK)["seg"]
    result.save(tmp_path)
    torch.testing.assert_close(ds.load(tmp_path, kind)(image=IMAGE, mask=MASK)["seg"], output)
    facts = result.export(tmp_path / "model.onnx")
    assert [fact.name for fact in facts.inputs] == ["image", "mask"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"image": IMAGE.numpy(), "mask": MASK.numpy()})
    np.testing.assert_allclose(found, output.detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_example_inputs_by_name_are_those_by_position(kind: type[Core]) -> None:
    given = {"image": IMAGE[:2], "mask": MASK[:2]}
    by_name = ds.analyse(kind().eval(), given)
    assert by_name.units == 32
    alone = ds.analyse(kind().eval(), {"image": IMAGE[:2]})
    assert alone.units == 32, "and the mask's layer is pinned"
    assert "never used by forward" in {pin.reason for pin in alone.pinned}
    if kind is Named:
        by_position = ds.analyse(kind().eval(), (IMAGE[:2], MASK[:2]))
        assert by_position.fingerprint == by_name.fingerprint
        assert by_position.signature == by_name.signature


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BatchError, match="'image_size'"):
        ds.analyse(Named(), {"image": IMAGE[:2], "image_size": 3})
    with pytest.raises(BatchError, match="missing a required argument: 'image'"):
        ds.analyse(Named(), {"mask": MASK[:2]})


def test_a_function_may_return_names() -> None:
    def by_name(batch: Any) -> dict[str, Any]:
        return {"image": batch[0], "mask": batch[1]}

    result = ds.prune(KeywordOnly().eval(), [(IMAGE, MASK)], macs=0.5, to_inputs=by_name)
    assert [*result.example_inputs[-1]] == ["image", "mask"]


class Nested(Core):
    def forward(self, inputs: dict[str, Any], gain: float = 1.0, mode: str = "add") -> dict[str, Tensor]:
        assert mode == "add"
        return self.core(inputs["image"], inputs["more"][0], gain)


def test_containers_and_constants_reach_the_file(tmp_path: Path) -> None:
    model = Nested().eval()
    inputs = ({"image": IMAGE, "more": [MASK, None]}, 0.5, "add")
    result = ds.prune(model, [inputs], macs=0.5, to_inputs=lambda batch: batch)

    output = result.model(*inputs)["seg"]
    assert result.report.verification.deviation["seg"] <= 1e-9
    facts = result.export(tmp_path / "model.onnx")
    assert [fact.name for fact in facts.inputs] == ["inputs.image", "inputs.more.0"]
    assert facts.constants == {"inputs.more.1": "None", "gain": "0.5", "mode": "'add'"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"inputs.image": IMAGE.numpy(), "inputs.more.0": MASK.numpy()})
    np.testing.assert_allclose(found, output.detach().numpy(), rtol=1e-3, atol=1e-5)
