"""From what a user calls inputs to examples that a network is judged and repaired on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import Inputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import BatchError
from disparse_structured.graph.named_tensors import device_of

SAMPLES = 64
"""Inputs that a refit reads by default; more bring a little more still."""

EXAMPLE_SAMPLES = 2
"""How many samples example inputs are: structure and proof need no more."""


def calibrate(
    model: nn.Module,
    data: torch.Tensor | Iterable[Any] | Calibration,
    *,
    inputs: Inputs | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Calibration:
    """The first ``samples`` examples of ``data``, checked.

    ``data`` is a tensor ``[N, ...]``, a batch that is a dict, or batches; ``inputs`` is as of
    :func:`~disparse_structured.pipeline.prune`. What a loader draws at random follows from ``seed``; the
    global random states stay as they are.

    Raises:
        BatchError: not two examples of one shape, nothing to iterate, or numbers that are not finite.
    """
    if isinstance(data, Calibration):
        return data
    if samples < 2:
        raise BatchError(
            f"samples={samples} is too few: half of the inputs judge what the others taught. "
            f"Use at least 2, better {SAMPLES}."
        )
    if isinstance(data, torch.Tensor):
        if not data.ndim or not len(data):
            raise BatchError(
                f"the inputs are a tensor of shape {list(data.shape)}, which holds no example. "
                "Pass [N, ...], a few dozen examples."
            )
        data = data[:samples]
    if isinstance(data, torch.Tensor | Mapping):
        data = [data]
    if not isinstance(data, Iterable):
        raise BatchError(
            f"the inputs are {type(data).__name__} {data!r}, which cannot be iterated. "
            "Pass a tensor [N, ...], a loader or a list of batches."
        )
    with Isolation(seed, device_of(model)):
        return Calibration.of(model, data, inputs, limit=samples)
