"""Our own rows: one call, with parts of it switched off or exchanged."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.no_training.bench import Bench, reestimated
from disparse_structured.pipeline import Pruned, shrink

_OURS_TO_SAY = (
    *("model", "inputs", "tasks", "macs", "parameters", "budget", "tolerance", "samples", "seed"),
)
_NO_RESULT = ("verify", "inplace", "progress")


@dataclass(frozen=True)
class Shrink:
    """:func:`disparse_structured.shrink` on the images, without labels.

    Args:
        options: its keyword arguments, by name; see :meth:`but`.
        batchnorm: afterwards take the statistics of batch norms anew from the images.
    """

    options: tuple[tuple[str, Any], ...]
    batchnorm: bool = False

    @classmethod
    def but(cls, batchnorm: bool = False, **options: Any) -> Shrink:
        """The defaults as they are now, so that rows tell which these were, but for ``options``."""
        known = {
            name: parameter.default
            for name, parameter in inspect.signature(shrink).parameters.items()
            if name not in (*_OURS_TO_SAY, *_NO_RESULT)
        }
        return cls(tuple(sorted({**known, **options}.items())), batchnorm)

    def __call__(self, bench: Bench, fraction: float) -> nn.Module:
        """The pruned network."""
        model = deepcopy(self.pruned(bench, fraction).model)
        return reestimated(model, bench.images) if self.batchnorm else model

    def pruned(self, bench: Bench, fraction: float) -> Pruned:
        """The whole result, with plan and report; not to be changed, as others get the same."""
        options: dict[str, Any] = {"samples": bench.count, "seed": bench.seed, **dict(self.options)}
        return bench.once(
            ("shrink", repr(self.options), fraction),
            lambda: shrink(bench.model, bench.images, bench.unlabelled, macs=fraction, **options),
        )
