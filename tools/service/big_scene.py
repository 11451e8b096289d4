"""One large simulated scene of sea, a coast and ships, with the truth beside it: what triage and memory are tried on.

    python tools/service/big_scene.py OUT.tif [--width 29400] [--height 24400] [--ships 200] [--seed 1]

8-bit amplitude, white at 0 dB, 10 m, drawn strip by strip. Sea: slow changes of wind, gamma texture, 4 looks. The
first tenth of the columns is land. OUT.json holds the ships' boxes in pixels.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window
from rich.progress import track

from fusar_edge.data.simulator import ships
from fusar_edge.data.simulator.noise import fractal, resized
from fusar_edge.manifest import output_file

Field = npt.NDArray[np.float32]
STRIP, COARSE = 512, 64
"""Rows drawn at once; pixels of one cell of what changes slowly."""
SPACING_M, LOOKS, TEXTURE_ORDER = 10.0, 4, 8.0
SEA_DB, LAND_DB, NOISE_DB = -19.0, -8.0, -30.0
LAND_SHARE = 0.1
EDGE_PX = 40.0
MARGIN = 64
"""Rows beyond a strip that a ship and its sidelobes may reach into."""


def draw_fleet(rng: np.random.Generator, width: int, height: int, count: int) -> list[ships.Ship]:
    """Ships on the sea, apart from each other."""
    fleet: list[ships.Ship] = []
    west = width * LAND_SHARE * 1.3 + EDGE_PX
    while len(fleet) < count:
        length = ships.draw_length_m(rng) / SPACING_M
        y, x = rng.uniform(EDGE_PX, height - EDGE_PX), rng.uniform(west, width - EDGE_PX)
        if all(math.hypot(y - other.y, x - other.x) > 100 for other in fleet):
            beam = max(length * rng.uniform(0.12, 0.2), 1.5)
            fleet.append(ships.Ship(y, x, length, beam, rng.uniform(0, 2 * math.pi), moored=False))
    return fleet


def slow_fields(rng: np.random.Generator, width: int, height: int) -> tuple[Field, Field]:
    """Mean power of sea and land together, and which is land (0..1), on the coarse grid."""
    rows, cols = math.ceil(height / COARSE) + 2, math.ceil(width / COARSE) + 2
    sea_db = SEA_DB + 1.2 * fractal(rng, rows, cols, 3.0, 1.0)
    land_db = LAND_DB + 2.5 * fractal(rng, rows, cols, 1.5, 1.0)
    shore = cols * LAND_SHARE * (1.0 + 0.2 * fractal(rng, rows, 2, 2.0, 1.0)[:, :1])
    land = (np.arange(cols)[None, :] < shore).astype(np.float32)
    return (10 ** (np.where(land > 0, land_db, sea_db) / 10)).astype(np.float32), land


def strip_power(
    rng: np.random.Generator, mean: Field, top: int, rows: int, width: int, fleet: list[ships.Ship]
) -> Field:
    """float32 [rows, width]: clutter with texture and speckle, noise, ships."""
    first = max(top // COARSE - 1, 0)  # a cell more on either side, for the interpolation
    part = mean[first : top // COARSE + math.ceil(rows / COARSE) + 2]
    clutter = resized(part, part.shape[0] * COARSE, part.shape[1] * COARSE)[top - first * COARSE :][:rows, :width]
    texture = rng.standard_gamma(TEXTURE_ORDER, (math.ceil(rows / 2), math.ceil(width / 2)), np.float32) / TEXTURE_ORDER
    clutter = clutter * np.repeat(np.repeat(texture, 2, 0), 2, 1)[:rows, :width] + np.float32(10 ** (NOISE_DB / 10))
    power: Field = clutter * rng.standard_gamma(LOOKS, (rows, width), np.float32) / np.float32(LOOKS)
    for number, ship in enumerate(fleet):
        if top - MARGIN < ship.y < top + rows + MARGIN:
            own = np.random.default_rng([number, 7])  # the same ship in both strips that it lies in
            near = ships.Ship(ship.y - top, ship.x, ship.length, ship.beam, ship.heading, moored=False)
            ships.draw_ship(own, power, near, own.normal(0.0, 3.0), LOOKS, 0.5)
    return power


def write_scene(path: Path, width: int, height: int, count: int, seed: int) -> list[ships.Ship]:
    """The file appears whole or not at all."""
    rng = np.random.default_rng(seed)
    fleet = draw_fleet(rng, width, height, count)
    mean, _ = slow_fields(rng, width, height)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32611",
        "transform": Affine(SPACING_M, 0, 200_000, 0, -SPACING_M, 3_900_000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "zlevel": 1,
        "num_threads": 2,
        "bigtiff": "if_safer",
    }
    with output_file(path) as work, rasterio.open(work, "w", **profile) as file:
        file.update_tags(SIMULATED="YES", SHIPS=str(count), SEED=str(seed))
        for top in track(range(0, height, STRIP), "drawing"):
            rows = min(STRIP, height - top)
            power = strip_power(rng, mean, top, rows, width, fleet)
            grey = np.clip(np.sqrt(power) * np.float32(255), 0, 255).astype(np.uint8)
            file.write(grey, 1, window=Window(0, top, width, rows))
    return fleet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=29_400)
    parser.add_argument("--height", type=int, default=24_400)
    parser.add_argument("--ships", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    fleet = write_scene(given.out, given.width, given.height, given.ships, given.seed)
    boxes = [[round(v, 2) for v in ship.box()] for ship in fleet]
    truth = {"simulated": True, "width": given.width, "height": given.height, "seed": given.seed, "boxes_px": boxes}
    with output_file(given.out.with_suffix(".json"), force=True) as work:
        work.write_text(json.dumps(truth), encoding="utf-8")
    print(json.dumps({"out": str(given.out), "ships": len(boxes), "bytes": given.out.stat().st_size}))


if __name__ == "__main__":
    main()
