"""A synthetic tile as large as the published ones: 8192 x 8192 pixels, 64 int8 planes in blocks of 1024, ZSTD.

    python tests/bench/full_tile.py tile.tif        about 2 GB on disk, minutes to make

Vectors change smoothly over some hundred metres with noise upon it, so that they compress about as the real ones
(0.49 of 4.29 GB).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

SIDE, BLOCK, BANDS, NODATA = 8192, 1024, 64, -128
FIELD_PX = 32
FIELD, NOISE = 0.018, 0.009
"""What varies around a block's mean vector of length 1, smoothly and from pixel to pixel; sets the compressed size."""


def block_codes(seed: int) -> np.ndarray:
    """int8 [64, BLOCK, BLOCK]; one corner is masked, as sea is."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(scale=0.125, size=(BANDS, 1, 1))
    coarse = mean + rng.normal(scale=FIELD, size=(BANDS, BLOCK // FIELD_PX + 1, BLOCK // FIELD_PX + 1))
    coarse = coarse.astype(np.float32)
    at = np.arange(BLOCK, dtype=np.float32) / FIELD_PX
    low, share = at.astype(int), (at % 1)[:, None]
    down = coarse[:, low] * (1 - share) + coarse[:, low + 1] * share  # (64, BLOCK, coarse)
    values = down[..., low] * (1 - share.T) + down[..., low + 1] * share.T
    values += rng.standard_normal(values.shape, dtype=np.float32) * NOISE
    values /= np.sqrt(np.square(values).sum(axis=0))
    codes = np.rint(np.copysign(np.sqrt(np.abs(values)) * 127.5, values)).clip(-127, 127).astype(np.int8)
    codes[:, : BLOCK // 8, : BLOCK // 8] = NODATA
    return codes


def write_full_tile(path: Path, side: int = SIDE) -> Path:
    profile = {
        "driver": "GTiff", "dtype": "int8", "count": BANDS, "width": side, "height": side, "nodata": NODATA,
        "crs": "EPSG:32617", "transform": rasterio.Affine(10, 0, 172320, 0, -10, 4014080), "compress": "zstd",
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "bigtiff": "yes",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for index, (row, col) in enumerate((r, c) for r in range(0, side, BLOCK) for c in range(0, side, BLOCK)):
            dataset.write(block_codes(index), window=Window(col, row, BLOCK, BLOCK))
            print(f"\r{index + 1} of {(side // BLOCK) ** 2} blocks", end="", file=sys.stderr)
    return path


if __name__ == "__main__":
    write_full_tile(Path(sys.argv[1]))
