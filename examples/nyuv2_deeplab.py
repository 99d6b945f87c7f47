"""DiSparse's network for NYU-v2, DeepLab-ResNet34 with its two tasks, for ``disparse relate`` and ``train``.

From the repository's root, with the pack where ``benchmarks/data.py`` looks for it::

    disparse relate --model examples/nyuv2_deeplab.py:build --tasks examples/nyuv2_deeplab.py:tasks \
        --data examples/nyuv2_deeplab.py:loader --level weight --batches 4 --out related
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks' data readers

from benchmarks.data import Loader, flip, nyuv2
from disparse_structured.adapters.deeplab import deeplab
from disparse_structured.lab.datasets import dataset_tasks, nyuv2_tasks

SIZE = (96, 128)
NAMES = {"segmentation": "seg13", "normals": "normals"}  # the paper's tasks; the pack's names
SPECS = {name: nyuv2_tasks(classes=13)[task] for task, name in NAMES.items()}


def build() -> nn.Module:
    """Untrained, at output stride 8."""
    return deeplab({name: spec.outputs for name, spec in SPECS.items()}, image_size=SIZE)


def tasks():
    """Losses and the published weights."""
    return dataset_tasks(SPECS)


def loader() -> Loader:
    """Training images, mirrored at random."""
    return Loader(nyuv2("train", SIZE), 8, shuffle=True, augment=flip)
