"""The table of operators says what torch computes: every kind of fact is tried on tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from disparse_structured.graph.operators import OPERATORS, Operator, aliased, named_arguments, packet

aten = torch.ops.aten
X = torch.arange(1.0, 25.0).reshape(2, 3, 4)

MOVED: dict[Any, tuple[Any, ...]] = {
    aten.view: ([4, 6],),
    aten._unsafe_view: ([4, 6],),
    aten.reshape: ([4, 6],),
    aten.unflatten: (2, [2, 2]),
    aten.flatten: (1,),
    aten.squeeze: (),
    aten.unsqueeze: (1,),
    aten.permute: ([2, 0, 1],),
    aten.transpose: (0, 2),
    aten.t: (),
    aten.swapaxes: (0, 1),
    aten.swapdims: (0, 1),
    aten.movedim: (0, 2),
    aten.moveaxis: (0, 2),
    aten.unbind: (1,),
    aten.select: (1, 2),
    aten.chunk: (2, 2),
    aten.split: (2, 2),
    aten.split_with_sizes: ([1, 3], 2),
    aten.slice: (2, 1, 3),
    aten.narrow: (2, 1, 2),
    aten.expand: ([5, 2, 3, 4],),
    aten.repeat_interleave: (2, 1),
}
KEPT: dict[Any, tuple[Any, ...]] = {
    aten.dropout: (0.5, False),
    aten.dropout_: (0.5, False),
    aten.to: (torch.float64,),
    aten._to_copy: (),
}


def packets(field: str) -> list[Any]:
    """The ATen operators whose record has the field."""
    default = getattr(Operator(), field)
    found = [each for each, record in OPERATORS.items() if getattr(record, field) != default]
    return [each for each in found if isinstance(each, torch._ops.OpOverloadPacket)]


def arguments(operator: Any) -> set[str]:
    return {
        argument.name
        for overload in operator.overloads()
        for argument in getattr(operator, overload)._schema.arguments
    }


def node(operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call of ``operator`` in a graph; strings stand for placeholders of that name."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def convert(item: Any) -> Any:
        if isinstance(item, str):
            return known.setdefault(item, graph.placeholder(item))
        return item

    return graph.call_function(
        operator, tuple(map(convert, args)), {k: convert(v) for k, v in kwargs.items()}
    )


@pytest.mark.parametrize("operator", packets("contracts"), ids=str)
def test_the_arguments_of_a_contraction_are_arguments_of_its_operator(operator: Any) -> None:
    contracts = OPERATORS[operator].contracts
    assert contracts is not None
    named = {contracts.data, contracts.weight, contracts.bias} - {None}
    assert named <= arguments(operator)


@pytest.mark.parametrize("operator", packets("sizes"), ids=str)
def test_a_size_is_an_argument_of_its_operator(operator: Any) -> None:
    assert set(OPERATORS[operator].sizes) <= arguments(operator)


LAYERS = (
    (aten.conv1d, nn.Conv1d(3, 4, 2), (2, 3, 5)),
    (aten.conv2d, nn.Conv2d(3, 4, 2), (2, 3, 5, 5)),
    (aten.conv3d, nn.Conv3d(3, 4, 2), (2, 3, 4, 4, 4)),
    (aten.conv_transpose1d, nn.ConvTranspose1d(3, 4, 2), (2, 3, 5)),
    (aten.conv_transpose2d, nn.ConvTranspose2d(3, 4, 2), (2, 3, 5, 5)),
    (aten.conv_transpose3d, nn.ConvTranspose3d(3, 4, 2), (2, 3, 4, 4, 4)),
    (aten.linear, nn.Linear(3, 4), (2, 3)),
)


@pytest.mark.parametrize(("operator", "layer", "shape"), LAYERS, ids=lambda item: str(item))
def test_an_input_channel_is_read_along_the_stated_dimension(
    operator: Any, layer: Any, shape: tuple[int, ...]
) -> None:
    contracts = OPERATORS[operator].contracts
    assert contracts is not None
    assert contracts.input_dim is not None
    value = torch.randn(shape)
    weight = layer.weight.detach()
    off = weight.index_fill(contracts.input_dim, torch.tensor(1), 0)
    torch.testing.assert_close(
        operator(value.index_fill(1, torch.tensor(1), 0), weight), operator(value, off)
    )
    assert not torch.allclose(operator(value, weight), operator(value, off))


PROPORTIONAL: dict[Any, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    # The input's and the weight's shape, the arguments between the two, and those after the bias.
    aten.conv1d: ((2, 3, 5), (4, 3, 2), (), ()),
    aten.conv2d: ((2, 3, 5, 5), (4, 3, 2, 2), (), ()),
    aten.linear: ((2, 5, 3), (4, 3), (), ()),
    aten.layer_norm: ((2, 5, 4), (4,), ([4],), ()),
    aten.rms_norm: ((2, 5, 4), (4,), ([4],), ()),
    aten.batch_norm: ((2, 4, 5), (4,), (), (torch.zeros(4), torch.ones(4), False, 0.1, 1e-5, False)),
}


@pytest.mark.parametrize("operator", packets("proportional_along"), ids=str)
def test_a_result_is_proportional_to_weight_and_bias_along_the_stated_dimension(operator: Any) -> None:
    along = OPERATORS[operator].proportional_along
    assert along is not None
    shape, weight_shape, before, after = PROPORTIONAL[operator]
    value, weight = torch.randn(shape), torch.randn(weight_shape)
    bias = [] if operator is aten.rms_norm else [torch.randn(weight_shape[0])]

    def result(factor: Tensor) -> Tensor:
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        found: Tensor = operator(value, *before, scaled, *[each * factor for each in bias], *after)
        return found

    factor = torch.arange(1.0, 1 + len(weight))
    plain = result(torch.ones_like(factor))
    broadcast = [1] * plain.ndim
    broadcast[along] = -1
    torch.testing.assert_close(result(factor), plain * factor.reshape(broadcast))


@pytest.mark.parametrize("operator", packets("moves"), ids=str)
def test_what_moves_values_returns_values_of_its_argument(operator: Any) -> None:
    value = X[:, :, 0] if operator is aten.t else X[:, :1] if operator is aten.squeeze else X
    value = value[None] if operator is aten.expand else value
    found = operator(value, *MOVED[operator])
    parts = list(found) if isinstance(found, tuple | list) else [found]
    known = set(value.flatten().tolist())
    assert all(set(part.flatten().tolist()) <= known for part in parts)
    moves = OPERATORS[operator].moves
    if moves in ("view", "reshape", "singleton"):
        assert torch.equal(parts[0].flatten(), value.flatten())
        assert parts[0].shape != value.shape
    if moves == "singleton":
        assert [size for size in parts[0].shape if size > 1] == [size for size in value.shape if size > 1]
    if moves == "permutation":
        assert sorted(parts[0].shape) == sorted(value.shape)
        assert not torch.equal(parts[0].flatten(), value.flatten())
    if moves == "part":
        assert all(part.numel() < value.numel() for part in parts)
    if moves == "repetition":
        assert parts[0].numel() > value.numel()


@pytest.mark.parametrize("operator", packets("keeps"), ids=str)
def test_what_keeps_values_returns_its_argument(operator: Any) -> None:
    found = operator(X.clone(), *KEPT.get(operator, ()))
    assert torch.equal(found.to(X.dtype), X)
    assert found.dtype == X.dtype or OPERATORS[operator].casts


@pytest.mark.parametrize("operator", packets("with_second_derivative"), ids=str)
def test_a_function_with_a_second_derivative_computes_the_same(operator: Any) -> None:
    substitute = OPERATORS[operator].with_second_derivative
    assert substitute is not None
    value = torch.linspace(-5, 5, 41)
    torch.testing.assert_close(substitute(value), operator(value.clone()))
    leaf = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(substitute(leaf).square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert bool((second != 0).any())


def test_named_arguments_hold_what_is_passed_and_the_defaults() -> None:
    call = node(aten.conv2d.default, "x", "w", stride=[2, 2])
    named = named_arguments(call)
    assert str(named["input"]) == "x"
    assert str(named["weight"]) == "w"
    assert (named["bias"], named["stride"], named["groups"]) == (None, [2, 2], 1)
    assert packet(call) is aten.conv2d


def test_a_placeholder_is_its_own_packet_and_passes_nothing() -> None:
    placeholder = fx.Graph().placeholder("x")
    assert packet(placeholder) == "x"
    assert named_arguments(placeholder) == {}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (node(aten.add_.Tensor, "x", "y"), [("x", True)]),
        (node(aten.view.default, "x", [4]), [("x", False)]),
        (node(aten.dropout.default, "x", 0.5, False), [("x", False)]),
        (node(aten.add.Tensor, "x", "y"), []),
        (node(aten.zeros.default, [4]), []),
    ],
    ids=str,
)
def test_aliases_are_those_of_the_schema_and_of_the_table(call: fx.Node, expected: list[Any]) -> None:
    assert [(str(value), writes) for value, writes in aliased(call)] == expected
