"""TLM once more, in NumPy and float64, from the formula of its format `tlm_original_train_patch_resize_v1`.

Both epsilons are part of it (arXiv 2602.19190, section 3). Shares no line with fusar_edge.model.tlm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EPSILON = 1e-6


def films(anchors: Array, first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Step 1. anchors [S, 64]; (W, b) of both linears, W [out, in] -> gamma, beta [S, C]."""
    (w1, b1), (w2, b2) = ((w.astype(np.float64), b.astype(np.float64)) for w, b in (first, second))
    hidden = anchors.astype(np.float64) @ w1.T + b1
    hidden /= 1 + np.exp(-hidden)
    both = hidden @ w2.T + b2
    return both[:, : len(b2) // 2], both[:, len(b2) // 2 :]


def weights(positions: Array, mask: Array, patches: int, sigma: float) -> Array:
    """Step 2. positions [S, 2] as (y, x) in 0..1, mask [S] -> [S, patches, patches]."""
    y, x = positions.astype(np.float64).T * (patches - 1)
    found = np.zeros((len(positions), patches, patches))
    for r in range(patches):
        for c in range(patches):
            near = np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * sigma**2))
            near = near / (near.sum() + EPSILON)
            near = near * mask
            found[:, r, c] = near / (near.sum() + EPSILON)
    return found


def resized(grid: Array, size: int) -> Array:
    """Step 3. Bilinear, pixel centres at halves (align_corners False): [n, n, C] -> [size, size, C]."""
    n = len(grid)
    for axis in (0, 1):
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, n - 1), at - low
        share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, high, axis) * share
    return grid


def modulated(
    tokens: Array, film: tuple[Array, Array], positions: Array, mask: Array, patches: int, sigma: float = 2.0
) -> Array:
    """Steps 2 to 4. tokens [T, C] of one image -> [T, C] float64."""
    spread = weights(positions, mask, patches, sigma)
    merged = round(np.sqrt(len(tokens)))
    gamma, beta = (
        resized(np.tensordot(spread, part, axes=(0, 0)), merged).reshape(len(tokens), -1) for part in film
    )  # (P, P, C) -> (T, C)
    return tokens.astype(np.float64) * (1 + gamma) + beta
