"""Leaves out modules that a network never runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode, train_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import LoadError, UnsupportedModelError
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.copies import borrowing, copied
from disparse_structured.graph.entries import entered
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.structure import Structure, UnusedModule, analyse_alike

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""They stay, with other modules inside, because code may index them or ask for their length."""


def without_unused(
    model: nn.Module, structure: Structure
) -> tuple[nn.Module, Structure, tuple[UnusedModule, ...]]:
    """Copy ``model`` without the unused modules of its ``structure``.

    A module stays if the copy fails without it, or computes something else in eval mode, in train mode, or at
    an entry point.

    Returns:
        The copy, its structure, and the modules that were left out.

    Raises:
        UnsupportedModelError: the model fails in train mode, so what it needs there is unknown.
    """
    outputs = _outputs(model, structure)

    def droppable(modules: Sequence[UnusedModule]) -> bool:
        with contextlib.suppress(Exception):  # whatever a forward raises that misses a module
            found = _outputs(without(model, [each.module for each in modules]), structure)
            return len(found) == len(outputs) and all(map(torch.equal, found, outputs))
        return False

    dropped = structure.unused
    if not droppable(dropped):
        dropped = ()
        for each in structure.unused:
            if droppable((*dropped, each)):
                dropped = (*dropped, each)
    if not dropped:
        return model, structure, ()
    smaller = without(model, [each.module for each in dropped])
    return smaller, analyse_alike(smaller, structure), dropped


def without(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Copy ``model`` with :class:`torch.nn.Identity` in place of the modules called ``names``.

    Raises:
        LoadError: there is no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in names if name not in modules]
    if missing:
        raise LoadError(f"the model has no module {missing[0]!r}, which was left out when it was pruned.")
    with borrowing(model) as smaller:
        found = {id(each) for name in names for each in _parts(smaller.get_submodule(name))}
        for parent in list(smaller.modules()):
            for name, child in parent._modules.items():
                if id(child) in found:
                    parent._modules[name] = nn.Identity()
    return smaller


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """``module``, or what it contains if it is a container."""
    if isinstance(module, _CONTAINERS):
        for child in module.children():
            yield from _parts(child)
    else:
        yield module


def _outputs(model: nn.Module, structure: Structure) -> list[torch.Tensor]:
    """What ``model`` returns in eval mode, at its entry points, and in train mode; it is not changed."""
    inputs, copy = structure.example_inputs, copied(model)
    with torch.no_grad(), Isolation(0, device_of(model)), eval_mode(copy):
        outputs = tensor_leaves(call(copy, pytree.tree_map(clone_if_tensor, inputs)))
    for graph in structure.entry_points:
        student = copied(model)
        outputs += entered(graph.entry, student, graph.entry.arguments(student, inputs)).tensors(inputs)
    try:
        with torch.no_grad(), Isolation(0, device_of(model)), train_mode(copy):
            return outputs + tensor_leaves(call(copy, pytree.tree_map(clone_if_tensor, inputs)))
    except Exception as error:  # whatever a user's forward raises
        raise UnsupportedModelError(
            f"{type(model).__name__} fails in train mode ({type(error).__name__}: {error}), so it is unknown "
            "which modules it needs there. Leave out drop_unused, or make train mode work."
        ) from error
