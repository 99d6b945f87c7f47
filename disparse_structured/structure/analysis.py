"""``analyse`` reads a :class:`Structure` from a model, its inputs and its tasks.

There are four steps: capture the model, trace labels through its graph by operator rules, solve the labels
for groups and constraints, and assemble the result.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import fx, nn

import disparse_structured.structure.rules  # noqa: F401  (registers the operator rules)
from disparse_structured.data.batches import as_arguments, batch_size, batched_leaves, check_examples
from disparse_structured.data.enlarging import enlarged
from disparse_structured.errors import CaptureError, OptionError, TaskError
from disparse_structured.graph.batching import with_batch
from disparse_structured.graph.capture import Capture, branching_by_values, capture, tensor_leaves
from disparse_structured.graph.entries import Entry, EntryPoints
from disparse_structured.graph.modes import train_mode_adds
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.graph.outputs import resolve_tasks
from disparse_structured.graph.provenance import Attribute
from disparse_structured.graph.side_effects import leaves_no_trace
from disparse_structured.graph.signature import Signature
from disparse_structured.graph.supported import check_supported
from disparse_structured.structure.captures import Captures
from disparse_structured.structure.cost import AnalyticCosts, Products, WidthTable
from disparse_structured.structure.counting import count_data_dependent
from disparse_structured.structure.declared import Declarations
from disparse_structured.structure.entering import EntryGraph, entry_graph, sizes_read
from disparse_structured.structure.grouping import Grouping, group_units
from disparse_structured.structure.groups import Attention, Pin, RatioConstraint, reach_matrix
from disparse_structured.structure.labels import PinRecord
from disparse_structured.structure.multiples import with_multiples
from disparse_structured.structure.pins import summarize
from disparse_structured.structure.ratios import ratio_constraints
from disparse_structured.structure.resizing import resizing_of
from disparse_structured.structure.scales import AttentionScale
from disparse_structured.structure.size_constraints import SizeSolution, follow
from disparse_structured.structure.structure import (
    AttributeUpdate,
    Form,
    OutputKind,
    Structure,
    fingerprint_of,
)
from disparse_structured.structure.tracing import Read, Trace
from disparse_structured.structure.unused import unused_modules
from disparse_structured.tasks import Task

_NO_TASK = ""
"""The task name that stands for everything that the model returns."""

_Reach = Mapping[str, frozenset[str]]
"""The tasks whose outputs depend on each node, by the node's name."""


@leaves_no_trace
def analyse(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor | Mapping[str, Any],
    tasks: Sequence[Task | str] | None = None,
    *,
    form: Form = "module",
    attention: Attention = "heads",
    outputs: OutputKind = "all",
    entry_points: EntryPoints | None = None,
    batched: Sequence[str] | None = None,
) -> Structure:
    """Read the structure of ``model`` from its exported graph; never change the model.

    Args:
        example_inputs: the arguments of one forward pass, batch first: a tuple, a dict by name, or a single
            tensor.
        tasks: the tasks, or the names of outputs; by default every entry of the output is a task. Each must
            depend on at least one parameter.
        form: what to prune. A ``"module"`` computes with its own numbers. Widths that these numbers do not
            follow are pinned, and so are those that would change a float that ``forward`` computes. In the
            exported ``"graph"`` the same numbers are literals that can be rewritten, so they pin nothing; see
            :func:`disparse_structured.surgery.graph.apply_graph`.
        attention: what is removed from attention: whole ``"heads"``, or, with ``"head_dim"``, one index of
            the head dimension in all heads at once. Query and key share one choice, and the value has
            another; all three share one if they are split from one projection. Attention scales keep their
            dense values. If that is impossible, the head dimension keeps its size.
        outputs: which outputs keep their widths: ``"all"`` that the model returns, or only those of the
            ``"tasks"``. Other outputs, such as hidden states or feature maps, pin much of some networks.
        entry_points: what else of the module must work after pruning, besides ``forward``. By name: the
            arguments of the method with that dotted name (``{"encode": (x,), "fuse": ()}``), or a function of
            the model and the arguments of ``forward``. What it returns keeps its widths. If it returns
            nothing or a module, it has changed the model, and ``forward`` is checked after it. Each is
            verified against the masked twin. Scores do not depend on entry points.
        batched: the names of the arguments of ``forward`` whose first dimension is the batch. By default this
            is found by running the model with one more example, see
            :func:`disparse_structured.graph.batching.with_batch`.

    Raises:
        BatchError: the model refuses the inputs, or they contain no examples.
        TaskError: no task, a selector that misses, a task that reaches nothing.
        CaptureError: the model cannot be exported.
        UnsupportedModelError: wrapped, compiled, scripted or quantized models.
        OptionError: ``form``, ``attention``, ``outputs`` or ``batched`` is invalid, or an entry point
            does not exist or fails.
    """
    options = (("form", form, Form), ("attention", attention, Attention), ("outputs", outputs, OutputKind))
    for name, given, known in options:
        if given not in get_args(known):
            allowed = " or ".join(map(repr, get_args(known)))
            raise OptionError(f"{name} must be {allowed}, got {given!r}.")
    check_supported(model)  # before anything else inspects it
    entries = _entries(model, form, {} if entry_points is None else entry_points)
    inputs = with_batch(model, as_arguments(model, example_inputs), batched)
    check_examples(inputs)
    chosen = resolve_tasks(model, inputs, tasks)
    train_factor = train_mode_adds(model, inputs) if form == "module" else 0
    subject = Subject(model, inputs, chosen, form, attention, outputs, train_factor, entries)
    signature = Signature.of(model, subject.inputs)
    return solved(subject, subject.captured(reproduce=True), signature, Captures())


def analyse_alike(model: nn.Module, structure: Structure) -> Structure:
    """Analyze ``model`` by the choices of ``structure``, which was read from another version of it.

    Raises:
        DisparseError: as :func:`analyse` does.
    """
    return analyse(
        model,
        structure.example_inputs,
        structure.task_objects,
        form=structure.form,
        attention=structure.attention,
        outputs=structure.outputs,
        entry_points={each.entry.name: each.entry.given for each in structure.entry_points},
    )


def _entries(model: nn.Module, form: Form, given: EntryPoints) -> tuple[Entry, ...]:
    if not isinstance(given, Mapping):
        raise OptionError(
            f"entry_points must be a dict by name, such as {{'encode': (x,)}}, got {type(given).__name__}."
        )
    if given and form == "graph":
        raise OptionError(
            f"entry_points={list(given)} are methods of the module, which its exported graph does not have. "
            'Use form="module".'
        )
    return tuple(Entry.of(model, name, each) for name, each in given.items())


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the options for reading its structure."""

    model: nn.Module
    inputs: tuple[Any, ...]
    tasks: tuple[Task, ...]
    form: Form
    attention: Attention
    outputs: OutputKind
    train_factor: int
    """0 if train mode runs nothing that eval mode does not; see :func:`.modes.train_mode_adds`."""
    entries: tuple[Entry, ...] = ()
    """Entry points besides ``forward``, which the module must follow."""

    @functools.cached_property
    def declared(self) -> Declarations:
        """Numbers that only methods other than ``forward`` use; none for a graph, which has no methods."""
        return Declarations.of(self.model) if self.form == "module" else Declarations()

    @functools.cached_property
    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Parameters and buffers by canonical name, and the canonical name of every name."""
        return named_tensors(self.model)

    @property
    def parameters(self) -> frozenset[str]:
        """The canonical names of the parameters."""
        return frozenset(name for name, tensor in self.tensors[0].items() if isinstance(tensor, nn.Parameter))

    def captured(self, *, reproduce: bool = False) -> Capture:
        """Export the graph; raise :class:`CaptureError` if that fails, see :func:`.capture.capture`."""
        return capture(self.model, self.inputs, self.tasks, self.declared.methods, reproduce=reproduce)

    def captured_in_train_mode(self) -> Capture | None:
        """Return the graph in train mode; None if it runs nothing else or cannot be exported.

        Layers that are dropped at random branch on random numbers; one of the branches is enough.
        """
        if not self.train_factor:
            return None
        everything = (Task("output", tensor_leaves),)
        inputs = enlarged(self.inputs, self.train_factor)
        for branching in (contextlib.nullcontext, branching_by_values):
            try:
                with branching():
                    return capture(self.model, inputs, everything, training=True, number=1)
            except CaptureError:
                continue
        return None

    @functools.cached_property
    def entry_graphs(self) -> tuple[EntryGraph, ...]:
        """The graphs of the entry points; raises as :func:`.entering.entry_graph` does."""
        return tuple(
            entry_graph(self.model, entry, self.inputs, number)
            for number, entry in enumerate(self.entries, 2)
        )

    def reads(self, attribute: Attribute) -> int:
        """Read the integer ``attribute`` of the model."""
        return int(attribute.read(self.model))

    def has(self, attribute: Attribute) -> bool:
        """Check whether ``attribute`` is an integer stored directly on its module."""
        try:
            module = self.model.get_submodule(attribute.module)
        except AttributeError:  # the exporter loses the path where forward was replaced on the module
            return False
        return type(vars(module).get(attribute.name)) is int


def solved(subject: Subject, captured: Capture, signature: Signature, captures: Captures) -> Structure:
    """Solve ``captured``, a graph of ``subject``, for its structure.

    Args:
        signature: the graph's signature.
        captures: the cache of ``subject``'s graphs for other inputs.

    Raises:
        TaskError: a task reaches nothing.
    """
    trace, others = _traced(subject, captured)
    reach = _node_reach(captured, subject.outputs)
    _check_reach(captured, reach)
    solution = _solution(subject, trace, reach, others)
    return _assembled(subject, trace, reach, solution, signature, captures)


# Tracing.


def _traced(subject: Subject, captured: Capture) -> tuple[Trace, list[list[Read]]]:
    """What the operator rules, the declared numbers and unused tensors say about the graphs.

    Also what the graph of each entry point reads.
    """
    state, canonical = subject.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rewritable = subject.form == "graph"
    trace = Trace(
        captured,
        shapes,
        subject.has,
        subject.attention,
        rewritable,
        subject.outputs == "tasks",
        batched=tuple(batched_leaves(subject.inputs)),
    ).run()
    trained = subject.captured_in_train_mode()
    used = _used_tensors(captured)
    others: list[list[Read]] = []
    for each in subject.entry_graphs:
        others.append([] if each.capture is None else trace.add(each.capture))
        tensors = set() if each.capture is None else _used_tensors(each.capture)
        reason = f"used by entry point {each.entry.name!r} only"
        trace.unscored.update(dict.fromkeys(tensors - used, reason))
    if trained is not None:
        trace.add(trained)
        trace.unscored.update(dict.fromkeys(_used_tensors(trained) - used, "used in train mode only"))
    trace.used = used | trace.unscored.keys()
    for name, value in trace.tensors.items():
        if name not in trace.used:
            for axis in value:
                trace.labels.pin(axis.atoms(), "never used by forward", "", name.rpartition(".")[0])
    subject.declared.pin(trace, canonical)
    return trace, others


def _used_tensors(captured: Capture) -> set[str]:
    return {
        captured.tensors[node.name]
        for node in captured.graph.find_nodes(op="placeholder")
        if node.name in captured.tensors and node.users
    }


def _node_reach(captured: Capture, outputs: OutputKind) -> _Reach:
    """The tasks whose output depends on each node; ``_NO_TASK`` if any returned tensor does."""
    reach: dict[str, frozenset[str]] = defaultdict(frozenset)
    rest = captured.outputs[sum(captured.widths) :] if outputs == "all" else ()
    for task, nodes in [*captured.task_outputs(captured.outputs).items(), (_NO_TASK, rest)]:
        for node in nodes:
            if isinstance(node, fx.Node):
                reach[node.name] |= {task}
    for node in reversed(captured.graph.nodes):
        if node.op == "output":
            continue
        for source in captured.effects.sources[node]:
            reach[source.name] |= reach[node.name]
    return reach


def _check_reach(captured: Capture, reach: _Reach) -> None:
    reached = frozenset[str]().union(*(reach[node] for node in captured.tensors))
    for task in captured.tasks:
        if task not in reached:
            raise TaskError(
                f"task {task!r} reaches nothing: its output depends on no parameter of the model. "
                "Point its selector at an output that the network computes, or drop the task."
            )


# Solving.


@dataclass(frozen=True, eq=False)
class _Solution:
    """The class of every atom (int64 ``[atoms]``), settled numbers, groups, and their constraints."""

    classes: np.ndarray
    numbers: SizeSolution
    grouping: Grouping
    constraints: tuple[RatioConstraint, ...]


def _solution(subject: Subject, trace: Trace, reach: _Reach, others: Sequence[Sequence[Read]]) -> _Solution:
    classes = trace.labels.solve()
    _pin_unscored(trace, classes)
    pinned = trace.labels.pinned(classes, trace.labels.pins)
    numbers = SizeSolution()
    if subject.form == "module":
        canonical = subject.tensors[1]
        literals = [*trace.literals, *subject.declared.literals(trace, canonical)]
        known = {literal.expression for literal in literals}
        read = sizes_read(subject.model, subject.entry_graphs, trace, canonical)
        literals += [literal for literal in read if literal.expression not in known]
        numbers = follow(literals, classes, pinned, trace.annotated, subject.reads, trace.reals)
    pinned |= trace.labels.pinned(classes, numbers.pins)
    read_reach = [reach.get(read.node, frozenset()) for read in trace.reads]
    names = tuple(task.name for task in subject.tasks)
    while True:
        grouping = group_units(trace, classes, pinned, read_reach, names, others)
        constraints, unbound = ratio_constraints(numbers.ratios, classes, grouping)
        unbound = unbound[~pinned[unbound]]
        if not unbound.size:
            return _Solution(classes, numbers, grouping, constraints)
        # A group that is left whole pins what other ratios tie to it; repeat until nothing changes.
        reason = "a count constraint that is not a ratio of two groups"
        atoms = np.flatnonzero(np.isin(classes, unbound))
        numbers.pins.append(PinRecord(atoms, reason, "", "", number=True))
        pinned[unbound] = True


def _pin_unscored(trace: Trace, classes: np.ndarray) -> None:
    """Pins what only other graphs than eval mode's use and nothing else shares: no task can score it."""
    shared = np.zeros(int(classes.max()) + 1, dtype=bool)
    for name, value in trace.tensors.items():
        if name not in trace.unscored:
            for axis in value:
                shared[classes[axis.atoms()]] = True
    for name, reason in sorted(trace.unscored.items()):
        for axis in trace.tensors[name]:
            own = axis.atoms()[~shared[classes[axis.atoms()]]]
            trace.labels.pin(own, reason, "", name.rpartition(".")[0])


# Assembling.


def _assembled(
    subject: Subject,
    trace: Trace,
    reach: _Reach,
    solution: _Solution,
    signature: Signature,
    captures: Captures,
) -> Structure:
    grouping = solution.grouping
    groups = with_multiples(grouping.groups, grouping.units, trace.convolved, trace.aligned)
    names = tuple(task.name for task in subject.tasks)
    count = sum(group.units for group in groups)
    batch = batch_size(subject.inputs)
    table = WidthTable(grouping.units, count)
    terms: list[tuple[float, Sequence[np.ndarray]]]
    terms = [(term.coefficient / batch, term.axes) for term in trace.multiplies]
    if fixed := count_data_dependent(subject.model, trace.capture, subject.inputs):
        terms.append((fixed, ()))
    products = {
        "macs": table.products(terms),
        "parameters": _parameter_products(table, trace, subject),
    }
    attributes, scales = _updates(table, solution.numbers), _scales(table, trace)
    pinned, graph_only = _pins(subject, trace, solution)
    return Structure(
        tasks=names,
        groups=groups,
        pinned=pinned,
        unused=unused_modules(subject.model, trace.used),
        graph_only=graph_only,
        constraints=solution.constraints,
        reach=reach_matrix(groups, names),
        unclaimed=_unclaimed(grouping, reach),
        cost=AnalyticCosts.of(table.finish(), **products),
        attributes=attributes,
        resizing=resizing_of(trace, grouping.units, count, batch),
        scales=scales,
        weight_scales=tuple(dict.fromkeys(trace.weight_scales)),  # a layer may run twice
        form=subject.form,
        attention=subject.attention,
        outputs=subject.outputs,
        train_factor=subject.train_factor,
        entry_points=tuple(
            replace(graph, consumers=consumers)
            for graph, consumers in zip(subject.entry_graphs, grouping.others, strict=True)
        ),
        fingerprint=fingerprint_of(
            subject.tensors[0], groups, subject.form, subject.attention, subject.outputs
        ),
        capture=trace.capture,
        signature=signature,
        captures=captures,
        example_inputs=subject.inputs,
        task_objects=subject.tasks,
    )


def _parameter_products(table: WidthTable, trace: Trace, subject: Subject) -> Products:
    terms: list[tuple[float, list[np.ndarray]]] = []
    for name in sorted(subject.parameters):
        value = trace.tensors.get(name)
        count = float(subject.tensors[0][name].numel())
        terms.append((1.0, [axis.atoms() for axis in value]) if value else (count, []))
    return table.products(terms)


def _updates(table: WidthTable, numbers: SizeSolution) -> tuple[AttributeUpdate, ...]:
    """The module attributes that follow a width."""
    return tuple(
        AttributeUpdate(attribute, row)
        for attribute, labels in numbers.attributes.items()
        if not table.is_fixed(row := table.row(labels))
    )


def _scales(table: WidthTable, trace: Trace) -> tuple[AttentionScale, ...]:
    """The attention operators whose scale follows a width."""
    return tuple(
        AttentionScale(scaled.node, scaled.axis.size, row, scaled.query)
        for scaled in trace.scaled
        if not table.is_fixed(row := table.row(scaled.axis.atoms()))
    )


def _pins(subject: Subject, trace: Trace, solution: _Solution) -> tuple[tuple[Pin, ...], float]:
    """Why dimensions cannot change, and the share of the parameters that only numbers pin."""
    singletons = solution.grouping.singletons
    records = [*trace.labels.pins, *solution.numbers.pins, *([singletons] if singletons else [])]
    parameters = subject.parameters
    return summarize(
        records,
        {name: value for name, value in trace.tensors.items() if name in parameters},
        solution.classes,
        sum(subject.tensors[0][name].numel() for name in parameters) or 1,
    )


def _unclaimed(grouping: Grouping, reach: _Reach) -> frozenset[str]:
    return frozenset(
        group.name
        for number, group in enumerate(grouping.groups)
        if not group.reach
        and (
            any(reach[consumer.node] for consumer in group.consumers)
            or any(consumers[number] for consumers in grouping.others)
        )
    )
