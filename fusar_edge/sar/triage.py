"""Is a tile worth a question? Empty sea, most of many scenes, is not.

A tile is left out only if it holds nothing but homogeneous dark clutter, and no bright cluster in it:

1. Levels, the medians of blocks of 24 px, tell whether the tile is dark and even: land, coasts, ports and strong sea
   states are not, and such tiles are kept without a further look.
2. In what remains, power averaged over 3, 7 and 15 px square is compared with the clutter around it: the median of
   5 x 5 blocks, an ordered-statistics CFAR whose window of 120 px is its own guard, since a ship fills few of the 25
   blocks. The false-alarm threshold follows the tile's own clutter: speckle of any number of looks, resampled or not,
   and sea of any spikiness. See Rohling, Radar CFAR Thresholding in Clutter and Multiple Target Situations, IEEE Trans.
   Aerosp. Electron. Syst. AES-19 (1983); Crisp, The State-of-the-Art in Ship Detection in SAR Imagery (2004).

The numbers below are chosen on simulated scenes and SSDD; tests/bench/triage_recall.py measures what they keep.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.sar.scene import TileImage

Mode = Literal["cfar", "nodata", "off"]
Floats = npt.NDArray[np.float32]

BLOCK_PX = 24
NEIGHBOURS = 5
"""Blocks per side of the window that clutter is estimated in."""
BRIGHT = 0.32
"""Grey of the median block (-10 dB where white is 0 dB): land, or a product that is no calibrated backscatter."""
SPREAD_DB = 5.5
"""Between the 5th and the 95th percentile of the blocks' levels."""
ROUGH_DB = 2.1
"""90th percentile of how far a block's level lies from its neighbours'."""
SPIKY = 0.8
"""Deviation of the logarithm at the first scale, 0.75 in the spikiest sea: streets and roofs, however even they lie."""
SCALES = ((3, 4.9, 3), (7, 5.2, 4), (15, 7.0, 8))
"""(side of the average in px, threshold in deviations of the logarithm of the clutter, least pixels of a cluster)."""
LEAST_DEVIATION = 0.05
"""Of the logarithm: an image that was smoothed much more than that is not measured but drawn."""
DARKEST = 1e-3
"""Grey: -60 dB. Noise-subtracted products hold zeros."""
NORMAL_90 = 1.2816
"""90th percentile of the normal distribution."""
LEAST_VALID = 0.25
"""Share of valid pixels that a block's level needs."""


class Verdict(msgspec.Struct, frozen=True):
    keep: bool
    reason: str
    """Left out: nodata, triage. Kept: asked (no triage was wanted), small, bright, uneven, rough, spiky, cfar."""
    candidates: int = 0
    """Bright clusters; looked for in homogeneous dark tiles alone."""
    level: float = 0.0
    """Grey of the median block."""
    spread_db: float = 0.0
    rough_db: float = 0.0
    peak: float = 0.0
    """Brightest place, in thresholds."""


def verdict(image: TileImage, mode: Mode = "cfar") -> Verdict:
    """Whether a tile is kept. `mode` "nodata" or "off": kept if it has a valid pixel."""
    if not image.valid.any():
        return Verdict(False, "nodata")
    if mode != "cfar":
        return Verdict(True, "asked")
    levels = _block_levels(image)
    if levels is None:
        return Verdict(True, "small")
    level = float(10.0 ** (np.nanmedian(levels) / 20.0))
    spread_db, rough_db, clutter_db = _statistics(levels)
    judged = Verdict(True, "cfar", 0, round(level, 4), round(spread_db, 2), round(rough_db, 2))
    for reason, value, most in (
        ("bright", level, BRIGHT),
        ("uneven", spread_db, SPREAD_DB),
        ("rough", rough_db, ROUGH_DB),
    ):
        if value > most:
            return msgspec.structs.replace(judged, reason=reason)
    found = _bright_clusters(image, clutter_db)
    if found is None:
        return msgspec.structs.replace(judged, reason="spiky")
    peak, candidates = found
    judged = msgspec.structs.replace(judged, candidates=candidates, peak=round(peak, 3))
    return judged if candidates else msgspec.structs.replace(judged, keep=False, reason="triage")


def _block_levels(image: TileImage) -> Floats | None:
    """Median of each block in dB, NaN where too little of it is valid; None where fewer than 3 x 3 blocks fit.

    Every other row and column is looked at. Rows and columns at the end that fill no block have no level of their own.
    """
    rows, cols = (n // BLOCK_PX for n in image.grey.shape)
    if min(rows, cols) < 3:
        return None

    def blocks(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        half = array[: rows * BLOCK_PX : 2, : cols * BLOCK_PX : 2]
        return half.reshape(rows, BLOCK_PX // 2, cols, BLOCK_PX // 2).swapaxes(1, 2).reshape(rows, cols, -1)

    grey = blocks(image.grey)
    if image.valid.all():
        middle = np.median(grey, axis=2)
    else:
        valid = blocks(image.valid)
        count = valid.sum(axis=2)
        ordered = np.sort(np.where(valid, grey, np.inf), axis=2)
        middle = np.take_along_axis(ordered, (count // 2)[..., None].clip(max=grey.shape[2] - 1), axis=2)[..., 0]
        middle[count < LEAST_VALID * grey.shape[2]] = np.nan
        if not np.isfinite(middle).any():
            return None
    db: Floats = 20.0 * np.log10(np.maximum(middle, DARKEST)).astype(np.float32)
    return db


def _statistics(levels: Floats) -> tuple[float, float, Floats]:
    """Spread and roughness of the blocks' levels, and the clutter's level around each block, all in dB.

    Blocks without a level get the one of their surroundings, or the tile's.
    """
    from scipy import ndimage

    known = levels[np.isfinite(levels)]
    low, middle, high = np.percentile(known, (5, 50, 95))
    filled = np.where(np.isfinite(levels), levels, np.float32(middle))
    clutter: Floats = ndimage.median_filter(filled, NEIGHBOURS, mode="nearest")
    rough = np.percentile(np.abs(levels - clutter)[np.isfinite(levels)], 90)
    return float(high - low), float(rough), clutter


def _bright_clusters(image: TileImage, clutter_db: Floats) -> tuple[float, int] | None:
    """Brightest pixel of the averages, in thresholds, and the clusters at or above: of the scale that has most.

    None where the clutter is not sea's at all.
    """
    from scipy import ndimage

    height, width = image.grey.shape
    clutter = np.exp(clutter_db * np.float32(np.log(10.0) / 10.0))
    rows, cols = (
        np.minimum(np.arange(n) // BLOCK_PX, m - 1) for n, m in zip((height, width), clutter.shape, strict=True)
    )
    ratio = np.square(image.grey)
    ratio /= clutter[rows][:, cols]
    peak, clusters = 0.0, 0
    for side, deviations, least_px in SCALES:
        average = ndimage.uniform_filter(ratio, side, mode="nearest")
        sample, shown = average[::3, ::3], image.valid[::3, ::3]
        low, middle, high = np.log(np.maximum(np.quantile(sample[shown], (0.1, 0.5, 0.9)), 1e-6))
        # A large ship widens the upper side of the distribution, never the lower one.
        deviation = max(min(high - middle, middle - low) / NORMAL_90, LEAST_DEVIATION)
        if side == SCALES[0][0] and deviation > SPIKY:
            return None
        threshold = float(np.exp(middle + deviations * deviation))
        peak = max(peak, float(average.max()) / threshold)
        if (above := average >= threshold).any():
            sizes = np.bincount(ndimage.label(above)[0].ravel())[1:]
            clusters = max(clusters, int((sizes >= least_px).sum()))
    return peak, clusters
