"""Copies of models that hold what cannot be copied."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import disparse_structured as ds
from disparse_structured.errors import UnsupportedModelError
from disparse_structured.graph.copies import copied


class Cache:
    """A cache as deployed models hold them: a lock, and what it guards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: list[int] = []


class Cached(nn.Module):
    def __init__(self, cache: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.cache = cache

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.cache.seen.append(len(self.cache.seen))
        return self.last(self.first(image).relu())


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as many libraries put around methods."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def test_an_object_with_a_lock_is_copied_and_the_lock_is_shared() -> None:
    model = Cached(Cache())
    found = copied(model)
    assert found.cache is not model.cache
    assert found.cache.seen is not model.cache.seen
    assert found.cache.lock is model.cache.lock


def test_a_pruned_model_does_not_write_into_the_cache_of_the_dense_one() -> None:
    model, images = Cached(Cache()).eval(), torch.randn(16, 3, 12, 12)
    cache = model.cache

    result = ds.prune(model, images, macs=0.5)
    result.model(images)

    assert model.cache is cache
    assert cache.seen == []


@pytest.mark.parametrize("error", [TypeError, RuntimeError, ValueError])
def test_an_object_that_refuses_to_be_copied_is_shared(error: type[Exception]) -> None:
    class Whole(Cache):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise error("it is one of its kind")

    model = Cached(Whole())
    assert copied(model).cache is model.cache


def test_a_model_that_refuses_to_be_copied_is_refused() -> None:
    class Unique(Cached):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("it is one of its kind")

    with pytest.raises(UnsupportedModelError, match="cannot be copied: RuntimeError: it is one of its kind"):
        ds.prune(Unique(Cache()), torch.randn(16, 3, 12, 12), macs=0.5)


class Tagged(torch.Tensor):
    """A subclass that copy.deepcopy cannot make."""


class Labeled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.first.weight = nn.Parameter(self.first.weight.detach().as_subclass(Tagged))
        self.last.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def test_a_parameter_of_a_subclass_of_tensor_is_copied_with_its_class() -> None:
    model = Labeled().eval()
    model.first.weight.__dict__["label"] = "first"

    weight: Any = copied(model).first.weight

    assert type(weight) is Tagged
    assert isinstance(weight, nn.Parameter)
    assert weight.requires_grad
    assert weight.label == "first"
    assert weight.data_ptr() != model.first.weight.data_ptr()


def test_a_network_with_such_a_parameter_is_pruned_saved_and_loaded(tmp_path: Path) -> None:
    model, data = Labeled().eval(), torch.randn(24, 6)

    result = ds.prune(model, data, macs=0.5)
    result.save(tmp_path / "small")

    assert type(result.model.get_parameter("first.weight")) is Tagged
    assert result.model.get_parameter("first.weight").shape == (16, 6)
    assert torch.equal(ds.load(tmp_path / "small", Labeled)(data), result.model(data))


@pytest.mark.parametrize("wrapped", [logged, functools.partial(torch.compile, backend="eager")])
@pytest.mark.parametrize("method", ["forward", "features"])
def test_a_method_that_a_module_holds_wrapped_belongs_to_its_copy(method: str, wrapped: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)
            setattr(self, method, wrapped(getattr(self, method)))

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x).relu()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.features(x))

    torch.manual_seed(0)
    model, data = Net().eval(), torch.randn(16, 4)
    before = model(data)

    result = ds.prune(model, data, macs=0.5, method=ds.DiSparse(), refit=None)

    assert result.model.first.out_features < 16
    assert result.report.refused == ()
    assert torch.equal(model(data), before)
