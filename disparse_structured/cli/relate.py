"""``disparse relate``: how much the tasks' kept sets overlap, layer by layer, before and after training."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.text import Text
from torch import nn

from disparse_structured.cli import names, sources
from disparse_structured.cli.console import Outcome, Screen
from disparse_structured.cli.data import as_batches, first_inputs, load_data
from disparse_structured.files import write_text
from disparse_structured.graph.batching import with_batch
from disparse_structured.pipeline import EXAMPLE_SAMPLES
from disparse_structured.relatedness import (
    PUBLISHED,
    Level,
    Relatedness,
    draw_affinity,
    draw_layers,
    fresh,
    relate,
)
from disparse_structured.report import figures
from disparse_structured.report.schemas import document_text
from disparse_structured.tasks import Task

RESULT = "relatedness.json"
LEVELS: tuple[Level, ...] = get_args(Level)
_BEFORE, _AFTER = "before training", "after training"


@dataclass(frozen=True)
class _Subject:
    """The model as the factory builds it, trained copies of it, and what scoring needs."""

    model: nn.Module
    trained: Sequence[nn.Module]
    tasks: tuple[Task, ...]
    data: Any
    example: tuple[Any, ...]


def run(arguments: argparse.Namespace, screen: Screen) -> Outcome:
    """Relates the tasks at each level, before and after training; writes the result and its figures."""
    figures.require()
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with screen.step("building the model"):
        subject = _subject(arguments)
    levels = LEVELS if arguments.level == "both" else (arguments.level,)
    found = [result for level in levels for result in _results(subject, level, arguments, screen)]
    files = [*_drawn(found, folder), RESULT]
    document = _document(found)
    write_text(folder / RESULT, document_text(document) + "\n")
    written = Text(f"written to {folder}: {', '.join(files)}")
    return Outcome({"folder": str(folder), "files": files, **document}, [*found, written])


def _subject(arguments: argparse.Namespace) -> _Subject:
    model = sources.load_model(arguments.model)
    trained = [model] if arguments.trained else []
    for path in arguments.weights:
        trained.append(copy.deepcopy(model))
        sources.load_weights(trained[-1], path)
    data = as_batches(load_data(arguments.data), arguments.batches)
    example = first_inputs(model, data, EXAMPLE_SAMPLES, functools.partial(with_batch, model))
    return _Subject(model, trained, sources.load_tasks(arguments.tasks), data, example)


def _results(
    subject: _Subject, level: Level, arguments: argparse.Namespace, screen: Screen
) -> list[Relatedness]:
    """Before training one run per seed of the initial weights, after training one per weights file."""
    common: dict[str, Any] = {
        "example_inputs": subject.example,
        "tasks": subject.tasks,
        "data": subject.data,
        "level": level,
        "ratio": arguments.ratio,
        "criterion": names.criterion(arguments.criterion),
        "ranking": names.ranking(arguments.ranking),
    }
    # Weights are scored as published, with the batch's own statistics; units are scored in eval mode.
    settled = subject.data if level == "unit" else None
    moments: list[tuple[str, Callable[[int], nn.Module], int, bool]] = [
        (_BEFORE, lambda seed: fresh(subject.model, seed, settled), arguments.seeds, True)
    ]
    if subject.trained:
        moments.append((_AFTER, lambda seed: subject.trained[seed], len(subject.trained), False))
    found = []
    for moment, model, runs, batch_statistics in moments:
        with screen.step(f"relating {level}s {moment}"):
            found.append(
                relate(model, seeds=range(runs), batch_statistics=batch_statistics, moment=moment, **common)
            )
    return found


def _drawn(found: Sequence[Relatedness], folder: Path) -> list[str]:
    """Draws the layers per level and the affinities per level and moment; returns the files' names."""
    files = []
    for level in dict.fromkeys(result.level for result in found):
        own = [result for result in found if result.level == level]
        files.append(f"layers-{level}.png")
        draw_layers(folder / files[-1], own)
        for result in own:
            files.append(f"affinity-{level}-{result.moment.partition(' ')[0]}.png")
            draw_affinity(folder / files[-1], result)
    return files


def _document(found: Sequence[Relatedness]) -> dict[str, Any]:
    published = [
        dataclasses.asdict(each)
        | {"watershed": each.watershed, "kept": 0.078, "level": "weight", "moment": _BEFORE}
        for each in PUBLISHED
    ]
    return {"results": [_entry(result) for result in found], "published": published}


def _entry(result: Relatedness) -> dict[str, Any]:
    mark = result.watershed
    layers = zip(result.layers, result.iou, result.by_chance, strict=True)
    return {
        "relatedness": json.loads(result.to_json()),
        "total": _number(result.total),
        "chance": _number(result.chance),
        "layers": [
            {"name": layer.name, "size": layer.size, "iou": _number(value), "by_chance": _number(chance)}
            for layer, value, chance in layers
        ],
        "affinity": result.affinity,
        "correlation": result.correlation,
        "watershed": None if mark is None else dataclasses.asdict(mark),
        "dendrogram": [dataclasses.asdict(merge) for merge in result.dendrogram],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None
