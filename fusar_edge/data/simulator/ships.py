"""Ships: where they lie, how their hulls reflect, and the wakes behind them. Pixels of the grid that is being drawn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from fusar_edge.data.simulator.landcover import Ground, Quay, is_water
from fusar_edge.data.simulator.noise import Field
from fusar_edge.data.truth import Box

LENGTH_M = (20.0, 330.0)
OUTLINE = (
    (-0.5, -0.85),
    (-0.5, 0.85),
    (-0.4, 1.0),
    (0.3, 1.0),
    (0.42, 0.6),
    (0.5, 0.0),
    (0.42, -0.6),
    (0.3, -1.0),
    (-0.4, -1.0),
)
"""Corners of a hull: along in lengths (bow at +0.5), across in half beams."""
_ALONG = np.array([-0.5, -0.4, 0.3, 0.42, 0.5])
_HALF = np.array([0.85, 1.0, 1.0, 0.6, 0.0])
_PAD = 14
"""Pixels around a hull in which its sidelobes are drawn."""


@dataclasses.dataclass(frozen=True)
class Ship:
    y: float
    x: float
    """Middle, in pixels from the top left corner of the grid."""
    length: float
    beam: float
    """Pixels."""
    heading: float
    """Radians; the bow points to (dy, dx) = (sin, cos)."""
    moored: bool = False

    def outline(self) -> npt.NDArray[np.float64]:
        """float64 [9, 2]: corners of the hull, (y, x)."""
        shape = np.array(OUTLINE) * (self.length, self.beam / 2)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return np.stack(
            [self.y + shape[:, 0] * sin + shape[:, 1] * cos, self.x + shape[:, 0] * cos - shape[:, 1] * sin], 1
        )

    def box(self) -> Box:
        """x1, y1, x2, y2: extent of the outline; it may leave the grid."""
        corners = self.outline()
        (y1, x1), (y2, x2) = corners.min(axis=0), corners.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)

    def coordinates(
        self, y: npt.ArrayLike, x: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(along, across) in pixels of points (y, x)."""
        dy, dx = np.asarray(y, np.float64) - self.y, np.asarray(x, np.float64) - self.x
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return dy * sin + dx * cos, dy * cos - dx * sin

    def inside(self, y: npt.ArrayLike, x: npt.ArrayLike, margin: float = 0.0) -> npt.NDArray[np.bool_]:
        """True for points inside the hull grown by `margin` pixels."""
        along, across = self.coordinates(y, x)
        reach = self.length + 2 * margin
        return np.abs(across) <= np.interp(along / reach, _ALONG, _HALF, -1.0, -1.0) * self.beam / 2 + np.where(
            np.abs(along) <= reach / 2, margin, 0.0
        )


def draw_count(rng: np.random.Generator) -> int:
    """How many ships: one in 58 of 100 scenes, falling off to 20 as in SSDD."""
    draw = rng.random()
    if draw < 0.075:
        return 0
    if draw < 0.675:
        return 1
    return min(2 + int(rng.geometric(0.36)) - 1, 20)


def draw_length_m(rng: np.random.Generator) -> float:
    return float(np.clip(np.exp(rng.normal(math.log(125.0), 0.6)), *LENGTH_M))


def _afloat(ship: Ship, water: npt.NDArray[np.bool_], margin: float) -> bool:
    """All of the hull that is inside the frame lies on water."""
    height, width = water.shape
    x1, y1, x2, y2 = ship.box()
    rows = np.arange(max(math.floor(y1 - margin), 0), min(math.ceil(y2 + margin), height))
    cols = np.arange(max(math.floor(x1 - margin), 0), min(math.ceil(x2 + margin), width))
    if not len(rows) or not len(cols):
        return False
    # corners of pixels too, grown by 0.75: a pixel is land as a whole
    hull = ship.inside(rows[:, None] + 0.5, cols[None, :] + 0.5, margin + 0.75)
    return bool((water[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] | ~hull).all())


def _apart(ship: Ship, others: list[Ship]) -> bool:
    """Its circles (three along the hull) touch no other ship's."""
    for other in others:
        along = np.linspace(-0.5, 0.5, 9)
        mine = np.stack(
            [
                ship.y + along * ship.length * math.sin(ship.heading),
                ship.x + along * ship.length * math.cos(ship.heading),
            ]
        )
        theirs = np.stack(
            [
                other.y + along * other.length * math.sin(other.heading),
                other.x + along * other.length * math.cos(other.heading),
            ]
        )
        distance = np.hypot(*(mine[:, :, None] - theirs[:, None, :])).min()
        if distance < (ship.beam + other.beam) * 0.62 + 1.5:
            return False
    return True


def _berthed(rng: np.random.Generator, quay: Quay, length: float, beam: float) -> Ship:
    along = rng.uniform(0.05, 0.95)
    y, x = (a + (b - a) * along for a, b in zip(quay.start, quay.end, strict=True))
    gap = beam / 2 + rng.uniform(1.2, 2.5)
    heading = math.atan2(quay.end[0] - quay.start[0], quay.end[1] - quay.start[1]) + math.pi * rng.integers(2)
    return Ship(y + quay.outward[0] * gap, x + quay.outward[1] * gap, length, beam, heading, moored=True)


def place_ships(rng: np.random.Generator, ground: Ground, spacing_m: float, count: int) -> list[Ship]:
    """Up to `count` ships on the water, apart from each other; fewer where there is no room."""
    water = is_water(ground.classes)
    height, width = water.shape
    lane = rng.uniform(0, 2 * math.pi)
    aligned = rng.random() < 0.4
    ships: list[Ship] = []
    for _ in range(count * 25):
        if len(ships) == count or not water.any():
            break
        length = min(draw_length_m(rng) / spacing_m, 0.8 * max(height, width))
        beam = max(length / rng.uniform(3.8, 7.0), 1.8)
        heading = lane + rng.normal(0, 0.15) if aligned else rng.uniform(0, 2 * math.pi)
        if ground.quays and rng.random() < 0.6:
            ship = _berthed(rng, ground.quays[rng.integers(len(ground.quays))], length, beam)
        else:
            y, x = rng.uniform(0.02, 0.98) * height, rng.uniform(0.02, 0.98) * width
            ship = Ship(y, x, length, beam, heading)
        inside_frame = 0.02 * height < ship.y < 0.98 * height and 0.02 * width < ship.x < 0.98 * width
        if inside_frame and _afloat(ship, water, 0.0 if ship.moored else 2.0) and _apart(ship, ships):
            ships.append(ship)
    return ships


def _patch(ship: Ship, height: int, width: int) -> tuple[slice, slice] | None:
    """The part of the grid that a ship and its sidelobes cover."""
    x1, y1, x2, y2 = ship.box()
    rows = slice(max(math.floor(y1) - _PAD, 0), min(math.ceil(y2) + _PAD, height))
    cols = slice(max(math.floor(x1) - _PAD, 0), min(math.ceil(x2) + _PAD, width))
    return (rows, cols) if rows.stop > rows.start and cols.stop > cols.start else None


def _response(offset: npt.NDArray[np.float64], taper: float) -> npt.NDArray[np.float64]:
    """Impulse response in amplitude: sinc; `taper` 0 leaves its -13 dB sidelobes, 1 removes nearly all (Hamming)."""
    edge = 0.5 * (np.sinc(offset - 1) + np.sinc(offset + 1))
    return np.sinc(offset) + taper * 0.85 * edge


def draw_ship(rng: np.random.Generator, power: Field, ship: Ship, hull_db: float, looks: int, taper: float) -> None:
    """Add the echo of one ship to `power` [h, w]: speckled hull and point scatterers with sidelobes; in place."""
    patch = _patch(ship, *power.shape)
    if patch is None:
        return
    rows, cols = patch
    y, x = np.arange(rows.start, rows.stop) + 0.5, np.arange(cols.start, cols.stop) + 0.5
    count = int(np.clip(ship.length * 0.8, 6, 70))
    along = (rng.beta(0.8, 0.8, count) - 0.5) * 0.96
    across = rng.uniform(-0.9, 0.9, count) * np.interp(along, _ALONG, _HALF) * ship.beam / 2
    cos, sin = math.cos(ship.heading), math.sin(ship.heading)
    py, px = ship.y + along * ship.length * sin + across * cos, ship.x + along * ship.length * cos - across * sin
    strength = 10 ** ((hull_db + rng.normal(4.0, 5.0, count)) / 20)
    echo = strength * np.exp(2j * math.pi * rng.random(count))
    field = (_response(y[:, None] - py, taper) * echo) @ _response(px[:, None] - x, taper)
    hull = ship.inside(y[:, None], x[None, :]) * _deck(rng, ship, y, x)
    grain = rng.standard_gamma(looks, hull.shape) / looks
    power[rows, cols] += (field.real**2 + field.imag**2 + hull * grain * 10 ** (hull_db / 10)).astype(np.float32)


def _deck(
    rng: np.random.Generator, ship: Ship, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Relative brightness over the hull: uneven along it (holds, bridge, cranes), a ridge that fades to the sides."""
    along, across = ship.coordinates(y[:, None], x[None, :])
    sections = rng.normal(0, rng.uniform(1, 6), 12)
    profile = 10 ** (np.interp(along / ship.length, np.linspace(-0.5, 0.5, 12), sections) / 10)
    ridge = rng.uniform(-0.6, 0.6)
    return profile * (0.12 + np.exp(-(((2 * across / ship.beam - ridge) / rng.uniform(0.35, 1.0)) ** 2)))


def draw_ghost(rng: np.random.Generator, power: Field, ship: Ship, shift: int) -> None:
    """Azimuth ambiguity: a copy of the ship `shift` rows away, 22-30 dB weaker; in place."""
    patch = _patch(ship, *power.shape)
    if patch is None:
        return
    rows, cols = patch
    first, last = max(rows.start + shift, 0), min(rows.stop + shift, power.shape[0])
    if last > first:
        power[first:last, cols] += power[first - shift : last - shift, cols] * np.float32(10 ** -rng.uniform(2.2, 3.0))


def draw_wake(rng: np.random.Generator, power: Field, ship: Ship, water: npt.NDArray[np.bool_]) -> None:
    """Change the sea astern: a dark turbulent line and two bright narrow arms, fading; in place, before speckle."""
    height, width = power.shape
    reach = ship.length * rng.uniform(2.0, 6.0)
    end = ship.y - reach * math.sin(ship.heading), ship.x - reach * math.cos(ship.heading)
    margin = ship.beam * 2 + reach * 0.1
    y1, y2 = (int(np.clip(v, 0, height)) for v in (min(ship.y, end[0]) - margin, max(ship.y, end[0]) + margin))
    x1, x2 = (int(np.clip(v, 0, width)) for v in (min(ship.x, end[1]) - margin, max(ship.x, end[1]) + margin))
    along, across = ship.coordinates(np.arange(y1, y2)[:, None] + 0.5, np.arange(x1, x2)[None, :] + 0.5)
    astern = -along - ship.length / 2
    fade = np.where(astern > 0, np.clip(1 - astern / reach, 0, 1), 0.0)
    arm = np.abs(np.abs(across) - ship.beam * 0.5 - astern * math.tan(rng.uniform(0.03, 0.08)))
    thin = max(ship.beam * 0.2, 0.8)
    change = rng.uniform(0, 6) * np.exp(-((arm / thin) ** 2)) - rng.uniform(2, 8) * np.exp(
        -((across / ship.beam * 2) ** 2)
    )
    part = power[y1:y2, x1:x2]
    part *= np.where(water[y1:y2, x1:x2], 10 ** (change * fade / 10), 1.0).astype(np.float32)
