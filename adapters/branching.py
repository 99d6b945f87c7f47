"""Branching: a trunk that is shared up to a layer and copied per task, or cluster of tasks, from there on.

The copies have separate parameters. Only their own tasks reach them, so only these vote on them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.models import FeatureListNet
from torch import Tensor, nn

from disparse_structured.adapters.timm import Maps, MultiTask
from disparse_structured.errors import TaskError, UnsupportedModelError


def branch(model: MultiTask, at: str | int, clusters: Iterable[Sequence[str]] | None = None) -> MultiTask:
    """A copy of ``model`` whose trunk is shared and computed once up to ``at``, and copied from there on.

    Its outputs are bit-identical to those of ``model``, until it is trained or pruned.

    Args:
        model: a model whose trunk timm runs child after child; it is not changed.
        at: the last child of the trunk that is shared (``"layer2"``), or how many are shared; 0 shares
            nothing. :func:`children_before` says how many lie before a layer such as the watershed.
        clusters: the tasks that share a copy, every task once; by default each has its own.

    Raises:
        UnsupportedModelError: the trunk is of another kind, or already branched.
        TaskError: there is no such child, or ``clusters`` do not hold every task once.
    """
    names = _children(model)
    count = names.index(at) + 1 if at in names else at
    if not isinstance(count, int) or not 0 <= count <= len(names):
        raise TaskError(
            f"at={at!r} is not a place in the trunk. Use the name of the last shared child, one of {names}, "
            f"or how many children are shared, 0 to {len(names)}."
        )
    groups = _checked(clusters, model.head_names)
    branched = copy.deepcopy(model)
    branched.backbone = _Branches(branched.backbone, count, len(groups))
    for number, group in enumerate(groups):
        for name in group:
            branched.heads[name] = _OnBranch(number, branched.heads[name])
    return branched


def children_before(model: MultiTask, layer: str) -> int:
    """How many children of the trunk run before the one that holds ``layer``.

    Args:
        layer: the qualified name of a module or parameter of ``model`` in its trunk.

    Raises:
        UnsupportedModelError: as :func:`branch`.
        TaskError: the layer is not in the trunk.
    """
    names = _children(model)
    for number, name in enumerate(names):
        if f"{layer}.".startswith(f"backbone.net.{name}."):
            return number
    raise TaskError(f"layer {layer!r} is not in the trunk 'backbone.net', whose children are {names}.")


def _children(model: MultiTask) -> list[str]:
    """The trunk's children, in the order in which they run."""
    found = model.backbone if isinstance(model, MultiTask) else model
    if isinstance(found, _Branches):
        raise UnsupportedModelError("the trunk has branches already. Branch the original model instead.")
    if not isinstance(found, Maps) or not isinstance(found.net, FeatureListNet):
        kind = type(found.net if isinstance(found, Maps) else found).__name__
        raise UnsupportedModelError(
            f"a trunk of type {kind} does not run its children one after the other, so it cannot be split "
            "between two. Use multitask(...) on a backbone whose timm features are a FeatureListNet, such as "
            "a ResNet, ConvNeXt or RegNet; or share and copy modules in your own forward."
        )
    return list(found.net)


def _checked(clusters: Iterable[Sequence[str]] | None, heads: Sequence[str]) -> list[list[str]]:
    groups = [[name] for name in heads] if clusters is None else [list(cluster) for cluster in clusters]
    named = [name for group in groups for name in group]
    if sorted(named) != sorted(heads) or not all(groups):
        raise TaskError(
            f"clusters={groups} do not hold every task once. The tasks are {list(heads)}; pass lists of "
            "names, such as [['depth', 'normals'], ['labels']]."
        )
    return groups


class _Branches(nn.Module):
    """The trunk: a list of maps, finest first, for every branch."""

    def __init__(self, trunk: nn.Module, shared: int, branches: int) -> None:
        super().__init__()
        assert isinstance(trunk, Maps)
        assert isinstance(trunk.net, FeatureListNet)
        names = list(trunk.net)
        self.channels_last = trunk.channels_last
        self.shared = _Part(trunk.net, names[:shared])
        ends = [_Part(trunk.net, names[shared:]) for _ in range(branches if shared < len(names) else 1)]
        self.ends = nn.ModuleList(copy.deepcopy(end) for end in ends)
        if len(ends) > 1:
            _keep_input(self.ends)

    def forward(self, images: Tensor) -> list[list[Tensor]]:
        x, maps = self.shared(images)
        found: list[list[Tensor]] = [maps + end(x)[1] for end in self.ends]
        if self.channels_last:
            found = [[each.permute(0, 3, 1, 2) for each in maps] for maps in found]
        return found


class _Part(nn.Module):
    """Some children of timm's feature list, in order: the last one's output, and the maps among them."""

    def __init__(self, net: FeatureListNet, names: Sequence[str]) -> None:
        super().__init__()
        self.concat = net.concat
        self.returned = tuple(name for name in names if name in net.return_layers)
        self.layers = nn.ModuleDict({name: net[name] for name in names})

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        output: Any = x
        for name, layer in self.layers.items():
            output = layer(output)
            if name in self.returned:
                several = isinstance(output, tuple | list)
                maps.append((torch.cat(output, 1) if self.concat else output[0]) if several else output)
        return output, maps


class _OnBranch(nn.Module):
    """A head that reads the maps of its own branch."""

    def __init__(self, branch: int, head: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.head = head

    def forward(self, maps: Sequence[Sequence[Tensor]], size: Sequence[int]) -> Tensor:
        output: Tensor = self.head(maps[min(self.branch, len(maps) - 1)], size)
        return output


def _keep_input(ends: nn.Module) -> None:
    """Makes activations out-of-place, because several branches now share their input."""
    for module in ends.modules():
        if vars(module).get("inplace") is True:
            vars(module)["inplace"] = False
