"""What is known about each operator of an exported graph: one table with one record per operator.

An operator's rule (:mod:`disparse_structured.structure.rules`) says how labels propagate through it. All
other facts that code needs about an operator are fields of its :class:`Operator`. An operator outside the
table has an empty record.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx

aten = torch.ops.aten

ContractionKind = Literal[
    "convolution", "transposed convolution", "generic convolution", "linear", "matmul", "einsum", "bilinear",
    "attention", "recurrent",
]  # fmt: skip
"""A family of contractions. An argument of a generic convolution says whether it is transposed."""

Normalization = Literal["each channel", "over channels"]
"""Whether each channel has its own statistics, or statistics are taken over the channels."""

Movement = Literal["view", "reshape", "singleton", "permutation", "part", "repetition"]
"""How values move. A view needs compatible strides; a singleton adds or drops dimensions of size 1."""

Counts = Literal["result", "repeats", "unflattened", "trailing", "parts", "along", "before", "channels"]
"""What the integers of an argument count, in order.

``result``: the dimensions of the result. ``repeats``: the copies of ``self`` along each of them, which are
its positions if ``self`` has one there. ``unflattened``: those that replace dimension ``dim``. ``trailing``:
the last ones of the result. ``parts``: dimension ``dim`` of each result. ``along``: dimension ``dim`` of the
result. ``before``: the positions of dimension ``dim`` of ``self`` before this bound. ``channels``: the
channels of ``input``; the groups of a depthwise convolution count them.
"""


@dataclass(frozen=True)
class Contracts:
    """The arguments of an operator that multiplies and sums, by schema name.

    Args:
        kind: the family.
        data: the argument that holds activations.
        weight: the argument that usually holds weights; None if there is none.
        bias: the argument that is added to the result; None if there is none.
        input_dim: the dimension of ``weight`` along which ``data`` is read, if it is always the same.
    """

    kind: ContractionKind
    data: str = "input"
    weight: str | None = "weight"
    bias: str | None = "bias"
    input_dim: int | None = None


@dataclass(frozen=True, eq=False)
class Operator:
    """The record of one operator.

    Args:
        contracts: what it contracts, if it does.
        normalizes: what it normalizes over, if it does. A normalization over channels takes its arguments in
            the order of ``aten.layer_norm`` or ``aten.group_norm``.
        averages: whether it takes another statistic, in which zeros count and removed positions do not.
        moves: how it moves values, if it returns only values of its first argument.
        keeps: whether it returns the values of its first argument, each in its place.
        casts: whether it may change their dtype or device.
        combines: whether it adds or multiplies its operands element by element.
        may_alias: whether it may return the memory of its first argument although its schema does not say so.
        proportional_along: the dimension of the result along which ``weight`` and ``bias`` lie, if the result
            is proportional to both.
        sizes: the integer arguments that are sizes, by name, and what they count.
        saves_result: whether its gradient is computed from its result, which then must not be overwritten.
        with_second_derivative: an equivalent function that can be differentiated twice, for an operator that
            cannot.
    """

    contracts: Contracts | None = None
    normalizes: Normalization | None = None
    averages: bool = False
    moves: Movement | None = None
    keeps: bool = False
    casts: bool = False
    combines: Literal["sum", "product"] | None = None
    may_alias: bool = False
    proportional_along: int | None = None
    sizes: Mapping[str, Counts] = field(default_factory=dict)
    saves_result: bool = False
    with_second_derivative: Callable[..., torch.Tensor] | None = None


def _hardsigmoid(value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.hardtanh(value + 3, 0.0, 6.0) / 6


_GROUPS: Mapping[str, Counts] = {"groups": "channels"}

_TABLE: tuple[tuple[str, Operator], ...] = (
    # Contractions.
    ("conv1d conv2d",
     Operator(Contracts("convolution", input_dim=1), sizes=_GROUPS, proportional_along=1)),
    ("conv3d",
     Operator(Contracts("convolution", input_dim=1), sizes=_GROUPS)),
    ("conv_transpose1d conv_transpose2d conv_transpose3d",
     Operator(Contracts("transposed convolution", input_dim=0), sizes=_GROUPS)),
    ("convolution",
     Operator(Contracts("generic convolution", input_dim=1))),
    ("linear",
     Operator(Contracts("linear", input_dim=1), proportional_along=-1)),
    ("matmul",
     Operator(Contracts("matmul", data="self", weight="other", bias=None))),
    ("mm bmm",
     Operator(Contracts("matmul", data="self", weight="mat2", bias=None))),
    ("addmm",
     Operator(Contracts("matmul", data="mat1", weight="mat2", bias="self"))),
    ("baddbmm",
     Operator(Contracts("matmul", data="batch1", weight="batch2", bias="self"))),
    ("einsum",
     Operator(Contracts("einsum", data="tensors", weight=None, bias=None))),
    ("bilinear",
     Operator(Contracts("bilinear", data="input1"))),
    ("scaled_dot_product_attention",
     Operator(Contracts("attention", data="query", weight=None, bias=None))),
    ("lstm gru rnn_tanh rnn_relu",
     Operator(Contracts("recurrent", weight="params", bias=None))),
    ("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
     Operator(Contracts("recurrent", weight="w_ih", bias="b_ih"))),
    # Normalizations and statistics.
    ("batch_norm",
     Operator(normalizes="each channel", proportional_along=1)),
    ("instance_norm native_batch_norm _native_batch_norm_legit_no_training",
     Operator(normalizes="each channel")),
    ("layer_norm rms_norm",
     Operator(normalizes="over channels", sizes={"normalized_shape": "trailing"}, proportional_along=-1)),
    ("group_norm",
     Operator(normalizes="over channels")),
    ("mean nanmean amax amin aminmax max min median nanmedian mode quantile nanquantile var std var_mean "
     "std_mean linalg_vector_norm linalg_norm norm logsumexp prod",
     Operator(averages=True)),
    # Operators that move values.
    ("view _unsafe_view",
     Operator(moves="view", sizes={"size": "result"})),
    ("reshape",
     Operator(moves="reshape", sizes={"shape": "result"})),
    ("unflatten",
     Operator(moves="reshape", sizes={"sizes": "unflattened"})),
    ("flatten",
     Operator(moves="reshape")),
    ("squeeze unsqueeze",
     Operator(moves="singleton")),
    ("permute transpose t swapaxes swapdims movedim moveaxis",
     Operator(moves="permutation")),
    ("unbind select chunk",
     Operator(moves="part")),
    ("split",
     Operator(moves="part", sizes={"split_size": "parts"})),
    ("split_with_sizes",
     Operator(moves="part", sizes={"split_sizes": "parts"})),
    ("slice",
     Operator(moves="part", sizes={"start": "before", "end": "before"})),
    ("narrow",
     Operator(moves="part", sizes={"start": "before", "length": "along"})),
    ("expand",
     Operator(moves="repetition", sizes={"size": "result"})),
    ("repeat_interleave",
     Operator(moves="repetition")),
    # Operators that keep values in place.
    ("contiguous clone alias detach lift_fresh dropout_",
     Operator(keeps=True)),
    ("dropout",
     Operator(keeps=True, may_alias=True)),
    ("to _to_copy",
     Operator(keeps=True, casts=True)),
    # Others.
    ("add add_",
     Operator(combines="sum")),
    ("mul mul_",
     Operator(combines="product")),
    ("feature_dropout alpha_dropout type_as",
     Operator(may_alias=True)),
    ("hardsigmoid hardsigmoid_",
     Operator(with_second_derivative=_hardsigmoid)),
    ("sigmoid tanh exp sqrt rsqrt reciprocal softmax log_softmax relu elu selu celu",
     Operator(saves_result=True)),
    ("arange",
     Operator(sizes={"end": "result"})),
    ("broadcast_to zeros ones full empty rand randn randint normal new_zeros new_ones new_full new_empty",
     Operator(sizes={"size": "result"})),
    ("repeat",
     Operator(sizes={"repeats": "repeats"})),
    ("tile",
     Operator(sizes={"dims": "repeats"})),
    ("unsafe_split",
     Operator(sizes={"split_size": "parts"})),
    ("unsafe_split_with_sizes",
     Operator(sizes={"split_sizes": "parts"})),
)  # fmt: skip

OPERATORS: dict[Any, Operator] = {
    operator.getitem: Operator(moves="part", may_alias=True),
    **{getattr(aten, name): record for names, record in _TABLE for name in names.split()},
}
"""Maps an operator (an ATen overload packet or a Python function of the graph) to its record."""

_UNKNOWN = Operator()


def packet(node: fx.Node) -> Any:
    """Return the operator of ``node`` without its overload, or the target if it is not an ATen operator."""
    return getattr(node.target, "overloadpacket", node.target)


def qualified_name(node: fx.Node) -> str:
    """Return the name of the node's operator with its namespace (``"aten::relu"``); empty for a function."""
    return str(getattr(packet(node), "_qualified_op_name", ""))


def operator_of(node: fx.Node) -> Operator:
    """Return the record of what ``node`` calls, or an empty record if there is none."""
    return OPERATORS.get(packet(node)) or OPERATORS.get(qualified_name(node), _UNKNOWN)


def spelled_out(equation: str, ranks: Sequence[int]) -> str:
    """Replace the ellipses of an ``einsum`` by letters, aligned at the last dimension.

    >>> spelled_out("...ij,jk->...ik", [4, 2])
    'ABij,jk->ABik'

    Args:
        equation: without spaces.
        ranks: the dimensions of each operand.
    """
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    hidden = [rank - len(term) + 3 if "." in term else 0 for rank, term in zip(ranks, terms, strict=True)]
    letters = free[: max(hidden)]
    spelled = [
        term.replace("...", "".join(letters[len(letters) - count :]))
        for term, count in zip(terms, hidden, strict=True)
    ]
    return ",".join(spelled) + arrow + right.replace("...", "".join(letters))


def schema_arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return the schema arguments of what ``node`` calls, in order; none for a Python function."""
    schema = getattr(node.target, "_schema", None)
    return tuple(schema.arguments) if schema else ()


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments that ``node`` passes by schema name, including defaults."""
    known = schema_arguments(node)
    defaults = {argument.name: argument.default_value for argument in known if argument.has_default_value()}
    given = dict(zip([argument.name for argument in known], node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


def aliased(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Yield the nodes whose memory ``node`` returns, and whether it writes to that memory."""
    if operator_of(node).may_alias and isinstance(node.args[0], fx.Node):
        yield node.args[0], False
    named = named_arguments(node)
    for argument in schema_arguments(node):
        value = named.get(argument.name)
        if argument.alias_info is not None and isinstance(value, fx.Node):
            yield value, bool(argument.alias_info.is_write)
