"""Products and distances: what is summed over can be removed, and the cost of what is left is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disparse_structured.graph.operators import spelled_out
from disparse_structured.structure import count_macs
from disparse_structured.surgery.module import apply
from disparse_structured.tasks import Task
from tests.support.plans import Case, random_keep, random_plan

TASK = [Task("out", ())]
VECTORS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = 1e-9


class Net(nn.Module):
    """Two layers of tokens, ``how`` of them and of a table, and whatever that gives."""

    def __init__(self, how: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.table, self.vector = nn.Parameter(torch.randn(7, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.left(x).tanh(), self.right(x).tanh())


HOW: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "cosine": lambda net, x, y: F.cosine_similarity(x, y, dim=-1),
    "cosine-to-prototypes": lambda net, x, y: F.cosine_similarity((x + y)[:, :, None], net.table, dim=-1),
    "distance-to-prototypes": lambda net, x, y: torch.cdist(x + y, net.table),
    "inner-product": lambda net, x, y: torch.linalg.vecdot(x, y),
    "vector-on-the-right": lambda net, x, y: (x + y) @ net.vector,
    "vector-on-the-left": lambda net, x, y: net.vector @ (x + y).transpose(-1, -2),
    "weights-on-both-sides": lambda net, x, y: (x + y) @ net.table[:4].mT + net.vector @ net.table[:4].mT,
    "tensordot": lambda net, x, y: torch.tensordot(x + y, net.table, dims=([2], [1])),
}


@pytest.mark.parametrize("how", HOW)
def test_what_is_summed_over_is_removed_and_the_result_is_the_masked_twin(how: str) -> None:
    torch.manual_seed(0)
    found = Case.of(Net(HOW[how]).double().eval(), (VECTORS,), TASK)

    assert [group.units for group in found.structure.groups] == [8]
    keep = random_keep(found.structure, 0)
    assert found.deviation(keep) <= EXACT
    pruned = found.pruned(keep)
    assert count_macs(pruned, (VECTORS,)) == found.structure.cost.macs.total(keep)


def test_a_bilinear_layer_shrinks_on_all_three_sides() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 10)
            self.pairs, self.out = nn.Bilinear(8, 10, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.pairs(self.left(x).tanh(), self.right(x).tanh()).tanh())

    torch.manual_seed(0)
    found = Case.of(Pairs().double().eval(), (VECTORS,), TASK)
    plan = random_plan(found.structure, 0)
    done = apply(found.model, plan, found.structure)
    layer = done.model.pairs

    assert sorted(group.units for group in found.structure.groups) == [8, 10, 12]
    assert done.refused == ()
    assert layer.weight.shape == (layer.out_features, layer.in1_features, layer.in2_features)
    assert layer.in1_features < 8
    assert count_macs(done.model, (VECTORS,)) == found.structure.cost.macs.total(plan.keep(found.structure))


def test_einsum_reads_what_it_sums_over_and_passes_on_the_rest_with_an_ellipsis_too() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(10, 3)
            self.mix, self.table = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(8, 10))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.einsum("...c,co->...o", self.first(x).tanh(), self.table)
            return self.last(torch.einsum("...tc,ts->...sc", x, self.mix).tanh())

    torch.manual_seed(0)
    found = Case.of(Mixing().double().eval(), (VECTORS,), TASK)

    assert [group.units for group in found.structure.groups] == [8, 10]
    assert found.deviation(random_keep(found.structure, 0)) <= EXACT


@pytest.mark.parametrize(
    ("equation", "ranks", "spelled"),
    [
        ("ij,jk->ik", [2, 2], "ij,jk->ik"),
        ("...ij,jk->...ik", [4, 2], "ABij,jk->ABik"),
        ("...i,...i->...", [2, 3], "Bi,ABi->AB"),
        ("A...,...->...A", [2, 1], "AB,B->BA"),
    ],
)
def test_ellipses_are_aligned_at_the_end(equation: str, ranks: list[int], spelled: str) -> None:
    assert spelled_out(equation, ranks) == spelled
