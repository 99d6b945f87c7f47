"""Example inputs as JSON: shapes and types of tensors, other values unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.checks import shown
from disparse_structured.errors import LoadError

LARGEST = 2**32
"""Bytes of the largest tensor that is made for the inputs that a report describes."""

_PLAIN = int | float | str | None


def describe_inputs(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Describe example inputs as JSON: shapes and types of tensors, other values unchanged.

    Types that JSON cannot express are named instead; :func:`described_inputs` then asks for the inputs.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    unknown = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor | _PLAIN)]
    unknown += [repr(leaf) for leaf in leaves if isinstance(leaf, float) and not math.isfinite(leaf)]
    try:
        tree = pytree.treespec_dumps(spec)
    except NotImplementedError as error:  # torch raises it for containers that it cannot serialize
        unknown.append(str(error).partition(" because ")[0])
    if unknown:
        return {"unknown": unknown}
    described = [
        {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        if isinstance(leaf, torch.Tensor)
        else {"value": leaf}
        for leaf in leaves
    ]
    return {"leaves": described, "tree": tree}


def described_inputs(description: dict[str, Any]) -> tuple[Any, ...]:
    """Build inputs of the shapes and types that :func:`describe_inputs` wrote; tensors are zeros."""
    if "unknown" in description:
        raise LoadError(
            f"the model's inputs could not be saved ({', '.join(description['unknown'])}). "
            "Pass example_inputs=, the arguments of one forward pass, to load()."
        )
    try:
        leaves = [_leaf(leaf) for leaf in description["leaves"]]
        if "__enum__" in description["tree"]:  # torch would import what it names
            raise ValueError("the tree names an enum")
        return tuple(pytree.tree_unflatten(leaves, pytree.treespec_loads(description["tree"])))
    except Exception as error:  # what torch raises for other text has no common base class
        raise LoadError(
            f"the inputs that report.json describes are damaged ({type(error).__name__}: {error}). Pass "
            "example_inputs=, the arguments of one forward pass, to load()."
        ) from None


def _leaf(leaf: Mapping[str, Any]) -> Any:
    """A tensor of zeros, or the value; sizes and types are checked before anything is allocated."""
    if "shape" not in leaf:
        return leaf["value"]
    shape, dtype = leaf["shape"], vars(torch).get(leaf["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{shown(leaf['dtype'])} is not a type of tensors")
    if math.prod(shape) * dtype.itemsize > LARGEST:
        raise ValueError(f"a tensor of shape {shown(shape)} is larger than {LARGEST:,} bytes")
    return torch.zeros(shape, dtype=dtype)
