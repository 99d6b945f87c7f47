"""DeepLab for dense multi-task prediction: an atrous timm trunk and one ASPP head per task.

The network of DiSparse (Sun et al., CVPR 2022, §4.1), which is that of AdaShare (Sun et al., NeurIPS 2020):
a ResNet-34 whose last stages trade their strides for atrous convolutions (Chen et al., "DeepLab", TPAMI
2018, §3.1), read by heads of four parallel atrous convolutions whose predictions are summed (§3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disparse_structured.adapters.timm import ASPPHead, MultiTask, multitask
from disparse_structured.errors import UnsupportedModelError

ASPP_RATES = (6, 12, 18, 24)
"""Dilations of a head's branches (DeepLab's ASPP-L, and DiSparse's code)."""


def deeplab(
    outputs: Mapping[str, int],
    trunk: str = "resnet34",
    *,
    image_size: int | tuple[int, int] | None = None,
    head_width: int = 256,
    output_stride: int | None = 8,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    **timm_kwargs: Any,
) -> MultiTask:
    """``trunk`` with one ASPP head per task; ``model(images)`` is ``{task: [B, outputs, H, W]}``.

    A stage that loses its stride multiplies the dilation of what follows by it: 2 in the third stage of
    a ResNet and 4 in the fourth, at output stride 8. The stage's very first convolution keeps the
    dilation of the stage before, since its input is not dilated yet; so ImageNet weights mean the
    same on the finer map as on the coarse one. DiSparse's own code dilates that convolution too, and
    its heads are 1024 wide with one more 1×1 convolution.

    Args:
        outputs: task name to the channels of its output, in the order of the heads.
        trunk: a name of ``timm.list_models()``.
        image_size: side or ``(H, W)`` of the images, in pixels; the default is timm's.
        head_width: channels inside each of a head's four branches.
        output_stride: how many image pixels one pixel of the trunk's last map covers, along a side.
            None keeps the trunk's own, as transformers and some convolutional networks need.
        pretrained: load timm's published weights into the trunk (may download).
        checkpoint_path: load the trunk's weights from this file instead.
        timm_kwargs: passed on to ``timm.create_model``.

    Raises:
        UnsupportedModelError: timm has no such model, it gives no feature maps, or its stride cannot be
            changed to ``output_stride``.
        TaskError: there is no task, a name cannot name a module, or a number is below 1.
        LoadError: ``checkpoint_path`` cannot be read, or holds weights of another model.
    """
    heads = {name: ASPPHead(count, ASPP_RATES, head_width) for name, count in outputs.items()}
    if output_stride is not None:
        timm_kwargs["output_stride"] = output_stride
    try:
        model = multitask(
            trunk,
            heads,
            image_size=image_size,
            pretrained=pretrained,
            checkpoint_path=checkpoint_path,
            **timm_kwargs,
        )
    except (AssertionError, TypeError, ValueError) as error:  # how timm's models refuse an option
        if output_stride is None:
            raise
        raise _refused(trunk, output_stride, str(error) or type(error).__name__) from error
    stride = _stride(model)
    if output_stride is not None and stride != output_stride:
        raise _refused(trunk, output_stride, f"its last map stays at 1/{stride} of the image")
    return model


def _stride(model: MultiTask) -> int:
    net: Any = model.backbone.net
    return int(net.feature_info.reduction()[-1])


def _refused(trunk: str, output_stride: int, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"timm's {trunk} cannot be built with output_stride={output_stride}: {reason}. Pass "
        "output_stride=None to keep the trunk's own stride, or choose a trunk whose strides can become "
        "dilations (ResNets, RegNets, EfficientNets, MobileNets, ConvNeXts; at 8, 16 or 32)."
    )
