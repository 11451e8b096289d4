"""Kinds of land cover: k-means on AlphaEarth vectors, or on image statistics where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.per_image import read_anchor_file
from fusar_edge.sar.image import Grey, resized

VIEW = 128
"""Side in pixels at which image statistics are taken: finer than land cover, coarse enough to average speckle."""

Floats = npt.NDArray[np.float64]


def mean_vector(path: Path) -> Floats:
    """[64]: direction of the mean AlphaEarth vector of an anchor file; zeros where all its vectors are.

    Masked places are not in the file, and it is refused (AnchorError) with NaN in it.
    """
    mean = read_anchor_file(path).features.astype(np.float64).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def image_statistics(grey: Grey) -> Floats:
    """[5] of grey [H, W]: log level, log contrast, log share of bright pixels, edges, share of coarse structure."""
    view = resized(grey, VIEW).astype(np.float64)
    level, spread = view.mean() + 1 / 255, view.std() + 1 / 255
    bright = (view > 4 * (np.median(view) + 1 / 255)).mean()
    edges = np.hypot(np.diff(view, axis=0)[:, 1:], np.diff(view, axis=1)[1:]).mean()
    coarse = view.reshape(8, VIEW // 8, 8, VIEW // 8).mean(axis=(1, 3)).std()
    return np.array([np.log(level), np.log(spread / level), np.log(bright + 1e-3), edges / spread, coarse / spread])


def scaled(points: Floats) -> Floats:
    """Image statistics, which have unlike units: median 0, quartiles 1 apart; no outlier takes a cluster of its own."""
    low, middle, high = np.percentile(points, (25, 50, 75), axis=0)
    return np.clip((points - middle) / np.maximum(high - low, 1e-3), -3, 3)


def k_means(points: Floats, count: int, random: np.random.Generator, iterations: int = 50) -> npt.NDArray[np.int64]:
    """Labels [N] of points [N, D]: Lloyd's iterations from k-means++ seeds (Arthur & Vassilvitskii, SODA 2007).

    Fewer than `count` labels where there are fewer distinct points. SciPy's is no dependency of the workshop.
    """
    centres = points[[random.integers(len(points))]]
    while len(centres) < count and (gaps := _squares(points, centres).min(axis=1)).any():
        centres = np.vstack([centres, points[random.choice(len(points), p=gaps / gaps.sum())]])
    labels = _squares(points, centres).argmin(axis=1)
    for _ in range(iterations):
        used = [label for label in range(len(centres)) if (labels == label).any()]
        centres[used] = [points[labels == label].mean(axis=0) for label in used]
        before, labels = labels, _squares(points, centres).argmin(axis=1)
        if np.array_equal(before, labels):
            break
    return labels


def _squares(points: Floats, centres: Floats) -> Floats:
    return np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
