"""The task overlap that DiSparse published, for comparison.

Totals: Sun et al., "DiSparse: Disentangled Sparsification for Multitask Model Compression", CVPR 2022, §5:
weights of DeepLab-ResNet34's trunk, at random initialization, 7.8 % kept by each task. By layer: the files
``nyuv2_iou.txt``, ``cityscapes_iou.txt`` and ``taskonomy_iou.txt`` of the authors' repository
(SHI-Labs/DiSparse-Multitask-Model-Compression), rounded to four places.

For Tiny-Taskonomy's five tasks the released code counts weights that exactly two tasks keep; whether the
published numbers were computed that way is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from disparse_structured.relatedness.watershed import split

RATIO = 0.922
"""The share that every task gives up in the published analysis: 7.8 % is kept."""

_BLOCKS = (3, 4, 6, 3)  # of the four stages of a ResNet-34


@dataclass(frozen=True)
class Published:
    """The published values of one data set.

    Args:
        dataset: its name; ``tasks`` are the paper's.
        total: IoU over the whole trunk.
        by_layer: timm's and torchvision's name of a layer of ResNet-34 (``"layer1.0.conv1"``) to IoU, in
            order of execution.
    """

    dataset: str
    tasks: tuple[str, ...]
    total: float
    by_layer: Mapping[str, float]

    @property
    def watershed(self) -> str:
        """The layer that the rule of :func:`~disparse_structured.relatedness.split` finds in ``by_layer``."""
        names = list(self.by_layer)
        found = split([self.by_layer[name] for name in names], [weights_of(name) for name in names])
        assert found is not None  # the published values fall
        return names[found.position]


def _names() -> list[str]:
    """The layers in the order of the authors' files: all convolutions, then the three projections."""
    convolutions = [
        f"layer{stage}.{block}.conv{number}"
        for stage, blocks in enumerate(_BLOCKS, start=1)
        for block in range(blocks)
        for number in (1, 2)
    ]
    return ["conv1", *convolutions, *(f"layer{stage}.0.downsample.0" for stage in (2, 3, 4))]


def _by_layer(values: str) -> dict[str, float]:
    given = dict(zip(_names(), map(float, values.split()), strict=True))
    # A projection runs beside its block's second convolution.
    order = sorted(given, key=lambda name: (name != "conv1", name.replace("downsample.0", "conv2.")))
    return {name: given[name] for name in order}


PUBLISHED = (
    Published(
        "NYU-v2",
        ("segmentation", "normals"),
        0.546,
        _by_layer(
            ".9677 .9468 .9387 .9285 .9130 .9092 .8930 .8659 .7551 .7259 .6695 .6357 .5750 .5558 .4707 .3811 "
            ".1288 .1015 .0494 .0438 .0176 .0221 .0213 .0137 .0303 .0302 .0359 .0614 .0339 .0284 .0336 .0633 "
            ".0277 .9477 .7631 .2699"
        ),
    ),
    Published(
        "Cityscapes",
        ("segmentation", "depth"),
        0.735,
        _by_layer(
            ".9921 .9809 .9759 .9713 .9650 .9643 .9578 .9486 .9077 .8990 .8802 .8668 .8395 .8292 .8058 .7597 "
            ".5981 .5508 .4673 .4545 .3462 .3627 .2384 .2545 .1642 .2053 .1284 .1514 .0471 .0345 .0511 .0529 "
            ".0470 .9802 .9174 .4948"
        ),
    ),
    Published(
        "Tiny-Taskonomy",
        ("segmentation", "normals", "depth", "keypoints", "edges"),
        0.608,
        _by_layer(
            ".9895 .9763 .9729 .9673 .9639 .9623 .9536 .9389 .8935 .8865 .8645 .8527 .8198 .8107 .7712 .7233 "
            ".5123 .4767 .3894 .3547 .2621 .2481 .1688 .1702 .1002 .1175 .0603 .0665 .0046 .0071 .0009 .0000 "
            ".0009 .9766 .9020 .4924"
        ),
    ),
)


def weights_of(layer: str) -> int:
    """How many weights a layer of ResNet-34 has."""
    if layer == "conv1":
        return 64 * 3 * 7 * 7
    stage = int(layer[5])
    width = 32 << stage
    first = stage > 1 and ".0." in layer and "conv2" not in layer
    narrow = width // 2 if first else width
    return width * narrow * (1 if "downsample" in layer else 9)


def counterpart(parameter: str) -> str | None:
    """The published layer that corresponds to a parameter, such as ``"backbone.net.layer1.0.conv1.weight"``.

    None if it is not named like a layer of a ResNet-34. Only names are compared: a trunk of another
    width or depth has the same names.
    """
    stage, first = r"layer[1-4]\.\d+\.(?:conv[12]|downsample\.[01])", r"(?<!\d\.)conv1"
    found = re.search(rf"(?:^|(?<=\.))({stage}|{first})(?:\.weight)?$", parameter)
    if found is None:
        return None
    name = re.sub(r"downsample\.1", "downsample.0", found[1])
    return name if name in PUBLISHED[0].by_layer else None
