"""Refit and cut as one operation, proven on the weights that are handed out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from disparse_structured.data.calibration import Calibration
from disparse_structured.decision.plan import Plan
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.pipeline.checks import step
from disparse_structured.refit import Refit, RefitMethod, refit
from disparse_structured.report.refit import RefitFacts
from disparse_structured.structure import Structure
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.module import Applied, apply


@dataclass(frozen=True, eq=False)
class Surgeon:
    """Refits a model for a plan, with ``method`` on ``calibration`` unless they are None, and applies it.

    By a structure of form ``"graph"`` the result is the pruned graph, which no module can become in place.
    """

    model: nn.Module
    structure: Structure
    method: RefitMethod | None
    calibration: Calibration | None
    verify: bool
    progress: bool

    def operate(self, plan: Plan, inplace: bool) -> tuple[Applied, RefitFacts | None]:
        """The model that ``plan`` makes of the refitted one, proven as it is handed out."""
        if self.method is None:
            return self._apply(self.model, plan, inplace), None
        found = self._refit(plan)
        done = self._apply(found.model, plan)
        refused = done.refused
        while done.refused:
            # Weights must not make up for groups that are left whole after all.
            found = self._refit(done.plan)
            done = self._apply(found.model, done.plan)
            refused += done.refused
        done = dataclasses.replace(done, refused=refused)
        if inplace:
            _take_over(self.model, found.model)
            cut = apply(self.model, done.plan, self.structure, verify=False, inplace=True)
            done = dataclasses.replace(done, model=cut.model)
        return done, found.facts

    def _refit(self, plan: Plan) -> Refit:
        assert self.method is not None
        assert self.calibration is not None
        keep = plan.keep(self.structure)
        return refit(
            self.model, self.structure, keep, self.calibration, method=self.method, progress=self.progress
        )

    def _apply(self, model: nn.Module, plan: Plan, inplace: bool = False) -> Applied:
        with step("cutting and proving" if self.verify else "cutting", self.progress):
            if self.structure.form == "graph":
                done = apply_graph(model, plan, self.structure, verify=self.verify)
                return Applied(done.model, done.plan, done.verification, ())
            return apply(model, plan, self.structure, verify=self.verify, inplace=inplace)


def _take_over(model: nn.Module, other: nn.Module) -> None:
    """``model`` gets the values of ``other``, a copy of it with other weights."""
    values, _ = named_tensors(other)
    with torch.no_grad():
        for name, tensor in named_tensors(model)[0].items():
            tensor.copy_(values[name])
