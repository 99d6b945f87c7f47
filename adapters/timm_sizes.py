"""What the numbers in timm's modules count that ``forward`` does not use.

Registered in ``pyproject.toml`` as an entry point of ``disparse_structured.sizes``. timm is not imported:
:func:`numbers` is called with the modules of every model.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.graph.provenance import (
    Arithmetic,
    Attribute,
    Expression,
    TracedInt,
    traced_attributes,
)
from disparse_structured.structure import SizeDeclaration

_CHANNELS = {2: 1, 3: 2, 4: 1}
"""Where the channels are: of pooled vectors ``[B, C]``, tokens ``[B, N, C]``, maps ``[B, C, H, W]``."""

_POOLED = SizeDeclaration("in_features", "global_pool.forward", _CHANNELS)
_NORM_HEAD = (
    SizeDeclaration("in_features", "norm.weight"),
    _POOLED,
    SizeDeclaration("hidden_size", "pre_logits.fc.weight"),
    SizeDeclaration("num_features", "fc.weight", 1),
    SizeDeclaration("num_features", "pre_logits.forward", _CHANNELS),
)
_EMBEDDING = (
    SizeDeclaration("embed_dim", "patch_embed.proj.weight"),
    SizeDeclaration("embed_dim", "norm.weight"),
)
_EMBEDDED = """
    cait.Cait deepseek_vit.DeepseekVitEncoder focalnet.FocalNet naflexvit.NaFlexVit
    pit.PoolingVisionTransformer qwen3_vit.Qwen3VitEncoder swin_transformer.SwinTransformer
    swin_transformer_v2.SwinTransformerV2 vision_transformer.VisionTransformer
    vision_transformer_sam.VisionTransformerSAM xcit.Xcit
"""
_STAGES = tuple(SizeDeclaration("embed_dim", f"stages.{i}.forward", _CHANNELS, (i,)) for i in range(8))

TABLE: Mapping[str, tuple[SizeDeclaration, ...]] = {
    "timm.layers.classifier.ClassifierHead": (
        SizeDeclaration("in_features", "fc.weight", 1),
        _POOLED,
        SizeDeclaration("num_features", "fc.weight", 1),
        SizeDeclaration("num_features", "global_pool.forward", _CHANNELS),
    ),
    "timm.layers.classifier.NormMlpClassifierHead": _NORM_HEAD,
    "timm.layers.classifier.ClNormMlpClassifierHead": _NORM_HEAD,
    **{f"timm.models.{name}": _EMBEDDING for name in _EMBEDDED.split()},
    "timm.models.levit.Levit": _STAGES,
    "timm.models.repvit.RepVit": _STAGES,
    "timm.models.maxxvit.MaxxVit": (SizeDeclaration("embed_dim", "forward_features", _CHANNELS),),
    # Models whose feature_info names modules that are not called.
    "timm.models.coat.CoaT": tuple(
        SizeDeclaration("feature_info", f"patch_embed{i + 1}.proj.weight", 0, (i, "num_chs"))
        for i in range(4)
    ),
    "timm.models.hrnet.HighResolutionNet": (
        SizeDeclaration("feature_info", "conv2.weight", 0, (0, "num_chs")),
        *(
            SizeDeclaration("feature_info", f"incre_modules.{i}.forward", _CHANNELS, (i + 1, "num_chs"))
            for i in range(4)
        ),
    ),
    # set_input_size rebuilds these tables with two coordinates.
    "timm.layers.pos_embed_rel.RelPosMlp": (SizeDeclaration(None, "rel_coords_log", -1),),
    "timm.models.swin_transformer_v2.WindowAttention": (SizeDeclaration(None, "relative_coords_table", -1),),
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": (
        SizeDeclaration(None, "relative_coordinates_log", -1),
    ),
}
"""Qualified class name to the numbers of its modules and of its subclasses' modules."""


def numbers(module: nn.Module) -> Iterator[SizeDeclaration]:
    """The numbers of ``module``, if its class or a base class is timm's; see :class:`SizeDeclaration`."""
    classes = [f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__]
    if any(name.startswith("timm.") for name in classes):
        yield from _of_classifier(module)
        yield from chain.from_iterable(TABLE.get(name, ()) for name in classes)
        if hasattr(module, "forward_features"):
            yield SizeDeclaration("num_features", "forward_features", _channels(module))
        yield from _of_feature_info(module)
        yield from _of_attention(module)


def _of_classifier(module: nn.Module) -> Iterator[SizeDeclaration]:
    """The attributes that ``reset_classifier`` sizes a classifier by, and ``head_hidden_size``.

    They count what the classifier reads. ``reset_classifier`` is called on a copy without data whose
    integers are traced, so that the width of a new layer names the attribute that it came from.
    """
    if not hasattr(module, "reset_classifier"):
        return
    bare: Any = _without_data(module)
    before = set(bare.modules())
    try:
        with torch.device("meta"), traced_attributes(bare, []):
            bare.reset_classifier(1)
    except Exception:  # timm itself refuses: the dense model cannot take another classifier either
        return
    for path, layer in bare.named_modules():
        if layer in before or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        source = _source(width.expression) if isinstance(width, TracedInt) else None
        for attribute in (source, Attribute("", "head_hidden_size")):
            if attribute is not None:
                name = f"{attribute.module}.{attribute.name}".removeprefix(".")
                yield SizeDeclaration(name, f"{path}.weight", 1, attribute.keys)
                # Without classes, the layer is an nn.Identity, which has no weight.
                yield SizeDeclaration(name, f"{path}.forward", _CHANNELS, attribute.keys)


def _without_data(module: nn.Module) -> nn.Module:
    """A copy on the meta device."""
    tensors = {
        id(leaf): leaf
        for each in module.modules()
        for leaf in pytree.tree_leaves(vars(each))
        if isinstance(leaf, torch.Tensor)
    }
    memo: dict[int, Any] = {}
    for key, tensor in tensors.items():
        bare = tensor.detach().to("meta")
        memo[key] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(module, memo)


def _source(expression: Expression) -> Attribute | None:
    """The attribute that ``expression`` is; timm multiplies widths by 1 where the pooling keeps them."""
    if isinstance(expression, Arithmetic) and expression.symbol == "*" and expression.right == 1:
        return _source(expression.left)
    return expression if isinstance(expression, Attribute) else None


def _of_feature_info(module: nn.Module) -> Iterator[SizeDeclaration]:
    """The channel counts of the maps of an extractor (``FeatureInfo``) or of a model (a list)."""
    info: Any = getattr(module, "feature_info", None)
    if hasattr(info, "out_indices"):
        given = sorted(index % len(info) for index in info.out_indices)
        for leaf, index in enumerate(given):
            yield SizeDeclaration(
                "feature_info", "forward", _channels(module), ("info", index, "num_chs"), leaf
            )
    elif isinstance(info, list):
        taken = Counter[str]()  # a module that is named again stands for its next output
        for index, each in enumerate(info):
            name = each["module"]
            called = f"{name}.forward"
            yield SizeDeclaration("feature_info", called, _channels(module), (index, "num_chs"), taken[name])
            taken[name] += 1


def _of_attention(module: nn.Module) -> Iterator[SizeDeclaration]:
    """A single head of unfused attention keeps its width.

    Unfused attention scales by a stored number, fused attention by the actual width of a head. They would
    differ if a head became narrower. Of several heads, whole ones are removed, which changes no width.
    """
    if getattr(module, "fused_attn", True) is False and getattr(module, "num_heads", None) == 1:
        for name in ("qkv", "q", "k", "kv", "q_proj", "k_proj"):
            yield SizeDeclaration(None, f"{name}.weight")


def _channels(module: nn.Module) -> Mapping[int, int]:
    return _CHANNELS | {4: 3} if getattr(module, "output_fmt", "NCHW") == "NHWC" else _CHANNELS
