"""Pruning during training: units are removed and regrown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from disparse_structured.checks import check_counts, check_shares
from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.arbiters import Unanimous
from disparse_structured.decision.budget import Budget, named
from disparse_structured.decision.deciding import smallest
from disparse_structured.errors import OptionError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.naming import rule_name
from disparse_structured.pipeline import DiSparse
from disparse_structured.regimes.masked import MaskedRegime
from disparse_structured.regimes.scorings import DecisionSettings, check_votes
from disparse_structured.scoring import Criterion
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task

_VOTES = DiSparse()


class Dynamic(MaskedRegime):
    """Prune and regrow: the network meets its budget from the first step to the last.

    Units are exchanged every ``every`` steps, until the share ``until`` of all steps. The exchanged share of
    the budget falls from ``fraction`` to zero along a cosine (RigL: Evci et al., ICML 2020). The arbiter
    removes active units on the tasks' votes. Inactive units, including those just removed, are regrown by
    their gates' gradients if any task votes for them (DiSparse, Sun et al., CVPR 2022). Both decisions use
    one scoring of the masked network. A regrown unit has the weights that it had when it was removed.

    Args:
        model: a freshly initialized (or trained) dense network. It is trained and masked in place.
        steps: how many optimizer steps training will take.
        every: steps between two exchanges.
        fraction: share of the budget's cost that the first exchange moves, in (0, 1).
        grow: the criterion for regrowing, if not the method's; it takes a second scoring.
        until: share of ``steps`` after which the mask is fixed, in (0, 1].
        batches: how many batches of ``data`` one exchange reads; 1 as in RigL.
        first_batches: how many the first decision reads; it cannot build on an earlier one.
        example_inputs, tasks, data, budget, method, to_inputs, seed, entry_points, batched: as in
            :class:`disparse_structured.regimes.Pretrained`.

    Raises:
        BudgetError: the budget cannot be met; ``model`` is unchanged.
        OptionError: a number is out of its range, or ``method`` is not DiSparse.
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
        every: int = 100,
        fraction: float = 0.3,
        until: float = 0.75,
        method: DiSparse = _VOTES,
        grow: Criterion | None = None,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = 1,
        first_batches: int | None = 16,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        check_counts(steps=steps, every=every)
        check_shares(fraction=fraction, until=until)
        if not 0 < fraction < 1 or not until:
            raise OptionError(
                f"fraction={fraction}, until={until}: fraction must be between 0 and 1, and until above 0."
            )
        check_votes(method)
        structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)
        super().__init__(
            model,
            DecisionSettings(structure, data, named(budget, model), method, None, to_inputs, seed, batches),
        )
        self.every, self.fraction, self.last = every, fraction, until * steps
        self.method, self.grow = method, grow
        saliency = self.score(batches=first_batches)
        with self.explaining():
            decision = self.settings.vote(saliency.scores)
        self.adopt(decision, saliency)

    @property
    def schedule(self) -> str:
        """See :class:`MaskedRegime`."""
        grown = "" if self.grow is None else f", grown by {rule_name(self.grow)}"
        return f"every {self.every} steps until {self.last:g}, fraction {self.fraction}{grown}"

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Enforces the mask, and exchanges units when due."""
        self.masks.enforce()
        self.steps_taken += 1
        if self.steps_taken % self.every == 0 and self.steps_taken < self.last:
            self._exchange(optimizer)

    @property
    def moving(self) -> float:
        """The share of the budget that an exchange would move now."""
        return self.fraction / 2 * (1 + math.cos(math.pi * min(self.steps_taken / self.last, 1.0)))

    def _exchange(self, optimizer: torch.optim.Optimizer) -> None:
        settings = self.settings
        least = settings.cost(smallest(settings.structure, settings.budget)) / settings.dense
        # The share may have been rounded down; the next float up allows the cost that it came from.
        lower = max(settings.share * (1 - self.moving), math.nextafter(least, 1.0))
        if lower >= settings.share:
            return
        saliency = self.score()
        dropped = settings.vote(saliency.scores.masked_fill(~self.keep, 0.0), settings.within(lower))
        survivors = self.keep & dropped.keep
        if self.grow is not None:
            saliency = self.score(method=replace(self.method, criterion=self.grow))
        # Unanimity in reverse: a unit remains removed only if no task votes to regrow it.
        regrowing = replace(settings, method=replace(self.method, arbiter=Unanimous()))
        self.adopt(regrowing.vote(saliency.scores, stay=survivors), saliency, optimizer)
