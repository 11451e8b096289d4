"""The one fixed mapping from SAR values to grey: amplitude, white at a fixed level, nothing scene-dependent.

Amplitude (not dB) is what 8-bit SAR chips such as SSDD hold, so real products and training chips look alike: with
white at 0 dB the sea of Sentinel-1 VV scenes lies at 0.05-0.1 (-25 to -20 dB) and land at 0.3-0.6 (-11 to -5 dB).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.errors import SceneError

Kind = Literal["uint8", "db", "power", "amplitude"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VALUES_HELP = "say what it holds with --values uint8, db, power or amplitude"
LOWEST_DB, HIGHEST_DB = -200.0, 100.0
"""Outside of this no value is a backscatter in dB."""
SURELY_DB = -5.0
"""Noise-subtracted power dips a little below 0; values below this can only be dB."""
HIGHEST_MEDIAN_POWER = 10.0
"""10 dB: a scene brighter than that holds digital numbers, not calibrated power."""


class Radiometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """grey = clip(sqrt(power / 10^(db_white / 10)), 0, 1). Stored in the bundle; training and runtime share it."""

    db_white: Annotated[float, msgspec.Meta(ge=-60.0, le=100.0)] = 0.0
    """Backscatter in dB that maps to 1.0. Values of kind "uint8" are display levels and do not pass through it."""


DEFAULT_RADIOMETRY = Radiometry()


def grey_from_values(values: npt.NDArray[np.generic], kind: Kind, radiometry: Radiometry) -> npt.NDArray[np.float32]:
    """Grey float32 in [0, 1], same shape; what is not finite becomes 0.

    `kind` of `values`: "uint8" display levels 0..255 (divided by 255), "db" decibels, "power" linear (sigma0, gamma0),
    "amplitude" the square root of power. Negative power or amplitude (noise-subtracted products) becomes 0.
    """
    if kind == "uint8":
        return values.astype(np.float32) / np.float32(255)
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)  # the relative error stays below 2e-6
        if kind == "db":
            amplitude = np.exp(single * np.float32(math.log(10.0) / 20.0))  # sqrt of 10^(dB / 10)
        elif kind == "power":
            amplitude = np.sqrt(np.maximum(single, 0.0))
        elif kind == "amplitude":
            amplitude = single
        else:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        grey = np.clip(amplitude * np.float32(10.0 ** (-radiometry.db_white / 20.0)), 0.0, 1.0)
    return np.where(np.isfinite(values), grey, np.float32(0.0))


def kind_from_sample(sample: npt.NDArray[np.generic], name: str) -> Kind:
    """ "db" or "power" from valid float values; SceneError where both or neither is possible."""
    low, median, high = (float(v) for v in np.percentile(sample.astype(np.float64), (0, 50, 100)))
    found = f"{name} holds float values from {low:.4g} to {high:.4g}, median {median:.4g}"
    if low < LOWEST_DB or (low < 0 and high > HIGHEST_DB):
        raise SceneError(
            f"{found}: no dB and no power; declare its fill value (gdal_edit.py -a_nodata) or {VALUES_HELP}"
        )
    if low < SURELY_DB:
        return "db"
    if low < 0:
        raise SceneError(f"{found}: dB, noise-subtracted power and complex parts look like this; {VALUES_HELP}")
    if median > HIGHEST_MEDIAN_POWER:
        raise SceneError(f"{found}: too bright for calibrated power; convert it to sigma0 or gamma0, or {VALUES_HELP}")
    return "power"
