"""A decimated copy of a large scene, for the low zooms of the map: PREVIEWS/ID.tif, made once, in the background.

Two 8-bit bands, grey and alpha, with overviews. Its coordinates are columns and negative rows of the scene, whose place
stays `Scene.lonlat`'s. Pixels are decimated by their root mean square, as looks are averaged: a bright ship stays
visible.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import EdgeError
from fusar_edge.manifest import output_file
from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow

DIRECT_PX = 2048
"""A scene with no side above this needs no copy."""
PREVIEW_PX = 4096
"""Longest side of a copy: 16 Mpx at most, 5 to 15 MB on disk."""
BLOCK_PX = 2048
"""Pixels of the scene that are read at once, per side."""
TRY_AGAIN_S = 60.0
"""After a failure: the disk may have room again."""

Image = npt.NDArray[np.uint8]
State = Literal["ready", "making", "failed"]
log = logging.getLogger(__name__)


def preview_factor(width: int, height: int) -> int:
    """Pixels of the scene per pixel of its copy, per side; 0 where no copy is needed."""
    longest = max(width, height)
    return 0 if longest <= DIRECT_PX else math.ceil(longest / PREVIEW_PX)


def picture_from_scene(scene: Scene, window: TileWindow) -> Image:
    """Grey and alpha [2, h, w] as the model sees the window."""
    image = scene.read(window)
    return np.stack([np.rint(image.grey * 255).astype(np.uint8), image.valid.astype(np.uint8) * 255])


def write_preview(scene: Scene, path: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Read the scene once, block by block, and write its copy; nothing is left where it fails or is stopped."""
    factor = preview_factor(scene.width, scene.height)
    shape = math.ceil(scene.height / factor), math.ceil(scene.width / factor)
    picture = np.zeros((2, *shape), np.uint8)
    side = max(BLOCK_PX // factor, 1) * factor
    for top in range(0, scene.height, side):
        for left in range(0, scene.width, side):
            if stopped():
                return
            window = TileWindow(top, left, min(side, scene.height - top), min(side, scene.width - left))
            block = _decimated(scene, window, factor)
            row, col = top // factor, left // factor
            picture[:, row : row + block.shape[1], col : col + block.shape[2]] = block
    with output_file(path, force=True) as work:
        _write(picture, factor, work)


def read_preview(path: Path, window: TileWindow, shape: tuple[int, int]) -> Image:
    """Grey and alpha [2, *shape] of a window (pixels of the copy), from the overview that fits."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    part = Window(window.col_off, window.row_off, window.width, window.height)
    with rasterio.open(path, driver="GTiff") as file:
        data: Image = file.read((1, 2), window=part, out_shape=(2, *shape), resampling=Resampling.average)
    return data


class Previews:
    """Copies that are there, and a thread that makes those that are asked for, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked: dict[str, Callable[[], Scene]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def path(self, scene_id: str) -> Path:
        return self.folder / f"{scene_id}.tif"

    def state(self, scene_id: str, opened: Callable[[], Scene]) -> tuple[State, str]:
        """Whether a copy is ready; where it is not, it is made now (`opened` gives the scene to read) or has failed,
        for the reason that comes second."""
        with self._lock:
            if self.path(scene_id).is_file():
                return "ready", ""
            failed_at, reason = self._failed.get(scene_id, (-math.inf, ""))
            if time.monotonic() - failed_at < TRY_AGAIN_S:
                return "failed", reason
            if scene_id not in self._asked and not self._stopped:
                self._asked[scene_id] = opened
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="previews", daemon=True)
                    self._thread.start()
                self._lock.notify_all()
            return "making", ""

    def settled(self, timeout_s: float) -> bool:
        """Wait until every copy that was asked for is made or has failed; False where that takes longer."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._asked, timeout_s)

    def sweep(self, known: Callable[[str], bool]) -> None:
        """Remove copies of scenes that are not known any more, and what a killed service left half-written."""
        for path in self.folder.glob("*.tif") if self.folder.is_dir() else ():
            if path.name.startswith(".") or not known(path.stem):
                path.unlink(missing_ok=True)

    def stop(self, timeout_s: float = 10.0) -> None:
        """The copy in work is given up; a later start makes it anew."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        if self._thread:
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: bool(self._asked) or self._stopped)
                if self._stopped:
                    return
                scene_id = next(iter(self._asked))
            reason = self._make(scene_id)
            with self._lock:
                del self._asked[scene_id]
                self._lock.notify_all()
                if reason:
                    self._failed[scene_id] = time.monotonic(), reason

    def _make(self, scene_id: str) -> str:
        """Empty, or why there is no copy; the reason names no path."""
        from rasterio.errors import RasterioError

        try:
            with self._asked[scene_id]() as scene:
                write_preview(scene, self.path(scene_id), lambda: self._stopped)
        except (EdgeError, RasterioError, OSError, MemoryError) as problem:
            log.warning("no preview of scene %s: %s", scene_id, problem)
            full = isinstance(problem, OSError)
            return "the disk is full or cannot be written" if full else "the scene cannot be read as a whole"
        return ""


def _decimated(scene: Scene, window: TileWindow, factor: int) -> Image:
    """Root mean square of the valid pixels of each factor x factor square; [2, ceil(h / factor), ceil(w / factor)]."""
    image = scene.read(window)
    pad = (0, -window.height % factor), (0, -window.width % factor)
    power = np.pad(np.where(image.valid, np.square(image.grey), np.float32(0)), pad)
    valid = np.pad(image.valid, pad)
    rows, cols = power.shape[0] // factor, power.shape[1] // factor
    squares = (rows, factor, cols, factor)
    count = valid.reshape(squares).sum(axis=(1, 3))
    mean = power.reshape(squares).sum(axis=(1, 3)) / np.maximum(count, 1)
    return np.stack([np.rint(np.sqrt(mean) * 255).astype(np.uint8), (count > 0).astype(np.uint8) * 255])


def _write(picture: Image, factor: int, path: Path) -> None:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.transform import Affine

    _, height, width = picture.shape
    form = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 3}
    shape = {"count": 2, "height": height, "width": width, "dtype": "uint8"}
    place = Affine(factor, 0, 0, 0, -factor, 0)  # rasterio warns of a raster without any
    with rasterio.Env(COMPRESS_OVERVIEW="DEFLATE"), rasterio.open(path, "w", **shape, **form, transform=place) as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        file.write(picture)
        file.build_overviews([2, 4, 8, 16], Resampling.rms)
