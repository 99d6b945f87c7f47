"""Applies a plan: on a copy, proven against the masked twin, all or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from disparse_structured.decision.plan import Plan
from disparse_structured.errors import PlanError
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Structure
from disparse_structured.structure.structure import check_described
from disparse_structured.surgery._torch_pruning import StructureGraph
from disparse_structured.surgery.forms import check_form
from disparse_structured.verification.copy import borrowing
from disparse_structured.verification.verifier import Refusal, Verification, Verifier


@dataclass(frozen=True)
class Applied:
    """What :func:`apply` hands back.

    ``plan`` is the plan that was carried out: the given one without the groups of ``refused``. ``proof``
    is None if verification was switched off.
    """

    model: nn.Module
    plan: Plan
    verification: Verification | None
    refused: tuple[Refusal, ...]


def apply(
    model: nn.Module, plan: Plan, structure: Structure, *, verify: bool = True, inplace: bool = False
) -> Applied:
    """Removes what ``plan`` removes, by Torch-Pruning, from a copy of ``model``.

    With ``verify`` the result is compared with the masked twin in float64 before it is handed back.
    Groups that the module's own ``forward`` cannot follow are found, named and left alone. With
    ``inplace``, ``model`` itself becomes the result, at the very end; optimisers must be made anew.

    Raises:
        PlanError: the plan is not for this model, or it is for its exported graph.
        VerificationError: the result differs from the twin, and no group can be named for it.
    """
    if structure.form == "graph":
        raise PlanError(
            "the structure is that of the exported graph (form='graph'), and the module's own forward need "
            "not follow its widths. Use apply_graph, or analyse the model with form='module' and make a new "
            "plan."
        )
    check_form(plan, structure)
    keep = plan.keep(structure)
    check_described(named_tensors(model)[0], structure)
    verification: Verification | None = None
    refused: tuple[Refusal, ...] = ()
    if verify:
        judge = Verifier(model, structure, cut)
        keep, verification, refused = judge.resolve(keep)
    pruned = cut(model, structure, keep)
    if refused:
        plan = plan.without(structure, [refusal.group for refusal in refused])
    if inplace:
        _become(model, pruned)
        pruned = model
    return Applied(pruned, plan, verification, refused)


def cut(model: nn.Module, structure: Structure, keep: torch.Tensor) -> nn.Module:
    """A copy of ``model`` that has only the units of ``keep`` (bool ``[units]``); nothing is checked."""
    removed = np.flatnonzero(~np.asarray(keep, dtype=bool))
    with borrowing(model) as pruned:
        if len(removed):
            StructureGraph(pruned, structure).units_group(removed).prune()
    return pruned


def _become(model: nn.Module, pruned: nn.Module) -> None:
    """``model`` and its submodules take over the state of ``pruned``'s, keeping their identity."""
    counterparts = dict(pruned.named_modules())
    for name, module in model.named_modules():
        state = vars(counterparts[name]).copy()
        state["_modules"] = vars(module)["_modules"]
        vars(module).update(state)
