"""The image of what the rays hit: textured albedo under a lamp, a fill light and ambient light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from disparse_structured.lab.scenes.rays import Hits, in_shadow
from disparse_structured.lab.scenes.world import World

Single = NDArray[np.float32]
"""Single precision is enough for colors and halves the cost."""

_LAMP, _LAMP_REACH, _FILL = 1.5, 3.2, 0.22


def shade(world: World, hits: Hits, size: tuple[int, int], rng: np.random.Generator) -> Single:
    """``[3, H, W]`` display RGB in 0..1: Lambert terms, a soft highlight, vignette, gamma and grain."""
    point, normal = hits.point.astype(np.float32), hits.normal.astype(np.float32)
    lamp_at, eye_at, fill_way, tint = (
        vector.astype(np.float32)[:, None] for vector in (world.light, world.position, world.fill, world.tint)
    )
    to_lamp = lamp_at - point
    distance = _length(to_lamp)
    to_lamp /= distance
    lambert = np.maximum((normal * to_lamp).sum(axis=0), 0.0)
    lamp = _LAMP / (1.0 + (distance / _LAMP_REACH) ** 2)
    lamp[in_shadow(world, hits.point, hits.normal)] = 0.0
    fill = _FILL * np.maximum((fill_way * normal).sum(axis=0), 0.0)
    # Surfaces that face down get less ambient light: only what the floor reflects.
    ambient = np.float32(world.ambient) * (1.0 - 0.25 * normal[1])

    to_eye = eye_at - point
    halfway = to_lamp + to_eye / _length(to_eye)
    aligned = np.maximum((normal * halfway).sum(axis=0), 0.0) / _length(halfway)
    highlight = world.paint.gloss.astype(np.float32)[hits.surface] * aligned**32

    diffuse = tint * (lamp * lambert) + (fill + ambient)
    color = _albedo(world, hits) * diffuse + tint * (highlight * lamp)
    image = np.float32(world.exposure) * color.reshape(3, *size) * _vignette(size)
    image = (1.0 - np.exp(-1.9 * image)) ** np.float32(1 / 2.2)
    image += np.float32(world.grain) * rng.standard_normal((3, *size), dtype=np.float32)
    return np.asarray(np.clip(image, 0.0, 1.0))


def _albedo(world: World, hits: Hits) -> Single:
    """``[3, rays]``: each surface's two colors, mixed by its pattern."""
    paint, surface = world.paint, hits.surface
    table = np.concatenate((paint.wave, paint.phase, paint.first, paint.second), axis=1)
    rows = np.ascontiguousarray(table.T, dtype=np.float32)[:, surface]
    at = hits.local.astype(np.float32) * rows[0:3] + rows[3:6]
    wave = np.sin(at)
    stripes = np.sin(at.sum(axis=0)) > 0
    checker = wave.prod(axis=0) > 0
    marble = 0.5 + 0.5 * np.sin(at[0] * 0.7 + 1.8 * wave[1] + 1.3 * wave[2])
    tiles = (np.abs(wave) < 0.12).any(axis=0)
    mix = np.choose(paint.pattern[surface], (stripes, checker, marble, tiles))
    mix = 0.85 * mix + 0.15 * np.sin(3.1 * at[0] + 2.0 * wave[2]) * np.sin(2.3 * at[1] + 2.0 * wave[0])
    return np.asarray(np.maximum(rows[6:9] + (rows[9:12] - rows[6:9]) * mix, 0.0))


def _length(vectors: Single) -> Single:
    return np.asarray(np.sqrt((vectors * vectors).sum(axis=0)))


def _vignette(size: tuple[int, int]) -> Single:
    down, across = (np.linspace(-1.0, 1.0, length, dtype=np.float32) for length in size)
    return 1.0 - np.float32(0.12) * (down[:, None] ** 2 + across**2)
