"""Multi-task models on timm backbones: ``multitask("resnet18", {"depth": DenseHead(1), ...})``.

Your own module on a timm backbone does not need this: pass it to ``prune`` with your own tasks.
"""

# ruff: noqa: E402  (a missing timm is reported before it is imported)

from __future__ import annotations

import difflib
import keyword
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.adapters.heads import ASPPHead, DenseHead, Head, LinearHead
from disparse_structured.errors import LoadError, TaskError, UnsupportedModelError, require
from disparse_structured.tasks import Loss, Task

require("timm", "timm")

import timm
from timm.layers.format import Format
from timm.models import FeatureListNet, PretrainedCfg, load_state_dict
from timm.models._features import FeatureGetterNet  # timm.models does not re-export this one
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet

WITHOUT_FINAL_NORM = (Hiera, HieraDet)
"""Transformers whose maps timm refuses to normalize."""

GRID_FROM_DATA = ("Gemma4VitEncoder", "Gemma4VitClassifier")
"""By name, because older versions of timm lack them. They read their token grid from a tensor's values."""

__all__ = ["ASPPHead", "DenseHead", "Head", "LinearHead", "MultiTask", "multitask"]


class MultiTask(nn.Module):
    """A backbone and one head per task; ``model(images)`` is a dict from task name to tensor.

    Args:
        backbone: called with images ``[B, C, H, W]``, returns a list of maps ``[B, C_i, H_i, W_i]``.
        channels: the maps' channel counts ``C_i``.
        heads: task name to :class:`~disparse_structured.adapters.heads.Head`.
        input_size: the ``(C, H, W)`` that the backbone is meant for.

    Raises:
        TaskError: there is no head, a name cannot name a module, or a head does not fit the maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        heads: Mapping[str, Head],
        input_size: tuple[int, int, int],
    ) -> None:
        super().__init__()
        _check_heads(heads)
        self.input_size = input_size
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: head.build(channels) for name, head in heads.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images ``[B, C, H, W]`` to ``{task: [B, outputs] or [B, outputs, H, W]}``."""
        maps = self.backbone(images)
        size = images.shape[-2:]
        return {name: head(maps, size) for name, head in self.heads.items()}

    @property
    def head_names(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the heads."""
        return tuple(self.heads)

    def tasks(self, losses: Mapping[str, Loss] | None = None) -> tuple[Task, ...]:
        """One task per head, which picks that head's output; label-free where ``losses`` has no entry.

        Raises:
            TaskError: ``losses`` names an unknown head.
        """
        losses = {} if losses is None else losses
        for name in losses:
            if name not in self.heads:
                raise TaskError(f"a loss is given for {name!r}, but the heads are {list(self.heads)}.")
        return tuple(Task(name, name, losses.get(name)) for name in self.heads)

    def example_inputs(self, batch: int = 2) -> tuple[Tensor]:
        """Standard normal images ``[batch, C, H, W]`` of :attr:`input_size`, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        parameter = next(self.parameters())
        return (torch.randn(batch, *self.input_size, generator=generator).to(parameter),)


def multitask(
    backbone: str,
    heads: Mapping[str, Head],
    *,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    **timm_kwargs: Any,
) -> MultiTask:
    """A timm backbone with one head per task.

    Convolutional and hierarchical backbones give their feature pyramid. Plain transformers and mixers
    give the patch tokens after the final norm as one map (several with ``out_indices=(…)``); class and
    distillation tokens are left out.

    Args:
        backbone: a name of ``timm.list_models()``.
        heads: task name to :class:`LinearHead`, :class:`DenseHead`, :class:`ASPPHead` or a
            :class:`Head` of your own.
        image_size: side or ``(H, W)`` of the images, in pixels. Backbones whose parameters depend on
            it (position tables, windows) are built for it; the default is timm's.
        pretrained: load timm's published weights into the backbone (may download).
        checkpoint_path: load the backbone's weights from this file instead: safetensors, or a torch
            file of tensors only (read with ``weights_only=True``), with timm's parameter names; a
            classifier in the file is left out.
        timm_kwargs: passed on to ``timm.create_model`` (``in_chans``, ``out_indices``, …).

    Raises:
        UnsupportedModelError: timm has no such model, or it gives no feature maps.
        TaskError: there is no head, a name cannot name a module, or a head does not fit the maps.
        LoadError: ``checkpoint_path`` cannot be read, or holds weights of another model.
    """
    _check_heads(heads)
    if not timm.is_model(backbone):
        close = difflib.get_close_matches(backbone, timm.list_models(), 5, 0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else "See timm.list_models()."
        raise UnsupportedModelError(f"timm {timm.__version__} has no model {backbone!r}. {hint}")
    config = timm.get_pretrained_cfg(backbone) or PretrainedCfg()  # a model that its user registered
    channels, height, width = config.input_size
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if config.fixed_input_size:
            timm_kwargs["img_size"] = (height, width)

    def build(**weights: Any) -> nn.Module:
        return _feature_net(backbone, timm_kwargs, weights)

    net: Any
    if checkpoint_path is not None:
        net = _with_checkpoint(build, Path(checkpoint_path), backbone)
    else:
        net = build(pretrained=pretrained)
    input_size = (timm_kwargs.get("in_chans", channels), height, width)
    return MultiTask(Maps(net), net.feature_info.channels(), heads, input_size)


class Maps(nn.Module):
    """timm's feature list with channels in dimension 1, whatever the backbone prefers."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.channels_last = isinstance(net, FeatureListNet) and net.output_fmt == Format.NHWC
        self.strides: list[int] = []
        """Pixels per token, for each map that is a list of tokens."""
        if isinstance(net, FeatureGetterNet) and net.output_fmt == Format.NLC:
            self.strides = list(net.feature_info.reduction())

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.net(images)
        if self.strides:
            height, width = images.shape[-2:]
            return [
                tokens.transpose(1, 2).unflatten(2, (height // stride, width // stride))
                for tokens, stride in zip(maps, self.strides, strict=True)
            ]
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _feature_net(name: str, options: Mapping[str, Any], weights: Mapping[str, Any]) -> nn.Module:
    try:
        net: nn.Module = timm.create_model(name, features_only=True, **options, **weights)
    except AttributeError as error:  # what timm raises where a model describes no features
        raise UnsupportedModelError(
            f"timm's {name} gives no feature maps ({error}). Choose another backbone, or put heads on it "
            "yourself and pass your module with its tasks."
        ) from error
    if not isinstance(net, FeatureGetterNet):
        return net
    # timm drops the final norm of a transformer here; heads need it, and its trained weights.
    options = dict(options)
    levels = options.pop("out_indices", 1)
    model = timm.create_model(name, num_classes=0, **options, **weights)
    normed = not isinstance(model, WITHOUT_FINAL_NORM)
    form = "NLC" if type(model).__name__ in GRID_FROM_DATA else "NCHW"
    return FeatureGetterNet(model, out_indices=levels, norm=normed, prune=False, output_fmt=form)


def _with_checkpoint(build: Callable[..., nn.Module], path: Path, name: str) -> nn.Module:
    """``build`` with the file's weights.

    timm drops the classifier from the file and no longer loads strictly: weights of another model would
    silently leave a random network. So the network is built twice, and parameters that differ were not in
    the file.
    """
    try:
        weights = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # safetensors, pickle and the file system have no common base
        raise LoadError(
            f"{path} cannot be read as weights ({type(error).__name__}: {error}). Pass a .safetensors file, "
            "or a torch file that holds tensors only."
        ) from error
    source = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
    try:
        net = build(**source)
        with torch.random.fork_rng(devices=[]):
            again = dict(build(**source).named_parameters())
    except RuntimeError as error:
        raise LoadError(f"{path} does not fit {name}: {error}") from error
    missed = [key for key, value in net.named_parameters() if not torch.equal(value, again[key])]
    if missed:
        raise LoadError(
            f"{path} leaves {len(missed)} of {len(again)} parameters of {name} as initialized; "
            f"the first is {missed[0]!r}. Pass weights of {name} with timm's parameter names."
        )
    return net


def _check_heads(heads: Mapping[str, Head]) -> None:
    if not heads:
        raise TaskError("no head was given. Pass at least one, such as {'depth': DenseHead(1)}.")
    taken = set(dir(nn.ModuleDict()))
    for name, head in heads.items():
        if not name.isidentifier() or keyword.iskeyword(name) or name in taken:
            raise TaskError(
                f"head name {name!r} cannot name a module. Use a Python identifier that is neither a "
                "keyword nor an attribute of torch.nn.ModuleDict, such as 'depth' or 'kind_head'."
            )
        if not isinstance(head, Head):
            raise TaskError(
                f"head {name!r} is of type {type(head).__name__}. Use LinearHead, DenseHead, ASPPHead or "
                "your own subclass of Head."
            )
