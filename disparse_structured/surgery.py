"""Applies a plan: on a copy, proven against the masked twin, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured._torch_pruning import StructureGraph
from disparse_structured.errors import PlanError, VerificationError
from disparse_structured.plan import Plan
from disparse_structured.specimen import TOLERANCES, Specimen, borrowing
from disparse_structured.structure import Attention, Form, Structure
from disparse_structured.structure.analysis import (
    attention_of,
    check_described,
    form_of,
    named_tensors,
)
from disparse_structured.structure.capture import own_copy
from disparse_structured.twin import masked_twin


@dataclass(frozen=True)
class Proof:
    """How far the pruned module is from the masked twin, per task, and in which precision."""

    dtype: str
    tolerance: float
    deviation: dict[str, float]


@dataclass(frozen=True)
class Refusal:
    """A group that was left alone because ``forward`` cannot follow, and what happened when it was cut."""

    group: str
    reason: str


@dataclass(frozen=True)
class Operation:
    """What :func:`apply` hands back.

    ``plan`` is the plan that was carried out: the given one without the groups of ``refused``. ``proof``
    is None if verification was switched off.
    """

    model: nn.Module
    plan: Plan
    proof: Proof | None
    refused: tuple[Refusal, ...]


def apply(
    model: nn.Module, plan: Plan, structure: Structure, *, verify: bool = True, inplace: bool = False
) -> Operation:
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
    proof: Proof | None = None
    refused: tuple[Refusal, ...] = ()
    if verify:
        judge = Judge(model, structure)
        keep, proof, refused = judge.settle(keep)
    pruned = cut(model, structure, keep)
    if refused:
        plan = plan.without(structure, [refusal.group for refusal in refused])
    if inplace:
        _become(model, pruned)
        pruned = model
    return Operation(pruned, plan, proof, refused)


def check_form(plan: Plan, structure: Structure) -> None:
    """Raises :class:`PlanError` for a plan of another form of a structure, or of other units of attention."""
    made = form_of(plan.fingerprint)
    if made != structure.form:
        raise PlanError(
            f"the plan was made for the {_FORMS[made]}, and the structure is that of the "
            f"{_FORMS[structure.form]}: their units may differ. Analyse the model with form={made!r}, or "
            "make a new plan from this structure."
        )
    units = attention_of(plan.fingerprint)
    if units != structure.attention:
        raise PlanError(
            f"the plan was made for {_UNITS[units]} as the units of attention, and those of the structure "
            f"are {_UNITS[structure.attention]}. Analyse the model with attention={units!r}, or make a new "
            "plan from this structure."
        )


_FORMS: dict[Form, str] = {"module": "module itself", "graph": "exported graph"}
_UNITS: dict[Attention, str] = {"heads": "whole heads", "head_dim": "indices of the head dimension"}


def cut(model: nn.Module, structure: Structure, keep: torch.Tensor) -> nn.Module:
    """A copy of ``model`` that has only the units of ``keep`` (bool ``[units]``); nothing is checked."""
    removed = np.flatnonzero(~np.asarray(keep, dtype=bool))
    with borrowing(model) as pruned:
        if len(removed):
            StructureGraph(pruned, structure).units_group(removed).prune()
    return pruned


@dataclass(frozen=True)
class _Verdict:
    """How far a pruned copy is from its twin, and what is wrong with that or with running it."""

    deviation: dict[str, float]
    objection: str | None


class Judge:
    """Compares pruned copies of one model with their masked twins, in float64 where the model allows it."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._model, self._given = model, structure
        self._examine(Specimen.of(model, structure))

    def _examine(self, specimen: Specimen) -> None:
        self._specimen = specimen
        self._verdicts: dict[bytes, _Verdict] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the comparison."""
        return self._specimen.dtype

    def deviation(self, keep: torch.Tensor) -> dict[str, float]:
        """Per task, the largest relative difference from the twin; raises what ``forward`` raises."""
        specimen = self._specimen
        pruned = cut(specimen.model, specimen.structure, keep)
        twin = masked_twin(specimen.structure, keep)
        tasks = specimen.structure.task_objects

        def run(inputs: tuple[Any, ...]) -> dict[str, Sequence[torch.Tensor]]:
            output = pruned(*pytree.tree_map(own_copy, inputs))
            return {task.name: task.tensors(output) for task in tasks}

        return specimen.deviation(run, lambda inputs: specimen.run(inputs, twin))

    def objection(self, keep: torch.Tensor) -> str | None:
        """Why the pruned module is not the twin; None if it is."""
        return self._verdict(keep).objection

    def _verdict(self, keep: torch.Tensor) -> _Verdict:
        """Each ``keep`` is judged once: the runs in float64 are what a proof costs."""
        key = keep.numpy().tobytes()
        if key not in self._verdicts:
            try:
                deviation = self.deviation(keep)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self._verdicts[key] = _Verdict({}, reason)
            else:
                self._verdicts[key] = _Verdict(deviation, objection_to(deviation, self.dtype))
        return self._verdicts[key]

    def settle(self, keep: torch.Tensor) -> tuple[torch.Tensor, Proof, tuple[Refusal, ...]]:
        """What of ``keep``'s removals the module follows, the proof, and what was left alone."""
        refused: list[Refusal] = []
        if self.objection(keep) is not None:
            self._check_repeatable()
        while self.objection(keep) is not None:
            found = self._culprits(keep, self._changed(keep))
            if not found:
                raise VerificationError(
                    f"the pruned {type(self._model).__name__} is not the masked twin: "
                    f"{self.objection(keep)}. "
                    "No group could be named for it; your model is unchanged. Please report this model."
                )
            refused.extend(found)
            keep = self._with(keep, [refusal.group for refusal in found])
        proof = Proof(str(self.dtype), TOLERANCES[self.dtype], self._verdict(keep).deviation)
        return keep, proof, tuple(refused)

    def _check_repeatable(self) -> None:
        """Before a group is blamed: the model itself, with nothing removed, must agree with its own graph."""
        everything = torch.ones(self._given.units, dtype=torch.bool)
        reason = self.objection(everything)
        if reason is not None and self.dtype is torch.float64:
            self._examine(Specimen.of(self._model, self._given, torch.float32))
            reason = self.objection(everything)
        if reason is not None:
            raise VerificationError(
                f"{type(self._model).__name__} does not agree with its own exported graph, with nothing "
                f"removed: {reason}. Its forward may draw random numbers in eval mode, count its calls or "
                "read something that changes between them; make it repeatable, or pass verify=False."
            )

    def _changed(self, keep: torch.Tensor) -> list[tuple[str, ...]]:
        """The groups that lose units; those that a count constraint binds can only be cut together."""
        names = [group.name for group in self._given.groups if not keep[group.slice].all()]
        bound = [frozenset(self._given.bound_to([name])) for name in names]
        return [tuple(name for name in names if name in each) for each in dict.fromkeys(bound)]

    def _culprits(self, keep: torch.Tensor, suspects: list[tuple[str, ...]]) -> list[Refusal]:
        """Groups of ``suspects`` that fail when cut: by halves, each half without the rest."""
        others = [name for names in self._changed(keep) if names not in suspects for name in names]
        reason = self.objection(self._with(keep, others))
        if reason is None:
            return []
        if len(suspects) == 1:
            return [Refusal(name, reason) for name in suspects[0]]
        half = len(suspects) // 2
        found = self._culprits(keep, suspects[:half]) + self._culprits(keep, suspects[half:])
        return found or [Refusal(name, reason) for names in suspects[half:] for name in names]

    def _with(self, keep: torch.Tensor, names: list[str]) -> torch.Tensor:
        """``keep`` with the named groups, and those bound to them by a count constraint, left whole."""
        keep = keep.clone()
        for name in self._given.bound_to(names):
            keep[self._given.group(name).slice] = True
        return keep


def objection_to(deviation: Mapping[str, float], dtype: torch.dtype) -> str | None:
    """What is wrong with the largest of the tasks' deviations; None if all are within tolerance."""
    task, worst = max(deviation.items(), key=lambda item: item[1])
    if not worst <= TOLERANCES[dtype]:
        return f"task {task!r} deviates from the masked twin by {worst:.3g}"
    return None


def _become(model: nn.Module, pruned: nn.Module) -> None:
    """``model`` and its submodules take over the state of ``pruned``'s, keeping their identity."""
    counterparts = dict(pruned.named_modules())
    for name, module in model.named_modules():
        state = vars(counterparts[name]).copy()
        state["_modules"] = vars(module)["_modules"]
        vars(module).update(state)
