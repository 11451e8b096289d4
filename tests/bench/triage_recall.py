"""Which tiles the pre-screen of `serve` keeps: recall of tiles with ships, and the share of empty sea that is left out.

    python tests/bench/triage_recall.py [--tiles 400] [--data FOLDER]

Simulated tiles of 504 px by kind of scene. With the real data of the tests: every SSDD chip (all hold ships); ships of
SSDD chips laid into empty sea, at the chip's own contrast, both simulated and Sentinel-1's; empty Sentinel-1 sea.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fusar_edge.data.converters.voc import read_voc
from fusar_edge.data.simulator import simulate_scene
from fusar_edge.sar.image import grey_from_file
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY, grey_from_values
from fusar_edge.sar.scene import TileImage, open_scene
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.sar.triage import verdict

TILE_PX = 504
EMPTY_SEA = {"059": (504, 1024, 0, 504), "199": (378, 756, 0, 378)}
"""Rows and columns without ship or shore in two VH fragments of Sentinel-1, seen by eye."""
SEA_PX, SEA_STEP = 252, 63
MARGIN_PX = 6


def simulated(seed: int, kind: str, ships: bool) -> tuple[np.ndarray, int]:
    """Grey [504, 504] and the number of ships with their centre inside."""
    scene = simulate_scene(seed, TILE_PX, kind=kind, count=None if ships else 0)
    return grey_from_values(scene.power, "power", DEFAULT_RADIOMETRY), len(scene.ships)


def kept(grey: np.ndarray) -> tuple[bool, str]:
    judged = verdict(TileImage(np.ascontiguousarray(grey, np.float32), np.ones(grey.shape, bool)))
    return judged.keep, judged.reason


def report(name: str, greys: Iterator[np.ndarray]) -> None:
    verdicts, seconds = [], 0.0
    for grey in greys:
        start = time.process_time()
        verdicts.append(kept(grey))
        seconds += time.process_time() - start
    if verdicts:
        share = sum(keep for keep, _ in verdicts) / len(verdicts)
        reasons = dict(Counter(reason for _, reason in verdicts))
        figures = {"tiles": len(verdicts), "kept": round(share, 4), "reasons": reasons}
        print(json.dumps({"set": name, **figures, "cpu_ms": round(1e3 * seconds / len(verdicts), 1)}), flush=True)


def real_sea(data: Path) -> Iterator[np.ndarray]:
    for name, (top, bottom, left, right) in EMPTY_SEA.items():
        with open_scene(data / "scenes" / "s1a_vh_10m_epsg3395" / f"{name}.tif") as scene:
            for row in range(top, bottom - SEA_PX + 1, SEA_STEP):
                for col in range(left, right - SEA_PX + 1, SEA_STEP):
                    yield scene.read(TileWindow(row, col, SEA_PX, SEA_PX)).grey


def with_ships(data: Path, seas: list[np.ndarray], seed: int = 0) -> Iterator[np.ndarray]:
    """Each chip's smallest ship in a sea of the same median, wherever it falls."""
    rng = np.random.default_rng(seed)
    for path in sorted((data / "ssdd" / "images").glob("*")):
        chip, image = grey_from_file(path), read_voc(data / "ssdd" / "annotations" / f"{path.stem}.xml")
        boxes = [box for _, box in image.objects]
        x1, y1, x2, y2 = min(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        sea = seas[rng.integers(len(seas))].copy()
        ship = chip[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1]
        if min(ship.shape) < 2 or max(ship.shape) > min(sea.shape) - 2 * MARGIN_PX or np.median(chip) <= 0:
            continue
        row, col = (int(rng.integers(0, n - m)) for n, m in zip(sea.shape, ship.shape, strict=True))
        place = sea[row : row + ship.shape[0], col : col + ship.shape[1]]
        np.maximum(place, np.clip(ship * np.median(sea) / np.median(chip), 0, 1), out=place)
        yield sea


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=400)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    seeds = range(50_000, 50_000 + given.tiles)  # the thresholds were chosen on lower ones
    empty = [simulated(seed, "open sea", False)[0] for seed in seeds[: given.tiles // 4]]
    report("simulated, empty open sea", (simulated(seed, "open sea", False)[0] for seed in seeds))
    for kind in ("open sea", "coast", "harbour", "strait"):
        drawn = (simulated(seed, kind, True) for seed in seeds)
        report(f"simulated, ships, {kind}", (grey for grey, ships in drawn if ships))
    report("simulated, inland", (simulated(seed, "inland", False)[0] for seed in seeds[: given.tiles // 4]))
    if given.data:
        report("Sentinel-1 VH, empty sea", real_sea(given.data))
        report("SSDD chips", (grey_from_file(path) for path in sorted((given.data / "ssdd" / "images").glob("*"))))
        report("SSDD ships in simulated sea", with_ships(given.data, empty))
        report("SSDD ships in Sentinel-1 sea", with_ships(given.data, list(real_sea(given.data))))


if __name__ == "__main__":
    main()
