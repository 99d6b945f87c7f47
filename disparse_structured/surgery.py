"""Applies a plan: on a copy, proven against the masked twin, all or nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured._torch_pruning import StructureGraph
from disparse_structured.errors import CaptureError, PlanError, VerificationError
from disparse_structured.plan import Plan
from disparse_structured.structure import Structure, analyse
from disparse_structured.structure.analysis import named_tensors
from disparse_structured.structure.capture import own_copy
from disparse_structured.twin import masked_twin

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation from the twin, relative to the output's largest value, or to ``_SMALL`` if larger."""

_SMALL = 1e-3


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
        PlanError: the plan is not for this model.
        VerificationError: the result differs from the twin, and no group can be named for it.
    """
    keep = plan.keep(structure)
    _check_is_described(model, structure)
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


def cut(model: nn.Module, structure: Structure, keep: torch.Tensor) -> nn.Module:
    """A copy of ``model`` that has only the units of ``keep`` (bool ``[units]``); nothing is checked."""
    pruned = _copied(model)
    removed = np.flatnonzero(~np.asarray(keep, dtype=bool))
    if len(removed):
        StructureGraph(pruned, structure).units_group(removed).prune()
    return pruned


class Judge:
    """Compares pruned copies of one model with their masked twins, in float64 where the model allows it.

    The copies have other values where the model's own would hide a mistake: a branch behind a scale of
    zero, the order of channels in a normalisation as it was initialised.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._model, self._given = model, structure
        try:
            self._prepare(torch.float64)
        except (CaptureError, RuntimeError):
            self._prepare(torch.float32)

    def _prepare(self, dtype: torch.dtype) -> None:
        model, structure = self._model, self._given
        self.dtype = dtype
        self._dense = _copied(model).to(dtype)
        for module in self._dense.modules():
            module.training = False
        _reveal(self._dense)
        self._inputs = _cast(structure.example_inputs, dtype)
        self._structure = analyse(self._dense, self._inputs, structure.task_objects)
        if self._structure.fingerprint != structure.fingerprint:
            raise PlanError(
                f"the model's structure in {dtype} is not the one that was analysed. "
                "Analyse the model as it is now and make a new plan."
            )
        tensors, _ = named_tensors(self._dense)
        self._state = {name: tensor.detach() for name, tensor in tensors.items()}

    def deviation(self, keep: torch.Tensor) -> dict[str, float]:
        """Per task, the largest relative difference from the twin; raises what ``forward`` raises."""
        pruned = cut(self._dense, self._structure, keep)
        twin = masked_twin(self._structure, keep)
        found: dict[str, list[float]] = {name: [] for name in self._structure.tasks}
        for inputs in (self._inputs, _other_inputs(self._inputs)):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                expected = self._structure.capture.run(self._state, inputs, twin)
                output = pruned(*pytree.tree_map(own_copy, inputs))
            for task in self._structure.task_objects:
                actual = task.tensors(output)
                pairs = zip(actual, expected[task.name], strict=True)
                found[task.name] += [
                    _difference(a, b) for a, b in pairs if b.isfinite().any() or not b.numel()
                ]
        for name, differences in found.items():
            if not differences:
                raise VerificationError(
                    f"task {name!r}: the dense model's output holds no finite number, so that nothing can be "
                    "compared. Pass example inputs that the model was made for."
                )
        return {name: max(differences) for name, differences in found.items()}

    def objection(self, keep: torch.Tensor) -> str | None:
        """Why the pruned module is not the twin; None if it is."""
        try:
            deviation = self.deviation(keep)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        task, worst = max(deviation.items(), key=lambda item: item[1])
        if not worst <= TOLERANCES[self.dtype]:
            return f"task {task!r} deviates from the masked twin by {worst:.3g}"
        return None

    def settle(self, keep: torch.Tensor) -> tuple[torch.Tensor, Proof, tuple[Refusal, ...]]:
        """What of ``keep``'s removals the module follows, the proof, and what was left alone."""
        refused: list[Refusal] = []
        if self.objection(keep) is not None:
            self._check_repeatable()
        while self.objection(keep) is not None:
            found = self._culprits(keep, self._changed(keep))
            if not found:
                raise VerificationError(
                    f"the pruned {type(self._dense).__name__} is not the masked twin: "
                    f"{self.objection(keep)}. "
                    "No group could be named for it; your model is unchanged. Please report this model."
                )
            refused.extend(found)
            keep = self._with(keep, [refusal.group for refusal in found])
        proof = Proof(str(self.dtype), TOLERANCES[self.dtype], self.deviation(keep))
        return keep, proof, tuple(refused)

    def _check_repeatable(self) -> None:
        """Before a group is blamed: the model itself, with nothing removed, must agree with its own graph."""
        everything = torch.ones(self._structure.units, dtype=torch.bool)
        reason = self.objection(everything)
        if reason is not None and self.dtype is torch.float64:
            self._prepare(torch.float32)
            reason = self.objection(everything)
        if reason is not None:
            raise VerificationError(
                f"{type(self._dense).__name__} does not agree with its own exported graph, with nothing "
                f"removed: {reason}. Its forward may draw random numbers in eval mode, count its calls or "
                "read something that changes between them; make it repeatable, or pass verify=False."
            )

    def _changed(self, keep: torch.Tensor) -> list[tuple[str, ...]]:
        """The groups that lose units; those that a count constraint binds can only be cut together."""
        names = [group.name for group in self._structure.groups if not keep[group.slice].all()]
        bound = [frozenset(self._structure.bound_to([name])) for name in names]
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
        for name in self._structure.bound_to(names):
            keep[self._structure.group(name).slice] = True
        return keep


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; what modules merely remember of their last forward pass (attention maps) is detached."""
    remembered = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for leaf in pytree.tree_leaves(vars(module))
        if isinstance(leaf, torch.Tensor) and not leaf.is_leaf
    }
    return copy.deepcopy(model, remembered)


def _reveal(model: nn.Module) -> None:
    """Gives parameters and running statistics that are all one number, or zero, random positive values."""
    generator = torch.Generator().manual_seed(0)
    statistics = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for tensor in (module.running_mean, module.running_var)
    }
    with torch.no_grad():
        for tensor in named_tensors(model)[0].values():
            chosen = isinstance(tensor, nn.Parameter) or id(tensor) in statistics
            if not chosen or not tensor.is_floating_point() or not tensor.numel():
                continue
            first = tensor.reshape(-1)[0]
            if bool((tensor == first).all()) and (tensor.numel() > 1 or first == 0):
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(noise.to(tensor.device), alpha=0.5)


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative; infinite for other shapes, or where one is not finite and the other is not the same."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not (actual.is_complex() or actual.is_floating_point()):
        actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if not same[~finite].all():
        return float("inf")
    worst = (actual - expected)[finite].abs().max().nan_to_num(torch.inf)
    return float(worst / expected[finite].abs().max().clamp_min(_SMALL))


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(cast, inputs)  # type: ignore[no-any-return]


def _other_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other values of the same shape, so that agreement on the example is no accident."""
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        return leaf.flip(0) + noise * leaf.std() if leaf.numel() > 1 else leaf

    return pytree.tree_map(other, inputs)  # type: ignore[no-any-return]


def _check_is_described(model: nn.Module, structure: Structure) -> None:
    tensors, _ = named_tensors(model)
    for name, shape in structure.capture.shapes().items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, not {shape}"
            raise PlanError(
                f"the structure does not describe this model: {name!r} {found}. "
                "Analyse this model and make a plan for it."
            )


def _become(model: nn.Module, pruned: nn.Module) -> None:
    """``model`` and its submodules take over the state of ``pruned``'s, keeping their identity."""
    counterparts = dict(pruned.named_modules())
    for name, module in model.named_modules():
        state = vars(counterparts[name]).copy()
        state["_modules"] = vars(module)["_modules"]
        vars(module).update(state)
