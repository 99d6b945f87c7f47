"""Runs the operator rules over an exported graph and collects what they record."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from disparse_structured.graph.capture import Capture
from disparse_structured.graph.instrument import Argument
from disparse_structured.graph.operators import (
    OPERATORS,
    Operator,
    named_arguments,
    operator_of,
    packet,
    qualified_name,
    schema_arguments,
)
from disparse_structured.graph.provenance import Attribute, Derived, Expression, Real, annotation, expressions
from disparse_structured.graph.unknown_sizes import depends_on_data, has_unknown_size
from disparse_structured.structure.entry_points import load_rules
from disparse_structured.structure.groups import DATA_DEPENDENT, Attention, Kind
from disparse_structured.structure.labels import PINNED, Axis, Labels, Value
from disparse_structured.structure.weight_scales import WeightScale

Rule = Callable[["Trace", "Call"], Any]
RULES: dict[Any, Rule] = {}
"""Maps an operator (an ATen overload packet, a name, or a Python function of the graph) to its rule."""


def rule(*operators: Any, record: Operator | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for one family of operators; it replaces an earlier rule of the same operator.

    Args:
        operators: overload packets, such as ``torch.ops.aten.relu``, or Python functions of a graph. An
            operator from an optional library is given by name: ``"torchvision::roi_align"``. The rule also
            applies to the in-place variant, unless that has its own.
        record: what else is known about them, for the table of
            :mod:`disparse_structured.graph.operators`. If omitted, their records are unchanged.
    """

    def register(function: Rule) -> Rule:
        for each in operators:
            RULES[each] = function
            if record is not None:
                OPERATORS[each] = record
        return function

    return register


@dataclass(frozen=True, eq=False)
class Read:
    """``node`` contracts, normalizes or averages over dimension ``dim`` of its argument ``arg``.

    ``sample`` is the batch dimension of the argument and the number of the example at each of its
    positions; None if no single dimension separates the examples.
    """

    node: str
    arg: Argument
    dim: int
    labels: np.ndarray
    normalizes: bool
    averages: bool
    sample: tuple[int, np.ndarray] | None


@dataclass(frozen=True, eq=False)
class SizeLiteral:
    """The graph holds a number that must become the count of the kept ``labels``."""

    expression: Expression
    labels: np.ndarray
    operator: str
    module: str


@dataclass(frozen=True, eq=False)
class Multiply:
    """``coefficient * product(sizes of axes)`` multiply-accumulates in ``module``."""

    module: str
    coefficient: float
    axes: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Scaled:
    """``node``, fused attention, takes its scale from the size of ``axis``; its query can compensate.

    ``query`` holds the parameter positions that produce the query, see :class:`.scales.AttentionScale`.
    """

    node: str
    axis: Axis
    query: Mapping[str, np.ndarray]


class Call:
    """One operator call: its arguments by schema name, tensors replaced by their values."""

    def __init__(self, node: fx.Node, convert: Callable[[Any], Any]) -> None:
        self.node = node
        self._convert = convert
        self.asked = False
        self.raw = named_arguments(node)

    def __getitem__(self, name: str) -> Any:
        return self._convert(self.raw[name])

    def get(self, name: str) -> Any:
        """Return the argument, or None if the operator has none of that name."""
        return self._convert(self.raw.get(name))

    def position(self, name: str) -> int:
        """Return the position of the argument ``name`` in the schema."""
        return [argument.name for argument in schema_arguments(self.node)].index(name)

    @property
    def operator(self) -> str:
        """The name of the operator."""
        target = self.node.target
        return (
            str(target)
            if isinstance(target, torch._ops.OpOverload)
            else getattr(target, "__name__", str(target))
        )

    @property
    def module(self) -> str:
        """The innermost module of the user's model that the call was made in."""
        return module_path(self.node)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each tensor that the call returns."""
        result = self.node.meta.get("val")
        leaves = result if isinstance(result, tuple | list) else [result]
        return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def values(self) -> list[Value]:
        """Collect every tensor among the arguments."""
        found: list[Value] = []
        for argument in (*self.node.args, *self.node.kwargs.values()):
            converted = self._convert(argument)
            found.extend(_tensors(converted))
        return found

    def expressions(self, literals: Sequence[int]) -> list[Expression]:
        """Find the origin of each of the literal integers."""
        self.asked = True
        return expressions(self.node, [int(literal) for literal in literals])


def is_value(item: Any) -> bool:
    """Check whether ``item`` represents a tensor."""
    return isinstance(item, tuple) and all(isinstance(axis, Axis) for axis in item)


def _tensors(item: Any) -> list[Value]:
    if is_value(item):
        return [item]
    if isinstance(item, list):
        return [value for each in item for value in _tensors(each)]
    return []


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module of the user's model that ``node`` ran in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path.removeprefix("model").removeprefix(".").split("@")[0]


def plain(shape: Iterable[int]) -> Value:
    """Create a value of ``shape`` without labels."""
    return tuple(Axis(int(size)) for size in shape)


@dataclass
class Trace:
    """What the rules collect: values by node name, tensors (parameters, buffers) by qualified name.

    ``rewritable`` if the graph itself is pruned, so that every number in it can be rewritten. ``batched``
    says for each of the user's inputs whether its first dimension is the batch. ``unscored`` says, by tensor,
    why no task is measured on it although another graph of the model uses it. ``convolved`` holds the labels
    of the channels that convolutions of maps read and write, ``aligned`` those of grouped matrix products.
    """

    capture: Capture
    shapes: dict[str, tuple[int, ...]]
    has_attribute: Callable[[Attribute], bool] = lambda attribute: False
    attention: Attention = "heads"
    rewritable: bool = False
    tasks_only: bool = False
    labels: Labels = field(default_factory=Labels)
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)
    attributes: dict[str, Value] = field(default_factory=dict)
    annotated: dict[int, Value] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    literals: list[SizeLiteral] = field(default_factory=list)
    reals: list[Real] = field(default_factory=list)
    multiplies: list[Multiply] = field(default_factory=list)
    kinds: list[tuple[np.ndarray, Kind]] = field(default_factory=list)
    convolved: list[np.ndarray] = field(default_factory=list)
    aligned: list[np.ndarray] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)
    weight_scales: list[WeightScale] = field(default_factory=list)
    batched: tuple[bool, ...] = ()
    unscored: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    _parts: dict[bytes, tuple[Call, set[int]]] = field(default_factory=dict)

    def run(self) -> Trace:
        """Load the rules of installed packages, then visit every node in order."""
        load_rules()
        self.reals.extend(self.capture.reals)
        for node in self.capture.graph.nodes:
            if node.op == "placeholder":
                value: Any = self._placeholder(node)
            elif node.op == "call_function":
                value = self._call(node)
            else:
                continue
            self.values[node.name] = value
            number = annotation(node)
            if number is not None and is_value(value):
                self.annotated[number] = value
        for labels, (call, read) in self._parts.items():
            whole = np.frombuffer(labels, dtype=np.int64)
            if not read.issuperset(whole[whole != PINNED].tolist()):
                self.labels.pin(whole, "a table that is read in part", call.operator, call.module)
        outputs = self.capture.outputs
        for output in outputs[: sum(self.capture.widths)] if self.tasks_only else outputs:
            if isinstance(output, fx.Node):
                for axis in self.values[output.name] or ():
                    self.labels.pin(axis.atoms(), "the network's output", "output", "")
        return self

    def add(self, capture: Capture) -> list[Read]:
        """Visit another graph of the model, whose labels must be removed together with those of the first.

        What that graph reads and multiplies does not count, because no task is measured on it. Returns what
        it reads.
        """
        other = replace(
            self,
            capture=capture,
            tasks_only=False,
            batched=(),
            values={},
            annotated={},
            reads=[],
            multiplies=[],
            scaled=[],
            weight_scales=[],
        )
        self.annotated.update(other.run().annotated)
        return other.reads

    # Called by rules.

    def unite(
        self, call: Call, first: np.ndarray, second: np.ndarray, reason: str = "meets a fixed dimension"
    ) -> None:
        """Require that ``first`` and ``second`` (broadcast) be removed together, position by position."""
        self.labels.unite(first, second, reason, call.operator, call.module)

    def pin(self, call: Call, axes: Iterable[Axis], reason: str) -> None:
        """Record that no position of ``axes`` can be removed."""
        for axis in axes:
            if axis.labels is not None:
                self.labels.pin(axis.labels, reason, call.operator, call.module)

    def consume(
        self,
        call: Call,
        argument: str,
        dim: int,
        axis: Axis,
        *,
        item: int | None = None,
    ) -> None:
        """Record that ``call`` contracts over ``axis``: dimension ``dim`` of ``argument`` or its ``item``.

        If the operator's record says that it normalizes or averages, it takes a statistic over ``axis``
        instead. See :class:`Consumer`.
        """
        if axis.labels is not None:
            sample = _sample(call[argument] if item is None else call[argument][item], dim)
            number = call.position(argument)
            position: Argument = number if item is None else (number, item)
            record = operator_of(call.node)
            normalizes = record.normalizes is not None
            self.reads.append(
                Read(call.node.name, position, dim, axis.labels, normalizes, record.averages, sample)
            )

    def read_part(self, call: Call, whole: np.ndarray, part: np.ndarray) -> None:
        """Record that ``call`` reads ``part`` of the labels ``whole`` of a parameter or buffer.

        Positions that no call reads are not dead: a longer input would read more of a table.
        """
        _, read = self._parts.setdefault(whole.tobytes(), (call, set()))
        read.update(part.tolist())

    def literal(self, call: Call, expression: Expression, axis: Axis) -> None:
        """Record that the number given by ``expression`` is the size of ``axis``."""
        if isinstance(expression, Derived):
            return
        if axis.labels is not None or not isinstance(expression, int):
            self.literals.append(SizeLiteral(expression, axis.atoms(), call.operator, call.module))

    def module_number(self, call: Call, name: str, axis: Axis) -> None:
        """Record that the module's integer attribute ``name``, if there is one, is the size of ``axis``."""
        attribute = Attribute(call.module, name)
        if self.has_attribute(attribute):
            self.literal(call, attribute, axis)

    def multiply(self, call: Call, coefficient: float, *axes: Axis) -> None:
        """Count ``coefficient`` multiply-accumulates for every combination of positions of ``axes``."""
        self.multiplies.append(Multiply(call.module, coefficient, tuple(axis.atoms() for axis in axes)))

    def kind(self, labels: np.ndarray, kind: Kind) -> None:
        """Record that units of ``labels`` are of ``kind``."""
        self.kinds.append((labels[labels != PINNED], kind))

    def join(self, call: Call, axes: Sequence[Axis]) -> Axis:
        """Unite broadcastable dimensions element-wise; size 1 broadcasts."""
        size = max((axis.size for axis in axes), default=1) if all(axis.size for axis in axes) else 0
        wide = [axis for axis in axes if axis.size == size]
        labeled = next((axis for axis in wide if axis.labels is not None), None)
        if labeled is not None:
            for axis in wide:
                if axis is not labeled:
                    self.unite(call, labeled.atoms(), axis.atoms())
        # An operand may take all its rows from one example, such as the same token from each.
        samples = max((each.sample for each in wide if each.sample is not None), key=_examples, default=None)
        return Axis(size, labeled.labels if labeled is not None else None, samples)

    def broadcast(self, call: Call, values: Sequence[Value]) -> Value:
        """Unite whole values element-wise, aligned at the last dimension."""
        rank = max((len(value) for value in values), default=0)
        padded = [tuple(Axis(1) for _ in range(rank - len(value))) + value for value in values]
        return tuple(self.join(call, [value[dim] for value in padded]) for dim in range(rank))

    # Nodes.

    def _placeholder(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value
        name = self.capture.tensors.get(node.name)
        if node.name in self.capture.attributes:
            return self._labeled(self.attributes, self.capture.attributes[node.name], tuple(value.shape))
        if name is None:
            axes = plain(value.shape)
            if node.name in self.capture.inputs and self._is_batched(self.capture.inputs.index(node.name)):
                first = Axis(axes[0].size, None, np.arange(axes[0].size))
                return (first, *axes[1:])
            return axes
        return self._labeled(self.tensors, name, self.shapes[name])

    def _labeled(self, known: dict[str, Value], name: str, shape: tuple[int, ...]) -> Value:
        if name not in known:
            known[name] = tuple(Axis(size, self.labels.fresh(size) if size > 1 else None) for size in shape)
        return known[name]

    def _is_batched(self, position: int) -> bool:
        return position < len(self.batched) and self.batched[position]

    def _call(self, node: fx.Node) -> Any:
        call = Call(node, self._convert)
        if depends_on_data(node):
            return self._data_dependent(call)
        if node.target is operator.getitem:
            container, index = self._convert(node.args[0]), cast(int, node.args[1])
            return container[index] if isinstance(container, list) else plain(_shape(node))
        known = _rule_of(node)
        if known is None:
            return self.unknown(call, f"no rule for {call.operator}")
        value = known(self, call)
        if not call.asked:
            self._keep_constants(call)
        return self._without_single_positions(call, value)

    def _keep_constants(self, call: Call) -> None:
        """Integers that the rule did not look up must not follow a width: the result would change."""
        leaves = pytree.tree_leaves((call.node.args, call.node.kwargs))
        for integer in {leaf for leaf in leaves if type(leaf) is int and leaf > 0}:
            (expression,) = call.expressions([integer])
            self.literal(call, expression, Axis(integer))

    def _without_single_positions(self, call: Call, value: Any) -> Any:
        """Pins dimensions of size 1: one position can be broadcast and squeezed, zero positions cannot."""
        if isinstance(value, list):
            return [self._without_single_positions(call, each) for each in value]
        if not is_value(value) or all(axis.size != 1 or axis.labels is None for axis in value):
            return value
        single = [axis for axis in value if axis.size == 1]
        self.pin(call, single, "a dimension of size 1")
        return tuple(Axis(1, None, axis.sample) if axis.size == 1 else axis for axis in value)

    def _data_dependent(self, call: Call) -> Any:
        """Pins everything that a call with data-dependent sizes reads, and labels no result."""
        for value in call.values():
            self.pin(call, value, DATA_DEPENDENT)
        returned = call.node.meta.get("val")
        known = [
            plain(leaf.shape) if isinstance(leaf, torch.Tensor) and not has_unknown_size(leaf) else None
            for leaf in (returned if isinstance(returned, tuple | list) else [returned])
        ]
        return known if isinstance(returned, tuple | list) else known[0]

    def unknown(self, call: Call, reason: str) -> Any:
        """Pin everything that ``call`` reads, and what reads a result of the same shape."""
        values = call.values()
        for value in values:
            self.pin(call, value, reason)
        known = {tuple(axis.size for axis in value): value for value in reversed(values)}

        def result(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return None
            shape = tuple(leaf.shape)
            return tuple(Axis(axis.size, axis.labels) for axis in known.get(shape, plain(shape)))

        returned = call.node.meta.get("val")
        if isinstance(returned, tuple | list):
            return [result(leaf) for leaf in returned]
        return result(returned)

    def _convert(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values.get(argument.name)
        if isinstance(argument, list | tuple):
            return [self._convert(item) for item in argument]
        return argument


def _rule_of(node: fx.Node) -> Rule | None:
    name = qualified_name(node)
    if (found := RULES.get(packet(node)) or RULES.get(name)) is not None:
        return found
    in_place = name.startswith("aten::") and name.endswith("_")
    plain_variant = name.removeprefix("aten::").removesuffix("_")
    return RULES.get(getattr(torch.ops.aten, plain_variant, None)) if in_place else None


def _examples(sample: np.ndarray) -> int:
    """How many different examples positions belong to."""
    return len(np.unique(sample))


def _sample(value: Value, dim: int) -> tuple[int, np.ndarray] | None:
    """The one dimension of ``value`` besides ``dim`` whose positions belong to known examples."""
    found = [(i, axis.sample) for i, axis in enumerate(value) if axis.sample is not None and i != dim]
    return found[0] if len(found) == 1 else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
