"""What :func:`~disparse_structured.structure.analyse` finds out about a model, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from disparse_structured.errors import PlanError
from disparse_structured.graph.capture import Capture
from disparse_structured.graph.provenance import Attribute
from disparse_structured.graph.signature import Signature
from disparse_structured.structure.captures import Captures
from disparse_structured.structure.cost import AnalyticCosts
from disparse_structured.structure.groups import Attention, ChannelGroup, Pin, RatioConstraint
from disparse_structured.structure.resizing import Resizing
from disparse_structured.structure.scales import AttentionScale
from disparse_structured.tasks import Task

Form = Literal["module", "graph"]
"""What is to become smaller: the module itself, whose ``forward`` must follow, or its exported graph."""


@dataclass(frozen=True)
class AttributeUpdate:
    """``attribute`` of the module counts row ``row`` of the cost model's widths."""

    attribute: Attribute
    row: int


@dataclass(frozen=True, eq=False)
class Structure:
    """What of a model may shrink, what must shrink together, and who reads it.

    ``reach`` is bool ``[tasks, units]``. ``unclaimed`` names the groups that no task reaches but an output
    outside all tasks depends on: nobody votes on them, so they stay. ``graph_only`` is the share of
    the parameters that lies in slices that only numbers in ``forward`` pin. ``fingerprint`` identifies the
    architecture (names, shapes, groups), the form and what of attention is a unit, not the weights.
    ``resizing`` says which integers of the graph follow the widths, ``scales`` which attention would take
    another scale from them. ``capture`` is the graph that the model has with ``example_inputs``, by its
    ``signature``; ``captures`` remembers graphs for other inputs, see
    :func:`~disparse_structured.structure.at_shape.structure_at`.
    """

    tasks: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pin, ...]
    graph_only: float
    constraints: tuple[RatioConstraint, ...]
    reach: torch.Tensor
    unclaimed: frozenset[str]
    cost: AnalyticCosts
    attributes: tuple[AttributeUpdate, ...]
    resizing: Resizing
    scales: tuple[AttentionScale, ...]
    form: Form
    attention: Attention
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

    def group(self, name: str) -> ChannelGroup:
        """The group called ``name``."""
        return next(group for group in self.groups if group.name == name)

    def bound_to(self, names: Iterable[str]) -> set[str]:
        """``names`` and every group that a count constraint ties to one of them."""
        found, before = set(names), set[str]()
        while found != before:
            before = set(found)
            for constraint in self.constraints:
                if found & set(constraint.groups):
                    found |= set(constraint.groups)
        return found


def check_described(state: Mapping[str, torch.Tensor], structure: Structure) -> None:
    """Raises :class:`PlanError` unless ``state``, tensors by canonical name, fits ``structure``."""
    for name, shape in structure.capture.shapes().items():
        tensor = state.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, not {shape}"
            raise PlanError(
                f"the structure does not describe this model: {name!r} {found}. "
                "Analyse the model as it is now."
            )


_GRAPH, _HEAD_DIM = "graph-", "head_dim-"
"""Begin the fingerprints of structures of the exported graph, and of those whose heads stay whole."""


def form_of(fingerprint: str) -> Form:
    """The form of the structure that ``fingerprint`` is of."""
    return "graph" if fingerprint.startswith(_GRAPH) else "module"


def attention_of(fingerprint: str) -> Attention:
    """What of attention is a unit of the structure that ``fingerprint`` is of."""
    return "head_dim" if _HEAD_DIM in fingerprint else "heads"


def fingerprint_of(
    state: Mapping[str, torch.Tensor], groups: tuple[ChannelGroup, ...], form: Form, attention: Attention
) -> str:
    """The fingerprint of a structure; ``state`` are the model's tensors by canonical name."""
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
    marks = (_GRAPH if form == "graph" else "", _HEAD_DIM if attention == "head_dim" else "")
    return "".join(marks) + digest
