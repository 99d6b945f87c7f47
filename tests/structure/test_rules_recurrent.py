"""Recurrent layers: gates, directions, layers and the state that is read inside a fused operator."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.graph.named_tensors import named_tensors
from disparse_structured.refit import refit
from disparse_structured.scoring import score
from disparse_structured.scoring.criteria import DiagonalHessian, Fisher
from disparse_structured.scoring.execution import Execution
from disparse_structured.structure import Structure, analyse
from disparse_structured.structure.counting import count_macs, count_parameters
from disparse_structured.structure.tracing import RULES, Call, Trace
from disparse_structured.surgery import module as surgery
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.tasks import Task
from disparse_structured.verification.twin import MaskedReads
from tests.support.plans import Case, deviation, learns, onnx_parity, random_keep, random_plan, zeroed

aten = torch.ops.aten

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")

EXACT = 1e-9
TASKS = (Task("steps", "steps"), Task("last", "last"))
STEPS, FEATURES, HIDDEN = 5, 6, 8


class Heads(nn.Module):
    """A task at every step, and one that reads the states a layer ends with."""

    def __init__(self, width: int, last: int) -> None:
        super().__init__()
        self.steps, self.last = nn.Linear(width, 3), nn.Linear(last, 2)

    def forward(self, steps: Tensor, last: Tensor) -> dict[str, Tensor]:
        return {"steps": self.steps(steps), "last": self.last(last)}


class Layered(nn.Module):
    """The library's layer between linear ones, all of its results read."""

    def __init__(self, layer: Callable[..., nn.Module], **options: bool | int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, FEATURES)
        self.rnn = layer(FEATURES, HIDDEN, **options)
        directions = 2 if options.get("bidirectional") else 1
        width = int(options.get("proj_size", 0)) or HIDDEN
        self.heads = Heads(directions * width, width + HIDDEN if layer is nn.LSTM else width)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(x))
        steps, states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        last = torch.cat(states if isinstance(states, tuple) else (states,), -1).sum(0)
        return self.heads(steps if self.rnn.batch_first else steps.transpose(0, 1), last)


class GivenState(nn.Module):
    """The initial states are computed: one linear layer makes those of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rnn = nn.Linear(4, FEATURES), nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.first, self.heads = nn.Linear(4, HIDDEN), Heads(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        steps, last = self.rnn(self.stem(x), torch.tanh(self.first(x[:, 0])).unsqueeze(0))
        return self.heads(steps, last[0])


class MadeState(nn.Module):
    """The initial states are zeros that ``forward`` makes itself, from a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = HIDDEN
        self.stem, self.rnn = nn.Linear(4, FEATURES), nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True)
        self.heads = Heads(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        zeros = x.new_zeros(2, x.shape[0], self.width)
        steps, (_, cell) = self.rnn(self.stem(x), (zeros, zeros))
        return self.heads(steps, cell[1])


class HardCodedState(MadeState):
    """As :class:`MadeState`, with the width spelt out."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros(2, x.shape[0], 8, dtype=x.dtype)
        steps, (_, cell) = self.rnn(self.stem(x), (zeros, zeros))
        return self.heads(steps, cell[1])


class Translator(nn.Module):
    """A layer that starts where another one ended, and a sum with what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, HIDDEN)
        self.encoder = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.heads = Heads(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        read, states = self.encoder(x)
        written, (last, _) = self.decoder(x.flip(1), states)
        return self.heads(x + read + written, last[0])


class Stepwise(nn.Module):
    """A cell called once a step."""

    def __init__(self, layer: Callable[..., nn.Module], **options: bool) -> None:
        super().__init__()
        self.stem, self.cell = nn.Linear(4, FEATURES), layer(FEATURES, HIDDEN, **options)
        self.heads = Heads(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, state, steps = torch.relu(self.stem(x)), None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return self.heads(torch.stack(steps, 1), state[1] if isinstance(state, tuple) else state)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Layered(nn.LSTM),
    "lstm-both-ways": lambda: Layered(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "lstm-no-bias": lambda: Layered(nn.LSTM, bias=False, batch_first=True),
    "lstm-projected": lambda: Layered(
        nn.LSTM, num_layers=2, bidirectional=True, batch_first=True, proj_size=5
    ),
    "gru": lambda: Layered(nn.GRU, batch_first=True),
    "gru-both-ways": lambda: Layered(nn.GRU, num_layers=2, bidirectional=True),
    "rnn-tanh": lambda: Layered(nn.RNN, num_layers=2),
    "rnn-relu": lambda: Layered(functools.partial(nn.RNN, nonlinearity="relu"), batch_first=True),
    "given-state": GivenState,
    "made-state": MadeState,
    "translator": Translator,
    "lstm-cell": lambda: Stepwise(nn.LSTMCell),
    "gru-cell": lambda: Stepwise(nn.GRUCell),
    "rnn-cell": lambda: Stepwise(nn.RNNCell, bias=False),
}


def inputs(batch: int = 2, seed: int = 0) -> tuple[Tensor]:
    return (torch.randn(batch, STEPS, 4, generator=torch.Generator().manual_seed(seed)).double(),)


@functools.cache
def network(id: str) -> Case:
    torch.manual_seed(0)
    return Case.of(NETWORKS[id]().double().eval(), inputs(), TASKS)


@pytest.mark.parametrize("id", NETWORKS)
def test_pruned_is_the_twin_and_what_zeros_leave(id: str) -> None:
    subject = network(id)
    pinned = {pin.reason for pin in subject.structure.pinned}
    assert not {reason for reason in pinned if "rule" in reason or "follow" in reason or "counts" in reason}
    for seed in range(3):
        keep = random_keep(subject.structure, seed)
        pruned = subject.pruned(keep)
        found, twin = subject.outputs(pruned), subject.twin(keep)

        assert deviation(found, twin) <= EXACT
        assert deviation(found, subject.outputs(zeroed(subject.model, subject.structure, keep))) <= EXACT
        assert deviation(twin, subject.outputs(subject.model)) > 1e-3
        assert count_parameters(pruned) == subject.structure.cost.parameters.total(keep)
        assert count_macs(pruned, subject.inputs) == subject.structure.cost.macs.total(keep)


@pytest.mark.parametrize("id", ["lstm-both-ways", "lstm-projected", "gru", "translator", "gru-cell"])
def test_the_public_way_removes_what_was_planned(id: str) -> None:
    subject = network(id)
    plan = Plan.from_keep(subject.structure, random_keep(subject.structure, 1, 0.5))
    done = surgery.apply(subject.model, plan, subject.structure)

    assert not done.refused
    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= EXACT
    assert count_parameters(done.model) <= 0.6 * count_parameters(subject.model)
    three = inputs(3, seed=1)
    for start in (0, 1):
        part = (three[0][start : start + 2],)
        whole = subject.outputs(done.model, three)
        of_part = {task: [tensor[start : start + 2] for tensor in found] for task, found in whole.items()}
        assert deviation(of_part, subject.twin(plan.keep(subject.structure), part)) <= EXACT


@pytest.mark.parametrize("id", ["lstm-both-ways", "gru", "made-state", "rnn-cell", "hard-coded-state"])
def test_the_graph_is_the_twin(id: str) -> None:
    torch.manual_seed(0)
    model = {**NETWORKS, "hard-coded-state": HardCodedState}[id]().double().eval()
    structure = analyse(model, inputs(), TASKS, form="graph")
    done = apply_graph(model, random_plan(structure, 0, 0.5), structure)

    assert done.verification is not None
    assert max(done.verification.deviation.values()) <= EXACT
    assert count_parameters(done.model) <= 0.6 * count_parameters(model)


def test_the_layer_knows_its_new_sizes() -> None:
    subject = network("lstm-both-ways")
    keep = torch.ones(subject.structure.units, dtype=torch.bool)
    keep[subject.structure.group("rnn").start + 2] = False
    keep[subject.structure.group("stem").start : subject.structure.group("stem").start + 2] = False
    plan = Plan.from_keep(subject.structure, keep)
    rnn = surgery.apply(subject.model, plan, subject.structure).model.rnn

    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers) == (FEATURES - 2, HIDDEN - 1, 2)
    assert rnn.weight_ih_l1_reverse.shape == (4 * 7, 14)
    assert len(rnn._flat_weights) == 16
    for name, cached in zip(rnn._flat_weights_names, rnn._flat_weights, strict=True):
        assert cached is getattr(rnn, name)
    left = [i for i in range(HIDDEN) if i != 2]
    expected = subject.model.rnn.weight_hh_l1.view(4, HIDDEN, HIDDEN)[:, left][:, :, left]
    assert torch.equal(rnn.weight_hh_l1.view(4, 7, 7), expected)


def test_a_projection_goes_and_what_it_projects_stays() -> None:
    structure = network("lstm-projected").structure
    reasons = {pin.reason for pin in structure.pinned}

    assert "a projection must change the width" in reasons
    assert {group.name: group.units for group in structure.groups} == {"stem": FEATURES, "rnn": 5}
    rnn = network("lstm-projected").pruned(random_keep(structure, 0, 0.5)).rnn
    assert (rnn.hidden_size, rnn.proj_size, tuple(rnn.weight_hr_l1.shape)) == (8, 2, (2, 8))


def test_a_spelt_out_width_stays() -> None:
    torch.manual_seed(0)
    structure = analyse(HardCodedState().double().eval(), inputs(), TASKS)

    assert [group.name for group in structure.groups] == ["stem"]
    assert "forward hard-codes the number 8" in {pin.reason for pin in structure.pinned}


@pytest.mark.parametrize("id", ["lstm-both-ways", "gru", "lstm-cell"])
def test_scores_are_those_of_single_examples(id: str) -> None:
    """Gates stand where examples can be told apart, so a batch scores as its examples one by one."""
    subject = network(id)
    whole = score(subject.model, subject.structure, [inputs()], Fisher(), to_inputs=tuple, seed=0)
    single = [tuple(tensor[i : i + 1] for tensor in inputs()) for i in range(2)]
    apart = score(subject.model, subject.structure, single, Fisher(), to_inputs=tuple, seed=0)

    assert not whole.notes
    assert (whole.scores[:, subject.structure.group(_recurrent_group(subject.structure)).slice] > 0).all()
    assert torch.allclose(whole.scores, apart.scores, rtol=1e-6)


def test_a_score_of_second_order() -> None:
    subject = network("gru")
    found = score(subject.model, subject.structure, [inputs()], DiagonalHessian(), to_inputs=tuple, seed=0)

    assert not found.notes
    assert (found.scores[:, subject.structure.group("rnn").slice].sum(1) > 0).all()


@pytest.mark.parametrize("id", ["lstm-both-ways", "gru", "lstm-cell"])
def test_operator_by_operator_it_is_the_twin(id: str) -> None:
    subject = network(id)
    keep = random_keep(subject.structure, 2)
    execution = Execution(subject.structure, MaskedReads(subject.structure, keep))
    state = {name: tensor.detach() for name, tensor in named_tensors(subject.model)[0].items()}

    assert deviation(execution.outputs(execution.values(state, subject.inputs)), subject.twin(keep)) <= EXACT


def test_the_refit_brings_the_pruned_network_nearer() -> None:
    subject = network("lstm-both-ways")
    keep = random_keep(subject.structure, 0, 0.7)
    data = [inputs(16, seed) for seed in range(3)]
    repaired = refit(subject.model, subject.structure, keep, data, to_inputs=tuple).model
    dense = subject.outputs(subject.model)

    after = deviation(subject.outputs(surgery.cut(repaired, subject.structure, keep)), dense)
    assert after < deviation(subject.outputs(subject.pruned(keep)), dense)


def test_reading_a_layer_warns_of_nothing() -> None:
    model = Layered(nn.LSTM, batch_first=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analyse(model, torch.randn(2, STEPS, 4), TASKS)


def test_macs_are_counted_in_every_precision() -> None:
    subject = network("lstm-both-ways")
    everything = torch.ones(subject.structure.units, dtype=torch.bool)
    model = copy.deepcopy(subject.model).float()

    assert count_macs(model, (subject.inputs[0].float(),)) == subject.structure.cost.macs.total(everything)


def test_a_sequencer_of_timm() -> None:
    torch.manual_seed(0)
    model = timm.create_model("sequencer2d_s", layers=(1, 1, 1, 1), img_size=64, num_classes=10)
    nn.init.normal_(model.head.fc.weight, std=0.05)
    images = (torch.randn(2, 3, 64, 64).double(),)
    subject = Case.of(model.double().eval(), images, (Task("kind", lambda output: output),))
    keep = random_keep(subject.structure, 0, 0.5)

    assert max(pin.share for pin in subject.structure.pinned) < 0.01
    assert subject.deviation(keep) <= EXACT
    assert count_parameters(subject.pruned(keep)) <= 0.3 * count_parameters(model)
    assert count_macs(subject.pruned(keep), images) == subject.structure.cost.macs.total(keep)


def _recurrent_group(structure: Structure) -> str:
    return next(group.name for group in structure.groups if group.name in ("rnn", "cell"))


@pytest.mark.parametrize("id", ["lstm-both-ways", "gru-both-ways", "gru-cell"])
def test_one_step_of_training_lowers_the_loss(id: str) -> None:
    subject = network(id)
    assert learns(subject.pruned(random_keep(subject.structure, 0, 0.5)), subject.inputs)


@pytest.mark.parametrize("id", ["lstm-both-ways", "gru"])
def test_pruned_exports(id: str, tmp_path: Path) -> None:
    subject = network(id)
    keep = random_keep(subject.structure, 1, 0.5)
    assert onnx_parity(subject, keep, tmp_path / "pruned.onnx") <= 1e-4


# The guard is guarded.


class Deaf:
    """A trace on which one statement of the rules falls silent."""

    def __init__(self, trace: Trace, silent: str) -> None:
        self._trace, self._silent = trace, silent

    def __getattr__(self, name: str) -> Any:
        return (lambda *args, **options: None) if name == self._silent else getattr(self._trace, name)


class Interleaved:
    """A trace that takes the gates' rows to alternate, where torch has one block of rows for each."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trace, name)

    def unite(self, call: Call, first: np.ndarray, second: np.ndarray, *reason: str) -> None:
        if first.ndim == 2:
            first = first.reshape(first.shape[::-1]).T
        self._trace.unite(call, first, second, *reason)


CORRUPTIONS: dict[str, Callable[[Trace], Any]] = {
    "nothing-united": lambda trace: Deaf(trace, "unite"),
    "nothing-read": lambda trace: Deaf(trace, "consume"),
    "gates-interleaved": Interleaved,
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("id", ["lstm-both-ways", "gru", "lstm-cell", "gru-cell"])
def test_a_corrupted_rule_is_caught(id: str, corruption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = network(id)
    for operator in (aten.lstm, aten.gru, aten.lstm_cell, aten.gru_cell):
        original, corrupt = RULES[operator], CORRUPTIONS[corruption]
        monkeypatch.setitem(RULES, operator, lambda t, c, o=original, k=corrupt: o(k(t), c))
    structure = analyse(subject.model, subject.inputs, TASKS)
    keep = random_keep(structure, 0, 0.5)

    with pytest.raises((AssertionError, RuntimeError, ValueError, IndexError)):
        assert Case(subject.model, subject.inputs, structure).deviation(keep) <= 1e-6
