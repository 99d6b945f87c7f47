"""Applies a plan to the exported graph, for models whose own ``forward`` cannot follow.

The integers that ``forward`` computes with are literals of the graph, so all of them can be rewritten.
The result runs, trains and exports like any module; it is not an instance of the user's class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import map_batched
from disparse_structured.data.call import Batched, call
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import DisparseError, PlanError, VerificationError
from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_at
from disparse_structured.structure.structure import check_described
from disparse_structured.surgery.applied import Applied
from disparse_structured.surgery.forms import check_form
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.verification.beyond import runner
from disparse_structured.verification.copy import TOLERANCES, Outputs, VerificationCopy, mismatch_in
from disparse_structured.verification.elsewhere import Run, elsewhere
from disparse_structured.verification.twin import masked_twin
from disparse_structured.verification.verifier import Verification


@leaves_no_trace
def apply_graph(model: nn.Module, plan: Plan, structure: Structure, *, verify: bool = True) -> Applied:
    """Remove what ``plan`` removes from the exported graph of ``model``, which is left unchanged.

    ``structure`` is of either form: with ``form="graph"``, more can be removed; with ``form="module"``, the
    groups that :func:`~disparse_structured.surgery.module.apply` refused can be removed after all.

    With ``verify``, the result is compared with the masked twin in float64 before it is returned. If it is
    also right on a batch of another size, it takes batches of any size; otherwise, it takes only batches
    as large as the structure's example inputs.

    Raises:
        PlanError: the plan is not for this model, or for the other form of it.
        VerificationError: the result differs from the twin.
    """
    check_form(plan, structure)
    keep = plan.keep(structure)
    check_described(named_tensors(model)[0], structure)
    verification, wide = _verified(model, structure, keep) if verify else (None, None)
    pruned = PrunedGraph(model, wide or structure, keep, any_batch=wide is not None)
    return Applied(pruned, plan, verification, ())


def rebuild_graph(
    model: nn.Module, plan: Plan, structure: Structure, *, examples: int, any_batch: bool
) -> PrunedGraph:
    """Rebuild the graph that :func:`apply_graph` made from ``plan``; nothing is verified.

    Its inputs are shaped like those of ``structure``, which may be of another size than those of the graph.

    Raises:
        PlanError: the plan is not for this structure, or its example inputs have another batch size.
    """
    keep = plan.keep(structure)
    made_from: Structure | None = structure
    if any_batch and structure.resizing.batch < examples:
        made_from = _with_two_examples(model, structure)
    if made_from is None or (not any_batch and made_from.resizing.batch != examples):
        raise PlanError(
            f"the graph was exported with {examples} examples, and the example inputs hold "
            f"{structure.resizing.batch}. Pass as many as the model was pruned with."
        )
    return PrunedGraph(model, made_from, keep, any_batch=any_batch)


def _verified(
    model: nn.Module, structure: Structure, keep: torch.Tensor
) -> tuple[Verification, Structure | None]:
    """Verifies that the pruned graph is the masked twin.

    Also returns a structure whose graph can be resized for batches of any size, or None.
    """
    reference = VerificationCopy.of(model, structure)
    twin = masked_twin(reference.structure, keep)

    def expected(inputs: tuple[Any, ...]) -> Outputs:
        return reference.run(inputs, twin)

    try:
        fixed = _runner(reference, reference.structure, keep, any_batch=False)
        deviation = reference.deviation(fixed, expected)
        found = mismatch_in(deviation, reference.dtype)
    except VerificationError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if found is not None:
        raise VerificationError(
            f"the pruned graph of {type(model).__name__} is not the masked twin: {found}. Your model is "
            "unchanged. If its forward draws random numbers in eval mode, make it repeatable; otherwise "
            "please report this model."
        )
    verification = Verification(str(reference.dtype), TOLERANCES[reference.dtype], deviation)
    if _takes_other_batches(reference, reference.structure, keep):
        return verification, structure
    twice = _with_two_examples(reference.model, reference.structure)
    if twice is not None:
        alone = _right_at(reference, expected, _runner(reference, twice, keep, any_batch=True))
        if alone and _takes_other_batches(reference, twice, keep):
            return verification, _with_two_examples(model, structure)
    return verification, None


def _with_two_examples(model: nn.Module, structure: Structure) -> Structure | None:
    """The structure with a batch of two, to tell the batch dimension, if ``structure`` has a batch of one."""
    if structure.resizing.batch != 1:
        return None
    inputs = _longer(structure.example_inputs)
    try:
        found = structure_at(structure, model, inputs)
    except DisparseError:
        return None
    return found if found.fingerprint == structure.fingerprint else None


def _longer(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """``inputs`` followed by one more example; where tensors are shared, examples may refer to positions."""
    if isinstance(inputs, Batched):
        return map_batched(lambda leaf: torch.cat([leaf, leaf[:1]]), inputs)
    return map_batched(lambda leaf: torch.cat([leaf, leaf[:1].flip(tuple(range(1, leaf.ndim)))]), inputs)


def _runner(reference: VerificationCopy, structure: Structure, keep: torch.Tensor, *, any_batch: bool) -> Run:
    """The pruned graph of a verification copy, its constants in the precision of the copy."""
    graph = PrunedGraph(reference.model, structure, keep, any_batch=any_batch).to(reference.dtype)

    def run(inputs: tuple[Any, ...]) -> Outputs:
        outputs = call(graph, pytree.tree_map(clone_if_tensor, inputs))
        return {
            task: (found,) if isinstance(found, torch.Tensor) else found for task, found in outputs.items()
        }

    return run


def _right_at(reference: VerificationCopy, expected: Run, run: Run) -> bool:
    """Whether ``run`` and ``expected`` agree on the inputs of ``reference``."""
    try:
        return mismatch_in(reference.deviation(run, expected), reference.dtype) is None
    except Exception:  # whatever it raises, it cannot take these inputs
        return False


def _takes_other_batches(reference: VerificationCopy, structure: Structure, keep: torch.Tensor) -> bool:
    """Whether the pruned graph is also the masked twin with one more example."""
    dense = runner(reference, reference.model)
    twin = elsewhere(reference, _longer(reference.inputs), dense, batch=True)
    if twin is None:
        return False
    try:
        deviation = twin.deviation(_runner(reference, structure, keep, any_batch=True), keep)
    except Exception:  # whatever it raises, it cannot take this batch
        return False
    return deviation is not None and mismatch_in(deviation, reference.dtype) is None
