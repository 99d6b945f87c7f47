"""Applies a plan: on a copy, verified against the masked twin, all or nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from disparse_structured.checks import check_object
from disparse_structured.decision.plan import Plan
from disparse_structured.graph.copies import borrowing
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.graph.supported import check_supported
from disparse_structured.structure import Structure
from disparse_structured.structure.structure import check_described, check_structure
from disparse_structured.surgery.applied import Applied
from disparse_structured.surgery.forms import check_form
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.surgery.stale import stale_numbers
from disparse_structured.surgery.unfit import unfit_modules
from disparse_structured.verification.verifier import Refusal, Verification, Verifier


@leaves_no_trace
def apply(model: nn.Module, plan: Plan, structure: Structure, *, verify: bool = True) -> Applied:
    """Remove what ``plan`` removes from a copy of ``model``, by Torch-Pruning: the last of the four steps.

    With ``verify``, the result is compared with the masked twin in float64 before it is returned. Groups
    that the module's own ``forward`` cannot follow are found, named and left whole. For a structure of form
    ``"graph"``, this is :func:`~disparse_structured.surgery.graph.apply_graph`.

    Raises:
        OptionError: an argument is of the wrong kind.
        UnsupportedModelError: ``model`` is not a module, or is wrapped, compiled, scripted or quantized.
        PlanError: the plan is not for this model, or it is for the other form of it.
        VerificationError: the result differs from the twin, and no group is found at fault.
    """
    check_supported(model)
    check_object("plan", plan, Plan, "a Plan", "Pass what plan() or Plan.load() returned.")
    check_structure(structure)
    if structure.form == "graph":
        return apply_graph(model, plan, structure, verify=verify)
    check_form(plan, structure)
    keep = plan.keep(structure)
    check_described(named_tensors(model)[0], structure)
    verification: Verification | None = None
    refused: tuple[Refusal, ...] = ()
    ran = frozenset[str]()
    if verify:
        verifier = Verifier(model, structure, cut)
        keep, verification, refused = verifier.resolve(keep)
        ran = verifier.ran
    pruned = cut(model, structure, keep)
    if refused:
        plan = plan.without(structure, [refusal.group for refusal in refused])
    never = [each for each in structure.unused if each.module not in ran]
    stale = stale_numbers(model, pruned, structure.capture.reals)
    unfit = unfit_modules(model, pruned, never)
    return Applied(pruned, plan, verification, refused, stale, unfit)


def cut(model: nn.Module, structure: Structure, keep: torch.Tensor) -> nn.Module:
    """Copy ``model`` with only the units of ``keep`` (bool ``[units]``); nothing is checked."""
    # Here rather than at the top: Torch-Pruning imports torchvision and timm if they are installed.
    from disparse_structured.surgery._torch_pruning import StructureGraph

    removed = np.flatnonzero(~np.asarray(keep, dtype=bool))
    with borrowing(model) as pruned:
        if len(removed):
            StructureGraph(pruned, structure).units_group(removed).prune()
    return pruned
