"""Which inputs of a model have a batch dimension: found out by running it with one more example."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.checks import shown
from disparse_structured.data.batches import batched_leaves
from disparse_structured.data.call import Batched, call, named_leaves
from disparse_structured.data.differences import difference
from disparse_structured.data.modes import eval_mode
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import OptionError
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of

Inputs = tuple[Any, ...]

_TRIED = 4
"""Among more inputs with as many positions, only one of them, all, and all but one are tried."""

_MANY, _ENOUGH = 64, 3
"""Of more examples than the first number, only the second number are tried first, which is cheap."""

_CLOSE = 1e-3
"""How far the earlier examples' outputs may move."""


def with_batch(model: nn.Module, inputs: Inputs, batched: Sequence[str] | None = None) -> Inputs:
    """Return ``inputs`` as :class:`Batched` if not all of their tensors have a batch dimension.

    Some tensors have one together if a copy of ``model`` accepts one more example in all of them, returns one
    more in an output, and returns the same for the earlier examples. Of such sets, those count that lengthen
    most outputs, and of these the smallest. So an input without a batch dimension is told from others by what
    the model does, even if it is as long as the batch. If nothing is found (a network that mixes its
    examples, or whose graph fixes the batch), all tensors count whose first dimension is as large as the
    first tensor's.

    Args:
        inputs: the arguments of ``forward``; returned unchanged if they are already marked.
        batched: the names of those with a batch dimension, if they need not be found out. The name of a
            container stands for all tensors in it.

    Raises:
        OptionError: ``batched`` names no tensor argument, or tensors of unequal length.
    """
    if batched is not None:
        return Batched(inputs, _named(model, inputs, batched))
    leaves = pytree.tree_leaves(inputs)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    if isinstance(inputs, Batched) or len(tensors) < 2:
        return inputs
    found = _found(model, inputs, tensors)
    if found is None:
        found = [i for i, yes in enumerate(batched_leaves(inputs)) if yes]
    return inputs if found == tensors else Batched(inputs, found)


def _named(model: nn.Module, inputs: Inputs, batched: Sequence[str]) -> list[int]:
    leaves = named_leaves(model.forward, inputs)
    tensors = {
        i: name for i, (name, leaf) in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.ndim
    }
    names = list(batched) if isinstance(batched, list | tuple | set | frozenset) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(
            f"batched={shown(batched)} must be a list of names. The tensors are {list(tensors.values())}."
        )
    found = [i for i, name in tensors.items() if any(name == of or name.startswith(f"{of}.") for of in names)]
    for each in names:
        if not any(name == each or name.startswith(f"{each}.") for name in tensors.values()):
            raise OptionError(
                f"batched= names {each!r}, which is not a tensor among the arguments of "
                f"{type(model).__name__}.forward. The tensors are {list(tensors.values())}."
            )
    sizes = {tensors[i]: leaves[i][1].shape[0] for i in found}
    if len(set(sizes.values())) > 1:
        raise OptionError(f"the arguments of batched= hold different numbers of examples: {sizes}.")
    return found


def _found(model: nn.Module, inputs: Inputs, tensors: Sequence[int]) -> list[int] | None:
    try:
        student = copied(model)
    except Exception:  # whatever a user's module raises; the caller copies it again and says so
        return None
    few = _few(inputs, tensors)
    for given in (*(() if few is inputs else (_varied(few), few)), _varied(inputs), inputs):
        try:
            before = _run(student, given)
        except Exception:  # whatever a user's forward raises; the caller runs it again and says so
            continue
        found = _growing(student, given, tensors, before)
        if found is not None:
            return found
    return None


def _few(inputs: Inputs, tensors: Sequence[int]) -> Inputs:
    """``inputs`` in which tensors as long as the first one are cut to :data:`_ENOUGH` positions.

    The model may refuse these inputs, if such a tensor has no batch dimension.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    size = leaves[tensors[0]].shape[0]
    if size <= _MANY:
        return inputs
    cut = [
        leaf[:_ENOUGH] if i in tensors and leaf.shape[0] == size else leaf for i, leaf in enumerate(leaves)
    ]
    found: Inputs = pytree.tree_unflatten(cut, spec)
    return found


def _varied(inputs: Inputs) -> Inputs:
    """``inputs`` with another value at the end of tensors that hold only one.

    A model may skip a mask that hides nothing, and then accepts one for fewer examples.
    """

    def varied(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim or leaf.shape[-1] < 2 or not leaf.numel():
            return leaf
        first = leaf.reshape(-1)[0]
        if not bool((leaf == first).all()):
            return leaf
        other = leaf.clone()
        other[..., -1] = 0 if first else 1
        return other

    found: Inputs = pytree.tree_map(varied, inputs)
    return found


def _growing(
    student: nn.Module, inputs: Inputs, tensors: Sequence[int], before: Sequence[torch.Tensor]
) -> list[int] | None:
    leaves = pytree.tree_leaves(inputs)
    for size in dict.fromkeys(leaves[i].shape[0] for i in tensors):
        alike = [i for i in tensors if leaves[i].shape[0] == size]
        passing: dict[frozenset[int], int] = {}
        for chosen in _subsets(alike):
            within = [longer for known, longer in passing.items() if known <= chosen]
            longer = 0 if len(before) in within else _longer(student, inputs, chosen, size, before)
            if longer > max(within, default=0):
                passing[chosen] = longer
        most = max(passing.values(), default=0)
        together = frozenset[int]().union(*(known for known, longer in passing.items() if longer == most))
        if size == 1 and passing and _longer(student, inputs, frozenset(alike), size, before):
            together = frozenset(alike)  # one position may also be broadcast, so it says nothing
        if together:
            return sorted(together)
    return None


def _subsets(items: Sequence[int]) -> Iterator[frozenset[int]]:
    """Sets of ``items``, from small to large."""
    sizes: Iterable[int] = range(1, len(items) + 1)
    if len(items) > _TRIED:
        sizes = (1, len(items) - 1, len(items))
    for size in sizes:
        yield from map(frozenset, itertools.combinations(items, size))


def _longer(
    model: nn.Module, inputs: Inputs, chosen: frozenset[int], size: int, before: Sequence[torch.Tensor]
) -> int:
    """To how many outputs one more example in the leaves of ``chosen`` adds one; 0 if it changes the others.

    The example is a repeated one, so that indices stay in range.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    grown = [torch.cat([leaf, leaf[:1]]) if i in chosen else leaf for i, leaf in enumerate(leaves)]
    try:
        after = _run(model, pytree.tree_unflatten(grown, spec))
    except Exception:  # whatever a user's forward raises
        return 0
    if len(after) != len(before):
        return 0
    longer = 0
    for old, new in zip(before, after, strict=True):
        more = bool(old.ndim) and new.ndim == old.ndim and new.shape[0] * size == old.shape[0] * (size + 1)
        if not (new[: old.shape[0]].shape == old.shape if more else new.shape == old.shape):
            return 0
        if not difference(new[: old.shape[0]] if more else new, old) <= _CLOSE:
            return 0
        longer += more and old.shape[0] > 0
    return longer


def _run(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with eval_mode(model), torch.no_grad(), Isolation(0, device_of(model)):
        return tensor_leaves(call(model, pytree.tree_map(clone_if_tensor, inputs)))
