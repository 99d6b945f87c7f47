"""Pruning once, before training: the pruned network is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.budget import Budget, named
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import LoadError
from disparse_structured.graph.entries import EntryPoints
from disparse_structured.pipeline import Data, Decided, DiSparse, Method, Problem, PruningResult
from disparse_structured.pipeline.options import check_method
from disparse_structured.regimes.processes import on_rank_zero
from disparse_structured.regimes.reading import undisturbed
from disparse_structured.regimes.regime import Regime
from disparse_structured.scoring.criteria import SNIP
from disparse_structured.structure import analyse
from disparse_structured.surgery import apply
from disparse_structured.tasks import Task

_VOTES: Method = DiSparse()
_SENSITIVITY: Method = DiSparse(SNIP())


class _Physical(Regime):
    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task | str],
        data: Iterable[Any],
        *,
        budget: Budget,
        method: Method,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        check_method(method)
        if isinstance(data, Iterator):  # a method may read it more than once
            data = list(itertools.islice(data, batches))
        self.structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)

        def decided() -> Decided:
            with undisturbed(data, seed):
                return method.decide(
                    Problem(
                        model,
                        self.structure,
                        data,
                        lambda: (
                            Data.of(
                                model, data, to_inputs, seed=seed, marked=self.structure.marked
                            ).calibration
                        ),
                        named(budget, model),
                        to_inputs,
                        batches,
                        seed,
                    )
                )

        decision, saliency = on_rank_zero(decided)
        plan = decision.plan(
            self.structure, method=type(method).__name__, criterion=saliency.criterion, seed=seed
        )
        applied = apply(model, plan, self.structure)
        self._pruned = PruningResult.of(self.structure, saliency, applied, costs=[budget.of])
        self.model = applied.model

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Does nothing: everything is decided."""

    def finish(self) -> PruningResult:
        """:attr:`model` as it is now, with the plan that made it."""
        return self._pruned

    def state_dict(self) -> dict[str, Any]:
        """The plan."""
        return {"plan": self._pruned.plan.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that this regime made the same plan; raises :class:`LoadError` if not."""
        # Compares what is removed, not the package versions that a plan also records.
        saved = Plan.from_json(state["plan"]).groups if "plan" in state else None
        if saved != self._pruned.plan.groups:
            raise LoadError(
                "the saved run trained the network of another plan. Construct the regime from the same "
                "model, weights, data, budget and seed as before, or start a new run."
            )


class Pretrained(_Physical):
    """One-shot pruning of a trained network, to be followed by fine-tuning.

    Args:
        model: the trained dense network; it is not changed.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: name, output and optionally loss of each task.
        data: batches to score on; ``batches`` limits how many are read.
        budget: what the result may cost.
        method: decides which units are removed; any method of :func:`disparse_structured.prune`.
        to_inputs, seed: as in :func:`disparse_structured.prune`.
        entry_points, batched: as in :func:`disparse_structured.analyse`.

    Raises:
        DisparseError: as :func:`disparse_structured.prune` does; ``model`` is unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task | str],
        data: Iterable[Any],
        *,
        budget: Budget,
        method: Method = _VOTES,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            model, example_inputs, tasks, data,
            budget=budget, method=method, to_inputs=to_inputs, seed=seed, batches=batches,
            entry_points=entry_points, batched=batched,
        )  # fmt: skip


class Static(_Physical):
    """Pruning at initialization: votes on connection sensitivity, then training of the small network.

    The default criterion is SNIP's (Lee et al., ICLR 2019) on gates of units, per task, as DiSparse (Sun et
    al., CVPR 2022) prunes at initialization. Arguments are those of :class:`Pretrained`; ``model`` is a
    freshly initialized network.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | torch.Tensor,
        tasks: Sequence[Task | str],
        data: Iterable[Any],
        *,
        budget: Budget,
        method: Method = _SENSITIVITY,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            model, example_inputs, tasks, data,
            budget=budget, method=method, to_inputs=to_inputs, seed=seed, batches=batches,
            entry_points=entry_points, batched=batched,
        )  # fmt: skip
