"""How large a table will be and what must be read for it, before anything is downloaded."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusar_edge.anchors.areas.area import Area
from fusar_edge.anchors.codes import BANDS
from fusar_edge.anchors.layout import CHUNK, shard_cells
from fusar_edge.anchors.planning.counts import Count, count_from_km2, zones_by_strip, zones_with_tiles
from fusar_edge.anchors.planning.downloads import Tile, estimated_downloads, listed_downloads
from fusar_edge.errors import AnchorError

Form = Literal["raw", "baked"]

EARTH_LAND_KM2 = 148.9e6
COMPRESSION = {10: 0.748, 20: 0.849, 40: 0.940}
"""Spacing in metres -> compressed bytes of one byte of codes, the shard's index left out; the last one holds beyond.

Measured on tables built of the extract aef_wisconsin_2024_16N_10m_int8.tif (97 x 97 pixels, fields and forest). It is
small: at 20 m it fills 0.59 of one chunk and at 40 m 0.15, which compress worse than a full one, so these two are upper
bounds. The published files, whose blocks are 256 times as large as a chunk, reach 0.494 with their overviews.
"""
BAKED_COMPRESSION = 1.0
"""Not measured: coefficients fill their int8 range, so no gain is counted on."""
MODEL_WIDTH = 3584
"""C of Qwen2.5-VL-7B: the basis of a baked table is float32 [rank + 2, 2 C] (mean and weight are the other two)."""
CACHE_BYTES = 64 << 20
"""`AnchorTable.open`'s default for decoded chunks."""
SCENE_TILE_M = 5040
"""504 pixels of 10 m: the image that one look-up serves."""


@dataclass(frozen=True)
class Store:
    """What decides the bytes of an anchor."""

    spacing_m: int
    form: Form
    rank: int | None
    width: int

    def __post_init__(self) -> None:
        if self.spacing_m < 1:
            raise AnchorError(f"spacing is {self.spacing_m} m; give 1 or more")
        if self.form not in ("raw", "baked"):
            raise AnchorError(f"form is {self.form!r}; give raw or baked")
        if self.form == "baked" and (self.rank is None or self.rank < 1):
            raise AnchorError(f"rank is {self.rank}: a baked table needs one; give 1 or more, 32 to begin with")
        if self.form == "raw" and self.rank is not None:
            raise AnchorError(f"rank is {self.rank}: a raw table has none; leave it out, or ask for the baked form")

    @property
    def bands(self) -> int:
        """Bytes of an anchor."""
        return self.rank or BANDS

    @property
    def basis_bytes(self) -> int:
        return 0 if self.rank is None else (self.rank + 2) * 2 * self.width * 4

    @property
    def shard_index_bytes(self) -> int:
        """Offset and length of each chunk, and their crc32c."""
        return 16 * (shard_cells(self.spacing_m) // CHUNK) ** 2 + 4

    @property
    def compression(self) -> float:
        if self.form == "baked":
            return BAKED_COMPRESSION
        return COMPRESSION[max((s for s in COMPRESSION if s <= self.spacing_m), default=min(COMPRESSION))]

    def sizes(self, cells: int, shards: int) -> dict[str, Any]:
        raw = cells * self.bands
        disk = round(raw * self.compression) + shards * self.shard_index_bytes + self.basis_bytes
        return {
            "bytes_per_anchor": self.bands,
            "bytes_raw": raw,
            "compression": self.compression,
            "bytes_basis": self.basis_bytes,
            "bytes_on_disk": disk,
        }


def plan_table(
    area: Area | None,
    spacing_m: int,
    years: list[int],
    *,
    form: Form = "raw",
    rank: int | None = None,
    tiles: Sequence[Tile] = (),
    width: int = MODEL_WIDTH,
) -> dict[str, Any]:
    """Anchors, files and bytes of a table that is not built yet, and what must be downloaded for it.

    `area` None: Earth's land, or all of `tiles`. `tiles`: those of the index that the area touches; without them each
    zone is taken to hold its own six-degree strip, and the files are estimated. `rank`, `width`: of the baked form.
    Masked cells (sea) are counted, since only the files know them: they take next to nothing on disk.

    `exact` says whether the cells were counted one by one or come from square kilometres over the cell's area, which is
    exact to the 0.2 % by which UTM stretches areas, but has chunks and shards as if they were full. Raises AnchorError.
    """
    store = Store(spacing_m, form, rank, width)
    wanted = sorted(set(years))
    if not wanted:
        raise AnchorError("no years: give at least one")
    if tiles and (missing := sorted(set(wanted) - {tile.year for tile in tiles})):
        raise AnchorError(
            f"no tile of {', '.join(map(str, missing))} among the {len(tiles)} given; leave the years out"
        )
    chosen = [tile for tile in tiles if tile.year in wanted]
    if chosen:
        zones, exact = zones_with_tiles(area, spacing_m, chosen)
    elif area is not None:
        zones, exact = zones_by_strip(area, spacing_m, len(wanted))
    else:
        return plan_from_km2(EARTH_LAND_KM2, spacing_m, wanted, form, rank, width=width)
    total = functools.reduce(Count.plus, zones.values(), Count(0, 0, 0))
    km2 = total.cells / len(wanted) * spacing_m**2 / 1e6 if area is None else area.km2
    downloads = listed_downloads(area, spacing_m, chosen) if chosen else None
    return _plan(store, wanted, km2, exact, zones, total, downloads)


def plan_from_km2(
    km2: float,
    spacing_m: int,
    years: list[int],
    form: Form = "raw",
    rank: int | None = None,
    *,
    width: int = MODEL_WIDTH,
) -> dict[str, Any]:
    """The plan of an area of which only the size is known; `zones` is empty and `exact` False."""
    if not (math.isfinite(km2) and km2 > 0):
        raise AnchorError(f"the area is {km2} km2; give more than 0")
    if not years:
        raise AnchorError("no years: give at least one")
    store, wanted = Store(spacing_m, form, rank, width), sorted(set(years))
    return _plan(store, wanted, km2, False, {}, count_from_km2(km2, spacing_m).times(len(wanted)), None)


def _plan(
    store: Store,
    years: list[int],
    km2: float,
    exact: bool,
    zones: dict[str, Count],
    total: Count,
    downloads: dict[str, Any] | None,
) -> dict[str, Any]:
    across = math.ceil(SCENE_TILE_M / (CHUNK * store.spacing_m)) + 1
    chunk_bytes = CHUNK * CHUNK * store.bands
    return {
        "form": store.form,
        "spacing_m": store.spacing_m,
        "years": years,
        "km2": km2,
        "exact": exact,
        "zones": {zone: count._asdict() for zone, count in zones.items()},
        **total._asdict(),
        **store.sizes(total.cells, total.shards),
        "sources": downloads or estimated_downloads(km2, store.spacing_m, len(years)),
        "lookup": {"cache_bytes": CACHE_BYTES, "chunk_bytes": chunk_bytes, "scene_tile_bytes": across**2 * chunk_bytes},
    }


def plan_text(plan: dict[str, Any]) -> Any:
    """rich.Table of a plan, for people."""
    from rich.table import Table

    years = ", ".join(map(str, plan["years"]))
    how = "counted cell by cell" if plan["exact"] else "estimated from square kilometres"
    view = Table(title=f"every {plan['spacing_m']} m, {plan['form']}, {years}", caption=f"{how}; sea is counted")
    for heading in ("what", "amount", "bytes"):
        view.add_column(heading, justify="left" if heading == "what" else "right")
    for zone, entry in plan["zones"].items():
        view.add_row(f"anchors of {zone}", f"{entry['cells']:,}", bytes_text(entry["cells"] * plan["bytes_per_anchor"]))
    view.add_row("anchors", f"{plan['cells']:,}", bytes_text(plan["bytes_raw"]), style="bold")
    view.add_row(
        f"on disk, x {plan['compression']:.3f}", f"{plan['shards']:,} files", bytes_text(plan["bytes_on_disk"])
    )
    sources = plan["sources"]
    about = "" if sources["from"] == "index" else "at least "
    view.add_row("AlphaEarth files", f"{about}{sources['files']:,}", bytes_text(sources["bytes_of_files"]))
    view.add_row("blocks of them to read", f"{about}{sources['blocks']:,}", bytes_text(sources["bytes_to_read"]))
    if sources["bytes_overviews"] is not None:
        view.add_row("the same with --overviews", "", bytes_text(sources["bytes_overviews"]))
    lookup = plan["lookup"]
    view.add_row("memory to look up 5 km x 5 km", "", bytes_text(lookup["scene_tile_bytes"]))
    return view


def bytes_text(count: float) -> str:
    """`5.49 GB`: at most three digits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
