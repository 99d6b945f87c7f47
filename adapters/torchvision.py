"""torchvision's detectors and segmenters: ``prune(model, images, macs=0.5)``.

A detector contains a transform of its images, anchors, non-maximum suppression and the choice of regions,
none of which has weights. :func:`raw` is the part without them: backbone, pyramid and heads. That is pruned,
and the detector gets its smaller backbone and heads back. Other models are pruned as they are.
"""

# ruff: noqa: E402  (a missing torchvision is reported before it is imported)

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from disparse_structured.data.modes import eval_mode
from disparse_structured.errors import BatchError, OptionError, require
from disparse_structured.graph.side_effects import undone
from disparse_structured.pipeline.inputs import SAMPLES
from disparse_structured.pipeline.pruning import prune as prune_module
from disparse_structured.pipeline.result import PruningResult
from disparse_structured.surgery.saving import load as load_module
from disparse_structured.tasks import Task

require("torchvision", "torchvision")

from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign, roi_align

REGIONS = 100
"""Regions of each image that the box, mask and keypoint heads see; an R-CNN returns at most as many boxes."""

_TOGETHER = 4
"""Images whose regions are proposed together."""

_NAMES = {"cls_logits": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centerness"}
"""The tasks' names, by those that torchvision gives to the outputs of a one-stage detector's head."""


class Pruned(NamedTuple):
    """What :func:`prune` returns.

    Args:
        model: the smaller model, used like the given one: in eval mode a detector returns detections, in
            train mode losses.
        result: plan and report. ``result.model`` is :func:`raw` of ``model`` and has the same layers, so
            training one trains the other; ``result.save`` and ``result.export`` write it.
    """

    model: nn.Module
    result: PruningResult


def prune(
    model: nn.Module,
    images: Any,
    tasks: Sequence[Task | str] | None = None,
    *,
    regions: int = REGIONS,
    samples: int | None = None,
    **options: Any,
) -> Pruned:
    """Make a torchvision model smaller, by :func:`disparse_structured.prune`; ``model`` is left as it is.

    The tasks of a one-stage detector are ``classes``, ``boxes`` and, for FCOS, ``centerness``. Those of an
    R-CNN are ``objectness`` and ``proposals`` of its region proposal network, ``classes``, ``boxes``, and
    ``masks`` or ``keypoints`` where it has them. Those of a segmenter are ``out`` and ``aux``.

    >>> import torch
    >>> from torchvision.models.detection import RetinaNet
    >>> from torchvision.models.detection.anchor_utils import AnchorGenerator
    >>> from disparse_structured.adapters.torchvision import prune
    >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 8), torch.nn.ReLU())
    >>> backbone.out_channels = 8
    >>> anchors = AnchorGenerator(((16,),), ((1.0,),))
    >>> detector = RetinaNet(backbone, 2, min_size=32, max_size=32, anchor_generator=anchors).eval()
    >>> smaller, result = prune(detector, torch.rand(2, 3, 32, 32), macs=0.7, refit=None)
    >>> sorted(smaller(torch.rand(1, 3, 32, 32))[0])
    ['boxes', 'labels', 'scores']

    Args:
        images: for a detector, what its ``forward`` takes: images ``[C, H, W]`` in [0, 1] of any sizes, in a
            tensor, a list, a data set or a loader. Targets (dicts) beside them are skipped. For another
            model, the data of :func:`disparse_structured.prune`.
        tasks: the tasks, or their names; by default all of them.
        regions: of an R-CNN, how many of each image's proposals its heads see. They count in the cost.
        samples: read at most this many images; by default 64 of a detector.
        options: the other options of :func:`disparse_structured.prune`.

    Raises:
        BatchError: there is no image, or an entry is none.
        OptionError: an option is invalid, or cannot be used with a detector.
        DisparseError: whatever :func:`disparse_structured.prune` raises.
    """
    part = raw(model)
    if not isinstance(part, RawDetector):
        result = prune_module(part, images, tasks, samples=samples, **options)
        return Pruned(result.model, result)
    _check_options(options)
    inputs = part.inputs(images, regions=regions, samples=samples or SAMPLES)
    result = prune_module(part, inputs, tasks, samples=samples, **options)
    return Pruned(cast(RawDetector, result.model).detector(), result)


def load(folder: str | Path, factory: Callable[[], nn.Module], **options: Any) -> nn.Module:
    """Load the smaller model whose ``result.save(folder)`` was called, in eval mode.

    Args:
        factory: builds the dense model, with torchvision's functions or your own.
        options: those of :func:`disparse_structured.load`.

    Raises:
        LoadError: a file is missing or does not fit.
        PlanError: the factory builds another model.
    """
    loaded = load_module(folder, lambda: raw(factory()), **options)
    return loaded.detector().eval() if isinstance(loaded, RawDetector) else loaded


def raw(model: nn.Module) -> nn.Module:
    """Return the part of a detector that has weights, with the detector's own layers under the same names.

    Any other model is its own part, and returned.
    """
    if isinstance(model, GeneralizedRCNN):
        return RawRCNN(model)
    if isinstance(model, RetinaNet | FCOS | SSD):
        return RawOneStage(model)
    return model


class RawDetector(nn.Module):
    """Backbone, pyramid and heads of a detector: from images to what its heads return.

    It has the children of the detector and its mode; :meth:`detector` makes a detector with them.
    """

    transform: Any
    backbone: Any

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        for name, child in detector.named_children():
            self.add_module(name, child)
        self.training = detector.training
        shell = copy.copy(detector)
        shell._modules = {}
        self._shell = (shell,)  # in a tuple, because it is no child

    def detector(self) -> nn.Module:
        """Return the detector with these layers; its transform, anchors and post-processing are as before."""
        whole = copy.copy(self._shell[0])
        whole._modules = dict(self._modules)
        whole.training = self.training
        return whole

    def inputs(self, images: Any, *, regions: int = REGIONS, samples: int = SAMPLES) -> dict[str, Tensor]:
        """Return the arguments of :meth:`forward` by name, for the first ``samples`` of ``images``.

        The images are resized, normalized and padded to one size by the detector's own transform.

        Args:
            images: see :func:`prune`.
            regions: how many regions of each image there shall be.

        Raises:
            BatchError: there is no image, or an entry is none.
        """
        with undone(self), eval_mode(self), torch.no_grad():
            parameter = next(self.parameters())
            transformed, _ = self.transform([each.to(parameter) for each in _first(images, samples)])
            return self._inputs(transformed, regions)

    def _inputs(self, images: ImageList, regions: int) -> dict[str, Tensor]:
        return {"images": images.tensors}

    def _features(self, images: Tensor) -> Mapping[str, Tensor]:
        found = self.backbone(images)
        return {"0": found} if isinstance(found, Tensor) else found


class RawOneStage(RawDetector):
    """RetinaNet, FCOS, SSD or SSDlite without post-processing."""

    head: Any

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images ``[N, C, H, W]`` to ``[N, anchors, numbers]`` of each task."""
        found = self.head(list(self._features(images).values()))
        return {_NAMES.get(name, name): output for name, output in found.items()}


class RawRCNN(RawDetector):
    """Faster, Mask or Keypoint R-CNN without the choice of regions and without post-processing."""

    rpn: Any
    roi_heads: Any

    def forward(self, images: Tensor, regions: Tensor) -> dict[str, Any]:
        """Run every head.

        Args:
            images: ``[N, C, H, W]``, as the detector's transform returns them.
            regions: ``[N, R, 4]``, corners (x1, y1, x2, y2) in pixels of ``images``.

        Returns:
            ``objectness`` and ``proposals``: a list of maps ``[N, numbers, H_i, W_i]``, one for each level;
            ``classes`` and ``boxes``: ``[N, R, numbers]``; ``masks`` and ``keypoints``: ``[N, R, numbers, h,
            w]``.
        """
        features = self._features(images)
        found: dict[str, Any] = {}
        found["objectness"], found["proposals"] = self.rpn.head(list(features.values()))
        heads = self.roi_heads
        pooled = _pooled(heads.box_roi_pool, features, images, regions)
        classes, boxes = heads.box_predictor(heads.box_head(pooled))
        by_region = {"classes": classes, "boxes": boxes}
        if heads.has_mask():
            pooled = _pooled(heads.mask_roi_pool, features, images, regions)
            by_region["masks"] = heads.mask_predictor(heads.mask_head(pooled))
        if heads.has_keypoint():
            pooled = _pooled(heads.keypoint_roi_pool, features, images, regions)
            by_region["keypoints"] = heads.keypoint_predictor(heads.keypoint_head(pooled))
        counts = regions.shape[:2]
        return found | {name: output.unflatten(0, counts) for name, output in by_region.items()}

    def _inputs(self, images: ImageList, regions: int) -> dict[str, Tensor]:
        if not isinstance(regions, int) or regions < 1:
            raise OptionError(f"regions must be an integer of at least 1, got {regions!r}.")
        found: list[Tensor] = []
        for start in range(0, len(images.tensors), _TOGETHER):
            tensors = images.tensors[start : start + _TOGETHER]
            sizes = images.image_sizes[start : start + _TOGETHER]
            proposals, _ = self.rpn(ImageList(tensors, sizes), self._features(tensors))
            for boxes, (height, width) in zip(proposals, sizes, strict=True):
                if not len(boxes):
                    boxes = tensors.new_tensor([[0.0, 0.0, width, height]])
                found.append(boxes.repeat(math.ceil(regions / len(boxes)), 1)[:regions])
        return {"images": images.tensors, "regions": torch.stack(found)}


def _pooled(pool: Any, features: Mapping[str, Tensor], images: Tensor, regions: Tensor) -> Tensor:
    """What ``pool`` returns for ``regions``: ``[N * R, C, h, w]``. No shape depends on their values.

    Every region is pooled from every level of the pyramid, and one of them is taken: that of Lin et al.,
    "Feature Pyramid Networks", CVPR 2017, equation 1.
    """
    if not isinstance(pool, MultiScaleRoIAlign):
        size = (images.shape[-2], images.shape[-1])
        found: Tensor = pool(features, list(regions.unbind()), [size] * len(regions))
        return found
    numbers = torch.arange(len(regions), device=regions.device, dtype=regions.dtype)
    boxes = torch.cat([numbers[:, None, None].expand(-1, regions.shape[1], 1), regions], 2).flatten(0, 1)
    maps = [each for name, each in features.items() if name in pool.featmap_names]
    levels = [round(math.log2(images.shape[-2] / each.shape[-2])) for each in maps]
    side = ((boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])).sqrt()
    chosen = torch.floor(pool.canonical_level + torch.log2(side / pool.canonical_scale) + 1e-6)
    chosen = chosen.clamp(levels[0], levels[-1])[:, None, None, None]
    first, *rest = (
        roi_align(each, boxes, list(pool.output_size), 2.0**-level, pool.sampling_ratio)
        for each, level in zip(maps, levels, strict=True)
    )
    result: Tensor = first
    for number, each in enumerate(rest, 1):
        result = torch.where(chosen == levels[0] + number, each, result)
    return result


def _first(images: Any, count: int) -> list[Tensor]:
    found: list[Tensor] = []
    for image in _images(images):
        found.append(image)
        if len(found) == count:
            break
    if not found:
        raise BatchError(
            "there is no image. Pass a few dozen images [C, H, W] that the detector meets in use."
        )
    return found


def _images(given: Any) -> Iterator[Tensor]:
    """The images ``[C, H, W]`` in tensors, lists, data sets and loaders; dicts are targets."""
    if isinstance(given, Tensor) and given.ndim in (3, 4) and given.is_floating_point():
        yield from given if given.ndim == 4 else (given,)
    elif isinstance(given, Iterable) and not isinstance(given, Tensor | str):
        for each in given:
            if not isinstance(each, Mapping):
                yield from _images(each)
    else:
        what = f"a tensor {list(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else repr(given)
        raise BatchError(
            f"a detector takes images [C, H, W] of floating-point numbers in [0, 1], but found {what}. Pass "
            "a tensor [N, C, H, W], a list of images, or a loader of images or of (images, targets)."
        )


def _check_options(options: Mapping[str, Any]) -> None:
    if options.get("to_inputs") is not None:
        raise OptionError(
            "to_inputs= cannot be used with a detector, whose images go through its own transform. Pass the "
            "images, or a loader of (images, targets)."
        )
    if options.get("drop_unused"):
        raise OptionError(
            "drop_unused= cannot be used with a detector, whose own forward may run more than the part that "
            "is pruned. Leave it out."
        )
    structure = options.get("structure")
    if structure is not None and structure.form == "graph":
        raise OptionError(
            'a detector cannot be put back around an exported graph. Use form="module", or prune '
            "raw(detector) with disparse_structured.prune to get the graph alone."
        )
