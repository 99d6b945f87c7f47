"""A cache of a model's graphs for inputs other than the example inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from disparse_structured.errors import CaptureError
from disparse_structured.graph.capture import Capture
from disparse_structured.graph.signature import Signature

REMEMBERED = 6
"""The number of cached graphs: for a loader's batches and its smaller last one, for calibration chunks,
and for the double-precision copies that results are verified on."""


@dataclass(eq=False)
class Captured:
    """A graph, or the error of its export, and its structure once it has been solved."""

    graph: Capture | CaptureError
    structure: Any = None


@dataclass(eq=False)
class Captures:
    """The last few graphs by signature.

    All users of a structure share one cache. It holds graphs and sizes, but neither the model nor its inputs.
    Copies and pickles start empty.
    """

    _known: dict[Signature, Captured] = field(default_factory=dict)
    _elsewhere: Captures | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": {}}

    @property
    def elsewhere(self) -> Captures:
        """The cache of graphs at other sizes, which results are verified on; their numbers pin nothing."""
        if self._elsewhere is None:
            self._elsewhere = Captures()
        return self._elsewhere

    def recall(self, signature: Signature) -> Captured | None:
        """Return the entry for ``signature``; None if it was never stored or has been evicted."""
        found = self._known.pop(signature, None)
        if found is not None:
            self._known[signature] = found  # now the latest
        return found

    def remember(self, signature: Signature, found: Captured) -> None:
        """Store ``found``; if the cache is full, evict the least recently used entry."""
        self._known[signature] = found
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
