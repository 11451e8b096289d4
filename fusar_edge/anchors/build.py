"""Builds a table from AlphaEarth rasters and point tables, one shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import BANDS, CREDIT, LICENCE, codes_from_sums, valid_from_codes
from fusar_edge.anchors.layout import CHUNK, FORMAT, SHARD, create_root, create_zone
from fusar_edge.anchors.sources import Cells, Layer, Source, Sums, open_source
from fusar_edge.anchors.zones import lonlat_bounds
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import (
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    sha256_file,
    write_manifest,
)

SPACINGS_M = (1, 2560)
"""Smallest and largest spacing; 256 x 256 pixels of 10 m are far below what an int32 sum holds."""
YEARS = (2000, 2100)


def build_table(
    sources: list[Path],
    out: Path,
    *,
    year: int | None,
    spacing_m: int,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the table `out` and return its manifest.

    A cell holds the re-normalised mean of the valid vectors whose pixel centre or point lies in it, over all sources
    (as the official overviews are made); a cell with one vector keeps its codes, one with none is NODATA. The sums are
    exact integers, so the order of sources, blocks and rows does not matter. `year` is that of the rasters; point
    tables bring their own. `progress(done, total)` counts shards. Memory: about 450 MiB, whatever the size of the area.
    Raises AnchorError (a source that is not AlphaEarth's, named) and OutputExistsError; neither leaves output behind.
    """
    check_output(out, force)
    _check_settings(sources, year, spacing_m)
    opened = [open_source(Path(path), year=year, spacing_m=spacing_m) for path in sources]
    layers = _layers(opened)
    with output_folder(out, force=force) as folder:
        manifest = Manifest(stage="anchors", inputs=_input_hashes(opened))
        root = create_root(folder, spacing_m, [zone for zone, _ in _zones(layers)])
        arrays = {
            zone: create_zone(root, zone, cells, _years(layers, zone), spacing_m) for zone, cells in _zones(layers)
        }
        valid_cells = _fill(arrays, opened, layers, progress)
        manifest.files = folder_hashes(folder)
        manifest.figures = _figures(layers, valid_cells, spacing_m)
        manifest.settings = {"format": FORMAT, "licence": LICENCE, "credit": CREDIT}
        manifest.packages = package_versions("zarr", "numcodecs", "numpy", "pyproj", "rasterio")
        write_manifest(folder, manifest)
    return manifest


def _check_settings(sources: list[Path], year: int | None, spacing_m: int) -> None:
    if not sources:
        raise AnchorError("no sources: give at least one AlphaEarth GeoTIFF or CSV table")
    if not SPACINGS_M[0] <= spacing_m <= SPACINGS_M[1]:
        raise AnchorError(f"spacing is {spacing_m} m; give {SPACINGS_M[0]} to {SPACINGS_M[1]} m")
    if year is not None and not YEARS[0] <= year <= YEARS[1]:
        raise AnchorError(f"year is {year}; give {YEARS[0]} to {YEARS[1]} (AlphaEarth begins with 2017)")


def _input_hashes(sources: list[Source]) -> dict[str, str]:
    """File name -> SHA-256; a name that occurs twice gets a number."""
    hashes: dict[str, str] = {}
    for source in sources:
        name, number = source.path.name, 2
        while name in hashes:
            name, number = f"{source.path.name}#{number}", number + 1
        hashes[name] = sha256_file(source.path)
    return hashes


def _layers(sources: list[Source]) -> dict[Layer, Cells]:
    """The box of cells that the sources touch, per zone and year."""
    boxes: dict[Layer, Cells] = {}
    for source in sources:
        for layer, cells in source.layers().items():
            boxes[layer] = boxes[layer].union(cells) if layer in boxes else cells
    return dict(sorted(boxes.items()))


def _zones(layers: dict[Layer, Cells]) -> list[tuple[str, Cells]]:
    """The box of each zone, all years together."""
    boxes: dict[str, Cells] = {}
    for layer, cells in layers.items():
        boxes[layer.zone] = boxes[layer.zone].union(cells) if layer.zone in boxes else cells
    return list(boxes.items())


def _years(layers: dict[Layer, Cells], zone: str) -> list[int]:
    return sorted(layer.year for layer in layers if layer.zone == zone)


def _shards(box: Cells) -> Iterator[Cells]:
    """Windows of a zone's box, from the north-west, as the array's shards cut it."""
    for top in range(box.row1, box.row0, -SHARD):
        for left in range(box.col0, box.col1, SHARD):
            yield Cells(left, max(top - SHARD, box.row0), min(left + SHARD, box.col1), top)


def _fill(
    arrays: dict[str, Any],
    sources: list[Source],
    layers: dict[Layer, Cells],
    progress: Callable[[int, int], None] | None,
) -> dict[Layer, int]:
    """Write every shard that holds a vector; returns the valid cells per layer."""
    boxes = dict(_zones(layers))
    jobs = [(layer, window) for layer in layers for window in _shards(boxes[layer.zone])]
    valid = dict.fromkeys(layers, 0)
    for done, (layer, window) in enumerate(jobs, start=1):
        codes = _shard_codes(sources, layer, window)
        if codes is not None:
            box = boxes[layer.zone]
            row, col = box.row1 - window.row1, window.col0 - box.col0
            year_index = _years(layers, layer.zone).index(layer.year)
            arrays[layer.zone][year_index, row : row + codes.shape[0], col : col + codes.shape[1]] = codes
            valid[layer] += int(valid_from_codes(codes).sum())
        if progress is not None:
            progress(done, len(jobs))
    if not any(valid.values()):
        names = ", ".join(source.path.name for source in sources)
        raise AnchorError(f"{names}: no valid vector in any source, every pixel is masked; give files that cover land")
    return valid


def _shard_codes(sources: list[Source], layer: Layer, window: Cells) -> npt.NDArray[np.int8] | None:
    """int8 [rows, cols, 64], or None where no source has a valid vector."""
    near = [s for s in sources if layer in (boxes := s.layers()) and boxes[layer].overlap(window)]
    if not near:
        return None
    rows, cols = window.row1 - window.row0, window.col1 - window.col0
    sums = Sums(np.zeros((rows, cols, BANDS), np.int32), np.zeros((rows, cols), np.int32))
    for source in near:
        source.add_to(sums, layer, window)
    if not sums.counts.any():
        return None
    bands = range(0, rows, CHUNK)  # the float64 values of a whole shard would take 128 MiB several times over
    return np.concatenate([codes_from_sums(sums.squares[r : r + CHUNK], sums.counts[r : r + CHUNK]) for r in bands])


def _figures(layers: dict[Layer, Cells], valid: dict[Layer, int], spacing_m: int) -> dict[str, Any]:
    boxes = dict(_zones(layers))
    zones = {}
    for zone, box in boxes.items():
        west, south, east, north = (int(v) * spacing_m for v in box)
        area = (box.row1 - box.row0) * (box.col1 - box.col0)
        years = {str(layer.year): count for layer, count in valid.items() if layer.zone == zone}
        zones[zone] = {
            "utm_bounds": [west, south, east, north],
            "bounds": [round(v, 6) for v in lonlat_bounds(zone, west, south, east, north)],
            "rows": box.row1 - box.row0,
            "cols": box.col1 - box.col0,
            "valid_cells": years,
            "coverage": {year: round(count / area, 6) for year, count in years.items()},
        }
    return {"spacing_m": spacing_m, "years": sorted({layer.year for layer in layers}), "zones": zones}
