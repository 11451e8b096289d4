"""How alike two streams of arrays are, from running sums in float64: no array is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class LayerSums:
    """Sums of the products of what one layer gave on two sides, by channel (last axis)."""

    def __init__(self, channels: int) -> None:
        self.dot, self.a, self.b = np.zeros((3, channels))
        self.nan_a = self.nan_b = 0
        """Values that are NaN or infinite."""

    def add(self, a: Array, b: Array) -> None:
        """Two arrays of one shape."""
        x, y = (side.reshape(-1, side.shape[-1]).astype(np.float64) for side in (a, b))
        for total, one, other in ((self.dot, x, y), (self.a, x, x), (self.b, y, y)):
            total += np.einsum("nc,nc->c", one, other)
        self.nan_a += int(np.count_nonzero(~np.isfinite(x)))
        self.nan_b += int(np.count_nonzero(~np.isfinite(y)))

    def merge(self, other: LayerSums) -> None:
        """Add the sums of more runs."""
        for name in ("dot", "a", "b", "nan_a", "nan_b"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def cosine(self, by_channel: bool = False) -> float | None:
        """None where a side is not finite; 1 where both are all zeros, 0 where one is.

        `by_channel`: the mean of the channels' cosines, by their energy in A, which a factor for each does not change.
        """
        if self.nan_a or self.nan_b:
            return None
        if not by_channel or not self.a.any():
            return _cosine(float(self.dot.sum()), float(self.a.sum()), float(self.b.sum()))
        each = [_cosine(*sums) for sums in zip(self.dot.tolist(), self.a.tolist(), self.b.tolist(), strict=True)]
        return float(np.average(each, weights=self.a))

    def norm_ratio(self) -> float | None:
        """|b| / |a|: None where a side is not finite or A alone is all zeros; 1 where both are."""
        a, b = float(self.a.sum()), float(self.b.sum())
        if self.nan_a or self.nan_b or (b and not a):
            return None
        return (b / a) ** 0.5 if a else 1.0


def _cosine(dot: float, a: float, b: float) -> float:
    if not a or not b:
        return float(a == b)
    return min(1.0, max(-1.0, dot / (a**0.5 * b**0.5)))
