"""Scenes of a few kilobytes, for tests that care about files and not about what is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from malformed_files import geotiff


def small_scene(seed: int = 0, side: int = 64, **options: Any) -> bytes:
    """A good GeoTIFF of float32 power: speckle and nothing else."""
    return geotiff(np.random.default_rng(seed).gamma(4.0, 0.01, (side, side)).astype(np.float32), **options)
