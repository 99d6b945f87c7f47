"""Cityscapes (Cordts et al., CVPR 2016): segmentation, and depth as its inverse, the disparity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from disparse_structured.lab.datasets.fields import ClassLabels, DepthMap, Field, Picture
from disparse_structured.lab.datasets.files import by_stem, folder, joined, read_index
from disparse_structured.lab.datasets.samples import IMAGE, Samples, chosen

# Ids of the benchmark's 19 classes in the order of their train ids, and the category of each (flat,
# construction, object, nature, sky, human, vehicle), from cityscapesScripts' helpers/labels.py.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CATEGORIES = (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6)
LABEL_IDS: Mapping[int, Mapping[int, int]] = {
    19: dict(zip(_IDS, range(19), strict=True)),
    7: dict(zip(_IDS, _CATEGORIES, strict=True)),
}
"""By number of classes: from the id in ``*_gtFine_labelIds.png`` to the class. Other ids are void."""

_ORIGINAL = {
    IMAGE: ("leftImg8bit", "_leftImg8bit.png"),
    "segmentation": ("gtFine", "_gtFine_labelIds.png"),
    "depth": ("disparity", "_disparity.png"),
}
_ORIGINAL_LAYOUT = (
    "<root>/{leftImg8bit,gtFine,disparity}/<split>/<city>/<frame>"
    "{_leftImg8bit,_gtFine_labelIds,_disparity}.png"
)
_MTAN_LAYOUT = "<root>/<train|val>/{image,label_<classes>,depth}/<number>.npy"
ADASHARE_INDEX = "cityscape.json"
_INVERSE_DEPTH = DepthMap(least=3e-5)  # AdaShare and DiSparse ignore smaller values


def cityscapes(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    classes: int = 19,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Samples:
    """The original folders ``leftImg8bit``, ``gtFine`` and ``disparity``: 1024 × 2048 pixels.

    ``depth`` is the disparity in pixels of the original image, (p - 1) / 256 for a 16-bit value p > 0:
    proportional to the inverse of the depth, 0 = unknown (or infinitely far). ``size`` does not scale it.

    Args:
        root: the folder that holds ``leftImg8bit``.
        split: ``"train"``, ``"val"`` or ``"test"`` (whose labels are all void).
        tasks: any of ``"segmentation"`` and ``"depth"``; both by default.
        classes: 19, or their 7 categories.
        size: see :class:`~disparse_structured.lab.datasets.samples.Samples`.
        flip: see there.

    Raises:
        DataError: a folder is missing, or a frame lacks one of its files.
        ValueError: ``tasks`` names another task, or there are no labels of ``classes`` classes.
    """
    ids = LABEL_IDS[_one_of(classes, tuple(LABEL_IDS))]
    there: dict[str, Field] = {
        IMAGE: Picture(),
        "segmentation": ClassLabels(classes, ids),
        "depth": DepthMap(1 / 256, offset=1),
    }
    fields = chosen(tasks, there)
    found = {name: _frames(Path(root) / _ORIGINAL[name][0] / split, _ORIGINAL[name][1]) for name in fields}
    return Samples(fields, joined(found, _ORIGINAL_LAYOUT), size=size, flip=flip)


def cityscapes_mtan(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    classes: int = 7,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Samples:
    """The folder of MTAN (Liu et al., CVPR 2019), which LibMTL uses too: 128 × 256 or 256 × 512 pixels.

    ``<root>/<train|val>/{image,label_<classes>,depth}/<number>.npy``: images ``[H, W, 3]`` in 0..1,
    labels ``[H, W]`` with -1 for void (in ``label`` where there is no ``label_<classes>``), and the
    inverse depth ``[H, W, 1]`` in MTAN's own unit, 0 = unknown.

    Args and errors are those of :func:`cityscapes`; ``classes`` is 2, 7 or 19.
    """
    there: dict[str, Field] = {
        IMAGE: Picture(),
        "segmentation": ClassLabels(_one_of(classes, (2, 7, 19))),
        "depth": _INVERSE_DEPTH,
    }
    fields = chosen(tasks, there)
    base = folder(Path(root) / split, _MTAN_LAYOUT)
    named = f"label_{classes}"
    labels = named if (base / named).is_dir() or not (base / "label").is_dir() else "label"
    folders = {IMAGE: "image", "segmentation": labels, "depth": "depth"}
    found = {name: by_stem(base / folders[name], ".npy", _MTAN_LAYOUT) for name in fields}
    return Samples(fields, joined(found, _MTAN_LAYOUT), size=size, flip=flip)


def cityscapes_adashare(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    classes: int = 19,
    size: tuple[int, int] | None = None,
    flip: bool = False,
) -> Samples:
    """The folder of AdaShare (Sun et al., NeurIPS 2020) and DiSparse: MTAN's arrays with an index.

    ``<root>/cityscape.json`` maps each split to rows of paths [image, depth, label2, label7, label19].

    Args and errors are those of :func:`cityscapes`; ``classes`` is 2, 7 or 19.
    """
    labels = f"label{_one_of(classes, (2, 7, 19))}"
    there: dict[str, Field] = {
        IMAGE: Picture(),
        "segmentation": ClassLabels(classes),
        "depth": _INVERSE_DEPTH,
    }
    fields = chosen(tasks, there)
    columns = (IMAGE, "depth", "label2", "label7", "label19")
    rows = read_index(Path(root) / ADASHARE_INDEX, split, columns)
    column = {IMAGE: IMAGE, "segmentation": labels, "depth": "depth"}
    files = [{name: Path(root) / row[column[name]] for name in fields} for row in rows]
    return Samples(fields, files, size=size, flip=flip)


def _frames(base: Path, suffix: str) -> dict[str, Path]:
    cities = [city for city in folder(base, _ORIGINAL_LAYOUT).iterdir() if city.is_dir()]
    return {
        f"{city.name}/{frame}": path
        for city in cities
        for frame, path in by_stem(city, suffix, _ORIGINAL_LAYOUT).items()
    }


def _one_of(classes: int, there: tuple[int, ...]) -> int:
    if classes not in there:
        raise ValueError(
            f"classes is {classes}; there are labels of {', '.join(map(str, there))} classes. Choose one."
        )
    return classes
