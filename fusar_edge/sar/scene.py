"""A SAR product on disk, read tile by tile as calibrated grey with its valid mask and its place on the ground."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import SceneError
from fusar_edge.sar.acquired import acquired_from_product
from fusar_edge.sar.geolocation import Geolocation, geolocation_from_dataset
from fusar_edge.sar.radiometry import (
    DEFAULT_RADIOMETRY,
    KINDS,
    VALUES_HELP,
    Kind,
    Radiometry,
    grey_from_values,
    kind_from_sample,
)
from fusar_edge.sar.tiles import TileWindow, plan_tiles

Array = npt.NDArray[np.float64]

LARGEST_BLOCK_MIB = 256
SAMPLE_GRID, SAMPLE_PX = 6, 64
"""Values are judged on 6 x 6 windows of 64 px spread over the scene: bounded work for a scene of any size."""


@dataclass(frozen=True, slots=True)
class TileImage:
    """Pixels of one window."""

    grey: npt.NDArray[np.float32]
    """[h, w] in 0..1; invalid pixels are 0."""
    valid: npt.NDArray[np.bool_]
    """[h, w]; False for nodata, masked, NaN and infinite pixels."""


class Scene:
    """An open scene; a context manager, used by one thread. Made by `open_scene`."""

    def __init__(self, path: Path, dataset: Any, band: int, values: str, radiometry: Radiometry, located: bool) -> None:
        self.path = path
        self.width: int = dataset.width
        self.height: int = dataset.height
        self.band = band
        self.band_name: str = dataset.descriptions[band - 1] or f"band {band} of {dataset.count}"
        self.radiometry = radiometry
        self._dataset = dataset
        self._all_valid = "all_valid" in {flag.name for flag in dataset.mask_flag_enums[band - 1]}
        self._scale: tuple[float, float] = (dataset.scales[band - 1], dataset.offsets[band - 1])
        self.geolocation: Geolocation | None = None
        """None only where `open_scene` was told that a place is not needed."""
        with contextlib.nullcontext() if located else contextlib.suppress(SceneError):
            self.geolocation = geolocation_from_dataset(dataset, str(path))
        self.acquired = acquired_from_product(path.name, dataset.tags(), dataset.tags(ns="IMAGERY"))
        """Start of the acquisition, ISO 8601 UTC, from the product's tags or a product name; None if neither says."""
        self.simulated = dataset.tags().get("SIMULATED") == "YES"
        """The file says of itself that nothing in it was measured (`fusar-edge simulate`)."""
        self.kind: Kind = self._kind(values)
        """What the values are: "uint8", "db", "power" or "amplitude"; given, or decided once for the whole scene."""

    @property
    def crs_name(self) -> str:
        """Such as "EPSG:32611"; for a scene with GCPs only, the CRS of these. Empty without a place."""
        return self.geolocation.crs_name if self.geolocation else ""

    def read(self, window: TileWindow) -> TileImage:
        """Grey and validity of a window; only the file's blocks under it are read. SceneError if they cannot be."""
        return self.image_from_values(*self.values(window))

    def image_from_values(self, values: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_]) -> TileImage:
        """Second half of `read`: what `values` gave, as grey."""
        grey = grey_from_values(values, self.kind, self.radiometry)
        grey[~valid] = 0.0
        return TileImage(grey, valid)

    def lonlat(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        """WGS84 degrees (float64) of pixel coordinates; (0, 0) is the outer corner of the first pixel."""
        return self._located().lonlat(x, y)

    def footprint(self, window: TileWindow) -> list[list[float]]:
        """Closed counter-clockwise ring [[lon, lat], ...], within 0.1 px of the window's outline."""
        return self._located().footprint(window)

    def close(self) -> None:
        self._dataset.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _located(self) -> Geolocation:
        if self.geolocation is None:
            raise SceneError(f"{self.path} has no place on the ground: give it a CRS with a transform, or GCPs")
        return self.geolocation

    def values(self, window: TileWindow) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """First half of `read`: values as in the file (scale and offset applied unless 8-bit) and their validity."""
        bottom, right = window.row_off + window.height, window.col_off + window.width
        if min(window.row_off, window.col_off) < 0 or bottom > self.height or right > self.width:
            raise SceneError(f"{self.path}: {window} leaves the scene of {self.width} x {self.height} px")
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        part = Window(window.col_off, window.row_off, window.width, window.height)
        try:
            with _gdal_environment():
                values = self._dataset.read(self.band, window=part)
                valid = np.ones(values.shape, bool) if self._all_valid else self._mask(part)
        except (RasterioError, MemoryError) as problem:
            place = f"rows {window.row_off}-{bottom}, columns {window.col_off}-{right}"
            cause = problem.__cause__ or problem
            raise SceneError(f"{self.path}: {place} cannot be read; the file is cut or damaged ({cause})") from None
        if values.dtype.kind == "f":
            valid &= np.isfinite(values)
        if self._scale != (1.0, 0.0) and values.dtype != np.uint8:
            values = values.astype(np.float64) * self._scale[0] + self._scale[1]
        return values, valid

    def _mask(self, part: Any) -> npt.NDArray[np.bool_]:
        return cast(npt.NDArray[np.bool_], self._dataset.read_masks(self.band, window=part) > 0)

    def _kind(self, values: str) -> Kind:
        """The given kind if the file can hold it, else decided: 8-bit is "uint8"; float with values below -5 is "db",
        float with none below 0 is "power"; anything else is refused."""
        dtype = np.dtype(self._dataset.dtypes[self.band - 1])
        if values != "auto" and values not in KINDS:
            raise SceneError(f"--values {values}: allowed are auto, {', '.join(KINDS)}")
        if dtype.kind == "c":
            raise SceneError(f"{self.path} holds complex values ({dtype}); detect it first (|z|^2) and geocode it")
        if values == "uint8" and dtype != np.uint8:
            raise SceneError(
                f"{self.path} holds {dtype}, which --values uint8 cannot be; allowed: auto, db, power, amplitude"
            )
        if values == "auto" and dtype.kind != "f" and dtype != np.uint8:
            raise SceneError(
                f"{self.path} holds {dtype} numbers without calibration; convert it to sigma0 or gamma0 (float, dB or "
                f"power), or set the calibration as the band's scale (gdal_edit.py -scale) and {VALUES_HELP}"
            )
        sample = self._sample()
        if values != "auto":
            return cast(Kind, values)
        return "uint8" if dtype == np.uint8 else kind_from_sample(sample, str(self.path))

    def _sample(self) -> npt.NDArray[np.generic]:
        """Valid values spread over the scene; an all-nodata scene raises SceneError (after a look at every pixel)."""
        rows = np.linspace(0, max(self.height - SAMPLE_PX, 0), SAMPLE_GRID).astype(int)
        cols = np.linspace(0, max(self.width - SAMPLE_PX, 0), SAMPLE_GRID).astype(int)
        height, width = min(SAMPLE_PX, self.height), min(SAMPLE_PX, self.width)
        windows = {TileWindow(int(r), int(c), height, width): None for r in rows for c in cols}
        parts = [values[valid] for values, valid in map(self.values, windows)]
        if any(part.size for part in parts):
            return np.concatenate(parts)
        for window in plan_tiles(self.width, self.height, 1024, 0):
            values, valid = self.values(window)
            if valid.any():
                return values[valid]
        raise SceneError(
            f"{self.path}: every pixel of {self.band_name} is nodata; give another --band or another scene"
        )


def open_scene(
    path: str | Path,
    *,
    band: int | None = None,
    values: str = "auto",
    radiometry: Radiometry = DEFAULT_RADIOMETRY,
    located: bool = True,
) -> Scene:
    """Open a GeoTIFF as a `Scene`; use it in a `with` block.

    `band` counts from 1 (None: the first; `Scene.band_name` records which). `values` is "auto" or one of "uint8",
    "db", "power", "amplitude". `located=False` accepts a raster without place (training chips). What the file itself
    says counts: side files (.aux.xml, .tfw) are not read, a mask beside it (.msk) is refused. Raises SceneError.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    path = Path(path)
    if not path.is_file():
        raise SceneError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a GeoTIFF")
    if path.stat().st_size == 0:
        raise SceneError(f"{path} is empty; copy or download it again")
    if (mask := path.with_name(path.name + ".msk")).exists():
        raise SceneError(
            f"{path} has its mask in {mask.name}, which is not read; put the mask inside the file: "
            "gdal_translate --config GDAL_TIFF_INTERNAL_MASK YES"
        )
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with _gdal_environment():
                dataset = stack.enter_context(rasterio.open(path.absolute(), driver="GTiff"))
        except RasterioError as problem:
            raise SceneError(f"{path} is not a readable GeoTIFF: another format, cut or damaged ({problem})") from None
        band = 1 if band is None else band
        if not 1 <= band <= dataset.count:
            raise SceneError(f"{path}: --band {band}, but it has {dataset.count} (allowed: 1 to {dataset.count})")
        _check_blocks(path, dataset, band)
        scene = Scene(path, dataset, band, values, radiometry, located)
        stack.pop_all()
        return scene


@contextlib.contextmanager
def _gdal_environment() -> Iterator[None]:
    """GDAL for local files that nobody vouches for: one driver, no side files read or written, no network, 64 MB."""
    import rasterio
    from rasterio.session import DummySession

    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        "GDAL_CACHEMAX": 64 * 2**20,  # bytes: rasterio passes the number on to GDALSetCacheMax64
        "GDAL_NUM_THREADS": 1,
        "GTIFF_IGNORE_READ_ERRORS": "NO",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "none",
    }
    with rasterio.Env(session=DummySession(), **options):
        yield


def _check_blocks(path: Path, dataset: Any, band: int) -> None:
    """A scene in one huge block cannot be read by window: refused before it fills the memory."""
    rows, cols = dataset.block_shapes[band - 1]
    mib = rows * cols * np.dtype(dataset.dtypes[band - 1]).itemsize / 2**20
    if mib > LARGEST_BLOCK_MIB:
        raise SceneError(
            f"{path}: its blocks are {cols} x {rows} px ({mib:.0f} MiB; at most {LARGEST_BLOCK_MIB}); "
            "rewrite it with gdal_translate -co TILED=YES"
        )
