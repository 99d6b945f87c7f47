"""Recurrent layers: LSTM, GRU and plain ones; several layers, both directions, projections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.tracing import Call, Trace, rule

aten = torch.ops.aten


@dataclass(frozen=True)
class _Cell:
    """The parameters of one direction of one layer; ``first`` is the position of the first in ``params``.

    ``projection`` is None if the hidden state is not projected.
    """

    layer: int
    first: int
    of_input: Value
    of_state: Value
    biases: tuple[Value, ...]
    projection: Value | None


@rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(trace: Trace, call: Call) -> list[Value]:
    """Unite the rows of all gates with the cell state and the hidden state that they compute.

    The initial state and the module's ``hidden_size`` have one width for all layers and directions, so
    the same hidden unit is removed from all of them. The sequence dimension is pinned. So is the cell
    state if a projection follows: if both had the same width, torch would see no projection.

    A layer reads its hidden state, and the output of the layer below, inside the fused operator, by columns
    of ``weight_hh`` and ``weight_ih`` that the masked twin reads as zeros. Saliency gates what is read after
    the layer (see :func:`disparse_structured.scoring.gates.reads`): a score measures a unit's value as an
    output, and misses its value to the other units at later steps.
    """
    value, states = call["input"], _states(call)
    hidden, state = states[0][-1].atoms(), states[-1][-1].atoms()
    directions = 2 if call["bidirectional"] else 1
    projected = len(hidden) != len(state)
    if projected:
        trace.pin(call, [states[1][-1]], "a projection must change the width")
    else:
        trace.unite(call, hidden, state)
    features = value[-1]
    for each in _cells(call, directions, projected):
        below = features.atoms() if each.layer == 0 else np.tile(hidden, directions)
        _unite(trace, call, each, below, hidden, state)
        _multiply(trace, call, each, value[:2])
        _read(trace, call, each)
    trace.consume(call, "input", 2, features)
    _numbers(trace, call, features, state)
    if projected:
        trace.module_number(call, "proj_size", Axis(len(hidden), hidden))
    return _results(trace, call, value, states, directions)


@rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def cell(trace: Trace, call: Call) -> list[Value] | Value:
    """Apply :func:`recurrent` to one step; the hidden state it reads is an argument and is masked there."""
    value, states = call["input"], _states(call)
    hidden = states[0][-1].atoms()
    for state in states[1:]:
        trace.unite(call, hidden, state[-1].atoms())
    biases = tuple(bias for bias in (call["b_ih"], call["b_hh"]) if bias is not None)
    only = _Cell(0, 0, call["w_ih"], call["w_hh"], biases, None)
    _unite(trace, call, only, value[-1].atoms(), hidden, hidden)
    leading = trace.broadcast(call, [value[:-1], *(state[:-1] for state in states)])
    _multiply(trace, call, only, leading)
    trace.consume(call, "input", len(value) - 1, value[-1])
    trace.consume(call, "hx", len(value) - 1, states[0][-1], item=0 if len(states) > 1 else None)
    _numbers(trace, call, value[-1], hidden)
    results = [(*leading, Axis(len(hidden), state[-1].labels)) for state in states]
    return results if len(states) > 1 else results[0]


def _states(call: Call) -> list[Value]:
    """The states passed from step to step: the hidden state, and the cell state if there is one."""
    return call["hx"] if isinstance(call["hx"], list) else [call["hx"]]


def _numbers(trace: Trace, call: Call, features: Axis, state: np.ndarray) -> None:
    trace.module_number(call, "input_size", features)
    trace.module_number(call, "hidden_size", Axis(len(state), state))


def _cells(call: Call, directions: int, projected: bool) -> Iterator[_Cell]:
    params: Sequence[Value] = call["params"]
    biases = 2 if call["has_biases"] else 0
    size = 2 + biases + projected
    for number in range(len(params) // size):
        first = number * size
        of_input, of_state, *rest = params[first : first + size]
        yield _Cell(
            layer=number // directions,
            first=first,
            of_input=of_input,
            of_state=of_state,
            biases=tuple(rest[:biases]),
            projection=rest[-1] if projected else None,
        )


def _unite(
    trace: Trace, call: Call, cell: _Cell, below: np.ndarray, hidden: np.ndarray, state: np.ndarray
) -> None:
    """``below`` is what the layer reads, ``hidden`` what it outputs, ``state`` what its gates compute."""
    for tensor in (cell.of_input, cell.of_state, *cell.biases):
        rows = tensor[0].atoms()
        trace.unite(call, rows.reshape(-1, len(state)), state)
        trace.kind(rows, "bundle")
    trace.unite(call, cell.of_input[1].atoms(), below, "the network's input")
    trace.unite(call, cell.of_state[1].atoms(), hidden)
    if cell.projection is not None:
        trace.unite(call, cell.projection[0].atoms(), hidden)
        trace.unite(call, cell.projection[1].atoms(), state)


def _multiply(trace: Trace, call: Call, cell: _Cell, steps: Value) -> None:
    for weight in (cell.of_input, cell.of_state, cell.projection):
        if weight is not None:
            trace.multiply(call, 1.0, *steps, *weight)


def _read(trace: Trace, call: Call, cell: _Cell) -> None:
    """What the cell contracts over between steps: its own hidden state, and the layer below."""
    trace.consume(call, "params", 1, cell.of_state[1], item=cell.first + 1)
    if cell.layer:
        trace.consume(call, "params", 1, cell.of_input[1], item=cell.first)


def _results(trace: Trace, call: Call, value: Value, states: Sequence[Value], directions: int) -> list[Value]:
    """The output of the last layer at every step, and the last states of every layer."""
    time, batch = (1, 0) if call["batch_first"] else (0, 1)
    trace.pin(call, [value[time]], "steps of a recurrent layer")
    for state in states:
        trace.pin(call, [state[0]], "layers and directions of a recurrent layer")
        trace.unite(call, state[1].atoms(), value[batch].atoms())
    hidden = states[0][-1].atoms()
    output = [value[0], value[1], Axis(len(hidden) * directions, np.tile(hidden, directions))]
    output[time] = Axis(value[time].size)
    last = [(Axis(state[0].size), value[batch], Axis(state[-1].size, state[-1].labels)) for state in states]
    return [tuple(output), *last]
