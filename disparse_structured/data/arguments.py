"""From a batch to the arguments of ``forward``: inputs, shapes, single examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import ToInputs, batched_leaves, model_inputs
from disparse_structured.data.call import Batched, Keywords, bound
from disparse_structured.data.modes import ordinary
from disparse_structured.errors import BatchError


def arguments(model: nn.Module, batch: Any, to_inputs: ToInputs | None) -> tuple[Any, ...]:
    """Return the arguments of ``forward`` in ``batch``, detached, by position where possible."""
    given = model_inputs(model, batch, to_inputs)
    try:
        given = bound(model.forward, given)
    except TypeError as error:
        raise BatchError(
            f"the batch does not fit {type(model).__name__}.forward: {error}. "
            "Pass to_inputs=, a function from a batch to the arguments of forward."
        ) from None
    return pytree.tree_map(  # type: ignore[no-any-return]
        lambda leaf: ordinary(leaf.detach()) if isinstance(leaf, torch.Tensor) else leaf, given
    )


def described(inputs: tuple[Any, ...]) -> str:
    """Shapes and types, for messages."""
    return ", ".join(
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, torch.Tensor) else type(leaf).__name__
        for leaf in pytree.tree_leaves(inputs)
    )


def examples(batch: Any, size: int, shared: Sequence[torch.Tensor] = ()) -> Iterator[Any]:
    """The examples of ``batch``, each as a batch of one.

    Tensors whose first dimension is the batch size are cut, except those of ``shared``, and so are lists and
    tuples of that length that hold no such tensor. Everything else is shared by all examples.
    """
    whole = frozenset(map(id, shared))
    for number in range(size):
        yield _example(batch, number, size, whole)


def shared_tensors(inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors of ``inputs`` that have no batch dimension."""
    pairs = zip(pytree.tree_leaves(inputs), batched_leaves(inputs), strict=True)
    return [leaf for leaf, batched in pairs if isinstance(leaf, torch.Tensor) and not batched]


def _example(batch: Any, number: int, size: int, shared: frozenset[int]) -> Any:
    if isinstance(batch, torch.Tensor):
        cut = batch.ndim and batch.shape[0] == size and id(batch) not in shared
        return batch[number : number + 1] if cut else batch
    if isinstance(batch, Mapping):
        one = {key: _example(value, number, size, shared) for key, value in batch.items()}
        return Keywords(one) if isinstance(batch, Keywords) else one
    if isinstance(batch, list | tuple):
        whole = any(isinstance(t, torch.Tensor) and t.ndim and t.shape[0] == size for t in batch)
        if len(batch) == size and not whole:
            return batch[number : number + 1]
        items = [_example(value, number, size, shared) for value in batch]
        if isinstance(batch, Batched):
            return Batched(items, batch.where)
        if isinstance(batch, list):
            return items
        return getattr(type(batch), "_make", tuple)(items)
    return batch
