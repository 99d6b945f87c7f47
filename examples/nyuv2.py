"""Three dense tasks on the NYU-v2 pack, for ``disparse train`` and ``disparse relate``.

From the repository's root, with the pack where ``benchmarks/data.py`` looks for it::

    disparse train --regime static --model examples/nyuv2.py:build --tasks examples/nyuv2.py:tasks \
        --data examples/nyuv2.py:loader --macs 0.3 --epochs 6 --lr 2e-3 --out small
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks' data readers

from benchmarks.data import Loader, flip, nyuv2
from disparse_structured.adapters.timm import DenseHead, multitask
from disparse_structured.lab.datasets import dataset_tasks, nyuv2_tasks

SIZE = (48, 64)
SPECS = {name if name != "segmentation" else "seg13": spec for name, spec in nyuv2_tasks(classes=13).items()}


def build() -> nn.Module:
    """An untrained resnet10t with a pyramid head a task."""
    heads = {name: DenseHead(spec.outputs, 32, (-4, -3, -2, -1)) for name, spec in SPECS.items()}
    return multitask("resnet10t", heads, image_size=SIZE)


def tasks():
    """Losses and the published weights."""
    return dataset_tasks(SPECS)


def loader() -> Loader:
    """Training images, mirrored at random."""
    return Loader(nyuv2("train", SIZE), 16, shuffle=True, augment=flip)


def validation() -> Loader:
    """The validation images."""
    return Loader(nyuv2("val", SIZE), 32)
