"""Synthetic AlphaEarth files in the published layout."""

from __future__ import annotations

import csv
import tempfile
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


def overview_by_hand(codes: Codes, factor: int) -> Codes:
    """The overview of codes [rows, cols, 64]: re-normalised means of the valid vectors of factor x factor pixels."""
    rows, cols = codes.shape[0] // factor, codes.shape[1] // factor
    cells = codes.reshape(rows, factor, cols, factor, 64).swapaxes(1, 2).reshape(rows, cols, -1, 64)
    valid = (cells != NODATA).all(axis=-1)
    values = np.where(valid[..., None], cells, 0).astype(np.float64)
    mean = (np.sign(values) * (values / 127.5) ** 2).sum(axis=2)
    length = np.linalg.norm(mean, axis=-1, keepdims=True)
    out = codes_from_vectors(mean / np.where(length > 0, length, 1))
    single = valid.sum(axis=2) == 1
    out[single] = cells[single][valid[single]]
    out[length[..., 0] == 0] = NODATA
    return out


def write_cog(
    path: Path,
    codes: Codes,
    *,
    west: float,
    north: float,
    bottom_up: bool = False,
    factors: tuple[int, ...] = (2, 4, 8),
    block: int = 64,
    **profile: Any,
) -> Path:
    """codes [rows, cols, 64] in the published layout: planar blocks, ZSTD, overviews first, re-normalised means."""
    import rasterio.shutil

    with tempfile.TemporaryDirectory() as folder:
        levels = []
        for factor in (1, *factors):
            level = codes if factor == 1 else overview_by_hand(codes, factor)
            levels.append(write_raster(Path(folder) / f"{factor}.tif", level, west=west, north=north))
            if bottom_up:
                write_raster(levels[-1], level[::-1], west=west, north=north)
        rows, cols, bands = codes.shape
        base = rasterio.Affine(10, 0, west, 0, 10, north - 10 * rows) if bottom_up else None
        transform = base or rasterio.Affine(10, 0, west, 0, -10, north)
        vrt = Path(folder) / "all.vrt"
        vrt.write_text(
            f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}"><SRS>{profile.pop("crs", "EPSG:32616")}</SRS>'
            f"<GeoTransform>{', '.join(map(str, transform.to_gdal()))}</GeoTransform>"
            + "".join(_vrt_band(band, [str(level) for level in levels]) for band in range(1, bands + 1))
            + "</VRTDataset>"
        )
        settings = {
            "driver": "GTiff", "tiled": True, "blockxsize": block, "blockysize": block, "compress": "zstd",
            "interleave": "band", "copy_src_overviews": True,
        } | profile  # fmt: skip
        rasterio.shutil.copy(vrt, path, **settings)
    return path


def _vrt_band(band: int, levels: list[str]) -> str:
    parts = [f"<SourceFilename>{level}</SourceFilename><SourceBand>{band}</SourceBand>" for level in levels]
    overviews = "".join(f"<Overview>{part}</Overview>" for part in parts[1:])
    return (
        f'<VRTRasterBand dataType="Int8" band="{band}"><NoDataValue>{NODATA}</NoDataValue>'
        f"{overviews}<SimpleSource>{parts[0]}</SimpleSource></VRTRasterBand>"
    )


def write_north_up_vrt(path: Path, tiff: Path) -> Path:
    """A .vrt beside a bottom-up file that shows it north-up, by nearest neighbour, as `gdalwarp -of VRT` makes it."""
    import rasterio.shutil
    from rasterio.vrt import WarpedVRT

    with rasterio.open(tiff) as dataset:
        t, height = dataset.transform, dataset.height
        north_up = rasterio.Affine(t.a, 0, t.c, 0, -t.e, t.f + t.e * height)
        with WarpedVRT(
            dataset, transform=north_up, width=dataset.width, height=height, crs=dataset.crs, dtype="int8"
        ) as turned:
            rasterio.shutil.copy(turned, path, driver="VRT")
    return path


def write_index(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`aef_index.parquet`: each row needs `path` and `year`; what else it lacks is a tile of zone 17N."""
    import pyarrow
    from pyarrow import parquet

    tile = {
        "fid": 1, "geometry": b"", "crs": "EPSG:32617", "utm_zone": "17N",
        "utm_west": 172320.0, "utm_south": 3932160.0, "utm_east": 254240.0, "utm_north": 4014080.0,
        "wgs84_west": -84.6, "wgs84_south": 35.4, "wgs84_east": -83.6, "wgs84_north": 36.2,
    }  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([tile | row for row in rows]), path)
    return path
