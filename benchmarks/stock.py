"""Plain Torch-Pruning, as its own users call it, at a stated number of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

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


def magnitude(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    predictors: Sequence[str],
    fraction: float,
    *,
    over_all_layers: bool,
) -> nn.Module:
    """A copy of ``model`` pruned by group L2 magnitude to at most ``fraction`` of its MACs.

    The common ratio is found by bisection on the MACs of trial copies. ``predictors`` names the layers
    whose outputs are the model's, which Torch-Pruning has to be told to leave alone; with
    ``over_all_layers`` the layers compete, otherwise each loses the same share.
    """
    target = fraction * macs(model, inputs)
    low, high = 0.0, 0.98
    best = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        trial = _prune(deepcopy(model), inputs, predictors, ratio, over_all_layers)
        if macs(trial, inputs) <= target:
            best, high = trial, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"Torch-Pruning does not get to {fraction:.0%} of the MACs at any ratio below 0.98.")
    return best


def _prune(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    predictors: Sequence[str],
    ratio: float,
    over_all_layers: bool,
) -> nn.Module:
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        global_pruning=over_all_layers,
        ignored_layers=[model.get_submodule(name) for name in predictors],
        # Its default dictionaries are shared between pruners and written to.
        pruning_ratio_dict={},
        channel_groups={},
        num_heads={},
    )
    pruner.step()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model
