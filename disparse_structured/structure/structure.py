"""What :func:`~disparse_structured.structure.analyse` finds in a model, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from disparse_structured.checks import check_object
from disparse_structured.data.call import marked_like
from disparse_structured.errors import PlanError
from disparse_structured.graph.capture import Capture
from disparse_structured.graph.provenance import Attribute
from disparse_structured.graph.signature import Signature
from disparse_structured.structure.captures import Captures
from disparse_structured.structure.cost import AnalyticCosts
from disparse_structured.structure.entering import EntryGraph
from disparse_structured.structure.groups import Attention, ChannelGroup, Pin, RatioConstraint
from disparse_structured.structure.resizing import Resizing
from disparse_structured.structure.scales import AttentionScale
from disparse_structured.structure.unused import UnusedModule
from disparse_structured.structure.weight_scales import WeightScale
from disparse_structured.tasks import Task

Form = Literal["module", "graph"]
"""What is pruned: the module itself, whose ``forward`` must follow, or its exported graph."""


OutputKind = Literal["all", "tasks"]
"""Which outputs must keep their widths: everything that the model returns, or only what the tasks pick."""


@dataclass(frozen=True)
class AttributeUpdate:
    """``attribute`` of the module equals row ``row`` of the cost model's widths."""

    attribute: Attribute
    row: int


@dataclass(frozen=True, eq=False)
class Structure:
    """What in a model may shrink, what must shrink together, and what reads it.

    ``reach`` is bool ``[tasks, units]``. ``unclaimed`` names the groups that no task reaches but an output
    outside all tasks depends on: no task votes on them, so they are kept. ``unused`` are modules that never
    run. ``graph_only`` is the share of the parameters in slices that only numbers in ``forward`` pin.
    ``fingerprint`` identifies the architecture (names, shapes, groups), the form and the unit of attention,
    not the weights. ``resizing`` says which integers of the graph follow the widths, ``scales`` and
    ``weight_scales`` which attention scales and which normalized weights would change with them.
    ``train_factor`` is 0 if train mode runs nothing that eval mode does not; otherwise, the factor by which
    images must be enlarged for it to run. ``entry_points`` are the other ways into the model that must work,
    with their graphs. ``capture`` is the model's graph for
    ``example_inputs``, and ``signature`` identifies it. ``captures`` caches graphs for other inputs, see
    :func:`~disparse_structured.structure.at_shape.structure_at`.
    """

    tasks: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pin, ...]
    unused: tuple[UnusedModule, ...]
    graph_only: float
    constraints: tuple[RatioConstraint, ...]
    reach: torch.Tensor
    unclaimed: frozenset[str]
    cost: AnalyticCosts
    attributes: tuple[AttributeUpdate, ...]
    resizing: Resizing
    scales: tuple[AttentionScale, ...]
    weight_scales: tuple[WeightScale, ...]
    form: Form
    attention: Attention
    outputs: OutputKind
    train_factor: int
    entry_points: tuple[EntryGraph, ...]
    fingerprint: str
    capture: Capture
    signature: Signature
    captures: Captures
    example_inputs: tuple[Any, ...]
    task_objects: tuple[Task, ...]

    @property
    def units(self) -> int:
        """The number of units over all groups."""
        return self.reach.shape[1]

    def task_tensors(self, output: Any) -> list[torch.Tensor]:
        """Return the tensors that the tasks pick from the model's ``output``."""
        return [tensor for task in self.task_objects for tensor in task.tensors(output)]

    def marked(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return ``inputs`` with the batch dimensions of the example inputs."""
        return marked_like(inputs, self.example_inputs)

    def group(self, name: str) -> ChannelGroup:
        """Return the group called ``name``."""
        return next(group for group in self.groups if group.name == name)

    def entry(self, graph: EntryGraph, capture: Capture) -> Structure:
        """Return the same groups in ``capture``, the graph of an entry point, for its masked twin."""
        groups = tuple(
            replace(group, consumers=consumers)
            for group, consumers in zip(self.groups, graph.consumers, strict=True)
        )
        return replace(self, groups=groups, capture=capture)

    def bound_to(self, names: Iterable[str]) -> set[str]:
        """Return ``names`` and every group that a chain of count constraints ties to them."""
        found, before = set(names), set[str]()
        while found != before:
            before = set(found)
            for constraint in self.constraints:
                if found & set(constraint.groups):
                    found |= set(constraint.groups)
        return found


def check_structure(structure: object) -> None:
    """Raises :class:`~disparse_structured.errors.OptionError` unless ``structure`` is a structure."""
    remedy = "Pass analyse(model, example_inputs, tasks)."
    check_object("structure", structure, Structure, "what analyse() returned", remedy)


def check_described(state: Mapping[str, torch.Tensor], structure: Structure) -> None:
    """Raise :class:`PlanError` unless ``state``, tensors by canonical name, fits ``structure``."""
    attributes = set(structure.capture.attributes.values())
    for name, shape in structure.capture.shapes().items():
        if name in attributes:
            continue
        tensor = state.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, not {shape}"
            raise PlanError(
                f"the structure does not describe this model: {name!r} {found}. "
                "Call analyse on the current model."
            )


_GRAPH, _HEAD_DIM, _TASKS = "graph-", "head_dim-", "tasks-"
"""Fingerprint prefixes of structures of the exported graph, and of those whose heads are kept whole."""


def form_of(fingerprint: str) -> Form:
    """Return the form of the structure with this ``fingerprint``."""
    return "graph" if fingerprint.startswith(_GRAPH) else "module"


def attention_of(fingerprint: str) -> Attention:
    """Return the unit of attention in the structure with this ``fingerprint``."""
    return "head_dim" if _HEAD_DIM in fingerprint else "heads"


def outputs_of(fingerprint: str) -> OutputKind:
    """Return which outputs keep their widths in the structure that ``fingerprint`` identifies."""
    return "tasks" if _TASKS in fingerprint else "all"


def fingerprint_of(
    state: Mapping[str, torch.Tensor],
    groups: tuple[ChannelGroup, ...],
    form: Form,
    attention: Attention,
    outputs: OutputKind,
) -> str:
    """Compute the fingerprint of a structure; ``state`` holds the model's tensors by canonical name."""
    facts = {
        "tensors": [(name, list(tensor.shape)) for name, tensor in sorted(state.items())],
        "groups": [
            (
                group.name,
                group.units,
                group.kind,
                [
                    (m.parameter, m.dim, hashlib.sha256(m.index.tobytes()).hexdigest()[:16])
                    for m in group.members
                ],
            )
            for group in groups
        ],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    marks = (
        _GRAPH if form == "graph" else "",
        _HEAD_DIM if attention == "head_dim" else "",
        _TASKS if outputs == "tasks" else "",
    )
    return "".join(marks) + digest
