"""Pruning early in training, once every task keeps voting for the same units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.checks import check_counts, check_shares
from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.budget import Budget, named
from disparse_structured.errors import OptionError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.pipeline import DiSparse, PruningResult, Repeatable
from disparse_structured.regimes.masked import MaskedRegime
from disparse_structured.regimes.scorings import DecisionSettings, check_repeatable
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task

_VOTES: Repeatable = DiSparse()


class Early(MaskedRegime):
    """Prunes once, early in training: as soon as the votes of every task have settled.

    The dense network is trained. It is scored at the start and after every ``every`` steps, and each task
    votes at the ratio that meets the budget. Once every task's kept units and those of its votes before
    overlap by ``agreement`` (intersection over union), the arbiter decides, and only what it keeps is
    trained on. Early-bird tickets (You et al., ICLR 2020) compare successive masks of one network in the
    same way; here every task has a mask of its own, and the slowest task sets the time.

    Args:
        model: a freshly initialized dense network. It is trained and masked in place.
        steps: how many optimizer steps training will take.
        every: steps between two votes, such as those of an epoch.
        agreement: the overlap that every task's votes must have with those before, in (0, 1].
        until: share of ``steps`` after which it is pruned even if votes have not settled, in (0, 1].
        example_inputs, tasks, data, budget, method, to_inputs, seed, batches, entry_points, batched: as in
            :class:`disparse_structured.regimes.Pretrained`.

    Attributes:
        agreed: the least overlap of a task's last two votes; 0 before there are two.

    Raises:
        BudgetError: the budget cannot be met; ``model`` is unchanged.
        OptionError: a number is out of its range, or ``method`` cannot decide more than once.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task | str],
        data: Iterable[Any],
        *,
        budget: Budget,
        steps: int,
        every: int,
        agreement: float = 0.5,
        until: float = 0.3,
        method: Repeatable = _VOTES,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        check_counts(steps=steps, every=every)
        check_shares(agreement=agreement, until=until)
        if not agreement or not until:
            raise OptionError(f"agreement={agreement}, until={until}: both must be above 0.")
        check_repeatable(method)
        structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)
        super().__init__(
            model,
            DecisionSettings(structure, data, named(budget, model), method, None, to_inputs, seed, batches),
        )
        self.every, self.agreement, self.latest = every, agreement, until * steps
        self.agreed = 0.0
        saliency = self.score()
        with self.explaining():
            self._last = self.settings.vote(saliency.scores), saliency

    @property
    def pruned(self) -> bool:
        """Whether the network has been pruned."""
        return not bool(self.keep.all())

    @property
    def schedule(self) -> str:
        """See :class:`MaskedRegime`."""
        return f"every {self.every} steps until {self.latest:g}, agreement {self.agreement}"

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Enforces the mask; before there is one, lets the tasks vote every ``every`` steps."""
        self.masks.enforce()
        self.steps_taken += 1
        if self.pruned:
            return
        late = self.steps_taken >= self.latest
        if self.steps_taken % self.every == 0 or late:
            self._vote(optimizer, prune=late)

    def finish(self) -> PruningResult:
        """See :class:`Regime`; a network that has not been pruned is pruned now."""
        if not self.pruned:
            self._vote(None, prune=True)
        return super().finish()

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Regime`."""
        return {**super().state_dict(), "agreed": self.agreed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`MaskedRegime`."""
        super().load_state_dict(state)
        self.agreed = state["agreed"]

    def _vote(self, optimizer: torch.optim.Optimizer | None, *, prune: bool) -> None:
        assert self._last is not None  # the constructor votes
        before = self._last[0].votes.keep
        saliency = self.score()
        decision = self.settings.vote(saliency.scores)
        self._last = decision, saliency
        self.agreed = least_overlap(before, decision.votes.keep, self.structure.reach)
        if prune or self.agreed >= self.agreement:
            self.adopt(decision, saliency, optimizer)


def least_overlap(one: torch.Tensor, other: torch.Tensor, reach: torch.Tensor) -> float:
    """The smallest intersection over union, over the tasks, of two kept sets; all bool ``[tasks, units]``.

    Only units in ``reach`` count; a task that keeps none of them either time overlaps fully.
    """
    common, union = (one & other & reach).sum(dim=1), ((one | other) & reach).sum(dim=1)
    shares = torch.where(union > 0, common / union.clamp(min=1), 1.0)
    return float(shares.min()) if len(shares) else 1.0
