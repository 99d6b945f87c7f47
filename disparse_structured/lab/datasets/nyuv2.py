"""NYU Depth V2 (Silberman et al., ECCV 2012) as it is distributed for multi-task work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from disparse_structured.lab.datasets.fields import ClassLabels, DepthMap, NormalVectors, Picture
from disparse_structured.lab.datasets.files import by_stem, joined, read_index
from disparse_structured.lab.datasets.samples import IMAGE, Samples, chosen

_MTAN = "<root>/<train|val>/{image,label,depth,normal}/<number>.npy"
_MTAN_FOLDERS = {IMAGE: "image", "segmentation": "label", "normals": "normal", "depth": "depth"}
ADASHARE_INDEX = "nyu_v2_3task.json"


def nyuv2_mtan(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    classes: int = 13,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Samples:
    """The folder of MTAN (Liu et al., CVPR 2019), which LibMTL and Auto-λ use too: 288 × 384 pixels.

    ``<root>/<train|val>/{image,label,depth,normal}/<number>.npy``: images ``[H, W, 3]`` in 0..1, labels
    ``[H, W]`` with -1 for void, depth ``[H, W, 1]`` in meters with 0 for unknown, normals ``[H, W, 3]``
    with (0, 0, 0) for unknown.

    Args:
        root: the folder that holds ``train`` and ``val``.
        split: ``"train"`` or ``"val"``.
        tasks: any of ``"segmentation"``, ``"normals"`` and ``"depth"``; all by default.
        classes: 13 in MTAN's files.
        size: see :class:`~disparse_structured.lab.datasets.samples.Samples`.
        flip: see there.

    Raises:
        DataError: a folder is missing, or a sample lacks one of its files.
        ValueError: ``tasks`` names another task.
    """
    fields = chosen(
        tasks,
        {
            IMAGE: Picture(),
            "segmentation": ClassLabels(classes),
            "normals": NormalVectors(),
            "depth": DepthMap(),
        },
    )
    base = Path(root) / split
    found = {name: by_stem(base / _MTAN_FOLDERS[name], ".npy", _MTAN) for name in fields}
    return Samples(fields, joined(found, _MTAN), size=size, flip=flip)


def nyuv2_adashare(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    classes: int = 40,
    centered: bool = True,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Samples:
    """The folder of AdaShare (Sun et al., NeurIPS 2020) and DiSparse: 480 × 640 pixels.

    ``<root>/nyu_v2_3task.json`` maps each split to rows of paths [image, segmentation, normals, depth]:
    PNG images, 8-bit labels of 40 classes with 255 for void, 8-bit normals with 255 for unknown, and
    ``.npy`` depth ``[H, W]`` in meters.

    Args:
        root: the folder of the index.
        split: a split in the index, such as ``"train"`` or ``"test"``.
        tasks: any of ``"segmentation"``, ``"normals"`` and ``"depth"``; all by default.
        classes: number of classes of the labels.
        centered: see :class:`~disparse_structured.lab.datasets.fields.NormalVectors`: False repeats how the
            two papers measure angles.
        size: see :class:`~disparse_structured.lab.datasets.samples.Samples`.
        flip: see there.

    Raises:
        DataError: the index is missing, has no such split, or a row of another length.
        ValueError: ``tasks`` names another task.
    """
    fields = chosen(
        tasks,
        {
            IMAGE: Picture(),
            "segmentation": ClassLabels(classes),
            "normals": NormalVectors(void=255, centered=centered),
            # AdaShare pads with 255, and no room is that long.
            "depth": DepthMap(unknown=255.0),
        },
    )
    columns = (IMAGE, "segmentation", "normals", "depth")
    rows = read_index(Path(root) / ADASHARE_INDEX, split, columns)
    files = [{name: Path(root) / row[name] for name in fields} for row in rows]
    return Samples(fields, files, size=size, flip=flip)
