"""The inputs that a refit reads: examples of one shape, cut into chunks of equal size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.arguments import arguments, described
from disparse_structured.data.batches import ToInputs, batch_size, batches, take, to_device
from disparse_structured.errors import BatchError

CHUNK = 8
"""The most examples computed together: enough to fill two cores, with small buffers."""

ENOUGH = 16
"""From this many examples on, some are held out to measure the result."""


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
    ) -> Calibration:
        """The first ``limit`` examples of ``data``, which is read once and no further than needed.

        Only as many as fill equal chunks are used, on the model's device and in its floating-point type.

        Args:
            data: batches as a loader yields them; only the model's inputs are read.
            to_inputs: from a batch to the tuple of ``forward``'s arguments; by default
                :func:`disparse_structured.data.batches.model_inputs`.

        Raises:
            BatchError: fewer than two examples, batches whose examples differ in shape, NaN or infinite
                values in them, or a batch that does not fit ``forward``.
        """
        floating = next((p for p in model.parameters() if p.is_floating_point()), None)
        device, dtype = (floating.device, floating.dtype) if floating is not None else ("cpu", None)
        read: list[tuple[Any, ...]] = []
        samples = 0
        for batch in batches(data):
            read.append(to_device(arguments(model, batch, to_inputs), device, dtype))
            samples += batch_size(read[-1])
            if limit is not None and samples >= limit:
                break
        together = _joined(read)
        _check_finite(together)
        samples = samples if limit is None else min(samples, limit)
        if samples < 2:
            raise BatchError(
                f"{samples} example is too few: one half is used to fit, the other half to validate the fit. "
                "Pass at least two, preferably 64."
            )
        size, fitted, checked = _division(samples)
        cut = [
            take(together, slice(number * size, (number + 1) * size)) for number in range(fitted + checked)
        ]
        # Held-out chunks lie between the others, in case the order matters (as in video frames).
        aside = {round((number + 0.5) * len(cut) / checked - 0.5) for number in range(checked)}
        return cls(
            tuple(chunk for number, chunk in enumerate(cut) if number not in aside),
            tuple(chunk for number, chunk in enumerate(cut) if number in aside),
        )


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


def _joined(read: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """All batches as one: batched tensors are concatenated, everything else is as in the first batch."""
    leaves = [pytree.tree_flatten(each) for each in read]
    sizes = [batch_size(each) for each in read]
    first, spec = leaves[0]
    for each, size, (found, other) in zip(read, sizes, leaves, strict=True):
        alike = other == spec and all(
            _matches(leaf, size, wanted, sizes[0]) for leaf, wanted in zip(found, first, strict=True)
        )
        if not alike:
            raise BatchError(
                f"the batches differ: one holds {described(read[0])}, another {described(each)}. "
                "Pass examples of one shape; crop or pad them first."
            )
    columns = zip(*(found for found, _ in leaves), strict=True)
    joined = [torch.cat(column) if _batched(column[0], sizes[0]) else column[0] for column in columns]
    return tuple(pytree.tree_unflatten(joined, spec))


def _matches(leaf: Any, size: int, wanted: Any, first: int) -> bool:
    if _batched(wanted, first):
        return _batched(leaf, size) and leaf.shape[1:] == wanted.shape[1:] and leaf.dtype == wanted.dtype
    if isinstance(wanted, torch.Tensor):
        return isinstance(leaf, torch.Tensor) and torch.equal(leaf, wanted)
    return bool(leaf is wanted or leaf == wanted)


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def _check_finite(together: tuple[Any, ...]) -> None:
    for number, leaf in enumerate(pytree.tree_leaves(together)):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise BatchError(
                f"input {number} holds NaN or infinite values in the model's type {leaf.dtype}, so "
                "nothing can be fitted on it. Leave out such examples, or fill in the missing values."
            )
