"""The result of applying a plan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from disparse_structured.decision.plan import Plan
from disparse_structured.verification.verifier import Refusal, Verification


@dataclass(frozen=True)
class Applied:
    """What :func:`apply` returns.

    ``plan`` is the plan that was carried out: the given one without the groups of ``refused``.
    ``verification`` is None if verification was switched off. ``stale`` are integer attributes that still
    hold a dense size, see :func:`disparse_structured.surgery.stale.stale_numbers`, and ``unfit`` are modules
    that never ran and fail if they are called, see :func:`disparse_structured.surgery.unfit.unfit_modules`.
    """

    model: nn.Module
    plan: Plan
    verification: Verification | None
    refused: tuple[Refusal, ...]
    stale: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
