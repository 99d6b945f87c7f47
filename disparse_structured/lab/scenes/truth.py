"""Exact edges and keypoints of a rendered scene."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from disparse_structured.lab.scenes.rays import focal_length
from disparse_structured.lab.scenes.world import BOX, CONE, CYLINDER, PICTURE, SPHERE, Array, World

_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_NEAR = 0.05
_TOLERANCE = 1e-6


def edges(face: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``bool [H, W]``: the right or the lower neighbor lies on another smooth piece of surface.

    That covers occlusions, creases (also between walls, and at the rims of cylinders) and contacts.
    """
    found = np.zeros(face.shape, dtype=np.bool_)
    found[:, :-1] |= face[:, 1:] != face[:, :-1]
    found[:-1] |= face[1:] != face[:-1]
    return found


def candidates(world: World) -> Array:
    """``[3, n]`` candidate keypoints in the camera frame, in front of the camera.

    The corners of the room, of boxes and of pictures, the tips of cones, the middle of cylinders' lids,
    and for a sphere the point where the line of sight to its center enters it.
    """
    points = [world.room_center + _CORNERS * world.room]
    cornered = (world.kind == BOX) | (world.kind == PICTURE)
    corners = _CORNERS * world.half[cornered, None]
    points.append(
        (np.einsum("kij,knj->kni", world.axes[cornered], corners) + world.center[cornered, None]).reshape(
            -1, 3
        )
    )
    tall = (world.kind == CYLINDER) | (world.kind == CONE)
    points.append(world.center[tall] - world.half[tall] * (0.0, 1.0, 0.0))
    ball = world.kind == SPHERE
    sight = world.center[ball] - world.position
    away = np.linalg.norm(sight, axis=1, keepdims=True)
    points.append(world.center[ball] - sight / away * world.half[ball, :1])
    seen = (np.concatenate(points) - world.position) @ world.rotation
    return np.asarray(seen[seen[:, 2] > _NEAR].T)


def visible(points: Array, depth: Array, size: tuple[int, int]) -> Array:
    """``[2, m]`` pixel positions (x, y) of the ``points`` that are visible in the image.

    ``depth`` is that of the first surface on the ray through each point, so the test is exact.
    """
    height, width = size
    focal = focal_length(width)
    x = points[0] / points[2] * focal + width / 2
    y = points[1] / points[2] * focal + height / 2
    free = depth > points[2] * (1.0 - _TOLERANCE)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.stack((x, y))[:, free & inside]


def heatmap(pixels: Array, size: tuple[int, int]) -> Array:
    """``[H, W]``: at each pixel center the highest of the Gaussian bumps around ``pixels [2, m]``."""
    height, width = size
    spread = 2.0 * (height / 48.0) ** 2
    across = np.exp(-((np.arange(width) + 0.5 - pixels[0][:, None]) ** 2) / spread)
    down = np.exp(-((np.arange(height) + 0.5 - pixels[1][:, None]) ** 2) / spread)
    return np.asarray((down[:, :, None] * across[:, None, :]).max(axis=0, initial=0.0))
