"""From the data that a user passes to batches, calibration examples and example inputs."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from disparse_structured.checks import check_counts
from disparse_structured.data.arguments import arguments
from disparse_structured.data.batches import (
    ToInputs,
    as_they_are,
    batches,
    count,
    readable,
    take,
    to_device,
)
from disparse_structured.data.calibration import CHUNK, Calibration, Marked
from disparse_structured.data.call import marked_like
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError, DisparseWarning, OptionError
from disparse_structured.graph.named_tensors import device_of, floating_type_of
from disparse_structured.structure import Structure

SAMPLES = 64
"""Examples that a refit reads by default; of small networks, up to :data:`MOST_SAMPLES`."""

MOST_SAMPLES = 256
"""At 30 % of the MACs, trained networks for small images deviate 12 to 17 % less than with 64."""

_SMALL_WORK = 16e9
"""Most multiply-accumulates of one pass over the examples, if more than :data:`SAMPLES` are read."""

EXAMPLE_SAMPLES = 2
"""How many examples the example inputs hold: structure and verification need no more."""


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

    def enlarged(self, model: nn.Module, structure: Structure, seed: int) -> Data:
        """The same with more calibration examples, if ``model`` is small and there are more.

        There are at most :data:`MOST_SAMPLES`, and no more than one pass computes with 16 GMACs.
        """
        wanted = min(MOST_SAMPLES, int(_SMALL_WORK / max(1.0, structure.cost.macs.dense)))
        if wanted <= SAMPLES or (self.examples is not None and self.examples <= SAMPLES):
            return self
        with Isolation(seed, device_of(model)), warnings.catch_warnings():
            warnings.simplefilter("ignore", DisparseWarning)  # it was said of the first examples
            try:
                more = Calibration.of(
                    model, self.batches, self.to_inputs, limit=wanted, marked=structure.marked
                )
            except BatchError:  # the first examples are sound and suffice, whatever the others are
                return self
        return dataclasses.replace(self, calibration=more)

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
                raised for data without a length, once a method has read
                :data:`~disparse_structured.data.batches.UNSIZED` examples.
        """
        if isinstance(data, Calibration):
            first = marked(data.chunks[0])
            chunks, checks = (
                tuple(marked_like(chunk, first) for chunk in found) for found in (data.chunks, data.checks)
            )
            return cls(chunks, Calibration(chunks, checks), as_they_are, count(chunks))
        least = 2 if fits else 1
        if samples is not None:
            check_counts(0, samples=samples)
        if samples is not None and samples < least:
            why = f", better {SAMPLES}. Half of the inputs are held out to validate the fit" if fits else ""
            raise OptionError(f"samples={samples} is too few: use at least {least}{why}.")
        read = readable(data, samples)
        with Isolation(seed, device_of(model)):
            calibration = _calibration(model, read, to_inputs, samples or SAMPLES, fits, marked)
        return cls(read, calibration, to_inputs, samples or count(read))


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
    given = arguments(model, batch, to_inputs)
    inputs = marked(to_device(given, device_of(model), floating_type_of(model)))
    return Calibration((take(inputs, slice(CHUNK)),))
