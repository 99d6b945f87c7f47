"""How long the whole call takes on a large network: a three-headed ResNet-50, 64 images of 224×224."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from disparse_structured.adapters.timm import DenseHead, Head, LinearHead, MultiTask, multitask
from disparse_structured.pipeline import shrink

BACKBONE, IMAGES, SIDE, MACS = "resnet50", 64, 224, 0.6
WIDTH = 64

_STAGES: Mapping[str, tuple[str, str]] = {
    "structure": ("analyse", "pipeline"),
    "scores": ("measure", "pipeline"),
    "curves": ("measure_damage_curves", "pipeline"),
    "refit between rounds": ("refit", "compensated"),
    "refit": ("refit", "pipeline"),
    "cutting and proof": ("apply", "pipeline"),
}
"""Stage to the function whose time it is, and the package that calls it."""


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
    """Wall-clock seconds of one call of :func:`disparse_structured.shrink`: in all, and of each stage.

    A stage counts where the package named with it calls it, not where other stages do.
    """
    profile = cProfile.Profile(subcalls=True, builtins=False)
    started = time.perf_counter()
    profile.runcall(shrink, model, inputs, model.tasks(), macs=macs, samples=len(inputs))
    whole = time.perf_counter() - started
    stages = {stage: _spent(profile, *place) for stage, place in _STAGES.items()}
    return {"whole call": whole, **stages, "rest": max(0.0, whole - sum(stages.values()))}


def _spent(profile: cProfile.Profile, function: str, package: str) -> float:
    """Cumulative seconds of ``function`` in calls that come from ``package``."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # typeshed leaves it out
    total: float = sum(
        cumulative
        for (_, _, name), (_, _, _, _, callers) in stats.items()
        for (file, _, _), (*_, cumulative) in callers.items()
        if name == function and f"/disparse_structured/{package}/" in file
    )
    return total
