"""A memory for what was captured of a model with other inputs than the example inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from disparse_structured.errors import CaptureError
from disparse_structured.graph.capture import Capture
from disparse_structured.graph.signature import Signature

REMEMBERED = 6
"""Graphs that are kept: those of a loader's batches and of its smaller last one, those of calibration chunks,
and those of the copies in double precision that results are verified on."""


@dataclass(eq=False)
class Captured:
    """A graph, or why there is none, and its structure once it has been solved."""

    graph: Capture | CaptureError
    structure: Any = None


@dataclass(eq=False)
class Captures:
    """The last few graphs by their signatures.

    All users of a structure share one. It holds graphs and sizes, but neither the model nor its inputs.
    Copies and pickles of it begin empty.
    """

    _known: dict[Signature, Captured] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": {}}

    def recall(self, signature: Signature) -> Captured | None:
        """What was remembered of ``signature``; None if nothing was, or if it has been forgotten."""
        found = self._known.pop(signature, None)
        if found is not None:
            self._known[signature] = found  # now the latest
        return found

    def remember(self, signature: Signature, found: Captured) -> None:
        """Remembers ``found``, and where that is too much forgets what was recalled longest ago."""
        self._known[signature] = found
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
