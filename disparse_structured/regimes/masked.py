"""The base of regimes that decide more than once: the dense network trains with units masked."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from disparse_structured.data.modes import plain_modes
from disparse_structured.decision.deciding import Decision
from disparse_structured.decision.votes import Votes
from disparse_structured.errors import BatchError, BudgetError, LoadError
from disparse_structured.naming import rule_name
from disparse_structured.pipeline import PruningResult
from disparse_structured.regimes.regime import Regime
from disparse_structured.regimes.scorings import DecisionSettings, write
from disparse_structured.scoring import Saliency
from disparse_structured.surgery import apply
from disparse_structured.surgery.weight_masks import WeightMasks


class MaskedRegime(Regime):
    """Trains the user's own module in place: weights that read a masked unit are zero after every step.

    Groups that cannot be masked (``masks.held``) keep their width.
    """

    def __init__(self, model: nn.Module, settings: DecisionSettings) -> None:
        if isinstance(settings.data, Iterator):
            raise BatchError(
                f"the data is a {type(settings.data).__name__}, which can be read only once, and this regime "
                "reads it again whenever it decides. Pass a DataLoader or a list of batches."
            )
        self.model = model
        self.structure = settings.structure
        self.masks = WeightMasks(model, settings.structure)
        # Units that cannot be masked are left out of the vote.
        open_to_vote = replace(settings.structure, unclaimed=settings.structure.unclaimed | self.masks.held)
        self.settings = replace(settings, structure=open_to_vote)
        self.steps_taken = 0
        self._scorings = 0
        self._last: tuple[Decision, Saliency] | None = None

    def score(self, **otherwise: Any) -> Saliency:
        """The next scoring of the masked network, with ``otherwise`` replaced in the settings."""
        settings = replace(self.settings, **otherwise)
        with self.masks.revealed():
            found = settings.score(self.model, self._scorings, self.masks.keep)
        self._scorings += 1
        return found

    def adopt(
        self, decision: Decision, saliency: Saliency, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Makes ``decision`` the current mask; what is left is refit to what the network computed."""
        survivors = self.keep & decision.keep
        write(self.model, self.settings.compensated(self.model, self._scorings, survivors))
        self.masks.switch(decision.keep, optimizer)
        self._last = decision, saliency

    @property
    def keep(self) -> torch.Tensor:
        """Bool ``[units]``: the active units."""
        return self.masks.keep

    @plain_modes()
    def finish(self) -> PruningResult:
        """See :class:`Regime`."""
        assert self._last is not None  # the last stage has run
        decision, saliency = self._last
        self.masks.enforce()  # averaged weights may have been loaded since the last step
        applied = apply(self.model, self.settings.plan(decision), self.structure)
        # Units may have been regrown by another criterion; which one scored last does not survive a resume.
        saliency = replace(saliency, criterion=rule_name(self.settings.method.criterion))
        return PruningResult.of(self.structure, saliency, applied, costs=[self.settings.budget.of])

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Names the groups that this regime cannot prune when its budget cannot be met."""
        try:
            yield
        except BudgetError as error:
            held = sorted(self.masks.held)
            if not held:
                raise
            raise BudgetError(
                f"{error} {len(held)} groups ({', '.join(held[:3])}…) cannot be masked and keep their width "
                "in this regime: a normalization computes statistics over them. Pretrained() can prune them."
            ) from None

    @property
    @abc.abstractmethod
    def schedule(self) -> str:
        """When this regime decides, in words; a run resumes only with the same schedule."""

    def _described(self) -> str:
        settings, method = self.settings, self.settings.method
        rules = ", ".join(rule_name(rule) for rule in (method.criterion, method.arbiter, method.ranking))
        budget = ", ".join(f"{name}={value}" for name, value in settings.budget.facts() if value is not None)
        refit = f"refit by {rule_name(settings.refit)}" if settings.refit is not None else "no refit"
        reads = f"seed {settings.seed}; {settings.batches} batches"
        return f"{budget}; {type(method).__name__}, {rules}; {refit}; {reads}; {self.schedule}"

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Regime`."""
        decided: dict[str, Any] | None = None
        if self._last is not None:
            decision, saliency = self._last
            decided = {
                "votes": decision.votes.keep,
                "standing": decision.votes.standing,
                "ratio": decision.votes.ratio,
                "scores": saliency.scores,
                "batches": saliency.batches,
                "samples": saliency.samples,
                "labeled": list(saliency.labeled),
            }
        return {
            "steps_taken": self.steps_taken,
            "scorings": self._scorings,
            "masks": self.masks.state_dict(),
            "fingerprint": self.structure.fingerprint,
            "settings": self._described(),
            "decided": decided,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Regime`; raises :class:`LoadError` for the state of another model."""
        if state.get("fingerprint") != self.structure.fingerprint:
            raise LoadError(
                "the saved state belongs to another model (its channel groups differ), or another regime. "
                "Construct the regime from the model that the run was started with."
            )
        if state["settings"] != self._described():
            raise LoadError(
                f"the saved state belongs to a regime with other settings: {state['settings']}, not "
                f"{self._described()}. Construct it with those, or start a new run."
            )
        self.steps_taken, self._scorings = state["steps_taken"], state["scorings"]
        self.masks.load_state_dict(state["masks"])
        decided, settings = state["decided"], self.settings
        if decided is None:
            self._last = None
            return
        method = settings.method
        votes = Votes(decided["votes"].cpu(), decided["ratio"], decided["standing"].cpu())
        self._last = (
            Decision(
                self.masks.keep, votes, settings.budget, rule_name(method.arbiter), rule_name(method.ranking)
            ),
            Saliency(
                decided["scores"].cpu(),
                self.structure.tasks,
                rule_name(method.criterion),
                decided["batches"],
                decided["samples"],
                labeled=tuple(decided["labeled"]),
            ),
        )
