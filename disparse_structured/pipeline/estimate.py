"""Estimates of time and memory: one pass is measured, and multiplied by the number of passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from disparse_structured.data.batches import batch_size
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.decision.budget import Budget
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.graph.side_effects import undone
from disparse_structured.pipeline.method import Counting, refit_passes
from disparse_structured.recovery import Recovery
from disparse_structured.recovery.recovery import Timed
from disparse_structured.refit import RefitMethod
from disparse_structured.report import words
from disparse_structured.structure import Structure

_COPIES = 4
"""Copies of the weights: the network, the copy that is refit, and twice for the masked twin in float64."""


@dataclass(frozen=True)
class Estimate:
    """The estimated time and memory of a run.

    Args:
        passes: the work, in forward passes of one input.
        seconds: for all of them.
        memory: bytes for weights and activations.

    >>> print(Estimate(2400, 180.0, 1_200_000_000))
    about 3 minutes and 1.2 GB of memory: as much work as 2,400 passes of one input
    """

    passes: int
    seconds: float
    memory: int

    def __str__(self) -> str:
        work = f"as much work as {words.count(self.passes)} passes of one input"
        return f"about {words.duration(self.seconds)} and {words.size(self.memory)} of memory: {work}"


def estimated(
    model: nn.Module,
    structure: Structure,
    calibration: Calibration,
    scored: int | None,
    budget: Budget,
    method: object,
    refit: RefitMethod | None,
    recover: Recovery | None,
) -> Estimate | None:
    """The estimate for ``method``, ``refit`` and ``recover``; None if one of them does not say what it takes.

    One chunk of ``calibration`` is computed twice; the second pass is timed. The estimate does not include
    solving regressions and writing ONNX files.

    Args:
        scored: how many examples the data holds; None if it does not say.
    """
    if not isinstance(method, Counting) or not (recover is None or isinstance(recover, Timed)):
        return None
    passes = method.passes(structure, calibration, scored, budget.share(structure))
    if passes is None:
        return None
    passes += refit_passes(refit, calibration)
    seconds, activations = _measured(model, calibration.chunks[0])
    size = batch_size(calibration.chunks[0])
    one_pass = seconds / size
    if recover is not None:
        passes += recover.seconds(one_pass) / one_pass
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    held = activations // size * calibration.samples if refit is not None else 0
    memory = _COPIES * weights + 2 * activations + min(held, getattr(refit, "memory", 0))
    return Estimate(round(passes), passes * one_pass, memory)


class _Bytes(TorchDispatchMode):
    """Counts the bytes of all results that are not views."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        values = found if isinstance(found, tuple) else (found,)
        for returned, value in zip(func._schema.returns, values, strict=False):
            if returned.alias_info is None and isinstance(value, torch.Tensor):
                self.total += value.nbytes
        return found


def _measured(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[float, int]:
    """Seconds of one forward pass, and the bytes of its activations."""
    with undone(model), eval_mode(model), torch.no_grad(), Isolation(0, device_of(model)):
        with _Bytes() as counted:  # type: ignore[no-untyped-call]  # torch does not annotate it
            call(model, inputs)
        start = time.perf_counter()
        call(model, inputs)
        return time.perf_counter() - start, counted.total
