"""Pixel coordinates of a raster -> WGS84, from an affine transform + CRS or from ground control points alone.

Pixel coordinates follow the corner convention: (0, 0) is the outer corner of the first pixel, its centre is (0.5, 0.5).

GCPs are fitted by GDAL's thin-plate spline. Measured on five Sentinel-1 IW GRD quick-looks (210 GCPs, 500 m pixels),
each GCP predicted from the other 209, error in pixels (RMS): first-order polynomial 0.90-2.00, second (GDAL's own
choice) 0.08-0.55, third 0.06-0.54, thin-plate spline 0.02-0.04 on four scenes and 0.44 on one whose GCPs climb to
2,000 m (there every smooth fit is displaced by up to 3 px: it is the terrain). The spline passes through every GCP.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import SceneError
from fusar_edge.sar.tiles import TileWindow

Array = npt.NDArray[np.float64]
ToCrs = Callable[[Array, Array], tuple[Array, Array]]

FOOTPRINT_ERROR_PX = 0.1
"""A footprint's edges may leave the true edge by this much."""
MAX_EDGE_SEGMENTS = 256
MAX_GCPS = 1000
"""The spline's cost is cubic; of more GCPs an even selection is used (Sentinel-1 products hold about 210)."""
METRES_PER_DEGREE = 111_320.0


class Geolocation:
    """`lonlat` and `footprint` of one raster; not shared between threads."""

    def __init__(self, name: str, to_crs: ToCrs, crs: Any, size: tuple[int, int], method: str) -> None:
        """`to_crs` maps pixel (x, y) to coordinates of `crs` (a rasterio CRS); `size` is (width, height)."""
        import pyproj

        self.method = method
        self._to_crs = to_crs
        self._lon_mid = 0.0
        try:
            source = pyproj.CRS.from_wkt(crs.to_wkt(version="WKT2_2019"))
            self._to_wgs84 = pyproj.Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
        except pyproj.exceptions.ProjError as problem:
            raise SceneError(f"{name}: its CRS cannot be turned into longitude and latitude ({problem})") from None
        self.crs = source
        """pyproj.CRS of `projected`."""
        self.crs_name = _crs_name(crs, source)
        lon, lat = self.lonlat(np.array(size[0] / 2), np.array(size[1] / 2))
        if not (np.isfinite(lon) and abs(lat) <= 90.0):
            raise SceneError(
                f"{name}: the scene's centre has no longitude and latitude in {self.crs_name}; check its CRS"
            )
        self._lon_mid = float(_wrapped(lon, 0.0))

    def lonlat(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        """WGS84 degrees of pixel coordinates, same shape; longitudes within 180 degrees of the scene's centre.

        A scene across the antimeridian therefore has longitudes above 180 or below -180, without a jump.
        """
        xs, ys = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        lon, lat = self._to_wgs84.transform(*self._to_crs(xs.ravel(), ys.ravel()))
        return _wrapped(np.asarray(lon, np.float64).reshape(xs.shape), self._lon_mid), np.asarray(lat).reshape(xs.shape)

    def projected(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        """Pixel coordinates [n] in `crs`, east or longitude first."""
        return self._to_crs(np.asarray(x, np.float64), np.asarray(y, np.float64))

    def footprint(self, window: TileWindow) -> list[list[float]]:
        """Closed counter-clockwise ring [[lon, lat], ...] of a window, within 0.1 px of its true outline.

        Straight lines in lon/lat join the vertices (RFC 7946); each edge gets as many as its measured bend needs.
        A window that holds a pole is closed along that pole.
        """
        left, top = float(window.col_off), float(window.row_off)
        right, bottom = left + window.width, top + window.height
        corners = np.array([(left, top), (left, bottom), (right, bottom), (right, top), (left, top)])
        edges = [self._edge(a, b) for a, b in itertools.pairwise(corners)]
        ring = np.concatenate([*(edge[:-1] for edge in edges), edges[0][:1]])
        ring[:, 0] = np.unwrap(ring[:, 0], period=360.0)
        if abs(ring[-1, 0] - ring[0, 0]) > 180.0:
            pole = np.copysign(90.0, ring[:, 1].mean())
            ring = np.concatenate([ring, [(ring[-1, 0], pole), (ring[0, 0], pole)], ring[:1]])
        ring[-1] = ring[0]
        lon, lat = ring.T
        twice_area = np.sum(lon[:-1] * lat[1:] - lon[1:] * lat[:-1])
        return [[float(a), float(b)] for a, b in (ring if twice_area >= 0 else ring[::-1])]

    def _edge(self, start: Array, end: Array) -> Array:
        """Vertices [n + 1, 2] (lon, lat) along one straight pixel edge: n doubles until it is straight enough."""
        n, allowed_m = 1, FOOTPRINT_ERROR_PX * self._pixel_m(start, end)
        while True:
            t = np.linspace(0.0, 1.0, 4 * n + 1)  # three probes inside each segment: an S-bend is zero in its middle
            x, y = (start[:, None] + (end - start)[:, None] * t).reshape(2, -1)
            lon, lat = self.lonlat(x, y)
            lon = np.unwrap(lon, period=360.0)
            line_lon, line_lat = np.interp(t, t[::4], lon[::4]), np.interp(t, t[::4], lat[::4])
            error_m = np.hypot((lon - line_lon) * np.cos(np.deg2rad(lat)), lat - line_lat) * METRES_PER_DEGREE
            if error_m.max() <= allowed_m or n >= MAX_EDGE_SEGMENTS:
                return np.stack([lon[::4], lat[::4]], axis=1)
            n *= 2

    def _pixel_m(self, start: Array, end: Array) -> float:
        """Shorter side of a pixel on the ground in metres, the smallest found along an edge."""
        x, y = np.stack([start, (start + end) / 2, end]).T
        lon, lat = self.lonlat(np.stack([x, x + 1, x]), np.stack([y, y, y + 1]))
        east = _wrapped(lon[1:] - lon[0], 0.0) * np.cos(np.deg2rad(lat[0]))
        return float(np.hypot(east, lat[1:] - lat[0]).min() * METRES_PER_DEGREE)


def geolocation_from_dataset(dataset: Any, name: str) -> Geolocation:
    """Geolocation of an open rasterio dataset; SceneError where it has neither transform + CRS nor GCPs + CRS."""
    gcps, gcps_crs = dataset.gcps
    transform = dataset.transform
    size = (dataset.width, dataset.height)
    if not transform.is_identity and dataset.crs is not None:
        if transform.is_degenerate:
            raise SceneError(
                f"{name}: its transform {tuple(transform)[:6]} maps the scene to a line; georeference it again"
            )
        a, b, c, d, e, f = tuple(transform)[:6]
        return Geolocation(name, lambda x, y: (a * x + b * y + c, d * x + e * y + f), dataset.crs, size, "affine")
    if gcps and gcps_crs is not None:
        return Geolocation(name, _spline_from_gcps(gcps, gcps_crs, name), gcps_crs, size, f"spline of {len(gcps)} GCPs")
    lacks = "CRS" if gcps or not transform.is_identity else "position on the ground"
    raise SceneError(
        f"{name} has no {lacks}: a scene needs a CRS with an affine transform, or GCPs with a CRS; "
        "set them with gdal_translate -a_srs EPSG:NNNN -a_ullr ... "
        "(RPCs or radar geometry: geocode first; a file cut short: copy it again)"
    )


def _spline_from_gcps(gcps: list[Any], crs: Any, name: str) -> ToCrs:
    from rasterio.control import GroundControlPoint
    from rasterio.errors import RasterioError
    from rasterio.transform import GCPTransformer

    table = np.array([(g.col, g.row, g.x, g.y) for g in gcps], np.float64)[:: -(-len(gcps) // MAX_GCPS)]
    if crs.is_geographic:
        table[:, 2] = _wrapped(table[:, 2], table[0, 2])  # GCPs on both sides of the antimeridian
    col, row, x, y = table.T
    spread = np.linalg.matrix_rank(np.stack([col - col[0], row - row[0]])) if np.isfinite(table).all() else 0
    if spread < 2:
        raise SceneError(f"{name}: its {len(gcps)} GCPs do not span a plane; at least 3, not on one line, are needed")
    points = [GroundControlPoint(row=r, col=c, x=a, y=b) for c, r, a, b in table.tolist()]
    try:
        spline = GCPTransformer(points, tps=True)

        def to_crs(px: Array, py: Array) -> tuple[Array, Array]:
            a, b = spline.xy(py, px, offset="ul")
            return np.asarray(a, np.float64), np.asarray(b, np.float64)

        fit = np.stack(to_crs(col, row))
    except (RasterioError, ValueError) as problem:
        raise SceneError(f"{name}: no spline fits its {len(gcps)} GCPs ({problem})") from None
    if not np.allclose(fit, [x, y], rtol=0.0, atol=1e-4 * max(np.ptp(x), np.ptp(y))):
        raise SceneError(
            f"{name}: its {len(gcps)} GCPs contradict each other (one pixel with two places); remove doubles"
        )
    return to_crs


def _wrapped(lon: Any, middle: float) -> Any:
    """Longitudes in [middle - 180, middle + 180)."""
    with np.errstate(invalid="ignore"):  # inf: a place that the CRS cannot express
        return (lon - middle + 180.0) % 360.0 - 180.0 + middle


def _crs_name(crs: Any, source: Any) -> str:
    authority = crs.to_authority(confidence_threshold=100)
    return ":".join(authority) if authority else str(source.name)
