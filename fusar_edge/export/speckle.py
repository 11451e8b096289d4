"""Images to run the vision tower on where no real ones are at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def speckled(rng: np.random.Generator, batch: int, size: int) -> npt.NDArray[Any]:
    """Images like those of a SAR, [B, 1, size, size] 0..1: exponential speckle, an edge, bright points."""
    ramp = np.linspace(0, 1, size)
    field = np.where(ramp[:, None] + 0.4 * np.sin(5 * ramp)[None] > rng.uniform(0.4, 0.9, (batch, 1, 1)), 8.0, 1.0)
    power = field * rng.exponential(1.0, (batch, size, size))
    for image in power:
        image[rng.integers(0, size, 12), rng.integers(0, size, 12)] = 500.0
    decibel = 10 * np.log10(power + 1e-3)
    return np.clip((decibel + 15) / 45, 0, 1).astype(np.float32)[:, None]
