"""`fusar-edge anchors`: build, info, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="AlphaEarth anchor tables: build, inspect, verify.", no_args_is_help=True, rich_markup_mode="markdown"
)

TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="Folder that `build` made.")]


@app.command(epilog="Example: fusar-edge anchors build --source tile.tif --year 2024 --spacing 80 --out la.anchors")
def build(
    source: Annotated[
        list[Path], typer.Option(help="AlphaEarth GeoTIFF (or .vrt) or CSV of points; repeat for several.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    year: Annotated[
        int | None, typer.Option(help="Year of the rasters, or the one to take from CSV tables (default: all).")
    ] = None,
    spacing: Annotated[int, typer.Option(help="Metres between anchors, a multiple of the rasters' pixels.")] = 80,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
) -> None:
    """Pack AlphaEarth vectors into a table for the device."""
    from fusar_edge.anchors.build import build_table

    with _progress("building shards") as progress:
        manifest = build_table(source, out, year=year, spacing_m=spacing, force=force, progress=progress)
    _print_json({"table": str(out), **manifest.figures, "credit": manifest.settings["credit"]})


@app.command(epilog="Example: fusar-edge anchors info la.anchors")
def info(table: TablePath) -> None:
    """Show what a table holds and where it came from."""
    from rich.console import Console

    from fusar_edge.anchors.table import AnchorTable

    opened = AnchorTable.open(table)
    Console().print(_info_table(opened))
    manifest = opened.manifest
    size = sum((table / name).stat().st_size for name in manifest.files)
    settings = {name: manifest.settings[name] for name in ("licence", "credit")}
    _print_json({"table": str(table), "bytes": size, **manifest.figures, "inputs": manifest.inputs, **settings})


@app.command(epilog="Example: fusar-edge anchors verify la.anchors")
def verify(table: TablePath) -> None:
    """Read every file and chunk of a table and compare hashes, checksums and counts."""
    from fusar_edge.anchors.verify import verify_table

    with _progress("verifying shards") as progress:
        result = verify_table(table, progress)
    _print_json({"table": str(table), "ok": True, **result})


def _info_table(opened: Any) -> Any:
    """rich.Table, a row for each zone and year."""
    from rich.table import Table

    figures, settings = opened.manifest.figures, opened.manifest.settings
    view = Table(
        title=f"{opened.path}: every {opened.spacing_m} m", caption=f"{settings['licence']}. {settings['credit']}"
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
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, fed with (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))
