"""A latency budget: decided by prediction, exported, measured, and decided again until the time is met."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from disparse_structured.checks import percentage
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.costs import CostModel
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import BudgetError
from disparse_structured.latency import Latency, LatencyModel, Runtime
from disparse_structured.latency.setting import WARM
from disparse_structured.pipeline.method import Problem
from disparse_structured.pipeline.refitting import Outcome
from disparse_structured.progress import step
from disparse_structured.report.facts import LatencyFact, LatencyFacts
from disparse_structured.report.machine import processor
from disparse_structured.report.speed import SpeedFacts, StairFacts
from disparse_structured.scoring import Saliency
from disparse_structured.structure import Structure

EXPORTS = 4
"""How many files are measured before a time counts as out of reach."""

WITHIN = 0.05
"""A time counts as met within this share of it."""

_ROUNDS, _SECONDS = (40, 400), 4.0
"""How often, and for how long, the files are run in turn."""

_LEAST, _MOST = 0.02, 0.98
EARLY = 0.1
"""The quantile of the times that is compared: whatever else runs only ever adds to a time."""

_STAIRS, _WIDTHS = 8, 128
"""For how many groups the report holds the time against the width, and at how many widths."""

Attempt = Callable[[Problem], tuple[Saliency, Outcome]]


@dataclass(frozen=True)
class Counted:
    """A latency that was decided by, with what was measured in the end, milliseconds."""

    latency: Latency
    ms: float

    @property
    def name(self) -> str:
        """``"latency"``."""
        return self.latency.name

    @property
    def unit(self) -> str:
        """``"ms"``."""
        return self.latency.unit

    def on(self, structure: Structure, /) -> CostModel:
        """The prediction."""
        return self.latency.on(structure)

    def count(self, model: nn.Module, example_inputs: tuple[Any, ...], /) -> float:
        """What was measured."""
        return self.ms


@dataclass(frozen=True, eq=False)
class _Try:
    """A pruned network, and its time."""

    saliency: Saliency
    outcome: Outcome
    facts: SpeedFacts

    @property
    def missed(self) -> float:
        """How far from the time that was asked for, as a share of it; below 0 it is faster."""
        return self.facts.measured / self.facts.asked - 1


def asked_latency(limit: object) -> tuple[float, bool]:
    """The number in ``latency=limit``, and whether it is in milliseconds rather than a share of dense.

    >>> asked_latency("12.5 ms"), asked_latency(0.5), asked_latency("50%")
    ((12.5, True), (0.5, False), (0.5, False))

    Raises:
        BudgetError: it is neither a share in (0, 1) nor a number of milliseconds.
    """
    text = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*ms\s*", limit) if isinstance(limit, str) else None
    share = percentage(limit)
    number = math.nan
    if text:
        number = float(text[1])
    elif isinstance(share, int | float) and not isinstance(share, bool):
        number = float(share)
    if not 0 < number < math.inf or (not text and number == 1):
        raise BudgetError(
            f"latency={limit!r} is neither a share nor a time. Give a share of the dense time, such as "
            'latency=0.5, or milliseconds, such as latency="12 ms".'
        )
    return number, bool(text) or number > 1


def latency_budget(limit: object, latency: Latency, structure: Structure, **widths: Any) -> Budget:
    """The budget of ``latency=limit``, with further options about ``widths``.

    Raises:
        BudgetError: ``limit`` is neither a share nor a time, or not below the dense network's.
    """
    number, absolute = asked_latency(limit)
    dense = latency.on(structure).dense
    if absolute and number >= dense:
        raise BudgetError(
            f"latency={number:g} ms is not below the dense model's {dense:.3g} ms, so there is nothing to "
            "prune. Give a shorter time, or a share such as 0.5."
        )
    # Where widths are fast has been measured, so there is nothing to round.
    steps = {} if widths.get("round_to", "auto") != "auto" else {"round_to": 1}
    return Budget(number / dense if absolute else number, of=latency, **{**widths, **steps})


def in_time(
    latency: Latency, problem: Problem, attempt: Attempt
) -> tuple[Saliency, Outcome, SpeedFacts, Counted]:
    """The pruned network whose measured time is that of ``problem.budget``, within :data:`WITHIN`.

    After each measurement, the next prediction is aimed as much lower or higher as this one missed. Scores
    are computed once. Where steps of the runtime make it impossible to come close, the network that is
    slowest within the time is taken.

    Raises:
        BudgetError: no network in up to :data:`EXPORTS` meets the time; says how far it can go.
    """
    structure, cost = problem.structure, latency.on(problem.structure)
    asked = aim = problem.budget.target(cost.dense) / cost.dense
    problem = dataclasses.replace(problem, known={})
    tries: list[_Try] = []
    while len(tries) < EXPORTS:
        try:
            budget = dataclasses.replace(problem.budget, limit=aim)
            saliency, outcome = attempt(dataclasses.replace(problem, budget=budget))
        except BudgetError as error:
            if tries and min(each.missed for each in tries) > WITHIN:
                raise BudgetError(_out_of_reach(problem, tries)) from error
            if not tries:
                raise
            break
        with step("exporting and measuring", problem.progress):
            facts = _measured(latency, structure, outcome, cost, asked, len(tries) + 1)
        tries.append(_Try(saliency, outcome, facts))
        if abs(tries[-1].missed) <= WITHIN:
            break
        following = float(np.clip(facts.predicted * asked / facts.measured, _LEAST, _MOST))
        if math.isclose(following, aim, rel_tol=1e-3):
            break
        aim = following
    met = [each for each in tries if each.missed <= WITHIN]
    if not met:
        raise BudgetError(_out_of_reach(problem, tries))
    best = min(met, key=lambda each: abs(each.missed))
    stairs = _stairs(cost, structure, best.outcome.applied.plan)
    facts = dataclasses.replace(best.facts, exports=len(tries), stairs=stairs)
    return best.saliency, best.outcome, facts, Counted(latency, facts.measured * cost.dense)


def _measured(
    latency: Latency, structure: Structure, outcome: Outcome, cost: CostModel, asked: float, number: int
) -> SpeedFacts:
    keep: torch.Tensor = outcome.applied.plan.keep(structure)
    macs = structure.cost.macs
    dense, _ = latency.dense_file(structure)
    with tempfile.TemporaryDirectory() as folder:
        pruned = Path(folder, "pruned.onnx")
        inputs = latency.export(outcome.applied.model, structure, pruned)
        times = timed_in_turn(latency.runtime, [dense, pruned], inputs)
    low, median = np.quantile(times, EARLY, axis=0), np.median(times, axis=0)
    lower, upper = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.75])
    return SpeedFacts(
        asked=asked,
        predicted=cost.total(keep) / cost.dense,
        measured=float(low[1] / low[0]),
        lower=float(lower),
        upper=float(upper),
        dense_ms=float(median[0]),
        pruned_ms=float(median[1]),
        macs=macs.total(keep) / macs.dense,
        exports=number,
        rounds=len(times),
        runtime=latency.runtime.facts,
    )


def _stairs(cost: LatencyModel, structure: Structure, plan: Plan) -> tuple[StairFacts, ...]:
    """What each group's removals save, and for those that save most, the time against the width."""
    keep = plan.keep(structure)
    pruned, found = float(cost.predict(keep)), []
    for name in plan.removals:
        group = structure.group(name)
        whole = keep.clone()
        whole[group.slice] = True
        found.append((float(cost.predict(whole)) - pruned, group))
    found.sort(key=lambda pair: -pair[0])
    stairs = [StairFacts(group.name, won) for won, group in found]
    for place, (won, group) in enumerate(found[:_STAIRS]):
        widths = np.unique(np.linspace(1, group.units, min(group.units, _WIDTHS)).round().astype(int))
        times, other = [], keep.clone()
        for width in widths:
            other[group.slice] = torch.arange(group.units) < width
            times.append(float(cost.predict(other)))
        stairs[place] = StairFacts(group.name, won, tuple(widths.tolist()), tuple(times))
    return tuple(stairs)


def timed_in_turn(runtime: Runtime, paths: list[Path], inputs: tuple[Any, ...]) -> np.ndarray:
    """Milliseconds, float64 ``[rounds, files]``, of files that run in turn for a few seconds."""
    first = runtime.time_files(paths, inputs, rounds=3)
    rounds = int(np.clip(_SECONDS * 1e3 / first.sum(axis=1).min(), *_ROUNDS))
    return runtime.time_files(paths, inputs, rounds=rounds)


def latencies(runtime: Runtime, files: Mapping[str, Path], inputs: tuple[torch.Tensor, ...]) -> LatencyFacts:
    """The times of ``files``, by name, that run in turn for a few seconds; the first one is the reference."""
    times = timed_in_turn(runtime, list(files.values()), inputs)
    facts = runtime.facts
    return LatencyFacts(
        reference=next(iter(files)),
        models=LatencyFact.of(list(files), times),
        input_shapes=tuple(tuple(tensor.shape) for tensor in inputs),
        threads=int(facts["threads"]),
        rounds=len(times),
        warmup=WARM,
        cpu=processor(),
        runtime=facts["runtime"],
    )


def _out_of_reach(problem: Problem, tries: list[_Try]) -> str:
    best = min(tries, key=lambda each: each.missed).facts
    busy = " The times differ a lot: the machine is busy with other things." if best.busy else ""
    possible = best.measured * 1.02
    remedy = (
        f"Ask for at least {possible:.2g}, or loosen what limits the widths."
        if possible < 0.995
        else "Pruning hardly makes this network faster here: limit its MACs or parameters instead."
    )
    return (
        f"{problem.budget} ({best.asked:.1%} of dense) is not met by any of {len(tries)} exported networks. "
        f"The fastest takes {best.measured:.1%} of the dense time ({best.pruned_ms:.3g} ms), where "
        f"{best.predicted:.1%} was predicted.{busy} {remedy}"
    )
