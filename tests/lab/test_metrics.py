"""Metrics and losses, against cases worked by hand and against TorchMetrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from disparse_structured.errors import TaskError
from disparse_structured.lab import losses
from disparse_structured.lab.metrics import (
    Classification,
    Depth,
    MeanError,
    Metric,
    Normals,
    Segmentation,
    delta_t,
)


def logits(labels: list[int], classes: int) -> Tensor:
    """``[1, C, 1, n]`` whose highest class is ``labels``."""
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).float().T[None, :, None]


def row(*values: float) -> Tensor:
    return torch.tensor(values)[None, None, None]


def vectors(*columns: tuple[float, float, float]) -> Tensor:
    """``[1, 3, 1, n]``."""
    return torch.tensor(columns).T[None, :, None]


def test_segmentation_by_hand() -> None:
    metric = Segmentation(4)
    # Class 3 never occurs and must not count; 255 is ignored.
    metric.update(logits([0, 0, 1, 2, 2, 0], 4), torch.tensor([[[0, 1, 1, 2, 0, 255]]]))
    # IoU: class 0: 1 / 3 (one hit, one missed, one false), class 1: 1 / 2, class 2: 1 / 2.
    assert metric.compute() == pytest.approx({"miou": (1 / 3 + 1 / 2 + 1 / 2) / 3, "pixel_accuracy": 3 / 5})


def test_a_class_that_is_never_hit_counts_as_zero() -> None:
    metric = Segmentation(3)
    metric.update(logits([0, 0, 2], 3), torch.tensor([[[0, 1, 255]]]))
    # Class 0: 1 / 2, class 1: 0 / 1; class 2 was predicted on a void pixel only.
    assert metric.compute() == pytest.approx({"miou": 0.25, "pixel_accuracy": 0.5})


def test_classification_by_hand() -> None:
    metric = Classification(4)
    metric.update(logits([0, 0, 1], 4)[0, :, 0].T, torch.tensor([0, 1, 1]))
    metric.update(logits([2, 3, 0], 4)[0, :, 0].T, torch.tensor([0, 255, 0]))
    # 3 of 5; class 0: 2 of 3, class 1: 1 of 2, classes 2 and 3 never asked for.
    assert metric.compute() == pytest.approx({"accuracy": 3 / 5, "class_accuracy": (2 / 3 + 1 / 2) / 2})


def test_classification_with_more_than_255_classes_counts_class_255() -> None:
    output, target = torch.zeros(2, 300), torch.tensor([255, 0])
    output[:, 255] = 1
    metric = Classification(300, ignored=None)
    metric.update(output, target)
    assert metric.compute()["accuracy"] == 0.5
    with pytest.raises(TaskError, match=r"found class 300, expected 0 to 299\. Give"):
        metric.update(output, torch.tensor([300, 0]))


@pytest.mark.parametrize("seed", range(3))
def test_segmentation_is_that_of_torchmetrics(seed: int) -> None:
    torch.manual_seed(seed)
    output, target = torch.randn(4, 7, 9, 11), torch.randint(0, 5, (4, 9, 11))
    output[:, 6] = -9.0  # class 6 is neither there nor predicted, class 5 is predicted only
    target[torch.rand(target.shape) < 0.3] = 255
    iou = MulticlassJaccardIndex(7, average="macro", ignore_index=255)
    accuracy = MulticlassAccuracy(7, average="micro", ignore_index=255)
    metric = Segmentation(7)
    for some_output, some_target in zip(output.split(2), target.split(2), strict=True):
        for each in (metric, iou, accuracy):
            each.update(some_output, some_target)
    assert metric.compute() == pytest.approx(
        {"miou": iou.compute().item(), "pixel_accuracy": accuracy.compute().item()}, rel=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_classification_is_that_of_torchmetrics(seed: int) -> None:
    torch.manual_seed(seed)
    output, target = torch.randn(40, 4), torch.randint(0, 4, (40,))
    target[::5] = 255
    metric = Classification(4)
    micro = MulticlassAccuracy(4, average="micro", ignore_index=255)
    macro = MulticlassAccuracy(4, average="macro", ignore_index=255)
    for each in (metric, micro, macro):
        each.update(output, target)
    assert metric.compute() == pytest.approx(
        {"accuracy": micro.compute().item(), "class_accuracy": macro.compute().item()}, rel=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_of_torchmetrics(seed: int) -> None:
    torch.manual_seed(seed)
    output, target = torch.rand(3, 1, 5, 7) * 4 + 0.1, torch.rand(3, 1, 5, 7) * 4 + 0.1
    target[torch.rand(target.shape) < 0.3] = 0
    known = target > 0
    mean, relative = torchmetrics.MeanAbsoluteError(), torchmetrics.MeanAbsolutePercentageError()
    for each in (mean, relative):
        each.update(output[known], target[known])
    depth = Depth()
    depth.update(output, target)
    found = depth.compute()
    assert found["abs_error"] == pytest.approx(mean.compute().item(), rel=1e-5)
    assert found["rel_error"] == pytest.approx(relative.compute().item(), rel=1e-5)

    unknown = torch.where(known, target, math.nan)
    error = MeanError()
    error.update(output, unknown)
    assert error.compute()["l1"] == pytest.approx(mean.compute().item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_angles_are_those_of_torchmetrics(seed: int) -> None:
    torch.manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(2, 3, 6, 8), dim=1)
    output = (truth + 0.4 * torch.randn_like(truth)) * 3
    truth[:, :, 0] = 0
    known = truth.abs().sum(1) > 0
    cosine = torchmetrics.CosineSimilarity(reduction="none")
    cosine.update(output.movedim(1, -1)[known].double(), truth.movedim(1, -1)[known].double())
    angles = cosine.compute().clamp(-1, 1).acos().rad2deg()
    metric = Normals()
    metric.update(output, truth)
    found = metric.compute()
    assert found["mean_angle"] == pytest.approx(angles.mean().item(), rel=1e-5)
    assert found["median_angle"] == pytest.approx(angles.quantile(0.5).item(), abs=0.006)
    for limit in (11.25, 22.5, 30.0):
        share = (angles < limit).double().mean().item()
        assert 0 < share < 1
        assert found[f"within_{limit:g}"] == pytest.approx(share)


def test_a_diverged_network_gets_no_credit() -> None:
    nan = torch.full((1, 3, 1, 4), math.nan)
    segmentation, classification, normals, depth = Segmentation(3), Classification(3), Normals(), Depth()
    segmentation.update(nan, torch.tensor([[[0, 0, 1, 255]]]))
    assert segmentation.compute() == {"miou": 0.0, "pixel_accuracy": 0.0}
    classification.update(nan[:, :, 0, 0], torch.tensor([0]))
    assert classification.compute() == {"accuracy": 0.0, "class_accuracy": 0.0}
    normals.update(nan, vectors(*[(0.0, 0.0, 1.0)] * 4))
    angles = normals.compute()
    assert math.isnan(angles["mean_angle"])
    assert (angles["median_angle"], angles["within_30"]) == (pytest.approx(180, abs=0.01), 0.0)
    depth.update(nan[:, :1], torch.ones(1, 1, 1, 4))
    figures = depth.compute()
    assert math.isnan(figures["abs_error"])
    assert figures["delta3"] == 0.0


def test_depth_by_hand() -> None:
    metric = Depth()
    metric.update(
        row(1.0, 3.0, 2.0, -1.0, 9.0, 9.0, 9.0, 9.0), row(1.0, 2.0, 4.0, 2.0, 0.0, math.nan, -1.0, math.inf)
    )
    # Errors 0, 1, 2, 3; relative 0, 1/2, 1/2, 3/2; ratios 1, 1.5, 2, none.
    assert metric.compute() == pytest.approx(
        {"abs_error": 1.5, "rel_error": 2.5 / 4, "delta1": 0.25, "delta2": 0.5, "delta3": 0.5}
    )


def test_depth_ratios_at_their_limits() -> None:
    metric = Depth()
    metric.update(row(1.24, 1.26, 1.57, 1 / 1.94, 2.0), row(1.0, 1.0, 1.0, 1.0, 1.0))
    found = metric.compute()
    assert (found["delta1"], found["delta2"], found["delta3"]) == pytest.approx((0.2, 0.4, 0.8))


def test_normals_by_hand() -> None:
    metric = Normals()
    degrees = [0.0, 10.0, 20.0, 25.0, 90.0, 180.0]
    found = vectors(*((math.sin(math.radians(d)) * 2, 0.0, -math.cos(math.radians(d)) * 2) for d in degrees))
    truth = vectors(*([(0.0, 0.0, -1.0)] * 6))
    truth_with_hole = torch.cat((truth, vectors((0.0, 0.0, 0.0))), dim=-1)
    metric.update(torch.cat((found, vectors((1.0, 0.0, 0.0))), dim=-1), truth_with_hole)
    assert metric.compute() == pytest.approx(
        {
            "mean_angle": 325 / 6,
            "median_angle": 22.5,
            "within_11.25": 2 / 6,
            "within_22.5": 3 / 6,
            "within_30": 4 / 6,
        },
        abs=0.011,
    )


def test_a_zero_vector_is_ninety_degrees_off() -> None:
    metric = Normals()
    metric.update(vectors((0.0, 0.0, 0.0)), vectors((0.0, 1.0, 0.0)))
    assert metric.compute()["mean_angle"] == 90.0


def test_mean_error_by_hand() -> None:
    plain, activated = MeanError(), MeanError(torch.sigmoid)
    for metric in (plain, activated):
        metric.update(row(0.0, 0.0, 5.0), row(1.0, 0.25, math.nan))
    assert plain.compute() == pytest.approx({"l1": 0.625})
    assert activated.compute() == pytest.approx({"l1": 0.375})


CASES: dict[str, tuple[Callable[[], Metric], Callable[[int], tuple[Tensor, Tensor]]]] = {
    "segmentation": (
        lambda: Segmentation(5),
        lambda n: (torch.randn(n, 5, 4, 6), torch.randint(0, 5, (n, 4, 6))),
    ),
    "classification": (
        lambda: Classification(5),
        lambda n: (torch.randn(n, 5), torch.randint(0, 5, (n,))),
    ),
    "depth": (Depth, lambda n: (torch.rand(n, 1, 4, 6) * 3, torch.rand(n, 1, 4, 6) * 3)),
    "normals": (Normals, lambda n: (torch.randn(n, 3, 4, 6), torch.randn(n, 3, 4, 6))),
    "l1": (MeanError, lambda n: (torch.randn(n, 1, 4, 6), torch.randn(n, 1, 4, 6))),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_how_the_data_is_cut_into_batches_does_not_matter(name: str, sizes: list[int]) -> None:
    make, draw = CASES[name]
    whole, parts = make(), make()
    output, target = draw(sum(sizes))
    whole.update(output, target)
    for some_output, some_target in zip(output.split(sizes), target.split(sizes), strict=True):
        parts.update(some_output, some_target)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-9)


@settings(max_examples=20)
@given(count=st.integers(1, 400))
def test_the_median_angle_is_that_of_the_sorted_angles(count: int) -> None:
    output, target = torch.randn(1, 3, 1, count), torch.randn(1, 3, 1, count)
    metric = Normals()
    metric.update(output, target)
    angles = torch.nn.functional.cosine_similarity(output.double(), target.double()).acos().rad2deg()
    assert metric.compute()["median_angle"] == pytest.approx(angles.quantile(0.5).item(), abs=0.006)


@pytest.mark.parametrize("name", CASES)
def test_without_data_every_figure_is_nan(name: str) -> None:
    assert all(math.isnan(value) for value in CASES[name][0]().compute().values())


@pytest.mark.parametrize("name", CASES)
def test_metrics_refuse_shapes_that_would_broadcast(name: str) -> None:
    make, draw = CASES[name]
    output, target = draw(2)
    with pytest.raises(TaskError, match=r"the output has shape .*, its target .*Resize one to the other"):
        make().update(output, target[:1])


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(TaskError, match=r"found class 7, expected 0 to 2 or 255 \(ignored\)"):
        Segmentation(3).update(logits([0, 1], 3), torch.tensor([[[1, 7]]]))
    with pytest.raises(TaskError, match=r"found class -1, expected 0 to 2"):
        Segmentation(3).update(logits([0, 1], 3), torch.tensor([[[1, -1]]]))


def test_an_output_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(TaskError, match="segmentation: the output has 3 classes, the metric 13"):
        Segmentation(13).update(logits([0, 1], 3), torch.tensor([[[1, 1]]]))


def test_delta_t_by_hand() -> None:
    dense = {"segmentation": 0.4, "depth": 2.0, "normals": 20.0}
    pruned = {"segmentation": 0.3, "depth": 2.2, "normals": 15.0}
    up = {"segmentation": True, "depth": False, "normals": False}
    # -25 %, -10 %, +25 %.
    assert delta_t(dense, pruned, up) == pytest.approx(-10 / 3)
    assert delta_t(dense, dense, up) == 0.0


def test_delta_t_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(TaskError, match=r"are of \['a'\], the pruned model's of \['b'\].*same tasks"):
        delta_t({"a": 1.0}, {"b": 1.0}, {"a": True})
    with pytest.raises(TaskError, match="Name the same tasks"):
        delta_t({}, {}, {})
    with pytest.raises(TaskError, match=r"task 'a' has the dense figure 0\.0.*another metric"):
        delta_t({"a": 0.0}, {"a": 1.0}, {"a": True})
    with pytest.raises(TaskError, match="task 'a' has the dense figure nan"):
        delta_t({"a": math.nan}, {"a": 1.0}, {"a": True})


def test_losses_by_hand() -> None:
    half = torch.zeros(1, 2, 1, 3)
    assert losses.cross_entropy(half, torch.tensor([[[0, 1, 255]]])).item() == pytest.approx(math.log(2))
    assert losses.depth_l1(row(1.0, 5.0, 9.0, 9.0), row(2.0, 2.0, 0.0, math.inf)).item() == 2.0
    assert losses.l1(row(1.0, -1.0, 9.0), row(0.0, 0.5, math.nan)).item() == 1.25
    assert losses.binary_cross_entropy(row(0.0, 3.0), row(1.0, math.nan)).item() == pytest.approx(math.log(2))
    found = vectors((0.0, 0.0, 5.0), (0.0, 2.0, 0.0), (0.0, 0.0, -3.0), (1.0, 1.0, 1.0))
    truth = vectors((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    assert losses.cosine(found, truth).item() == pytest.approx((0 + 1 + 2) / 3)


@pytest.mark.parametrize("void", [0.0, 0.4])
def test_cross_entropy_with_class_weights_is_torchs(void: float) -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    target[torch.rand(target.shape) < void] = losses.IGNORED_LABEL
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])
    expected = torch.nn.functional.cross_entropy(output, target, weights, ignore_index=255)
    torch.testing.assert_close(losses.cross_entropy(output, target, weights), expected)
    nothing = losses.cross_entropy(output, torch.ones_like(target), weights)
    assert nothing.item() == 0, "only pixels that weigh nothing"


IGNORED = {
    losses.cross_entropy: (torch.randn(2, 3, 4, 5), torch.full((2, 4, 5), 255)),
    losses.depth_l1: (
        torch.randn(2, 1, 4, 5),
        torch.tensor([0.0, math.nan])[:, None, None, None].expand(2, 1, 4, 5),
    ),
    losses.l1: (torch.randn(2, 1, 4, 5), torch.full((2, 1, 4, 5), math.inf)),
    losses.binary_cross_entropy: (torch.randn(2, 1, 4, 5), torch.full((2, 1, 4, 5), math.nan)),
    losses.cosine: (torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)),
}


@pytest.mark.parametrize("loss", IGNORED, ids=lambda loss: loss.__name__)
def test_a_batch_that_is_all_ignored_costs_nothing(loss: losses.TensorLoss) -> None:
    output, target = IGNORED[loss]
    output = output.clone().requires_grad_()
    value = loss(output, target)
    value.backward()
    assert value.item() == 0.0
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize("loss", IGNORED, ids=lambda loss: loss.__name__)
def test_losses_refuse_shapes_that_would_broadcast(loss: losses.TensorLoss) -> None:
    output, target = IGNORED[loss]
    with pytest.raises(TaskError, match=rf"{loss.__name__}: the output has shape .*Resize one to the other"):
        loss(output, target[:, ..., :1])


def test_cosine_has_finite_gradients_at_a_zero_output() -> None:
    output = torch.zeros(1, 3, 2, 2, requires_grad=True)
    losses.cosine(output, torch.ones(1, 3, 2, 2)).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
