"""Backscatter of sea and land: mean level of each pixel, linear power, before speckle."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fusar_edge.data.simulator.landcover import (
    FARMLAND,
    FOREST,
    QUAY,
    RIVER,
    ROAD,
    SAND,
    URBAN,
    Ground,
    axis_coordinates,
    is_water,
)
from fusar_edge.data.simulator.noise import Field, correlated_normal, fractal, gamma_texture, power_from_db

LEVEL_DB = {RIVER: -21.0, SAND: -17.0, FARMLAND: -12.0, FOREST: -9.0, URBAN: -6.0, QUAY: -8.0, ROAD: -18.0}
"""C band, VV, mid swath: typical of Ulaby and Dobson, Handbook of Radar Scattering Statistics for Terrain (1989)."""


@dataclasses.dataclass(frozen=True)
class Weather:
    """What one scene's sea and receiver are like."""

    sea_db: float
    """Mean backscatter of the sea, -33 dB (calm, cross-polarised) to -13 dB (storm)."""
    order: float
    """Order of the K distribution: 1 spiky, 50 nearly plain speckle."""
    texture_px: float
    """Correlation length of the texture."""
    swell: float
    """Modulation depth of the swell, 0 for none."""
    swell_m: float
    """Wavelength."""
    gradient_db: float
    """Change of level over the scene: incidence angle and wind."""
    land_db: float
    """Added to every level on land: sensor, polarisation, season."""


def draw_weather(rng: np.random.Generator) -> Weather:
    return Weather(
        sea_db=float(np.clip(rng.normal(-20.0, 4.0), -33.0, -13.0)),
        order=float(np.exp(rng.uniform(math.log(2.0), math.log(80.0)))),
        texture_px=float(np.exp(rng.uniform(0.0, 1.6))),
        swell=float(rng.uniform(0.15, 0.6)) if rng.random() < 0.15 else 0.0,
        swell_m=float(rng.uniform(60, 300)),
        gradient_db=float(rng.normal(0, 2.0)),
        land_db=float(rng.uniform(-5.0, 5.0)),
    )


def sea_power(rng: np.random.Generator, height: int, width: int, spacing_m: float, weather: Weather) -> Field:
    """float32 [h, w]: wind patches, gradient, swell and gamma texture around `weather.sea_db`."""
    u, v = axis_coordinates(height, width, rng.uniform(0, 2 * math.pi))
    patches = fractal(rng, height, width, 3.0, 1.0)
    level = patches * np.float32(rng.uniform(0.1, 1.0)) + v * np.float32(weather.gradient_db / max(height, width))
    power = power_from_db(level + np.float32(weather.sea_db))
    if weather.swell:
        turn = np.float32(2 * math.pi * spacing_m / max(weather.swell_m, 4 * spacing_m))
        power *= 1 + np.float32(weather.swell) * np.sin(u * turn + 1.5 * patches)
    if weather.order < 40:
        power *= gamma_texture(rng, height, width, weather.order, weather.texture_px)
    return power


def _patchwork(u: Field, v: Field, long: float, short: float, values: Field) -> Field:
    """One value of `values` [256] per cell of a brick pattern, long x short pixels."""
    row = np.floor(v / np.float32(short)).astype(np.int32)
    column = np.floor(u / np.float32(long) + (row & 3) * np.float32(0.37)).astype(np.int32)
    return values[(row * 73 + column * 151 + (row * column) * 31) & 255]


def _town_db(rng: np.random.Generator, u: Field, v: Field, bend: Field, spacing_m: float) -> Field:
    """Buildings of uneven brightness, each brightest along the wall that faces the radar, and streets; dB about 0."""
    building = max(rng.uniform(10, 40) / spacing_m, 2.0)
    block = building * rng.uniform(3, 7)
    u = u + bend * np.float32(rng.uniform(0.0, 0.02) * max(u.shape))
    v = v + bend * np.float32(rng.uniform(0.0, 0.02) * max(u.shape))
    roofs = rng.normal(-4, rng.uniform(3.0, 7.0), 256).astype(np.float32)
    level = _patchwork(u, v, building * rng.uniform(1, 4), building, roofs)
    level[np.mod(v / np.float32(building), 1) < max(1 / building, 0.15)] += np.float32(rng.uniform(4, 10))
    street = np.float32(max(14 / spacing_m, 1.0) / block)
    lanes = (np.mod(u / np.float32(block * 1.7), 1) < street / 1.7) | (np.mod(v / np.float32(block), 1) < street)
    return np.where(lanes, np.float32(rng.uniform(-12, -4)), level)


def land_power(rng: np.random.Generator, ground: Ground, spacing_m: float, weather: Weather) -> Field:
    """float32 [h, w] mean power of the land classes, and of rivers; the sea's pixels hold 0."""
    height, width = ground.classes.shape
    u, v = axis_coordinates(height, width, ground.axis)
    levels = np.zeros(8, np.float32)
    for index, level in LEVEL_DB.items():
        levels[index] = level + rng.normal(0, 1.5)
    levels[[SAND, FARMLAND, FOREST, URBAN, QUAY, ROAD]] += np.float32(weather.land_db)
    relief = fractal(rng, height, width, 2.5, 3.0)
    db = levels[ground.classes] + relief * np.float32(rng.uniform(0.5, 2.0))
    present = np.bincount(ground.classes.ravel(), minlength=8) > 0
    if present[FARMLAND]:
        long, short = rng.uniform(150, 500) / spacing_m, rng.uniform(60, 200) / spacing_m
        fields = _patchwork(u, v, max(long, 6), max(short, 4), rng.normal(0, 2.5, 256).astype(np.float32))
        db += np.where(ground.classes == FARMLAND, fields, 0)
    if present[FOREST]:
        crowns = correlated_normal(rng, height, width, max(25 / spacing_m, 1.0))
        db += np.where(ground.classes == FOREST, crowns, 0)
    if present[URBAN] or present[QUAY]:
        town = (ground.classes == URBAN) | (ground.classes == QUAY)
        db += np.where(town, _town_db(rng, u, v, fractal(rng, height, width, 5.0), spacing_m), 0)
    power = power_from_db(db)
    power[ground.classes == 0] = 0
    return power


def add_strong_points(rng: np.random.Generator, power: Field, ground: Ground, weather: Weather, share: float) -> None:
    """Corner reflectors in towns and on quays: `share` of their pixels, each a cross of falling sidelobes; in place."""
    height, width = power.shape
    places = np.flatnonzero((ground.classes == URBAN) | (ground.classes == QUAY))
    count = int(len(places) * share)
    if not count:
        return
    y, x = np.divmod(rng.choice(places, count), width)
    peak = power_from_db(rng.normal(3.0 + weather.land_db / 2, 6.0, count))
    water = is_water(ground.classes)
    for dy, dx, loss_db in (
        (0, 0, 0),
        (0, 1, 4),
        (1, 0, 4),
        (0, -1, 4),
        (-1, 0, 4),
        (2, 0, 14),
        (-2, 0, 14),
        (3, 0, 17),
    ):
        yy, xx = np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)
        gain = np.float32(10 ** (-loss_db / 10))
        np.add.at(power, (yy, xx), peak * gain * np.where(water[yy, xx], np.float32(0.2), np.float32(1)))
