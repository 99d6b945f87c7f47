"""A few numbers on what a saved model computes, so that ``load`` notices a different model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import to_device
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation, generator, signs
from disparse_structured.errors import LoadError
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.graph.named_tensors import device_of, floating_type_of
from disparse_structured.graph.side_effects import undone

_TOLERANCE = 1e-4
"""How far the numbers may differ, relative to the size of their columns: processors round differently."""

_COARSE = 3e-2
"""The same in half precision, and on accelerators, whose products may be less precise."""

_NUDGE = 1e-6
"""How far inputs are moved, relatively, to see how a model amplifies rounding."""

_AMPLIFIED = 30
"""Rounding adds up over layers, so outputs may differ by this many times what the nudge changes."""

_STORED = 4096
"""Integer inputs of at most so many elements are stored; of others, only the range."""

_PARTS = 16
"""Columns of an output are summarized in at most so many parts."""

_SMALL = 1e-6
"""A part counts as at least this fraction of the largest of its output."""


def probe_of(model: nn.Module, inputs: tuple[Any, ...], earlier: Any = None) -> dict[str, Any]:
    """Summarize what ``model`` computes in eval mode for inputs like ``inputs``, as JSON.

    With an ``earlier`` probe, the inputs have the values of that probe.

    The model is unchanged. Tensors are drawn between the smallest and largest value of the given ones; small
    ones of integers are stored, because not every integer is valid: they may be tokens, or a mask. Every
    output tensor is summarized in parts along dimension 1, and along the last if there are three, by its size
    (the root mean square) and a sum with random signs.

    Returns:
        ``{"inputs": ..., "outputs": ..., "tolerance": ...}``; the tolerance is larger where the model
        amplifies rounding errors. ``{"reason": ...}`` if there is nothing to compare: the model fails on such
        inputs, or draws random numbers in eval mode.
    """
    leaves = (
        _leaves_of(inputs, earlier) if earlier else [_described(leaf) for leaf in pytree.tree_leaves(inputs)]
    )
    given = _drawn(inputs, leaves)
    first, again, nudged = (
        _outputs(model, each, seed) for each, seed in ((given, 0), (given, 1), (_nudged(given), 0))
    )
    if first is None or again is None or nudged is None:
        return {"reason": "the model does not run on random inputs like the example's"}
    tolerance = _tolerance(model)
    if _distance(first, again) > tolerance:
        return {"reason": "the model draws random numbers in eval mode"}
    amplified = min(1.0, _AMPLIFIED * _distance(first, nudged))
    return {"inputs": leaves, "outputs": first, "tolerance": max(tolerance, amplified)}


def computes_otherwise(model: nn.Module, inputs: tuple[Any, ...], probe: Any) -> bool:
    """Check whether ``model`` computes something other than the model that ``probe`` was made from.

    ``inputs`` have the structure of the probe's inputs. False if the probe holds nothing to compare.

    Raises:
        LoadError: the probe is damaged.
    """
    if not isinstance(probe, Mapping) or "reason" in probe:
        return False
    try:
        wanted, tolerance = probe["outputs"], float(probe["tolerance"])
        drawn = _drawn(inputs, probe["inputs"])
        found = _outputs(model, drawn, 0)
        return found is None or not _distance(found, wanted) <= max(tolerance, _tolerance(model))
    except Exception as error:  # what a probe of any other shape leads to
        raise LoadError(
            f"the entry 'computes' of report.json is damaged ({type(error).__name__}: {error}). Save the "
            "model again."
        ) from None


def drawn_inputs(inputs: tuple[Any, ...], probe: Any) -> tuple[Any, ...]:
    """Tensors of the shapes and types of ``inputs``, with values like those that ``probe`` was made with."""
    return _drawn(inputs, _leaves_of(inputs, probe))


def _leaves_of(inputs: tuple[Any, ...], probe: Any) -> list[dict[str, Any] | None]:
    """How ``probe`` drew its inputs; without any, floating-point tensors lie between -1 and 1."""
    leaves = pytree.tree_leaves(inputs)
    known = probe.get("inputs") if isinstance(probe, Mapping) else None
    if isinstance(known, list) and len(known) == len(leaves):
        return known
    return [
        {"low": -1.0, "high": 1.0} if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else None
        for leaf in leaves
    ]


def _tolerance(model: nn.Module) -> float:
    half = any(each.dtype in (torch.float16, torch.bfloat16) for each in model.parameters())
    return _COARSE if half or device_of(model).type != "cpu" else _TOLERANCE


def _described(leaf: Any) -> dict[str, Any] | None:
    """How to draw a tensor like ``leaf``; None if it is another value."""
    if not isinstance(leaf, torch.Tensor):
        return None
    if leaf.is_complex():
        return {"low": -1.0, "high": 1.0}
    if not leaf.is_floating_point() and leaf.numel() <= _STORED:
        return {"values": leaf.flatten().tolist()}
    finite = leaf.detach()[leaf.isfinite()].double()
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    return {"low": low, "high": high}


def _drawn(inputs: tuple[Any, ...], leaves: Sequence[Mapping[str, Any] | None]) -> tuple[Any, ...]:
    """``inputs`` with tensors of the same shapes and types, drawn as ``leaves`` say."""
    given, spec = pytree.tree_flatten(inputs)
    source = generator(0, "probe")
    drawn = [_draw(leaf, how, source) for leaf, how in zip(given, leaves, strict=True)]
    result: tuple[Any, ...] = pytree.tree_unflatten(drawn, spec)
    return result


def _draw(leaf: Any, how: Mapping[str, Any] | None, source: np.random.Generator) -> Any:
    if how is None:
        return leaf
    if "values" in how:
        return torch.tensor(how["values"], dtype=leaf.dtype).reshape(leaf.shape)
    low, high, size = how["low"], how["high"], tuple(leaf.shape)
    if leaf.is_complex():
        return torch.complex(*(torch.from_numpy(source.uniform(low, high, size)) for _ in range(2))).to(
            leaf.dtype
        )
    if leaf.is_floating_point():
        return torch.from_numpy(np.asarray(source.uniform(low, high, size))).to(leaf.dtype)
    drawn = source.integers(int(low), int(high), size, endpoint=True)
    return torch.from_numpy(np.asarray(drawn)).to(leaf.dtype)


def _nudged(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` with every number that is not an integer moved by a rounding error."""
    nudged: tuple[Any, ...] = pytree.tree_map(
        lambda leaf: (
            leaf * (1 + _NUDGE)
            if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
            else leaf
        ),
        inputs,
    )
    return nudged


def _outputs(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> list[dict[str, Any]] | None:
    """A summary of each output tensor; None if the model fails."""
    given = to_device(inputs, device_of(model), floating_type_of(model))
    try:
        with undone(model), eval_mode(model), torch.no_grad(), Isolation(seed, device_of(model)):
            return [_summary(tensor) for tensor in tensor_leaves(call(model, given))]
    except Exception:  # whatever a user's forward raises
        return None


def _summary(tensor: torch.Tensor) -> dict[str, Any]:
    values = tensor.detach().cpu()
    values = (torch.view_as_real(values) if values.is_complex() else values).double()
    values = torch.where(values.isfinite(), values, 0)
    signed = values * signs(generator(0, "signs"), 1, values.numel()).reshape(values.shape)
    parts = [
        [_rounded(float(square.mean().sqrt())), _rounded(float(total.sum()) / max(total.numel(), 1) ** 0.5)]
        for dim in ({1, 2} if values.ndim == 3 else {min(1, values.ndim - 1)})
        for square, total in zip(_split(values.square(), dim), _split(signed, dim), strict=True)
        if square.numel()
    ]
    return {"shape": list(tensor.shape), "parts": parts}


def _split(values: torch.Tensor, dim: int) -> Sequence[torch.Tensor]:
    return values.tensor_split(min(_PARTS, values.shape[dim]) or 1, dim) if values.ndim else [values]


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def _distance(found: Sequence[Mapping[str, Any]], wanted: Any) -> float:
    """The largest difference of two summaries, relative to the part's size; infinite for other shapes."""
    if len(found) != len(wanted):
        return math.inf
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if list(one["shape"]) != list(other["shape"]) or len(one["parts"]) != len(other["parts"]):
            return math.inf
        pairs = list(zip(one["parts"], other["parts"], strict=True))
        sizes = [max(ours[0], theirs[0]) for ours, theirs in pairs]
        for size, (ours, theirs) in zip(sizes, pairs, strict=True):
            gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            if gap:
                worst = max(worst, gap / max(size, _SMALL * max(sizes)))
    return worst
