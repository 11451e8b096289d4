"""Synthetic AlphaEarth files in the published layout."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import BAND_NAMES, NODATA, codes_from_vectors

Codes = npt.NDArray[np.int8]


def random_codes(rows: int, cols: int, *, seed: int = 0, masked: float = 0.0) -> Codes:
    """int8 [rows, cols, 64], neighbouring vectors alike, lengths 0.992 to 1.008, a share masked."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=64) + 0.5 * rng.normal(size=(rows, cols, 64))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    codes = codes_from_vectors(vectors * rng.uniform(0.992, 1.008, size=(rows, cols, 1)))
    codes[rng.random((rows, cols)) < masked] = NODATA
    return codes


def write_raster(
    path: Path, codes: Codes, *, west: float, north: float, bottom_up: bool = False, **profile: Any
) -> Path:
    """codes [rows, cols, 64], row 0 the northernmost, as a tiled GeoTIFF at 10 m."""
    import rasterio

    rows, cols, bands = codes.shape
    height_m = rows * 10
    transform = (
        rasterio.Affine(10, 0, west, 0, 10, north - height_m)
        if bottom_up
        else rasterio.Affine(10, 0, west, 0, -10, north)
    )
    settings = {
        "driver": "GTiff", "dtype": "int8", "nodata": NODATA, "count": bands, "height": rows, "width": cols,
        "crs": "EPSG:32616", "transform": transform, "tiled": True, "blockxsize": 64, "blockysize": 64,
        "compress": "zstd", "interleave": "band",
    } | profile  # fmt: skip
    with rasterio.open(path, "w", **settings) as dataset:
        dataset.write(np.moveaxis(codes[::-1] if bottom_up else codes, -1, 0).astype(settings["dtype"]))
    return path


def write_points(
    path: Path,
    lat: npt.ArrayLike,
    lon: npt.ArrayLike,
    vectors: npt.NDArray[np.floating],
    year: npt.ArrayLike | None = 2024,
) -> Path:
    """A table as Earth Engine exports it; year None leaves the column out."""
    lat, lon = np.atleast_1d(lat), np.atleast_1d(lon)
    names = ["system:index", *BAND_NAMES, "latitude", "longitude", *([] if year is None else ["year"])]
    years = None if year is None else np.broadcast_to(year, lat.shape)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i, vector in enumerate(vectors):
            row = [i, *(repr(float(v)) for v in vector), repr(float(lat[i])), repr(float(lon[i]))]
            writer.writerow(row if years is None else [*row, years[i]])
    return path
