"""Example inputs as JSON: shapes and types of tensors, other values unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from disparse_structured.errors import LoadError

_PLAIN = int | float | str | None


def describe_inputs(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Describe example inputs as JSON: shapes and types of tensors, other values unchanged.

    Types that JSON cannot express are named instead; :func:`described_inputs` then asks for the inputs.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    unknown = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor | _PLAIN)]
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
    leaves = [
        torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"])) if "shape" in leaf else leaf["value"]
        for leaf in description["leaves"]
    ]
    return tuple(pytree.tree_unflatten(leaves, pytree.treespec_loads(description["tree"])))
