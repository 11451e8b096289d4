"""One simulated SAR scene with known truth, from a seed. NumPy only.

Everything is drawn on the grid of the sensor's resolution and then resampled to the scene's pixels, as the chips of
public ship sets were. The result depends on the seed, the arguments and NumPy's version (its samplers may change
with it). One machine gives the same bytes each time; another one the same truth, and pixels that may differ in
the last bits where its processor rounds exp, sin or a matrix product otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.data.simulator import clutter, ships
from fusar_edge.data.simulator.captions import described
from fusar_edge.data.simulator.embeddings import Anchors, anchors_from_classes
from fusar_edge.data.simulator.landcover import KIND_WEIGHTS, KINDS, SEA, ClassMap, Ground, ground, is_water
from fusar_edge.data.simulator.noise import Field, power_from_db, resized, speckle
from fusar_edge.data.truth import COORDINATE_SIZE, Box, Target, Truth

LABEL = "ship"
SPACING_M = (1.0, 10.0)
LOOKS = (1, 1, 1, 1, 2, 3, 4, 8, 20)
"""Drawn from with equal weight."""


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedScene:
    """A simulated scene. Arrays belong to the caller."""

    power: Field
    """float32 [H, W], linear backscatter (sigma0); speckled."""
    landcover: ClassMap
    """uint8 [H, W], indices of `landcover.CLASSES`."""
    truth: Truth
    """Targets, caption fields and sentence; boxes in 504-pixel coordinates whatever the size."""
    ships: tuple[ships.Ship, ...]
    """Hulls in pixels of `power`, in the order of `truth.targets`."""
    kind: str
    """One of `landcover.KINDS`."""
    transform: tuple[float, float, float, float, float, float]
    """Affine a..f: easting = a col + b row + c, northing = d col + e row + f, metres, from pixel corners."""
    epsg: int
    """WGS 84 / UTM zone."""
    spacing_m: float
    """Distance of pixels."""
    resolution_m: float
    """Distance of independent samples, at least `spacing_m`."""
    looks: int
    gain_db: float
    """Added to all backscatter: what an uncalibrated or display-stretched product would have."""
    anchors: Anchors
    """AlphaEarth-like vectors; none over open sea."""
    seed: int

    @property
    def boxes(self) -> list[Box]:
        """x1, y1, x2, y2 of the hulls in pixels of `power`; they may leave the frame."""
        return [ship.box() for ship in self.ships]


def _draw_spacing(rng: np.random.Generator, count: int) -> float:
    """Metres; crowded scenes are coarser, and the median ship is 50 pixels long as in SSDD."""
    middle = math.log(1.75) + 0.1 * min(count, 6)
    return float(np.clip(np.exp(rng.normal(middle, 0.55)), *SPACING_M))


def _draw_utm(
    rng: np.random.Generator, spacing_m: float
) -> tuple[int, tuple[float, float, float, float, float, float]]:
    """A place between 60 S and 70 N, at most 100 km from its zone's meridian; the corner is on the pixel grid."""
    north = bool(rng.random() < 0.7)
    epsg = (32600 if north else 32700) + int(rng.integers(1, 61))
    northing = rng.uniform(0.2e6, 7.7e6) if north else rng.uniform(3.4e6, 9.8e6)
    corner = [round(float(v) / spacing_m) * spacing_m for v in (rng.uniform(4e5, 6e5), northing)]
    return epsg, (spacing_m, 0.0, corner[0], 0.0, -spacing_m, corner[1])


def _scaled(ship: ships.Ship, factor: float) -> ships.Ship:
    return dataclasses.replace(
        ship, y=ship.y * factor, x=ship.x * factor, length=ship.length * factor, beam=ship.beam * factor
    )


def _repeated(field: npt.NDArray[np.generic], height: int, width: int, factor: float) -> npt.NDArray[Any]:
    rows, cols = ((np.arange(n) / factor).astype(np.intp) for n in (height, width))
    return field[rows][:, cols]


def _resampled(power: Field, height: int, width: int, factor: float, blocky: bool) -> Field:
    """Amplitude, bilinear (or repeated pixels), squared again: what a viewer does to a chip."""
    if factor == 1.0:
        return power
    if blocky:
        return _repeated(power, height, width, factor)
    return resized(np.sqrt(power), height, width, factor) ** 2


def _speckled_ground(
    rng: np.random.Generator, area: Ground, spacing_m: float, looks: int, fleet: list[ships.Ship], taper: float
) -> Field:
    """Sea, land, wakes and ships with speckle, float32 [h, w], no gain yet."""
    weather = clutter.draw_weather(rng)
    height, width = area.classes.shape
    water = is_water(area.classes)
    mean = clutter.sea_power(rng, height, width, spacing_m, weather)
    for ship in fleet:
        if not ship.moored and rng.random() < 0.25:
            ships.draw_wake(rng, mean, ship, water)
    if area.classes.any():
        land = clutter.land_power(rng, area, spacing_m, weather)
        np.copyto(mean, land, where=area.classes != SEA)
    noise = 10 ** (rng.uniform(-42, -26) / 10)  # noise-equivalent sigma zero
    power = (mean + np.float32(noise)) * speckle(rng, height, width, looks)
    clutter.add_strong_points(rng, power, area, weather, rng.uniform(0.001, 0.01))
    for ship in fleet:
        hull_db = max(rng.normal(-3.0, 5.0), weather.sea_db + 7.0)
        ships.draw_ship(rng, power, ship, hull_db, looks, taper)
    if fleet and rng.random() < 0.12:
        ships.draw_ghost(rng, power, fleet[0], int(rng.integers(40, 200)) * (1 if rng.random() < 0.5 else -1))
    return power


def simulate_scene(
    seed: int,
    size: int | tuple[int, int] = COORDINATE_SIZE,
    spacing_m: float | None = None,
    *,
    kind: str | None = None,
    count: int | None = None,
    looks: int | None = None,
    nodes: int = 9,
) -> SimulatedScene:
    """Simulate one scene of `size` pixels (side, or height and width; 64 to 8192 each).

    What is None is drawn from the seed: `spacing_m` between 1 and 10 m, `kind` (one of `landcover.KINDS`), the
    `count` of ships (an upper bound: harbours fill up) and the number of `looks`. `nodes`: anchors stand on a grid of
    nodes x nodes. ValueError for arguments outside these.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (64 <= height <= 8192 and 64 <= width <= 8192):
        raise ValueError(f"size is {height} x {width}: each side must be 64 to 8192 pixels")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if seed < 0 or nodes < 1 or (count is not None and count < 0) or (looks is not None and looks < 1):
        raise ValueError("seed and count must be 0 or more, looks and nodes 1 or more")
    if spacing_m is not None and not 0 < spacing_m < 1000:
        raise ValueError(f"spacing_m is {spacing_m}: it must be more than 0 and less than 1000 metres")
    rng = np.random.default_rng(seed)
    drawn_kind = str(rng.choice(KINDS, p=KIND_WEIGHTS))
    drawn_count, drawn_looks = ships.draw_count(rng), int(rng.choice(LOOKS))
    kind, looks = kind or drawn_kind, looks or drawn_looks
    count = (drawn_count if kind != "inland" else 0) if count is None else count
    spacing_m = spacing_m or _draw_spacing(rng, count)
    epsg, transform = _draw_utm(rng, spacing_m)
    # Ships of a coarse scene are small already, and blurring them more would leave nothing to see.
    factor = 1.0 if rng.random() < 0.45 else float(rng.uniform(1.2, max(1.3, 3.5 / max(spacing_m / 2, 1))))
    inner = math.ceil(height / factor), math.ceil(width / factor)
    area = ground(rng, kind, *inner, spacing_m * factor)
    fleet = ships.place_ships(rng, area, spacing_m * factor, count)
    taper = float(rng.choice((0.0, 0.5, 1.0)))
    power = _speckled_ground(rng, area, spacing_m * factor, looks, fleet, taper)
    power = _resampled(power, height, width, factor, blocky=rng.random() < 0.15)
    gain_db = float(np.clip(rng.normal(0.0, 4.0), -9.0, 10.0))
    power *= power_from_db(gain_db)
    classes = area.classes if factor == 1.0 else _repeated(area.classes, height, width, factor)
    hulls = tuple(_scaled(ship, factor) for ship in fleet)
    return SimulatedScene(
        power=power,
        landcover=classes,
        truth=_truth(hulls, classes, kind, height, width),
        ships=hulls,
        kind=kind,
        transform=transform,
        epsg=epsg,
        spacing_m=spacing_m,
        resolution_m=spacing_m * factor,
        looks=looks,
        gain_db=gain_db,
        anchors=anchors_from_classes(rng, classes, nodes),
        seed=seed,
    )


def _truth(hulls: tuple[ships.Ship, ...], classes: ClassMap, kind: str, height: int, width: int) -> Truth:
    sx, sy = COORDINATE_SIZE / width, COORDINATE_SIZE / height
    boxes = [hull.box() for hull in hulls]
    targets = tuple(Target((x1 * sx, y1 * sy, x2 * sx, y2 * sy), LABEL) for x1, y1, x2, y2 in boxes)
    moored = sum(hull.moored for hull in hulls)
    return described(Truth(targets=targets, label=LABEL), classes, kind, moored)
