"""What is read from a model: groups, units, reach, pinned parts, constraints, costs; and what is refused."""

from __future__ import annotations

import copy
import logging
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from disparse_structured.errors import BatchError, CaptureError, TaskError, UnsupportedModelError
from disparse_structured.structure import RatioConstraint, Structure, analyse
from disparse_structured.tasks import Task
from tests.support.plans import Case, case, deviation, random_keep, snapshot, zeroed
from tests.support.zoo import BY_ID, Entry, ids

WHOLE = Task("out", lambda output: output)

# Groups in order: name, units, kind, tasks reached. Written by hand from the networks' code.
ALL = ("kind", "dense", "edge")
BOTH = ("kind", "dense")
TOKENS = ("pooled", "dense")
EDGE = ("edge.0.0", 6, "channel", ("edge",))
GROUPS: dict[str, list[tuple[str, int, str, tuple[str, ...]]]] = {
    "plain": [
        ("trunk.0.0", 8, "channel", ALL),
        ("trunk.1.0", 12, "channel", ALL),
        ("trunk.2.0", 8, "channel", ALL),
        EDGE,
    ],
    "depthwise-separable": [("trunk.0.0", 8, "channel", ALL), ("trunk.2.0", 12, "channel", ALL), EDGE],
    "depthwise-multiplier-2": [("trunk.0.0", 6, "bundle", ALL), ("trunk.2.0", 8, "channel", ALL), EDGE],
    "grouped": [
        ("trunk.0.0", 3, "bundle", ALL),
        ("trunk.1.0", 4, "bundle", ALL),
        ("trunk.2.0", 8, "channel", ALL),
        EDGE,
    ],
    # Behind 2 groups and before 3: one place of each half and of each third, so of each sixth.
    "grouped-chain-2-3": [
        ("trunk.0.0", 6, "bundle", ALL),
        ("trunk.1.0", 2, "bundle", ALL),
        ("trunk.2.0", 4, "bundle", ALL),
        ("trunk.3.0", 8, "channel", ALL),
        EDGE,
    ],
    "residual": [
        ("trunk.stem.0", 8, "channel", ALL),
        ("trunk.first.0.0", 10, "channel", ALL),
        ("trunk.second.0.0", 12, "channel", ALL),
        ("trunk.second.1", 12, "channel", ALL),
        EDGE,
    ],
    "called-twice": [("trunk.stem.0", 8, "channel", ALL), ("trunk.shared.0.0", 12, "channel", ALL), EDGE],
    "tied-convolutions": [
        ("trunk.stem.0", 8, "channel", ALL),
        ("trunk.left", 12, "channel", ALL),
        ("trunk.merge.0", 8, "channel", ALL),
        EDGE,
    ],
    "chunk-gate": [("trunk.up.0", 8, "bundle", ALL), ("trunk.out.0", 8, "channel", ALL), EDGE],
    "two-batchnorms": [("conv", 8, "channel", ("left", "right"))],
    "avgpool-flatten": [
        ("trunk.0.0", 8, "channel", ("kind", "pose")),
        ("trunk.1.0", 6, "channel", ("kind", "pose")),
        ("hidden", 16, "channel", ("kind", "pose")),
    ],
    "tied-linears": [("trunk.embed", 10, "channel", ("left", "right"))],
    "fused-qkv": [
        ("trunk.0", 12, "channel", TOKENS),
        ("trunk.1.qkv", 4, "head", TOKENS),
        ("trunk.1.proj", 12, "channel", TOKENS),
        ("dense.0", 10, "channel", ("dense",)),
    ],
    "separate-qkv": [
        ("trunk.0", 12, "channel", TOKENS),
        ("trunk.1.q", 4, "head", TOKENS),
        ("dense.0", 10, "channel", ("dense",)),
    ],
    "heads-bound-to-width": [
        ("trunk.embed", 16, "channel", TOKENS),
        ("trunk.qkv", 4, "head", TOKENS),
        ("dense.0", 10, "channel", ("dense",)),
    ],
    "partial-reach": [
        ("one.0", 8, "channel", ("early", "middle", "late")),
        ("two.0", 10, "channel", ("middle", "late")),
        ("three.0", 12, "channel", ("late",)),
    ],
    "private-branches": [
        ("trunk.0.0", 8, "channel", ("left", "right")),
        ("trunk.1.0", 8, "channel", ("left", "right")),
        ("left.0.0", 12, "channel", ("left",)),
        ("left.1.0", 10, "channel", ("left",)),
        ("right.0.0", 12, "channel", ("right",)),
    ],
    "untasked-head": [
        ("trunk.0.0", 8, "channel", ("left",)),
        ("trunk.1.0", 8, "channel", ("left",)),
        ("left.0.0", 12, "channel", ("left",)),
        ("left.1.0", 10, "channel", ("left",)),
        ("right.0.0", 12, "channel", ()),
    ],
    "dead-branch": [
        ("trunk.0.0", 8, "channel", BOTH),
        ("trunk.1.0", 12, "channel", BOTH),
        ("dropped.0.0", 8, "channel", ()),
        ("dropped.1", 2, "channel", ()),
    ],
}


@pytest.mark.parametrize("id", GROUPS)
def test_groups_are_those_written_by_hand(id: str) -> None:
    found = [(group.name, group.units, group.kind, group.reach) for group in case(id).structure.groups]

    assert found == GROUPS[id]


def slices(structure: Structure, name: str) -> dict[tuple[str, int], int]:
    """Parameter and dimension -> how many positions of it a unit owns."""
    members = structure.group(name).members
    return {(member.parameter, member.dim): member.index.shape[1] for member in members}


def test_a_unit_of_a_convolution_owns_its_filter_its_norm_and_what_reads_it() -> None:
    norm = {(f"trunk.0.1.{name}", 0): 1 for name in ("weight", "bias", "running_mean", "running_var")}

    assert slices(case("plain").structure, "trunk.0.0") == {
        ("trunk.0.0.weight", 0): 1,
        ("trunk.1.0.weight", 1): 1,
        **norm,
    }


@pytest.mark.parametrize(
    ("id", "group", "member", "expected"),
    [
        ("grouped", "trunk.0.0", ("trunk.0.0.weight", 0), [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
        ("grouped", "trunk.0.0", ("trunk.1.0.weight", 1), [[0], [1], [2]]),
        ("grouped-chain-2-3", "trunk.1.0", ("trunk.2.0.weight", 1), [[0, 2], [1, 3]]),
        ("depthwise-multiplier-2", "trunk.0.0", ("trunk.1.0.weight", 0),
         [[2 * i, 2 * i + 1] for i in range(6)]),
        ("chunk-gate", "trunk.up.0", ("trunk.up.0.weight", 0), [[i, 8 + i] for i in range(8)]),
        ("avgpool-flatten", "trunk.1.0", ("hidden.weight", 1),
         [[*range(9 * i, 9 * i + 9)] for i in range(6)]),
        ("concat-input", "trunk.stem.0", ("trunk.merge.0.weight", 1), [[3 + i] for i in range(8)]),
        ("concat-pooled-input", "trunk.stem.0", ("trunk.merge.0.weight", 1), [[i] for i in range(8)]),
        (
            "fused-qkv",
            "trunk.1.qkv",
            ("trunk.1.qkv.weight", 0),
            [[12 * part + 3 * head + i for part in range(3) for i in range(3)] for head in range(4)],
        ),
        ("position-bias-heads", "trunk", ("trunk.bias", 0), [[0], [1], [2], [3]]),
    ],
)  # fmt: skip
def test_which_positions_a_unit_owns(
    id: str, group: str, member: tuple[str, int], expected: list[list[int]]
) -> None:
    found = {(m.parameter, m.dim): m.index for m in case(id).structure.group(group).members}

    np.testing.assert_array_equal(found[member], expected)


def test_tied_weights_are_one_member_with_both_biases() -> None:
    found = slices(case("tied-convolutions").structure, "trunk.left")

    assert found == {
        ("trunk.left.weight", 0): 1,
        ("trunk.left.bias", 0): 1,
        ("trunk.right.bias", 0): 1,
        ("trunk.merge.0.weight", 1): 2,
    }


def test_a_weight_tied_to_itself_shrinks_in_both_dimensions_at_once() -> None:
    found = slices(case("tied-linears").structure, "trunk.embed")

    assert found[("trunk.first.weight", 0)] == found[("trunk.first.weight", 1)] == 1
    assert not any(parameter.startswith("trunk.second.weight") for parameter, _ in found)


def test_two_batchnorms_on_one_tensor_shrink_with_it() -> None:
    found = slices(case("two-batchnorms").structure, "conv")

    assert {f"{side}_norm.{name}" for side in ("left", "right") for name in ("weight", "running_var")} <= {
        parameter for parameter, _ in found
    }


@pytest.mark.parametrize("id", ids)
def test_units_are_numbered_without_gaps_and_own_disjoint_positions(id: str) -> None:
    structure = case(id).structure
    start = 0
    owned: set[tuple[str, int, int]] = set()
    for group in structure.groups:
        assert (group.start, group.units > 1) == (start, True)
        start += group.units
        for member in group.members:
            assert member.index.shape[0] == group.units
            positions = {(member.parameter, member.dim, int(i)) for i in member.index.reshape(-1)}
            assert len(positions) == member.index.size
            assert not positions & owned
            owned |= positions
    assert structure.units == start
    assert len({group.name for group in structure.groups}) == len(structure.groups)


def test_reach_matrix_has_a_row_a_task() -> None:
    structure = case("partial-reach").structure
    by_task = {task: row.tolist() for task, row in zip(structure.tasks, structure.reach, strict=True)}

    assert by_task == {
        "early": [True] * 8 + [False] * 22,
        "middle": [True] * 18 + [False] * 12,
        "late": [True] * 30,
    }


def reasons(id: str) -> dict[str, float]:
    return {f"{pin.operator}: {pin.reason}": pin.share for pin in case(id).structure.pinned}


@pytest.mark.parametrize(
    ("id", "what", "parameters"),
    [
        # body: 8 filters of 8x3x3, 8 norm weights and 8 biases. The layer behind: all its 8x8x3x3 weights.
        ("no-rule-cumsum", "aten.cumsum.default: its order matters", 592 + 576),
        ("channel-roll", "aten.roll.default: its positions are moved", 216 + 16 + 576),
        ("layernorm-space", "aten.layer_norm.default: layer norm over several dimensions", None),
        ("groupnorm-each-channel", ": only one unit", 12 * 72 + 36 + 12 * 72),
        ("dead-branch", ": never used by forward", 12 * 9 + 9),
    ],
)
def test_an_operator_that_freezes_is_named_with_its_share(id: str, what: str, parameters: int | None) -> None:
    shares = reasons(id)

    assert what in shares, shares
    assert 0 < shares[what] <= 1
    if parameters is not None:
        total = sum(parameter.numel() for parameter in case(id).model.parameters())
        assert shares[what] == pytest.approx(parameters / total)


def test_what_an_unknown_operator_reads_is_in_no_group() -> None:
    members = {(m.parameter, m.dim) for g in case("no-rule").structure.groups for m in g.members}

    assert ("trunk.body.0.weight", 0) not in members
    assert ("trunk.out.0.weight", 1) not in members
    assert ("trunk.body.0.weight", 1) in members


def test_outputs_and_inputs_keep_their_width() -> None:
    for id in ids:
        structure, model = case(id).structure, case(id).model
        members = {(m.parameter, m.dim) for g in structure.groups for m in g.members}
        for name in ("kind", "left", "right", "early", "coarse"):
            if isinstance(dict(model.named_modules()).get(name), nn.Linear | nn.Conv2d):
                assert (f"{name}.weight", 0) not in members or id == "dead-branch", (id, name)


def test_heads_bound_to_the_width_are_a_proportion() -> None:
    constraints = case("heads-bound-to-width").structure.constraints

    assert [(c.groups, c.shares) for c in constraints] == [(("trunk.embed", "trunk.qkv"), (4, 1))]
    assert isinstance(constraints[0], RatioConstraint)
    assert case("heads-bound-to-width").structure.bound_to(["trunk.qkv"]) == {"trunk.embed", "trunk.qkv"}
    assert all(not case(id).structure.constraints for id in ids if id != "heads-bound-to-width")


# Costs.


def count(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, int]:
    """Multiply-accumulates an example, by PyTorch's own counter, and parameters."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 2 / inputs[0].shape[0], sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("id", ids)
def test_cost_model_agrees_with_a_real_count(id: str) -> None:
    animal = case(id)
    dense = torch.ones(animal.structure.units, dtype=torch.bool)
    for keep in (dense, random_keep(animal.structure, 1), random_keep(animal.structure, 2)):
        macs, parameters = count(animal.pruned(keep), animal.inputs)

        assert animal.structure.cost.macs.total(keep) == pytest.approx(macs, rel=1e-3)
        assert animal.structure.cost.parameters.total(keep) == parameters


def test_a_filter_costs_as_much_as_the_channels_that_it_is_applied_to() -> None:
    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
            self.register_buffer("filter", torch.randn(1, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            edges = nn.functional.conv2d(x.flatten(0, 1)[:, None], self.filter, padding=1)
            return self.last(edges.view_as(x).abs())

    inputs = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
    animal = Case.of(Edges().eval(), inputs, [Task("out", ())])
    keep = random_keep(animal.structure, 0)

    assert animal.structure.cost.macs.total(keep) == count(animal.pruned(keep), inputs)[0]


def test_the_marginal_cost_is_what_removing_that_unit_saves() -> None:
    structure = case("plain").structure
    dense = torch.ones(structure.units, dtype=torch.bool)
    for cost in (structure.cost.macs, structure.cost.parameters):
        assert cost.dense == cost.total(dense)
        claimed = cost.marginal(dense)
        for unit in (0, 9, structure.units - 1):
            keep = dense.clone()
            keep[unit] = False
            assert float(claimed[unit]) == pytest.approx(cost.dense - cost.total(keep))


# Identity.


def test_fingerprint_is_of_the_architecture_and_not_of_the_weights() -> None:
    entry = BY_ID["plain"]
    other_weights = entry.factory()
    for parameter in other_weights.parameters():
        nn.init.normal_(parameter)
    wider = entry.factory()
    wider.edge[0][0] = nn.Conv2d(8, 7, 3, padding=1, bias=False)
    wider.edge[0][1] = nn.BatchNorm2d(7)
    wider.edge[1] = nn.Conv2d(7, 1, 1)
    prints = [
        analyse(model.eval(), entry.inputs(), entry.tasks).fingerprint
        for model in (entry.factory(), other_weights, wider)
    ]

    assert prints[0] == prints[1] == case("plain").structure.fingerprint
    assert prints[0] != prints[2]


@pytest.mark.parametrize("id", ["residual", "tiny-vit", "grouped-chain-2-3", "unequal-split"])
def test_analysis_is_deterministic(id: str) -> None:
    entry = BY_ID[id]
    first = case(id).structure
    again = analyse(entry.factory(torch.float64), entry.inputs(dtype=torch.float64), entry.tasks)

    assert again.fingerprint == first.fingerprint
    assert [g.name for g in again.groups] == [g.name for g in first.groups]
    assert again.pinned == first.pinned
    for one, other in zip(first.groups, again.groups, strict=True):
        for a, b in zip(one.members, other.members, strict=True):
            assert (a.parameter, a.dim) == (b.parameter, b.dim)
            np.testing.assert_array_equal(a.index, b.index)
        assert [(c.node, c.arg, c.dim) for c in one.consumers] == [
            (c.node, c.arg, c.dim) for c in other.consumers
        ]


# The model is left as it was.


def observed(entry: Entry, model: nn.Module) -> None:
    before, states = snapshot(model), (torch.get_rng_state(), random.getstate())

    analyse(model, entry.inputs(), entry.tasks)

    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize(
    "id",
    ["plain", "frozen-branch", "unequal-split", "tied-linears", "tiny-vit", "multihead-attention", "mlp"],
)
def test_the_model_is_bit_identical_afterwards(id: str) -> None:
    observed(BY_ID[id], BY_ID[id].factory())


def test_integers_of_the_model_are_plain_integers_afterwards() -> None:
    model = BY_ID["unequal-split"].factory()
    analyse(model, BY_ID["unequal-split"].inputs(), BY_ID["unequal-split"].tasks)

    assert model.trunk.pieces == (4, 6, 2)
    assert {type(value) for value in model.trunk.pieces} == {int}
    assert type(model.trunk.stem[0].in_channels) is int


def test_every_modules_own_mode_is_restored() -> None:
    entry = BY_ID["residual"]
    model = entry.factory().train()
    model.trunk.first.eval()

    observed(entry, model)

    assert model.training
    assert not model.trunk.first.training
    assert analyse(model, entry.inputs(), entry.tasks).fingerprint == case("residual").structure.fingerprint


def test_example_inputs_that_forward_writes_to_stay_as_they_are() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x -= 3.0
            return self.out(torch.relu(self.hidden(x)))

    inputs = (torch.randn(2, 4, dtype=torch.float64),)
    before = inputs[0].clone()
    animal = Case.of(Centered().double().eval(), inputs, [WHOLE])
    keep = random_keep(animal.structure, 0)
    twin = animal.twin(keep)
    assert torch.equal(inputs[0], before)
    assert deviation(animal.outputs(animal.pruned(keep), (before.clone(),)), twin) <= 1e-9


# Bad input. Every error is named, says the remedy, and leaves the model as it was.


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if x.sum() > 0:  # this line is named in the error
            x = x * 2
        return self.out(x)


class Counting(nn.Module):
    """Counts its own forward passes in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0].add_(1)
        return self.out(x) * self.calls[0]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def two_outputs() -> nn.Module:
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = two_layers()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"seg": self.body(x), "size": x.abs().sum(1), "one": torch.ones(3)}

    return TwoOutputs()


def line_of(text: str) -> str:
    with open(__file__, encoding="utf-8") as lines:
        return str(next(number for number, line in enumerate(lines, 1) if text in line))


SEG = Task("seg", "seg")


@pytest.mark.parametrize(
    ("model", "tasks", "error", "says"),
    [
        (two_outputs, [], TaskError, "no task was given. Pass at least one Task"),
        (two_outputs, [SEG, Task("size", "size")], TaskError, "'size' reaches nothing: .* drop the task"),
        (two_outputs, [SEG, Task("one", "one")], TaskError, "task 'one' reaches nothing"),
        (two_outputs, [SEG, Task("depth", "depht")], TaskError,
         r"task 'depth': the selector 'depht' misses at 'depht'; .* keys \['seg', 'size', 'one'\]\. Use one"),
        (two_outputs, [SEG, Task("depth", 1)], TaskError, "selector 1 misses"),
        (two_outputs, [Task("seg", lambda output: output["seg"].shape)], TaskError, "which holds no tensor"),
        (two_outputs, [Task("seg", lambda output: output.seg)], TaskError, "its output selector raised"),
        (two_outputs, [SEG, Task("seg", "one")], TaskError, "task name 'seg' is used 2 times"),
        (Branching, [WHOLE], CaptureError,
         rf"could not capture Branching: GuardOnDataDependentSymNode: .*test_structure\.py:"
         rf"{line_of('this line is named in the error')}, in forward.*no branches on tensor values"),
        (Counting, [WHOLE], CaptureError, "changes its own 'calls' in eval mode.*in train mode only"),
        (lambda: nn.Linear(5, 6), [WHOLE], BatchError, "Linear refused a batch, .* RuntimeError: "),
        (lambda: nn.DataParallel(two_layers()), [WHOLE], UnsupportedModelError,
         r"the model is wrapped in DataParallel\. Use the module inside: its \.module"),
        (lambda: nn.Sequential(nn.DataParallel(two_layers())), [WHOLE], UnsupportedModelError,
         "layer '0' is wrapped in DataParallel"),
        (lambda: torch.compile(two_layers()), [WHOLE], UnsupportedModelError,
         r"the model was compiled by torch\.compile\. Use the original module: its \._orig_mod"),
        (lambda: nn.Sequential(two_layers(), torch.compile(nn.ReLU())), [WHOLE], UnsupportedModelError,
         "layer '1' was compiled"),
        (lambda: nn.Sequential(scripted()), [WHOLE], UnsupportedModelError, "layer '0' is a TorchScript"),
        (lambda: scripted(), [WHOLE], UnsupportedModelError,
         r"the model is a TorchScript module\. Use the Python module it was made from"),
        (lambda: quantized(), [WHOLE], UnsupportedModelError,
         r"layer '0' is quantized \(Linear\)\. Prune the float model, then quantize"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_bad_input_is_refused_by_name_and_the_model_stays(
    model: Callable[[], nn.Module], tasks: list[Task], error: type[Exception], says: str
) -> None:
    subject = model()
    scriptless = not any(isinstance(module, torch.jit.ScriptModule) for module in subject.modules())
    before = snapshot(subject) if scriptless else None

    with pytest.raises(error) as caught:
        analyse(subject, (torch.randn(2, 4),), tasks)

    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    if scriptless:
        assert snapshot(subject) == before


def test_layers_without_weights_are_named_and_left_without() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))

    with pytest.raises(
        UnsupportedModelError, match=r"layer '0' is lazy \(LazyLinear\) and has no weights yet"
    ):
        analyse(model, (torch.randn(2, 4),), [WHOLE])

    assert model[0].has_uninitialized_params()
    model(torch.randn(2, 4))
    assert analyse(model, (torch.randn(2, 4),), [WHOLE]).units == 8


def scripted() -> nn.Module:
    return torch.jit.script(two_layers())


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(two_layers(), {nn.Linear})


def test_a_failed_export_is_said_once_and_logging_stays_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    level = logging.root.manager.disable
    with pytest.raises(CaptureError):
        analyse(Branching(), (torch.randn(2, 4),), [WHOLE])

    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


# Random networks.


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Convolutions of drawn widths and groups, chained, added or concatenated, then two heads."""
    widths = st.sampled_from([4, 6, 8, 12])
    layers = draw(
        st.lists(st.tuples(st.sampled_from(["chain", "add", "cat", "input"]), widths), min_size=1, max_size=4)
    )
    wanted = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=len(layers), max_size=len(layers)))
    return Drawn(layers, wanted, draw(st.booleans()))


class Drawn(nn.Module):
    def __init__(self, layers: list[tuple[str, int]], groups: list[int], flat: bool) -> None:
        super().__init__()
        self.plan = [how for how, _ in layers]
        self.stem = nn.Conv2d(3, layers[0][1], 3, padding=1)
        width = layers[0][1]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for (how, wide), parts in zip(layers, groups, strict=True):
            wide = width if how == "add" else wide
            parts = parts if width % parts == wide % parts == 0 else 1
            self.convs.append(nn.Conv2d(width, wide, 3, padding=1, groups=parts))
            self.norms.append(nn.BatchNorm2d(wide))
            width = {"cat": width + wide, "input": wide + 3}.get(how, wide)
        self.flat = flat
        self.kind = nn.Linear(width * 16 if flat else width, 3)
        self.dense = nn.Conv2d(width, 2, 1)

    def extra_repr(self) -> str:
        return f"{self.plan}, flat={self.flat}"

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(image))
        for how, conv, norm in zip(self.plan, self.convs, self.norms, strict=True):
            y = torch.relu(norm(conv(x)))
            x = {
                "chain": lambda x, y: y,
                "add": torch.add,
                "cat": lambda x, y: torch.cat([x, y], 1),
                "input": lambda x, y: torch.cat([image, y], 1),
            }[how](x, y)
        return self.kind(x.flatten(1) if self.flat else x.mean((2, 3))), self.dense(x)


@settings(max_examples=12)
@given(model=networks(), seed=st.integers(0, 2**16), share=st.sampled_from([0.2, 0.5, 0.9, None]))
def test_random_networks_and_plans(model: nn.Module, seed: int, share: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) - 0.3).abs_()
    inputs = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64),)
    animal = Case.of(model, inputs, [Task("kind", 0), Task("dense", 1)])
    keep = random_keep(animal.structure, seed, share)
    pruned = animal.pruned(keep)

    assert deviation(animal.outputs(pruned), animal.twin(keep)) <= 1e-9
    assert deviation(animal.outputs(pruned), animal.outputs(zeroed(model, animal.structure, keep))) <= 1e-9
    assert count(pruned, inputs)[0] == pytest.approx(animal.structure.cost.macs.total(keep), rel=1e-3)
    copy.deepcopy(pruned)
