"""The demo's picture: what the networks predict for scenes that they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from disparse_structured.lab.demo.result import DemoResult
from disparse_structured.lab.scenes import TRUTHS
from disparse_structured.report.figures import (
    Image,
    Sight,
    draw_comparison,
    heat,
    label_colors,
    normal_colors,
)

Scene = Mapping[str, Tensor]


def draw(
    path: Path, result: DemoResult, networks: Mapping[str, nn.Module], pictured: Sequence[Scene]
) -> None:
    """Writes the PNG: for each scene the input, and per task the truth and each network's prediction."""
    draw_comparison(
        path,
        [_sight(scene, networks) for scene in pictured],
        {task.name: f"{task.name}\n{task.summary}" for task in result.tasks},
        title="Five tasks, one network, half the computation",
        subtitle=result.headline,
    )


def _sight(scene: Scene, models: Mapping[str, nn.Module]) -> Sight:
    depth = scene["depth"]
    span = float(depth.min()), float(depth.max())
    rows = {"truth": _painted({task: scene[key] for task, key in TRUTHS.items()}, span)}
    for name, model in models.items():
        rows[name] = _painted(_predicted(model, scene["image"]), span)
    return Sight(scene["image"].permute(1, 2, 0).double().numpy(), rows)


@torch.no_grad()
def _predicted(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    outputs = {task: output[0] for task, output in model.eval()(image[None]).items()}
    outputs["segmentation"] = outputs["segmentation"].argmax(dim=0)
    for task in ("edges", "keypoints"):
        outputs[task] = outputs[task].sigmoid()
    return outputs


def _painted(maps: Mapping[str, Tensor], span: tuple[float, float]) -> dict[str, Image]:
    return {
        "segmentation": label_colors(maps["segmentation"].numpy()),
        "depth": heat(maps["depth"][0].numpy(), *span, "magma_r"),
        "normals": normal_colors(maps["normals"].numpy()),
        "edges": heat(maps["edges"][0].numpy(), 0.0, 1.0, "Greys"),
        # Predicted keypoints rarely reach 1: the brightest color stands for 0.7.
        "keypoints": heat(maps["keypoints"][0].numpy(), 0.0, 0.7, "inferno"),
    }
