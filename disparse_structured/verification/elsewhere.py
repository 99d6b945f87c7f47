"""The masked twin on inputs of another shape than the example's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from disparse_structured.data.batches import batch_size, map_batched, take
from disparse_structured.data.call import call
from disparse_structured.data.randomness import Isolation
from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.graph.named_tensors import device_of
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_at
from disparse_structured.structure.groups import positions_left
from disparse_structured.verification.copy import TOLERANCES, Outputs, VerificationCopy
from disparse_structured.verification.twin import masked_twin

Run = Callable[[tuple[Any, ...]], Outputs]


class ComparisonError(Exception):
    """Says why a pruned network is wrong on inputs of another shape."""


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A verification copy with its own inputs, and ``twin(keep)``, the masked twin on such inputs.

    ``twin`` returns None if it is unknown there: an operator without a rule reads what ``keep`` removes.
    """

    reference: VerificationCopy
    twin: Callable[[torch.Tensor], Run | None]

    def deviation(self, run: Run, keep: torch.Tensor) -> dict[str, float] | None:
        """Return the largest relative difference of each task, None if there is nothing to compare with.

        Raises:
            ComparisonError: units of which ``keep`` removes only some are one unit there.
        """
        twin = self.twin(keep)
        return None if twin is None else self.reference.deviation(run, twin)


Called = list[tuple[Any, tuple[Any, ...]]]
"""The operators of a run, each with all arguments that are not tensors."""


def operators(reference: VerificationCopy, inputs: tuple[Any, ...]) -> Called:
    """Return what the dense model calls on ``inputs``.

    What is true of its own inputs is true of others on which it calls the same, with the same numbers.
    """
    recorder = _Operators()
    isolated = Isolation(0, device_of(reference.model))
    with torch.no_grad(), isolated, reference.precision(), recorder:
        call(reference.model, pytree.tree_map(clone_if_tensor, inputs))
    return recorder.called


class _Operators(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.called: Called = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, int | float | str | bool))
        self.called.append((func, numbers))
        return func(*args, **(kwargs or {}))


def elsewhere(
    reference: VerificationCopy, inputs: tuple[Any, ...], dense: Run, *, batch: bool = False
) -> Elsewhere | None:
    """Find the twin of ``reference`` on ``inputs``; None if ``dense`` does not agree with it.

    Args:
        dense: runs the dense model of ``reference``.
        batch: whether ``inputs`` are those of ``reference`` with one more example, or one of them alone. If
            each example is computed by itself, their graph need not be exported.
    """
    keep_all = torch.ones(reference.structure.units, dtype=torch.bool)
    for make in (_by_windows, _exported) if batch else (_exported,):
        try:
            found = make(reference, inputs)
            deviation = found.deviation(dense, keep_all)
        except Exception:  # whatever it raises, the graph does not take these inputs
            continue
        if deviation is not None and max(deviation.values()) <= TOLERANCES[reference.dtype]:
            return found
    return None


def _by_windows(reference: VerificationCopy, inputs: tuple[Any, ...]) -> Elsewhere:
    """Examples in batches of the size that the graph is for: all but the last, and all but the first.

    An example alone is repeated.
    """
    batch = reference.structure.resizing.batch

    def twin(keep: torch.Tensor) -> Run:
        masked = masked_twin(reference.structure, keep)

        def run(given: tuple[Any, ...]) -> Outputs:
            count = batch_size(given)
            whole = given if count > batch else _repeated(given, batch)
            first, last = (
                reference.run(take(whole, part), masked) for part in (slice(batch), slice(-batch, None))
            )
            return {
                task: [
                    torch.cat([tensor, end[-1:]])[:count] if tensor.ndim and len(tensor) == batch else tensor
                    for tensor, end in zip(tensors, last[task], strict=True)
                ]
                for task, tensors in first.items()
            }

        return run

    return Elsewhere(replace(reference, inputs=inputs), twin)


def _repeated(inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """One example as a batch of ``batch``."""
    return map_batched(lambda leaf: torch.cat([leaf] * batch), inputs)


def _exported(reference: VerificationCopy, inputs: tuple[Any, ...]) -> Elsewhere:
    """The graph for these inputs. Its numbers pin nothing, because the twin does not compute with them."""
    given = reference.structure
    own = replace(given, form="graph", train_factor=0, captures=given.captures.elsewhere)
    found = structure_at(own, reference.model, inputs)
    there = replace(reference, structure=found, inputs=inputs)

    def twin(keep: torch.Tensor) -> Run | None:
        carried = _carried(given, found, keep)
        if carried is None:
            return None
        masked = masked_twin(found, carried)
        return lambda inputs: there.run(inputs, masked)

    return Elsewhere(there, twin)


def _carried(given: Structure, found: Structure, keep: torch.Tensor) -> torch.Tensor | None:
    """The units of ``found`` that have the slices of the units of ``given`` in ``keep``.

    None if something is removed that belongs to no unit of ``found``, although ``found`` uses it.
    """
    gone = _gone(given, keep)
    covered: dict[tuple[str, int], set[int]] = defaultdict(set)
    carried = torch.ones(found.units, dtype=torch.bool)
    for group in found.groups:
        removed = [
            np.isin(member.index, sorted(gone.get((member.parameter, member.dim), ())))
            for member in (*group.members, *group.attributes)
        ]
        for member in (*group.members, *group.attributes):
            covered[member.parameter, member.dim].update(member.index.reshape(-1).tolist())
        whole = np.concatenate(removed, axis=1)
        some, every = whole.any(axis=1), whole.all(axis=1)
        if (some != every).any():
            raise ComparisonError(f"the units of {group.name!r} depend on one another in other ways")
        carried[group.slice] = torch.from_numpy(~every)
    used = _used(found)
    pinned = any(positions - covered[place] for place, positions in gone.items() if place[0] in used)
    return None if pinned else carried


def _gone(structure: Structure, keep: torch.Tensor) -> dict[tuple[str, int], set[int]]:
    """What ``keep`` removes, by tensor and dimension."""
    shapes = structure.capture.shapes()
    return {
        (name, dim): set(range(shapes[name][dim])) - set(positions.tolist())
        for name, dims in positions_left(structure.groups, shapes, keep).items()
        for dim, positions in dims.items()
    }


def _used(structure: Structure) -> set[str]:
    """The tensors that the graph reads."""
    capture = structure.capture
    names = {**capture.tensors, **capture.attributes}
    return {
        names[node.name]
        for node in capture.graph.find_nodes(op="placeholder")
        if node.users and node.name in names
    }
