"""Dense samples on disk as a torch data set of dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from disparse_structured.errors import DataError
from disparse_structured.lab.datasets.fields import Field
from disparse_structured.lab.datasets.files import read_array

IMAGE = "image"
"""The key of a sample's image."""


class Samples(Dataset[dict[str, Tensor]]):
    """Samples ``{"image": [3, H, W], task: [channels, H, W] or [H, W], ...}``, read from files on access.

    Conventions are those of :mod:`disparse_structured.lab.losses`: void labels are 255, an unknown
    depth is 0, an unknown normal is (0, 0, 0).

    Args:
        fields: how each entry is decoded, ``"image"`` among them.
        files: the file of each entry, one mapping per sample.
        size: ``(H, W)`` to which everything is resized: images bilinearly, the truth by nearest pixel.
        flip: mirror a random half of the samples left to right, by torch's global random state (which a
            DataLoader seeds in its workers).

    Raises:
        DataError: on reading, a file is missing, damaged, of a wrong shape, or of another size (with
            ``size``: another aspect ratio) than its sample's image.
        ValueError: ``size`` is below 1 x 1.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        files: Sequence[Mapping[str, Path]],
        *,
        size: tuple[int, int] | None = None,
        flip: bool = False,
    ) -> None:
        if size is not None and min(size) < 1:
            raise ValueError(f"size is (H, W) = {size}; both must be at least 1 pixel.")
        self.fields = dict(fields)
        self.files = files
        self.size = size
        self.flip = flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        paths = self.files[index]
        sample = {
            name: field.decode(read_array(paths[name]), paths[name]) for name, field in self.fields.items()
        }
        for name, tensor in sample.items():
            self._check_size(sample[IMAGE], tensor, paths[IMAGE], paths[name])
        if self.size is not None:
            sample = {name: self.fields[name].resize(tensor, self.size) for name, tensor in sample.items()}
        if self.flip and torch.rand(()) < 0.5:
            sample = {name: self.fields[name].mirror(tensor) for name, tensor in sample.items()}
        return sample

    def _check_size(self, image: Tensor, tensor: Tensor, image_path: Path, path: Path) -> None:
        (height, width), (rows, columns) = image.shape[-2:], tensor.shape[-2:]
        alike = (height, width) == (rows, columns) if self.size is None else height * columns == width * rows
        if not alike:
            raise DataError(
                f"{path} is {rows} x {columns} pixels, but {image_path} is {height} x {width}. "
                f"Both must have the same {'size' if self.size is None else 'aspect ratio'}."
            )


def chosen(tasks: Sequence[str] | None, there: Mapping[str, Field]) -> dict[str, Field]:
    """The image and the ``tasks`` of ``there``; all of them by default. Raises :class:`ValueError`."""
    names = [name for name in there if name != IMAGE] if tasks is None else list(tasks)
    if not names or not set(names) <= there.keys() - {IMAGE} or isinstance(tasks, str):
        raise ValueError(f"tasks is {tasks!r}; choose a list from {[n for n in there if n != IMAGE]}.")
    return {name: there[name] for name in (IMAGE, *names)}
