"""What the dense model can do beyond the example: other batches, other sizes, train mode.

A pruned model must do all of this too. Tables that were cut to the example's length, heads that run only in
train mode, and fixed sizes fail here, though not on the example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batch_size, batched_leaves, map_batched
from disparse_structured.data.call import call
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of

Inputs = tuple[Any, ...]
Outputs = Callable[[Any], Sequence[torch.Tensor]]

_STEP = 32
"""By how many pixels images are enlarged: most networks halve them at most five times."""


@dataclass(frozen=True)
class Situation:
    """A way of running a model.

    Args:
        name: for reports and messages, such as ``"a batch of 3"``.
        run: runs a model that way and returns what must be the same for the dense and the pruned model.
    """

    name: str
    run: Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Abilities:
    """The situations that a dense model handles, and what it returned."""

    found: tuple[tuple[Situation, Any], ...]

    @classmethod
    def of(cls, dense: nn.Module, inputs: Inputs, outputs: Outputs = tensor_leaves) -> Abilities:
        """Try the situations on ``dense``, which must be in eval mode; those that fail are left out.

        ``outputs`` picks the tensors whose shapes must be the same from what a model returns.
        """
        found: list[tuple[Situation, Any]] = []
        for alternatives in _situations(inputs, outputs):
            for situation in alternatives:
                try:
                    found.append((situation, situation.run(dense)))
                except Exception:  # whatever it raises, the model does not handle it
                    continue
                break
        return cls(tuple(found))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the situations."""
        return tuple(situation.name for situation, _ in self.found)

    def missing(self, pruned: nn.Module) -> str | None:
        """Say what the dense model can do and ``pruned`` cannot; None if nothing."""
        for situation, expected in self.found:
            try:
                actual = situation.run(pruned)
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else ""
                return f"with {situation.name}, it raises {type(error).__name__}: {reason}"
            if actual != expected:
                return f"with {situation.name}, it returns {actual}; the dense model returns {expected}"
        return None


def _situations(inputs: Inputs, outputs: Outputs) -> Iterator[Sequence[Situation]]:
    """Lists of alternatives; the first one that the dense model handles counts."""
    size = batch_size(inputs)
    yield [_shaped(f"a batch of {size + 1}", _resized(inputs, lambda _: {0: size + 1}), outputs)]
    spatial = {tuple(leaf.shape[2:]) for leaf in _batched(inputs) if leaf.ndim > 2}
    if spatial:
        largest = max(spatial, key=sum)
        yield [
            _shaped(f"the size {'x'.join(map(str, grown))}", _of_size(inputs, largest, grown), outputs)
            for grown in (tuple(side + _STEP for side in largest), tuple(2 * side for side in largest))
        ]
    lengths = {leaf.shape[1] for leaf in _batched(inputs) if _is_sequence(leaf)}
    for length in sorted(lengths):
        yield [
            _shaped(f"the length {longer}", _of_length(inputs, length, longer), outputs)
            for longer in (2 * length, length + 4, length + 1)
        ]
    yield [Situation("train mode", lambda model: _trained(model, inputs))]


def _shaped(name: str, inputs: Inputs, outputs: Outputs) -> Situation:
    def run(model: nn.Module) -> list[tuple[int, ...]]:
        with torch.no_grad(), Isolation(0, device_of(model)):
            output = call(model, pytree.tree_map(clone_if_tensor, inputs))
        return [tuple(tensor.shape) for tensor in outputs(output)]

    return Situation(name, run)


def _trained(model: nn.Module, inputs: Inputs) -> None:
    """A forward and a backward pass in train mode.

    Only that it runs counts. What it computes may depend on random numbers, of which dropout draws as many as
    the widths say.
    """
    student = copied(model).train()
    with torch.enable_grad(), Isolation(0, device_of(model)):
        output = call(student, pytree.tree_map(clone_if_tensor, inputs))
        losses = [tensor.mean() for tensor in tensor_leaves(output) if tensor.requires_grad]
        sum(losses, torch.zeros(())).backward()


def _batched(inputs: Inputs) -> list[torch.Tensor]:
    pairs = zip(pytree.tree_leaves(inputs), batched_leaves(inputs), strict=True)
    return [leaf for leaf, batched in pairs if batched]


def _is_sequence(leaf: torch.Tensor) -> bool:
    """Whether it may hold token ids, a token mask, or a vector for each token."""
    tokens = leaf.ndim == 2 and not leaf.is_floating_point()
    return (tokens or leaf.ndim == 3) and leaf.shape[1] > 1


def _of_length(inputs: Inputs, length: int, longer: int) -> Inputs:
    """``inputs`` with the second dimension ``longer`` where it was ``length``."""

    def sizes(leaf: torch.Tensor) -> dict[int, int]:
        return {1: longer} if leaf.ndim > 1 and leaf.shape[1] == length else {}

    return _resized(inputs, sizes)


def _of_size(inputs: Inputs, sides: tuple[int, ...], grown: tuple[int, ...]) -> Inputs:
    """``inputs`` with the largest grown from ``sides`` to ``grown`` and all others in proportion."""

    def sizes(leaf: torch.Tensor) -> dict[int, int]:
        own = leaf.shape[2:]
        if len(own) != len(sides):
            return {}
        return {2 + i: side * grown[i] // sides[i] for i, side in enumerate(own)}

    return _resized(inputs, sizes)


def _resized(inputs: Inputs, sizes: Callable[[torch.Tensor], dict[int, int]]) -> Inputs:
    """Batched ``inputs`` repeated along dimensions, so that values stay in their range."""

    def resized(leaf: torch.Tensor) -> torch.Tensor:
        for dim, size in sizes(leaf).items():
            positions = torch.arange(size, device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, positions)
        return leaf

    return map_batched(resized, inputs)
