"""Refit and removal as one operation, verified on the weights that are handed out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.plan import Plan
from disparse_structured.progress import step
from disparse_structured.refit import Refit, RefitMethod, measure_deviation, refit
from disparse_structured.report.deviation import DeviationFacts
from disparse_structured.report.refit import RefitFacts
from disparse_structured.structure import Structure
from disparse_structured.surgery import Applied, apply


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a plan: the smaller model, how far its outputs moved, and what the refit did."""

    applied: Applied
    deviation: DeviationFacts
    refit: RefitFacts | None


@dataclass(frozen=True, eq=False)
class Execution:
    """Refits a model for a plan, unless ``method`` is None, and applies the plan."""

    model: nn.Module
    structure: Structure
    method: RefitMethod | None
    calibration: Calibration
    verify: bool
    progress: bool

    def __call__(self, plan: Plan) -> Outcome:
        """The model that ``plan`` makes of the refitted one."""
        if self.method is None:
            applied = self._apply(self.model, plan)
            return Outcome(applied, self._deviation(applied.plan), None)
        refitted, applied = self._refit_and_apply(plan)
        refused = applied.refused
        while applied.refused:
            # Weights must not compensate for groups that are left whole after all.
            refitted, applied = self._refit_and_apply(applied.plan)
            refused += applied.refused
        return Outcome(dataclasses.replace(applied, refused=refused), refitted.deviation, refitted.facts)

    def _refit_and_apply(self, plan: Plan) -> tuple[Refit, Applied]:
        assert self.method is not None
        found = refit(
            self.model,
            self.structure,
            plan.keep(self.structure),
            self.calibration,
            method=self.method,
            progress=self.progress,
        )
        return found, self._apply(found.model, plan)

    def _apply(self, model: nn.Module, plan: Plan) -> Applied:
        with step("removing and verifying" if self.verify else "removing", self.progress):
            return apply(model, plan, self.structure, verify=self.verify)

    def _deviation(self, plan: Plan) -> DeviationFacts:
        keep: torch.Tensor = plan.keep(self.structure)
        moved = measure_deviation(self.model, self.structure, keep, self.calibration)
        return DeviationFacts.of(self.calibration.samples, self.calibration.checked, moved, moved)
