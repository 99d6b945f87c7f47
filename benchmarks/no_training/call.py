"""How long the whole call takes on a large network: a three-headed ResNet-50, 64 images of 224×224."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from benchmarks.no_training.ours import pruned
from disparse_structured.adapters.timm import DenseHead, Head, LinearHead, MultiTask, multitask
from disparse_structured.pipeline import method
from disparse_structured.refit import refit
from disparse_structured.scoring.damage_curves import measure_damage_curves
from disparse_structured.structure import analyse
from disparse_structured.surgery.module import apply

BACKBONE, IMAGES, SIDE, MACS = "resnet50", 64, 224, 0.6
WIDTH = 64


@dataclass(frozen=True)
class Stage:
    """The time of one function.

    Args:
        function: what is timed.
        below: the file that has to be among the callers; None if any callers count.
    """

    function: Callable[..., Any]
    below: str | None = None

    def holds(self, frame: FrameType) -> bool:
        """Whether ``frame`` is a call of this stage."""
        if frame.f_code is not inspect.unwrap(self.function).__code__:
            return False
        return self.below is None or any(each.f_code.co_filename == self.below for each in _callers(frame))


_STAGES: Mapping[str, Stage] = {
    "structure": Stage(analyse),
    "curves": Stage(measure_damage_curves),
    "refit between rounds": Stage(refit, method.__file__),
    "refit": Stage(refit),
    "cutting and verification": Stage(apply),
}
"""A call belongs to the first stage that holds it."""


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
    clock = _Clock()
    started = time.perf_counter()
    sys.setprofile(clock)
    try:
        pruned(model, inputs, model.tasks(), macs, samples=len(inputs))
    finally:
        sys.setprofile(None)
    whole = time.perf_counter() - started
    return {"whole call": whole, **clock.spent, "rest": max(0.0, whole - sum(clock.spent.values()))}


class _Clock:
    """A profile function that adds up the seconds of every stage."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(_STAGES, 0.0)
        self._codes = {inspect.unwrap(stage.function).__code__ for stage in _STAGES.values()}
        self._running: FrameType | None = None
        self._stage = ""
        self._started = 0.0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._running is None and frame.f_code in self._codes:
            self._stage = next(name for name, stage in _STAGES.items() if stage.holds(frame))
            self._running, self._started = frame, time.perf_counter()
        elif event == "return" and frame is self._running:
            self.spent[self._stage] += time.perf_counter() - self._started
            self._running = None


def _callers(frame: FrameType) -> Iterator[FrameType]:
    caller = frame.f_back
    while caller is not None:
        yield caller
        caller = caller.f_back
