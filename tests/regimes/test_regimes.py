"""The regimes: within budget throughout, equal to the masked network at the end, the same after a resume."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from disparse_structured.decision.arbiters import Majority, Quorum
from disparse_structured.decision.budget import Budget
from disparse_structured.decision.deciding import smallest
from disparse_structured.decision.rankings import LayerRanking
from disparse_structured.errors import BatchError, BudgetError, LoadError, OptionError
from disparse_structured.export import export_onnx
from disparse_structured.pipeline import Compensated, DiSparse, Method, PruningResult, prune
from disparse_structured.pipeline import Iterative as InRounds
from disparse_structured.regimes import Dynamic, Early, Iterative, Pretrained, Regime, Static
from disparse_structured.scoring import Probe
from disparse_structured.scoring.criteria import SNIP, Fisher, Magnitude, Taylor
from disparse_structured.structure import analyse, count_macs
from disparse_structured.tasks import Task
from disparse_structured.training import Callback, TrainingConfig, train
from disparse_structured.verification.twin import masked_twin
from tests.support.plans import deviation

pytestmark = pytest.mark.xdist_group("regimes")
"""One process runs every regime once for all."""

BUDGET = Budget(macs=0.4, round_to=1)


class TwoHeads(nn.Module):
    """A small trunk with residual, depthwise and plain convolutions, and two heads on it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.left = nn.Conv2d(2 * width, 4, 3, padding=1)
        self.middle = nn.Conv2d(2 * width, width, 3, padding=1)
        self.right = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.mix(x + self.deep(x)))
        pooled = torch.relu(self.middle(x)).mean((2, 3))
        return {"left": self.left(x), "right": self.right(pooled)}


def _tasks(scale: float = 1.0) -> tuple[Task, ...]:
    return (
        Task("left", "left", lambda output, batch: (output - batch["left"]).square().mean()),
        Task("right", "right", lambda output, batch: scale * (output - batch["right"]).square().mean()),
    )


def _batches(count: int = 6, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image = torch.randn(4, 3, 8, 8, generator=generator)
        target = torch.stack([image.mean(1), image[:, 0], image[:, 1], -image[:, 2]], dim=1)
        found.append({"image": image, "left": target, "right": image.mean((2, 3))})
    return found


def _model(seed: int = 0) -> TwoHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TwoHeads()


EXAMPLE = (_batches(1)[0]["image"],)

Make = Callable[[nn.Module], Regime]


def _dynamic(model: nn.Module, **options: Any) -> Dynamic:
    settings = {"budget": BUDGET, "steps": 24, "every": 4, "fraction": 0.5, **options}
    return Dynamic(model, EXAMPLE, _tasks(), _batches(), **settings)


def _iterative(model: nn.Module, **options: Any) -> Iterative:
    settings = {"budget": BUDGET, "stages": 3, "steps": 24, **options}
    return Iterative(model, EXAMPLE, _tasks(), _batches(), **settings)


def _early(model: nn.Module, **options: Any) -> Early:
    settings = {"budget": BUDGET, "steps": 24, "every": 4, "agreement": 1.0, "until": 0.5, **options}
    return Early(model, EXAMPLE, _tasks(), _batches(), **settings)


def _static(model: nn.Module) -> Static:
    return Static(model, EXAMPLE, _tasks(), _batches(), budget=BUDGET)


def _pretrained(model: nn.Module) -> Pretrained:
    return Pretrained(model, EXAMPLE, _tasks(), _batches(), budget=BUDGET)


def _gradual(model: nn.Module) -> Iterative:
    return _iterative(model, start=0.2, until=0.6)


REGIMES: dict[str, Make] = {
    "pretrained": _pretrained,
    "static": _static,
    "early": _early,
    "iterative": _iterative,
    "gradual": _gradual,
    "dynamic": _dynamic,
}
EVERY = pytest.mark.parametrize("make", REGIMES.values(), ids=REGIMES)
MASKED = pytest.mark.parametrize(
    "make", [_early, _iterative, _dynamic], ids=("early", "iterative", "dynamic")
)


def _optimizer(regime: Regime) -> torch.optim.Optimizer:
    return torch.optim.AdamW(regime.model.parameters(), lr=3e-3)


def _fit(model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, start: int = 0) -> Iterator[int]:
    """A training loop as a user would write it."""
    batches = _batches()
    model.train()
    for number in range(start, start + steps):
        batch = batches[number % len(batches)]
        outputs = model(batch["image"])
        loss = torch.stack([task.loss(outputs[task.name], batch) for task in _tasks()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield number
    model.eval()


def _train(regime: Regime, steps: int, optimizer: torch.optim.Optimizer, start: int = 0) -> Iterator[int]:
    for number in _fit(regime.model, steps, optimizer, start):
        regime.step(optimizer)
        yield number


def _run(regime: Regime, steps: int = 24) -> Regime:
    for _ in _train(regime, steps, _optimizer(regime)):
        pass
    return regime


@functools.cache
def _whole(make: Make) -> tuple[Regime, PruningResult]:
    """One undisturbed run of each regime, shared by the tests that only look at it."""
    regime = _run(make(_model()))
    return regime, regime.finish()


def _compare(one: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        a, b = (model.eval()(*EXAMPLE) for model in (one, other))
    return deviation({k: [v] for k, v in a.items()}, {k: [v] for k, v in b.items()})


@EVERY
def test_the_result_is_small_and_computes_what_was_trained(make: Make) -> None:
    regime, pruned = _whole(make)
    dense, small = (count_macs(model, EXAMPLE) for model in (_model(), pruned.model))
    assert 0.38 <= small / dense <= 0.4
    assert pruned.report.verification.verified
    assert max(pruned.report.verification.deviation.values()) <= 1e-9
    assert _compare(pruned.model, regime.model) <= 1e-5
    assert pruned.plan.keep(regime.structure).sum() < regime.structure.units
    assert dict(pruned.plan.budget) == dict(BUDGET.facts())


@EVERY
def test_every_step_trains_what_the_result_will_be(make: Make) -> None:
    """The network is never larger than the budget allows at that time; masks hold after every step."""
    regime = make(_model())
    shares = []
    for _ in _train(regime, 24, _optimizer(regime)):
        if isinstance(regime, Dynamic | Early | Iterative):
            shares.append(regime.settings.cost(regime.keep) / regime.settings.dense)
            state = {name: value.detach() for name, value in regime.model.state_dict().items()}
            twin = masked_twin(regime.structure, regime.keep)
            regime.model.eval()
            with torch.no_grad():
                expected = regime.structure.capture.run(state, EXAMPLE, twin)
                output = regime.model(*EXAMPLE)
            assert deviation({k: [v] for k, v in output.items()}, expected) <= 1e-5
            regime.model.train()
    if isinstance(regime, Dynamic):
        assert all(share <= 0.4 for share in shares)
    if isinstance(regime, Iterative):
        assert all(after <= before for before, after in itertools.pairwise(shares))
        assert shares[0] > 0.6
        assert shares[-1] <= 0.4
    if isinstance(regime, Early):
        assert shares[:11] == [1.0] * 11  # the twelfth step is the latest
        assert all(0.38 <= share <= 0.4 for share in shares[11:])


@EVERY
def test_the_same_run_twice_is_the_same(make: Make) -> None:
    one, other = _whole(make)[1], _run(make(_model())).finish()
    assert one.plan == other.plan
    assert all(
        torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)
    )


@EVERY
@pytest.mark.parametrize("at", [3, 13])
def test_a_resumed_run_is_the_uninterrupted_one(make: Make, at: int, tmp_path: Path) -> None:
    _, whole = _whole(make)
    first = make(_model())
    optimizer = _optimizer(first)
    for _ in _train(first, at, optimizer):
        pass
    file = tmp_path / "state.pt"
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "regime": first.state_dict(),
        },
        file,
    )
    saved = torch.load(file, weights_only=True)
    second = make(_model())
    optimizer = _optimizer(second)
    second.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["regime"])
    for _ in _train(second, 24 - at, optimizer, start=at):
        pass
    resumed = second.finish()
    assert resumed.plan == whole.plan
    assert resumed.report == whole.report
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_pretrained_and_static_leave_the_dense_network_alone() -> None:
    for make in (_pretrained, _static):
        model = _model()
        before = copy.deepcopy(model.state_dict())
        _run(make(model), steps=3)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [Compensated(rounds=1, left=(0.5,), judged=4), InRounds(rounds=2)])
def test_a_pretrained_network_is_pruned_by_any_method(method: Method) -> None:
    regime = Pretrained(_model().eval(), EXAMPLE, _tasks(), iter(_batches()), budget=BUDGET, method=method)

    result = regime.finish()

    assert result.model is regime.model
    assert count_macs(result.model, EXAMPLE) / count_macs(_model(), EXAMPLE) <= 0.4
    assert result.report.verification.verified
    assert result.report.deviation is None  # it is trained after it was pruned


@pytest.mark.parametrize("make", [_pretrained, _static], ids=["pretrained", "static"])
def test_the_report_of_what_was_trained_has_no_deviation(make: Make) -> None:
    assert "deviation from dense" not in str(_whole(make)[1].report)


@pytest.mark.parametrize(
    ("make", "method", "says"),
    [
        (_dynamic, Compensated(), r"method must be DiSparse\(\.\.\.\).*got Compensated\(\)"),
        (_dynamic, DiSparse, "got the class DiSparse"),
        (_iterative, InRounds(rounds=2), "must decide on scores.*got a value of type Iterative"),
        (_iterative, DiSparse, "got the class DiSparse"),
    ],
)
def test_regimes_that_vote_again_and_again_refuse_other_methods(
    make: Callable[..., Regime], method: Any, says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        make(_model(), method=method)


def _distance(model: nn.Module, other: nn.Module) -> float:
    """The relative deviation of ``model`` from ``other`` on images that neither was scored on."""
    images = torch.cat([batch["image"] for batch in _batches(seed=9)])
    with torch.no_grad():
        ours, theirs = (each.eval()(images) for each in (model, other))
    return float(
        torch.stack([(ours[name] - theirs[name]).norm() / theirs[name].norm() for name in ours]).mean()
    )


def _trained() -> nn.Module:
    model = _model()
    for _ in _fit(model, 60, torch.optim.AdamW(model.parameters(), lr=1e-2)):
        pass
    return model


@pytest.mark.parametrize("regime", [Pretrained, Iterative])
def test_the_remaining_weights_are_refit_before_training(regime: Any) -> None:
    dense = _trained()
    options = {"stages": 1, "steps": 1} if regime is Iterative else {}

    def cut(**more: Any) -> nn.Module:
        begun = regime(
            copy.deepcopy(dense), EXAMPLE, _tasks(), _batches(16), budget=BUDGET, **options, **more
        )
        return begun.finish().model

    assert _distance(cut(), dense) < 0.8 * _distance(cut(refit=None), dense)


def test_pretrained_decides_as_prune_does() -> None:
    dense = _trained()
    batches = _batches(16)

    found = Pretrained(dense, EXAMPLE, _tasks(), batches, budget=BUDGET).finish()

    expected = prune(dense, batches, _tasks(), budget=BUDGET, method=Compensated(Taylor(), scored=256))
    assert found.plan.removals == expected.plan.removals
    assert [task.labeled for task in found.report.tasks] == [False, False]
    assert _distance(found.model, expected.model) < 1e-5


def test_the_report_says_whether_losses_were_read() -> None:
    found = prune(_trained(), _batches(), _tasks(), budget=BUDGET, method=DiSparse())
    assert [task.labeled for task in found.report.tasks] == [True, True]


def test_most_of_the_training_follows_the_last_stage() -> None:
    regime = _iterative(_model(), stages=3, steps=20, until=0.4)
    stages = [regime.stage]
    for _ in _train(regime, 20, _optimizer(regime)):
        stages.append(regime.stage)
    assert [stages.index(stage) for stage in (1, 2, 3)] == [0, 4, 8]


def test_a_network_that_starts_untrained_is_first_trained_whole() -> None:
    regime = _iterative(_model(), stages=2, steps=20, start=0.25, until=0.5)
    assert regime.keep.all()
    stages = [regime.stage]
    for _ in _train(regime, 20, _optimizer(regime)):
        stages.append(regime.stage)
    assert [stages.index(stage) for stage in (0, 1, 2)] == [0, 5, 10]
    assert regime.finish().report.verification.verified


def test_units_are_removed_and_regrown() -> None:
    regime = _dynamic(_model())
    start = regime.keep
    went = torch.zeros_like(start)
    returned = torch.zeros_like(start)
    before = start
    for _ in _train(regime, 24, _optimizer(regime)):
        went |= before & ~regime.keep
        returned |= ~before & regime.keep
        before = regime.keep
    assert int(went.sum()) > 0
    assert int(returned.sum()) > 0


def test_a_unit_returns_because_one_task_asks() -> None:
    """One unit that is off gets a large gate gradient from one task and none from the other."""

    class Wanted:
        def __init__(self) -> None:
            self.calls = 0
            self.unit = -1

        def __call__(self, probe: Probe) -> Tensor:
            self.calls += 1
            scores = torch.full(probe.structure.reach.shape, 1e-3, dtype=torch.float64)
            if self.calls == 1:
                scores += torch.arange(probe.structure.units) * 1e-6
            else:
                assert probe.keep is not None
                shared = probe.structure.reach.all(dim=0) & ~probe.keep
                self.unit = int(shared.nonzero()[0])
                scores[0, self.unit] = 1.0
            return scores

    wanted = Wanted()
    regime = _dynamic(_model(), method=DiSparse(wanted), every=1)
    optimizer = _optimizer(regime)
    next(_train(regime, 1, optimizer))
    assert wanted.calls == 2
    assert bool(regime.keep[wanted.unit])


def test_coming_back_may_have_a_criterion_of_its_own() -> None:
    seen: list[Tensor] = []

    def grow(probe: Probe) -> Tensor:
        assert probe.keep is not None
        seen.append(probe.keep)
        return torch.arange(probe.structure.units).expand_as(probe.structure.reach).double()

    regime = _dynamic(_model(), grow=grow, every=1)
    before = regime.keep
    next(_train(regime, 1, _optimizer(regime)))
    returned = ~before & regime.keep
    assert torch.equal(seen[0], before)
    assert bool(returned.any())
    result = regime.finish()
    assert result.plan.provenance.criterion == result.report.criterion == "Fisher()"


def test_what_moves_falls_along_a_cosine_and_then_stops() -> None:
    regime = _dynamic(_model(), fraction=0.4, steps=20, every=5, until=0.8)
    optimizer = _optimizer(regime)
    seen = [regime.moving]
    masks = []
    for _ in _train(regime, 20, optimizer):
        seen.append(regime.moving)
        masks.append(regime.keep)
    wanted = [0.2 * (1 + math.cos(math.pi * min(step / 16, 1))) for step in range(21)]
    assert seen == pytest.approx(wanted)
    assert torch.equal(masks[-1], masks[15])


@settings(max_examples=5, deadline=None)
@given(share=st.floats(0.2, 0.8), fraction=st.floats(0.1, 0.9), every=st.integers(1, 5))
def test_the_budget_holds_at_every_exchange(share: float, fraction: float, every: int) -> None:
    regime = _dynamic(_model(), budget=Budget(macs=share, round_to=1), fraction=fraction, every=every)
    # One percent of the dense cost, or what the dearest unit costs, which may be the only one to spare.
    slack = max(
        0.01,
        float(regime.structure.cost.macs.marginal(torch.ones_like(regime.keep)).max())
        / regime.settings.dense,
    )
    for _ in _train(regime, 8, _optimizer(regime)):
        assert share - slack <= regime.settings.cost(regime.keep) / regime.settings.dense <= share


@pytest.mark.parametrize("factor", [0.05, 20.0])
@pytest.mark.parametrize(("regime", "criterion"), [(Pretrained, Fisher()), (Static, SNIP())])
def test_a_louder_loss_changes_no_plan(factor: float, regime: type[Pretrained], criterion: Any) -> None:
    plans = [
        regime(_model(), EXAMPLE, _tasks(scale), _batches(), budget=BUDGET, method=DiSparse(criterion))
        .finish()
        .plan
        for scale in (1.0, factor)
    ]
    assert plans[0].groups == plans[1].groups


def test_a_louder_loss_changes_no_exchange() -> None:
    quiet, loud = (
        Dynamic(_model(), EXAMPLE, _tasks(scale), _batches(), budget=BUDGET, steps=24, every=4)
        for scale in (1.0, 20.0)
    )
    for regime in (quiet, loud):
        for _ in _train(regime, 24, _optimizer(regime)):
            pass
    assert torch.equal(quiet.keep, loud.keep)


def test_all_regimes_export_files_of_one_size(tmp_path: Path) -> None:
    sizes = {}
    for name, make in REGIMES.items():
        _, pruned = _whole(make)
        outputs = {task.name: task.tensors for task in _tasks()}
        facts = export_onnx(
            pruned.model.eval(), EXAMPLE, tmp_path / f"{name}.onnx", outputs=outputs,
            dynamic_batch=False, dynamic_size=False,
        )  # fmt: skip
        assert facts.parity
        sizes[name] = facts.bytes
    assert max(sizes.values()) <= 1.05 * min(sizes.values())


def test_normalized_widths_are_held_and_a_budget_that_needs_them_says_so() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.norm = nn.Linear(6, 32), nn.LayerNorm(32)
            self.up, self.down, self.out = nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(x)
            out: Tensor = self.out(self.norm(x + self.down(torch.relu(self.up(x)))))
            return out

    task = Task("all", lambda output: output, lambda output, batch: output.square().mean())
    data = [torch.randn(4, 6)]
    model = Normed()
    before = copy.deepcopy(model.state_dict())
    for make in (
        lambda: Iterative(model, (data[0],), [task], data, budget=Budget(macs=0.3), stages=2, steps=2),
        lambda: Dynamic(model, (data[0],), [task], data, budget=Budget(macs=0.3), steps=4),
        lambda: Early(model, (data[0],), [task], data, budget=Budget(macs=0.3), steps=4, every=1),
    ):
        with pytest.raises(BudgetError, match=r"cannot be met.*cannot be masked"):
            make()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    regime = Iterative(model, (data[0],), [task], data, budget=Budget(macs=0.8), stages=1, steps=1)
    assert regime.masks.held


def test_the_state_of_another_run_is_refused() -> None:
    regimes = {name: make(_model()) for name, make in REGIMES.items()}
    states = {name: regime.state_dict() for name, regime in regimes.items()}
    for name, other in (("pretrained", "static"), ("static", "pretrained"), ("static", "dynamic")):
        with pytest.raises(LoadError, match="another plan"):
            regimes[name].load_state_dict(states[other])
    for name in ("early", "iterative", "dynamic"):
        with pytest.raises(LoadError, match="another"):
            regimes[name].load_state_dict({**states[name], "fingerprint": "of another model"})


@MASKED
def test_the_state_of_other_settings_is_refused(make: Callable[..., Regime]) -> None:
    state = make(_model()).state_dict()
    for other in (make(_model(), budget=Budget(macs=0.5)), make(_model(), steps=50, until=0.5)):
        with pytest.raises(LoadError, match="other settings"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"every": 0}, {"fraction": 0.0}, {"fraction": 1.0}, {"until": 0.0}, {"until": 2.0}],
)
def test_a_number_out_of_range_is_refused(options: dict[str, float]) -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=next(iter(options))):
        _dynamic(model, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"stages": 0}, {"steps": "3"}, {"until": 1.0}, {"start": 0.5}, {"until": "late"}]
)
def test_a_stage_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        _iterative(_model(), **options)


@MASKED
def test_other_rules_of_the_vote_are_obeyed(make: Callable[..., Regime]) -> None:
    method = DiSparse(Magnitude(), Majority(), LayerRanking())
    pruned = _run(make(_model(), method=method)).finish()
    assert (pruned.plan.provenance.method, pruned.plan.provenance.criterion) == ("DiSparse", "Magnitude(p=2)")
    assert pruned.plan.provenance.arbiter == "Majority()"
    assert pruned.plan.provenance.ranking == "LayerRanking()"
    if make is _iterative:
        widths = [group.kept / group.units for group in pruned.plan.groups]
        assert max(widths) - min(widths) < 0.2


def test_stages_that_training_was_too_short_for_are_taken_at_the_end() -> None:
    regime = _iterative(_model(), steps=1000)
    assert regime.stage == 1
    pruned = _run(regime, steps=2).finish()
    assert count_macs(pruned.model, EXAMPLE) / count_macs(_model(), EXAMPLE) <= 0.4


def _names(groups: Sequence[Any]) -> list[str]:
    return [group.name for group in groups]


def test_the_structure_is_that_of_the_dense_network() -> None:
    model = _model()
    expected = analyse(model, EXAMPLE, _tasks())
    for make in REGIMES.values():
        assert _names(make(copy.deepcopy(model)).structure.groups) == _names(expected.groups)


class _Samples(Dataset[dict[str, Tensor]]):
    """The batches of this file, sample by sample."""

    def __init__(self) -> None:
        batches = _batches()
        self.columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def _on(loader: DataLoader[Any]) -> Dynamic:
    return Dynamic(
        _model(),
        EXAMPLE,
        _tasks(),
        loader,
        budget=BUDGET,
        steps=12,
        every=2,
        fraction=0.5,
        method=DiSparse(SNIP()),
    )


def test_a_loader_with_a_generator_of_its_own_is_read_alike_after_a_resume(tmp_path: Path) -> None:
    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        return DataLoader(_Samples(), batch_size=4, shuffle=True, generator=generator)

    class Killed:
        """Stops the run in its third step: between two exchanges of one epoch."""

        def __init__(self, regime: Regime) -> None:
            self.regime, self.left = regime, 3

        def step(self, optimizer: torch.optim.Optimizer) -> None:
            self.regime.step(optimizer)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def state_dict(self) -> dict[str, Any]:
            return self.regime.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.regime.load_state_dict(state)

    def run(regime: Dynamic, callback: Callback, file: Path) -> None:
        config = TrainingConfig(epochs=2, lr=3e-3)
        data = regime.settings.data
        train(regime.model, _tasks(), data, config, callback=callback, checkpoint=file, checkpoint_every=1)

    whole, first, second = (_on(loader()) for _ in range(3))
    run(whole, whole, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(first, Killed(first), tmp_path / "killed.pt")
    run(second, second, tmp_path / "killed.pt")
    assert torch.equal(second.keep, whole.keep)
    assert all(
        torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_a_loader_with_persistent_workers_continues_its_epoch() -> None:
    loader = DataLoader(_Samples(), batch_size=4, num_workers=1, persistent_workers=True)
    regime = _on(loader)
    optimizer = _optimizer(regime)
    for parameter in regime.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    read = []
    for batch in itertools.islice(loader, 7):
        optimizer.step()
        regime.step(optimizer)
        read.append(batch["right"])
    assert torch.equal(torch.cat(read), _Samples().columns["right"])


def test_a_budget_at_the_floor_leaves_nothing_to_exchange() -> None:
    structure = analyse(_model(), EXAMPLE, _tasks())
    dense = structure.cost.macs.dense
    for floor in (5 / 64, 0.25, 0.5):
        least = structure.cost.macs.total(smallest(structure, Budget(macs=0.9, floor=floor, round_to=1)))
        # Of 5 / 64, the share times the dense cost is a rounding below the cost.
        budget = Budget(macs=least / dense * 1.05, floor=floor, round_to=1)
        regime = _dynamic(_model(), budget=budget, method=DiSparse(Magnitude()), every=1)
        for _ in _train(regime, 3, _optimizer(regime)):
            assert least <= regime.settings.cost(regime.keep) <= 1.05 * least


def test_data_that_can_be_read_only_once_is_refused_at_the_start() -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BatchError, match="only once"):
        Dynamic(model, EXAMPLE, _tasks(), iter(_batches()), budget=BUDGET, steps=24)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@MASKED
def test_averaged_weights_are_masked_before_the_cut(make: Make) -> None:
    regime = make(_model())
    dense = regime.model.state_dict() | dict(_model(seed=1).named_parameters())
    regime.model.load_state_dict(dense)
    pruned = regime.finish()
    assert _compare(pruned.model, regime.model) <= 1e-5


def test_rules_with_other_settings_are_other_rules() -> None:
    state = _dynamic(_model(), method=DiSparse(arbiter=Quorum(1))).state_dict()
    with pytest.raises(LoadError, match=r"Quorum\(k=2\)"):
        _dynamic(_model(), method=DiSparse(arbiter=Quorum(2))).load_state_dict(state)


def test_the_state_of_another_regime_is_refused() -> None:
    for one, other in ((_static, _dynamic), (_dynamic, _static), (_dynamic, _iterative)):
        with pytest.raises(LoadError):
            one(_model()).load_state_dict(other(_model()).state_dict())
