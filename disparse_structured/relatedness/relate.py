"""How related the tasks are, from models and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from torch import nn

from disparse_structured.data.batches import ToInputs
from disparse_structured.decision.rankings import LayerRanking, Ranking
from disparse_structured.errors import OptionError, TaskError
from disparse_structured.relatedness.overlap import KeptSets, overlap, shared_layers
from disparse_structured.relatedness.published import RATIO
from disparse_structured.relatedness.result import Layer, Level, Relatedness, SeedRun
from disparse_structured.relatedness.units import UNIT_RATIO, unit_sets
from disparse_structured.relatedness.weights import weight_sets
from disparse_structured.scoring import Criterion
from disparse_structured.scoring.criteria import Fisher
from disparse_structured.structure import analyse
from disparse_structured.tasks import Task, check_tasks

_SENSITIVITY = "connection sensitivity |w dL/dw|"


def relate(
    model: nn.Module | Callable[[int], nn.Module],
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    data: Iterable[Any],
    *,
    level: Level = "weight",
    ratio: float | None = None,
    seeds: Sequence[int] = (0,),
    criterion: Criterion | None = None,
    ranking: Ranking | None = None,
    to_inputs: ToInputs | None = None,
    max_batches: int | None = None,
    batch_statistics: bool = False,
    moment: str = "",
) -> Relatedness:
    """How alike the kept sets of ``tasks`` are, by layer, in total and pairwise (DiSparse, CVPR 2022, §5).

    For relatedness before training, pass ``lambda seed: fresh(model, seed)`` as the model.

    Args:
        model: a module, or a function from a seed to one (all of one architecture). Never changed.
        example_inputs: the positional arguments of one forward pass, batch first.
        tasks: at least two.
        data: batches to score on, read once for each seed.
        level: ``"weight"``, as in the paper, or ``"unit"``, by the votes of structured pruning.
        ratio: the share of what it reaches that every task gives up; by default 0.922 of the weights, as
            in the paper, and 0.5 of the units.
        seeds: one run for each.
        criterion, ranking: at unit level only, how units are scored and layers compete: :func:`unit_sets`.
        to_inputs: from a batch to the tuple of ``forward``'s arguments, where the default cannot tell.
        max_batches: the most batches to read.
        batch_statistics: at weight level only: see :func:`weight_sets`.
        moment: kept in the result, for example ``"before training"``.

    Raises:
        TaskError: fewer than two tasks, tasks that share nothing, or a loss that cannot be used.
        OptionError: ``ratio`` is not between 0 and 1, there is no seed, or the level is unknown.
        BatchError, GradientError, CaptureError: as from :func:`disparse_structured.scoring.score`.
    """
    tasks = check_tasks(tasks)
    if len(tasks) < 2:
        raise TaskError(f"only task {tasks[0].name!r} was given. Relatedness needs at least two tasks.")
    if ratio is None:
        ratio = RATIO if level == "weight" else UNIT_RATIO
    if not 0 < ratio < 1 or not seeds or level not in get_args(Level):
        raise OptionError(
            f"ratio={ratio}, seeds={list(seeds)}, level={level!r}: pass a ratio between 0 and 1, at least "
            f"one seed, and one of the levels {get_args(Level)}."
        )

    def kept_sets(subject: nn.Module, seed: int) -> KeptSets:
        reading: dict[str, Any] = {
            "ratio": ratio,
            "to_inputs": to_inputs,
            "seed": seed,
            "max_batches": max_batches,
        }
        if level == "weight":
            return weight_sets(
                subject, example_inputs, tasks, data, batch_statistics=batch_statistics, **reading
            )
        structure = analyse(subject, example_inputs, tasks)
        return unit_sets(subject, structure, data, criterion=criterion, ranking=ranking, **reading)

    runs: list[SeedRun] = []
    layers: tuple[Layer, ...] = ()
    name = ""
    for seed in seeds:
        subject = model if isinstance(model, nn.Module) else model(seed)
        sets = kept_sets(subject, seed)
        runs.append(overlap(sets, seed))
        if layers and shared_layers(sets) != layers:
            raise TaskError(
                f"the model of seed {seed} shares other layers than that of seed {seeds[0]}. "
                "Pass models of one architecture."
            )
        layers, name = shared_layers(sets), type(subject).__name__
    units = f"{_said(criterion or Fisher())} and {_said(ranking or LayerRanking())}"
    return Relatedness(
        model=name,
        level=level,
        moment=moment,
        measure=_SENSITIVITY if level == "weight" else units,
        ratio=ratio,
        tasks=tuple(task.name for task in tasks),
        layers=layers,
        runs=tuple(runs),
    )


def _said(choice: object) -> str:
    return (
        repr(choice)
        if dataclasses.is_dataclass(choice)
        else getattr(choice, "__name__", type(choice).__name__)
    )
