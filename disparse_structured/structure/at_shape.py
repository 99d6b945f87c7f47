"""A structure for inputs of another shape, or in another precision.

The exported graph holds sizes as constants, so other inputs need their own graph.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch import nn

from disparse_structured.data.arguments import described
from disparse_structured.data.batches import batch_size, take
from disparse_structured.errors import BatchError, CaptureError
from disparse_structured.graph.comparison import equal_up_to_dtype
from disparse_structured.graph.signature import Signature, input_signature
from disparse_structured.structure.analysis import Subject, solved
from disparse_structured.structure.captures import Captured
from disparse_structured.structure.structure import Structure

T = TypeVar("T")

_REMEMBERED = 4
"""The number of cached shapes: a loader has its usual batch and a smaller last one."""


def structure_at(structure: Structure, model: nn.Module, inputs: tuple[Any, ...]) -> Structure:
    """Return ``structure`` for the graph of ``model`` with ``inputs``.

    ``model`` is the model of the structure or a copy of it with other weights, perhaps in another precision.
    Each graph is captured once per shared structure. A graph that differs only in precision has the same
    structure. Any other is solved again, because positions and examples depend on the sizes. Its units may
    differ; the fingerprint then differs too.

    Raises:
        DisparseError: as :func:`~disparse_structured.structure.analyse` does.
    """
    signature = Signature.of(model, inputs)
    if signature == structure.signature:
        return structure
    subject = Subject(
        model,
        inputs,
        structure.task_objects,
        structure.form,
        structure.attention,
        structure.outputs,
        structure.train_factor,
        tuple(each.entry for each in structure.entry_points),
    )
    known = structure.captures.recall(signature)
    if known is None:
        known = _captured(subject)
        structure.captures.remember(signature, known)
    if isinstance(known.graph, CaptureError):
        raise CaptureError(*known.graph.args)
    same_attributes = signature.attributes == structure.signature.attributes
    # The graphs of entry points have their own precision, so they are read again.
    alone = not structure.entry_points
    if alone and same_attributes and equal_up_to_dtype(structure.capture, known.graph):
        return replace(structure, signature=signature, capture=known.graph, example_inputs=inputs)
    if known.structure is None:
        solution = solved(subject, known.graph, signature, structure.captures)
        known.structure = replace(solution, example_inputs=())
    found: Structure = replace(known.structure, example_inputs=inputs)
    return found


def _captured(subject: Subject) -> Captured:
    try:
        return Captured(subject.captured())
    except CaptureError as error:
        # Drop the traceback, which holds the model.
        return Captured(CaptureError(*error.args))


def structure_for_batch(structure: Structure, model: nn.Module, inputs: tuple[Any, ...]) -> Structure:
    """Return ``structure`` for a batch with ``inputs``; its units must be the same.

    Raises:
        BatchError: ``model`` refuses ``inputs`` or has other units with them.
    """
    if input_signature(inputs) == structure.signature.inputs:
        return structure
    name = type(model).__name__
    try:
        found = structure_at(structure, model, inputs)
    except CaptureError as error:
        raise BatchError(f"{name} refuses a batch with inputs {described(inputs)}: {error}") from error
    if found.fingerprint != structure.fingerprint:
        raise BatchError(
            f"the units of {name} depend on the shape of its inputs: with {described(inputs)} they differ "
            f"from those with {described(structure.example_inputs)}. {_advice(inputs, structure)}"
        )
    return found


def _advice(inputs: tuple[Any, ...], structure: Structure) -> str:
    one, example = (input_signature(take(each, slice(1))) for each in (inputs, structure.example_inputs))
    if one != example:
        return "Pass example inputs of the shape that the batches have."
    advice = (
        "Let forward treat every number of examples alike. If only the last batch of a loader is smaller, "
        "drop_last=True leaves it out."
    )
    if batch_size(inputs) > 1:
        return advice
    return (
        f"{advice} Scores of weights need no examples: "
        "method=DiSparse(criterion=criteria.Magnitude()), refit=None."
    )


class PerShape(Generic[T]):
    """Caches what ``make`` returns for the structure at each input shape, for the last few shapes."""

    def __init__(self, model: nn.Module, structure: Structure, make: Callable[[Structure], T]) -> None:
        self._model, self._structure, self._make = model, structure, make
        self._made: dict[Hashable, T] = {}

    def __call__(self, inputs: tuple[Any, ...]) -> T:
        """Raises :class:`BatchError` as :func:`structure_for_batch` does."""
        shape = input_signature(inputs)
        if shape not in self._made:
            if len(self._made) == _REMEMBERED:
                del self._made[next(iter(self._made))]
            self._made[shape] = self._make(structure_for_batch(self._structure, self._model, inputs))
        return self._made[shape]
