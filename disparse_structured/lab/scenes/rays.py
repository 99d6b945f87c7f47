"""Analytic ray casting of a :class:`~disparse_structured.lab.scenes.world.World`.

Rays are moved into each object's own frame, where the object is a unit box, sphere, cylinder or
cone; the affine map keeps the ray parameter. A camera ray is scaled to one meter along the optical
axis, so that its parameter *is* the z-depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disparse_structured.lab.scenes.world import (
    BOX,
    CEILING,
    CONE,
    CYLINDER,
    FIELD_OF_VIEW,
    FLOOR,
    PICTURE,
    ROOM_FACES,
    SPHERE,
    WALL,
    Array,
    World,
)

_ROOM_LABELS = np.array((WALL, WALL, CEILING, FLOOR, WALL, WALL))


@dataclass(frozen=True, eq=False)
class Hits:
    """What the rays hit first. Vectors are in world axes unless said otherwise."""

    depth: Array  # [rays] z-depth in meters
    point: Array  # [3, rays]
    normal: Array  # [3, rays] unit, toward the camera
    local: Array  # [3, rays] meters along the surface's own axes, for its texture
    surface: NDArray[np.int64]  # [rays] 0-5 room face, then 6 + object
    face: NDArray[np.int64]  # [rays] number of the smooth piece of surface, unique in the scene
    label: NDArray[np.int64]  # [rays]

    def first(self, count: int) -> Hits:
        """The hits of the first ``count`` rays."""
        return Hits(
            self.depth[:count],
            self.point[:, :count],
            self.normal[:, :count],
            self.local[:, :count],
            self.surface[:count],
            self.face[:count],
            self.label[:count],
        )


def focal_length(width: int) -> float:
    """The focal length in pixels, for an image ``width`` pixels wide."""
    return width / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)


def pixel_rays(size: tuple[int, int]) -> Array:
    """``[3, H * W]`` camera-frame directions through the pixel centers, with z = 1."""
    height, width = size
    focal = focal_length(width)
    rays = np.ones((3, height, width))
    rays[0] = (np.arange(width) + 0.5 - width / 2) / focal
    rays[1] = ((np.arange(height) + 0.5 - height / 2) / focal)[:, None]
    return rays.reshape(3, -1)


def cast(world: World, rays: Array) -> Hits:
    """Follow camera-frame ``rays [3, n]`` with z = 1 to the first surface."""
    direction = world.rotation @ rays
    scaled = world.axes.transpose(0, 2, 1) / world.half[:, :, None]
    origin = np.einsum("kij,kj->ki", scaled, world.position - world.center)[:, :, None]
    inner = (scaled.reshape(-1, 3) @ direction).reshape(-1, 3, rays.shape[1])
    entries = _entries(world.kind, origin, inner)
    index = np.arange(rays.shape[1])
    nearest = entries.argmin(axis=0)
    depth = entries[nearest, index]

    start = (world.position - world.room_center)[:, None]
    sign = np.sign(direction)
    leave = (sign * world.room[:, None] - start) / direction
    axis = leave.argmin(axis=0)
    wall_depth = leave[axis, index]
    toward = sign[axis, index]
    is_object = depth < wall_depth
    depth = np.where(is_object, depth, wall_depth)

    room_face = axis * 2 + (toward > 0)
    surface = np.where(is_object, ROOM_FACES + nearest, room_face)
    face = room_face.copy()
    label = np.where(is_object, world.kind[nearest], _ROOM_LABELS[room_face])
    point = world.position[:, None] + depth * direction
    normal = np.zeros_like(point)
    normal[axis, index] = -toward
    local = point.copy()

    chosen = np.flatnonzero(is_object)
    owner = nearest[chosen]
    unit = origin[owner, :, 0] + depth[chosen, None] * inner[owner, :, chosen]
    slope, piece = _slopes(world.kind[owner], unit)
    outward = np.einsum("nji,nj->ni", scaled[owner], slope)
    normal[:, chosen] = (outward / np.linalg.norm(outward, axis=1, keepdims=True)).T
    local[:, chosen] = (unit * world.half[owner]).T
    face[chosen] = ROOM_FACES * (1 + owner) + piece
    return Hits(depth, point, normal, local, surface, face, label)


def in_shadow(world: World, point: Array, normal: Array) -> NDArray[np.bool_]:
    """``bool [rays]``: whether an object stands between ``point [3, rays]`` and the lamp."""
    solid = world.kind != PICTURE
    # Single precision is enough for a shadow's outline and halves the cost.
    scaled = (world.axes.transpose(0, 2, 1) / world.half[:, :, None])[solid].astype(np.float32)
    start = (point + 1e-3 * normal).astype(np.float32)
    way = world.light[:, None].astype(np.float32) - start
    center = np.einsum("kij,kj->ki", scaled, world.center[solid].astype(np.float32))
    count = start.shape[1]
    origin = (scaled.reshape(-1, 3) @ start).reshape(-1, 3, count) - center[:, :, None]
    inner = (scaled.reshape(-1, 3) @ way).reshape(-1, 3, count)
    return np.asarray((_entries(world.kind[solid], origin, inner) < 1.0).any(axis=0))


def _entries(kind: NDArray[np.int64], origin: Array, inner: Array) -> Array:
    """``[objects, rays]`` ray parameter of the entry into each object, infinite where it is missed."""
    found = np.full((kind.size, inner.shape[2]), np.inf, dtype=inner.dtype)
    shape = np.where(kind == PICTURE, BOX, kind)
    with np.errstate(divide="ignore", invalid="ignore"):
        for wanted, entry in ((BOX, _box), (SPHERE, _sphere), (CYLINDER, _cylinder), (CONE, _cone)):
            rows = np.flatnonzero(shape == wanted)
            if rows.size:
                span = slice(int(rows[0]), int(rows[-1]) + 1)
                o, d = origin[span], inner[span]
                near, hit = entry(o[:, 0], o[:, 1], o[:, 2], d[:, 0], d[:, 1], d[:, 2])
                np.copyto(found[span], near, where=hit & (near > 0))
    return found


_Entry = tuple[Array, NDArray[np.bool_]]


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    inverse = 1.0 / d
    middle, reach = -o * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _box(ox: Array, oy: Array, oz: Array, dx: Array, dy: Array, dz: Array) -> _Entry:
    near, far = _slab(ox, dx)
    for o, d in ((oy, dy), (oz, dz)):
        enter, leave = _slab(o, d)
        np.maximum(near, enter, out=near)
        np.minimum(far, leave, out=far)
    return near, near < far


def _sphere(ox: Array, oy: Array, oz: Array, dx: Array, dy: Array, dz: Array) -> _Entry:
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    inside = b * b - a * c
    return (-b - np.sqrt(np.maximum(inside, 0.0))) / a, inside > 0


def _cylinder(ox: Array, oy: Array, oz: Array, dx: Array, dy: Array, dz: Array) -> _Entry:
    a = dx * dx + dz * dz
    b = ox * dx + oz * dz
    inside = b * b - a * (ox * ox + oz * oz - 1.0)
    root = np.sqrt(np.maximum(inside, 0.0))
    enter, leave = _slab(oy, dy)
    near = np.maximum((-b - root) / a, enter)
    return near, (inside > 0) & (near < np.minimum((-b + root) / a, leave))


def _cone(ox: Array, oy: Array, oz: Array, dx: Array, dy: Array, dz: Array) -> _Entry:
    """Apex at y = -1, base of radius 1 at y = 1. The base rests on something and is never entered."""
    rise, climb = (oy + 1.0) / 2, dy / 2
    a = dx * dx + dz * dz - climb * climb
    b = ox * dx + oz * dz - rise * climb
    inside = b * b - a * (ox * ox + oz * oz - rise * rise)
    root = np.sqrt(np.maximum(inside, 0.0))
    one, other = (-b - root) / a, (-b + root) / a
    first, second = np.minimum(one, other), np.maximum(one, other)
    # The quadric is a double cone: only the part between apex and base counts.
    first_counts = (np.abs(oy + first * dy) <= 1.0) & (first > 0)
    near = np.where(first_counts, first, second)
    return near, (inside > 0) & (np.abs(oy + near * dy) <= 1.0)


def _slopes(kind: NDArray[np.int64], unit: Array) -> tuple[Array, NDArray[np.int64]]:
    """Outward gradients ``[n, 3]`` at points ``unit [n, 3]`` of canonical shapes, and their faces."""
    x, y, z = unit.T
    slope = unit.copy()
    piece = np.zeros(kind.size, dtype=np.int64)

    flat = (kind == BOX) | (kind == PICTURE)
    axis = np.abs(unit).argmax(axis=1)
    cap = (kind == CYLINDER) & (np.abs(y) > x * x + z * z)
    axis[cap] = 1
    flat |= cap
    rows = np.flatnonzero(flat)
    side = np.sign(unit[rows, axis[rows]])
    slope[rows] = 0.0
    slope[rows, axis[rows]] = side
    piece[rows] = axis[rows] * 2 + (side > 0)

    slope[(kind == CYLINDER) & ~cap, 1] = 0.0
    cone = kind == CONE
    slope[cone, 1] = -(y[cone] + 1.0) / 4
    return slope, piece
