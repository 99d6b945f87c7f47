"""Which dimensions of an ONNX file are free, and the inputs that check it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from disparse_structured.errors import ExportError
from disparse_structured.export.plain import Inputs, TaskOutputs, TaskTensors, reference
from disparse_structured.export.session import shapes_text

_BATCHES = (1, 2, 3)
_STEPS = (32, 64, 8, 2)
_AXES = {1: ("length",), 2: ("height", "width"), 3: ("frames", "height", "width")}


@dataclass(frozen=True)
class Form:
    """A choice of free dimensions."""

    batch: bool
    size: bool

    @property
    def name(self) -> str:
        """``"batch+size"``, ``"size"``, ``"batch"`` or ``"static"``."""
        return "+".join([word for word in ("batch", "size") if vars(self)[word]]) or "static"


@dataclass(frozen=True)
class CheckCase:
    """Inputs, and what PyTorch computes on them."""

    inputs: Inputs
    expected: TaskTensors


@dataclass(frozen=True)
class Layout:
    """Which dimensions of the example inputs are the batch and the size.

    ``has_batch`` says for each input whether its first dimension is the batch. The dimensions of a
    batched input from the third on (at most three) are its size; those before its last one if the input is in
    ``channels_last``. The second dimension of token ids is their length, as is that of other two-dimensional
    inputs of the same length.
    """

    example: Inputs
    has_batch: tuple[bool, ...]
    channels_last: frozenset[int] = frozenset()

    def batched(self, position: int) -> bool:
        """Whether the first dimension of input ``position`` is the batch."""
        return self.has_batch[position]

    @property
    def examples(self) -> int | None:
        """The number of examples in a batch; None if no input has a batch dimension."""
        return self.examples_in(self.example)

    def examples_in(self, inputs: Inputs) -> int | None:
        """The number of examples in ``inputs``; None if none has a batch dimension."""
        pairs = zip(inputs, self.has_batch, strict=True)
        return next((tensor.shape[0] for tensor, batched in pairs if batched and tensor.ndim), None)

    def axes(self, position: int) -> dict[int, str]:
        """The size dimensions of input ``position`` with their names."""
        tensor = self.example[position]
        extra = tensor.ndim - 2
        if self.batched(position) and extra == 0 and tensor.shape[1] in self._lengths():
            return {1: "length"}
        if not self.batched(position) or extra not in _AXES:
            return {}
        return dict(enumerate(_AXES[extra], start=1 if position in self.channels_last else 2))

    def _lengths(self) -> set[int]:
        """The lengths of the token ids (two-dimensional integers) among the inputs."""
        return {
            tensor.shape[1]
            for position, tensor in enumerate(self.example)
            if self.batched(position) and tensor.ndim == 2 and not tensor.is_floating_point()
        }

    def free(self, form: Form) -> tuple[dict[int, str], ...]:
        """For each input the free dimensions of ``form`` by name; axes of equal length share a name."""
        sizes: dict[str, int] = {}
        inputs = []
        for position, tensor in enumerate(self.example):
            free = {0: "batch"} if form.batch and self.batched(position) else {}
            for dim, axis in self.axes(position).items() if form.size else ():
                shared = sizes.setdefault(axis, tensor.shape[dim]) == tensor.shape[dim]
                free[dim] = axis if shared else f"{axis}_{position}"
            inputs.append(free)
        return tuple(inputs)

    def with_batch(self, inputs: Inputs, count: int) -> Inputs:
        """``inputs`` with ``count`` samples, no two alike where they are floats.

        Equal samples would hide a network that mixes them. Integers repeat, since a shifted index may
        be out of the range of its table. So does everything where samples share an input, since they may
        refer to its positions.
        """
        return tuple(
            _samples(tensor, count, alike=not all(self.has_batch)) if self.batched(position) else tensor
            for position, tensor in enumerate(inputs)
        )

    def with_size(self, extra: int) -> Inputs:
        """The example, repeated to be ``extra`` longer along the first size axis, twice that on the next, ….

        Unequal growth tells height from width. An input that is smaller than another one grows in
        proportion, since networks often want one input at a fraction of another's size.
        """
        grown = []
        lengths = [
            (dim, tensor.shape[dim])
            for position, tensor in enumerate(self.example)
            for dim in self.axes(position)
        ]
        longest = {dim: max(length for other, length in lengths if other == dim) for dim, _ in lengths}
        for position, tensor in enumerate(self.example):
            for factor, dim in enumerate(self.axes(position), start=1):
                length = tensor.shape[dim]
                grown_by = factor * extra * length // longest[dim]
                wrapped = torch.arange(length + grown_by) % length
                tensor = tensor.index_select(dim, wrapped)
            grown.append(tensor)
        return tuple(grown)


def wanted_forms(layout: Layout, *, batch: bool, size: bool) -> tuple[list[Form], list[str]]:
    """The forms to try, widest first, and a line for each wider one that is ruled out."""
    lines = []
    if not batch:
        lines.append("batch: not requested")
    elif layout.examples is None:
        lines.append("batch: no input has a batch dimension")
        batch = False
    if not size:
        lines.append("size: not requested")
    elif not any(layout.axes(position) for position in range(len(layout.example))):
        lines.append("size: no input has more than a batch and a channel dimension, or holds token ids")
        size = False
    forms = [Form(batch, size), Form(batch, False), Form(False, False)]
    return list(dict.fromkeys(forms)), lines


def arranged(layout: Layout, model: TaskOutputs) -> Layout:
    """``layout``, with the channels of some inputs last if ``model`` takes other sizes only that way."""
    several = [position for position, tensor in enumerate(layout.example) if tensor.ndim > 2]
    # None, one or all of them: all choices of many inputs would take too many passes.
    for last in dict.fromkeys([(), *((position,) for position in several), tuple(several)]):
        found = replace(layout, channels_last=frozenset(last))
        with contextlib.suppress(ExportError):
            _accepted_size(found, model)
            return found
    return layout


def cases_of(form: Form, layout: Layout, model: TaskOutputs) -> tuple[Inputs, list[CheckCase]]:
    """The inputs to trace with, and the cases that the file must then agree on.

    Tracing uses a batch of at least two and a larger size than the example's, because a dimension that
    happens to be one while tracing would be taken for a constant. The cases are the example itself, other
    samples (one, two and three of them if the batch is free), a larger size, and an odd size if PyTorch
    takes it (networks that pad "if needed" lose the padding when traced at a size that needs none).

    Raises:
        ExportError: PyTorch itself refuses another batch or size.
    """
    example = layout.example
    cases = [CheckCase(example, reference(model, example))]
    trace = example
    counts: tuple[int, ...] = ()
    if form.size:
        grown, step = _accepted_size(layout, model)
        cases.append(grown)
        trace = grown.inputs
        odd = layout.with_size(step - 1)
        with contextlib.suppress(ExportError):
            cases.append(CheckCase(odd, reference(model, odd)))
    if form.batch:
        trace = layout.with_batch(trace, max(2, layout.examples or 1))
        counts = _BATCHES
    elif layout.examples is not None:
        counts = (layout.examples,)
    for count in counts:
        inputs = layout.with_batch(example, count)
        cases.append(CheckCase(inputs, reference(model, inputs)))
    return trace, cases


def fitting(batches: Sequence[Inputs], form: Form, layout: Layout) -> tuple[list[Inputs], list[str]]:
    """The check inputs in the shapes that ``form`` allows, and a line for each that does not fit.

    Where the batch is fixed, a longer batch is cut into pieces of that length.
    """
    fitted: list[Inputs] = []
    lines = []
    for number, batch in enumerate(batches):
        pieces, rest = ([batch], 0) if form.batch else _pieces(batch, layout)
        fits = [piece for piece in pieces if _fits(piece, form, layout)]
        fitted += fits
        if len(fits) < len(pieces) or not pieces:
            lines.append(
                f"check input {number}: {shapes_text(batch)} do not fit {shapes_text(layout.example)}"
            )
        elif rest:
            lines.append(f"check input {number}: its last {rest} samples do not fill a batch")
    return fitted, lines


def _accepted_size(layout: Layout, model: TaskOutputs) -> tuple[CheckCase, int]:
    refusals = []
    for step in _STEPS:
        inputs = layout.with_size(step)
        try:
            return CheckCase(inputs, reference(model, inputs)), step
        except ExportError as error:
            refusals.append(error)
    raise refusals[0]


def _samples(tensor: torch.Tensor, count: int, *, alike: bool) -> torch.Tensor:
    rows = [tensor[number % tensor.shape[0]] for number in range(count)]
    if tensor.is_floating_point() and tensor.ndim > 1 and not alike:
        rows = [row.roll(number + 1, dims=-1) for number, row in enumerate(rows)]
    return torch.stack(rows)


def _pieces(batch: Inputs, layout: Layout) -> tuple[list[Inputs], int]:
    length, given = layout.examples, layout.examples_in(batch)
    if length is None or given is None:
        return [batch], 0
    count, rest = divmod(given, length)
    return [
        tuple(
            tensor[start * length : (start + 1) * length] if layout.batched(position) else tensor
            for position, tensor in enumerate(batch)
        )
        for start in range(count)
    ], rest


def _fits(batch: Inputs, form: Form, layout: Layout) -> bool:
    for tensor, example, free in zip(batch, layout.example, layout.free(form), strict=True):
        if tensor.ndim != example.ndim:
            return False
        if any(tensor.shape[dim] != example.shape[dim] for dim in range(tensor.ndim) if dim not in free):
            return False
    return True
