"""``load`` notices damaged weights, and a factory whose model computes something different with them."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import disparse_structured as ds
from disparse_structured.errors import DifferentModelWarning, LoadError
from tests.support.plans import snapshot

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 50, (16, 6), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Some layers, an activation, and what becomes of the result."""

    def __init__(self, activation: nn.Module, last: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 4, 1)
        self.act, self.last = activation, last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.out(self.act(self.second(self.act(self.first(x))))))


def same(x: Tensor) -> Tensor:
    return x


def net(activation: nn.Module | None = None, last: Callable[[Tensor], Any] = same) -> nn.Module:
    torch.manual_seed(0)
    return Net(activation or nn.ReLU(), last).eval()


class Text(nn.Module):
    """Tokens and a mask; with a mask of zeros, everything is NaN."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.table, self.wide, self.out = nn.Embedding(50, 12), nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        words = self.out(self.wide(self.scale * self.table(tokens)).relu())
        return (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.out = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.wide(x).relu()
        return self.out(hidden + torch.randn_like(hidden))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    ds.prune(net(), IMAGES, macs=0.5).save(path)
    return path


def random_states() -> Any:
    numpy = np.random.get_state()  # noqa: NPY002 (the global one, which a model may draw from)
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist()


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def copied(folder: Path, to: Path, **entries: Any) -> Path:
    """The folder again, with other entries in its report; None leaves one out."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    report = {**json.loads((to / "report.json").read_text()), **entries}
    kept = {name: value for name, value in report.items() if value is not None or name not in entries}
    (to / "report.json").write_text(json.dumps(kept))
    return to


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"schema": 99}, "schema version 99, but this release reads up to version 1. Use the release that"),
        ({"dropped": [{"module": 3}]}, r"dropped\[0\]\.parameters is missing"),
    ],
)
def test_a_report_that_is_newer_or_damaged_is_refused(
    entries: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=said):
        ds.load(copied(folder, tmp_path, **entries), net)


def test_the_same_model_is_loaded_without_a_word(folder: Path) -> None:
    with silence():
        ds.load(folder, net)


@pytest.mark.parametrize(
    "activation",
    [nn.GELU(), nn.SiLU(), nn.Identity(), nn.LeakyReLU(0.01), nn.Hardtanh(0, 6e-1)],
    ids=lambda each: type(each).__name__,
)
def test_another_activation_is_noticed(folder: Path, activation: nn.Module) -> None:
    with pytest.warns(DifferentModelWarning, match="does not compute what the saved model computed"):
        ds.load(folder, lambda: net(activation))


@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.flip(1),
        lambda x: x.flip(3),
        lambda x: x.transpose(2, 3),
        lambda x: x * 1.001,
        lambda x: torch.cat([x[:, :3], 0.99 * x[:, 3:]], 1),
        lambda x: (x, x),
        lambda x: x[:, :, 1:],
    ],
    ids=["channels", "columns", "transposed", "scaled", "one-channel", "two", "smaller"],
)
def test_another_use_of_the_last_layer_is_noticed(folder: Path, last: Callable[[Tensor], Any]) -> None:
    with pytest.warns(DifferentModelWarning):
        ds.load(folder, lambda: net(last=last))


def test_another_score_beside_large_boxes_is_noticed(tmp_path: Path) -> None:
    def beside(factor: float) -> Callable[[Tensor], Tensor]:
        size = torch.tensor([640.0, 640.0, 640.0, 0.06 * factor])
        return lambda x: x.flatten(2).transpose(1, 2).sigmoid() * size

    ds.prune(net(last=beside(1.0)), IMAGES, macs=0.5).save(tmp_path)
    with silence():
        ds.load(tmp_path, lambda: net(last=beside(1.0)))
    with pytest.warns(DifferentModelWarning):
        ds.load(tmp_path, lambda: net(last=beside(1.01)))


def test_the_loaded_model_is_returned_all_the_same(folder: Path) -> None:
    with pytest.warns(DifferentModelWarning):
        loaded = ds.load(folder, lambda: net(nn.GELU()))
    assert not loaded.training
    assert loaded(IMAGES).shape == (16, 4, 4, 4)


@pytest.mark.parametrize("count", [2, 1000])
def test_tokens_and_masks_are_taken_from_the_example(count: int, tmp_path: Path) -> None:
    tokens = TOKENS.repeat(1, count // 2)
    mask = torch.ones_like(tokens).float()
    inputs = {"tokens": tokens, "mask": mask.long()}
    ds.prune(Text().eval(), inputs, macs=0.6).save(tmp_path)

    with silence():
        ds.load(tmp_path, lambda: Text().eval())
    with pytest.warns(DifferentModelWarning):
        ds.load(tmp_path, lambda: Text(1.01).eval())


def test_a_model_that_draws_in_eval_mode_is_not_judged(tmp_path: Path) -> None:
    ds.prune(Noisy().eval(), torch.randn(16, 8), macs=0.6, verify=False).save(tmp_path)

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["computes"] == {"reason": "the model draws random numbers in eval mode"}
    with silence():
        ds.load(tmp_path, lambda: Noisy().eval())


def test_training_and_saving_again_makes_no_other_model(tmp_path: Path) -> None:
    result = ds.prune(net(), IMAGES, macs=0.5)
    result.save(tmp_path)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1)
    result.save(tmp_path)
    with silence():
        loaded = ds.load(tmp_path, net)
    torch.testing.assert_close(loaded(IMAGES), result.model(IMAGES))


def test_saving_leaves_the_model_and_the_random_states_as_they_are(tmp_path: Path) -> None:
    result = ds.prune(net(), IMAGES, macs=0.5)
    model = result.model.train()
    model.second.eval()
    before = snapshot(model), {name: module.training for name, module in model.named_modules()}
    states = random_states()

    result.save(tmp_path)

    assert (snapshot(model), {name: module.training for name, module in model.named_modules()}) == before
    assert random_states() == states


@pytest.mark.parametrize("computes", [None, {"reason": "..."}, [], "?"])
def test_a_report_without_a_summary_is_read_without_a_word(
    folder: Path, tmp_path: Path, computes: Any
) -> None:
    copied(folder, tmp_path, computes=computes, weights_sha256=None)
    with silence():
        assert isinstance(ds.load(tmp_path, lambda: net(nn.GELU())), nn.Module)


@pytest.mark.parametrize("where", [-1, 200, 0], ids=["last-byte", "header", "first-byte"])
def test_a_damaged_weights_file_is_named(folder: Path, tmp_path: Path, where: int) -> None:
    path = copied(folder, tmp_path) / "weights.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)

    with pytest.raises(LoadError, match=r"weights.safetensors' is damaged, .*its SHA-256 is \w{12}…, report"):
        ds.load(tmp_path, net)


def test_the_summary_is_small(folder: Path) -> None:
    computes = json.loads((folder / "report.json").read_text())["computes"]

    assert len(json.dumps(computes)) < 1000
    assert computes["tolerance"] == pytest.approx(1e-4)
