"""From the data that a user passes to batches, calibration examples and example inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from disparse_structured.checks import check_counts, shown
from disparse_structured.data.arguments import arguments
from disparse_structured.data.batches import (
    ToInputs,
    as_they_are,
    batch_size,
    batches,
    take,
    tensor_batches,
    to_device,
)
from disparse_structured.data.calibration import CHUNK, Calibration
from disparse_structured.data.call import marked_like
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError, OptionError
from disparse_structured.graph.named_tensors import device_of

SAMPLES = 64
"""Examples that a refit reads by default. More help a little."""

EXAMPLE_SAMPLES = 2
"""How many examples the example inputs hold: structure and verification need no more."""

UNSIZED = 4096
"""Examples that are read of data without a length, unless ``samples`` says how many."""

Marked = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Marks in the arguments of ``forward`` which tensors have a batch dimension."""


@dataclass(frozen=True, eq=False)
class Data:
    """What a user passed as data, ready to be read more than once.

    Args:
        batches: what scores are measured on, with labels where there are any.
        calibration: unlabeled examples of one shape that a refit reads and outputs are compared on.
        to_inputs: from a batch to the tuple of ``forward``'s arguments; None for the default.
        examples: about how many examples ``batches`` hold; None if they do not say.
    """

    batches: Iterable[Any]
    calibration: Calibration
    to_inputs: ToInputs | None
    examples: int | None = None

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """The arguments of one forward pass with :data:`EXAMPLE_SAMPLES` examples."""
        return take(self.calibration.chunks[0], slice(EXAMPLE_SAMPLES))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: torch.Tensor | Iterable[Any] | Calibration,
        to_inputs: ToInputs | None = None,
        *,
        samples: int | None = None,
        seed: int = 0,
        fits: bool = True,
        marked: Marked = lambda inputs: inputs,
    ) -> Data:
        """Reads the first examples of ``data`` and checks them.

        Args:
            data: a tensor ``[N, ...]``, one batch (a dict or a tuple), or batches, such as a loader.
            samples: read at most this many examples; by default all of them are scored, and the first
                :data:`SAMPLES` refit.
            seed: for whatever a loader draws. The global random states are unchanged.
            fits: whether anything will be fitted. Two examples of one shape are needed then.
            marked: marks which tensors of the first inputs have a batch dimension.

        Raises:
            OptionError: ``samples`` is below 1, or below 2 where something is fitted.
            BatchError: there are no batches, the model refuses them, or they cannot be fitted on. It is also
                raised, once a method has read :data:`UNSIZED` examples, for data without a length.
        """
        if isinstance(data, Calibration):
            first = marked(data.chunks[0])
            chunks, checks = (
                tuple(marked_like(chunk, first) for chunk in found) for found in (data.chunks, data.checks)
            )
            return cls(chunks, Calibration(chunks, checks), as_they_are, _count(chunks))
        least = 2 if fits else 1
        if samples is not None:
            check_counts(0, samples=samples)
        if samples is not None and samples < least:
            why = f", better {SAMPLES}. Half of the inputs are held out to validate the fit" if fits else ""
            raise OptionError(f"samples={samples} is too few: use at least {least}{why}.")
        readable = _batches(data, samples)
        with Isolation(seed, device_of(model)):
            calibration = _calibration(model, readable, to_inputs, samples or SAMPLES, fits, marked)
        return cls(readable, calibration, to_inputs, samples or _count(readable))


def _batches(data: Any, samples: int | None) -> Iterable[Any]:
    """``data`` as batches that can be read again and again."""
    if isinstance(data, torch.Tensor):
        return tensor_batches(data, samples)
    if isinstance(data, Mapping | tuple):
        return [data]
    if not isinstance(data, Iterable):
        raise BatchError(f"data must be a tensor [N, ...], a loader or a list of batches, got {shown(data)}.")
    if isinstance(data, Iterator):
        data = _Kept(data)
    if samples is not None:
        return _First(data, samples)
    return data if _sized(data) else _Unsized(data)


def _count(data: Iterable[Any]) -> int | None:
    """About how many examples ``data`` holds; None if that takes reading it."""
    if isinstance(data, list | tuple):
        return sum(batch_size((batch,)) for batch in data)
    if isinstance(data, DataLoader) and data.batch_size is not None and _sized(data):
        return len(data) * data.batch_size
    return None


def _sized(data: Iterable[Any]) -> bool:
    try:
        len(data)  # type: ignore[arg-type]  # TypeError is the answer of what has no length
    except TypeError:
        return False
    return True


class _Kept:
    """The batches of an iterator, which is read no further than needed; what was read is kept."""

    def __init__(self, data: Iterator[Any]) -> None:
        self._left = data
        self._read: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count():
            if number == len(self._read):
                try:
                    self._read.append(next(self._left))
                except StopIteration:
                    return
            yield self._read[number]


@dataclass(frozen=True)
class _Unsized:
    """Batches of which nobody knows whether they end: more than :data:`UNSIZED` examples are refused."""

    data: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        read = 0
        for batch in self.data:
            if read >= UNSIZED:
                raise BatchError(
                    f"the data has no length, and after {read} examples it has not ended. Pass samples=, the "
                    "number of examples to read, or a loader with a length."
                )
            yield batch
            read += batch_size((batch,))


@dataclass(frozen=True)
class _First:
    """The first batches of ``data``, until there are ``samples`` examples."""

    data: Iterable[Any]
    samples: int

    def __iter__(self) -> Iterator[Any]:
        return _first(iter(self.data), self.samples)


def _first(data: Iterator[Any], samples: int) -> Iterator[Any]:
    read = 0
    for batch in data:
        yield batch
        read += batch_size((batch,))
        if read >= samples:
            return


def _calibration(
    model: nn.Module,
    data: Iterable[Any],
    to_inputs: ToInputs | None,
    samples: int,
    fits: bool,
    marked: Marked,
) -> Calibration:
    try:
        return Calibration.of(model, data, to_inputs, limit=samples, marked=marked)
    except BatchError:
        if fits:
            raise
    # Nothing is fitted, so the first batch is enough to compare outputs on.
    batch = next(itertools.islice(batches(data), 1))
    parameter = next((each for each in model.parameters() if each.is_floating_point()), None)
    dtype = None if parameter is None else parameter.dtype
    inputs = marked(to_device(arguments(model, batch, to_inputs), device_of(model), dtype))
    return Calibration((take(inputs, slice(CHUNK)),))
