"""Attention whose heads share something: keys and values, a convolution, a number. What is one unit, what
is tied to what, and that the module follows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from disparse_structured.decision.budget import Budget
from disparse_structured.decision.budget.widths import Widths
from disparse_structured.decision.deciding import make_plan
from disparse_structured.decision.plan import Plan
from disparse_structured.errors import PlanError
from disparse_structured.export import export_onnx
from disparse_structured.structure import ChannelGroup, RatioConstraint, analyse
from disparse_structured.structure.labels import Axis, Value
from disparse_structured.structure.rules import attention
from disparse_structured.structure.tracing import RULES, Call, Trace
from disparse_structured.surgery import module as surgery
from disparse_structured.tasks import Task
from tests.support.plans import Case, deviation, random_keep, random_plan, zeroed
from tests.support.synthetic import chain

Patch = pytest.MonkeyPatch
EXACT = 1e-9
TOKENS = 5


class Attention(nn.Module):
    """``heads`` query heads read ``shared`` key and value heads; subclasses say how the two meet."""

    heads, shared = 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_shared, self.head_dim = self.heads, self.shared, 4
        self.times = self.num_heads // self.num_shared
        self.q = nn.Linear(8, self.heads * 4)
        self.k, self.v = nn.Linear(8, self.shared * 4, bias=False), nn.Linear(8, self.shared * 4)
        self.proj, self.out = nn.Linear(self.heads * 4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query = self.q(x).view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        key, value = (
            each(x).view(batch, tokens, self.num_shared, self.head_dim).transpose(1, 2)
            for each in (self.k, self.v)
        )
        mixed = self.attend(query, key, value).transpose(1, 2)
        return self.out(x + self.proj(mixed.reshape(batch, tokens, -1)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[batch, heads, tokens, head_dim]`` of queries of that shape and fewer keys and values."""
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


class CausalFused(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


class BiasedFused(Attention):
    """A table of biases with a row for each query head."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(self.heads, TOKENS, TOKENS))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias, enable_gqa=True)


class Interleaved(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (each.repeat_interleave(self.times, dim=1) for each in (key, value))
        return F.scaled_dot_product_attention(query, key, value)


class Expanded(Attention):
    """Copies by ``expand`` and ``reshape``, the softmax written out."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = self.copies(key), self.copies(value)
        return (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value

    def copies(self, x: Tensor) -> Tensor:
        batch, shared, tokens, width = x.shape
        x = x[:, :, None].expand(batch, shared, self.times, tokens, width)
        return x.reshape(batch, shared * self.times, tokens, width)


class Blocked(Attention):
    """The query heads of a key head in a dimension of their own, where they meet by broadcasting."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = query.unflatten(1, (self.num_shared, self.times))
        attention = (query @ key.unsqueeze(2).transpose(-2, -1) * 0.5).softmax(-1)
        return (attention @ value.unsqueeze(2)).flatten(1, 2)


class EquallyMany(Attention):
    heads, shared = 4, 4


class MultiQuery(Attention):
    heads, shared = 4, 1


class MultiQueryUnfused(MultiQuery):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value


class MultiQueryExpanded(Expanded):
    heads, shared = 4, 1


GROUPED = [Attention, CausalFused, BiasedFused, Interleaved, Expanded, Blocked, EquallyMany]
MULTI_QUERY = [MultiQuery, MultiQueryUnfused]
ALL = [*GROUPED, *MULTI_QUERY]


def analyzed(kind: Callable[[], nn.Module]) -> Case:
    torch.manual_seed(5)
    inputs = (torch.randn(2, TOKENS, 8, dtype=torch.float64),)
    return Case.of(kind().double().eval(), inputs, [Task("out", lambda output: output)])


def heads_of(animal: Case) -> ChannelGroup:
    (found,) = [group for group in animal.structure.groups if group.kind == "head"]
    return found


@pytest.mark.parametrize("kind", GROUPED)
def test_a_shared_head_is_removed_with_all_query_heads_that_read_it(kind: type[Attention]) -> None:
    heads = heads_of(analyzed(kind))
    owned = {(member.parameter, member.dim): member.index for member in heads.members}
    times = kind.heads // kind.shared

    assert heads.units == kind.shared
    for unit in range(kind.shared):
        assert owned["k.weight", 0][unit].tolist() == list(range(4 * unit, 4 * unit + 4))
        assert owned["q.weight", 0][unit].tolist() == list(range(4 * times * unit, 4 * times * (unit + 1)))
    if kind is BiasedFused:
        assert owned["bias", 0].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("kind", MULTI_QUERY)
def test_query_heads_that_read_one_key_head_are_removed_one_by_one(kind: type[Attention]) -> None:
    heads = heads_of(analyzed(kind))

    assert heads.units == kind.heads
    assert {member.parameter for member in heads.members} == {"q.weight", "q.bias", "proj.weight"}


@pytest.mark.parametrize("kind", ALL)
def test_pruned_module_is_the_masked_twin(kind: type[Attention]) -> None:
    animal = analyzed(kind)
    for seed in range(4):
        plan = random_plan(animal.structure, seed)
        done = surgery.apply(animal.model, plan, animal.structure)

        assert not done.refused
        assert done.verification is not None
        assert done.verification.deviation["out"] <= EXACT


@pytest.mark.parametrize("kind", ALL)
def test_removed_heads_contribute_nothing(kind: type[Attention]) -> None:
    """Without labels: a head whose parameters are all zero adds nothing to what ``proj`` sums."""
    animal = analyzed(kind)
    keep = random_keep(animal.structure, 1, only=[heads_of(animal).name])
    zeroes = zeroed(animal.model, animal.structure, keep)

    assert not keep.all()
    assert deviation(animal.outputs(animal.pruned(keep)), animal.outputs(zeroes)) <= EXACT


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("left", [1, 2])
def test_the_numbers_of_the_module_follow(kind: type[Attention], left: int) -> None:
    animal = analyzed(kind)
    heads, times = heads_of(animal), kind.heads // kind.shared
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[heads.start + left : heads.start + heads.units] = False
    pruned = animal.pruned(keep)

    assert (pruned.num_heads, pruned.num_shared, pruned.times) == (left * times, left, times)
    assert animal.deviation(keep) <= EXACT


def test_copies_of_one_key_head_are_as_many_as_the_query_heads() -> None:
    """The number of copies is the module's, so it follows."""
    animal = analyzed(MultiQueryExpanded)

    assert heads_of(animal).units == 4
    for seed in range(3):
        keep = random_keep(animal.structure, seed)
        assert animal.pruned(keep).times == int(keep[heads_of(animal).slice].sum())
        assert animal.deviation(keep) <= EXACT


def dealt_out(value: Value, heads: int) -> Value:
    """Key heads as ``repeat`` has them: all in turn, and again, in place of runs of each."""
    batch, axis, *rest = value
    return (batch, Axis(heads, np.tile(axis.atoms(), heads // axis.size)), *rest)


@pytest.mark.parametrize("kind", [Attention, CausalFused, BiasedFused, Interleaved])
def test_key_heads_dealt_out_in_turn_are_noticed(kind: type[Attention], monkeypatch: Patch) -> None:
    """Query heads read key heads in runs. The twin objects to any other units."""

    def repeat_in_turn(trace: Trace, call: Call) -> Value:
        return dealt_out(call["self"], call.shapes[0][1])

    monkeypatch.setattr(attention, "_repeated", dealt_out)
    monkeypatch.setitem(RULES, torch.ops.aten.repeat_interleave, repeat_in_turn)
    animal = analyzed(kind)
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[heads_of(animal).start] = False

    assert heads_of(animal).units == kind.shared
    assert not animal.deviation(keep) <= 1e-3


# Counts that are sums, and one number for several widths.


class Windows(nn.Module):
    """Heads in unequal runs with a convolution each; the residual width is a multiple of all heads (CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.runs = 7, [8, 20]
        self.embed, self.qkv, self.proj = nn.Linear(8, 28), nn.Linear(28, 84), nn.Linear(28, 28)
        self.mixers = nn.ModuleList(nn.Conv1d(run, run, 3, padding=1, groups=run) for run in self.runs)
        self.out = nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = query @ (key.softmax(2).transpose(-2, -1) @ value)
        _, heads, _, depth = value.shape
        parts = value.transpose(-2, -1).reshape(batch, heads * depth, tokens).split(self.runs, 1)
        images = torch.cat([mixer(part) for mixer, part in zip(self.mixers, parts, strict=True)], 1)
        mixed = mixed + query * images.reshape(batch, heads, depth, tokens).transpose(-2, -1)
        return self.out(x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class Cascade(nn.Module):
    """Single heads one after the other, all of which take their widths from the same two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.width = 4, 5
        self.embed = nn.Linear(8, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 2 * self.depth + self.width) for _ in range(3))
        self.out = nn.Linear(3 * self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, mixed = self.embed(x), []
        for head in self.heads:
            query, key, value = head(x).split([self.depth, self.depth, self.width], 2)
            mixed.append((query @ key.transpose(-2, -1)).softmax(-1) @ value)
        return self.out(torch.cat(mixed, 2))


class Outgrown(nn.Module):
    """Two widths equal a third that is also a count no constraint can hold: ``2 * twice + once``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(8, 12)
        self.twice, self.once = nn.Linear(8, 4), nn.Linear(8, 4)
        self.outs = nn.ModuleList(nn.Linear(12, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        joined = torch.cat([self.twice(x), self.twice(x), self.once(x)], 2)
        parts = [first, *(each.reshape(first.shape) for each in (self.second(x), joined))]
        return torch.stack([out(part) for out, part in zip(self.outs, parts, strict=True)]).sum(0)


def test_what_a_failed_constraint_freezes_takes_along_what_is_tied_to_it() -> None:
    assert analyzed(Outgrown).structure.groups == ()


def test_a_width_that_is_a_multiple_of_heads_in_several_groups_binds_their_sum() -> None:
    animal = analyzed(Windows)
    (bound,) = animal.structure.constraints

    assert bound.sides == ((("embed",), 4), (("qkv", "qkv#2"), 1))
    assert [group.units for group in animal.structure.groups] == [28, 2, 5]
    assert bound.allows({"embed": 12, "qkv": 1, "qkv#2": 2})
    assert not bound.allows({"embed": 12, "qkv": 2, "qkv#2": 2})
    assert animal.structure.bound_to(["qkv#2"]) == {"embed", "qkv", "qkv#2"}


def test_one_number_for_several_widths_binds_them() -> None:
    animal = analyzed(Cascade)
    heads = ("heads.0", "heads.1", "heads.2")

    assert sorted((bound.groups, bound.shares) for bound in animal.structure.constraints) == [
        (heads, (1, 1, 1)),
        (tuple(f"{name}#2" for name in heads), (1, 1, 1)),
    ]
    assert all("counts two different things" in bound.reason for bound in animal.structure.constraints)


@pytest.mark.parametrize("kind", [Windows, Cascade])
def test_pruned_within_its_constraints_it_is_the_masked_twin(kind: Callable[[], nn.Module]) -> None:
    animal = analyzed(kind)
    scores = torch.rand(animal.structure.reach.shape, generator=torch.Generator().manual_seed(0))
    plans = [random_plan(animal.structure, seed) for seed in range(4)]
    plans += [make_plan(animal.structure, scores, Budget(parameters=share)) for share in (0.3, 0.6)]
    for plan in plans:
        done = surgery.apply(animal.model, plan, animal.structure)

        assert not done.refused
        assert done.verification is not None
        assert done.verification.deviation["out"] <= EXACT


@pytest.mark.parametrize("kind", [Windows, Cascade])
def test_a_plan_outside_of_its_constraints_is_refused(kind: Callable[[], nn.Module]) -> None:
    structure = analyzed(kind).structure
    keep = torch.ones(structure.units, dtype=torch.bool)
    keep[structure.group(structure.constraints[0].groups[-1]).start] = False

    with pytest.raises(PlanError, match="one whole number times"):
        Plan.from_keep(structure, keep)


@pytest.mark.parametrize("kind", [Windows, Cascade])
def test_what_a_constraint_forbids_would_be_noticed(kind: Callable[[], nn.Module]) -> None:
    """The constraints are needed: without them the module does not run, or is not the twin."""
    animal = analyzed(kind)
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[animal.structure.group(animal.structure.constraints[0].groups[-1]).start] = False

    with pytest.raises(RuntimeError):
        animal.deviation(keep)


@pytest.mark.parametrize("kind", [Attention, Expanded, Windows, Cascade])
def test_pruned_module_trains_and_exports(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(7)
    inputs = (torch.randn(2, TOKENS, 8),)
    model = kind().eval()
    structure = analyse(model, inputs, [Task("out", lambda output: output)])
    keep = random_keep(structure, 3)
    pruned = surgery.apply(model, Plan.from_keep(structure, keep), structure).model

    export_onnx(pruned, inputs, tmp_path / "small.onnx", outputs={"out": lambda output: output})
    optimizer = torch.optim.SGD(pruned.train().parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = pruned(*inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@given(
    widths=st.lists(st.integers(2, 9), min_size=2, max_size=3),
    times=st.integers(1, 3),
    round_to=st.sampled_from([1, 1, 2, 4]),
    floor=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_settling_a_sum_only_adds_and_ends_within_the_constraint(
    widths: list[int], times: int, round_to: int, floor: float, seed: int
) -> None:
    names = tuple(f"net.layer{i}" for i in range(len(widths) + 1))
    tied = RatioConstraint(names, (times, *(1 for _ in widths)), "so says forward", (names[1:],))
    structure = chain([times * sum(widths), *widths], constraints=(tied,))
    budget = Budget(parameters=0.5, floor=floor, round_to=round_to)
    keep = torch.rand(structure.units, generator=torch.Generator().manual_seed(seed)) < 0.4
    order = torch.arange(structure.units)
    settled = Widths.of(structure.groups, (tied,), budget, structure.reach, order).settle(keep)
    kept = structure.kept(settled)

    assert bool((settled >= keep).all())
    assert tied.allows(kept)
    for group in structure.groups:
        assert kept[group.name] >= max(1, floor * group.units - 1e-6)
        assert kept[group.name] % round_to == 0 or kept[group.name] == group.units
