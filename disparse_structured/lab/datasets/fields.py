"""From the array in a file to the tensor that losses and metrics take, one class per kind of ground truth.

All of them check their input: a file of another layout raises an error that names it, rather than give
a wrong number in a table.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from disparse_structured.errors import DataError
from disparse_structured.lab.losses import IGNORED_LABEL

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's RGB in 0..1, which timm's trunks were trained with."""


class Field(abc.ABC):
    """How one entry of a sample is decoded, resized and mirrored."""

    @abc.abstractmethod
    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """The tensor ``[..., H, W]`` for the ``array`` in the file ``path``; raises :class:`DataError`."""

    def resize(self, tensor: Tensor, size: tuple[int, int]) -> Tensor:
        """To ``[..., *size]`` by the nearest pixel, which never mixes known with unknown or two classes."""
        height, width = (
            ((torch.arange(new) + 0.5) * old / new).long()
            for new, old in zip(size, tensor.shape[-2:], strict=True)
        )
        return tensor[..., height[:, None], width]

    def mirror(self, tensor: Tensor) -> Tensor:
        """Left to right."""
        return tensor.flip(-1)


@dataclass(frozen=True)
class Picture(Field):
    """float32 ``[3, H, W]``, normalized by ImageNet's mean and deviation, from RGB in 0..255 or 0..1."""

    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """See :meth:`Field.decode`."""
        pixels = _channels(array, 3, path)
        if array.dtype == np.uint8:
            pixels = pixels / 255
        elif not np.issubdtype(array.dtype, np.floating) or not -0.01 <= pixels.min() <= pixels.max() <= 1.01:
            raise DataError(
                f"{path} holds {array.dtype} from {array.min()} to {array.max()}; expected an RGB image in "
                "uint8, or floating-point in 0..1."
            )
        return (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)

    def resize(self, tensor: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear, with antialiasing."""
        return F.interpolate(tensor[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


@dataclass(frozen=True)
class ClassLabels(Field):
    """int64 ``[H, W]``: classes ``0 .. classes - 1``, and 255 for void.

    Args:
        classes: how many there are.
        ids: the class of each id in the file; ids that are not named are void. By default ids are
            classes, and -1 and 255 are void.
    """

    classes: int
    ids: Mapping[int, int] | None = None

    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """See :meth:`Field.decode`."""
        found = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
        if found.ndim != 2:
            raise DataError(f"{path} has shape {array.shape}; expected labels [H, W].")
        labels = found.astype(np.int64)
        if not np.array_equal(labels, found):
            raise DataError(f"{path} holds values that are not integers; expected class labels.")
        if self.ids is not None:
            classes = np.full_like(labels, IGNORED_LABEL)
            for number, target in self.ids.items():
                classes[labels == number] = target
            return torch.from_numpy(classes)
        labels[labels == -1] = IGNORED_LABEL
        known = labels[labels != IGNORED_LABEL]
        if known.size and not 0 <= known.min() <= known.max() < self.classes:
            raise DataError(
                f"{path} holds labels from {known.min()} to {known.max()}; expected 0 to {self.classes - 1}, "
                "and -1 or 255 for void. Pass the number of classes that the files have."
            )
        return torch.from_numpy(labels)


@dataclass(frozen=True)
class DepthMap(Field):
    """float32 ``[1, H, W]``, above 0 where it is known, else 0.

    Args:
        scale: a file's value, less ``offset``, times this is the depth.
        offset: subtracted first.
        least: values up to here are unknown, and so are non-finite ones.
        unknown: values from here on are unknown.
        log_of: the depth is log(1 + value) / log(``log_of``) instead, in 0..1.
    """

    scale: float = 1.0
    offset: float = 0.0
    least: float = 0.0
    unknown: float = float("inf")
    log_of: float | None = None

    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """See :meth:`Field.decode`."""
        values = _channels(array, 1, path).double()
        known = (values > self.least) & (values < self.unknown)
        if self.log_of is None:
            depth = (values - self.offset) * self.scale
        else:
            depth = (values.clamp(min=0) + 1).log() / float(np.log(self.log_of))
        return torch.where(known, depth, 0.0).clamp(min=0).float()


@dataclass(frozen=True)
class NormalVectors(Field):
    """float32 ``[3, H, W]``, of length 1, or (0, 0, 0) where unknown; x points right.

    Floating-point files hold the vectors; uint8 ones hold them as 127.5 + 127.5 × component, where one
    shorter than a half is not a normal but a marker, such as the gray (127, 127, 127) of Taskonomy.

    Args:
        void: pixels with this value in a channel are unknown.
        centered: with False, uint8 values are taken as they are, all positive: what DiSparse's and
            AdaShare's code does on NYU-v2. Angles between such vectors are much smaller than between
            normals, so use it only to compare with their tables.
    """

    void: int | None = None
    centered: bool = True

    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """See :meth:`Field.decode`."""
        values = _channels(array, 3, path)
        coded = array.dtype == np.uint8
        vectors = values / 127.5 - 1 if coded and self.centered else values
        length = vectors.norm(dim=0, keepdim=True)
        known = length.isfinite() & (length > (0.5 if coded else 1e-6))
        if self.void is not None:
            known &= (values != self.void).all(dim=0, keepdim=True)
        return torch.where(known, vectors / length, 0.0)

    def mirror(self, tensor: Tensor) -> Tensor:
        """Left to right; what pointed right then points left."""
        flipped = tensor.flip(-1)
        return flipped * flipped.new_tensor([-1.0, 1.0, 1.0]).view(3, 1, 1) if self.centered else flipped


@dataclass(frozen=True)
class Heat(Field):
    """float32 ``[1, H, W]``: 16-bit values, ``0 .. top`` of the full scale stretched to -1..1 and clipped.

    The scaling of keypoints and edges in Taskonomy's and AdaShare's code.
    """

    top: float

    def decode(self, array: np.ndarray, path: Path) -> Tensor:
        """See :meth:`Field.decode`."""
        share = _channels(array, 1, path).double() / 2**16
        return (share.clamp(0, self.top) / self.top * 2 - 1).float()


def _channels(array: np.ndarray, count: int, path: Path) -> Tensor:
    """``array [H, W, count]`` (or ``[H, W]`` for one channel) as float32 ``[count, H, W]``."""
    pixels = array[..., None] if array.ndim == 2 and count == 1 else array
    if pixels.ndim != 3 or pixels.shape[-1] != count:
        raise DataError(f"{path} has shape {array.shape}; expected [H, W, {count}].")
    if not np.issubdtype(array.dtype, np.number):
        raise DataError(f"{path} holds {array.dtype}; expected numbers.")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32))
