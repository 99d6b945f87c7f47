"""Stock Torch-Pruning on the same model, by its own recipe for timm models."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import stock
from benchmarks.timm_sweep.cells import WIDTH
from benchmarks.timm_sweep.subject import Network


class StockError(Exception):
    """The network that stock pruning left has outputs of other shapes."""


class Stock:
    """A copy of a network and the graph that Torch-Pruning traces of it; predictors keep their outputs."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.model = deepcopy(network.model)
        self._attentions = projections(self.model)
        self._pruner = stock.pruner(
            self.model,
            self._network.inputs,
            tp.importance.GroupMagnitudeImportance(p=2),
            1 - WIDTH,
            predictors(self.model),
            num_heads={each.qkv: each.num_heads for each in self._attentions},
        )

    def prune(self) -> int:
        """Prunes, and returns the number of parameters left."""
        self._pruner.step()
        follow_heads(self._attentions, self._pruner)
        return sum(parameter.numel() for parameter in self.model.parameters())

    def run(self) -> None:
        """One forward pass; raises what it raises, or :class:`StockError` if shapes have changed."""
        dense, inputs = self._network.model, self._network.inputs
        with torch.no_grad():
            before, after = (_shapes(model(*inputs)) for model in (dense, self.model))
        if before != after:
            raise StockError(f"the outputs have the shapes {after}, not {before}")


def projections(model: nn.Module) -> list[Any]:
    """The attention modules of ``model`` that make queries, keys and values with one layer."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "qkv", None), nn.Linear)
        and isinstance(getattr(module, "num_heads", None), int)
    ]


def follow_heads(attentions: Sequence[Any], pruner: tp.pruner.BasePruner) -> None:
    """Sets the numbers of heads that ``pruner`` left."""
    for each in attentions:
        each.num_heads = pruner.num_heads[each.qkv]
        each.head_dim = each.qkv.out_features // (3 * each.num_heads)
        if "attn_dim" in vars(each):  # newer than the recipe; without this, every transformer would break
            each.attn_dim = each.num_heads * each.head_dim


def predictors(model: nn.Module) -> list[nn.Module]:
    """The layers whose outputs are the model's: of our heads, or as wide as timm's number of classes."""
    classes = getattr(model, "num_classes", None)
    found = []
    for name, module in model.named_modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        ours = name.startswith("heads.") and name.endswith(".predict")
        if ours or (isinstance(module, nn.Linear | nn.Conv2d) and classes is not None and width == classes):
            found.append(module)
    return found


def _shapes(output: object) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
