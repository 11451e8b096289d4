"""AlphaEarth vector -> the coefficients that a baked table holds for it. NumPy alone.

TLM's MLP with the projection on the basis folded into its second layer, 64 -> 4C -> R instead of 64 -> 4C -> 2C: 75
times fewer operations at C = 3584 and R = 32. `export` leaves it beside a baked graph as `projector.npz`, so that
per-image vectors can be fed to the graph in calibration and evaluation; a bundle does not hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError

FILENAME = "projector.npz"
BATCH = 2048
"""Vectors at a time: 117 MiB of hidden values at C = 3584."""
STEP = 1 / 127
"""What one step of a coefficient's code is worth: coefficients lie in -1..1, their sizes are in the basis."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Projector:
    """`silu(a W1 + b1) W2 + b2`."""

    weight1: Floats
    """[64, 4C]."""
    bias1: Floats
    weight2: Floats
    """[4C, R]."""
    bias2: Floats

    @property
    def rank(self) -> int:
        return len(self.bias2)

    def codes(self, vectors: Floats) -> npt.NDArray[np.int8]:
        """[S, 64] -> int8 [S, R] in -127..127, as a baked table holds them (never NODATA)."""
        codes = np.empty((len(vectors), self.rank), np.int8)
        for start in range(0, len(vectors), BATCH):
            hidden = vectors[start : start + BATCH] @ self.weight1 + self.bias1
            hidden *= 0.5 * (1 + np.tanh(0.5 * hidden))  # silu, without an exp that overflows
            codes[start : start + BATCH] = codes_from_coefficients(hidden @ self.weight2 + self.bias2)
        return codes

    def coefficients(self, vectors: Floats) -> Floats:
        """[S, 64] -> float32 [S, R]: what a baked graph takes as `anchors`, rounded as a baked table rounds it."""
        return coefficients_from_codes(self.codes(vectors))

    def save(self, path: Path) -> None:
        np.savez(path, weight1=self.weight1, bias1=self.bias1, weight2=self.weight2, bias2=self.bias2)


def codes_from_coefficients(coefficients: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
    """To the nearest step; what lies beyond -1..1 is cut."""
    return np.rint(coefficients / STEP).clip(-127, 127).astype(np.int8)


def coefficients_from_codes(codes: npt.NDArray[np.int8]) -> Floats:
    return codes * np.float32(STEP)


def read_projector(folder: Path) -> Projector:
    """Of a folder that `export --anchors` or `calibrate` made. InputError where it is absent or damaged."""
    path = folder / FILENAME
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Projector(*(archive[name] for name in ("weight1", "bias1", "weight2", "bias2")))
    except Exception as problem:  # NumPy and zipfile raise a dozen kinds for damaged archives
        raise InputError(
            f"{path} cannot be read ({problem}): a baked graph needs it for per-image vectors; export again"
        ) from None
