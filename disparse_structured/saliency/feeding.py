"""From a batch to a run of the exported graph: its inputs, its shapes, its single examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.batches import Inputs, model_inputs
from disparse_structured.errors import BatchError, CaptureError
from disparse_structured.structure import Structure
from disparse_structured.structure.analysis import analyse_like

T = TypeVar("T")

_REMEMBERED = 4
"""Input shapes whose graphs are kept: a loader has its batches and a smaller last one."""


def arguments(model: nn.Module, batch: Any, inputs: Inputs | None) -> tuple[Any, ...]:
    """The positional arguments of ``forward`` that ``batch`` holds, detached."""
    if inputs is not None:
        given = inputs(batch)
        if not isinstance(given, tuple):
            raise BatchError(
                f"inputs= returned a {type(given).__name__}; expected the tuple of forward's positional "
                "arguments. For a single tensor return (tensor,)."
            )
    else:
        positional, named = model_inputs(model, batch)
        try:
            bound = inspect.signature(model.forward).bind(*positional, **named)
        except TypeError as error:
            raise BatchError(
                f"the batch does not fit {type(model).__name__}.forward: {error}. "
                "Pass inputs=, a function from a batch to the tuple of forward's arguments."
            ) from None
        if bound.kwargs:
            raise BatchError(
                f"{type(model).__name__}.forward would get {sorted(bound.kwargs)} by name only. "
                "Pass inputs=, a function from a batch to the tuple of forward's positional arguments."
            )
        given = bound.args
    return pytree.tree_map(  # type: ignore[no-any-return]
        lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, given
    )


class PerShape(Generic[T]):
    """What ``make`` makes of the structure for each shape of inputs; the last few are remembered.

    The exported graph holds sizes as constants, so other shapes need their own. The units must be the same.
    """

    def __init__(self, model: nn.Module, structure: Structure, make: Callable[[Structure], T]) -> None:
        self._model, self._structure, self._make = model, structure, make
        self._made: dict[Any, T] = {}

    def __call__(self, inputs: tuple[Any, ...]) -> T:
        """Raises :class:`BatchError` if the model refuses ``inputs`` or has other units with them."""
        shape = _shape(inputs)
        if shape not in self._made:
            if len(self._made) == _REMEMBERED:
                del self._made[next(iter(self._made))]
            self._made[shape] = self._make(self._structure_for(inputs))
        return self._made[shape]

    def _structure_for(self, inputs: tuple[Any, ...]) -> Structure:
        if _shape(inputs) == _shape(self._structure.example_inputs):
            return self._structure
        try:
            found = analyse_like(self._structure, self._model, inputs)
        except CaptureError as error:
            raise BatchError(
                f"{type(self._model).__name__} refuses a batch with inputs {described(inputs)}: {error}"
            ) from error
        if found.fingerprint != self._structure.fingerprint:
            raise BatchError(
                f"the units of {type(self._model).__name__} depend on the shape of its inputs: with "
                f"{described(inputs)} they differ from those with "
                f"{described(self._structure.example_inputs)}. "
                "Give example inputs of the loader's own shape, and use drop_last=True."
            )
        return found


def described(inputs: tuple[Any, ...]) -> str:
    """Shapes and types, for messages."""
    return ", ".join(
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, torch.Tensor) else type(leaf).__name__
        for leaf in pytree.tree_leaves(inputs)
    )


def examples(batch: Any, size: int) -> Iterator[Any]:
    """The examples of ``batch``, each as a batch of one.

    Tensors whose first dimension is the batch's size are cut, and lists and tuples of that length that
    hold no such tensor; everything else belongs to every example.
    """
    for number in range(size):
        yield _example(batch, number, size)


def _example(batch: Any, number: int, size: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[number : number + 1] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {key: _example(value, number, size) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        whole = any(isinstance(t, torch.Tensor) and t.ndim and t.shape[0] == size for t in batch)
        if len(batch) == size and not whole:
            return batch[number : number + 1]
        items = [_example(value, number, size) for value in batch]
        if isinstance(batch, list):
            return items
        return getattr(type(batch), "_make", tuple)(items)
    return batch


def _shape(inputs: tuple[Any, ...]) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    facts = [
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves
    ]
    return tuple(facts), str(spec)
