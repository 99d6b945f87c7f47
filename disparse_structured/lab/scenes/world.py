"""A random furnished room, as plain arrays: where everything is and what it is painted with.

World axes are the camera's own convention: x right, y *down*, z forward, in meters. The floor is
y = 0 and the ceiling y = -height. Every object is one of four canonical shapes (unit box, sphere,
cylinder, cone) stretched by its half extents, turned about the vertical and moved to its center.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FIELD_OF_VIEW = 70.0
"""Horizontal field of view in degrees; the same for all scenes, so that metric depth is learnable."""

CLASSES = ("floor", "wall", "ceiling", "box", "sphere", "cylinder", "cone", "picture")
"""The semantic classes; ``labels`` holds positions in this tuple."""

FLOOR, WALL, CEILING, BOX, SPHERE, CYLINDER, CONE, PICTURE = range(len(CLASSES))
ROOM_FACES = 6
"""Surfaces 0-5 are the room's faces (x low, x high, ceiling, floor, z low, z high); objects follow."""

# Pictures are boxes to the ray caster, so the two kinds stand next to each other.
_SHAPE_ORDER = (BOX, PICTURE, SPHERE, CYLINDER, CONE)
_WALL_GAP = 0.06
_PICTURE_HALF_THICKNESS = 0.02


@dataclass(frozen=True, eq=False)
class Paint:
    """What the surfaces look like: one row for each room face, then one for each object."""

    first: Array  # [surfaces, 3] linear RGB
    second: Array  # [surfaces, 3] linear RGB
    wave: Array  # [surfaces, 3] radians per meter along the surface's own axes
    phase: Array  # [surfaces, 3]
    pattern: NDArray[np.int64]  # [surfaces] 0 stripes, 1 checker, 2 marble, 3 tiles
    gloss: Array  # [surfaces] strength of the highlight


@dataclass(frozen=True, eq=False)
class World:
    """One scene. ``rotation`` maps camera to world; ``axes[k]`` maps object k's frame to world."""

    room: Array  # [3] half extents
    position: Array  # [3] of the camera
    rotation: Array  # [3, 3]
    kind: NDArray[np.int64]  # [objects] class index, in the order box, picture, sphere, cylinder, cone
    center: Array  # [objects, 3]
    axes: Array  # [objects, 3, 3]
    half: Array  # [objects, 3] half extents
    light: Array  # [3] position of the lamp
    tint: Array  # [3] color of the lamp
    fill: Array  # [3] unit direction toward a weak second light
    ambient: float
    exposure: float
    grain: float
    paint: Paint

    @property
    def room_center(self) -> Array:
        """The middle of the room, whose floor is y = 0."""
        return np.array((0.0, -self.room[1], 0.0))


def build(rng: np.random.Generator) -> World:
    """Draw a scene: a room, a camera looking into it, objects in view, pictures, lights and paint."""
    room = rng.uniform((2.0, 1.2, 2.2), (3.4, 1.6, 3.6))
    position, rotation, heading = _camera(rng, room)
    solids = _furniture(rng, room, position, heading) + _pictures(rng, room)
    solids.sort(key=lambda solid: _SHAPE_ORDER.index(solid[0]))
    kind = np.array([solid[0] for solid in solids])
    turn = np.array([solid[3] for solid in solids])
    lamp = rng.uniform((-0.6, -1.85, -0.7), (0.6, -1.7, 0.35)) * room
    fill = np.array((rng.uniform(-1.0, 1.0), -0.5, -1.0))
    warmth = rng.uniform(-1.0, 1.0)
    return World(
        room=room,
        position=position,
        rotation=rotation,
        kind=kind,
        center=np.array([solid[1] for solid in solids]),
        axes=_about_vertical(turn),
        half=np.array([solid[2] for solid in solids]),
        light=lamp,
        tint=np.array((1.0 + 0.12 * warmth, 1.0, 1.0 - 0.18 * warmth)),
        fill=fill / np.linalg.norm(fill),
        ambient=rng.uniform(0.18, 0.34),
        exposure=rng.uniform(0.85, 1.2),
        grain=rng.uniform(0.004, 0.016),
        paint=_paint(rng, kind),
    )


_Solid = tuple[int, tuple[float, float, float], tuple[float, float, float], float]
"""kind, center, half extents, turn about the vertical."""


def _about_vertical(turn: Array) -> Array:
    axes = np.zeros((turn.size, 3, 3))
    axes[:, 0, 0] = axes[:, 2, 2] = np.cos(turn)
    axes[:, 0, 2] = np.sin(turn)
    axes[:, 2, 0] = -axes[:, 0, 2]
    axes[:, 1, 1] = 1.0
    return axes


def _camera(rng: np.random.Generator, room: Array) -> tuple[Array, Array, float]:
    share = rng.uniform((-0.6, 0.0, -0.92), (0.6, 0.0, -0.62))
    position = share * room - (0.0, rng.uniform(1.2, 1.85), 0.0)
    target = rng.uniform((-0.4, 0.0, 0.1), (0.4, 0.0, 0.7)) * room - (0.0, rng.uniform(0.25, 0.95), 0.0)
    x, y, z = (target - position).tolist()
    heading, pitch, roll = math.atan2(x, z), math.atan2(y, math.hypot(x, z)), rng.uniform(-0.06, 0.06)
    (sh, ch), (sp, cp), (sr, cr) = ((math.sin(a), math.cos(a)) for a in (heading, pitch, roll))
    turned = np.array(((ch, 0.0, sh), (0.0, 1.0, 0.0), (-sh, 0.0, ch)))
    tipped = np.array(((1.0, 0.0, 0.0), (0.0, cp, sp), (0.0, -sp, cp)))
    rolled = np.array(((cr, -sr, 0.0), (sr, cr, 0.0), (0.0, 0.0, 1.0)))
    return position, turned @ tipped @ rolled, heading


def _furniture(rng: np.random.Generator, room: Array, position: Array, heading: float) -> list[_Solid]:
    """Objects standing on the floor in view, with disjoint footprints, some with one on top."""
    wanted = int(rng.integers(5, 10))
    spread = math.radians(FIELD_OF_VIEW) * 0.46
    draws = rng.uniform((1.5, -spread, 0.2), (5.5, spread, 0.5), size=(48, 3)).tolist()
    shares = rng.uniform(size=(48, 4)).tolist()
    placed: list[tuple[float, float, float]] = []
    solids: list[_Solid] = []
    for (distance, bearing, radius), share in zip(draws, shares, strict=True):
        x = position[0] + distance * math.sin(heading + bearing)
        z = position[2] + distance * math.cos(heading + bearing)
        inside = max(abs(x) - room[0], abs(z) - room[2]) < -radius - _WALL_GAP
        if not inside or any(math.hypot(x - u, z - v) < radius + r + 0.04 for u, v, r in placed):
            continue
        placed.append((x, z, radius))
        base = _solid(share, radius, (x, 0.0, z))
        solids.append(base)
        if base[0] in (BOX, CYLINDER) and share[3] < 0.45:
            extents = base[2]
            top = (x, -2.0 * extents[1], z)
            solids.append(_solid(rng.uniform(size=4).tolist(), 0.85 * min(extents[0], extents[2]), top))
        if len(placed) == wanted:
            break
    return solids


def _solid(share: list[float], radius: float, foot: tuple[float, float, float]) -> _Solid:
    """A solid within ``radius`` of the vertical through ``foot``, standing on it."""
    kind = (BOX, SPHERE, CYLINDER, CONE)[int(share[0] * 4)]
    turn = share[2] * math.tau
    if kind == SPHERE:
        half = (radius * 0.9,) * 3
    elif kind == BOX:
        corner = math.radians(32.0 + 26.0 * share[2])
        half = (radius * math.cos(corner), radius * (0.4 + 0.8 * share[1]), radius * math.sin(corner))
    else:
        half = (radius * 0.8, radius * (0.6 + 0.7 * share[1]), radius * 0.8)
    return kind, (foot[0], foot[1] - half[1], foot[2]), half, turn


def _pictures(rng: np.random.Generator, room: Array) -> list[_Solid]:
    """At most one picture on each of the three walls ahead, its back touching the wall."""
    solids: list[_Solid] = []
    walls = rng.permutation(3)[: int(rng.integers(1, 4))]
    draws = rng.uniform((0.3, 0.22, 1.25, -0.5), (0.65, 0.45, 1.75, 0.6), size=(3, 4)).tolist()
    for wall, (width, height, level, along) in zip(walls.tolist(), draws, strict=False):
        half = (width, height, _PICTURE_HALF_THICKNESS)
        if wall == 0:
            center = (along * room[0], -level, room[2] - _PICTURE_HALF_THICKNESS)
            solids.append((PICTURE, center, half, 0.0))
        else:
            side = (room[0] - _PICTURE_HALF_THICKNESS) * (1.0 if wall == 1 else -1.0)
            solids.append((PICTURE, (side, -level, along * room[2]), half, math.pi / 2))
    return solids


def _paint(rng: np.random.Generator, kind: NDArray[np.int64]) -> Paint:
    """Colors and patterns, drawn in the same way for every kind of object."""
    count = ROOM_FACES + kind.size
    hue, saturation, value = rng.uniform((0.0, 0.25, 0.3), (1.0, 0.85, 0.95), size=(count, 3)).T
    # Rooms are painted quietly, and three of the four walls alike.
    saturation[:ROOM_FACES] *= 0.45
    value[:ROOM_FACES] = 0.55 + 0.4 * value[:ROOM_FACES]
    hue[[1, 4]], saturation[[1, 4]], value[[1, 4]] = hue[0], saturation[0], value[0]
    contrast = rng.uniform(0.3, 0.8, count)
    contrast[[0, 1, 2, 4, 5]] = 1.0 - 0.25 * contrast[[0, 1, 2, 4, 5]]
    first = _rgb(hue, saturation, value)
    shift = rng.uniform(-0.2, 0.2, count)
    shift[:ROOM_FACES] *= 0.2
    second = _rgb(hue + shift, saturation, value * contrast)
    wave = rng.uniform(6.0, 26.0, (count, 3)) * rng.choice((-1.0, 1.0), (count, 3))
    wave[:ROOM_FACES] *= 0.4
    pattern = rng.integers(0, 4, count)
    pattern[[0, 1, 4, 5]] = pattern[0]
    wave[[1, 4, 5]] = wave[0]
    pattern[2] = 2
    return Paint(
        first=first,
        second=second,
        wave=wave,
        phase=rng.uniform(0.0, math.tau, (count, 3)),
        pattern=pattern,
        gloss=rng.uniform(0.0, 0.6, count) * (np.arange(count) >= ROOM_FACES),
    )


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """``[n, 3]`` linear RGB; the ramp is the usual hexagonal one, squared out of display gamma."""
    ramp = np.abs((hue[:, None] * 6.0 + (0.0, 4.0, 2.0)) % 6.0 - 3.0) - 1.0
    display = value[:, None] * (1.0 - saturation[:, None] * (1.0 - np.clip(ramp, 0.0, 1.0)))
    return np.asarray(display**2.2)
