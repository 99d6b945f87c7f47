"""Scaled-dot-product attention of any rank in ONNX: torch's exporter knows only four dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention as of_rank_four


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The operator's translation: leading dimensions are flattened into one, and restored afterward.

    Raises:
        ValueError: leading dimensions differ, so that they would have to be broadcast.
    """
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if len(query.shape) == 4:
        return of_rank_four(query, key, value, attn_mask, **options)
    leading = [tuple(each.shape)[:-2] for each in (query, key, value)]
    if any(each != leading[0] for each in leading):
        raise ValueError(f"attention over leading dimensions {leading}, which are not the same")
    if attn_mask is not None and len(attn_mask.shape) > 2:
        sizes = op.Concat(op.Shape(query, start=0, end=-2), op.Shape(attn_mask, start=-2), axis=0)
        every = _known(op.Expand(attn_mask, sizes), attn_mask, *leading[0], *attn_mask.shape[-2:])
        attn_mask = _flat(every)
    result = of_rank_four(_flat(query), _flat(key), _flat(value), attn_mask, **options)
    return op.Reshape(result, op.Concat(op.Shape(query, start=0, end=-1), op.Shape(value, start=-1), axis=0))


def _flat(tensor: Any) -> Any:
    """``[..., n, d]`` as ``[m, 1, n, d]``."""
    together: Any = op.Constant(value_ints=[-1, 1])
    sizes: Any = op.Concat(together, op.Shape(tensor, start=-2), axis=0)
    return _known(op.Reshape(tensor, sizes), tensor, None, 1, *tensor.shape[-2:])


def _known(result: Any, source: Any, *shape: Any) -> Any:
    """``result`` with its shape, and the type of ``source``: torch's translation needs both."""
    result.shape, result.dtype = ir.Shape(shape), source.dtype
    return result


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention
}
"""For ``torch.onnx.export(custom_translation_table=)``.

Not a field of ``graph.operators``: export sees plain modules only, by an import contract.
"""
