"""Relatedness: overlaps by hand, laws, the watershed's rule, and both levels on a network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from disparse_structured import Task, analyse
from disparse_structured.decision.rankings import GlobalRanking
from disparse_structured.errors import (
    BatchError,
    DisparseError,
    GradientError,
    LoadError,
    OptionError,
    TaskError,
)
from disparse_structured.relatedness import (
    PUBLISHED,
    KeptSets,
    Layer,
    Relatedness,
    SeedRun,
    draw_affinity,
    draw_layers,
    fresh,
    overlap,
    relate,
    split,
    unit_sets,
    watershed,
    weight_sets,
)
from disparse_structured.relatedness.overlap import keep_top
from disparse_structured.relatedness.published import counterpart, weights_of
from disparse_structured.scoring.criteria import Magnitude

NAMES = ("near", "far", "flat")


class Net(nn.Module):
    """A trunk of three layers under three heads."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8)
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.heads = nn.ModuleDict({name: nn.Conv2d(8, 2, 1) for name in NAMES})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.trunk(image)
        return {name: head(x) for name, head in self.heads.items()}


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return [{"image": draw(4, 3, 8, 8), **{name: draw(4, 2, 8, 8) for name in NAMES}} for _ in range(count)]


def tasks(names: Sequence[str] = NAMES, scale: float = 1.0) -> list[Task]:
    """Squared errors; that of the first name is ``scale`` times as loud."""

    def loss(name: str, factor: float) -> Any:
        return lambda output, batch: factor * (output - batch[name]).square().mean()

    return [Task(name, name, loss(name, scale if name == names[0] else 1.0)) for name in names]


def sets(keep: Sequence[Sequence[int]], sizes: Sequence[int], reach: Any = None) -> KeptSets:
    kept = torch.tensor(keep, dtype=torch.bool)
    names = tuple(f"t{row}" for row in range(len(keep)))
    layers = tuple(Layer(f"l{place}", size) for place, size in enumerate(sizes))
    reached = torch.ones(len(names), len(layers), dtype=torch.bool) if reach is None else torch.tensor(reach)
    return KeptSets(names, layers, reached.bool(), kept, torch.rand(kept.shape, generator=torch.Generator()))


masks = st.integers(2, 4).flatmap(
    lambda count: st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=count, max_size=count)
)


def test_an_overlap_worked_by_hand() -> None:
    found = overlap(sets([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 0]], (4, 2)), seed=3)

    assert found.seed == 3
    assert found.layers == (1 / 3, 1.0)
    assert found.total == 2 / 4
    # Drawn at random: two and two of four items meet in 1 and cover 3; one and one of two, in 0.5 and 1.5.
    assert found.by_chance == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found.chance == pytest.approx(1.5 / 4.5)
    assert found.affinity == ((1.0, 0.5), (0.5, 1.0))


def test_a_layer_counts_for_the_tasks_that_reach_it() -> None:
    found = overlap(
        sets(
            [[1, 1, 1, 0, 1, 1], [1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
            (2, 2, 2),
            reach=[[1, 1, 1], [1, 1, 0], [1, 0, 0]],
        )
    )

    assert found.layers == (0.0, 1.0)  # all three, the first two; the last layer is the first task's own
    assert found.total == 1 / 3
    assert found.affinity[0][1] == 2 / 3
    assert found.affinity[0][2] == found.affinity[2][0] == 1 / 2


def test_a_layer_that_nobody_keeps_has_no_value() -> None:
    found = overlap(sets([[1, 0, 0], [1, 0, 0]], (1, 2)))

    assert found.layers == (1.0, None)
    assert found.total == 1.0


def test_values_that_are_none_print_and_round_trip() -> None:
    run = overlap(sets([[1, 0, 0], [1, 0, 0]], (1, 2)))
    layers = (Layer("first", 1), Layer("second", 2))
    found = Relatedness("Net", "unit", "", "hand", 0.5, ("t0", "t1"), layers, (run,))

    assert math.isnan(found.iou[1])
    assert "none kept" in str(found)
    assert "watershed: none" in str(found)
    assert Relatedness.from_json(found.to_json()) == found


def test_tasks_that_share_nothing_are_refused() -> None:
    with pytest.raises(TaskError, match="t0, t1 share nothing"):
        overlap(sets([[1, 0], [0, 1]], (1, 1), reach=[[1, 0], [0, 1]]))


@given(masks)
def test_iou_is_a_share_one_for_equal_sets_and_free_of_order(keep: list[list[bool]]) -> None:
    found = overlap(sets(keep, (5, 3, 4)))
    other = overlap(sets(keep[::-1], (5, 3, 4)))
    values = [*(v for v in found.layers if v is not None), *(v for row in found.affinity for v in row)]

    assert all(0 <= value <= 1 for value in values)
    assert (other.total, other.layers) == (found.total, found.layers)
    assert np.array_equal(np.array(other.affinity)[::-1, ::-1], np.array(found.affinity))
    same = overlap(sets([keep[0]] * 3, (5, 3, 4)))
    assert same.total == (1.0 if any(keep[0]) else None)
    assert {value for value in same.layers if value is not None} <= {1.0}


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_disjoint_sets_have_nothing_in_common(keep: list[bool]) -> None:
    found = overlap(sets([keep, [not each for each in keep]], (2, 4)))

    assert found.total == 0.0
    assert set(found.layers) == {0.0}


def test_the_largest_are_kept_ties_by_position_and_zeros_never() -> None:
    assert keep_top(torch.tensor([3.0, 1, 2, 2, 2]), 0.4).tolist() == [True, False, True, True, False]
    assert keep_top(torch.tensor([0.0, 0, 5, 0]), 0.25).tolist() == [False, False, True, False]


# The watershed.


@given(st.integers(1, 9), st.lists(st.integers(1, 50), min_size=10, max_size=10))
def test_a_step_is_found_where_it_is(place: int, sizes: list[int]) -> None:
    found = split([0.9] * place + [0.2] * (10 - place), sizes)

    assert found is not None
    assert found.position == place
    assert (found.before, found.after) == (pytest.approx(0.9), pytest.approx(0.2))
    assert found.explained == pytest.approx(1.0)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1).map(lambda v: round(v, 3)), min_size=2, max_size=9), st.data())
def test_the_split_has_the_least_weighted_squared_error(values: list[float], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))

    def error(cut: int) -> float:
        parts = ((values[:cut], sizes[:cut]), (values[cut:], sizes[cut:]))
        means = [np.average(x, weights=w) for x, w in parts]
        return float(
            sum(np.sum(np.array(w) * (np.array(x) - m) ** 2) for (x, w), m in zip(parts, means, strict=True))
        )

    best = min(error(cut) for cut in range(1, len(values)))
    found = split(values, sizes)
    if found is not None:
        assert error(found.position) == pytest.approx(best, abs=1e-9)
        assert found.before > found.after


def test_size_decides_between_two_steps() -> None:
    assert split([1.0, 0.5, 0.0], [1, 100, 100]).position == 2  # type: ignore[union-attr]
    assert split([1.0, 0.5, 0.0], [100, 100, 1]).position == 1  # type: ignore[union-attr]


def test_layers_without_a_value_take_no_part() -> None:
    assert split([0.9, None, 0.9, None, 0.1], [1] * 5).position == 4  # type: ignore[union-attr]


def test_no_fall_no_watershed() -> None:
    assert split([0.2, 0.2, 0.9], [1, 1, 1]) is None
    assert split([0.5, 0.5], [1, 1]) is None
    assert split([0.5], [1]) is None
    assert watershed(["a", "b"], [1, 1], [[0.1, 0.9]]) is None


def test_uncertainty_comes_from_the_runs() -> None:
    names, sizes = list("abcd"), [1, 1, 1, 1]
    early, late = [0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.1]

    alone = watershed(names, sizes, [early])
    sure = watershed(names, sizes, [early] * 4)
    torn = watershed(names, sizes, [early, early, late, late])

    assert alone is not None
    assert sure is not None
    assert torn is not None
    assert (alone.layer, alone.support) == ("b", ())
    assert sure.support == (("b", 1.0),)
    assert (torn.layer, torn.low, torn.high) == ("b", "b", "d")
    # A resample is cut late where late runs are more than half of it: 5 of 16 by the binomial law.
    assert dict(torn.support) == {"b": pytest.approx(11 / 16, abs=0.05), "d": pytest.approx(5 / 16, abs=0.05)}
    assert watershed(names, sizes, [early, early, late, late]) == torn


def test_published_values_are_a_resnet34_that_parts_in_its_third_stage() -> None:
    for each in PUBLISHED:
        assert len(each.by_layer) == 36
        assert all(0 <= value <= 1 for value in each.by_layer.values())
        assert each.watershed.startswith("layer3.")
        assert sum(map(weights_of, each.by_layer)) == 21_267_648
    assert [each.total for each in PUBLISHED] == [0.546, 0.735, 0.608]
    assert PUBLISHED[0].by_layer["layer3.0.conv2"] == 0.1288
    assert PUBLISHED[2].by_layer["layer4.0.downsample.0"] == 0.4924


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("backbone.net.layer1.0.conv1.weight", "layer1.0.conv1"),
        ("conv1.weight", "conv1"),
        ("backbone.layer3.0.downsample.0.weight", "layer3.0.downsample.0"),
        ("trunk.layer3.0.downsample.1.weight", "layer3.0.downsample.0"),
        ("layer9.0.conv1.weight", None),
        ("layer1.7.conv1.weight", None),
        ("backbone.deconv1.weight", None),
        ("trunk.0.0.weight", None),
    ],
)
def test_a_counterpart_is_found_by_name(parameter: str, layer: str | None) -> None:
    assert counterpart(parameter) == layer


# Clusters.


def result(affinity: Any, names: Sequence[str] = "abcd") -> Relatedness:
    count = len(names)
    run = SeedRun(0, 0.5, 0.3, (0.9, 0.1), (0.4, 0.2), affinity, tuple((0.0,) * count for _ in range(count)))
    layers = (Layer("first", 4), Layer("second", 4))
    return Relatedness("Net", "unit", "by hand", "hand", 0.5, tuple(names), layers, (run,))


PAIRS = (
    (1.0, 0.8, 0.3, 0.1),
    (0.8, 1.0, 0.2, 0.2),
    (0.3, 0.2, 1.0, 0.6),
    (0.1, 0.2, 0.6, 1.0),
)


def test_average_linkage_by_hand() -> None:
    found = result(PAIRS)
    heights = [(set(m.left), set(m.right), m.distance) for m in found.dendrogram]

    assert heights[0] == ({"a"}, {"b"}, pytest.approx(0.2))
    assert heights[1] == ({"c"}, {"d"}, pytest.approx(0.4))
    assert heights[2][2] == pytest.approx(0.8)  # mean of 0.7, 0.9, 0.8 and 0.8
    assert found.clusters(2) == (("a", "b"), ("c", "d"))
    assert found.clusters(distance=0.3) == (("a", "b"), ("c",), ("d",))
    assert found.clusters(1) == (tuple("abcd"),)
    assert found.clusters(4) == (("a",), ("b",), ("c",), ("d",))


def test_clusters_do_not_depend_on_the_order_of_tasks() -> None:
    order = [2, 0, 3, 1]
    mixed = tuple(tuple(PAIRS[a][b] for b in order) for a in order)
    found = result(mixed, [*"cadb"])

    assert found.dendrogram == result(PAIRS).dendrogram
    assert {frozenset(each) for each in found.clusters(2)} == {frozenset("ab"), frozenset("cd")}


@pytest.mark.parametrize("asked", [{}, {"count": 0}, {"count": 5}, {"count": 2, "distance": 0.5}])
def test_an_impossible_cut_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"count="):
        result(PAIRS).clusters(**asked)


# Kept sets of a network.


def test_weights_are_kept_by_connection_sensitivity() -> None:
    """Against autograd on the plain model: the sum over batches of |w * dL/dw|, the top half of each task."""
    model, data = net(), batches()
    found = weight_sets(model, (data[0]["image"],), tasks(("near", "far")), data, ratio=0.5)

    assert [layer.name for layer in found.layers] == [
        "trunk.0.0.weight", "trunk.1.0.weight", "trunk.2.0.weight", "heads.near.weight", "heads.far.weight",
    ]  # fmt: skip
    assert found.reach.tolist() == [[True, True, True, True, False], [True, True, True, False, True]]
    weights = [model.get_parameter(layer.name) for layer in found.layers]
    expected = [torch.zeros_like(w) for w in weights[:4]]
    for batch in data:
        loss = (model(batch["image"])["near"] - batch["near"]).square().mean()
        for total, w, g in zip(expected, weights, torch.autograd.grad(loss, weights[:4]), strict=False):
            total += (w * g).abs().detach()
    flat = torch.cat([each.flatten() for each in expected])
    torch.testing.assert_close(found.scores[0, : len(flat)], flat)
    assert int(found.keep[0].sum()) == len(flat) // 2
    assert found.scores[0][found.keep[0]].min() >= flat.median()


def test_batch_statistics_are_those_of_training_mode() -> None:
    model, data = net(), batches()
    image = data[0]["image"]
    found = weight_sets(model, (image,), tasks(), data, batch_statistics=True, max_batches=1)

    model.train()
    loss = (model(image)["near"] - data[0]["near"]).square().mean()
    first = model.trunk[0][0].weight  # type: ignore[index, union-attr]
    (gradient,) = torch.autograd.grad(loss, first)
    expected = (first * gradient).abs().flatten().detach()
    torch.testing.assert_close(found.scores[0, : len(expected)], expected)


def test_a_weight_under_two_names_is_one_layer() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.trunk[2][0].weight = self.trunk[1][0].weight  # type: ignore[index, union-attr]

    torch.manual_seed(0)
    found = weight_sets(Tied().eval(), (batches()[0]["image"],), tasks(), batches())

    assert [layer.name for layer in found.layers[:2]] == ["trunk.0.0.weight", "trunk.1.0.weight"]
    assert not any(layer.name.startswith("trunk.2") for layer in found.layers)


def test_inputs_says_what_forward_takes() -> None:
    data = [(batch["near"], batch) for batch in batches()]  # the input comes second, inside a dict
    own = [
        Task(name, name, lambda output, batch, name=name: (output - batch[1][name]).square().mean())  # type: ignore[misc]
        for name in NAMES
    ]
    take = lambda batch: (batch[1]["image"],)  # noqa: E731

    for level in ("weight", "unit"):
        found = relate(net(), batches()[0]["image"], own, data, level=level, ratio=0.7, to_inputs=take)  # type: ignore[arg-type]
        usual = relate(net(), batches()[0]["image"], tasks(), batches(), level=level, ratio=0.7)  # type: ignore[arg-type]
        assert found.runs == usual.runs


def test_units_are_kept_by_the_votes() -> None:
    model, data = net(), batches()
    structure = analyse(model, (data[0]["image"],), tasks(("near", "far")))
    found = unit_sets(model, structure, data, ratio=0.5, criterion=Magnitude())

    assert [layer.name.partition(".")[0] for layer in found.layers] == ["trunk"] * 3
    assert found.keep.sum(dim=1).tolist() == [12, 12]
    assert torch.equal(found.keep[0], found.keep[1])  # magnitudes are the same for every task


@pytest.mark.parametrize("level", ["weight", "unit"])
def test_a_task_and_its_double_keep_the_same(level: Any) -> None:
    twice = [tasks()[0], Task("again", "near", tasks()[0].loss)]
    found = relate(net(), batches()[0]["image"], twice, batches(), level=level, ratio=0.6)

    assert found.total == 1.0
    assert {value for value in found.iou if value == value} == {1.0}
    assert found.correlation[0][1] == pytest.approx(1.0)


@pytest.mark.parametrize("level", ["weight", "unit"])
def test_scaling_a_loss_and_turning_tasks_round_changes_nothing(level: Any) -> None:
    def found(given: list[Task]) -> Relatedness:
        return relate(net(), batches()[0]["image"], given, batches(), level=level, ratio=0.7)

    plain, loud, turned = found(tasks()), found(tasks(scale=1024.0)), found(tasks()[::-1])

    assert loud.runs == plain.runs
    assert turned.runs[0].layers == plain.runs[0].layers
    assert turned.total == plain.total
    assert np.allclose(np.array(turned.affinity)[::-1, ::-1], plain.affinity)
    assert 0 < plain.total < 1


@pytest.mark.parametrize("level", ["weight", "unit"])
def test_the_model_and_the_random_states_are_left_alone(level: Any) -> None:
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = relate(
        model, batches()[0]["image"], tasks(), batches(), level=level, ratio=0.7, batch_statistics=True
    )

    assert found == relate(
        model, batches()[0]["image"], tasks(), batches(), level=level, ratio=0.7, batch_statistics=True
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_tasks_without_losses_are_read_by_their_outputs() -> None:
    given = [Task(name, name) for name in NAMES]
    one, other = (
        relate(net(), batches()[0]["image"], given, batches(), ratio=0.7, seeds=(seed,)) for seed in (0, 1)
    )

    assert one.runs[0].layers != other.runs[0].layers
    assert one.affinity != other.affinity


def test_one_run_for_each_seed_on_new_weights() -> None:
    model = net()
    found = relate(
        lambda seed: fresh(model, seed, batches()),
        batches()[0]["image"],
        tasks(),
        batches(),
        level="unit",
        ratio=0.5,
        seeds=(4, 5, 6),
        ranking=GlobalRanking(),
        moment="before training",
    )

    assert [run.seed for run in found.runs] == [4, 5, 6]
    assert len({run.total for run in found.runs}) > 1
    assert found.total == pytest.approx(np.mean([run.total for run in found.runs]))
    assert Relatedness.from_json(found.to_json()) == found
    text = str(found)
    assert "before training" in text
    assert "0.546" in text
    assert "0.735" in text
    assert "0.608" in text
    assert "watershed" in text


def test_fresh_weights_follow_the_seed_and_settle_on_the_data() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    one, same, other = fresh(model, 1, batches()), fresh(model, 1, batches()), fresh(model, 2)

    assert torch.equal(one.trunk[0][0].weight, same.trunk[0][0].weight)  # type: ignore[index, union-attr]
    assert not torch.equal(one.trunk[0][0].weight, other.trunk[0][0].weight)  # type: ignore[index, union-attr]
    fan = 9 * (3 + 8)
    assert float(one.trunk[0][0].weight.detach().std()) == pytest.approx(math.sqrt(2 / fan), rel=0.2)  # type: ignore[index, union-attr]
    with torch.no_grad():
        first = one.trunk[0][:2](torch.cat([batch["image"] for batch in batches()]))  # type: ignore[index, operator]
    assert first.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_related_is_refused() -> None:
    model, data = net(), batches()
    image = data[0]["image"]
    with pytest.raises(TaskError, match="at least two"):
        relate(model, image, tasks()[:1], data)
    with pytest.raises(OptionError, match="between 0 and 1"):
        relate(model, image, tasks(), data, ratio=1.0)
    with pytest.raises(OptionError, match=r"seeds=\[\].*at least one"):
        relate(model, image, tasks(), data, seeds=())
    with pytest.raises(OptionError, match=r"level='layer'.*'unit', 'weight'"):
        relate(model, image, tasks(), data, level="layer")  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="yields no batch"):
        relate(model, image, tasks(), [])
    with pytest.raises(BatchError, match="refuses a batch"):
        relate(model, image, tasks(), [{"image": torch.randn(2, 5, 8, 8)}])
    with pytest.raises(GradientError, match=r"'bad'.*trunk\.0\.0"):
        relate(model, image, [Task("bad", "near", lambda o, b: (o * 0).sqrt().sum()), *tasks()], data)
    with pytest.raises(LoadError, match="not a Relatedness"):
        Relatedness.from_json(json.dumps({"tasks": []}))


# Figures.


def test_figures_are_written_and_differ_with_what_they_show(tmp_path: Path) -> None:
    other = Relatedness.from_json(result(PAIRS).to_json().replace("by hand", "later").replace("0.9", "0.7"))
    draw_layers(tmp_path / "one.png", [result(PAIRS)])
    draw_layers(tmp_path / "two.png", [result(PAIRS), other], title="Both")
    draw_affinity(tmp_path / "tree.png", result(PAIRS))

    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == {"one.png", "two.png", "tree.png"}
    assert all(content.startswith(b"\x89PNG") for content in written.values())
    assert written["one.png"] != written["two.png"]


def test_layers_without_values_and_curves_without_a_watershed_are_drawn(tmp_path: Path) -> None:
    runs = tuple(overlap(sets([[1, 0, 0], [1, 0, 0]], (1, 2)), seed) for seed in range(2))
    layers = (Layer("first", 1), Layer("second", 2))
    found = Relatedness("Net", "unit", "", "hand", 0.5, ("t0", "t1"), layers, runs)
    assert found.watershed is None

    draw_layers(tmp_path / "gaps.png", [found, found])

    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_nothing_or_of_two_networks_is_refused(tmp_path: Path) -> None:
    longer = json.loads(result(PAIRS).to_json())
    longer["layers"][0]["name"] = "another"
    with pytest.raises(DisparseError, match="no result"):
        draw_layers(tmp_path / "none.png", [])
    with pytest.raises(DisparseError, match="other layers"):
        draw_layers(tmp_path / "both.png", [result(PAIRS), Relatedness.from_json(json.dumps(longer))])
