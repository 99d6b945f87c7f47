"""The networks: small configurations with random weights, each from a library that may be missing.

Every builder returns a model in eval mode, the arguments of one forward pass, and its tasks. Libraries are
imported where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo_sweep.network import Builder, Network, images, uniform
from benchmarks.zoo_sweep.transformers_networks import transformers_networks

# torchvision.

_SWIN: dict[str, Any] = {
    "patch_size": [4, 4],
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": [4, 4],
    "num_classes": 7,
}


def vision(name: str, side: int = 64, tasks: Mapping[str, Any] | None = None, **options: Any) -> Network:
    """Build a model of ``torchvision.models``, or of one of its modules, such as ``segmentation``."""
    import torchvision

    module, _, kind = name.rpartition(".")
    owner = getattr(torchvision.models, module) if module else torchvision.models
    weights = {} if kind[0].isupper() else {"weights": None}
    model = getattr(owner, kind)(**weights, **options)
    return Network(model.eval(), (images(side),), tasks or {"logits": ()})


def _torchvision() -> dict[str, Builder]:
    dense = {"out": "out"}
    return {
        "resnet18": partial(vision, "resnet18", num_classes=7),
        "googlenet": partial(vision, "googlenet", 96, num_classes=7, aux_logits=True, init_weights=False),
        "inception_v3": partial(
            vision, "inception_v3", 128, num_classes=7, aux_logits=True, init_weights=False
        ),
        "densenet": partial(
            vision, "DenseNet", growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=7
        ),
        "shufflenet_v2_x0_5": partial(vision, "shufflenet_v2_x0_5", num_classes=7),
        "squeezenet1_1": partial(vision, "squeezenet1_1", num_classes=7),
        "mnasnet0_5": partial(vision, "mnasnet0_5", num_classes=7),
        "mobilenet_v2": partial(vision, "mobilenet_v2", num_classes=7, width_mult=0.5),
        "mobilenet_v3_small": partial(vision, "mobilenet_v3_small", num_classes=7),
        "efficientnet_b0": partial(vision, "efficientnet_b0", num_classes=7),
        "regnet_y_400mf": partial(vision, "regnet_y_400mf", num_classes=7),
        "vgg11_bn": partial(vision, "vgg11_bn", num_classes=7),
        "alexnet": partial(vision, "alexnet", num_classes=7),
        "vit": partial(
            vision,
            "VisionTransformer",
            image_size=64,
            patch_size=16,
            num_layers=2,
            num_heads=4,
            hidden_dim=48,
            mlp_dim=96,
            num_classes=7,
        ),
        "swin": partial(vision, "SwinTransformer", **_SWIN),
        "swin_v2": _swin_v2,
        "deeplabv3_mobilenet_v3_large": partial(
            vision,
            "segmentation.deeplabv3_mobilenet_v3_large",
            tasks={**dense, "aux": "aux"},
            weights_backbone=None,
            num_classes=5,
            aux_loss=True,
        ),
        "lraspp_mobilenet_v3_large": partial(
            vision,
            "segmentation.lraspp_mobilenet_v3_large",
            tasks=dense,
            weights_backbone=None,
            num_classes=5,
        ),
        "quantization.mobilenet_v2": partial(
            vision, "quantization.mobilenet_v2", quantize=False, num_classes=7
        ),
        "raft_small": _raft,
        "r3d_18": partial(_video, "r3d_18"),
        "mc3_18": partial(_video, "mc3_18"),
    }


def _swin_v2() -> Network:
    from torchvision.models import swin_transformer

    model = swin_transformer.SwinTransformer(
        **_SWIN,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )
    return Network(model.eval(), (images(),), {"logits": ()})


def _raft() -> Network:
    from torchvision.models.optical_flow import raft_small

    return Network(raft_small(weights=None).eval(), (images(128), images(128).flip(0), 2), {"flow": 1})


def _video(name: str) -> Network:
    import torchvision

    model = getattr(torchvision.models.video, name)(weights=None, num_classes=7)
    return Network(model.eval(), (uniform(3, 4, 32, 32),), {"logits": ()})


# segmentation-models-pytorch.


def segmenter(kind: str, encoder: str = "resnet18", **options: Any) -> Network:
    """Build a segmenter, with an auxiliary classifier if it takes one."""
    import segmentation_models_pytorch

    model = getattr(segmentation_models_pytorch, kind)(
        encoder, encoder_weights=None, classes=5, aux_params={"classes": 4}, **options
    )
    side = 128 if kind == "PAN" else 64  # it pools the smallest map three times
    return Network(model.eval(), (images(side),), {"masks": 0, "labels": 1})


def _segmenters() -> dict[str, Builder]:
    kinds = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer".split()
    found = {kind: partial(segmenter, kind) for kind in kinds}
    found["Unet mobilenet_v2"] = partial(segmenter, "Unet", "mobilenet_v2")
    found["FPN efficientnet-b0"] = partial(segmenter, "FPN", "efficientnet-b0")
    found["Unet mit_b0"] = partial(segmenter, "Unet", "mit_b0")
    return found


# Ultralytics.


def yolo(name: str, tasks: Mapping[str, Any]) -> Network:
    """Build an Ultralytics network from its configuration file."""
    os.environ["YOLO_OFFLINE"] = "true"
    from ultralytics import YOLO

    model: nn.Module = YOLO(f"{name}.yaml", verbose=False).model
    return Network(model.float().eval().requires_grad_(True), (images(),), tasks)


def _yolos() -> dict[str, Builder]:
    boxes: Mapping[str, Any] = {"boxes": 0}
    names = "yolov5n yolov8n yolov8n-pose yolov8n-obb yolov9t yolov10n yolo11n yolo12n yolo26n".split()
    found = {name: partial(yolo, name, boxes) for name in names}
    for name in ("yolov8n-seg", "yolo11n-seg"):
        found[name] = partial(yolo, name, {"boxes": (0, 0), "prototypes": (0, 1)})
    found["yolov8n-cls"] = partial(yolo, "yolov8n-cls", {"labels": 0})
    return found


def networks() -> dict[str, Builder]:
    """Return the builders of all networks, by ``library/name``."""
    libraries = {
        "torchvision": _torchvision(),
        "smp": _segmenters(),
        "ultralytics": _yolos(),
        "transformers": transformers_networks(),
    }
    return {
        f"{library}/{name}": build for library, found in libraries.items() for name, build in found.items()
    }
