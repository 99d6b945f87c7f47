"""``analyse``: a model, its inputs and its tasks become a :class:`Structure`."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx, nn

import disparse_structured.structure.rules  # noqa: F401  (registers the operator rules)
from disparse_structured.data.batches import as_arguments, batch_size
from disparse_structured.errors import PlanError, TaskError
from disparse_structured.graph.capture import Capture, capture, check_supported
from disparse_structured.graph.effects import Effects
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.provenance import Attribute
from disparse_structured.structure.cost import AnalyticCosts, Products, WidthTable
from disparse_structured.structure.declared import Declarations
from disparse_structured.structure.grouping import Grouping, group_units
from disparse_structured.structure.groups import Attention, ChannelGroup, Pin, RatioConstraint, reach_matrix
from disparse_structured.structure.labels import PinRecord
from disparse_structured.structure.pins import summarise
from disparse_structured.structure.resizing import Resizing, resizing_of
from disparse_structured.structure.scales import AttentionScale
from disparse_structured.structure.size_constraints import Count, Ratio, SizeSolution, follow, pin_reals
from disparse_structured.structure.tracing import Trace
from disparse_structured.tasks import Task, check_tasks

Form = Literal["module", "graph"]
"""What is to become smaller: the module itself, whose ``forward`` must follow, or its exported graph."""

_Side = tuple[str, ...]
"""One side of a ratio: the groups whose kept counts are added up."""

_NO_TASK = ""
"""Stands among the tasks for everything that the model returns."""


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
    another scale from them.
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


def analyse(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    tasks: Sequence[Task],
    *,
    form: Form = "module",
    attention: Attention = "heads",
) -> Structure:
    """Reads the structure of ``model`` from its exported graph. Never changes the model.

    Args:
        example_inputs: the positional arguments of one forward pass, batch first; a tensor is the only one.
        tasks: the tasks; each must depend on at least one parameter.
        form: what is to be pruned. A ``"module"`` computes with numbers of its own: widths that they do not
            follow are pinned. In its exported ``"graph"`` they are literals that can be rewritten, so they
            pin nothing and bind nothing; see :func:`disparse_structured.surgery.graph.apply_graph`.
        attention: what of an attention layer is a unit: whole ``"heads"``, or, with ``"head_dim"``, one index
            of the head dimension, in all heads at once. It is one for query and key and one for the value,
            or one for the three where they are split from one projection. Scales stay those of the dense
            network: where that is impossible the head dimension stays whole. So does, as a module, every
            width that ``forward`` computes a real number from.

    Raises:
        TaskError: no task, a selector that misses, a task that reaches nothing.
        CaptureError: the model cannot be exported.
        UnsupportedModelError: wrapped, compiled, scripted or quantised models.
        PlanError: ``form`` or ``attention`` is none of those.
    """
    for name, given, known in (("form", form, Form), ("attention", attention, Attention)):
        if given not in get_args(known):
            raise PlanError(
                f"{name}={given!r} is none of {', '.join(map(repr, get_args(known)))}. Pass one of them."
            )
    tasks = check_tasks(tasks)
    example_inputs = as_arguments(example_inputs)
    check_supported(model)  # before anything looks into it
    declared = Declarations.of(model) if form == "module" else Declarations()
    captured = capture(model, example_inputs, tasks, declared.methods)
    state, canonical = named_tensors(model)
    captured = _with_canonical_names(captured, canonical)
    current = _Attributes(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    trace = Trace(captured, shapes, current.has, attention, rewritable=form == "graph").run()
    used = _used_tensors(captured)
    for name, value in trace.tensors.items():
        if name not in used:
            for axis in value:
                trace.labels.pin(axis.atoms(), "never used by forward", "", name.rpartition(".")[0])
    declared.pin(trace, canonical)
    if attention == "head_dim" and form == "module":
        pin_reals(trace)
    reach = _node_reach(captured)
    _check_reach(captured, reach)
    classes = trace.labels.solve()
    pinned = trace.labels.pinned(classes, trace.labels.pins)
    numbers = SizeSolution()
    if form == "module":
        literals = [*trace.literals, *declared.literals(trace, canonical)]
        numbers = follow(literals, classes, pinned, trace.annotated, current)
    pinned |= trace.labels.pinned(classes, numbers.pins)
    read_reach = [reach.get(read.node, frozenset()) for read in trace.reads]
    names = tuple(task.name for task in tasks)
    grouping = group_units(trace, classes, pinned, read_reach, names)
    constraints, extra = _proportions(numbers.ratios, classes, grouping)
    # What goes whole takes along what other ratios tie to it, until nothing more does.
    while (extra := extra[~pinned[extra]]).size:
        record = PinRecord(
            np.flatnonzero(np.isin(classes, extra)),
            "a count constraint that is not a ratio of two groups",
            "",
            "",
            number=True,
        )
        numbers.pins.append(record)
        pinned[extra] = True
        grouping = group_units(trace, classes, pinned, read_reach, names)
        constraints, extra = _proportions(numbers.ratios, classes, grouping)
    count = sum(group.units for group in grouping.groups)
    table = WidthTable(grouping.units, count)
    batch = batch_size(example_inputs)
    parameters = {name for name, tensor in state.items() if isinstance(tensor, nn.Parameter)}
    products = {
        "macs": table.products([(term.coefficient / batch, term.axes) for term in trace.multiplies]),
        "parameters": _parameter_products(table, trace, parameters, state),
    }
    attributes = tuple(
        AttributeUpdate(attribute, row)
        for attribute, labels in numbers.attributes.items()
        if not table.is_fixed(row := table.row(labels))
    )
    scales = tuple(
        AttentionScale(scaled.node, scaled.axis.size, row, scaled.query)
        for scaled in trace.scaled
        if not table.is_fixed(row := table.row(scaled.axis.atoms()))
    )
    records = [*trace.labels.pins, *numbers.pins, *([grouping.singletons] if grouping.singletons else [])]
    summary, graph_only = summarise(
        records,
        {name: value for name, value in trace.tensors.items() if name in parameters},
        classes,
        sum(state[name].numel() for name in parameters) or 1,
    )
    return Structure(
        tasks=names,
        groups=grouping.groups,
        pinned=summary,
        graph_only=graph_only,
        constraints=constraints,
        reach=reach_matrix(grouping.groups, names),
        unclaimed=_unclaimed(grouping.groups, reach),
        cost=AnalyticCosts.of(table.finish(), **products),
        attributes=attributes,
        resizing=resizing_of(trace, grouping.units, count, batch),
        scales=scales,
        form=form,
        attention=attention,
        fingerprint=_fingerprint(state, grouping.groups, form, attention),
        capture=captured,
        example_inputs=example_inputs,
        task_objects=tasks,
    )


def analyse_like(structure: Structure, model: nn.Module, inputs: tuple[Any, ...]) -> Structure:
    """The structure of ``model`` with other inputs, or of a copy of it, with the choices of ``structure``.

    Raises:
        DisparseError: as :func:`analyse` does.
    """
    return analyse(model, inputs, structure.task_objects, form=structure.form, attention=structure.attention)


def _unclaimed(groups: tuple[ChannelGroup, ...], reach: dict[str, frozenset[str]]) -> frozenset[str]:
    return frozenset(
        group.name
        for group in groups
        if not group.reach and any(reach[consumer.node] for consumer in group.consumers)
    )


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


def _with_canonical_names(captured: Capture, canonical: dict[str, str]) -> Capture:
    return replace(captured, tensors={node: canonical[name] for node, name in captured.tensors.items()})


def _used_tensors(captured: Capture) -> set[str]:
    return {
        captured.tensors[node.name]
        for node in captured.graph.find_nodes(op="placeholder")
        if node.name in captured.tensors and node.users
    }


@dataclass(frozen=True)
class _Attributes:
    """The integer attributes of the model's modules, as they are now."""

    model: nn.Module

    def __call__(self, attribute: Attribute) -> int:
        return int(attribute.read(self.model))

    def has(self, attribute: Attribute) -> bool:
        return type(vars(self.model.get_submodule(attribute.module)).get(attribute.name)) is int


def _node_reach(captured: Capture) -> dict[str, frozenset[str]]:
    """The tasks whose output depends on each node; ``_NO_TASK`` for what the model returns."""
    reach: dict[str, frozenset[str]] = defaultdict(frozenset)
    rest = captured.outputs[sum(captured.widths) :]
    for task, nodes in [*captured.task_outputs(captured.outputs).items(), (_NO_TASK, rest)]:
        for node in nodes:
            if isinstance(node, fx.Node):
                reach[node.name] |= {task}
    sources = Effects.of(captured.graph).sources
    for node in reversed(captured.graph.nodes):
        if node.op == "output":
            continue
        for source in sources[node]:
            reach[source.name] |= reach[node.name]
    return reach


def _check_reach(captured: Capture, reach: dict[str, frozenset[str]]) -> None:
    reached = frozenset[str]().union(*(reach[node] for node in captured.tensors))
    for task in captured.tasks:
        if task not in reached:
            raise TaskError(
                f"task {task!r} reaches nothing: its output depends on no parameter of the model. "
                "Point its selector at an output that the network computes, or drop the task."
            )


def _parameter_products(
    table: WidthTable, trace: Trace, parameters: set[str], state: dict[str, torch.Tensor]
) -> Products:
    terms: list[tuple[float, list[np.ndarray]]] = []
    for name in sorted(parameters):
        value = trace.tensors.get(name)
        terms.append((1.0, [axis.atoms() for axis in value]) if value else (float(state[name].numel()), []))
    return table.products(terms)


def _proportions(
    ratios: list[Ratio], classes: np.ndarray, grouping: Grouping
) -> tuple[tuple[RatioConstraint, ...], np.ndarray]:
    """Ratios between groups, merged where they share one; and the classes of ratios that are none."""
    unit_of_class = dict(zip(classes.tolist(), grouping.units.tolist(), strict=True))
    shares: dict[_Side, dict[_Side, Fraction]] = {}
    reasons: dict[_Side, str] = {}
    failed: list[int] = []
    for ratio in ratios:
        above = _side(ratio.numerator, unit_of_class, grouping.groups)
        below = _side(ratio.denominator, unit_of_class, grouping.groups)
        if above is None or below is None:
            failed.extend(each for count in (ratio.numerator, ratio.denominator) for each, _ in count.classes)
            continue
        (top, top_times), (bottom, bottom_times) = above, below
        # top_times * kept(top) == factor * bottom_times * kept(bottom)
        pair = {top: Fraction(ratio.factor * bottom_times), bottom: Fraction(top_times)}
        merged = shares.get(top, {top: pair[top]})
        scale = merged[top] / pair[top]
        other = shares.get(bottom, {bottom: pair[bottom] * scale})
        rescale = pair[bottom] * scale / other[bottom]
        merged = {**merged, **{side: share * rescale for side, share in other.items()}}
        for side in merged:
            shares[side] = merged
            reasons[side] = ratio.reason
    proportions = []
    for merged in {id(each): each for each in shares.values()}.values():
        denominator = lcm(*(share.denominator for share in merged.values()))
        whole = {side: int(share * denominator) for side, share in merged.items()}
        divisor = gcd(*whole.values())
        proportions.append(
            RatioConstraint(
                tuple(name for side in whole for name in side),
                tuple(share // divisor for side, share in whole.items() for _ in side),
                reasons[next(iter(whole))],
                tuple(side for side in whole if len(side) > 1),
            )
        )
    return tuple(proportions), np.array(sorted(set(failed)), dtype=np.int64)


def _side(
    count: Count, unit_of_class: dict[int, int], groups: tuple[ChannelGroup, ...]
) -> tuple[_Side, int] | None:
    """The groups all of whose units ``count`` counts, each equally often."""
    units = {unit_of_class[each] for each, _ in count.classes}
    times = {each for _, each in count.classes}
    side = [group for group in groups if group.start in units]
    counted = {unit for group in side for unit in range(group.start, group.start + group.units)}
    if not side or counted != units or len(times) != 1:
        return None
    return tuple(group.name for group in side), times.pop()


_GRAPH, _HEAD_DIM = "graph-", "head_dim-"
"""Begin the fingerprints of structures of the exported graph, and of those whose heads stay whole."""


def form_of(fingerprint: str) -> Form:
    """The form of the structure that ``fingerprint`` is of."""
    return "graph" if fingerprint.startswith(_GRAPH) else "module"


def attention_of(fingerprint: str) -> Attention:
    """What of attention is a unit of the structure that ``fingerprint`` is of."""
    return "head_dim" if _HEAD_DIM in fingerprint else "heads"


def _fingerprint(
    state: dict[str, torch.Tensor], groups: tuple[ChannelGroup, ...], form: Form, attention: Attention
) -> str:
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
