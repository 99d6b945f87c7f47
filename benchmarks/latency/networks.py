"""The networks: nine timm backbones with three heads, and DeepLab with three atrous heads; random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.timm_sweep.cells import SEED
from disparse_structured.adapters.deeplab import deeplab
from disparse_structured.adapters.timm import DenseHead, LinearHead, MultiTask, multitask

HEADS = {"labels": DenseHead(13), "depth": DenseHead(1), "scene": LinearHead(10)}
OUTPUTS = {"labels": 13, "depth": 1, "normals": 3}

HELD_OUT = 8
"""How many images the deviation is measured on."""


@dataclass(frozen=True)
class Network:
    """How a network is built for images of a given side, and the side that it is measured at."""

    build: Callable[..., MultiTask]
    side: int = 224


def _timm(name: str) -> Network:
    return Network(partial(multitask, name, HEADS))


NETWORKS: Mapping[str, Network] = {
    **{
        name: _timm(name)
        for name in (
            "resnet18",
            "mobilenetv2_100",
            "resnet50",
            "efficientnet_b0",
            "mobilenetv3_large_100",
            "convnext_tiny",
            "vit_small_patch16_224",
            "efficientnet_lite0",
            "regnety_032",
        )
    },
    "deeplab_resnet34": Network(partial(deeplab, OUTPUTS), side=112),
}
"""By name, in the order in which they are measured."""


def network(name: str, side: int | None = None) -> MultiTask:
    """The network in eval mode, with random weights. Other names than those above are timm's.

    Residual branches that timm initializes to zero get random scales; otherwise removing them costs nothing.
    """
    chosen = NETWORKS.get(name) or _timm(name)
    torch.manual_seed(SEED)
    model = chosen.build(image_size=side or chosen.side)
    for each, parameter in model.named_parameters():
        if each.endswith(("weight", "gamma")) and float(parameter.detach().abs().max()) < 1e-2:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        model(images(model, HELD_OUT))  # in train mode, for the statistics of batch normalization
    return model.eval()


def images(model: MultiTask, count: int, seed: int = SEED) -> Tensor:
    """Smooth random images ``[count, C, H, W]``: noise of several scales, as real images have them."""
    channels, height, width = model.input_size
    random = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, channels, height, width)
    for scale in (2, 4, 8, 16, 32):
        noise = torch.randn(
            count, channels, max(1, height // scale), max(1, width // scale), generator=random
        )
        found += torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return found / found.std()
