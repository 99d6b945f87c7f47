"""The scales of the tables: the network, the data and the training, in one description that rows record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

REGIMES = ("pretrained", "static", "dynamic")
REMOVED = (0.7, 0.5, 0.9)
"""Shares of the dense MACs to remove, most informative first, for runs that are stopped early."""

PUBLISHED_WEIGHTS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "nyuv2": (("seg13", 1.0), ("depth", 3.0), ("normals", 20.0)),
}
"""As in :func:`disparse_structured.lab.datasets.nyuv2_tasks`: DiSparse's, and AdaShare's for depth."""


@dataclass(frozen=True)
class Setup:
    """The network and the training on one data set.

    Args:
        dataset: ``"nyuv2"`` (segmentation, depth, normals) or ``"cards"`` (four classifications).
        size: (H, W) of the images.
        backbone: a timm model, or ``"deeplab"``: the paper's resnet34 at output stride 8 with ASPP heads.
        options: for timm's ``create_model``.
        head_width: channels inside a dense head.
        epochs, lr: of the dense network, and of networks pruned at initialization, while training or rewound.
        finetune_epochs, finetune_lr: after pruning a trained network, the stages of iterative pruning
            included.
        scored_batches: training batches that saliency is measured on.
        every: optimizer steps between two updates of the dynamic regime.
        samples: how many training samples are used; None for all.
        weights: of the tasks' losses in training; 1 for tasks that are not named.
    """

    dataset: str
    size: tuple[int, int]
    backbone: str
    options: tuple[tuple[str, tuple[int, ...] | int], ...] = ()
    head_width: int = 24
    epochs: int = 14
    lr: float = 4e-3
    finetune_epochs: int = 3
    finetune_lr: float = 1e-3
    batch_size: int = 16
    scored_batches: int = 12
    every: int = 100
    samples: int | None = None
    weights: tuple[tuple[str, float], ...] = ()

    def published(self) -> Setup:
        """The same with the loss weights of the paper, where it has any for this data set."""
        return replace(self, weights=PUBLISHED_WEIGHTS.get(self.dataset, ()))


@dataclass(frozen=True)
class Scale:
    """One size of all tables: a setup for each data set, and what is compared.

    Args:
        name: its name on the command line and in file names.
        setups: one for each data set.
        seeds: how many, from 0.
        removed: shares of the MACs to remove.
        methods: ``"regime/name"``; empty for all methods.
    """

    name: str
    setups: tuple[Setup, ...]
    seeds: int = 3
    removed: tuple[float, ...] = REMOVED
    methods: tuple[str, ...] = ()

    def setup(self, dataset: str) -> Setup:
        """The setup of one data set; raises :class:`KeyError` if the scale has none for it."""
        return {setup.dataset: setup for setup in self.setups}[dataset]


_SMALL = (("channels", (24, 48, 96, 192)), ("stem_width", 16))
_SMALLER = (("channels", (16, 32, 64, 128)), ("stem_width", 16))

NYUV2 = Setup("nyuv2", (32, 48), "resnet10t", _SMALL)
CARDS = Setup(
    "cards",
    (24, 15),
    "resnet10t",
    _SMALLER,
    epochs=8,
    lr=3e-3,
    finetune_epochs=2,
    finetune_lr=1e-3,
    batch_size=48,
    scored_batches=8,
)
DEEPLAB = Setup(
    "nyuv2",
    (96, 128),
    "deeplab",
    head_width=256,
    epochs=40,
    lr=1e-3,
    finetune_epochs=8,
    finetune_lr=3e-4,
    scored_batches=16,
)

SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("desk", (NYUV2, CARDS)),
        Scale(
            "quick",
            (
                replace(NYUV2, epochs=8, finetune_epochs=2),
                replace(CARDS, epochs=4, finetune_epochs=1, scored_batches=4, samples=1620, every=30),
            ),
            seeds=1,
            removed=REMOVED[:1],
        ),
        Scale("paper", (DEEPLAB,)),
    )
}
"""``desk`` for two cores in a little over an hour, ``quick`` for ten minutes, ``paper`` for a GPU."""
