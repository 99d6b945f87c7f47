"""Structured pruning of multi-task networks: each task votes, an arbiter decides, every removal is verified.

One call makes a network smaller::

    import disparse_structured as ds

    result = ds.prune(model, images, macs=0.5)  # tasks are read off the output; no labels, no training
    print(result.report)  # costs, votes, and how far each task's output moved
    result.save("small")
    result.export("small/model.onnx")

The same in four steps: :func:`analyse`, :func:`score`, :func:`plan`, :func:`apply`. What fewer users
need is in packages: :mod:`~disparse_structured.data` reads folders of pictures,
:mod:`~disparse_structured.latency` measures. Everything is imported when it is first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disparse_structured import refit as refits
    from disparse_structured.decision import arbiters, costs, rankings
    from disparse_structured.decision.budget import Budget
    from disparse_structured.decision.deciding import make_plan as plan
    from disparse_structured.errors import DisparseError
    from disparse_structured.pipeline import Compensated, DiSparse, prune
    from disparse_structured.scoring import criteria, score
    from disparse_structured.structure import analyse
    from disparse_structured.surgery import apply
    from disparse_structured.surgery.saving import load
    from disparse_structured.tasks import Task

_HOMES = {
    "Budget": "disparse_structured.decision.budget:Budget",
    "Compensated": "disparse_structured.pipeline:Compensated",
    "DiSparse": "disparse_structured.pipeline:DiSparse",
    "DisparseError": "disparse_structured.errors:DisparseError",
    "Task": "disparse_structured.tasks:Task",
    "analyse": "disparse_structured.structure:analyse",
    "apply": "disparse_structured.surgery:apply",
    "arbiters": "disparse_structured.decision.arbiters",
    "costs": "disparse_structured.decision.costs",
    "criteria": "disparse_structured.scoring.criteria",
    "load": "disparse_structured.surgery.saving:load",
    "plan": "disparse_structured.decision.deciding:make_plan",
    "prune": "disparse_structured.pipeline:prune",
    "rankings": "disparse_structured.decision.rankings",
    "refits": "disparse_structured.refit",
    "score": "disparse_structured.scoring:score",
}
"""Where each public name lives: a module, or a module and a name in it."""

_PACKAGES = (
    "adapters", "data", "export", "latency", "pipeline", "recovery", "regimes", "relatedness", "training"
)  # fmt: skip
"""Packages whose names are public too, as in ``ds.data.images``."""

__all__ = [
    "Budget",
    "Compensated",
    "DiSparse",
    "DisparseError",
    "Task",
    "analyse",
    "apply",
    "arbiters",
    "costs",
    "criteria",
    "load",
    "plan",
    "prune",
    "rankings",
    "refits",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("disparse-structured")
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found: Any = importlib.import_module(module)
    if attribute:
        found = getattr(found, attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES, "__version__"})
