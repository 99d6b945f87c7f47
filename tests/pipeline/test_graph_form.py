"""The pruned graph wherever the pruned module is: in ``prune``, on disk, in reports."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from disparse_structured import Compensated, DiSparse, analyse, apply, load, prune
from disparse_structured.decision.budget import Budget
from disparse_structured.errors import BudgetError, LoadError, PlanError
from disparse_structured.pipeline import PruningResult
from disparse_structured.refit import Affine, LeastSquares
from disparse_structured.surgery.pruned_graph import PrunedGraph
from disparse_structured.surgery.saving import extend_report
from disparse_structured.tasks import Task
from tests.support.plans import snapshot
from tests.support.redundant import deviations, macs_left
from tests.support.zoo import BY_ID, Entry, named
from tests.surgery.test_graph_surgery import FIXED_BATCH, HARD_CODED, WATCHFUL, Baggage

QUICK = Compensated(rounds=1)
WHOLE = Task("whole", ())


class Mixed(nn.Module):
    """A trunk and a head that ``forward`` lets shrink, and a head whose width it spells out."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU())
        self.wide, self.slim = nn.Conv2d(12, 16, 1), nn.Conv2d(12, 16, 1)
        self.near, self.far = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        wide = F.relu(self.wide(x)).reshape(-1, 16, 6, 6)
        return {"near": self.near(wide), "far": self.far(F.relu(self.slim(x)))}


MIXED = Entry("mixed", Mixed, ((3, 8, 8),), named("near", "far"))


def batches(entry: Entry) -> list[tuple[Tensor, ...]]:
    return [entry.inputs(4, seed=seed) for seed in range(3)]


def prune_graph(model: nn.Module, example: Any, tasks: Any = None, **options: Any) -> PruningResult:
    """``prune`` to the exported graph: by votes on ``example`` without a refit, unless ``options`` differ."""
    structure = analyse(model, example, tasks, form="graph")
    given = {"data": [structure.example_inputs], "to_inputs": tuple} if "data" not in options else {}
    return prune(model, structure=structure, **{"method": DiSparse(), "refit": None, **given, **options})


def prune_module(entry: Entry, **options: Any) -> PruningResult:
    """The same to a module, on a few batches."""
    votes: dict[str, Any] = {"method": DiSparse(), "refit": None}
    return prune(entry.factory(), batches(entry), entry.tasks, to_inputs=tuple, **votes, **options)


def pruned_graph(entry: Entry, batch: int = 2) -> PruningResult:
    """The graph of a network of the zoo, with 60 % of its parameters."""
    data = {"data": batches(entry), "to_inputs": tuple}
    return prune_graph(entry.factory(), entry.inputs(batch), entry.tasks, parameters=0.6, **data)


@functools.cache
def mixed_graph() -> PruningResult:
    """That of :data:`MIXED`; not to be changed."""
    return pruned_graph(MIXED)


def assert_same(loaded: nn.Module, saved: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The same tasks in the same order, bit by bit, from the same tensors."""
    found, wanted = loaded(*inputs), saved(*inputs)

    assert list(found) == list(wanted)
    for task, expected in wanted.items():
        pairs = zip(pytree.tree_leaves(found[task]), pytree.tree_leaves(expected), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert list(loaded.state_dict()) == list(saved.state_dict())


# One call.


@pytest.mark.parametrize("id", HARD_CODED)
def test_prune_gives_the_graph_refit(id: str) -> None:
    entry = HARD_CODED[id]
    model, images = entry.factory(), entry.inputs(24, seed=3)[0]
    before = snapshot(model)

    result = prune_graph(model, images[:2], data=images, macs=0.5, method=QUICK, refit=LeastSquares())

    moved = result.report.deviation
    assert isinstance(result.model, PrunedGraph)
    assert macs_left(result) <= 0.5
    assert result.report.costs["macs"].counted == result.report.costs["macs"].predicted
    assert result.report.verification.verified
    assert set(result.model(*entry.inputs(5))) == {task.name for task in entry.tasks}
    assert moved is not None
    assert sum(moved.final.values()) < sum(moved.cut.values())
    plain = apply(model, result.plan, analyse(model, images[:2], form="graph")).model
    assert sum(deviations(result.model, model, images).values()) < sum(
        deviations(plain, model, images).values()
    )
    assert snapshot(model) == before


def test_a_graph_within_a_tolerance() -> None:
    model, images = MIXED.factory(), MIXED.inputs(24, seed=3)[0]
    structure = analyse(model, images[:2], form="graph")
    budget = Budget(macs=0.7, round_to=1)
    options: dict[str, Any] = {"budget": budget, "method": QUICK, "structure": structure, "verify": False}
    free = prune(model, images, **options).report.deviation
    assert free is not None
    limit = 0.8 * free.final["near"]

    held = prune(model, images, tolerance={"near": limit}, **options)

    assert isinstance(held.model, PrunedGraph)
    assert held.report.deviation is not None
    assert held.report.deviation.final["near"] <= limit
    assert held.report.deviation.final["far"] > free.final["far"]
    assert macs_left(held) <= 0.7
    with pytest.raises(BudgetError, match=r"cannot be met within the tolerance.*'near' deviates by"):
        prune(model, images, tolerance={"near": 1e-4}, **options)


# On disk.

SAVED = (
    "nested-output",
    "object-output",
    "tiny-vit",
    "multihead-attention",
    "tied-linears",
    "channel-buffer",
)


@pytest.mark.parametrize("id", [*HARD_CODED, *SAVED])
def test_what_was_saved_loads_bit_by_bit(id: str, tmp_path: Path) -> None:
    entry = HARD_CODED.get(id) or BY_ID[id]
    pruned = pruned_graph(entry)
    pruned.save(tmp_path)
    loaded = load(tmp_path, entry.factory)

    assert isinstance(loaded, PrunedGraph)
    assert loaded.any_batch
    for batch in (1, 2, 5):
        assert_same(loaded, pruned.model, entry.inputs(batch, seed=9))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "weights.safetensors", "report.json"}


def test_a_refit_and_trained_graph_is_saved_as_it_is(tmp_path: Path) -> None:
    images = MIXED.inputs(16)[0]
    result = prune_graph(MIXED.factory(), images[:2], data=images, macs=0.6, refit=Affine())
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    result.save(tmp_path)

    assert_same(load(tmp_path, MIXED.factory), result.model, MIXED.inputs(3))


def test_all_that_a_model_carries_along_is_loaded(tmp_path: Path) -> None:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Baggage().eval()

    inputs = ({"x": torch.randn(2, 7, 6), "shift": torch.randn(4)}, 3)
    pruned = prune_graph(build(), inputs, named("left", "right"), parameters=0.8)
    pruned.save(tmp_path)

    assert_same(load(tmp_path, build), pruned.model, inputs)


def test_reparametrized_weights_are_loaded(tmp_path: Path) -> None:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = parametrizations.weight_norm(nn.Linear(6, 8))
            return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()

    pruned = prune_graph(build(), torch.randn(2, 6), [WHOLE], parameters=0.7)
    pruned.save(tmp_path)

    assert_same(load(tmp_path, build), pruned.model, (torch.randn(3, 6),))


@pytest.mark.parametrize("id", ["tiny-vit", "plain"])
def test_a_graph_that_was_made_from_one_example_takes_any_number_again(id: str, tmp_path: Path) -> None:
    entry = BY_ID[id]
    pruned = pruned_graph(entry, batch=1)
    pruned.save(tmp_path)
    loaded = load(tmp_path, entry.factory)

    assert json.loads((tmp_path / "report.json").read_text())["graph"]["any_batch"] is True
    assert_same(loaded, pruned.model, entry.inputs(5, seed=9))


@pytest.mark.parametrize("verify", [True, False])
def test_a_batch_that_could_not_be_another_cannot_after_loading(verify: bool, tmp_path: Path) -> None:
    entry = FIXED_BATCH if verify else MIXED  # without verification, other batches are not allowed
    pruned = prune_graph(entry.factory(), entry.inputs(), entry.tasks, parameters=0.9, verify=verify)
    pruned.save(tmp_path)
    loaded = load(tmp_path, entry.factory)

    assert isinstance(loaded, PrunedGraph)
    assert not loaded.any_batch
    assert "which takes batches of 2 only" in str(pruned.report)
    assert_same(loaded, pruned.model, entry.inputs(2, seed=9))
    with pytest.raises(ValueError, match=r"but the graph was made for \(2, "):
        loaded(*entry.inputs(3))


def test_a_graph_pruned_twice_loads_through_its_first_folder(tmp_path: Path) -> None:
    entry = HARD_CODED["pieces"]
    first = pruned_graph(entry)
    first.save(tmp_path / "first")
    second = prune_graph(first.model, entry.inputs(), entry.tasks, parameters=0.8)
    second.save(tmp_path / "second")
    loaded = load(tmp_path / "second", lambda: load(tmp_path / "first", entry.factory))

    assert second.report.costs["parameters"].counted < first.report.costs["parameters"].counted
    assert_same(loaded, second.model, entry.inputs(2, seed=9))


def test_the_only_output_of_a_model_needs_no_code(tmp_path: Path) -> None:
    """The task is read off the model; what picks it is data."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
            ).eval()

    result = prune_graph(build(), torch.randn(2, 6), macs=0.6)
    result.save(tmp_path)
    loaded = load(tmp_path, build)

    assert set(loaded(torch.randn(1, 6))) == {"output"}
    assert_same(loaded, result.model, (torch.randn(3, 6),))


def test_integer_keys_of_an_output_need_no_code(tmp_path: Path) -> None:
    class Numbered(Mixed):
        def forward(self, x: Tensor) -> Any:
            return dict(enumerate(super().forward(x).values()))

    entry = Entry("numbered", Numbered, ((3, 8, 8),), ())
    result = prune_graph(entry.factory(), entry.inputs(), macs=0.6)
    result.save(tmp_path)

    assert_same(load(tmp_path, entry.factory), result.model, entry.inputs(3))


def test_tasks_picked_by_callables_are_asked_for(tmp_path: Path) -> None:
    entry = BY_ID["callable-selector"]
    pruned = pruned_graph(entry)
    pruned.save(tmp_path)

    with pytest.raises(LoadError, match=r"output of tasks 'kind', 'corner' is picked by a callable.*tasks="):
        load(tmp_path, entry.factory)
    with pytest.raises(
        LoadError, match="tasks= has task 'kind', but the model was pruned for tasks 'kind', 'c"
    ):
        load(tmp_path, entry.factory, tasks=entry.tasks[:1])
    loaded = load(tmp_path, entry.factory, tasks=entry.tasks[::-1])
    assert_same(loaded, pruned.model, entry.inputs(3, seed=9))


def test_tasks_that_pick_other_outputs_are_refused(tmp_path: Path) -> None:
    entry = BY_ID["private-branches"]
    pruned_graph(entry).save(tmp_path)
    exchanged = [Task("left", "right"), Task("right", "left")]

    with pytest.raises(
        LoadError, match=r"reaches task 'right', but when it was saved task 'left'.*pass the tasks"
    ):
        load(tmp_path, entry.factory, tasks=exchanged)


def test_another_model_is_refused(tmp_path: Path) -> None:
    mixed_graph().save(tmp_path)

    def wider() -> nn.Module:
        model = Mixed()
        model.far = nn.Conv2d(16, 3, 1)
        return model

    with pytest.raises(PlanError, match="the plan was made for another model"):
        load(tmp_path, wider)
    with pytest.raises(LoadError, match=r"was saved as torch.float32, the factory builds torch.float64"):
        load(tmp_path, lambda: MIXED.factory().double(), example_inputs=MIXED.inputs(2, torch.float64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("near.bias"), "'near.bias' is missing"),
        (lambda weights: weights.update(stray=torch.ones(2)), "the model has no 'stray'"),
        (
            lambda weights: weights.update({"near.bias": torch.ones(3)}),
            r"'near.bias' was saved as \[3\], the model has",
        ),
    ],
    ids=["missing", "left-over", "another-shape"],
)
def test_weights_are_loaded_strictly(
    damage: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    mixed_graph().save(tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    checksum = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    extend_report(tmp_path, {"weights_sha256": checksum})

    with pytest.raises(LoadError, match=rf"(?s)do not fit the factory's model.*{message}"):
        load(tmp_path, MIXED.factory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": None}, "report.json in .* does not say how the pruned graph was made"),
        ({"graph": {"examples": 2}}, "report.json in .*TypeError.*any_batch"),
        ({"selectors": {"near": "near"}}, "report.json does not say what picks the tasks' outputs"),
        ({"selectors": None}, "report.json does not say what picks the tasks' outputs"),
    ],
    ids=["nothing", "no-batch", "no-task", "no-outputs"],
)
def test_a_report_that_does_not_describe_the_graph_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    mixed_graph().save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(report | change))

    with pytest.raises(LoadError, match=rf"{message}.*Save the model again"):
        load(tmp_path, MIXED.factory)


def test_example_inputs_of_another_batch_make_the_same_graph(tmp_path: Path) -> None:
    pruned = mixed_graph()
    pruned.save(tmp_path)
    loaded = load(tmp_path, MIXED.factory, example_inputs=MIXED.inputs(3))

    assert_same(loaded, pruned.model, MIXED.inputs(2, seed=9))


def test_example_inputs_of_another_batch_are_refused_if_the_batch_is_fixed(tmp_path: Path) -> None:
    prune_graph(MIXED.factory(), MIXED.inputs(), MIXED.tasks, parameters=0.9, verify=False).save(tmp_path)

    with pytest.raises(PlanError, match=r"exported with 2 examples, .* inputs hold 3\. Pass as many"):
        load(tmp_path, MIXED.factory, example_inputs=MIXED.inputs(3))


# Reports.


def test_the_report_says_what_numbers_pin_and_that_the_graph_can_remove_it() -> None:
    model = MIXED.factory()
    pruned = prune_module(MIXED, parameters=0.8)
    held = {name: tensor for name, tensor in model.named_parameters() if name.startswith(("wide", "near.w"))}
    share = sum(tensor.numel() for tensor in held.values()) / pruned.report.costs["parameters"].dense
    (number,) = [pin for pin in pruned.report.pinned if pin.number]
    document = json.loads(pruned.report.to_json())

    assert number.reason == "forward hard-codes the number 16"
    assert number.share == pytest.approx(share)
    assert document["graph_only"]["pinned"] == pytest.approx(share)
    assert document["graph_only"]["refused"] == 0
    for text in (str(pruned.report), document["graph_only"]["advice"]):
        told = " ".join(text.split())
        assert 'analyse(..., form="graph") (--form graph) can remove more:' in told
        assert f"{share:.1%} of the parameters lie in slices that numbers in forward pin." in told
    assert "forward hard-codes the number 16" in str(pruned.report)
    assert "hard-codes the number 16" in json.dumps([each for each in document["pinned"] if each["number"]])


def test_the_graph_removes_what_the_report_said_that_it_would() -> None:
    pruned = mixed_graph()

    assert pruned.model.get_parameter("wide.weight").shape[0] < 16
    assert pruned.report.graph_only is None
    assert not any(pin.number for pin in pruned.report.pinned)
    assert "form=" not in str(pruned.report)
    assert "which takes batches of any size" in str(pruned.report)


def test_the_report_says_that_the_graph_can_narrow_what_was_refused() -> None:
    model = WATCHFUL.factory()
    pruned = prune_module(WATCHFUL, macs=0.6)
    held = sum(model.get_parameter(name).numel() for name in ("stem.weight", "stem.bias", "body.weight"))
    share = held / pruned.report.costs["parameters"].dense

    assert [(each.group, "eight channels" in each.reason) for each in pruned.report.refused] == [
        ("stem", True)
    ]
    assert pruned.report.graph_only is not None
    assert pruned.report.graph_only.pinned == 0
    assert pruned.report.graph_only.refused == pytest.approx(share)
    told = " ".join(str(pruned.report).split())
    assert "left alone: stem: RuntimeError: eight channels were agreed upon" in told
    assert f"{share:.1%} of the parameters lie in groups that were left alone." in told


def test_a_module_that_follows_needs_no_advice() -> None:
    pruned = prune_module(BY_ID["plain"], macs=0.6)

    assert (pruned.report.graph, pruned.report.graph_only) == (None, None)
    assert "form=" not in str(pruned.report)


def test_a_budget_out_of_reach_because_of_numbers_in_forward_says_so() -> None:
    entry = HARD_CODED["heads"]
    with pytest.raises(BudgetError, match=r"Numbers in forward pin slices with 99\.3% .* \(--form graph\)"):
        prune_module(entry, macs=0.5)
    with pytest.raises(BudgetError) as refused:
        prune_graph(entry.factory(), entry.inputs(), entry.tasks, macs=0.001)
    assert "--form" not in str(refused.value)
