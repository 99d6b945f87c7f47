"""The same structure at other input shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.arguments import described
from disparse_structured.errors import BatchError, CaptureError
from disparse_structured.structure.analysis import Structure, analyse_like

T = TypeVar("T")

_REMEMBERED = 4
"""Input shapes whose graphs are kept: a loader has its batches and a smaller last one."""


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


def _shape(inputs: tuple[Any, ...]) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    facts = [
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves
    ]
    return tuple(facts), str(spec)
