"""Compares a pruned model with the masked twin at its other entry points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.differences import difference
from disparse_structured.graph.copies import copied
from disparse_structured.graph.entries import Entered, entered
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.structure.entering import OUTPUT, EntryGraph
from disparse_structured.verification.copy import TOLERANCES, VerificationCopy, other_inputs
from disparse_structured.verification.twin import masked_twin

_Run = Callable[[tuple[Any, ...]], Sequence[torch.Tensor]]


def entry_mismatch(reference: VerificationCopy, keep: torch.Tensor, pruned: nn.Module) -> str | None:
    """Say at which entry point ``pruned`` is not the masked twin of ``keep``; None if it is at all of them.

    At an entry point without a graph, ``pruned`` must compute the same before and after.
    """
    for graph in reference.structure.entry_points:
        place = f"at entry point {graph.entry.name!r}"
        try:
            worst = max(_differences(reference, graph, keep, pruned), default=0.0)
        except Exception as error:  # whatever a user's method raises
            reason = str(error).splitlines()[0] if str(error) else ""
            return f"{place}, it raises {type(error).__name__}: {reason}"
        if not worst <= TOLERANCES[reference.dtype]:
            return f"{place}, it deviates from the masked twin by {worst:.3g}"
    return None


def _differences(
    reference: VerificationCopy, graph: EntryGraph, keep: torch.Tensor, pruned: nn.Module
) -> list[float]:
    expected = _twin(reference, graph, keep) or Entered(None, pruned).tensors
    found = []
    for inputs in (graph.inputs, other_inputs(graph.inputs)):
        with torch.no_grad(), reference.precision():
            wanted = expected(inputs)
            student = copied(pruned)
            arguments = graph.entry.arguments(student, inputs) if graph.changes else inputs
            given = entered(graph.entry, student, arguments).tensors(inputs)
        found += [difference(a, b) for a, b in zip(given, wanted, strict=True)]
    return found


def _twin(reference: VerificationCopy, graph: EntryGraph, keep: torch.Tensor) -> _Run | None:
    """The masked twin of the entry point's graph; None if it has none."""
    if graph.capture is None:
        return None
    capture, state = graph.capture, detached_tensors(reference.model)
    twin = masked_twin(reference.structure.entry(graph, capture), keep)
    return lambda inputs: capture.run(state, inputs, twin)[OUTPUT]
