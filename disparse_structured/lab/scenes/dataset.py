"""Rendered scenes as tensors, as a data set, and as a loader."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disparse_structured.lab.scenes import picture, rays, truth, world

DEFAULT_SIZE = (48, 64)


def render(seed: int, size: tuple[int, int] = DEFAULT_SIZE) -> dict[str, Tensor]:
    """Render one scene of ``size = (H, W)`` with exact ground truth.

    A seed gives the same scene at every size. Returns

    - ``image``: float32 ``[3, H, W]``, display RGB in 0..1;
    - ``labels``: int64 ``[H, W]``, position in :data:`CLASSES`; there are no ignored pixels;
    - ``depth``: float32 ``[1, H, W]``, meters along the optical axis (z-depth, not ray length);
    - ``normals``: float32 ``[3, H, W]``, unit, camera frame (x right, y down, z forward), toward the
      camera;
    - ``edges``: float32 ``[1, H, W]``, 1 where the right or lower neighbor lies on another smooth piece
      of surface, else 0;
    - ``keypoints``: float32 ``[1, H, W]``, Gaussian bumps of height 1 and standard deviation H / 48
      pixels around the visible corners, tips and centers.

    The camera is a pinhole with :data:`FIELD_OF_VIEW` degrees across the width and the principal point
    in the middle of the image. Raises :class:`ValueError` for a size below 1 x 1 or a negative seed.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size is (H, W) = {size}; both must be at least 1 pixel.")
    rng = np.random.default_rng(seed)
    scene = world.build(rng)
    points = truth.candidates(scene)
    pixels = height * width
    hits = rays.cast(scene, np.concatenate((rays.pixel_rays(size), points / points[2]), axis=1))
    found = truth.visible(points, hits.depth[pixels:], size)
    hits = hits.first(pixels)
    return {
        "image": _float(picture.shade(scene, hits, size, rng)),
        "labels": torch.from_numpy(hits.label.reshape(size)),
        "depth": _float(hits.depth.reshape(1, *size)),
        "normals": _float((scene.rotation.T @ hits.normal).reshape(3, *size)),
        "edges": _float(truth.edges(hits.face.reshape(size))[None]),
        "keypoints": _float(truth.heatmap(found, size)[None]),
    }


class Scenes(Dataset[dict[str, Tensor]]):
    """``count`` scenes, each a function of (``seed``, index) alone.

    Data sets with different seeds share no scene (they are independent streams of NumPy's
    ``SeedSequence``). With ``cache`` a scene is rendered once and kept: about 135 kB each at 48 x 64.
    """

    def __init__(
        self, count: int, size: tuple[int, int] = DEFAULT_SIZE, seed: int = 0, *, cache: bool = False
    ) -> None:
        self.count = count
        self.size = size
        self.seed = seed
        self._kept: dict[int, dict[str, Tensor]] | None = {} if cache else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        if self._kept is None:
            return self._render(index)
        if index not in self._kept:
            self._kept[index] = self._render(index)
        return dict(self._kept[index])

    def _render(self, index: int) -> dict[str, Tensor]:
        state = np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)
        return render(int(state[0]), self.size)


def scene_loader(
    count: int,
    batch_size: int = 16,
    size: tuple[int, int] = DEFAULT_SIZE,
    seed: int = 0,
    *,
    shuffle: bool = False,
    cache: bool = True,
) -> DataLoader[dict[str, Tensor]]:
    """Batches ``{"image": [B, 3, H, W], "labels": [B, H, W], "depth": [B, 1, H, W], ...}`` of scenes.

    ``shuffle`` reorders by torch's global generator, again in every epoch; a last batch that is not full
    is kept. See :class:`Scenes` for ``cache``, which pays off from the second epoch on.
    """
    scenes = Scenes(count, size, seed, cache=cache)
    return DataLoader(scenes, batch_size=batch_size, shuffle=shuffle)


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
