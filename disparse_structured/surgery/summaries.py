"""A few numbers on what a saved model computes, so that ``load`` notices a different model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import to_device
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.graph.side_effects import undone

_TOLERANCE = 1e-2
"""How far the numbers may differ, relative to the output's spread: processors round differently."""


def output_summary(model: nn.Module, inputs: tuple[Any, ...]) -> list[dict[str, Any]] | None:
    """Return shape, mean and standard deviation of each output for random inputs like ``inputs``.

    Integers become zeros, and floats standard normal. None if the model fails on them.
    """
    floating = next((each for each in model.parameters() if each.is_floating_point()), None)
    given = to_device(_random(inputs), device_of(model), None if floating is None else floating.dtype)
    try:
        with undone(model), eval_mode(model), torch.no_grad(), Isolation(0, device_of(model)):
            output = call(model, given)
    except Exception:  # whatever a user's forward raises
        return None
    return [_summary(tensor) for tensor in tensor_leaves(output)]


def differs(found: Sequence[Mapping[str, Any]], saved: Any) -> bool:
    """Check whether two summaries describe different computations; False if ``saved`` is not a summary."""
    try:
        return len(found) != len(saved) or any(map(_differ, found, saved))
    except (KeyError, TypeError, ValueError):
        return False


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if list(one["shape"]) != list(other["shape"]):
        return True
    scale = max(float(one["deviation"]), float(other["deviation"]), abs(float(one["mean"])) * 1e-3, 1e-12)
    gaps = (abs(float(one[name]) - float(other[name])) for name in ("mean", "deviation"))
    return max(gaps) > _TOLERANCE * scale


def _summary(tensor: torch.Tensor) -> dict[str, Any]:
    values = tensor.detach().double() if not tensor.is_complex() else torch.view_as_real(tensor).double()
    finite = values[values.isfinite()]
    numbers = (finite.mean(), finite.std(correction=0)) if finite.numel() else (torch.zeros(()),) * 2
    return {"shape": list(tensor.shape), "mean": float(numbers[0]), "deviation": float(numbers[1])}


def _random(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def random(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_floating_point():
            return torch.zeros(leaf.shape, dtype=leaf.dtype)
        return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)

    found: tuple[Any, ...] = pytree.tree_map(random, inputs)
    return found
