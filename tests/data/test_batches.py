"""From batches to the arguments of ``forward``."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.data.batches import batches, call_model, model_inputs, to_device
from disparse_structured.data.call import split
from disparse_structured.errors import BatchError, TaskError

A, B, C = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class Optional(nn.Module):
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None) -> Tensor | None:
        return pixel_values


class KeywordOnly(nn.Module):
    def forward(self, *, image: Tensor, scale: float = 1.0) -> Tensor:
        return image * scale


class Beside(nn.Module):
    def forward(self, frame: Tensor, image: Tensor) -> Tensor:
        return frame + image


class PositionalOnly(nn.Module):
    def forward(self, x: Tensor, /, scale: float = 1.0) -> Tensor:
        return x * scale


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs


Pair = namedtuple("Pair", "image depth")


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        pytest.param(One(), A, ((A,), {}), id="tensor"),
        pytest.param(One(), (A, B), ((A,), {}), id="tuple-first"),
        pytest.param(One(), [A, {"y": B}], ((A,), {}), id="list-first"),
        pytest.param(Two(), ((A, B), C), ((A, B), {}), id="tuple-splat"),
        pytest.param(One(), ([A, B], C), (([A, B],), {}), id="inner-list-is-one-argument"),
        pytest.param(One(), Pair(A, B), ((A,), {}), id="named-tuple"),
        pytest.param(
            Two(), {"right": B, "left": A, "truth": C}, ((), {"left": A, "right": B}), id="dict-by-name"
        ),
        pytest.param(Two(), ({"right": B, "left": A}, C), ((), {"left": A, "right": B}), id="dict-in-tuple"),
        pytest.param(One(), {"x": A, "image": B}, ((), {"x": A}), id="name-goes-before-image"),
        pytest.param(One(), {"image": A, "depth": B}, ((A,), {}), id="image-for-x"),
        pytest.param(One(), {"pixel_values": A, "labels": B}, ((A,), {}), id="pixel-values-for-x"),
        pytest.param(Masked(), {"image": A, "mask": B}, ((A,), {"mask": B}), id="image-and-mask"),
        pytest.param(Masked(), {"image": A}, ((A,), {}), id="image-without-mask"),
        pytest.param(Optional(), {"image": A, "labels": B}, ((A,), {"labels": B}), id="all-optional"),
        pytest.param(Optional(), {"pixel_values": A}, ((), {"pixel_values": A}), id="optional-by-name"),
        pytest.param(KeywordOnly(), {"image": A, "y": B}, ((), {"image": A}), id="keyword-only"),
        pytest.param(
            Beside(), {"image": A, "input": B}, ((B,), {"image": A}), id="image-is-another-parameter"
        ),
        pytest.param(PositionalOnly(), {"x": A, "scale": B}, ((A,), {"scale": B}), id="positional-only"),
        pytest.param(Anything(), {"image": A, "y": B}, ((A,), {"y": B}), id="var-arguments"),
        pytest.param(One(), UserDict(image=A), ((A,), {}), id="any-mapping"),
    ],
)
def test_what_forward_gets(
    model: nn.Module, batch: Any, expected: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    positional, named = split(model_inputs(model, batch))
    assert len(positional) == len(expected[0])
    for found, wanted in zip(positional, expected[0], strict=True):
        assert found is wanted or all(a is b for a, b in zip(found, wanted, strict=True))
    assert {key: id(value) for key, value in named.items()} == {k: id(v) for k, v in expected[1].items()}
    model(*positional, **named)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        pytest.param(One(), 3, r"the batch is a int; expected a tensor.*Pass to_inputs=", id="number"),
        pytest.param(One(), None, r"the batch is a NoneType", id="none"),
        pytest.param(One(), (), r"empty tuple", id="empty-tuple"),
        pytest.param(
            One(),
            {"rgb": A, "depth": B},
            r"keys \['rgb', 'depth'\], but One.forward takes \['x'\] and gets no 'x'.*exactly.*to_inputs=",
            id="no-key-fits",
        ),
        pytest.param(One(), {"image": A, "input": B}, r"gets no 'x'", id="two-images"),
        pytest.param(Two(), {"left": A}, r"gets no 'right'", id="half"),
        pytest.param(Two(), {"image": A}, r"gets no 'right'", id="image-for-one-of-two"),
        pytest.param(
            KeywordOnly(), {"pixel_values": A}, r"gets no 'image'", id="keyword-only-needs-its-name"
        ),
        pytest.param(Optional(), {"depth": A}, r"gets no 'argument'", id="nothing-for-all-optional"),
    ],
)
def test_what_is_refused(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        model_inputs(model, batch)


def test_the_model_is_called_and_its_refusal_explained() -> None:
    model = nn.Linear(4, 2)
    assert call_model(model, (torch.zeros(3, 4), "truth")).shape == (3, 2)
    with pytest.raises(
        BatchError,
        match=r"Linear refused a batch, called with \(\(3, 5\) torch\.float32\): RuntimeError: .*shapes",
    ) as raised:
        call_model(model, torch.zeros(3, 5))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_inputs_replaces_the_rules() -> None:
    batch = {"left image": A, "right image": B}
    assert call_model(Two(), batch, lambda b: (b["left image"], b["right image"])).item() == 1.0
    with pytest.raises(
        BatchError, match=r"to_inputs= returned a Tensor; expected the tuple.*return \(tensor,\)"
    ):
        call_model(One(), batch, lambda b: b["left image"])


def test_errors_raised_on_purpose_pass_through_the_call() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TaskError("told so")

    with pytest.raises(TaskError, match="told so"):
        call_model(Refusing(), A)


def test_an_empty_loader_is_refused_and_a_full_one_passed_on() -> None:
    assert list(batches([A, B])) == [A, B]
    with pytest.raises(BatchError, match=r"the loader yields no batch.*drop_last"):
        list(batches([]))
    used = iter([A])
    next(used)
    with pytest.raises(BatchError, match="exhausted"):
        list(batches(used))


def test_to_device_rebuilds_containers_and_keeps_the_rest() -> None:
    batch = {"image": A, "pair": Pair(B, [C, "name", None]), "labels": torch.tensor([1]), 3: (True, 2.5)}
    moved = to_device(batch, "meta", torch.float64)
    assert list(moved) == list(batch)
    assert moved["image"].device.type == "meta"
    assert moved["image"].dtype == torch.float64
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].depth[0].device.type == "meta"
    assert moved["pair"].depth[1:] == ["name", None]
    assert moved["labels"].dtype == torch.int64
    assert moved[3] == (True, 2.5)
    assert batch["image"].device.type == "cpu"
    assert to_device(A, "cpu").dtype == torch.float32
