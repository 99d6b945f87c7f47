"""Methods: how units are chosen, by ours and by anybody else's; and the same in four steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disparse_structured import Budget, Compensated, DiSparse, Task, analyse, apply, plan, prune, score
from disparse_structured.decision.arbiters import Majority
from disparse_structured.decision.deciding import decide
from disparse_structured.decision.rankings import GlobalRanking
from disparse_structured.errors import TaskError
from disparse_structured.pipeline import Decided, Iterative, Method, Problem, PruningResult
from disparse_structured.scoring import Probe, Saliency
from disparse_structured.scoring.criteria import Magnitude, Taylor
from disparse_structured.structure import Structure
from tests.support.redundant import Redundant, Similarity, build, deviation, images, macs_left, removed

MACS = 0.5


class LastUnitsFirst:
    """A third party's method: it has nothing but ``decide``."""

    def decide(self, problem: Problem) -> Decided:
        structure = problem.structure
        scores = torch.arange(structure.units, 0, -1).expand(len(structure.tasks), -1).double()
        return decide(structure, scores, problem.budget), Saliency(scores, structure.tasks, "order", 0, 0)


METHODS: dict[str, Method] = {
    "disparse": DiSparse(),
    "compensated": Compensated(rounds=1),
    "iterative": Iterative(rounds=2),
    "third-party": LastUnitsFirst(),
}


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyse(build(), images(2))


def pruned(structure: Structure, method: Method, model: nn.Module | None = None) -> PruningResult:
    """The quickest way to a plan of ``method``."""
    given: dict[str, Any] = {
        "structure": structure,
        "budget": Budget(macs=MACS, round_to=1),
        "refit": None,
        "verify": False,
    }
    return prune(model or build(), images(8), method=method, **given)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_the_budget_and_is_verified(name: str, structure: Structure) -> None:
    found = prune(build(), images(8), structure=structure, macs=MACS, method=METHODS[name], refit=None)

    assert macs_left(found) <= MACS
    assert found.report.verification.verified
    assert found.report.deviation is not None
    assert (found.report.method, found.report.criterion) == {
        "disparse": ("DiSparse", "Fisher()"),
        "compensated": ("Compensated", "elimination"),
        "iterative": ("Iterative", "Fisher()"),
        "third-party": ("LastUnitsFirst", "order"),
    }[name]


def test_the_last_units_of_every_group_are_removed_by_who_wants_that(structure: Structure) -> None:
    found = pruned(structure, LastUnitsFirst())

    for name, units in removed(found).items():
        width = structure.group(name).units
        assert units == list(range(width - len(units), width))


def test_parts_of_a_method_may_be_functions(structure: Structure) -> None:
    def first_units_matter(probe: Probe) -> Tensor:
        return torch.arange(probe.structure.units, 0, -1).expand(2, -1).double()

    found = pruned(structure, DiSparse(first_units_matter))

    assert removed(found)
    assert "first_units_matter" in found.report.criterion


def test_arbiter_and_ranking_are_those_of_the_method(structure: Structure) -> None:
    method = DiSparse(Taylor(), Majority(), GlobalRanking())

    report = pruned(structure, method).report

    assert (report.criterion, report.arbiter) == ("Taylor()", "Majority()")
    assert report.ranking == "GlobalRanking()"


class Detached(Redundant):
    """No gradient reaches its units."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = 1.0

    def forward(self, image: Tensor) -> Any:
        return {name: self.strength * found.detach() for name, found in super().forward(image).items()}


def test_damage_is_measured_without_gradients() -> None:
    found = prune(build(Detached), images(16), ["depth", "edges"], macs=MACS, refit=None, verify=False)
    twin = prune(build(), images(16), macs=MACS, refit=None, verify=False)

    assert removed(found) == removed(twin)
    assert found.report.criterion == "elimination"


def test_a_task_that_needs_no_units_is_an_error() -> None:
    model = build(Detached)
    model.strength = 0.0

    with pytest.raises(TaskError, match=r"task 'depth': every score by Taylor.. is zero"):
        prune(model, images(8), ["depth", "edges"], macs=MACS)


def test_units_that_no_layer_makes_up_for_are_ordered_by_taylor() -> None:
    found = prune(Similarity().eval(), torch.randn(16, 4), macs=MACS, refit=None, verify=False)

    assert (found.report.criterion, found.report.samples) == ("Taylor()", 12)


def test_a_compensated_method_says_only_what_was_changed() -> None:
    assert repr(Compensated()) == "Compensated()"
    assert repr(Compensated(rounds=3)) == "Compensated(rounds=3)"


# In rounds.


@dataclass
class Watched:
    """Scores units by magnitude, and remembers what was left and which model it was asked about."""

    seen: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    def __call__(self, probe: Probe) -> Tensor:
        assert probe.keep is not None
        self.seen.append((probe.model, probe.keep.clone()))
        return Magnitude()(probe)


def test_iterative_removes_the_same_share_in_every_round(structure: Structure) -> None:
    watched, dense = Watched(), build()

    found = pruned(structure, Iterative(watched, rounds=3, refit=None), dense)

    kept = [keep for _, keep in watched.seen] + [found.plan.keep(structure)]
    assert len(kept) == 4
    assert kept[0].all()
    whole = structure.cost.macs.dense
    for number, keep in enumerate(kept):
        assert structure.cost.macs.total(keep) / whole == pytest.approx(MACS ** (number / 3), abs=0.03)
    for before, after in itertools.pairwise(kept):
        assert not (after & ~before).any()  # what was removed does not come back
    assert all(model is dense for model, _ in watched.seen)


def test_iterative_scores_the_refit_network_in_later_rounds(structure: Structure) -> None:
    watched, dense = Watched(), build()
    before = dense.mid.weight.clone()

    pruned(structure, Iterative(watched, rounds=2), dense)

    (first, _), (second, _) = watched.seen
    assert first is dense
    assert not torch.equal(second.mid.weight, before)
    assert torch.equal(dense.mid.weight, before)


@pytest.mark.parametrize(("share", "rounds"), [(0.6, 2), (0.3, 2), (0.2, 3)])
def test_no_round_of_the_default_removes_more_than_half(
    share: float, rounds: int, structure: Structure
) -> None:
    watched = Watched()
    budget = Budget(macs=share, round_to=1, min_width=1)

    prune(
        build(), images(8), method=Compensated(watched), budget=budget, structure=structure, refit=None,
        verify=False,
    )  # fmt: skip

    assert len(watched.seen) == rounds


def test_one_round_of_votes_is_one_shot(structure: Structure) -> None:
    once = pruned(structure, Iterative(rounds=1))

    assert removed(once) == removed(pruned(structure, DiSparse()))


# In four steps.


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("labeled", [False, True], ids=["label-free", "labeled"])
def test_four_steps_are_what_prune_does(form: str, labeled: bool) -> None:
    loss = (lambda output, batch: output.square().mean()) if labeled else None
    tasks = [Task("depth", loss=loss), Task("edges")]
    model, data = build(), images(40)  # more than are scored together

    structure = analyse(model, data[:2], tasks, form=form)
    scores = score(model, structure, data)
    facts = {"method": "DiSparse", "criterion": scores.criterion, "seed": 0}  # what prune records
    decided = plan(structure, scores.scores, Budget(macs=MACS), **facts)
    done = apply(model, decided, structure)

    found = prune(model, data, structure=structure, macs=MACS, method=DiSparse(), refit=None)
    assert decided.to_json() == found.plan.to_json()
    assert (done.plan, done.refused) == (found.plan, ())
    assert type(done.model) is type(found.model)
    assert deviation(done.model, found.model, images(4)) == 0
    assert done.verification is not None
    assert done.verification.deviation == found.report.verification.deviation


def test_a_tensor_is_scored_as_batches_of_its_examples(structure: Structure) -> None:
    model, data = build(), images(40)

    scores = score(model, structure, data)

    assert (scores.batches, scores.samples) == (2, 40)
    expected = score(model, structure, [data[:32], data[32:]])
    assert torch.equal(scores.scores, expected.scores)
