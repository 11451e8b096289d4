"""Synthetic rasters for the tests of fusar_edge.sar."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WriteScene = Callable[..., Path]


@pytest.fixture
def write_scene(tmp_path: Path) -> WriteScene:
    """`write_scene(array, name="s.tif", **profile)`: a GeoTIFF, by default 10 m pixels in EPSG:32611."""

    def write(array: Any, name: str = "s.tif", tags: dict[str, str] | None = None, **profile: Any) -> Path:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.transform import Affine

        bands = np.asarray(array)
        bands = bands if bands.ndim == 3 else bands[None]
        path = tmp_path / name
        position = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
        position = {} if "gcps" in profile or profile.pop("nowhere", False) else position
        shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", driver="GTiff", **{**shape, **position, **profile}) as file:
                file.write(bands)
                file.update_tags(**(tags or {}))
        return path

    return write
