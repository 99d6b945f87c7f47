"""Files and folders of data sets, read with errors that name the path and what was expected there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from disparse_structured.errors import DataError, require


def folder(path: Path, layout: str) -> Path:
    """``path``, refused if it is not a folder; ``layout`` describes the expected tree."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder. The layout is {layout}. Check the root and the split.")
    return path


def read_array(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file, or the pixels ``[H, W]`` or ``[H, W, channels]`` of a picture."""
    if path.suffix != ".npy":
        require("images", "PIL")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        from PIL import Image  # an extra

        with Image.open(path) as picture:
            return np.array(picture)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Fetch it, or leave its task out with tasks=.") from None
    except (
        OSError,
        ValueError,
        EOFError,
        ImportError,
    ) as error:  # what the libraries raise for damaged files
        # Ultralytics, once imported, makes Image.open look for one more decoder, which may be missing.
        reason = (error.__context__ or error) if isinstance(error, ImportError) else error
        raise DataError(
            f"{path} cannot be read as {'an array' if path.suffix == '.npy' else 'a picture'} "
            f"({type(reason).__name__}: {reason}). Fetch it again."
        ) from error


def read_index(path: Path, split: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a split in an AdaShare index: a JSON object from split to lists of relative paths.

    Raises :class:`DataError` if the file, the split, or a row of ``columns`` paths is missing.
    """
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({type(error).__name__}: {error}). It should map each split to "
            f"rows of paths [{', '.join(columns)}], relative to its folder."
        ) from error
    if not isinstance(index, Mapping) or not index.get(split):
        found = sorted(index) if isinstance(index, Mapping) else type(index).__name__
        raise DataError(f"{path} holds no sample of the split {split!r}; it has {found}.")
    for number, row in enumerate(index[split]):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(
                f"{path}, split {split!r}, row {number} is {row!r}; expected the {len(columns)} paths "
                f"[{', '.join(columns)}]."
            )
    return [dict(zip(columns, row, strict=True)) for row in index[split]]


def _natural(key: str) -> list[tuple[int, str]]:
    """Text and numbers in turn: ``view_10`` comes after ``view_9``."""
    parts = re.split(r"(\d+)", key)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def by_stem(path: Path, suffix: str, layout: str) -> dict[str, Path]:
    """The files in the folder ``path`` whose names end in ``suffix``, by what comes before it."""
    files = folder(path, layout).iterdir()
    return {file.name[: -len(suffix)]: file for file in files if file.name.endswith(suffix)}


def joined(
    found: Mapping[str, Mapping[str, Path]], layout: str, *, skip: bool = False
) -> list[dict[str, Path]]:
    """One ``{task: file}`` per sample, for samples with a file in every entry of ``found``.

    Samples are sorted by key, with numbers compared as numbers.

    Args:
        found: task to the files of all samples, by the sample's key.
        layout: the expected tree, for errors.
        skip: leave out samples that lack a file, instead of refusing them.

    Raises:
        DataError: there is no sample, or one lacks a file.
    """
    samples = []
    for key in sorted({key for files in found.values() for key in files}, key=_natural):
        lacking = [task for task, files in found.items() if key not in files]
        if not lacking:
            samples.append({task: files[key] for task, files in found.items()})
        elif not skip:
            counts = ", ".join(f"{len(files)} of {task}" for task, files in found.items())
            there = next(files[key] for files in found.values() if key in files)
            raise DataError(
                f"{there} has no counterpart for {lacking[0]!r}: found {counts} files. "
                f"The layout is {layout}. Fetch what is missing, or leave the task out with tasks=."
            )
    if not samples:
        raise DataError(f"no sample was found. The layout is {layout}. Check the root and the split.")
    return samples
