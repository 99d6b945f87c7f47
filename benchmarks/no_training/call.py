"""How long the whole call takes on a large network: a three-headed ResNet-50, 64 images of 224×224."""

from __future__ import annotations

import cProfile
import inspect
import pstats
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.no_training.ours import pruned
from disparse_structured.adapters.timm import DenseHead, Head, LinearHead, MultiTask, multitask
from disparse_structured.pipeline import method
from disparse_structured.refit import refit
from disparse_structured.scoring import score
from disparse_structured.scoring.damage_curves import measure_damage_curves
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply

BACKBONE, IMAGES, SIDE, MACS = "resnet50", 64, 224, 0.6
WIDTH = 64

Place = tuple[str, int, str]
"""File, line and name of a function, as the profiler has them."""


@dataclass(frozen=True)
class Stage:
    """The time of one function.

    Args:
        function: what is timed.
        called_in: the file whose calls count; None counts those of all files that no other stage names.
    """

    function: Callable[..., Any]
    called_in: str | None = None

    @property
    def place(self) -> Place:
        """Where the function is."""
        code = inspect.unwrap(self.function).__code__
        return code.co_filename, code.co_firstlineno, code.co_name


_STAGES: Mapping[str, Stage] = {
    "structure": Stage(analyse),
    "scores": Stage(score),
    "curves": Stage(measure_damage_curves),
    "refit between rounds": Stage(refit, method.__file__),
    "refit": Stage(refit),
    "cutting and verification": Stage(apply),
}


def network(backbone: str = BACKBONE, side: int = SIDE) -> MultiTask:
    """Segmentation, depth and a classification on a backbone with random weights, in eval mode."""
    heads: dict[str, Head] = {
        "seg": DenseHead(21, WIDTH, (-3, -2, -1)),
        "depth": DenseHead(1, WIDTH, (-3, -2, -1)),
        "scene": LinearHead(10),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return multitask(backbone, heads, image_size=side).eval()


def images(count: int = IMAGES, side: int = SIDE) -> Tensor:
    """Standard normal ``[count, 3, side, side]``."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def seconds(model: MultiTask, inputs: Tensor, macs: float = MACS) -> dict[str, float]:
    """Wall-clock seconds of one call as in the benchmark: in all, of each stage, and of the rest.

    What a stage calls counts for that stage only, even where it is the function of another stage.
    """
    profile = cProfile.Profile(subcalls=True, builtins=False)
    started = time.perf_counter()
    profile.runcall(pruned, model, inputs, model.tasks(), macs, samples=len(inputs))
    whole = time.perf_counter() - started
    stages = _spent(profile)
    return {"whole call": whole, **stages, "rest": max(0.0, whole - sum(stages.values()))}


def _spent(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of every stage, in calls that come from outside all stages."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # typeshed leaves it out
    spent = dict.fromkeys(_STAGES, 0.0)
    outside = _outside(stats)
    for name, stage in _STAGES.items():
        named = {other.called_in for other in _STAGES.values() if other.function is stage.function}
        for caller, (*_, cumulative) in _callers(stats, stage.place).items():
            file = caller[0] if caller[0] in named else None
            if caller in outside and file == stage.called_in:
                spent[name] += cumulative
    return spent


def _callers(stats: Mapping[Place, Any], place: Place) -> Mapping[Place, Any]:
    callers: Mapping[Place, Any] = stats[place][-1] if place in stats else {}
    return callers


def _outside(stats: Mapping[Place, Any]) -> set[Place]:
    """The functions that are reached from the profiled call without passing through a stage."""
    stages = {stage.place for stage in _STAGES.values()}
    called: dict[Place, list[Place]] = {}
    for place, (*_, callers) in stats.items():
        for caller in callers:
            called.setdefault(caller, []).append(place)
    waiting = [place for place, (*_, callers) in stats.items() if not callers]
    found: set[Place] = set()
    while waiting:
        place = waiting.pop()
        if place not in found and place not in stages:
            found.add(place)
            waiting += called.get(place, [])
    return found
