"""A copy of a model for verification: in double precision, with random values for degenerate weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from disparse_structured.data.batches import batched_leaves, map_batched
from disparse_structured.data.call import Batched, call
from disparse_structured.data.differences import difference
from disparse_structured.data.precision import in_precision, is_inexact
from disparse_structured.errors import CaptureError, PlanError, VerificationError
from disparse_structured.graph.capture import clone_if_tensor
from disparse_structured.graph.copies import copied_in
from disparse_structured.graph.named_tensors import detached_tensors, named_tensors
from disparse_structured.graph.side_effects import undone
from disparse_structured.graph.signature import Signature
from disparse_structured.structure import Structure
from disparse_structured.structure.at_shape import structure_at
from disparse_structured.structure.captures import Captured
from disparse_structured.verification.precision import double_precision, has_narrow_dtypes, is_nested

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation between networks that must agree, relative as in :func:`difference`."""

Outputs = Mapping[str, Sequence[torch.Tensor]]
"""The tensors of each task."""


@dataclass(frozen=True)
class Comparison:
    """The largest relative difference of each task, and the tasks for which it is meaningless, and why."""

    deviation: Mapping[str, float]
    empty: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class VerificationCopy:
    """A deep copy of a model in eval mode, with its structure and its own inputs.

    The copy has different values where the model's own would hide a mistake: in a branch scaled by
    zero, or in a freshly initialized normalization, which is the same for all channels.
    """

    model: nn.Module
    structure: Structure
    inputs: tuple[Any, ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls, model: nn.Module, structure: Structure, dtype: torch.dtype = torch.float64
    ) -> VerificationCopy:
        """Copy ``model`` in ``dtype``, or in float32 if it cannot run in ``dtype``.

        Raises:
            PlanError: ``structure`` does not describe the model.
            CaptureError: the model does not run in float32 either.
        """
        try:
            return cls._in(model, structure, dtype)
        except (CaptureError, RuntimeError) as error:
            if dtype is not torch.float32:
                return cls.of(model, structure, torch.float32)
            raise CaptureError(
                f"{type(model).__name__} does not run in float32, in which results are verified. If forward "
                "casts to a fixed type, let it cast to the type of its weights. Or skip the "
                f"verification with verify=False (--no-verify). The error was: {error}"
            ) from error

    @classmethod
    def _in(cls, model: nn.Module, structure: Structure, dtype: torch.dtype) -> VerificationCopy:
        dense = copied_in(model, dtype)
        for module in dense.modules():
            module.training = False
        _randomize_constants(dense)
        inputs = _cast(structure.example_inputs, dtype)
        signature = Signature.of(dense, inputs)
        if signature != structure.signature and structure.captures.recall(signature) is None:
            same = replace(structure, signature=signature, example_inputs=inputs)
            if cls(dense, same, inputs, dtype)._is_the_model():
                structure.captures.remember(signature, Captured(structure.capture))
        found = structure_at(structure, dense, inputs)
        if found.fingerprint != structure.fingerprint:
            raise PlanError(
                f"the model's structure in {dtype} is not the one that was analyzed. "
                "Analyze the model as it is now and make a new plan."
            )
        return cls(dense, found, inputs, dtype)

    def _is_the_model(self) -> bool:
        """Whether the graph, exported in another precision, computes the same as the model in this one.

        A few passes tell that far sooner than another export.
        """
        graph = self.structure.capture.graph
        if self.structure.entry_points or is_nested(graph) or has_narrow_dtypes(graph):
            return False

        def dense(inputs: tuple[Any, ...]) -> Outputs:
            output = call(self.model, pytree.tree_map(clone_if_tensor, inputs))
            return {task.name: task.tensors(output) for task in self.structure.task_objects}

        try:
            with undone(self.model):
                deviation = self.deviation(self.run, dense)
        except Exception:  # whatever it raises, the export says more
            return False
        return max(deviation.values()) <= TOLERANCES[self.dtype]

    def run(self, inputs: tuple[Any, ...], module: Callable[..., Any] | None = None) -> Outputs:
        """Run the exported graph, or ``module``, which was made from it."""
        return self.structure.capture.run(detached_tensors(self.model), inputs, module)

    def deviation(
        self,
        actual: Callable[[tuple[Any, ...]], Outputs],
        expected: Callable[[tuple[Any, ...]], Outputs],
    ) -> dict[str, float]:
        """Return only the differences that :meth:`compare` finds."""
        return dict(self.compare(actual, expected).deviation)

    def compare(
        self,
        actual: Callable[[tuple[Any, ...]], Outputs],
        expected: Callable[[tuple[Any, ...]], Outputs],
    ) -> Comparison:
        """Compare each task's output on the example inputs and, if the model takes them, on others like them.

        Raises:
            VerificationError: a task's expected output holds no finite number.
        """
        found: dict[str, list[float]] = {name: [] for name in self.structure.tasks}
        seen: dict[str, list[Sequence[torch.Tensor]]] = {name: [] for name in self.structure.tasks}
        others = other_inputs(self.inputs)
        for inputs in (self.inputs, others):
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self.precision():
                try:
                    wanted = expected(inputs)
                except Exception:  # whatever it raises: noise may mean nothing, such as a region of no image
                    if inputs is self.inputs:
                        raise
                    continue
                given = actual(inputs)
            for name in found:
                seen[name].append(wanted[name])
                pairs = zip(given[name], wanted[name], strict=True)
                found[name] += [difference(a, b) for a, b in pairs if b.isfinite().any() or not b.numel()]
        for name, differences in found.items():
            if not differences:
                raise VerificationError(
                    f"task {name!r}: the dense model's output holds no finite number, so nothing can be "
                    "compared. Pass example inputs that the model was made for."
                )
        deviation = {name: max(differences) for name, differences in found.items()}
        remarks = {
            name: remark
            for name, outputs in seen.items()
            if (remark := _nothing_in(outputs, _differ(self.inputs, others)))
        }
        return Comparison(deviation, remarks)

    def precision(self) -> AbstractContextManager[None]:
        """Make everything compute in float64 where the copy does."""
        if self.dtype is torch.float64 and has_narrow_dtypes(self.structure.capture.graph):
            return double_precision()
        return nullcontext()


def _randomize_constants(model: nn.Module) -> None:
    """Adds random positive noise to parameters and running statistics that are constant, or a scalar 0."""
    generator = torch.Generator().manual_seed(0)
    statistics = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for tensor in (module.running_mean, module.running_var)
    }
    with torch.no_grad():
        for tensor in named_tensors(model)[0].values():
            chosen = isinstance(tensor, nn.Parameter) or id(tensor) in statistics
            if not chosen or not is_inexact(tensor) or not tensor.numel():
                continue
            first = tensor.reshape(-1)[0]
            if bool((tensor == first).all()) and (tensor.numel() > 1 or first == 0):
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(noise.to(tensor.device), alpha=0.5)


def _differ(inputs: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    pairs = zip(pytree.tree_leaves(inputs), pytree.tree_leaves(others), strict=True)
    return any(isinstance(a, torch.Tensor) and not torch.equal(a, b) for a, b in pairs)


def _nothing_in(outputs: Sequence[Sequence[torch.Tensor]], inputs_differ: bool) -> str | None:
    """Why agreement with ``outputs``, a task's outputs on two inputs, is meaningless; None if it is not."""
    if not any(tensor.any() for tensors in outputs for tensor in tensors):
        return "its output is zero"
    first, *rest = outputs
    if inputs_differ and all(
        len(other) == len(first) and all(map(torch.equal, first, other)) for other in rest
    ):
        return "its output is the same for other inputs"
    return None


def mismatch_in(deviation: Mapping[str, float], dtype: torch.dtype) -> str | None:
    """Describe the largest of the tasks' deviations; None if all are within tolerance."""
    task, worst = max(deviation.items(), key=lambda item: item[1])
    if not worst <= TOLERANCES[dtype]:
        return f"task {task!r} deviates from the masked twin by {worst:.3g}"
    return None


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    def cast(leaf: Any) -> Any:
        return in_precision(leaf, dtype) if isinstance(leaf, torch.Tensor) else leaf

    found: tuple[Any, ...] = pytree.tree_map(cast, inputs)
    return found


def other_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other values of the same shape, so that the networks cannot agree by accident.

    Where examples share a tensor, they may refer to its positions (regions of images), so they only trade
    places.
    """
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.numel() <= 1:
            return leaf
        if not is_inexact(leaf):
            return leaf.flip(0)
        noise = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        return leaf.flip(0) + noise * (leaf.std() or 1.0)

    if isinstance(inputs, Batched):
        shared = map_batched(lambda leaf: leaf.flip(0), inputs)
        batched = iter(batched_leaves(inputs))
        found: tuple[Any, ...] = pytree.tree_map(lambda leaf: leaf if next(batched) else other(leaf), shared)
    else:
        found = pytree.tree_map(other, inputs)
    return found
