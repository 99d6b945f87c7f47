"""Verification beyond the example: other batches and lengths, train mode, and uninformative outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.data.differences import difference
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply
from tests.support.plans import random_plan

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WHOLE = [ds.Task("out", ())]


class Tables(nn.Module):
    """Token, position and type tables, which a short text reads only in part."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.types = (
            nn.Embedding(50, 16),
            nn.Embedding(64, 16),
            nn.Embedding(2, 16),
        )
        self.register_buffer("position_ids", torch.arange(64)[None])
        self.register_buffer("type_ids", torch.zeros(1, 64, dtype=torch.long))
        self.scale = nn.Parameter(torch.rand(64, 16))
        self.body, self.intent, self.topic = nn.Linear(16, 24), nn.Linear(24, 5), nn.Linear(24, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        length = ids.shape[1]
        types = self.type_ids[:, :length].expand(len(ids), length)
        y = self.words(ids) + self.positions(self.position_ids[:, :length]) + self.types(types)
        y = torch.relu(self.body(y * self.scale[:length])) * mask[..., None]
        return {"intent": self.intent(y.mean(1)), "topic": self.topic(y.mean(1))}


def text(length: int, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(50, (count, length), generator=generator), torch.ones(count, length)


def test_tables_of_positions_keep_their_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tables().eval()
    result = ds.prune(model, [text(8)], macs=0.5, to_inputs=lambda batch: batch)

    assert not result.report.refused
    assert result.report.costs["macs"].ratio <= 0.5
    assert (result.model.positions.num_embeddings, len(result.model.scale)) == (64, 64)
    assert result.model.position_ids.shape == result.model.type_ids.shape == (1, 64)
    assert "the length 16" in result.report.verification.beyond
    for length in (1, 8, 40, 64):
        assert result.model(*text(length))["intent"].shape == (16, 5)
    facts = result.export(tmp_path / "model.onnx")
    assert facts.dynamic == "batch+size", facts.narrowed


class Auxiliary(nn.Module):
    """A head that runs only in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.stem(x))
        outputs = {"seg": self.head(torch.relu(self.body(y)))}
        if self.training:
            outputs["aux"] = self.aux(y)
        return outputs


def test_a_head_of_train_mode_follows_the_trunk() -> None:
    torch.manual_seed(0)
    model = Auxiliary().eval()
    result = ds.prune(model, IMAGES.repeat(4, 1, 1, 1), macs=0.4)

    assert result.report.costs["macs"].ratio <= 0.4
    assert not result.report.refused
    assert result.model.stem.out_channels == result.model.aux[0].in_channels < 16
    assert result.model.aux[0].out_channels == 8, "no task judges it, so it keeps its own width"
    outputs = result.model.train()(IMAGES)
    sum(output.mean() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())
    assert "used in train mode only" in {pin.reason for pin in result.report.pinned}


class FixedInTraining(Auxiliary):
    """Its train mode requires a width that the analysis cannot read."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.stem(x))
        if self.training and int(y.detach().abs().sum()) >= 0:  # cannot be exported
            y = y * torch.ones(1, 16, 1, 1)
        return {"seg": self.head(torch.relu(self.body(y)))}


def test_what_breaks_in_train_mode_is_left_alone_with_the_reason() -> None:
    torch.manual_seed(0)
    model = FixedInTraining().eval()
    structure = analyse(model, IMAGES)
    done = apply(model, random_plan(structure, 0), structure)

    assert [refusal.group for refusal in done.refused] == ["stem"]
    assert "train mode" in done.refused[0].reason
    done.model.train()(IMAGES)["seg"].mean().backward()


class FixedBatch(Auxiliary):
    """Indexes a table with the number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Parameter(torch.rand(8, 16, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.stem(x)) * self.each[: len(x)]
        return {"seg": self.head(torch.relu(self.body(y)))}


def test_other_batches_work() -> None:
    torch.manual_seed(0)
    result = ds.prune(FixedBatch().eval(), IMAGES, macs=0.5, method=ds.DiSparse(), refit=None)

    assert "a batch of 3" in result.report.verification.beyond
    assert result.model(torch.rand(8, 3, 16, 16))["seg"].shape == (8, 2, 16, 16)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x * 0, "its output is zero"),
        (lambda x: x * 0 + 3, "its output is the same for other inputs"),
    ],
)
def test_outputs_that_say_nothing_are_named(make: Callable[[Tensor], Tensor], said: str) -> None:
    class Constant(Auxiliary):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.head(torch.relu(self.body(torch.relu(self.stem(x)))))
            return {"seg": y, "dead": make(y)}

    torch.manual_seed(0)
    method = ds.DiSparse(criterion=ds.criteria.Magnitude())
    result = ds.prune(Constant().eval(), IMAGES, ["seg", "dead"], macs=0.5, method=method, refit=None)

    assert result.report.verification.empty == {"dead": said}
    assert f"NOTHING WAS COMPARED for dead: {said}" in str(result.report)


def test_small_outputs_are_compared_all_the_same() -> None:
    class Tiny(Auxiliary):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"seg": self.head(torch.relu(self.body(torch.relu(self.stem(x))))) * 1e-43}

    torch.manual_seed(0)
    method = ds.DiSparse(criterion=ds.criteria.Magnitude())
    result = ds.prune(Tiny().eval(), IMAGES, macs=0.5, method=method, refit=None)
    assert result.report.verification.empty == {}
    assert result.report.verification.deviation["seg"] <= 1e-9
    tiny = torch.full((2, 3), 1e-43, dtype=torch.float64)
    assert difference(1.5 * tiny, tiny) == pytest.approx(0.5)


def test_large_columns_hide_nothing_of_small_ones() -> None:
    boxes, scores = 640 * torch.rand(2, 4, 50).double(), 0.06 * torch.rand(2, 1, 50).double()
    expected = torch.cat([boxes, scores], 1)
    for dims in ((0, 1, 2), (0, 2, 1)):
        wrong = expected.clone()
        wrong[:, 4] *= 1.001
        assert difference(wrong.permute(dims), expected.permute(dims)) == pytest.approx(1e-3, rel=0.1)
    assert difference(expected, expected) == 0
    assert difference(expected + float("nan"), expected) == float("inf")


def test_a_forward_that_asks_for_float32_is_tried_beyond_the_example_in_float64() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
            self.table = torch.randn(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first((x.float() @ self.table).to(x.dtype)).relu())

    verification = ds.prune(Asks().eval(), torch.randn(24, 6), macs=0.5).report.verification

    assert verification.dtype == "torch.float64"
    assert verification.beyond == ("a batch of 3", "train mode")
