"""Looks up anchors in a table: longitude and latitude in, codes and mask out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.cache import Chunk, ChunkCache
from fusar_edge.anchors.codes import BANDS, NODATA, vectors_from_codes
from fusar_edge.anchors.grid import grid_positions, tile_xy
from fusar_edge.anchors.layout import CHUNK, FORMAT, shard_file
from fusar_edge.anchors.zones import central_meridian, lonlat_from_crs, projection, zone_of_crs
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import Manifest, read_manifest, sha256_file

Degrees = npt.NDArray[np.float64]
REASONS = ("outside", "no_year", "masked", "found")
"""What became of a node, the later one winning where several zones hold it."""
OUTSIDE, NO_YEAR, MASKED, FOUND = range(4)
ZONE_REACH_DEG = 9.0
"""How far from a zone's central meridian its cells are looked for: its own 3 degrees and its neighbours'."""


@dataclass(frozen=True)
class Anchors:
    """The anchors of S nodes."""

    codes: npt.NDArray[np.int8]
    """[S, bands]; NODATA in every band where mask is False. 64 bands, or as many as a baked table has coefficients."""
    mask: npt.NDArray[np.bool_]
    """[S], True where there is a vector."""
    counts: dict[str, int]
    """Nodes by reason: found, masked (sea, or not built), outside (the table's area), no_year. They sum to S."""

    years: dict[int, int]
    """Nodes found by the year that they are of: with `nearest`, not always the one asked for."""
    scale: npt.NDArray[np.float32] | None = None
    """[bands] of a baked table."""

    def vectors(self) -> npt.NDArray[np.float32]:
        """[S, bands]: what the vision graph takes as `anchors`; 0 where mask is False.

        AlphaEarth vectors of length 1 within int8's rounding, or a baked table's coefficients.
        """
        if self.scale is None:
            return vectors_from_codes(self.codes)
        return np.where(self.mask[:, None], self.codes * self.scale, np.float32(0))


@dataclass(frozen=True)
class Zone:
    """One group of a table."""

    name: str
    years: tuple[int, ...]
    west: float
    north: float
    rows: int
    cols: int
    shard: int
    """Cells along a shard's side."""
    array: Any
    """zarr.Array, int8 [year, y, x, band]."""


class _Wanted:
    """One look-up while it is filled in."""

    def __init__(self, size: int, bands: int, year: int | None, nearest: bool) -> None:
        self.codes = np.full((size, bands), NODATA, dtype=np.int8)
        self.reasons = np.zeros(size, dtype=np.int8)
        self.years: dict[int, int] = {}
        self.year, self.nearest = year, nearest

    def fill(self, nodes: npt.NDArray[np.int64], codes: npt.NDArray[np.int8], year: int) -> None:
        if nodes.size:
            self.codes[nodes] = codes
            self.reasons[nodes] = FOUND
            self.years[year] = self.years.get(year, 0) + nodes.size

    def anchors(self, scale: npt.NDArray[np.float32] | None) -> Anchors:
        counts = np.bincount(self.reasons, minlength=len(REASONS)).tolist()
        by_reason = dict(zip(REASONS, counts, strict=True))
        return Anchors(self.codes, self.reasons == FOUND, by_reason, dict(sorted(self.years.items())), scale)


class AnchorTable:
    """A table opened for reading. Safe between threads; `AnchorTable.open` makes it."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        spacing_m: int,
        zones: list[Zone],
        cache_bytes: int,
        scale: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.spacing_m = spacing_m
        self.zones = zones
        self.scale = scale
        self.bands = BANDS if scale is None else len(scale)
        self.cache = ChunkCache(cache_bytes)
        self._empty = np.full((CHUNK * CHUNK, self.bands), NODATA, dtype=np.int8)

    @classmethod
    def open(cls, path: Path | str, *, cache_bytes: int = 64 << 20) -> AnchorTable:
        """Open a table that `build_table` made. The small files are compared with the manifest's hashes now, chunks
        with their crc32c when they are read. `cache_bytes`: memory for decoded chunks (256 KiB each).

        Raises AnchorError for what is no table, and for a file that is missing or changed.
        """
        import zarr

        path = Path(path)
        manifest = read_manifest(path, AnchorError)
        if manifest.stage != "anchors" or manifest.settings.get("format") != FORMAT:
            raise AnchorError(
                f"{path} is no anchor table of the format {FORMAT!r}: build it with `fusar-edge anchors build`"
            )
        check_small_files(path, manifest)
        root = zarr.open_group(path, mode="r", zarr_format=3)
        spacing_m = int(str(root.attrs["spacing_m"]))
        names: Any = root.attrs["zones"]
        groups = [(name, root[name]) for name in names]
        zones = [_open_zone(name, group, spacing_m) for name, group in groups]
        steps: Any = root.attrs.get("scale")
        scale = None if steps is None else np.array(steps, dtype=np.float32)
        return cls(path, manifest, spacing_m, zones, cache_bytes, scale)

    @property
    def years(self) -> list[int]:
        return sorted({year for zone in self.zones for year in zone.years})

    def lookup(
        self, lon: npt.ArrayLike, lat: npt.ArrayLike, year: int | None = None, *, nearest: bool = False
    ) -> Anchors:
        """The cell that each node lies in. lon, lat: [S] degrees, WGS 84. year None: the latest of each zone.

        `nearest`: a node without a vector in that year gets that of the nearest year which has one, of two the earlier;
        `Anchors.years` records it. Nothing missing raises: it is mask 0 with a counted reason. A damaged or missing
        shard raises AnchorError.
        """
        lon_deg, lat_deg = _same_length("lon", lon, "lat", lat)
        wanted = _Wanted(lon_deg.size, self.bands, year, nearest)
        self._lookup_lonlat(self.zones, lon_deg, lat_deg, np.arange(lon_deg.size), wanted)
        return wanted.anchors(self.scale)

    def lookup_xy(
        self, x: npt.ArrayLike, y: npt.ArrayLike, crs: Any, year: int | None = None, *, nearest: bool = False
    ) -> Anchors:
        """`lookup` of nodes given in a CRS: x, y [S] (east or longitude first); crs: whatever pyproj reads.

        The zone whose own CRS it is is asked first, without a projection, and the others for what it does not hold.
        """
        xs, ys = _same_length("x", x, "y", y)
        wanted = _Wanted(xs.size, self.bands, year, nearest)
        own = [zone for zone in self.zones if zone.name == zone_of_crs(crs)]
        for zone in own:
            self._lookup_zone(zone, xs, ys, np.arange(xs.size), wanted)
        left = np.flatnonzero(wanted.reasons != FOUND)
        if left.size and len(own) < len(self.zones):
            lon, lat = lonlat_from_crs(crs).transform(xs[left], ys[left])
            self._lookup_lonlat([zone for zone in self.zones if zone not in own], lon, lat, left, wanted)
        return wanted.anchors(self.scale)

    def lookup_tile(
        self,
        transform: Sequence[float],
        crs: Any,
        height: int,
        width: int,
        nodes: int,
        year: int | None = None,
        *,
        nearest: bool = False,
    ) -> tuple[Anchors, npt.NDArray[np.float32]]:
        """Anchors of the N x N nodes of a tile and their positions [N * N, 2], (y, x) in [0, 1], row by row.

        transform: (a, b, c, d, e, f) from (column, row) to `crs`, as rasterio has it; crs: whatever pyproj reads.
        The first and last node of an axis are the centres of its first and last pixel (`fusar_edge.anchors.grid`).
        """
        x, y = tile_xy(transform, height, width, nodes)
        return self.lookup_xy(x, y, crs, year, nearest=nearest), grid_positions(nodes)

    def _lookup_lonlat(
        self, zones: Sequence[Zone], lon: Degrees, lat: Degrees, nodes: npt.NDArray[np.int64], wanted: _Wanted
    ) -> None:
        """Ask each zone for the nodes that are near it and not found yet. lon, lat: of `nodes`."""
        for zone in zones:
            with np.errstate(invalid="ignore"):  # an infinite longitude is outside
                from_meridian = (lon - central_meridian(zone.name) + 180.0) % 360.0 - 180.0
            near = (np.abs(from_meridian) <= ZONE_REACH_DEG) & (np.abs(lat) <= 90) & (wanted.reasons[nodes] != FOUND)
            if near.any():
                x, y = projection(zone.name).transform(lon[near], lat[near])
                self._lookup_zone(zone, x, y, nodes[near], wanted)

    def _lookup_zone(
        self,
        zone: Zone,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        nodes: npt.NDArray[np.int64],
        wanted: _Wanted,
    ) -> None:
        """Fill in what this zone holds of `nodes`, which lie at x, y in its CRS."""
        col, row = np.floor((x - zone.west) / self.spacing_m), np.floor((zone.north - y) / self.spacing_m)
        inside = (row >= 0) & (row < zone.rows) & (col >= 0) & (col < zone.cols)
        nodes, row, col = nodes[inside], row[inside].astype(np.int64), col[inside].astype(np.int64)
        years = _years_to_try(zone, wanted.year, wanted.nearest)
        wanted.reasons[nodes] = np.maximum(wanted.reasons[nodes], MASKED if years else NO_YEAR)
        for year in years:
            if not nodes.size:
                return
            got = self._codes_at(zone, zone.years.index(year), row, col)
            found = got[:, 0] != NODATA
            wanted.fill(nodes[found], got[found], year)
            nodes, row, col = nodes[~found], row[~found], col[~found]

    def _codes_at(
        self, zone: Zone, year_index: int, row: npt.NDArray[np.int64], col: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int8]:
        """[n, 64]: nodes are sorted by chunk, and each chunk is asked once."""
        chunks_across = -(-zone.cols // CHUNK)
        chunk = row // CHUNK * chunks_across + col // CHUNK
        within = row % CHUNK * CHUNK + col % CHUNK
        order = np.argsort(chunk, kind="stable")
        ordered = chunk[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        keys = [(zone.name, year_index, *divmod(c, chunks_across)) for c in ordered[starts].tolist()]
        by_chunk, within = np.empty((row.size, self.bands), dtype=np.int8), within[order]
        ends = [*starts[1:].tolist(), row.size]
        for start, end, values in zip(starts.tolist(), ends, self._chunks(zone, keys), strict=True):
            values.take(within[start:end], axis=0, out=by_chunk[start:end], mode="clip")  # "raise" would copy `out`
        codes = np.empty_like(by_chunk)
        codes[order] = by_chunk
        return codes

    def _chunks(self, zone: Zone, keys: list[tuple[str, int, int, int]]) -> list[Chunk]:
        """Each int8 [64 * 64, 64]; what the cache lacks is read shard by shard, in one call for each."""
        chunks = self.cache.get_many(keys)
        missing = defaultdict(list)
        per_shard = zone.shard // CHUNK
        for index, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
            if chunk is None:
                missing[key[1], key[2] // per_shard, key[3] // per_shard].append(index)
        for shard, indices in missing.items():
            if shard_file(zone.name, *shard) not in self.manifest.files:  # built without any vector
                for index in indices:
                    chunks[index] = self._empty
                continue
            for index, chunk in zip(indices, self._read(zone, shard, [keys[i] for i in indices]), strict=True):
                chunks[index] = chunk
                self.cache.put(keys[index], chunk)
        return [chunk for chunk in chunks if chunk is not None]

    def _read(self, zone: Zone, shard: tuple[int, int, int], keys: list[tuple[str, int, int, int]]) -> list[Chunk]:
        """Read the box around some chunks of one shard from disk."""
        rows, cols = [key[2] for key in keys], [key[3] for key in keys]
        top, left = min(rows), min(cols)
        box = (slice(top * CHUNK, (max(rows) + 1) * CHUNK), slice(left * CHUNK, (max(cols) + 1) * CHUNK))
        block = read_codes(self.path, zone, shard, box)
        size = ((max(rows) + 1 - top) * CHUNK, (max(cols) + 1 - left) * CHUNK, self.bands)
        full = np.full(size, NODATA, dtype=np.int8)
        full[: block.shape[0], : block.shape[1]] = block  # the last chunks reach over the array's edge
        corners = [((row - top) * CHUNK, (col - left) * CHUNK) for row, col in zip(rows, cols, strict=True)]
        return [full[r : r + CHUNK, c : c + CHUNK].reshape(CHUNK * CHUNK, self.bands).copy() for r, c in corners]


def read_codes(table: Path, zone: Zone, shard: tuple[int, int, int], box: tuple[slice, slice]) -> npt.NDArray[np.int8]:
    """Decode a box that lies in one shard; AnchorError naming the shard where a checksum fails or the file is gone."""
    file = table / shard_file(zone.name, *shard)
    if not file.is_file():
        raise AnchorError(f"{file} is missing: the manifest lists it; copy the table again")
    try:
        return np.asarray(zone.array[shard[0], box[0], box[1]])
    except Exception as problem:  # zarr's codecs raise ValueError, RuntimeError and others for damaged bytes
        raise AnchorError(f"{file} is damaged ({problem}); copy the table again or rebuild it") from None


def check_small_files(table: Path, manifest: Manifest) -> None:
    """Compare metadata and coordinates with the manifest's hashes. AnchorError names the file."""
    for name, expected in manifest.files.items():
        if "/codes/c/" in name:
            continue
        if not (table / name).is_file():
            raise AnchorError(f"{table / name} is missing: the manifest lists it; copy the table again")
        if sha256_file(table / name) != expected:
            raise AnchorError(f"{table / name} was changed: its SHA-256 is not the manifest's; copy the table again")


def _same_length(first: str, a: npt.ArrayLike, second: str, b: npt.ArrayLike) -> tuple[Degrees, Degrees]:
    one, two = np.atleast_1d(np.asarray(a, np.float64)), np.atleast_1d(np.asarray(b, np.float64))
    if one.ndim != 1 or one.shape != two.shape:
        raise AnchorError(f"{first} {one.shape} and {second} {two.shape}: give two arrays [S] of the same length")
    return one, two


def _years_to_try(zone: Zone, year: int | None, nearest: bool) -> list[int]:
    """Years of a zone in the order in which a node is looked up in them."""
    wanted = zone.years[-1] if year is None else year
    if nearest:
        return sorted(zone.years, key=lambda held: (abs(held - wanted), held))
    return [wanted] if wanted in zone.years else []


def _open_zone(name: str, group: Any, spacing_m: int) -> Zone:
    array = group["codes"]
    west, north = float(group["x"][0]) - spacing_m / 2, float(group["y"][0]) + spacing_m / 2
    years = tuple(int(year) for year in group["year"][:])
    return Zone(name, years, west, north, array.shape[1], array.shape[2], array.shards[1], array)
