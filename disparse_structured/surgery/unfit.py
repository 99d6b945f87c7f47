"""Modules that never ran and that read a width which was pruned."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import UnusedModule

_TAKEN = ("in_features", "in_channels", "num_features", "num_channels", "embed_dim", "input_size")
_PUT_OUT = ("out_features", "out_channels", "embed_dim", "hidden_size")
"""The attributes in which torch's layers keep what they read, and what they put out."""


def unfit_modules(dense: nn.Module, pruned: nn.Module, unused: Sequence[UnusedModule]) -> tuple[str, ...]:
    """List those of the ``unused`` modules that read a width which shrank: they fail if anything calls them.

    They keep their dense sizes, because no graph says what they read, so only numbers can tell: a module is
    listed if it reads as many channels or features as a dimension of some parameter had before it shrank. It
    reads what its first layer takes, and what another of its layers takes and none of its layers puts out.
    Layers that say neither, such as embeddings, are skipped.
    """
    after = named_tensors(pruned)[0]
    shrunk = {
        size
        for name, tensor in named_tensors(dense)[0].items()
        for size, left in zip(tensor.shape, after[name].shape, strict=True)
        if size != left
    }
    return tuple(each.module for each in unused if shrunk & _read(dense.get_submodule(each.module)))


def _read(module: nn.Module) -> set[int]:
    taken = [size for layer in module.modules() if (size := _size(layer, _TAKEN)) is not None]
    put_out = {_size(layer, _PUT_OUT) for layer in module.modules()}
    return {*taken[:1], *(set(taken) - put_out)}


def _size(layer: nn.Module, names: Sequence[str]) -> int | None:
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return layer.normalized_shape[-1] if names is _TAKEN else None
    sizes = (getattr(layer, name, None) for name in names)
    return next((size for size in sizes if type(size) is int), None)
