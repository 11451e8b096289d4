"""`fusar-edge anchors`: plan, build, info, verify, preview. `bake` needs the workshop: see fusar_edge.commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusar_edge.errors import AnchorError

if TYPE_CHECKING:
    from fusar_edge.anchors.areas.area import Area

app = typer.Typer(
    help="AlphaEarth anchor tables: plan, build, inspect, verify, look at, bake.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="Folder that `build` or `bake` made.")]
Bounds = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(metavar="W S E N", help="Degrees; W > E goes across the antimeridian."),
]
AreaFile = Annotated[Path | None, typer.Option("--area", metavar="AOI.geojson", help="Polygons, WGS 84.")]
Years = Annotated[list[int] | None, typer.Option("--year", help="Repeat for several.")]
Index = Annotated[
    str | None,
    typer.Option(help="aef_index.parquet, path or URL: its tiles in the area and years become the sources."),
]
Mirror = Annotated[
    str | None, typer.Option(help="Folder or URL with copies, in place of all up to `/annual/` of the index's paths.")
]
Spacing = Annotated[int, typer.Option(help="Metres between anchors.")]


@app.command(
    epilog="Example: fusar-edge anchors plan --bounds -118.6 33.5 -117.8 34.1 --year 2024 --spacing 80 "
    "--index aef_index.parquet"
)
def plan(
    bounds: Bounds = None,
    area: AreaFile = None,
    km2: Annotated[float | None, typer.Option(help="Size alone, where the place does not matter.")] = None,
    year: Years = None,
    spacing: Spacing = 80,
    form: Annotated[
        Literal["raw", "baked"], typer.Option(help="64 codes an anchor, or a rank's coefficients.")
    ] = "raw",
    rank: Annotated[int | None, typer.Option(help="Of the baked form.")] = None,
    index: Index = None,
    mirror: Mirror = None,
) -> None:
    """Bytes on disk and to download, before anything is downloaded."""
    from rich.console import Console

    from fusar_edge.anchors.planning.plan import plan_from_km2, plan_table, plan_text

    asked = _area(bounds, area)
    if km2 is not None:
        if asked is not None or index is not None:
            raise AnchorError("--km2 stands alone: leave out --bounds, --area and --index")
        result = plan_from_km2(km2, spacing, year or [], form=form, rank=rank)
    else:
        if asked is None:
            raise AnchorError("no area: give --bounds W S E N, --area AOI.geojson or --km2")
        tiles = _tiles(index, asked, year, mirror)
        result = plan_table(asked, spacing, year or [], form=form, rank=rank, tiles=tiles)
    Console(stderr=True).print(plan_text(result))
    _print_json(result)


@app.command(
    epilog="Example: fusar-edge anchors build --source tile.tif --year 2024 --spacing 80 --out la.anchors"
    "\n\nExample: fusar-edge anchors build --index https://data.source.coop/tge-labs/aef/v1/annual/aef_index.parquet "
    "--bounds -118.6 33.5 -117.8 34.1 --year 2024 --out la.anchors"
)
def build(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="AlphaEarth GeoTIFF, a path or https, s3 or gs address, `@YEAR` behind it where years differ; or a "
            "table of points (Earth Engine CSV, official .npy). Repeat for several."
        ),
    ] = None,
    index: Index = None,
    mirror: Mirror = None,
    bounds: Bounds = None,
    area: AreaFile = None,
    year: Years = None,
    spacing: Spacing = 80,
    overviews: Annotated[
        bool, typer.Option(help="Read the sources' own overviews of the spacing: a fraction of the bytes.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Pieces at once, 250 MiB each. Default: one a core, at most 3.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Dask scheduler tcp://HOST:PORT, or local:N processes. Paths are shared.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out, and an unfinished build with other options.")
    ] = False,
) -> None:
    """Pack AlphaEarth vectors into a table for the device. A build that was stopped goes on when given again."""
    from fusar_edge.anchors.building.build import build_table

    asked = _area(bounds, area)
    tiles = _tiles(index, asked, year, mirror)
    sources = [*(source or []), *(f"{tile.location}@{tile.year}" for tile in tiles)]
    with _progress() as progress, _says_how_to_go_on():
        manifest = build_table(
            sources,
            out,
            years=year or [],
            spacing_m=spacing,
            area=asked,
            overviews=overviews,
            jobs=jobs,
            cluster=cluster,
            force=force,
            progress=progress,
        )
    _print_json({"table": str(out), **manifest.figures, "credit": manifest.settings["credit"]})


@app.command(epilog="Example: fusar-edge anchors info la.anchors")
def info(table: TablePath) -> None:
    """Show what a table holds and where it came from."""
    from rich.console import Console

    from fusar_edge.anchors.table import AnchorTable

    opened = AnchorTable.open(table)
    Console(stderr=True).print(_info_table(opened))
    manifest = opened.manifest
    size = sum((table / name).stat().st_size for name in manifest.files)
    _print_json(
        {"table": str(table), "bytes": size, **manifest.figures, "inputs": manifest.inputs, **manifest.settings}
    )


@app.command(epilog="Example: fusar-edge anchors verify la.anchors")
def verify(table: TablePath) -> None:
    """Read every file and chunk of a table and compare hashes, checksums and counts."""
    from fusar_edge.anchors.verify import verify_table

    with _progress() as progress:
        result = verify_table(table, lambda done, total: progress(done, total, "verifying shards"))
    _print_json({"table": str(table), "ok": True, **result})


@app.command(epilog="Example: fusar-edge anchors preview la.anchors --out la.png")
def preview(
    table: TablePath,
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    year: Annotated[int | None, typer.Option(help="Default: the latest.")] = None,
    bounds: Bounds = None,
    width: Annotated[int, typer.Option(min=16, max=8192, help="Pixels.")] = 1024,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
) -> None:
    """A picture: the vectors' first three principal components as red, green and blue, north up."""
    from fusar_edge.anchors.preview import write_preview
    from fusar_edge.anchors.table import AnchorTable

    opened = AnchorTable.open(table)
    with _progress() as progress:
        result = write_preview(
            opened,
            out,
            year=year,
            bounds=bounds,
            width_px=width,
            force=force,
            progress=lambda done, total: progress(done, total, "sampling"),
        )
    _print_json(result)


def _area(bounds: tuple[float, float, float, float] | None, path: Path | None) -> Area | None:
    from fusar_edge.anchors.areas.area import area_from_bounds, area_from_geojson

    if bounds is not None and path is not None:
        raise AnchorError("both --bounds and --area: give one of them")
    if bounds is not None:
        return area_from_bounds(*bounds)
    return None if path is None else area_from_geojson(path)


def _tiles(index: str | None, area: Area | None, years: list[int] | None, mirror: str | None) -> list[Any]:
    """Tiles of the index; all of its years unless some are asked for."""
    if index is None:
        if mirror is not None:
            raise AnchorError("--mirror replaces the start of an index's paths: give --index too")
        return []
    if area is None:
        raise AnchorError("--index without an area would take the whole Earth: give --bounds or --area")
    from fusar_edge.anchors.sources.index import read_index

    opened = read_index(index)
    return opened.tiles(area, years or opened.years, mirror=mirror)


@contextmanager
def _says_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: finished shards are kept, give the same command again to go on", file=sys.stderr)
        raise


def _info_table(opened: Any) -> Any:
    """rich.Table, a row for each zone and year."""
    from rich.table import Table

    figures, settings = opened.manifest.figures, opened.manifest.settings
    form = "" if opened.scale is None else f", baked to {opened.bands} coefficients"
    view = Table(
        title=f"{opened.path}: every {opened.spacing_m} m{form}",
        caption=f"{settings['licence']}. {settings['credit']}",
    )
    for heading in ("zone", "year", "cells", "with a vector", "coverage", "lon, lat"):
        view.add_column(heading)
    for zone, figure in figures["zones"].items():
        west, south, east, north = figure["bounds"]
        for year, valid in figure["valid_cells"].items():
            size, share = f"{figure['cols']} x {figure['rows']}", f"{100 * figure['coverage'][year]:.2f} %"
            view.add_row(zone, year, size, str(valid), share, f"{west:.3f}..{east:.3f}, {south:.3f}..{north:.3f}")
    return view


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, fed with (done, total, of what)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def step(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield step


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))
