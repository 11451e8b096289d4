"""Proves a table whole: every file by its hash, every chunk by its checksum, every count by counting again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusar_edge.anchors.codes import CREDIT, valid_from_codes
from fusar_edge.anchors.layout import shard_file
from fusar_edge.anchors.table import AnchorTable, Zone, read_codes
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import FILENAME, verify_files


def verify_table(path: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Check a table and return {"files", "shards", "valid_cells"}; `progress(done, total)` counts shards.

    Raises AnchorError naming the first file that is missing, changed, damaged or not listed in the manifest, or the
    figure of the manifest that is not what the table holds.
    """
    path = Path(path)
    table = AnchorTable.open(path, cache_bytes=0)
    manifest = table.manifest
    verify_files(path, manifest, AnchorError)
    known = {*manifest.files, FILENAME}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if file.relative_to(path).as_posix() not in known:
            raise AnchorError(f"{file} is not listed in the manifest: remove it, or copy the table again")
    jobs = [(zone, *job) for zone in table.zones for job in _shards(table, zone)]
    counted: dict[str, dict[str, int]] = {zone.name: dict.fromkeys(map(str, zone.years), 0) for zone in table.zones}
    for done, (zone, shard, box) in enumerate(jobs, start=1):
        valid = int(valid_from_codes(read_codes(path, zone, shard, box)).sum())
        counted[zone.name][str(zone.years[shard[0]])] += valid
        if progress is not None:
            progress(done, len(jobs))
    _check_figures(path, table, counted)
    cells = sum(sum(years.values()) for years in counted.values())
    return {"files": len(manifest.files), "shards": len(jobs), "valid_cells": cells}


def _shards(table: AnchorTable, zone: Zone) -> list[tuple[tuple[int, int, int], tuple[slice, slice]]]:
    """(year index, row, column) and box of cells of each shard that the manifest lists."""
    side = zone.shard
    grid = [
        (year, row, col)
        for year in range(len(zone.years))
        for row in range(-(-zone.rows // side))
        for col in range(-(-zone.cols // side))
    ]
    return [
        (shard, (slice(shard[1] * side, (shard[1] + 1) * side), slice(shard[2] * side, (shard[2] + 1) * side)))
        for shard in grid
        if shard_file(zone.name, *shard) in table.manifest.files
    ]


def _check_figures(path: Path, table: AnchorTable, counted: dict[str, dict[str, int]]) -> None:
    figures = table.manifest.figures
    zones = figures.get("zones", {})
    listed = {name: zone.get("valid_cells") for name, zone in zones.items()}
    expected = {
        "valid_cells": (listed, counted),
        "spacing_m": (figures.get("spacing_m"), table.spacing_m),
        "years": (figures.get("years"), table.years),
        "credit": (table.manifest.settings.get("credit"), CREDIT),
    }
    for name, (stated, found) in expected.items():
        if stated != found:
            raise AnchorError(f"{path / FILENAME} was changed: it states {name} {stated}, the table has {found}")
