"""Compares a pruned copy of a model with its masked twin and finds the groups at fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.call import call
from disparse_structured.errors import VerificationError
from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.structure import Structure
from disparse_structured.verification.beyond import Abilities, Checked
from disparse_structured.verification.copy import TOLERANCES, Comparison, VerificationCopy, mismatch_in
from disparse_structured.verification.entries import entry_mismatch
from disparse_structured.verification.twin import masked_twin

Cut = Callable[[nn.Module, Structure, torch.Tensor], nn.Module]
"""``cut(model, structure, keep)``: a copy of ``model`` that has only the units of ``keep``."""


@dataclass(frozen=True)
class Verification:
    """How far the pruned module is from the masked twin, per task, and in which precision."""

    dtype: str
    tolerance: float
    deviation: dict[str, float]
    empty: Mapping[str, str] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A group left unpruned because ``forward`` cannot follow, and what happened when it was cut."""

    group: str
    reason: str


@dataclass(frozen=True)
class _Verdict:
    """How far a pruned copy is from its twin, and why it fails, if it does."""

    comparison: Comparison
    mismatch: str | None
    beyond: tuple[str, ...] = ()


class Verifier:
    """Compares pruned copies of one model with their masked twins, in float64 where the model allows it."""

    def __init__(self, model: nn.Module, structure: Structure, cut: Cut) -> None:
        self._model, self._given, self._cut = model, structure, cut
        self._compare_with(VerificationCopy.of(model, structure))

    def _compare_with(self, reference: VerificationCopy) -> None:
        self._reference = reference
        self._verdicts: dict[bytes, _Verdict] = {}
        self._abilities: Abilities | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the comparison."""
        return self._reference.dtype

    @property
    def ran(self) -> frozenset[str]:
        """The unused modules of the structure that were seen to run, at other sizes for example."""
        return frozenset() if self._abilities is None else self._abilities.ran

    def deviation(self, keep: torch.Tensor) -> dict[str, float]:
        """Return each task's largest relative difference from the twin; raise what ``forward`` raises."""
        return dict(self._compared(keep)[0].deviation)

    def _compared(self, keep: torch.Tensor) -> tuple[Comparison, nn.Module]:
        reference = self._reference
        pruned = self._cut(reference.model, reference.structure, keep)
        twin = masked_twin(reference.structure, keep)
        tasks = reference.structure.task_objects

        def run(inputs: tuple[Any, ...]) -> dict[str, Sequence[torch.Tensor]]:
            output = call(pruned, pytree.tree_map(clone_if_tensor, inputs))
            return {task.name: task.tensors(output) for task in tasks}

        return reference.compare(run, lambda inputs: reference.run(inputs, twin)), pruned

    def mismatch(self, keep: torch.Tensor) -> str | None:
        """Say why the pruned module is not the twin; None if it is."""
        return self._verdict(keep).mismatch

    def _verdict(self, keep: torch.Tensor) -> _Verdict:
        """Compares each ``keep`` once, because the float64 runs are most of the cost."""
        key = keep.numpy().tobytes()
        if key not in self._verdicts:
            try:
                comparison, pruned = self._compared(keep)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self._verdicts[key] = _Verdict(Comparison({}, {}), reason)
            else:
                mismatch = mismatch_in(comparison.deviation, self.dtype)
                beyond = Checked(mismatch) if mismatch else self._beyond(pruned, keep)
                missing = beyond.missing or entry_mismatch(self._reference, keep, pruned)
                self._verdicts[key] = _Verdict(comparison, missing, beyond.names)
        return self._verdicts[key]

    def _beyond(self, pruned: nn.Module, keep: torch.Tensor) -> Checked:
        if self._abilities is None:
            self._abilities = Abilities.of(self._reference)
        return self._abilities.check(pruned, keep)

    def resolve(self, keep: torch.Tensor) -> tuple[torch.Tensor, Verification, tuple[Refusal, ...]]:
        """Restore the groups that ``forward`` cannot follow; return ``keep``, its verification and them."""
        refused: list[Refusal] = []
        if self.mismatch(keep) is not None:
            self._check_repeatable()
        while self.mismatch(keep) is not None:
            found = self._failing_groups(keep, self._changed(keep))
            if not found:
                raise VerificationError(
                    f"the pruned {type(self._model).__name__} is not the masked twin: "
                    f"{self.mismatch(keep)}. "
                    "No group was found at fault; your model is unchanged. Please report this model."
                )
            refused.extend(found)
            keep = self._with(keep, [refusal.group for refusal in found])
        verdict = self._verdict(keep)
        comparison = verdict.comparison
        verification = Verification(
            str(self.dtype),
            TOLERANCES[self.dtype],
            dict(comparison.deviation),
            comparison.empty,
            (
                *verdict.beyond,
                *(f"entry point {each.entry.name!r}" for each in self._given.entry_points),
            ),
        )
        return keep, verification, tuple(refused)

    def _check_repeatable(self) -> None:
        """Raises unless the model, with nothing removed, agrees with its own graph."""
        keep_all = torch.ones(self._given.units, dtype=torch.bool)
        reason = self.mismatch(keep_all)
        if reason is not None and self.dtype is torch.float64:
            self._compare_with(VerificationCopy.of(self._model, self._given, torch.float32))
            reason = self.mismatch(keep_all)
        if reason is not None:
            raise VerificationError(
                f"{type(self._model).__name__} does not agree with its own exported graph, with nothing "
                f"removed: {reason.rstrip('.')}. Its forward may draw random numbers in eval mode, count its "
                "calls or read something that changes between them; make it repeatable, or pass verify=False."
            )

    def _changed(self, keep: torch.Tensor) -> list[tuple[str, ...]]:
        """The groups that lose units; those bound by a count constraint can only be cut together."""
        names = [group.name for group in self._given.groups if not keep[group.slice].all()]
        bound = [frozenset(self._given.bound_to([name])) for name in names]
        return [tuple(name for name in names if name in each) for each in dict.fromkeys(bound)]

    def _failing_groups(self, keep: torch.Tensor, suspects: list[tuple[str, ...]]) -> list[Refusal]:
        """Groups of ``suspects`` that fail when cut: by bisection, cutting each half alone."""
        others = [name for names in self._changed(keep) if names not in suspects for name in names]
        reason = self.mismatch(self._with(keep, others))
        if reason is None:
            return []
        if len(suspects) == 1:
            return [Refusal(name, reason) for name in suspects[0]]
        half = len(suspects) // 2
        found = self._failing_groups(keep, suspects[:half]) + self._failing_groups(keep, suspects[half:])
        return found or [Refusal(name, reason) for names in suspects[half:] for name in names]

    def _with(self, keep: torch.Tensor, names: list[str]) -> torch.Tensor:
        """``keep`` with the named groups, and those bound to them by a count constraint, left whole."""
        keep = keep.clone()
        for name in self._given.bound_to(names):
            keep[self._given.group(name).slice] = True
        return keep
