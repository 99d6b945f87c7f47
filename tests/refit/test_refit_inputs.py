"""What a refit reads: how much of the data, in which shapes, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import BatchError, PlanError
from disparse_structured.refit import refit
from disparse_structured.surgery.module import apply
from tests.refit.test_refit_robustness import analyzed, finite, images, same, small, weights


def test_data_is_read_once_and_no_further_than_the_limit() -> None:
    model = small()
    structure, keep = analyzed(model)
    read = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for number in range(10):
            read.append(number)
            yield {"image": images(6, seed=number), "label": torch.zeros(6)}

    done = refit(model, structure, keep, batches(), limit=16)
    assert read == [0, 1, 2]
    assert done.facts.samples == 16
    prepared = Calibration.of(model, batches(), limit=16)
    again = refit(model, structure, keep, prepared)
    assert same(weights(again.model), weights(done.model))
    assert again.facts == done.facts


@pytest.mark.parametrize(
    ("count", "samples", "checked"),
    [
        (2, 2, 0),
        (3, 2, 0),
        (8, 8, 0),
        (15, 14, 0),
        (16, 16, 4),
        (24, 24, 4),
        (64, 64, 8),
        (128, 128, 16),
        (100, 100, 10),
    ],
)
def test_some_of_enough_examples_are_set_aside(count: int, samples: int, checked: int) -> None:
    calibration = Calibration.of(small(), [images(count)])
    assert (calibration.samples, calibration.checked) == (samples, checked)
    assert len(calibration.chunks) % 2 == 0
    pieces = [chunk[0] for chunk in (*calibration.chunks, *calibration.checks)]
    assert len({piece.shape for piece in pieces}) == 1
    assert len(torch.cat(pieces).unique(dim=0)) == samples


def test_two_examples_are_enough_to_do_no_harm() -> None:
    model = small()
    structure, keep = analyzed(model)
    done = refit(model, structure, keep, [images(2)])
    assert finite(done)
    assert done.facts.after["all"] <= done.facts.before["all"]


def test_bad_calls_say_what_is_wrong() -> None:
    model = small()
    structure, keep = analyzed(model)
    data = images(24).split(8)
    with pytest.raises(PlanError, match=r"keep is torch.float32 \[14\], expected torch.bool \[14\]"):
        refit(model, structure, keep.float(), data)
    with pytest.raises(PlanError, match=r"expected torch.bool \[14\]"):
        refit(model, structure, keep[:-1], data)
    with pytest.raises(PlanError, match=r"'0\.weight' is missing"):
        refit(nn.Sequential(nn.ReLU(), *small()), structure, keep, data)
    with pytest.raises(BatchError, match="1 example is too few"):
        refit(model, structure, keep, [images(1)])
    with pytest.raises(BatchError, match="the batches differ"):
        refit(model, structure, keep, [images(8), images(8, size=10)])
    with pytest.raises(BatchError, match="no batch"):
        refit(model, structure, keep, [])
    with pytest.raises(BatchError, match="refuses a batch"):
        refit(model, structure, keep, [images(24, channels=4)])
    with pytest.raises(BatchError, match="holds NaN or infinite values"):
        refit(model, structure, keep, [images(24) / 0])


def test_outputs_that_are_nowhere_finite_are_refused() -> None:
    model = nn.Sequential(*small(), nn.Threshold(1e9, float("nan"))).eval()
    structure, keep = analyzed(model)
    with pytest.raises(BatchError, match="task 'all': the dense network's output holds no finite number"):
        refit(model, structure, keep, images(24).split(8))


def test_other_batch_and_image_sizes_than_the_examples() -> None:
    model = small()
    structure, keep = analyzed(model)
    done = refit(model, structure, keep, images(30, size=11).split(7))
    assert done.facts.after["all"] < done.facts.before["all"]
    assert apply(done.model, Plan.from_keep(structure, keep), structure).verification is not None
