"""Pruned once, before training: the network that is trained is the small one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from disparse_structured.data.batches import Inputs
from disparse_structured.decision.arbiters import Arbiter
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.costs import distinct
from disparse_structured.decision.deciding import DEFAULT_ARBITER, DEFAULT_RANKING
from disparse_structured.decision.plan import Plan
from disparse_structured.decision.rankings import Ranking
from disparse_structured.errors import LoadError
from disparse_structured.pipeline import Pruned, report_on
from disparse_structured.regimes.panel import DecisionSettings
from disparse_structured.regimes.regime import Regime
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import SNIP, Fisher
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task


class _Physical(Regime):
    criterion: ClassVar[Criterion]
    """By what units are scored unless the caller says otherwise."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task],
        data: Iterable[Any],
        *,
        budget: Budget,
        criterion: Criterion | None = None,
        arbiter: Arbiter = DEFAULT_ARBITER,
        ranking: Ranking = DEFAULT_RANKING,
        inputs: Inputs | None = None,
        seed: int = 0,
        batches: int | None = None,
    ) -> None:
        self.structure = analyse(model, example_inputs, tasks)
        criterion = criterion or self.criterion
        panel = DecisionSettings(
            self.structure, data, budget, criterion, arbiter, ranking, inputs, seed, batches
        )
        saliency = panel.score(model)
        operation = apply(model, panel.plan(panel.decide(saliency.scores)), self.structure)
        report = report_on(self.structure, saliency, operation, costs=distinct([budget.of]))
        self._pruned = Pruned(operation.model, operation.plan, report)
        self.model = operation.model

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is left to decide."""

    def finish(self) -> Pruned:
        """:attr:`model` as it is now, with the plan that made it."""
        return self._pruned

    def state_dict(self) -> dict[str, Any]:
        """The plan."""
        return {"plan": self._pruned.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that this regime came to the same plan; raises :class:`LoadError` if not."""
        # What goes counts, not the versions of packages that a plan names too.
        saved = Plan.from_json(state["plan"]).groups if "plan" in state else None
        if saved != self._pruned.plan.groups:
            raise LoadError(
                "the saved run trained the network of another plan. Construct the regime from the same "
                "model, weights, data, budget and seed as then, or start anew."
            )


class Pretrained(_Physical):
    """One shot on a trained network; what follows is fine-tuning.

    Args:
        model: the trained dense network; it is left as it is.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: name, output and optionally loss of each task.
        data: batches for the saliency; ``batches`` limits how many are read.
        budget: what the result may cost.
        criterion, arbiter, ranking, inputs, seed: as in :func:`disparse_structured.prune`.

    Raises:
        DisparseError: as :func:`disparse_structured.prune` does; ``model`` is unchanged.
    """

    criterion = Fisher()


class Static(_Physical):
    """Pruning at initialisation: votes on connection sensitivity, then training of the small network.

    The criterion is SNIP's (Lee et al., ICLR 2019) on gates of units, per task, as DiSparse (Sun et al.,
    CVPR 2022) prunes at initialisation. Arguments are those of :class:`Pretrained`; ``model`` is a freshly
    initialised network.
    """

    criterion = SNIP()
