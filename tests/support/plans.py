"""What the tests of the engine share: analyzed networks of the zoo, random plans, and comparisons.

Everything here is cached or pure; tests copy a case's model before they change it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.export import export_onnx
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery.module import cut
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import masked_twin
from tests.support.zoo import BY_ID

LEARNING_RATE = 0.02

Outputs = Mapping[str, Iterable[Tensor]]


@dataclass(frozen=True, eq=False)
class Case:
    """A dense float64 network in eval mode, one batch of two for it, and its structure."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    structure: Structure

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Tensor, ...], tasks: Iterable[Task]) -> Case:
        return cls(model, inputs, analyse(model, inputs, tuple(tasks)))

    def pruned(self, keep: Tensor) -> nn.Module:
        return cut(self.model, self.structure, keep)

    def outputs(self, model: nn.Module, inputs: tuple[Tensor, ...] | None = None) -> Outputs:
        """What ``model`` computes, by task."""
        with torch.no_grad():
            output = model(*(self.inputs if inputs is None else inputs))
        return {task.name: task.tensors(output) for task in self.structure.task_objects}

    def twin(self, keep: Tensor, inputs: tuple[Tensor, ...] | None = None) -> Outputs:
        """What the masked twin computes, by task; the batch must be one of two."""
        state = {name: tensor.detach() for name, tensor in named_tensors(self.model)[0].items()}
        twin = masked_twin(self.structure, keep)
        with torch.no_grad():
            return self.structure.capture.run(state, self.inputs if inputs is None else inputs, twin)

    def deviation(self, keep: Tensor) -> float:
        """How far the pruned module is from the masked twin."""
        return deviation(self.outputs(self.pruned(keep)), self.twin(keep))


@functools.cache
def case(id: str) -> Case:
    """The zoo's network ``id`` in float64; one object a process, never to be changed."""
    entry = BY_ID[id]
    return Case.of(entry.factory(torch.float64), entry.inputs(dtype=torch.float64), entry.tasks)


def deviation(actual: Outputs, expected: Outputs) -> float:
    """The largest difference, relative to the largest value of the same tensor; infinite if shapes differ."""
    worst = 0.0
    for name, tensors in expected.items():
        for found, wanted in zip(actual[name], tensors, strict=True):
            if found.shape != wanted.shape:
                return float("inf")
            worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    return worst


def random_keep(
    structure: Structure, seed: int, share: float | None = None, only: Iterable[str] | None = None
) -> Tensor:
    """Bool ``[units]``: about ``share`` of every group (of ``only``) stays, or of each a share of its own.

    Every group loses at least one unit and keeps at least one; count constraints are respected.
    """
    generator = np.random.default_rng(seed)
    counts = {group.name: _about(share, group.units, generator) for group in structure.groups}
    for constraint in structure.constraints:
        units = {name: structure.group(name).units for name in constraint.groups}
        most = min(sum(units[name] for name in names) // part for names, part in constraint.sides)
        least = max(-(-len(names) // part) for names, part in constraint.sides)
        times = max(least, _about(share, most, generator))
        for names, part in constraint.sides:
            counts |= _shared_out(times * part, {name: units[name] for name in names}, generator)
    wanted = set(counts) if only is None else structure.bound_to(only)
    keep = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        if group.name in wanted:
            gone = generator.permutation(group.units)[counts[group.name] :]
            keep[group.start + torch.from_numpy(gone)] = False
    return keep


def _shared_out(total: int, units: Mapping[str, int], generator: np.random.Generator) -> dict[str, int]:
    """At least one and at most all ``units`` of each, ``total`` together."""
    rest = [name for name, most in units.items() for _ in range(most - 1)]
    drawn = [*units, *(rest[i] for i in generator.permutation(len(rest))[: total - len(units)])]
    return {name: drawn.count(name) for name in units}


def _about(share: float | None, most: int, generator: np.random.Generator) -> int:
    share = generator.uniform(0.2, 0.9) if share is None else share
    return min(max(round(share * most), 1), most - 1)


def random_plan(structure: Structure, seed: int, share: float | None = None) -> Plan:
    return Plan.from_keep(structure, random_keep(structure, seed, share))


def zeroed(model: nn.Module, structure: Structure, keep: Tensor) -> nn.Module:
    """A dense copy of ``model`` in which every parameter slice that ``keep`` removes is zero."""
    copied = copy.deepcopy(model)
    tensors, _ = named_tensors(copied)
    with torch.no_grad():
        for group in structure.groups:
            gone = ~keep[group.slice].numpy()
            for member in group.members:
                tensor = tensors[member.parameter]
                if isinstance(tensor, nn.Parameter):
                    tensor.index_fill_(member.dim, torch.from_numpy(member.index[gone].reshape(-1)), 0)
    return copied


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a careless visitor could change: tensors, flags, modes, attributes with their types."""
    facts: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    facts[f"{path}:{key}"] = None if tensor is None else _tensor_facts(tensor)
            elif name == "_modules" or name.endswith("_hooks"):
                facts[f"{path}:{name}"] = list(value)
            else:
                facts[f"{path}:{name}"] = (repr(value), _types(value))
    return facts


def _tensor_facts(tensor: Tensor) -> tuple[Any, ...]:
    data = tensor.detach()
    return (
        id(tensor), type(tensor), data.dtype, data.stride(), tensor.requires_grad, tensor.grad is None,
        data.contiguous().numpy().tobytes(),
    )  # fmt: skip


def _types(value: Any) -> Any:
    return [type(value), *map(type, value)] if isinstance(value, list | tuple) else type(value)


def learns(pruned: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether every parameter gets a gradient, and a step lowers the loss; of networks that return a dict."""
    optimizer = torch.optim.SGD(pruned.train().parameters(), lr=LEARNING_RATE)

    def loss() -> Tensor:
        return torch.stack([(tensor - 1).square().mean() for tensor in pruned(*inputs).values()]).sum()

    before = loss()
    before.backward()
    reached = all(parameter.grad is not None for parameter in pruned.parameters())
    optimizer.step()
    return reached and bool(loss() < before)


def onnx_parity(case: Case, keep: Tensor, path: Path) -> float:
    """The largest relative difference between ONNX Runtime and PyTorch, pruned, in float32."""
    outputs = {task.name: task.tensors for task in case.structure.task_objects}
    inputs = tuple(tensor.float() for tensor in case.inputs)
    facts = export_onnx(case.pruned(keep).float(), inputs, path, outputs=outputs, dynamic_size=False)
    return max(fact.max_rel for fact in facts.parity)
