"""Warns of modules that the result still holds and that it can no longer run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from disparse_structured.data.call import options_left
from disparse_structured.errors import DisparseWarning
from disparse_structured.report.words import NEEDED
from disparse_structured.structure import Structure


def warn_of_unfit(model: nn.Module, structure: Structure, unfit: Sequence[str]) -> None:
    """Warns of ``unfit``, if there are any: modules of ``model`` that never ran and read a pruned width.

    Warns:
        DisparseWarning: names them, and the options of ``forward`` that were left at their defaults.
    """
    if not unfit:
        return
    options = options_left(model.forward, structure.example_inputs)
    chosen = ", ".join(f"{name}={default!r}" for name, default in options.items())
    said = f" forward was run with {chosen}." if chosen else ""
    warnings.warn(
        "modules that never ran keep their dense size, and fail if they are called, because they read a "
        f"width that was pruned: {', '.join(unfit)}.{said} {NEEDED}",
        DisparseWarning,
        stacklevel=4,
    )
