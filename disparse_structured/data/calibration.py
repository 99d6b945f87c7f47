"""The inputs that a refit reads: examples of one shape, cut into chunks of equal size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.arguments import arguments, described
from disparse_structured.data.batches import ToInputs, batch_size, batched_leaves, batches, take, to_device
from disparse_structured.data.call import marked_like, named_leaves
from disparse_structured.data.precision import first_inexact, is_inexact
from disparse_structured.errors import BatchError, DisparseWarning

CHUNK = 8
"""The most examples computed together: enough to fill two cores, with small buffers."""

ENOUGH = 16
"""From this many examples on, some are held out to measure the result."""


Marked = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Marks in the arguments of ``forward`` which tensors have a batch dimension."""


def _unmarked(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs


@dataclass(frozen=True)
class Calibration:
    """Examples in chunks of equal size, each the arguments of one forward pass.

    Args:
        chunks: an even number. Layers are fitted on every other one and validated on the rest, both ways.
        checks: held-out chunks, on which the outputs before and after are compared; none if there are
            fewer than :data:`ENOUGH` examples.
    """

    chunks: tuple[tuple[Any, ...], ...]
    checks: tuple[tuple[Any, ...], ...] = ()

    @property
    def samples(self) -> int:
        """The number of examples, including those held out."""
        return (len(self.chunks) + len(self.checks)) * batch_size(self.chunks[0])

    @property
    def checked(self) -> int:
        """The number of examples held out."""
        return len(self.checks) * batch_size(self.chunks[0])

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        to_inputs: ToInputs | None = None,
        *,
        limit: int | None = None,
        marked: Marked = _unmarked,
    ) -> Calibration:
        """The first ``limit`` examples of ``data``, which is read once and no further than needed.

        Only as many as fill equal chunks are used, on the model's device and in its floating-point type.

        Args:
            data: batches as a loader yields them; only the model's inputs are read.
            to_inputs: from a batch to the tuple of ``forward``'s arguments; by default
                :func:`disparse_structured.data.batches.model_inputs`.
            marked: marks in the first inputs which tensors have a batch dimension; the others are the same.

        Warns:
            DisparseWarning: all examples are equal.

        Raises:
            BatchError: fewer than two examples, batches whose examples differ in shape, NaN or infinite
                values in them, or a batch that does not fit ``forward``.
        """
        groups = gathered(model, data, to_inputs, limit=limit, marked=marked)
        samples = sum(map(batch_size, groups))
        samples = samples if limit is None else min(samples, limit)
        if samples < 2:
            raise BatchError(
                f"{samples} example is too few: one half is used to fit, the other half to validate the fit. "
                "Pass at least two, preferably 64."
            )
        if len(groups) == 1 and _equal(groups[0]):
            warnings.warn(
                f"all {samples} examples are equal, so a small deviation on them says nothing about others. "
                "Pass inputs that the model meets in use.",
                DisparseWarning,
                stacklevel=2,
            )
        cut, checked = _cut(groups, samples)
        # Held-out chunks lie between the others, in case the order matters (as in video frames).
        aside = {round((number + 0.5) * len(cut) / checked - 0.5) for number in range(checked)}
        return cls(
            tuple(chunk for number, chunk in enumerate(cut) if number not in aside),
            tuple(chunk for number, chunk in enumerate(cut) if number in aside),
        )


def gathered(
    model: nn.Module,
    data: Iterable[Any],
    to_inputs: ToInputs | None = None,
    *,
    limit: int | None = None,
    memory: int | None = None,
    marked: Marked = _unmarked,
) -> list[tuple[Any, ...]]:
    """Examples of ``data``, on the model's device and in its floating-point type; batches are joined.

    Reading ends with the batch in which there are ``limit`` examples, or ``memory`` bytes. There is one group
    of examples for each set of inputs that all examples of a batch share; usually there is one group.

    Raises:
        BatchError: as :meth:`Calibration.of`.
    """
    first = first_inexact(model.parameters())
    device, dtype = ("cpu", None) if first is None else (first.device, first.dtype)
    read: list[tuple[Any, ...]] = []
    samples = held = 0
    for batch in batches(data):
        given = to_device(arguments(model, batch, to_inputs), device, dtype)
        read.append(marked_like(given, read[0]) if read else marked(given))
        samples += batch_size(read[-1])
        held += sum(leaf.nbytes for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor))
        if (limit is not None and samples >= limit) or (memory is not None and held >= memory):
            break
    groups = _joined(read)
    _check_finite(model, groups)
    return groups


def _cut(groups: Sequence[tuple[Any, ...]], samples: int) -> tuple[list[tuple[Any, ...]], int]:
    """Chunks of equal size from the first ``samples`` examples, and how many of them to hold out."""
    if len(groups) == 1:
        size, fitted, checked = _division(samples)
        return _chunks(groups[0], size)[: fitted + checked], checked
    counts = [batch_size(group) for group in groups]
    largest = min(CHUNK, samples // 2, *counts)
    size = max(
        range(min(2, largest), largest + 1), key=lambda size: (sum(n // size for n in counts) * size, size)
    )
    cut = [chunk for group in groups for chunk in _chunks(group, size)][: samples // size]
    if samples < ENOUGH or len(cut) == 2:
        return cut[: len(cut) // 2 * 2], 0
    checked = max(1, round(len(cut) / 8))
    return cut, checked + (len(cut) - checked) % 2


def _chunks(inputs: tuple[Any, ...], size: int) -> list[tuple[Any, ...]]:
    count = batch_size(inputs) // size
    return [take(inputs, slice(number * size, (number + 1) * size)) for number in range(count)]


def _division(samples: int) -> tuple[int, int, int]:
    """The size of a chunk, and how many chunks to fit on and to hold out."""
    if samples < ENOUGH:
        count = max(2, 2 * round(samples / (2 * CHUNK)))
        return samples // count, count, 0

    def fitted(size: int) -> int:
        chunks = samples // size
        return 2 * ((chunks - max(1, round(chunks / 8))) // 2)

    # At least two, because some networks have another graph for a batch of one.
    size = max(range(2, CHUNK + 1), key=lambda size: (size * fitted(size), samples // size * size, size))
    return size, fitted(size), samples // size - fitted(size)


def _joined(read: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Batches that share their other inputs as one: batched tensors are concatenated."""
    first, spec = pytree.tree_flatten(read[0])
    batched = batched_leaves(read[0])
    groups: list[list[list[Any]]] = []
    for each in read:
        found, other = pytree.tree_flatten(each)
        alike = other == spec and all(map(_alike, found, first, batched))
        if not alike or batched_leaves(each) != batched:
            raise BatchError(
                f"the batches differ: one holds {described(read[0])}, another {described(each)}. "
                "Pass examples of one shape; crop or pad them first."
            )
        before = groups[-1][-1] if groups else None
        if before is not None and all(map(_same, found, before, batched)):
            groups[-1].append(found)
        else:
            groups.append([found])
    return [pytree.tree_unflatten(_together(group, batched), spec) for group in groups]


def _together(group: list[list[Any]], batched: list[bool]) -> list[Any]:
    columns = zip(*group, strict=True)
    return [torch.cat(column) if cut else column[0] for column, cut in zip(columns, batched, strict=True)]


def _alike(leaf: Any, wanted: Any, batched: bool) -> bool:
    """Whether a leaf has the type and shape of the first batch's, apart from the batch; or its value."""
    if isinstance(leaf, torch.Tensor) and isinstance(wanted, torch.Tensor):
        start = 1 if batched else 0
        return leaf.dtype == wanted.dtype and leaf.shape[start:] == wanted.shape[start:]
    return leaf is wanted or (type(leaf) is type(wanted) and bool(leaf == wanted))


def _same(leaf: Any, before: Any, batched: bool) -> bool:
    """Whether two batches can be joined in this leaf."""
    return batched or not isinstance(leaf, torch.Tensor) or torch.equal(leaf, before)


def _equal(group: tuple[Any, ...]) -> bool:
    """Whether every example is like the first."""
    pairs = zip(pytree.tree_leaves(group), batched_leaves(group), strict=True)
    return all(bool((leaf == leaf[:1]).all()) for leaf, batched in pairs if batched)


def _check_finite(model: nn.Module, groups: Sequence[tuple[Any, ...]]) -> None:
    before = 0
    for group in groups:
        leaves = named_leaves(model.forward, group)
        for (name, leaf), batched in zip(leaves, batched_leaves(group), strict=True):
            if not isinstance(leaf, torch.Tensor) or not is_inexact(leaf):
                continue
            finite = leaf.isfinite().reshape(len(leaf) if leaf.ndim else 1, -1)
            if not bool(finite.all()):
                place = before + int((~finite.all(1)).nonzero()[0])
                where = f" in example {place}" if batched else ""
                raise BatchError(
                    f"the argument {name!r} holds NaN or infinite values{where}, as {leaf.dtype}, the "
                    "model's type. Nothing can be fitted on it. Leave out such examples, or fill in the "
                    "missing values."
                )
        before += batch_size(group)
