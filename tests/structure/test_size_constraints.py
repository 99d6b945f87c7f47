"""Numbers that ``forward`` computes with: found by where they come from, not by their value."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from disparse_structured.errors import BatchError
from disparse_structured.graph.provenance import Arithmetic, Attribute, Size, TracedInt
from disparse_structured.structure import analyse
from disparse_structured.surgery import apply
from disparse_structured.surgery.graph import apply_graph
from disparse_structured.tasks import Task
from tests.support.plans import Case, random_keep, random_plan, snapshot


class Numbered(nn.Module):
    """Two hidden layers of eight, and other eights that are no width; sub-classes compute with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def between(self, x: Tensor) -> Tensor:
        return x

    def behind(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(torch.tanh(self.first(x)))
        return self.out(self.behind(torch.tanh(self.second(x))))


class EqualNumbers(Numbered):
    """Three attributes are eight: one counts the first width, one the second, one counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.steps = 8, 8, 8

    def between(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = x * 0.9
        return x.view(-1, self.one)

    def behind(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.other, 1).flatten(1)


class NumbersInTuples(Numbered):
    """Elements of a tuple and of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.others = (8, 8, 8), [3, 8]

    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, self.widths[1])

    def behind(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.others[1])


class SizesOfTensors(Numbered):
    """Sizes read in every way, and a tensor made to measure."""

    def between(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), x.shape[1]) + torch.zeros(x.size(-1))
        return x + torch.ones(1, 1).expand(*x.size())

    def behind(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape).view(x.size()).unsqueeze(1).reshape(-1, 2 * x.shape[1] // 2)


class SizeOfAnother(Numbered):
    """The width of one tensor is the number for another: the two are bound."""

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.first(x))
        second = torch.tanh(self.second(first))
        return self.out(second.view(-1, first.shape[1]))


class CountsTwoThings(Numbered):
    """One attribute is the number for both widths."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8

    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, self.width)

    def behind(self, x: Tensor) -> Tensor:
        return x.view(-1, self.width)


class Literal(Numbered):
    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, 8)


class Outside(Numbered):
    """The number is known only outside of every module, here in a class."""

    WIDTH = 8

    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, type(self).WIDTH)


class ThroughFloat(Numbered):
    """A ratio is computed in floating point, where the number's origin is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.ratio = 0.5

    def between(self, x: Tensor) -> Tensor:
        some = int(x.shape[1] * self.ratio)
        first, last = x.split([some, x.shape[1] - some], 1)
        return torch.cat([last, first], 1)


class SliceBounds(Numbered):
    """Slices whose bounds are attributes, put back in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 3

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, self.kept :], x[:, : self.kept] * 2], 1)


class OnlyInProducts(Numbered):
    """Numbers that stand in no operator alone: in a product, a quotient and a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.twofold = 4, 16

    def between(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = x.reshape(batch * self.heads, 2).reshape(batch, self.heads, 2)
        return x.transpose(1, 2).reshape(batch, 2 * self.heads)

    def behind(self, x: Tensor) -> Tensor:
        return x.view(-1, self.twofold // 2).view(-1, self.twofold - x.shape[1])


class OneNumberInTwoProducts(Numbered):
    """Pairs of the one width and pairs of the other are counted by one number, in products only."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = 4

    def between(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return x.reshape(batch * self.pairs, 2).view(batch, -1)

    behind = between


def analyzed(model: nn.Module) -> Case:
    torch.manual_seed(3)
    inputs = (torch.randn(2, 5, dtype=torch.float64),)
    return Case.of(model.double().eval(), inputs, [Task("out", lambda output: output)])


def pruned(animal: Case, **kept: int) -> nn.Module:
    """Pruned to so many units of each group, and verified."""
    keep = torch.zeros(animal.structure.units, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for group in animal.structure.groups:
        stays = torch.randperm(group.units, generator=generator)[: kept.get(group.name, group.units)]
        keep[group.start + stays] = True
    assert animal.deviation(keep) <= 1e-9
    return animal.pruned(keep)


def test_equal_numbers_are_told_apart() -> None:
    animal = analyzed(EqualNumbers())
    small = pruned(animal, first=5, second=3)

    assert (small.one, small.other, small.steps) == (5, 3, 8)
    assert {type(value) for value in (small.one, small.other, small.steps)} == {int}


def test_elements_of_tuples_and_lists_follow_in_place() -> None:
    animal = analyzed(NumbersInTuples())
    small = pruned(animal, first=5, second=3)

    assert (small.widths, small.others) == ((8, 5, 8), [3, 3])
    assert animal.model.others == [3, 8]


def test_sizes_of_tensors_follow_by_themselves() -> None:
    animal = analyzed(SizesOfTensors())

    assert animal.structure.constraints == ()
    assert {group.name for group in animal.structure.groups} == {"first", "second"}
    pruned(animal, first=5, second=3)


@pytest.mark.parametrize("gone", [{0}, {0, 4, 7}, {0, 1, 2}, {3, 4, 5, 6, 7}])
def test_slice_bounds_follow(gone: set[int]) -> None:
    """Also where a slice becomes empty."""
    animal = analyzed(SliceBounds())
    keep = torch.ones(animal.structure.units, dtype=torch.bool)
    keep[sorted(animal.structure.group("first").start + unit for unit in gone)] = False

    assert animal.deviation(keep) <= 1e-9
    assert animal.pruned(keep).kept == len({0, 1, 2} - gone)


def test_attributes_that_stand_in_products_only_follow() -> None:
    animal = analyzed(OnlyInProducts())
    assert {group.name: group.units for group in animal.structure.groups} == {"first": 4, "second": 8}
    small = pruned(animal, first=3, second=6)

    assert (small.heads, small.twofold) == (3, 12)
    assert pruned(animal, first=1, second=4).twofold == 8


def test_an_attribute_in_two_products_binds_what_they_count() -> None:
    animal = analyzed(OneNumberInTwoProducts())

    for seed in range(4):
        assert animal.deviation(random_keep(animal.structure, seed)) <= 1e-9
    (bound,) = animal.structure.constraints
    assert (set(bound.groups), bound.shares) == ({"first", "second"}, (1, 1))


def test_the_size_of_one_used_for_another_binds_the_two() -> None:
    animal = analyzed(SizeOfAnother())

    (bound,) = animal.structure.constraints
    assert (set(bound.groups), bound.shares) == ({"first", "second"}, (1, 1))
    assert bound.reason == "forward uses the width of one for the other"
    pruned(animal, first=3, second=3)


def test_an_attribute_that_counts_two_things_binds_them() -> None:
    animal = analyzed(CountsTwoThings())

    (bound,) = animal.structure.constraints
    assert (set(bound.groups), bound.shares) == ({"first", "second"}, (1, 1))
    assert "width counts two different things" in bound.reason
    assert pruned(animal, first=3, second=3).width == 3


@pytest.mark.parametrize(
    ("kind", "pinned", "reason"),
    [
        (Literal, {"first"}, "forward hard-codes the number 8"),
        (Outside, {"first"}, "forward hard-codes the number 8"),
        (ThroughFloat, {"first"}, "forward computes a real number from the width"),
    ],
)
def test_a_number_that_cannot_follow_freezes_what_it_counts(
    kind: Callable[[], nn.Module], pinned: set[str], reason: str
) -> None:
    animal = analyzed(kind())

    assert {"first", "second"} - {group.name for group in animal.structure.groups} == pinned
    assert any(reason in pin.reason for pin in animal.structure.pinned)
    for seed in range(2):
        assert animal.deviation(random_keep(animal.structure, seed)) <= 1e-9


def test_a_number_of_a_module_called_twice_follows_once() -> None:
    class Reshapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.linear = 8, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)).view(-1, self.width)

    class Twice(Numbered):
        def __init__(self) -> None:
            super().__init__()
            self.shared = Reshapes()

        def between(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(x))

    animal = analyzed(Twice())
    small = pruned(animal, first=5, second=7)

    assert small.shared.width == 5


def test_the_modules_numbers_are_put_back_when_forward_fails() -> None:
    class Fails(EqualNumbers):
        def behind(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Fails()
    before = snapshot(model)
    with pytest.raises(BatchError, match=r"Fails refused a batch, .* RuntimeError: no"):
        analyse(model, (torch.randn(2, 5),), [Task("out", lambda output: output)])

    assert type(model.one) is int
    assert snapshot(model) == before


# Traced integers.


WIDTH = Attribute("block", "width")


def test_traced_integers_are_integers() -> None:
    traced = TracedInt(6, WIDTH, [])

    assert traced == 6
    assert {traced: "found"}[6] == "found"
    assert [10, 11, 12, 13, 14, 15, 16][traced] == 16
    assert f"{traced} of {traced:03d}" == "6 of 006"
    assert torch.zeros(traced).shape == (6,)


def test_arithmetic_is_remembered() -> None:
    traced, size = TracedInt(6, WIDTH, []), TracedInt(4, Size(7, 1), [])
    for found, value, symbol, left, right in [
        (traced + size, 10, "+", WIDTH, Size(7, 1)),
        (traced - 1, 5, "-", WIDTH, 1),
        (10 - traced, 4, "-", 10, WIDTH),
        (3 * traced, 18, "*", 3, WIDTH),
        (traced // size, 1, "//", WIDTH, Size(7, 1)),
        (13 // traced, 2, "//", 13, WIDTH),
    ]:
        assert found == value
        assert found.expression == Arithmetic(symbol, left, right)


@pytest.mark.parametrize(
    "compute",
    [
        lambda n: n / 2,
        lambda n: n**-0.5,
        lambda n: n % 4,
        lambda n: -n,
        lambda n: n * 0.5,
        lambda n: int(n * 0.5),
    ],
)
def test_what_is_not_followed_is_a_plain_number(compute: Callable[[int], float]) -> None:
    found = compute(TracedInt(6, WIDTH, []))

    assert found == compute(6)
    assert type(found) in (int, float)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_is_a_plain_integer(copied: Callable[[int], int]) -> None:
    found = copied(TracedInt(6, WIDTH, []))

    assert found == 6
    assert type(found) is int


# Floats that forward computes from a width.


class ScaledByWidth(nn.Module):
    """The scale is the root of a number that counts the layer's width."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).view(-1, self.width) * math.sqrt(self.width)
        return self.head(self.second(hidden).relu())


class OneHead(nn.Module):
    """One attention head: its channels look like any others, but the scale counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 1, 8
        self.qkv = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.proj = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            each(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for each in self.qkv
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.size)
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class QuotientOfWidths(nn.Module):
    """The scale is computed from a quotient that stays the same if whole heads are removed."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        size = width // self.heads
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = (query * size**-0.5) @ key.transpose(-2, -1)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width))


def test_a_float_from_a_quotient_ties_the_widths() -> None:
    torch.manual_seed(0)
    model = QuotientOfWidths().eval()
    structure = analyse(model, torch.randn(2, 5, 8), [Task("out", ())])
    done = apply(model, random_plan(structure, 0), structure)

    assert {group.name for group in structure.groups} == {"embed", "qkv"}
    assert not done.refused
    assert done.model.embed.out_features == 4 * done.model.heads < 16


SCALED = [(ScaledByWidth, (2, 8)), (OneHead, (2, 5, 8))]


@pytest.mark.parametrize(("kind", "shape"), SCALED)
def test_a_width_that_a_float_is_computed_from_is_pinned_in_a_module(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    structure = analyse(model, torch.randn(shape), [Task("out", ())])

    assert "forward computes a real number from the width" in {pin.reason for pin in structure.pinned}
    assert not apply(model, random_plan(structure, 0), structure).refused


@pytest.mark.parametrize(("kind", "shape"), SCALED)
def test_a_width_that_a_float_is_computed_from_is_free_in_the_graph(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    structure = analyse(model, torch.randn(shape), [Task("out", ())], form="graph")

    assert "forward computes a real number from the width" not in {pin.reason for pin in structure.pinned}
    assert not apply_graph(model, random_plan(structure, 0), structure).refused
