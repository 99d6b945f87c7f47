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
from disparse_structured.graph.named_tensors import detached_tensors
from disparse_structured.pipeline import DiSparse, Method, PruningResult
from disparse_structured.pipeline.options import check_method, check_refit
from disparse_structured.pipeline.refitting import Execution
from disparse_structured.refit import LeastSquares, RefitMethod
from disparse_structured.regimes.processes import on_rank_zero
from disparse_structured.regimes.reading import undisturbed
from disparse_structured.regimes.regime import Regime
from disparse_structured.regimes.scorings import COMPENSATED, problem_of, write
from disparse_structured.report.refit import RefitFacts
from disparse_structured.scoring import Saliency
from disparse_structured.scoring.criteria import SNIP
from disparse_structured.structure import analyse
from disparse_structured.surgery import Applied, apply
from disparse_structured.tasks import Task

_SENSITIVITY: Method = DiSparse(SNIP())
_LEAST_SQUARES: RefitMethod = LeastSquares()


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
        refit: RefitMethod | None,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        check_method(method)
        check_refit(refit)
        if isinstance(data, Iterator):  # it is read more than once
            data = list(itertools.islice(data, batches))
        structure = analyse(model, example_inputs, tasks, entry_points=entry_points, batched=batched)
        here: Applied | None = None

        def decided() -> tuple[Saliency, Plan, RefitFacts | None, dict[str, torch.Tensor]]:
            nonlocal here
            with undisturbed(data, seed):
                problem = problem_of(model, structure, data, named(budget, model), to_inputs, batches, seed)
                decision, saliency = method.decide(problem)
                plan = decision.plan(
                    structure, method=type(method).__name__, criterion=saliency.criterion, seed=seed
                )
                facts = None
                if refit is None:
                    here = apply(model, plan, structure)
                else:
                    execute = Execution(model, structure, refit, problem.calibration, True, False)
                    outcome = execute(plan)
                    here, facts = outcome.applied, outcome.refit
                return saliency, here.plan, facts, detached_tensors(here.model)

        saliency, plan, facts, weights = on_rank_zero(decided)
        if here is None:  # another process decided
            here = apply(model, plan, structure)
            write(here.model, weights)
        self.structure = structure
        self._pruned = PruningResult.of(structure, saliency, here, refit=facts, costs=[budget.of])
        self.model = here.model

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

    As :func:`disparse_structured.prune` by default: units are chosen by the damage that is left after
    compensation, and the remaining weights are refit before the first step.

    Args:
        model: the trained dense network; it is not changed.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: name, output and optionally loss of each task.
        data: batches to score and refit on; ``batches`` limits how many are read.
        budget: what the result may cost.
        method: decides which units are removed; any method of :func:`disparse_structured.prune`.
        refit: how the remaining weights compensate for what was removed; None leaves them unchanged.
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
        method: Method = COMPENSATED,
        refit: RefitMethod | None = _LEAST_SQUARES,
        to_inputs: ToInputs | None = None,
        seed: int = 0,
        batches: int | None = None,
        entry_points: EntryPoints | None = None,
        batched: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            model, example_inputs, tasks, data,
            budget=budget, method=method, refit=refit, to_inputs=to_inputs, seed=seed, batches=batches,
            entry_points=entry_points, batched=batched,
        )  # fmt: skip


class Static(_Physical):
    """Pruning at initialization: votes on connection sensitivity, then training of the small network.

    The default criterion is SNIP's (Lee et al., ICLR 2019) on gates of units, per task, as DiSparse (Sun et
    al., CVPR 2022) prunes at initialization. Arguments are those of :class:`Pretrained`; ``model`` is a
    freshly initialized network, and there is nothing to refit.
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
            budget=budget, method=method, refit=None, to_inputs=to_inputs, seed=seed, batches=batches,
            entry_points=entry_points, batched=batched,
        )  # fmt: skip
