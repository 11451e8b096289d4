"""What covers the ground: class maps of open sea, coast, harbour, strait and inland, from smooth random fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.data.simulator.noise import Field, fractal

CLASSES = ("sea", "river", "sand", "farmland", "forest", "urban", "quay", "road")
"""Names of the values of a class map, in order."""
SEA, RIVER, SAND, FARMLAND, FOREST, URBAN, QUAY, ROAD = range(len(CLASSES))
WATER_CLASSES = (SEA, RIVER)

KINDS = ("open sea", "coast", "harbour", "strait", "inland")
"""Kinds of scene. Ships are drawn in all but the last."""
KIND_WEIGHTS = (0.56, 0.15, 0.17, 0.06, 0.06)
"""About a quarter of SSDD's chips show land."""

ClassMap = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Quay:
    """A berth: the line along which a ship can lie, in pixels (y, x) of the class map."""

    start: tuple[float, float]
    end: tuple[float, float]
    outward: tuple[float, float]
    """Unit vector (dy, dx) from the quay to the water."""


@dataclasses.dataclass(frozen=True)
class Ground:
    classes: ClassMap
    """uint8 [h, w], indices of CLASSES."""
    axis: float
    """Direction of streets, fields and quays, radians."""
    quays: tuple[Quay, ...] = ()


def is_water(classes: ClassMap) -> npt.NDArray[np.bool_]:
    return classes <= RIVER


def axis_coordinates(height: int, width: int, axis: float) -> tuple[Field, Field]:
    """(u, v) of each pixel centre, float32 [h, w]: along and across `axis`, in pixels from the middle."""
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2)[:, None]
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2)[None, :]
    cos, sin = np.float32(math.cos(axis)), np.float32(math.sin(axis))
    return x * cos + y * sin, y * cos - x * sin


def _vegetation(rng: np.random.Generator, height: int, width: int) -> ClassMap:
    """Farmland, forest and towns, in patches."""
    town = fractal(rng, height, width, 3.0, 2.0)
    wood = fractal(rng, height, width, 3.0, 2.0)
    classes = np.where(wood > rng.uniform(-0.6, 1.2), FOREST, FARMLAND).astype(np.uint8)
    classes[town > rng.uniform(-0.8, 1.6)] = URBAN
    return classes


def _add_road(rng: np.random.Generator, classes: ClassMap, spacing_m: float) -> None:
    """One nearly straight main road over the land, 15-30 m wide."""
    height, width = classes.shape
    u, v = axis_coordinates(height, width, rng.uniform(0, math.pi))
    bend = np.sin(u * np.float32(rng.uniform(1, 4) / width)) * np.float32(0.06 * width)
    offset = np.float32(rng.uniform(-0.3, 0.3) * width)
    half = np.float32(max(rng.uniform(15, 30) / 2 / spacing_m, 0.75))
    classes[(np.abs(v + bend - offset) < half) & (classes >= FARMLAND) & (classes <= URBAN)] = ROAD


def _open_sea(rng: np.random.Generator, height: int, width: int, spacing_m: float) -> Ground:
    return Ground(np.full((height, width), SEA, np.uint8), 0.0)


def _shore_height(rng: np.random.Generator, height: int, width: int, tilt: float) -> Field:
    """Fractal relief on a tilted plane; a level of it is a coastline."""
    _, v = axis_coordinates(height, width, rng.uniform(0, 2 * math.pi))
    relief = fractal(rng, height, width, rng.uniform(2.6, 4.0))
    return relief * np.float32(rng.uniform(0.25, 0.8)) + v * np.float32(tilt / max(height, width))


def _coast(rng: np.random.Generator, height: int, width: int, spacing_m: float) -> Ground:
    relief = _shore_height(rng, height, width, rng.uniform(1.0, 5.0))
    level = np.quantile(relief[::8, ::8], 1 - rng.uniform(0.08, 0.6))
    classes = _vegetation(rng, height, width)
    classes[relief < level + rng.uniform(0.0, 0.15)] = SAND
    classes[relief < level] = SEA
    _add_road(rng, classes, spacing_m)
    return Ground(classes, rng.uniform(0, math.pi))


def _strait(rng: np.random.Generator, height: int, width: int, spacing_m: float) -> Ground:
    """Land on both sides of a wide river or channel."""
    axis = rng.uniform(0, math.pi)
    _, v = axis_coordinates(height, width, axis)
    scale = max(height, width)
    middle = fractal(rng, height, width, 4.0) * np.float32(0.10 * scale) + np.float32(rng.uniform(-0.15, 0.15) * scale)
    distance = np.abs(v - middle) - np.float32(rng.uniform(0.12, 0.3) * scale)
    classes = _vegetation(rng, height, width)
    classes[distance < rng.uniform(0.0, 40.0) / spacing_m] = SAND
    classes[distance < 0] = SEA if rng.random() < 0.5 else RIVER
    _add_road(rng, classes, spacing_m)
    return Ground(classes, axis)


def _inland(rng: np.random.Generator, height: int, width: int, spacing_m: float) -> Ground:
    classes = _vegetation(rng, height, width)
    _add_road(rng, classes, spacing_m)
    if rng.random() < 0.5:
        course = fractal(rng, height, width, 4.0)
        classes[np.abs(course - np.float32(rng.uniform(-1, 1))) < rng.uniform(0.02, 0.06)] = RIVER
    return Ground(classes, rng.uniform(0, math.pi))


def _harbour(rng: np.random.Generator, height: int, width: int, spacing_m: float) -> Ground:
    """A straight quay with piers and basins; the land behind is container yard, then town."""
    axis = rng.normal(0, 0.5) + rng.integers(4) * math.pi / 2
    u, v = axis_coordinates(height, width, axis)
    scale = max(height, width)
    edge = rng.uniform(-0.2, 0.35) * scale
    yard = np.float32(rng.uniform(60, 300) / spacing_m)
    classes = np.where(v > edge + yard, URBAN, QUAY).astype(np.uint8)
    classes[v <= edge] = SEA
    berths: list[tuple[float, float, float, float, float, float]] = []  # u0, v0, u1, v1, outward u, outward v
    berths.append((-scale / 2, edge, scale / 2, edge, 0.0, -1.0))
    place = -scale * 0.7 + rng.uniform(0, 0.3) * scale
    while place < 0.7 * scale and len(berths) < 15:
        wide = max(rng.uniform(30, 150) / spacing_m, 4.0)
        deep = min(rng.uniform(100, 500) / spacing_m, 0.45 * scale)
        inside = np.abs(u - np.float32(place)) < np.float32(wide / 2)
        if rng.random() < 0.65:
            classes[inside & (v > edge - deep) & (v <= edge)] = QUAY
            near, far, outward = edge - deep, edge, 1.0
        else:
            wide, inside = 2 * wide, np.abs(u - np.float32(place)) < np.float32(wide)
            classes[inside & (v > edge) & (v < edge + deep)] = SEA
            near, far, outward = edge, edge + deep, -1.0
            wide *= 2
        for side in (-1.0, 1.0):
            berths.append((place + side * wide / 2, near, place + side * wide / 2, far, side * outward, 0.0))
        place += wide + rng.uniform(120, 700) / spacing_m
    return Ground(classes, axis, tuple(_quay(b, axis, height, width) for b in berths))


def _quay(berth: tuple[float, ...], axis: float, height: int, width: int) -> Quay:
    u0, v0, u1, v1, nu, nv = berth
    cos, sin = math.cos(axis), math.sin(axis)

    def place(u: float, v: float) -> tuple[float, float]:
        return u * sin + v * cos + height / 2, u * cos - v * sin + width / 2

    return Quay(place(u0, v0), place(u1, v1), (nu * sin + nv * cos, nu * cos - nv * sin))


_MAKERS: dict[str, Callable[[np.random.Generator, int, int, float], Ground]] = {
    "open sea": _open_sea,
    "coast": _coast,
    "harbour": _harbour,
    "strait": _strait,
    "inland": _inland,
}


def ground(rng: np.random.Generator, kind: str, height: int, width: int, spacing_m: float) -> Ground:
    """Class map of a scene of `kind` on a grid of `spacing_m` metres. Same generator state, same map."""
    return _MAKERS[kind](rng, height, width, spacing_m)


def class_fractions(classes: ClassMap) -> dict[str, float]:
    """Share of each class in the map, by name."""
    counts: Any = np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size
    return dict(zip(CLASSES, counts.tolist(), strict=True))
