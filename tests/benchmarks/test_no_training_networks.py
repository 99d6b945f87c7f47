"""The trained networks of the benchmark without training, on small packs of random scenes and cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import nyuv2 as dense_tasks
from benchmarks.data import CARD_TASKS, VARIABLE
from benchmarks.no_training import networks
from benchmarks.no_training.deviation import deviation
from benchmarks.no_training.networks import NETWORKS, Network, trained
from benchmarks.tables.problems import problem as problem_of
from disparse_structured.tasks import Task

SCENES, CARDS = 12, 20
"""Of which 8 scenes and 12 cards are for training."""

TINY = Network(
    "resnet",
    replace(
        NETWORKS[3].setup,
        size=(32, 20),
        options=(("channels", (8, 8, 16, 16)), ("stem_width", 8)),
        epochs=2,
        batch_size=5,
    ),
)
DENSE = replace(TINY, setup=replace(TINY.setup, dataset="nyuv2", size=(32, 32), head_width=4))
EACH = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


@pytest.fixture(autouse=True)
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both packs, in their own layout; half of the cards to report on are of class 1 in every task."""
    rng = np.random.default_rng(0)
    size = (32, 32)
    (tmp_path / "nyuv2").mkdir()
    (tmp_path / "setcards").mkdir()
    np.savez(
        tmp_path / "nyuv2" / "train.npz",
        rgb=rng.integers(0, 256, (SCENES, 3, *size)).astype(np.uint8),
        seg13=rng.choice([3, 3, 3, 12, 255], (SCENES, *size)).astype(np.uint8),
        depth=np.where(np.arange(SCENES) < 8, 2, 5)
        .astype(np.float16)[:, None, None]
        .repeat(32, 1)
        .repeat(32, 2),
        normals=np.broadcast_to(np.array([0, 0, 31], np.int8)[None, :, None, None], (SCENES, 3, *size)),
        edges=np.zeros((SCENES, *size), np.uint8),
        is_val=np.arange(SCENES) >= 8,
    )
    labels = np.array([1] * 9 + [0] * 2 + [2] * 1 + [1] * 4 + [0] * 2 + [2] * 2, np.uint8)
    np.savez(
        tmp_path / "setcards" / "setcards.npz",
        rgb=rng.integers(0, 256, (CARDS, 3, 64, 40)).astype(np.uint8),
        split=np.array([0] * 12 + [3] * 8, np.uint8),
        **dict.fromkeys(CARD_TASKS, labels),
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    problem_of.cache_clear()
    yield tmp_path
    problem_of.cache_clear()


def test_two_data_sets_by_three_architectures() -> None:
    names = [network.name for network in NETWORKS]
    assert len(set(names)) == len(names) == 6
    assert {name.split("/")[0] for name in names} == {"nyuv2", "cards"}
    assert {network.architecture for network in NETWORKS} == {"resnet", "mobilenet", "convnext"}


@EACH
def test_each_network_answers_every_task_from_the_layers_it_names(network: Network) -> None:
    data = networks.problem(network)
    model = data.build(network.setup, 0).eval()
    with torch.no_grad():
        output = model(data.check.tensors["image"][:2])
    assert list(output) == list(data.specs)
    layers = [model.get_submodule(name) for name in networks.predictors(model)]
    for (name, spec), layer in zip(data.specs.items(), layers, strict=True):
        assert output[name].shape[:2] == (2, spec.outputs)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        assert layer.weight.shape[0] == spec.outputs


@pytest.mark.parametrize("network", [TINY, DENSE], ids=["cards", "nyuv2"])
def test_a_network_is_trained_once(network: Network, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = trained(network, 0, tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in first.modules())
    untrained = networks.problem(network).build(network.setup, 0)
    assert not same(first, untrained)

    (file,) = (tmp_path / "cache").iterdir()
    assert same(first, trained(network, 0, tmp_path / "cache"))
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)
    read = trained(network, 0, tmp_path / "cache").state_dict()
    assert not any(value.any() for value in read.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_trainings_have_files_of_their_own(tmp_path: Path) -> None:
    one, other = (trained(TINY, seed, tmp_path / "cache") for seed in (0, 1))
    assert not same(one, other)
    longer = replace(TINY, setup=replace(TINY.setup, epochs=1))
    assert not same(one, trained(longer, 0, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_command_trains_and_shows_and_shares_networks_with_the_other_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (resnet,) = [network for network in NETWORKS if network.name == "nyuv2/resnet"]
    settings = dense_tasks.Settings()
    cache, out = tmp_path / "cache", tmp_path / "networks.txt"
    options = ["--networks", resnet.name, "--seeds", "1", "--cache", str(cache), "--out", str(out)]
    assert networks.main(options) == 0
    (file,) = cache.iterdir()
    kept = file.stat().st_mtime_ns

    model = dense_tasks.dense(settings, 0, networks.problem(resnet).train, cache)
    assert [file] == list(cache.iterdir())
    assert file.stat().st_mtime_ns == kept
    depth = networks.problem(resnet).evaluate(model)["depth"]["abs_error"]
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if resnet.name in line]
    assert f"{depth:.3f}" in line
    assert "resnet10t" in line
    assert out.read_text(encoding="utf-8") == shown


def test_the_command_says_where_the_packs_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    assert networks.main(["--seeds", "1", "--cache", str(tmp_path / "cache")]) == 1
    assert f"Set the environment variable {VARIABLE}" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    with pytest.raises(SystemExit):
        networks.main(["--networks", "nyuv2/vgg"])
    assert "nyuv2/vgg" in capsys.readouterr().err


@pytest.mark.parametrize("network", [TINY, DENSE], ids=["cards", "nyuv2"])
def test_calibration_images_are_training_images(network: Network) -> None:
    before = torch.get_rng_state()
    data = networks.problem(network)
    count = len(data.train)
    images = networks.calibration(network, count - 2, seed=3)

    assert images.shape == (count - 2, 3, *network.setup.size)
    assert all(rows_of(images, data.train.tensors["image"]))
    assert len(images.flatten(1).unique(dim=0)) == count - 2
    assert not any(rows_of(images, data.check.tensors["image"]))
    assert torch.equal(networks.calibration(network, 3, seed=3), images[:3])
    assert not torch.equal(networks.calibration(network, count - 2, seed=4), images)
    assert torch.equal(torch.get_rng_state(), before)


def test_labeled_batches_are_the_calibration_images_with_their_targets() -> None:
    batches = networks.labeled(TINY, 11, seed=2)
    assert [len(batch["image"]) for batch in batches] == [5, 5, 1]
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, networks.calibration(TINY, 11, seed=2))
    train = networks.problem(TINY).train.tensors
    for image, label in zip(images, torch.cat([batch["shape"] for batch in batches]), strict=True):
        (row,) = [row for row, other in enumerate(train["image"]) if torch.equal(image, other)]
        assert train["shape"][row] == label


@pytest.mark.parametrize("count", [0, 13])
def test_as_many_images_as_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}; cards/resnet has 1 to 12 training images"):
        networks.calibration(TINY, count, seed=0)


def test_a_guess_is_what_training_says_most() -> None:
    # Class 1 is the commonest of the training cards, and 4 of the 8 that are reported on are of it.
    cards = networks.guess(TINY)
    assert {name: cards[name]["accuracy"] for name in CARD_TASKS} == dict.fromkeys(CARD_TASKS, 0.5)

    # All scenes look ahead; those to train on are 2 m deep, the others 5 m.
    scenes = networks.guess(DENSE)
    assert scenes["normals"]["mean_angle"] == pytest.approx(0, abs=0.1)
    assert scenes["depth"]["abs_error"] == pytest.approx(3, abs=0.01)
    seg = networks.problem(DENSE).check.tensors["seg13"]
    known = seg[seg != 255]
    assert scenes["seg13"]["pixel_accuracy"] == pytest.approx(float((known == 3).double().mean()))


def test_a_table_has_a_row_a_network_and_the_guess() -> None:
    figures = {name: {"accuracy": 0.75} for name in CARD_TASKS}
    written = StringIO()
    networks.show([(TINY, 0, figures), (TINY, 1, figures)], Console(file=written, width=100))
    text = written.getvalue()
    assert text.count("cards/resnet") == 2
    assert text.count("0.750") == 2 * len(CARD_TASKS)
    (line,) = [line for line in text.splitlines() if "one answer for all" in line]
    assert line.count("0.500") == len(CARD_TASKS)


class Pair(nn.Module):
    """Two outputs: the input times a factor, with dropout that eval mode turns off, and a constant one."""

    def __init__(self, factor: float, other: float = 1.0) -> None:
        super().__init__()
        self.factor, self.other = factor, other
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scaled": self.drop(x) * self.factor, "flat": torch.full_like(x[:, :1], self.other)}


BOTH = (Task("scaled", "scaled"), Task("flat", "flat"))


def test_deviation_is_relative_and_a_task_each() -> None:
    images = torch.randn(7, 3, 4, 5)
    dense, pruned = Pair(2.0), Pair(1.5, other=1.1)
    found = deviation(dense, pruned, images, BOTH)
    assert found == {"scaled": pytest.approx(0.25), "flat": pytest.approx(0.1)}
    assert deviation(dense, dense, images, BOTH) == {"scaled": 0.0, "flat": 0.0}
    assert deviation(dense, Pair(0.0, 0.0), images, BOTH) == {"scaled": 1.0, "flat": 1.0}
    assert dense.training
    assert pruned.drop.training


def test_deviation_is_of_all_images_at_once_not_a_mean_of_ratios() -> None:
    images = torch.cat([torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 4.0)])

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x < 3.5) * 1.0

    identity = (Task("all", lambda output: output),)
    assert deviation(nn.Identity(), Off(), images, identity) == {"all": pytest.approx(1 / 5)}


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_batch_size_does_not_show(size: int, seed: int) -> None:
    images = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    whole = deviation(Pair(1.0), Pair(0.3, 2.0), images, BOTH)
    assert deviation(Pair(1.0), Pair(0.3, 2.0), images, BOTH, size) == pytest.approx(whole, rel=1e-12)


def test_deviation_of_nothing() -> None:
    images = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="at least one image"):
        deviation(Pair(1.0), Pair(1.0), images[:0], BOTH)
    with pytest.raises(ValueError, match=r"dense output of \['flat'\] is zero"):
        deviation(Pair(1.0, 0.0), Pair(1.0), images, BOTH)
    with pytest.raises(ValueError, match=r"task 'all': the pruned output has shapes \[\(2, 48\)\]"):
        deviation(nn.Identity(), nn.Flatten(), images, (Task("all", lambda output: output),))


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def rows_of(images: Tensor, among: Tensor) -> list[bool]:
    """Of each image, whether it is ``among`` those."""
    return [any(torch.equal(image, other) for other in among) for image in images]
