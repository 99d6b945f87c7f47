"""What the dense model can do beyond the example: other batches, other sizes, train mode.

A pruned model must do all of this too, and compute what the masked twin computes there. Tables that were cut
to the example's length, heads that run only in train mode, fixed sizes and numbers that only other sizes use
fail here, though not on the example. So do layers that only smaller or larger images run.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batch_size, batched_leaves
from disparse_structured.data.call import call
from disparse_structured.data.enlarging import enlarged, largest_size, of_size, repeated
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import clone_if_tensor, tensor_leaves
from disparse_structured.graph.copies import copied
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.verification.copy import Outputs, VerificationCopy, mismatch_in
from disparse_structured.verification.elsewhere import (
    Called,
    ComparisonError,
    Elsewhere,
    Run,
    elsewhere,
    operators,
)

Inputs = tuple[Any, ...]

_STEP = 32
"""By how many pixels images are enlarged or cut: most networks halve them at most five times."""


@dataclass(frozen=True)
class Situation:
    """A way of running a model.

    Args:
        name: for reports and messages, such as ``"a batch of 3"``.
        inputs: the arguments of ``forward``.
        batch: whether they are the example inputs with one more example.
        smaller: whether images or texts are smaller than the example's.
        train: whether a training step is made.
    """

    name: str
    inputs: Inputs
    batch: bool = False
    smaller: bool = False
    train: bool = False


@dataclass(frozen=True)
class _Found:
    """A situation that the dense model handles, and the shapes that it returns.

    ``twin`` is None if it is unknown, or not needed: because of ``alike``, what the dense model computes
    there does not depend on the situation.
    """

    situation: Situation
    shapes: list[tuple[int, ...]]
    alike: bool
    twin: Elsewhere | None

    def deviation(self, run: Run, keep: torch.Tensor) -> dict[str, float] | None:
        return None if self.twin is None else self.twin.deviation(run, keep)


@dataclass(frozen=True)
class Checked:
    """What the dense model can do and a pruned one cannot, if anything, and what both can do."""

    missing: str | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Abilities:
    """The situations that the dense model of a verification copy handles.

    ``ran`` names the unused modules of its structure that run in some of them.
    """

    reference: VerificationCopy
    found: tuple[_Found, ...]
    ran: frozenset[str]

    @classmethod
    def of(cls, reference: VerificationCopy) -> Abilities:
        """Try the situations on the dense model; those that fail are left out."""
        found: list[_Found] = []
        known: list[Called] = []
        ran = set[str]()
        for alternatives in _situations(reference):
            for situation in alternatives:
                try:
                    with _watched(reference, ran):
                        shapes = _shapes(reference, reference.model, situation)
                except Exception:  # whatever it raises, the model does not handle it
                    continue
                found.append(_found(reference, situation, shapes, known))
                break
        return cls(reference, tuple(found), frozenset(ran))

    def check(self, pruned: nn.Module, keep: torch.Tensor) -> Checked:
        """Compare ``pruned``, which has the units of ``keep``, with the dense model and with the masked twin.

        Values are compared where the dense model computes in another way than on the example, and its graph
        can be exported for the situation's inputs. At smaller sizes, it must also call some operator more
        often than on the example and at other sizes: an export takes far longer than a run.
        """
        names = []
        for each in self.found:
            name = each.situation.name
            try:
                shapes = _shapes(self.reference, pruned, each.situation)
                deviation = each.deviation(runner(self.reference, pruned), keep)
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else ""
                said = (
                    reason
                    if isinstance(error, ComparisonError)
                    else f"it raises {type(error).__name__}: {reason}"
                )
                return Checked(f"with {name}, {said}")
            if shapes != each.shapes:
                return Checked(f"with {name}, it returns {shapes}; the dense model returns {each.shapes}")
            if deviation is not None and (wrong := mismatch_in(deviation, self.reference.dtype)) is not None:
                return Checked(f"with {name}, {wrong}")
            shapes_only = deviation is None and not each.alike
            names.append(f"{name} (only its shapes were compared)" if shapes_only else name)
        return Checked(None, tuple(names))


def _found(
    reference: VerificationCopy, situation: Situation, shapes: list[tuple[int, ...]], known: list[Called]
) -> _Found:
    """What the dense model does in ``situation``.

    ``known`` holds what it calls on the example and at other sizes, and gets what it calls here.
    """
    if situation.train:
        return _Found(situation, shapes, alike=True, twin=None)
    if not situation.batch:
        if not known:
            known.append(operators(reference, reference.inputs))
        called = operators(reference, situation.inputs)
        if called == known[0]:
            return _Found(situation, shapes, alike=True, twin=None)
        if situation.smaller and _counts(called) <= _counts(*known):
            return _Found(situation, shapes, alike=False, twin=None)
        known.append(called)
    dense = runner(reference, reference.model)
    twin = elsewhere(reference, situation.inputs, dense, batch=situation.batch)
    return _Found(situation, shapes, alike=False, twin=twin)


def _counts(*runs: Called) -> Counter[Any]:
    """How often each operator is called, in the run that calls it most."""
    return functools.reduce(operator.or_, (Counter(each for each, _ in called) for called in runs))


@contextmanager
def _watched(reference: VerificationCopy, ran: set[str]) -> Iterator[None]:
    """Adds the unused modules that run within the context to ``ran``."""
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=each.module: ran.add(name))
        for each in reference.structure.unused
        for layer in reference.model.get_submodule(each.module).modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def runner(reference: VerificationCopy, model: nn.Module) -> Run:
    """Return what runs ``model``, a copy of the one of ``reference``, and picks its tasks' tensors."""

    def run(inputs: Inputs) -> Outputs:
        output = call(model, pytree.tree_map(clone_if_tensor, inputs))
        return {task.name: task.tensors(output) for task in reference.structure.task_objects}

    return run


def _shapes(reference: VerificationCopy, model: nn.Module, situation: Situation) -> list[tuple[int, ...]]:
    """The shapes of what ``model`` returns and must return like the dense model; none in train mode."""
    if situation.train:
        with reference.precision():
            _train(model, situation.inputs)
        return []
    with torch.no_grad(), Isolation(0, device_of(model)), reference.precision():
        output = call(model, pytree.tree_map(clone_if_tensor, situation.inputs))
    structure = reference.structure
    outputs = structure.task_tensors if structure.outputs == "tasks" else tensor_leaves
    return [tuple(tensor.shape) for tensor in outputs(output)]


def _situations(reference: VerificationCopy) -> Iterator[Sequence[Situation]]:
    """Lists of alternatives; the first one that the dense model handles counts."""
    inputs = reference.inputs
    size = batch_size(inputs)
    more = repeated(inputs, lambda _: {0: size + 1})
    yield [Situation(f"a batch of {size + 1}", more, batch=True)]
    yield from other_sizes(inputs)
    factor = reference.structure.train_factor or 1
    sides = tuple(factor * side for side in largest_size(inputs) or ())
    name = "train mode" if factor == 1 else f"train mode at the size {_joined(sides)}"
    yield [Situation(name, enlarged(inputs, factor), train=True)]


def other_sizes(inputs: Inputs) -> Iterator[Sequence[Situation]]:
    """Larger and smaller images, longer and shorter sequences, as lists of alternatives."""
    largest = largest_size(inputs)
    if largest is not None:
        more, less = (tuple(side + step for side in largest) for step in (_STEP, -_STEP))
        yield [_sized(inputs, largest, sides) for sides in (more, tuple(2 * side for side in largest))]
        halves = tuple(side // 2 for side in largest)
        yield [_sized(inputs, largest, sides, smaller=True) for sides in (halves, less) if min(sides) > 0]
    lengths = {leaf.shape[1] for leaf in _batched(inputs) if _is_sequence(leaf)}
    for length in sorted(lengths):
        yield [_long(inputs, length, longer) for longer in (2 * length, length + 4, length + 1)]
        yield [_long(inputs, length, length // 2, smaller=True)] if length > 1 else []


def _sized(
    inputs: Inputs, largest: tuple[int, ...], sides: tuple[int, ...], *, smaller: bool = False
) -> Situation:
    return Situation(f"the size {_joined(sides)}", of_size(inputs, largest, sides), smaller=smaller)


def _long(inputs: Inputs, length: int, other: int, *, smaller: bool = False) -> Situation:
    return Situation(f"the length {other}", _of_length(inputs, length, other), smaller=smaller)


def _train(model: nn.Module, inputs: Inputs) -> None:
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


def _of_length(inputs: Inputs, length: int, other: int) -> Inputs:
    """``inputs`` with the second dimension ``other`` where it was ``length``."""

    def sizes(leaf: torch.Tensor) -> dict[int, int]:
        return {1: other} if leaf.ndim > 1 and leaf.shape[1] == length else {}

    return repeated(inputs, sizes)


def _joined(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
