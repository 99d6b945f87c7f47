"""One network of the sweep, and the random inputs that networks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.timm_sweep.cells import BATCH, SEED


@dataclass(frozen=True)
class Network:
    """A model in eval mode, the arguments of a forward pass, and its tasks as output selectors."""

    model: nn.Module
    inputs: Mapping[str, Any] | tuple[Any, ...]
    tasks: Mapping[str, str | int | tuple[str | int, ...]]


Builder = Callable[[], Network]


def uniform(*shape: int) -> torch.Tensor:
    """A batch of numbers between 0 and 1; ``shape`` is that of one example."""
    return torch.rand(BATCH, *shape, generator=_generator())


def normal(*shape: int) -> torch.Tensor:
    """A batch of normal noise; ``shape`` is that of one example."""
    return torch.randn(BATCH, *shape, generator=_generator())


def images(side: int = 64) -> torch.Tensor:
    """A batch of RGB images."""
    return uniform(3, side, side)


def ids(length: int = 8, vocabulary: int = 90) -> torch.Tensor:
    """A batch of token numbers, none of them a special token."""
    return torch.randint(3, vocabulary, (BATCH, length), generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
