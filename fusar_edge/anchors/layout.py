"""How a table lies on disk: Zarr v3, one group per UTM zone, which xarray opens.

    TABLE/manifest.json           sources, years, coverage, licence and credit; SHA-256 of every other file
    TABLE/zarr.json
    TABLE/utm16n/codes            int8 [year, y, x, band], chunks 1 x 64 x 64 x 64 in shards, zstd + crc32c
    TABLE/utm16n/year, y, x, band coordinates; y and x are cell centres in metres, y falling
    TABLE/utm16n/spatial_ref      CRS and GeoTransform, after the CF convention as rioxarray reads it

Cells are squares of `spacing_m` whose edges lie on multiples of it from the UTM origin. A shard without any vector has
no file. Another year appends along the first axis; another zone is another group. Inside a chunk the bands are planes,
as in the published files: neighbouring cells are alike, the bands of one cell are not (0.72 of the raw size on real
data, 0.86 with the bands of a cell side by side; docs/log.md).

A baked table (`anchors bake`) has the same files; its bands are the coefficients of a low-rank TLM output, int8 times
the `scale` in the root's attributes, and `basis.npz` holds what they multiply.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.anchors.codes import BANDS, NODATA
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.zones import epsg_from_zone

FORMAT = "fusar-edge anchors 1"
CHUNK = 64
"""Cells along a chunk's side: 256 KiB decoded."""
MOST_SHARD_CELLS = 512
SHARD_M = 40_960
"""Ground along a shard's side, at most: half of a published tile, so that a coarse table is built in parallel too."""


def shard_cells(spacing_m: int) -> int:
    """Cells along the side of a shard, which is one file: 512 up to 80 m, 64 from 640 m on."""
    return max(CHUNK, min(MOST_SHARD_CELLS, SHARD_M // spacing_m // CHUNK * CHUNK))


def create_root(folder: Path, spacing_m: int, zones: list[str], scale: list[float] | None = None) -> Any:
    """A new zarr.Group in `folder`. Zones are listed, since zarr warns of the manifest when it lists the folder.

    `scale`: of a baked table, what one step of each coefficient's code is worth.
    """
    import zarr

    attributes = {"format": FORMAT, "spacing_m": spacing_m, "zones": zones} | ({"scale": scale} if scale else {})
    return zarr.create_group(folder, zarr_format=3, attributes=attributes, overwrite=True)


def create_zone(root: Any, zone: str, cells: Cells, years: list[int], spacing_m: int, bands: int = BANDS) -> Any:
    """The empty group of a zone, with its coordinates; returns the zarr.Array of codes."""
    import pyproj
    from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec

    west, north = cells.col0 * spacing_m, cells.row1 * spacing_m
    rows, cols = cells.row1 - cells.row0, cells.col1 - cells.col0
    group = root.create_group(zone, attributes={"proj:code": f"EPSG:{epsg_from_zone(zone)}"})
    coordinates = {
        "year": np.array(years, dtype=np.int32),
        "y": north - spacing_m * (np.arange(rows) + 0.5),
        "x": west + spacing_m * (np.arange(cols) + 0.5),
        "band": np.arange(bands, dtype=np.int16),
    }
    for name, values in coordinates.items():
        group.create_array(name, data=values, chunks=values.shape, dimension_names=(name,), compressors=Crc32cCodec())
    transform = f"{west} {spacing_m} 0 {north} 0 {-spacing_m}"
    dequantise = "v scale[band], scale in the root's attributes" if "scale" in root.attrs else "sign(v) (v / 127.5)^2"
    reference = group.create_array(
        "spatial_ref",
        shape=(),
        dtype="int32",
        attributes={
            "crs_wkt": pyproj.CRS.from_epsg(epsg_from_zone(zone)).to_wkt("WKT1_GDAL"),
            "GeoTransform": transform,
        },
    )
    reference[...] = epsg_from_zone(zone)
    side = shard_cells(spacing_m)
    return group.create_array(
        "codes",
        shape=(len(years), rows, cols, bands),
        dtype="int8",
        chunks=(1, CHUNK, CHUNK, bands),
        shards=(1, side, side, bands),
        filters=[TransposeCodec(order=(0, 3, 1, 2))],
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=NODATA,
        dimension_names=("year", "y", "x", "band"),
        attributes={"grid_mapping": "spatial_ref", "dequantise": f"{dequantise}; -128 is no vector"},
    )


def shard_file(zone: str, year_index: int, shard_row: int, shard_col: int) -> str:
    """Path of a shard below the table, as the manifest lists it."""
    return f"{zone}/codes/c/{year_index}/{shard_row}/{shard_col}/0"
