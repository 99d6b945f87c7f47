"""Taskonomy (Zamir et al., CVPR 2018) and its tiny split: five dense tasks on views of buildings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from disparse_structured.errors import DataError
from disparse_structured.lab.datasets.fields import ClassLabels, DepthMap, Field, Heat, NormalVectors, Picture
from disparse_structured.lab.datasets.files import folder, joined, read_index
from disparse_structured.lab.datasets.samples import IMAGE, Samples, chosen

CLASSES = 17
"""16 objects and "background"; the 18th label of the files is "uncertain", which is void here."""

TINY: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("allensville", "beechwood", "benevolence", "coffeen", "cosmos", "forkland", "hanson"),
        *("hiteman", "klickitat", "lakeville", "leonardo", "lindenwood", "marstons", "merom"),
        *("mifflinburg", "newfields", "onaga", "pinesdale", "pomaria", "ranchester", "shelbyville"),
        *("stockman", "tolstoy", "wainscott", "woodbine"),
    ),
    "val": ("collierville", "corozal", "darden", "markleeville", "wiconisco"),
    "test": ("ihlen", "mcdade", "muleshoe", "noxapater", "uvalda"),
}
"""The buildings of each split of Tiny-Taskonomy."""

ADASHARE_INDEX = "taskonomy.json"
_LAYOUT = (
    "<root>/<domain>/<building>, <root>/<domain>/taskonomy/<building> or <root>/<building>/<domain>, each "
    "with files point_<number>_view_<number>_domain_<name>.png; domains: "
)
_VIEW = re.compile(r"point_(\d+)_view_(\d+)_domain_\w+\.png")
DepthKind = Literal["euclidean", "zbuffer"]


def taskonomy(
    root: str | Path,
    buildings: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    depth: DepthKind = "euclidean",
    log_depth: bool = False,
    skip_incomplete: bool = False,
    size: tuple[int, int] | None = (256, 256),
    flip: bool = False,
) -> Samples:
    """The folders in which Taskonomy and Omnidata are downloaded: 512 × 512 pixels.

    Under each of the domains ``rgb``, ``segment_semantic``, ``normal``, ``depth_<kind>``,
    ``keypoints2d`` and ``edge_texture``, one folder per building (or one per domain under each
    building), with files ``point_<p>_view_<v>_domain_<name>.png``.

    - ``segmentation``: 17 classes (files: 1 to 17; 0, "uncertain", is void);
    - ``normals``: unit (files: 8 bits around 127.5);
    - ``depth``: meters (files: 16 bits, 1/512 m; from 64500 on unknown), or with ``log_depth``
      log(1 + p) / log(2 ** 16) of the value p, as AdaShare and DiSparse train and measure it;
    - ``keypoints``, ``edges``: 16 bits, 0..0.005 and 0..0.08 of the full scale stretched to -1..1.

    Args:
        root: the folder of the domains, or of the buildings.
        buildings: their names, such as ``TINY["train"]``.
        tasks: any of the five above; all by default.
        depth: ``"euclidean"`` (length of the ray) or ``"zbuffer"`` (along the optical axis).
        log_depth: see above.
        skip_incomplete: leave out views that lack a file, as some of the published ones do.
        size: see :class:`~disparse_structured.lab.datasets.samples.Samples`.
        flip: see there.

    Raises:
        DataError: a building's folder is missing, or a view lacks one of its files.
        ValueError: ``tasks`` names another task, or no building is named.
    """
    if not buildings or isinstance(buildings, str):
        raise ValueError(f"buildings is {buildings!r}; name a list of them, such as TINY['train'].")
    fields = chosen(tasks, _fields(log_depth))
    domains = {
        IMAGE: "rgb",
        "segmentation": "segment_semantic",
        "normals": "normal",
        "depth": f"depth_{depth}",
        "keypoints": "keypoints2d",
        "edges": "edge_texture",
    }
    layout = _LAYOUT + ", ".join(domains[name] for name in fields)
    found: dict[str, dict[str, Path]] = {name: {} for name in fields}
    for building in buildings:
        for name in fields:
            for path in _folder(Path(root), domains[name], building, layout).iterdir():
                if view := _VIEW.fullmatch(path.name):
                    found[name][f"{building}/{view[1]}/{view[2]}"] = path
    return Samples(fields, joined(found, layout, skip=skip_incomplete), size=size, flip=flip)


def taskonomy_adashare(
    root: str | Path,
    split: str,
    *,
    tasks: Sequence[str] | None = None,
    log_depth: bool = False,
    size: tuple[int, int] | None = (256, 256),
    flip: bool = False,
) -> Samples:
    """The views that AdaShare (Sun et al., NeurIPS 2020) and DiSparse list in ``<root>/taskonomy.json``.

    The file maps each split to rows of paths [rgb, segment_semantic, normal, depth, keypoints2d,
    edge_texture], each ``<building>/<domain>/<file>``; a missing file is looked for at
    ``<domain>/taskonomy/<building>/<file>``, where Omnidata has it. The rest is as in :func:`taskonomy`.

    Raises:
        DataError: the index is missing, has no such split, or a row of another length.
        ValueError: ``tasks`` names another task.
    """
    fields = chosen(tasks, _fields(log_depth))
    columns = (IMAGE, "segmentation", "normals", "depth", "keypoints", "edges")
    rows = read_index(Path(root) / ADASHARE_INDEX, split, columns)
    files = [{name: _indexed(Path(root), row[name]) for name in fields} for row in rows]
    return Samples(fields, files, size=size, flip=flip)


def _fields(log_depth: bool) -> dict[str, Field]:
    unknown = 64500.0
    depth = DepthMap(unknown=unknown, log_of=2.0**16) if log_depth else DepthMap(1 / 512, unknown=unknown)
    return {
        IMAGE: Picture(),
        "segmentation": ClassLabels(CLASSES, {number + 1: number for number in range(CLASSES)}),
        "normals": NormalVectors(),
        "depth": depth,
        "keypoints": Heat(0.005),
        "edges": Heat(0.08),
    }


def _folder(root: Path, domain: str, building: str, layout: str) -> Path:
    places = (root / domain / building, root / domain / "taskonomy" / building, root / building / domain)
    there = [place for place in places if place.is_dir()]
    return there[0] if there else folder(places[0], layout)


def _indexed(root: Path, path: str) -> Path:
    parts = Path(path).parts
    if len(parts) != 3:
        raise DataError(
            f"{root / ADASHARE_INDEX} names {path!r}; expected <building>/<domain>/<file>, relative to its "
            "folder."
        )
    building, domain, file = parts
    elsewhere = root / domain / "taskonomy" / building / file
    return elsewhere if not (root / path).exists() and elsewhere.exists() else root / path
