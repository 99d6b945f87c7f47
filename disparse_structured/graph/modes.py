"""Whether train mode runs something that eval mode does not: an auxiliary head, a different decoding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from disparse_structured.data.call import call
from disparse_structured.data.modes import eval_mode, train_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of


def train_mode_adds(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Check whether a forward pass in train mode calls more modules than in eval mode, or changes shapes.

    A copy of ``model`` runs, and only if its code reads the mode at all. False if it fails in train mode.
    """
    if not any(map(_asks_for_mode, {type(module) for module in model.modules()})):
        return False
    try:
        with torch.no_grad(), Isolation(0, device_of(model)):
            student = copied(model)
            with eval_mode(student):
                called, shapes = _run(student, inputs)
            with train_mode(student):
                also_called, train_shapes = _run(student, inputs)
    except Exception:  # whatever a user's forward raises
        return False
    return not also_called <= called or train_shapes != shapes


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[set[str], list[tuple[int, ...]]]:
    """The modules that are called, and the shapes of what is returned."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        output = call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return called, [tuple(tensor.shape) for tensor in tensor_leaves(output)]


def _asks_for_mode(kind: type) -> bool:
    """Whether a method of a class that is not torch's own reads ``self.training``."""
    if kind.__module__.partition(".")[0] == "torch":
        return False
    return any("training" in inspect.unwrap(method).__code__.co_names for method in _methods(kind))


def _methods(kind: type) -> Iterator[Any]:
    for cls in kind.__mro__:
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from (each for each in vars(cls).values() if inspect.isfunction(each))
