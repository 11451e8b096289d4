"""Random fields, float32: fractal noise, speckle and the K-distributed texture of the sea."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

_GRID = 96
"""Side of the coarse grid on which fractal noise is made; finer detail drowns in speckle."""


def _lerp(source: int, target: int, factor: float) -> tuple[npt.NDArray[np.intp], Field]:
    """Left neighbour and weight of the right one for `target` samples over `source`, each 1 / factor apart."""
    place = np.clip((np.arange(target) + 0.5) / factor - 0.5, 0.0, source - 1)
    left = np.minimum(place.astype(np.intp), source - 2)
    return left, (place - left).astype(np.float32)


def resized(field: Field, height: int, width: int, factor: float | None = None) -> Field:
    """Bilinear [h, w] -> [height, width]; h and w at least 2. Pixel areas are aligned at the top left corner.

    `factor` is how many new pixels one old pixel spans; by default the whole field is stretched over the result.
    """
    rows, wy = _lerp(field.shape[0], height, factor or height / field.shape[0])
    cols, wx = _lerp(field.shape[1], width, factor or width / field.shape[1])
    top = field[rows]
    tall = top + (field[rows + 1] - top) * wy[:, None]
    left = tall[:, cols]
    return left + (tall[:, cols + 1] - left) * wx


def fractal(rng: np.random.Generator, height: int, width: int, beta: float, cycles: float = 0.0) -> Field:
    """Gaussian noise with power spectrum 1 / f^beta, mean 0 and standard deviation 1 over the grid.

    `cycles` is the corner below which the spectrum is flat, in cycles across the field: larger means smaller patches.
    """
    side = _GRID + _GRID // 3  # the rest is cut off, since the transform makes opposite edges meet
    fy = np.fft.fftfreq(side)[:, None] * side
    fx = np.fft.rfftfreq(side)[None, :] * side
    shape = (fy * fy + fx * fx + max(cycles, 0.7) ** 2) ** (-beta / 4)
    shape[0, 0] = 0.0
    white = np.fft.rfft2(rng.standard_normal((side, side)))
    field = np.fft.irfft2(white * shape, s=(side, side))[:_GRID, :_GRID]
    field = (field - field.mean()) / field.std()
    return resized(field.astype(np.float32), height, width)


def correlated_normal(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Field:
    """Gaussian field with mean 0 and variance 1 *at every pixel* and a correlation length of about `cell_px`.

    White noise on a coarse grid, interpolated, and divided by the deviation that the two weights leave.
    """
    if cell_px <= 1.0:
        return rng.standard_normal((height, width), dtype=np.float32)
    rows, cols = (max(2, math.ceil(n / cell_px) + 1) for n in (height, width))
    field = resized(rng.standard_normal((rows, cols), dtype=np.float32), height, width)
    wy, wx = _lerp(rows, height, height / rows)[1], _lerp(cols, width, width / cols)[1]
    return field / (np.hypot(1 - wy, wy)[:, None] * np.hypot(1 - wx, wx)[None, :])


def speckle(rng: np.random.Generator, height: int, width: int, looks: int) -> Field:
    """Multiplicative speckle of intensity: gamma with mean 1 and variance 1 / looks; exponential for one look."""
    if looks == 1:
        return rng.standard_exponential((height, width), dtype=np.float32)
    return rng.standard_gamma(looks, (height, width), dtype=np.float32) / np.float32(looks)


@functools.lru_cache(maxsize=64)
def _gamma_from_normal(order: float) -> Field:
    """Quantiles of gamma(order, mean 1) at the normal scores -5..5 in 2048 steps.

    The distribution function is summed on a logarithmic grid, so that small orders keep their spike at zero.
    """
    log_x = np.linspace(-60.0 / max(order, 0.3), math.log(60.0 * max(order, 1.0)), 20001)
    density = order * log_x - np.exp(log_x)  # log of x^(order - 1) e^-x dx with dx = x dlog(x)
    mass = np.exp(density - density.max())
    cumulative = np.cumsum(mass) - mass / 2
    cumulative /= mass.sum()
    scores = np.linspace(-5.0, 5.0, 2048)
    probability = np.array([0.5 * math.erfc(-z / math.sqrt(2.0)) for z in scores])
    quantiles = np.exp(np.interp(probability, cumulative, log_x)) / order
    return quantiles.astype(np.float32)


def gamma_texture(rng: np.random.Generator, height: int, width: int, order: float, cell_px: float) -> Field:
    """Texture of K-distributed clutter: gamma with mean 1 and variance 1 / order, correlated over `cell_px`.

    Times exponential speckle it is K-distributed intensity: <I^2> / <I>^2 = 2 (1 + 1 / order) (Ward, Tough and Watts,
    Sea Clutter, 2013, chapter 4).
    """
    score = correlated_normal(rng, height, width, cell_px)
    index = np.clip((score + 5.0) * (2047 / 10.0) + 0.5, 0, 2047).astype(np.int16)
    return _gamma_from_normal(round(order, 2)).take(index)


def power_from_db(db: npt.ArrayLike) -> Field:
    """10^(db / 10)."""
    return np.exp(np.asarray(db, np.float32) * np.float32(math.log(10) / 10))
