"""Plain Torch-Pruning, as its own users call it: its pruner, and pruning to a given number of MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

STEPS = 14
"""Halvings of the interval of pruning ratios: 0.98 / 2**14 is below one channel in 1,000."""


def macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Multiply-accumulates of one forward pass, counted by torch while it runs (two FLOPs each)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    for module, mode in modes:
        module.training = mode
    return float(counter.get_total_flops()) / 2


def pruner(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    importance: Any,
    ratio: float,
    predictors: Sequence[nn.Module],
    *,
    over_all_layers: bool = False,
    num_heads: Mapping[nn.Module, int] | None = None,
    round_to: int | None = None,
) -> tp.pruner.BasePruner:
    """Torch-Pruning's pruner of ``model``, its dependency graph built and nothing cut yet.

    Args:
        model: is cut in place by ``step()``.
        inputs: an example.
        importance: one of ``torch_pruning.importance``.
        ratio: the share of the channels to remove.
        predictors: the layers whose outputs are the model's; they keep them.
        over_all_layers: whether the layers compete; otherwise each loses the same share.
        num_heads: attention heads, by the layer that makes queries, keys and values.
        round_to: channels that stay are a multiple of this.
    """
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance,
        pruning_ratio=ratio,
        global_pruning=over_all_layers,
        ignored_layers=list(predictors),
        num_heads=dict(num_heads or {}),
        round_to=round_to,
        # The default dictionaries are shared between pruners, which write to them.
        in_channel_groups={},
        out_channel_groups={},
        channel_groups={},
        pruning_ratio_dict={},
    )


def magnitude(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    predictors: Sequence[str],
    fraction: float,
    *,
    over_all_layers: bool,
) -> nn.Module:
    """A copy of ``model`` pruned by group L2 magnitude to at most ``fraction`` of its MACs.

    The common ratio is found by bisection on the MACs of trial copies. ``predictors`` are the names of the
    layers whose outputs are the model's.

    Raises:
        ValueError: no ratio below 0.98 gets there.
    """
    target = fraction * macs(model, inputs)
    low, high = 0.0, 0.98
    best = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        trial = _pruned(deepcopy(model), inputs, predictors, ratio, over_all_layers)
        if macs(trial, inputs) <= target:
            best, high = trial, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"Torch-Pruning does not reach {fraction:.0%} of the MACs at any ratio below 0.98.")
    return best


def _pruned(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    predictors: Sequence[str],
    ratio: float,
    over_all_layers: bool,
) -> nn.Module:
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    heads = [model.get_submodule(name) for name in predictors]
    pruner(model, inputs, importance, ratio, heads, over_all_layers=over_all_layers).step()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model
