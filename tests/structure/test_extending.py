"""A package teaches operators: a rule and a record through an entry point, for operators of its own."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.decision.plan import Plan
from disparse_structured.errors import ExtensionError
from disparse_structured.refit.contraction import contractions
from disparse_structured.structure import Structure, analyse, extending
from disparse_structured.structure.tracing import RULES
from disparse_structured.surgery.module import apply
from disparse_structured.surgery.weight_masks import WeightMasks
from disparse_structured.tasks import Task
from tests.support.plans import random_keep

Install = Callable[[str, str], None]
INPUTS = torch.randn(3, 5, dtype=torch.float64)
TASKS = (Task("out", "out"),)


@torch.library.custom_op("disparse_tests::doubled_linear", mutates_args=())
def doubled_linear(data: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return 2 * (data @ matrix.T) + offset


@doubled_linear.register_fake
def _(data: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return data.new_empty(*data.shape[:-1], len(matrix))


@torch.library.custom_op("disparse_tests::spread", mutates_args=())
def spread(data: Tensor) -> Tensor:
    return data.amax(-1, keepdim=True) - data.mean(-1, keepdim=True)


@spread.register_fake
def _(data: Tensor) -> Tensor:
    return data.new_empty(*data.shape[:-1], 1)


class DoubledLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(outputs, inputs) / inputs)
        self.offset = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return doubled_linear(x, self.matrix, self.offset)


class Net(nn.Module):
    """Two layers of an operator of its own, and a gate by a statistic over the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = DoubledLinear(5, 8), DoubledLinear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.first(x))
        return {"out": self.last(hidden) * torch.sigmoid(spread(hidden))}


LINEAR = """
import torch
from disparse_structured.structure.extending import Axis, Contracts, Operator, rule

LINEAR = Operator(Contracts("linear", data="data", weight="matrix", bias="offset", input_dim=1))

@rule(torch.ops.disparse_tests.doubled_linear, record=LINEAR)
def doubled_linear(trace, call):
    value, weight = call["data"], call["matrix"]
    trace.unite(call, value[-1].atoms(), weight[1].atoms(), "the network's input")
    trace.unite(call, weight[0].atoms(), call["offset"][0].atoms())
    trace.consume(call, "data", len(value) - 1, value[-1])
    trace.multiply(call, 1.0, *value[:-1], weight[0], value[-1])
    return (*value[:-1], Axis(weight[0].size, weight[0].labels))
"""

SPREAD = """
import torch
from disparse_structured.structure.extending import Axis, Operator, rule

@rule(torch.ops.disparse_tests.spread, record=Operator(averages={averages}))
def spread(trace, call):
    value = call["data"]
    trace.consume(call, "data", len(value) - 1, value[-1])
    return (*value[:-1], Axis(1))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package that registers a module of the given text; its rules are forgotten at the end."""
    for known in (torch.ops.disparse_tests.doubled_linear, torch.ops.disparse_tests.spread):
        monkeypatch.setitem(RULES, known, None)
        monkeypatch.delitem(RULES, known)

    def installed(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[disparse_structured.rules]\nmine = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return installed


def net() -> tuple[Net, Structure]:
    torch.manual_seed(0)
    model = Net().double().eval()
    return model, analyse(model, INPUTS, TASKS)


def test_without_a_rule_an_operator_pins() -> None:
    _, structure = net()
    assert structure.units == 0
    assert any("no rule for disparse_tests" in pin.reason for pin in structure.pinned)


def test_a_package_teaches_operators_of_its_own(install: Install) -> None:
    install("taught_linear", LINEAR)
    install("taught_spread", SPREAD.format(averages=True))
    model, structure = net()
    (group,) = structure.groups
    assert group.units == 8
    assert {(member.parameter, member.dim) for member in group.members} == {
        ("first.matrix", 0),
        ("first.offset", 0),
        ("last.matrix", 1),
    }
    assert sorted(consumer.averages for consumer in group.consumers) == [False, True]
    assert structure.cost.macs.total(torch.ones(8, dtype=torch.bool)) == 8 * 5 + 2 * 8

    keep = random_keep(structure, 1)
    pruned = apply(model, Plan.from_keep(structure, keep), structure).model
    assert pruned.first.matrix.shape == (int(keep.sum()), 5)
    assert [each.weight for each in contractions(structure, keep)] == ["first.matrix", "last.matrix"]


def test_the_record_of_a_contraction_serves_weight_masks(install: Install) -> None:
    install("masked_linear", LINEAR)
    model = nn.Sequential(DoubledLinear(5, 8), nn.Tanh(), DoubledLinear(8, 2)).double().eval()
    structure = analyse(model, INPUTS, (Task("out", lambda output: output),))
    masks = WeightMasks(model, structure)
    assert not masks.held
    masks.switch(torch.arange(8) > 2)
    assert bool((model[2].matrix[:, :3] == 0).all())
    assert bool((model[2].matrix[:, 3:] != 0).all())


def test_what_a_wrong_record_would_get_wrong_is_left_whole(install: Install) -> None:
    install("right_linear", LINEAR)
    install("wrong_spread", SPREAD.format(averages=False))
    model, structure = net()
    applied = apply(model, Plan.from_keep(structure, random_keep(structure, 1)), structure)
    assert [refusal.group for refusal in applied.refused] == [structure.groups[0].name]
    assert applied.model.first.matrix.shape == (8, 5)


def test_a_module_of_rules_that_cannot_be_imported_is_named(install: Install) -> None:
    install("broken_rules", "import no_such_package\n")
    with pytest.raises(
        ExtensionError,
        match=r"entry point 'mine' = 'broken_rules' of broken_rules \(group 'disparse_structured.rules'\) "
        r"cannot be loaded \(ModuleNotFoundError: .*\). Repair or uninstall",
    ):
        net()


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, torch.ops.aten.special_log_ndtr, None)
    monkeypatch.delitem(RULES, torch.ops.aten.special_log_ndtr)
    assert doctest.testmod(extending) == (0, 10)
