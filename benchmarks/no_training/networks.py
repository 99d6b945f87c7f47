"""The trained networks: two data sets, three architectures, seeds from 0.

``python -m benchmarks.no_training.networks --seeds 3`` trains what is missing under ``benchmarks/.cache``
and prints each network's figures beside those of the best constant answer. A network takes about two
minutes on one thread. From Python:

>>> from benchmarks.no_training.networks import NETWORKS, problem, trained
>>> model = trained(NETWORKS[0], seed=0)  # doctest: +SKIP
>>> problem(NETWORKS[0]).evaluate(model)  # doctest: +SKIP
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import nyuv2
from benchmarks.data import Batch, DataError, Loader, Samples
from benchmarks.harness import options as common
from benchmarks.harness.files import CACHE
from benchmarks.tables import experiment
from benchmarks.tables.cells import Figures
from benchmarks.tables.problems import FIGURES, TITLES, Figure, Problem
from benchmarks.tables.problems import problem as problem_of
from benchmarks.tables.settings import Setup
from disparse_structured.adapters.timm import MultiTask


@dataclass(frozen=True)
class Network:
    """A network with its data and its training.

    Args:
        architecture: ``"resnet"``, ``"mobilenet"`` or ``"convnext"``.
        setup: the backbone, the data set and how it is trained on it.
    """

    architecture: str
    setup: Setup

    @property
    def dataset(self) -> str:
        """``"nyuv2"`` or ``"cards"``."""
        return self.setup.dataset

    @property
    def name(self) -> str:
        """``"dataset/architecture"``."""
        return f"{self.dataset}/{self.architecture}"


def _as_setup(settings: nyuv2.Settings) -> Setup:
    return Setup(
        "nyuv2",
        settings.size,
        settings.backbone,
        head_width=settings.head_width,
        epochs=settings.epochs,
        lr=settings.lr,
        finetune_epochs=settings.finetune_epochs,
        finetune_lr=settings.finetune_lr,
        batch_size=settings.batch_size,
        scored_batches=settings.scored_batches,
    )


def _scenes(backbone: str, epochs: int, lr: float, **options: int) -> Setup:
    return Setup("nyuv2", (48, 64), backbone, tuple(options.items()), 32, epochs, lr, 2, lr / 4)


def _cards(backbone: str, epochs: int, lr: float, **options: int) -> Setup:
    setup = _scenes(backbone, epochs, lr, **options)
    return replace(setup, dataset="cards", size=(64, 40), batch_size=48, scored_batches=8)


_SETTINGS = nyuv2.Settings()
"""Of :mod:`benchmarks.nyuv2`, whose dense networks are the first ones here."""

# ConvNeXt's own start, where all blocks count for a millionth, is meant for hundreds of epochs.
NETWORKS = (
    Network("resnet", _as_setup(_SETTINGS)),
    Network("mobilenet", _scenes("mobilenetv2_050", epochs=20, lr=1e-2)),
    Network("convnext", _scenes("convnext_atto", epochs=24, lr=4e-3, ls_init_value=1)),
    Network("resnet", _cards("resnet10t", epochs=7, lr=2e-3)),
    Network("mobilenet", _cards("mobilenetv2_050", epochs=14, lr=4e-3)),
    Network("convnext", _cards("convnext_atto", epochs=9, lr=2e-3, ls_init_value=1)),
)
"""Two data sets by three architectures, all trained from scratch."""


def problem(network: Network) -> Problem:
    """Samples, tasks, figures and ΔT; raises :class:`benchmarks.data.DataError` where the pack is missing."""
    return problem_of(network.setup)


def trained(network: Network, seed: int, cache: Path = CACHE) -> MultiTask:
    """The trained network in eval mode, from ``cache`` if it was trained before.

    Torch's global random state is not changed.

    Raises:
        DataError: the data pack is missing.
    """
    if network.setup == _as_setup(_SETTINGS):
        return nyuv2.dense(_SETTINGS, seed, problem(network).train, cache)
    return experiment.dense(experiment.Bench(network.setup, cache), seed)[0]


def calibration(network: Network, count: int, seed: int) -> Tensor:
    """``count`` training images ``[count, 3, H, W]``, without labels and without augmentation.

    With one seed, a smaller count gives the first images of a larger one. Results are reported on others.

    Raises:
        ValueError: ``count`` is below 1 or above the number of training samples.
        DataError: the data pack is missing.
    """
    return _drawn(network, count, seed)["image"]


def labeled(network: Network, count: int, seed: int) -> tuple[Batch, ...]:
    """The images of :func:`calibration` with their targets, in batches of the training's size, for methods
    that take gradients of the losses. Raises as :func:`calibration` does.
    """
    batches = Loader(Samples(_drawn(network, count, seed)), network.setup.batch_size)
    return tuple(batches)


def predictors(model: MultiTask) -> tuple[str, ...]:
    """The names of the layers whose outputs are the tasks', which plain Torch-Pruning must not prune."""
    return tuple(f"heads.{name}.predict" for name in model.head_names)


def guess(network: Network) -> Figures:
    """The figures of one constant answer for all reported images: each task's most common class, or mean
    value, over the training samples. A network must be better than that.
    """
    data = problem(network)
    found = data.train.tensors
    return data.evaluate(
        _Constant({name: _mean(found[name], spec.outputs) for name, spec in data.specs.items()})
    )


class _Constant(nn.Module):
    """The same output ``[C]`` for every image, or for every pixel if it is ``[C, 1, 1]``."""

    def __init__(self, answers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.answers = dict(answers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        count, size = len(images), images.shape[-2:]
        return {
            name: answer.expand(count, -1, *size) if answer.dim() > 1 else answer.expand(count, -1)
            for name, answer in self.answers.items()
        }


def _mean(targets: Tensor, outputs: int) -> Tensor:
    """``[C]`` or ``[C, 1, 1]``: the counts of the classes (255 = unknown), or the mean of known values."""
    if not targets.is_floating_point():
        counts = targets[targets != 255].bincount(minlength=outputs).float()
        return counts if targets.dim() == 1 else counts.view(-1, 1, 1)
    known = (targets != 0).any(1)
    return targets.movedim(1, -1)[known].mean(0).view(-1, 1, 1)


def _drawn(network: Network, count: int, seed: int) -> Batch:
    train = problem(network).train
    if not 1 <= count <= len(train):
        raise ValueError(f"count is {count}; {network.name} has 1 to {len(train)} training images.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train[order[:count]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    wanted = [network for network in NETWORKS if network.name in options.networks]
    rows: list[tuple[Network, int, Figures]] = []
    try:
        for seed in range(options.seeds):
            for network in wanted:
                started = time.perf_counter()
                model = trained(network, seed, options.cache)
                rows.append((network, seed, problem(network).evaluate(model)))
                seconds = time.perf_counter() - started
                print(f"{network.name}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)
                if options.out:
                    with options.out.open("w", encoding="utf-8") as file:
                        show(rows, Console(file=file, width=100))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    show(rows, Console(width=None if sys.stdout.isatty() else 100))  # a file has no width to fit
    return 0


def show(rows: Sequence[tuple[Network, int, Figures]], console: Console) -> None:
    """A table for each data set: the networks, and the constant answer."""
    for dataset in dict.fromkeys(network.dataset for network, _, _ in rows):
        figures = FIGURES[dataset]
        table = Table(title=TITLES[dataset], title_justify="left")
        for column in ("network", "backbone", "seed", *(figure.title for figure in figures)):
            table.add_column(column, no_wrap=True)
        same = [row for row in rows if row[0].dataset == dataset]
        for network, seed, results in same:
            table.add_row(network.name, network.setup.backbone, str(seed), *_cells(figures, results))
        table.add_section()
        table.add_row("one answer for all", "", "", *_cells(figures, guess(same[0][0])))
        console.print(table)
    console.print(
        "Load one: benchmarks.no_training.networks.trained(NETWORKS[0], seed=0); its figures: "
        "problem(NETWORKS[0]).evaluate(model).",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _cells(figures: Sequence[Figure], results: Figures) -> list[str]:
    return [f"{results[figure.task][figure.metric]:.{figure.digits}f}" for figure in figures]


def _parser() -> argparse.ArgumentParser:
    parser = common.parser("no_training.networks", __doc__)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="trained networks (%(default)s)")
    parser.add_argument("--out", type=Path, help="the tables go here too, after each network")
    return parser


if __name__ == "__main__":
    sys.exit(main())
