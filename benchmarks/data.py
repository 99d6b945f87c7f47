"""Real data in memory: the NYU-v2 pack (dense tasks) and the set-cards pack (classification).

The packs are not in the repository. They are read from the folder that the environment variable
``DISPARSE_DATA`` names, by default ``../shared/data`` beside the repository. Each is one ``.npz`` file with
the arrays in :data:`NYUV2_ARRAYS` or :data:`CARD_ARRAYS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Batch = dict[str, Tensor]

VARIABLE = "DISPARSE_DATA"
NYUV2_FILE = "nyuv2/train.npz"
NYUV2_ARRAYS = ("rgb", "seg13", "depth", "normals", "edges", "is_val")
CARD_FILE = "setcards/setcards.npz"
CARD_TASKS = ("number", "colour", "shading", "shape")
CARD_ARRAYS = ("rgb", *CARD_TASKS, "split")
CARD_SPLITS = ("train", "val", "test", "shift")

# Mean and standard deviation of ImageNet in 0..1, as timm's backbones were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class DataError(Exception):
    """A data pack cannot be used."""


class DataMissing(DataError):
    """A data pack is missing."""


@dataclass(frozen=True, eq=False)
class Samples:
    """All samples of a split in memory: a tensor ``[N, ...]`` for each name."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: slice | Tensor) -> Batch:
        return {name: values[index] for name, values in self.tensors.items()}


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of ``samples``, drawn again at every iteration; a last batch that is not full is kept.

    Order and augmentation follow torch's global random state, so seeding it repeats the epochs.
    """

    samples: Samples
    batch_size: int
    shuffle: bool = False
    augment: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.samples)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for indices in order.split(self.batch_size):
            batch = self.samples[indices]
            yield batch if self.augment is None else self.augment(batch)


def data_folder() -> Path:
    """``$DISPARSE_DATA``, or ``../shared/data`` beside the repository. It need not exist."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def nyuv2(split: str, size: tuple[int, int] = (48, 64)) -> Samples:
    """NYU Depth V2 (Silberman et al., ECCV 2012), ``split`` ``"train"`` or ``"val"``, at ``size`` (H, W).

    - ``image``: float32 ``[N, 3, H, W]``, normalized by :data:`MEAN` and :data:`STD`, mean over areas;
    - ``seg13``: int64 ``[N, H, W]``, 13 classes, 255 = not annotated, nearest pixel;
    - ``depth``: float32 ``[N, 1, H, W]``, metres, 0 = unknown, mean of the known pixels of each area;
    - ``normals``: float32 ``[N, 3, H, W]``, unit (x right, y down, z forward), (0, 0, 0) = unknown, mean
      of the known pixels, made unit again;
    - ``edges``: float32 ``[N, 1, H, W]``, 1 where the area holds a boundary pixel.

    Raises:
        DataMissing: the file is not there.
        DataError: it lacks an array, or has no sample of the split.
        ValueError: another split, or a size below 1 x 1.
    """
    _one_of(split, ("train", "val"))
    if min(size) < 1:
        raise ValueError(f"size is (H, W) = {size}; both must be at least 1 pixel.")
    arrays = _read(NYUV2_FILE, NYUV2_ARRAYS)
    rows = _rows(arrays["is_val"] == (split == "val"), NYUV2_FILE, split)
    known = torch.from_numpy(arrays["normals"][rows]).float()
    return Samples(
        {
            "image": _image(arrays["rgb"][rows], size),
            "seg13": _nearest(torch.from_numpy(arrays["seg13"][rows]).long(), size),
            "depth": _masked_mean(torch.from_numpy(arrays["depth"][rows]).float()[:, None], size),
            "normals": _unit(_masked_mean(_unit(known), size)),
            "edges": F.adaptive_max_pool2d(torch.from_numpy(arrays["edges"][rows]).float()[:, None], size),
        }
    )


def cards(split: str) -> Samples:
    """Photographs of SET cards (Tom White, set-game, 2017) with four attributes of three classes each.

    ``image`` is float32 ``[N, 3, 64, 40]``, normalized as in :func:`nyuv2`; ``number``, ``colour``,
    ``shading`` and ``shape`` are int64 ``[N]``. Splits: ``"train"``, ``"val"``, ``"test"`` (other
    photographs) and ``"shift"`` (another camera). Raises as :func:`nyuv2` does.
    """
    _one_of(split, CARD_SPLITS)
    arrays = _read(CARD_FILE, CARD_ARRAYS)
    rows = _rows(arrays["split"] == CARD_SPLITS.index(split), CARD_FILE, split)
    rgb = arrays["rgb"][rows]
    labels = {name: torch.from_numpy(arrays[name][rows]).long() for name in CARD_TASKS}
    return Samples({"image": _image(rgb, (rgb.shape[2], rgb.shape[3])), **labels})


def flip(batch: Batch) -> Batch:
    """Mirror a random half of a batch of :func:`nyuv2` left to right; normals turn their x with it."""
    mirrored = torch.rand(len(batch["image"])) < 0.5
    flipped = {name: _where(mirrored, values.flip(-1), values) for name, values in batch.items()}
    normals = flipped["normals"]
    turned = normals * normals.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
    return flipped | {"normals": _where(mirrored, turned, normals)}


def _read(name: str, arrays: tuple[str, ...]) -> dict[str, np.ndarray]:
    path = data_folder() / name
    if not path.is_file():
        raise DataMissing(
            f"{path} is not there. Set the environment variable {VARIABLE} to the folder that holds {name}, "
            f"an .npz file with the arrays {', '.join(arrays)}."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            lacking = [array for array in arrays if array not in file.files]
            if lacking:
                raise DataError(f"{path} holds the arrays {file.files}, but lacks {', '.join(lacking)}.")
            return {array: file[array] for array in arrays}
    except (BadZipFile, ValueError) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays: {error}. Fetch it again.") from error


def _rows(chosen: np.ndarray, name: str, split: str) -> np.ndarray:
    rows = np.flatnonzero(chosen)
    if not len(rows):
        raise DataError(f"{name} has no sample of the split {split!r}.")
    return rows


def _one_of(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ValueError(f"split is {split!r}; there are {', '.join(splits)}.")


def _image(rgb: np.ndarray, size: tuple[int, int]) -> Tensor:
    image = F.adaptive_avg_pool2d(torch.from_numpy(rgb).float() / 255, size)
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, height[:, None], width]


def _masked_mean(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over areas of the pixels that are not 0 in all channels; 0 where there is none."""
    known = (values != 0).any(1, keepdim=True).float()
    share = F.adaptive_avg_pool2d(known, size)
    return F.adaptive_avg_pool2d(values * known, size) / torch.where(share > 0, share, 1.0)


def _unit(vectors: Tensor) -> Tensor:
    """Vectors along dimension 1 to length 1; those that (nearly) canceled out become (0, 0, 0)."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-3, vectors / length.clamp(min=1e-3), 0.0)


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (yes.dim() - 1)), yes, no)
