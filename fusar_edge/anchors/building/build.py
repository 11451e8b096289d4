"""Builds a table from AlphaEarth rasters and point tables: in parallel, and going on where it was stopped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusar_edge.anchors.building.extent import Extent, extent_from_sources, piece_side, windows
from fusar_edge.anchors.building.pieces import Piece, write_piece
from fusar_edge.anchors.building.unfinished import Shard, Unfinished, unfinished_table
from fusar_edge.anchors.building.workers import done_in_any_order, open_workers
from fusar_edge.anchors.codes import BANDS, CREDIT, LICENCE
from fusar_edge.anchors.layout import FORMAT, create_root, create_zone
from fusar_edge.anchors.sources.source import Cells, Layer, Source, SourceFile, open_source, source_file
from fusar_edge.anchors.zones import lonlat_bounds
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import Manifest, check_output, package_versions, sha256_file, write_manifest

if TYPE_CHECKING:
    from fusar_edge.anchors.areas.area import Area

Given = TypeVar("Given")
Made = TypeVar("Made")
Progress = Callable[[int, int, str], None]
"""Done, in all, of what."""

SPACINGS_M = (1, 2560)
"""Smallest and largest spacing; 256 x 256 pixels of 10 m are far below what an int32 sum holds."""
YEARS = (2000, 2100)
HEADERS_AT_ONCE = 8
METHODS = {False: "re-normalised mean of the valid vectors in a cell", True: "the sources' own overviews"}


def build_table(
    sources: Sequence[str | Path | SourceFile],
    out: Path,
    *,
    years: Sequence[int] = (),
    spacing_m: int,
    area: Area | None = None,
    overviews: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
    force: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Manifest:
    """Write the table `out` and return its manifest.

    A cell holds the re-normalised mean of the valid vectors whose pixel centre or point lies in it, over all sources
    (as the official overviews are made); a cell with one vector keeps its codes, one with none is NODATA. The sums are
    exact integers, so neither the order of sources, blocks and rows nor the number of workers changes a byte.
    `sources`: paths or URLs, `@YEAR` behind a raster's; `years`: the one of the rasters that bring none, and those to
    take from tables of points (none: all). `area`: only cells that it touches. `overviews`: rasters' own overviews of
    the spacing instead of their pixels, a fraction of the bytes. `jobs`, `cluster`: see `open_workers`; memory is about
    250 MiB for each piece worked on at once.

    A build that was stopped goes on when it is given again. Raises AnchorError (a source that is not AlphaEarth's,
    named; an output that cannot be written) and OutputExistsError; what looks complete is complete.
    """
    out = Path(out)
    check_output(out, force)
    _check_settings(sources, years, spacing_m)
    files = [file if isinstance(file, SourceFile) else source_file(str(file)) for file in sources]
    opened = _opened(files, years, spacing_m, overviews, progress)
    boxes = extent_from_sources(opened, years, area, spacing_m)
    hashes = _hashes(opened, progress)
    plan = _plan(opened, hashes, boxes, area, spacing_m, overviews)
    with unfinished_table(out, force=force) as unfinished:
        if not unfinished.take_up(plan, force):
            _create(unfinished.table, boxes, spacing_m)
        _write_pieces(unfinished, opened, boxes, area, spacing_m, (jobs, cluster), progress)
        manifest = _manifest(unfinished, plan, boxes, spacing_m)
        write_manifest(unfinished.table, manifest)
        unfinished.publish()
    return manifest


def _check_settings(sources: Sequence[Any], years: Sequence[int], spacing_m: int) -> None:
    if not sources:
        raise AnchorError("no sources: give at least one AlphaEarth GeoTIFF or table of points")
    if not SPACINGS_M[0] <= spacing_m <= SPACINGS_M[1]:
        raise AnchorError(f"spacing is {spacing_m} m; give {SPACINGS_M[0]} to {SPACINGS_M[1]} m")
    for year in years:
        if not YEARS[0] <= year <= YEARS[1]:
            raise AnchorError(f"year is {year}; give {YEARS[0]} to {YEARS[1]} (AlphaEarth begins with 2017)")


def _opened(
    files: list[SourceFile], years: Sequence[int], spacing_m: int, overviews: bool, progress: Progress
) -> list[Source]:
    def opening(file: SourceFile) -> Source:
        return open_source(file, years, spacing_m, overviews=overviews)

    opened = _side_by_side(opening, files, progress, "opening sources")
    _refuse_overlaps(opened)
    return opened


def _side_by_side(
    function: Callable[[Given], Made], values: Sequence[Given], progress: Progress, what: str
) -> list[Made]:
    """In the order given. Threads: a header over the network is waited for, not worked on."""
    made = []
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        try:
            for result in pool.map(function, values):
                made.append(result)
                progress(len(made), len(values), what)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return made


def _refuse_overlaps(sources: list[Source]) -> None:
    """A pixel that two rasters hold would count twice."""
    from fusar_edge.anchors.sources.rasters import RasterSource

    by_layer: dict[Layer, list[RasterSource]] = defaultdict(list)
    for source in sources:
        if not isinstance(source, RasterSource):
            continue
        west, south, east, north = source.bounds_m
        for other in by_layer[source.layer]:
            left, bottom, right, top = other.bounds_m
            if west < right and left < east and south < top and bottom < north:
                raise AnchorError(
                    f"{other.location} and {source.location} overlap in the same year: pixels would count "
                    "twice. Give one of them, or cut one so that they only touch"
                )
        by_layer[source.layer].append(source)


def _hashes(sources: list[Source], progress: Progress) -> dict[str, str]:
    """File name -> hash; a name that occurs twice gets a number."""
    from fusar_edge.anchors.sources.locations import fingerprint, name_of

    found = _side_by_side(lambda source: fingerprint(source.location), sources, progress, "hashing sources")
    hashes: dict[str, str] = {}
    for source, value in zip(sources, found, strict=True):
        name = unique = name_of(source.location)
        number = 2
        while unique in hashes:
            unique, number = f"{name}#{number}", number + 1
        hashes[unique] = value
    return hashes


def _plan(
    sources: list[Source],
    hashes: dict[str, str],
    boxes: Extent,
    area: Area | None,
    spacing_m: int,
    overviews: bool,
) -> dict[str, Any]:
    """All that decides what the table holds."""
    return {
        "format": FORMAT,
        "sources": hashes,
        "layers": sorted({tuple(layer) for source in sources for layer in source.layers()}),
        "zones": boxes,
        "area": area.geojson() if area else None,
        "spacing": spacing_m,
        "method": METHODS[overviews],
        "piece": piece_side(sources, spacing_m),
    }


def _create(table: Path, boxes: Extent, spacing_m: int) -> None:
    root = create_root(table, spacing_m, list(boxes))
    for zone, (box, years) in boxes.items():
        create_zone(root, zone, box, years, spacing_m)


def _write_pieces(
    unfinished: Unfinished,
    sources: list[Source],
    boxes: Extent,
    area: Area | None,
    spacing_m: int,
    workers: tuple[int | None, str | None],
    progress: Progress,
) -> None:
    side = piece_side(sources, spacing_m)
    near: dict[Layer, list[tuple[Cells, Source]]] = defaultdict(list)
    for source in sources:
        for layer, cells in source.layers().items():
            near[layer].append((cells, source))
    names = [
        (Layer(zone, year), window)
        for zone, (box, years) in boxes.items()
        for year in years
        for window in windows(box, side)
        if any(cells.overlap(window) for cells, _ in near[Layer(zone, year)])
    ]
    total, waiting = len(names), [at for at in names if _name(*at) not in unfinished.done]
    progress(total - len(waiting), total, "building")

    def pieces() -> Iterator[Piece]:
        for layer, window in waiting:
            box, years = boxes[layer.zone]
            parts = (source.part(layer, window) for cells, source in near[layer] if cells.overlap(window))
            cut = tuple(part for part in parts if part is not None)
            index = years.index(layer.year)
            name = _name(layer, window)
            yield Piece(name, unfinished.table.absolute(), layer, index, box, window, spacing_m, cut, area)

    with open_workers(*workers) as (executor, at_once):
        for name, shards in done_in_any_order(executor, at_once, write_piece, pieces()):
            unfinished.add(name, shards)
            progress(len(unfinished.done), total, "building")
    if not any(unfinished.done.values()):
        names_of = ", ".join(source.location for source in sources[:3])
        raise AnchorError(
            f"{names_of}: no valid vector, every pixel is masked or outside the area; give files that cover land"
        )


def _name(layer: Layer, window: Cells) -> str:
    return f"{layer.zone}/{layer.year}/{window.col0}/{window.row1}"


def _manifest(unfinished: Unfinished, plan: dict[str, Any], boxes: Extent, spacing_m: int) -> Manifest:
    shards = {shard.file: shard for done in unfinished.done.values() for shard in done}
    table = unfinished.table
    small = (path.relative_to(table).as_posix() for path in table.rglob("*") if path.is_file())
    files = {name: sha256_file(table / name) for name in small if name not in shards}
    return Manifest(
        stage="anchors",
        inputs=plan["sources"],
        files=dict(sorted((files | {name: shard.sha256 for name, shard in shards.items()}).items())),
        figures=_figures(boxes, list(shards.values()), spacing_m) | {"area": plan["area"], "method": plan["method"]},
        settings={"format": FORMAT, "form": "codes", "bands": BANDS, "licence": LICENCE, "credit": CREDIT},
        packages=package_versions("zarr", "numcodecs", "numpy", "pyproj", "rasterio"),
    )


def _figures(boxes: Extent, shards: list[Shard], spacing_m: int) -> dict[str, Any]:
    valid: dict[tuple[str, int], int] = defaultdict(int)
    for shard in shards:
        zone, _, _, year_index, *_ = shard.file.split("/")
        valid[zone, int(year_index)] += shard.valid
    zones = {}
    for zone, (box, years) in boxes.items():
        west, south, east, north = (int(v) * spacing_m for v in box)
        cells = (box.row1 - box.row0) * (box.col1 - box.col0)
        counts = {str(year): valid[zone, index] for index, year in enumerate(years)}
        zones[zone] = {
            "utm_bounds": [west, south, east, north],
            "bounds": [round(v, 6) for v in lonlat_bounds(zone, west, south, east, north)],
            "rows": box.row1 - box.row0,
            "cols": box.col1 - box.col0,
            "valid_cells": counts,
            "coverage": {year: round(count / cells, 6) for year, count in counts.items()},
        }
    held = sorted({year for _, years in boxes.values() for year in years})
    return {"spacing_m": spacing_m, "years": held, "zones": zones}
