"""Whether train mode runs something that eval mode does not: an auxiliary head, a different decoding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from disparse_structured.data.call import call
from disparse_structured.data.enlarging import enlarged, largest_size
from disparse_structured.data.modes import eval_mode, train_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of

_FACTORS = (1, 2, 3, 4)
"""Images are enlarged by these factors until train mode accepts them: some auxiliary heads need it."""

_LARGEST = 512
"""They are not enlarged beyond this many pixels."""


def train_mode_adds(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Find out whether a forward pass in train mode runs something that eval mode does not.

    It does if it calls more modules, reads more parameters, or returns other shapes. A copy of
    ``model`` runs, and only if its code reads the mode at all.

    Returns:
        0 if it does not, or fails in train mode; otherwise the factor by which images must be enlarged for
        it to run, usually 1.
    """
    if not any(map(_asks_for_mode, {type(module) for module in model.modules()})):
        return 0
    sides = largest_size(inputs) or (_LARGEST,)
    for factor in _FACTORS:
        if factor > 1 and factor * max(sides) > _LARGEST:
            break
        given = enlarged(inputs, factor)
        try:
            with torch.no_grad(), Isolation(0, device_of(model)):
                student = copied(model)
                with eval_mode(student):
                    called, read, shapes = _run(student, given)
                with train_mode(student):
                    also_called, also_read, train_shapes = _run(student, given)
        except Exception:  # whatever a user's forward raises
            continue
        adds = not (also_called <= called and also_read <= read) or train_shapes != shapes
        return factor if adds else 0
    return 0


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[set[str], set[str], list[tuple[int, ...]]]:
    """The modules that are called, the parameters that are read, and the shapes of what is returned."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        with _Read(dict(model.named_parameters())) as read:
            output = call(model, pytree.tree_map(clone_if_tensor, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return called, read.names, [tuple(tensor.shape) for tensor in tensor_leaves(output)]


class _Read(TorchDispatchMode):
    """Collects the names of those of ``parameters`` that operators read."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self._owners = {each.untyped_storage().data_ptr(): name for name, each in parameters.items()}
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self.names.add(self._owners.get(leaf.untyped_storage().data_ptr(), ""))
        return func(*args, **(kwargs or {}))


def _asks_for_mode(kind: type) -> bool:
    """Whether a method of a class that is not torch's own reads ``self.training``."""
    if kind.__module__.partition(".")[0] == "torch":
        return False
    return any("training" in inspect.unwrap(method).__code__.co_names for method in _methods(kind))


def _methods(kind: type) -> Iterator[Any]:
    for cls in kind.__mro__:
        if cls.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from (each for each in vars(cls).values() if inspect.isfunction(each))
