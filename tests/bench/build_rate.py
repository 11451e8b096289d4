"""Rate and peak memory of `anchors build`, beside a plain tiled copy of the same file by GDAL, each in its own process.

    python tests/bench/full_tile.py full.tif
    python tests/bench/build_rate.py full.tif [--spacing 10 --spacing 80] [--jobs 2]

The copy is what `gdal_translate -co TILED=YES` makes (the same CreateCopy, called through rasterio), once plain and
once with ZSTD. Rates are raw bytes of the source (64 x rows x columns) a second. Machines are noisy: compare ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio

COPY = """
import sys, rasterio, rasterio.shutil
with rasterio.Env(GDAL_CACHEMAX=134217728):
    rasterio.shutil.copy(sys.argv[1], sys.argv[2], driver="GTiff", TILED="YES", BIGTIFF="YES", **eval(sys.argv[3]))
"""
BUILD = """
import sys
from fusar_edge.anchors.building.build import build_table
build_table([sys.argv[1]], sys.argv[2], years=[2024], spacing_m=int(sys.argv[3]), jobs=int(sys.argv[4]) or None)
"""


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {arguments}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tile")
    parser.add_argument("--spacing", type=int, action="append")
    parser.add_argument("--jobs", type=int, default=0)
    given = parser.parse_args()
    with rasterio.open(given.tile) as dataset:
        raw = dataset.width * dataset.height * dataset.count
    work = Path(tempfile.mkdtemp(dir=Path(given.tile).parent))
    runs = [
        ("gdal copy, tiled", COPY, ["{}"]),
        ("gdal copy, tiled, zstd", COPY, ["{'COMPRESS': 'ZSTD'}"]),
        *(
            (f"build, {spacing} m", BUILD, [str(spacing), str(given.jobs)])
            for spacing in given.spacing or [10, 80, 640]
        ),
    ]
    try:
        for name, code, options in runs:
            out = work / "out"
            seconds, memory = measured(code, given.tile, str(out), *options)
            figures = {"run": name, "seconds": round(seconds, 1), "mb_per_s": round(raw / seconds / 1e6)}
            print(json.dumps(figures | {"peak_mib": round(memory)}), flush=True)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
