"""AlphaEarth's int8 codes and the vectors they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import AnchorError

BANDS = 64
BAND_NAMES = tuple(f"A{band:02d}" for band in range(BANDS))
NODATA = -128
"""Code of every band where there is no vector (open ocean, outside the coverage)."""
LICENCE = "CC BY 4.0"
CREDIT = "The AlphaEarth Foundations Satellite Embedding dataset is produced by Google and Google DeepMind."
"""The line that the licence requires wherever the vectors, or what is made from them, are shown."""
LENGTH_TOLERANCE = 0.02
"""Allowed distance of a vector's length from 1; int8 rounding alone moves real ones to 0.993-1.008."""

# Indexed by the code's bits as uint8: 0..127 are themselves, 128 is NODATA, 129..255 are -127..-1.
_CODE = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int32)
_VALUE = np.where(_CODE == NODATA, 0.0, np.sign(_CODE) * (_CODE / 127.5) ** 2).astype(np.float32)


def vectors_from_codes(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Dequantise: sign(v) (v / 127.5)^2, and 0 for -128. codes int8 [..., 64] -> float32 [..., 64].

    Source: the data set's description in the Earth Engine catalogue, GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL.
    """
    return _VALUE.take(_int8(codes).view(np.uint8))


def squares_from_codes(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """sign(v) v^2, the vectors times 127.5^2 as exact integers: their sums do not depend on the order of adding."""
    wide = _int8(codes).astype(np.int16)
    return np.where(wide == NODATA, np.int16(0), wide * np.abs(wide))  # 5x faster than a look-up, whose index is int64


def codes_from_vectors(vectors: npt.ArrayLike, valid: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int8]:
    """Quantise [..., 64]: sign(x) sqrt(|x|) 127.5 to the nearest integer, clipped to +-127.

    Where `valid` [...] is False every band is NODATA, whatever the vector. NaN or infinity elsewhere: AnchorError.
    """
    values = np.asarray(vectors, dtype=np.float64)
    if valid is not None:
        values = np.where(valid[..., None], values, 0.0)
    if not np.isfinite(values).all():
        raise AnchorError("vectors hold NaN or infinity: give finite vectors, or mark them in `valid`")
    codes = np.rint(np.copysign(np.sqrt(np.abs(values)) * 127.5, values)).clip(-127, 127).astype(np.int8)
    if valid is not None:
        codes[~valid] = NODATA
    return codes


def codes_from_sums(sums: npt.NDArray[np.int32], counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
    """Codes of the re-normalised mean. sums int32 [..., 64] of `squares_from_codes`, counts int32 [...] of vectors.

    One vector keeps its own codes (a table at the source's spacing holds the source's bytes); none, or vectors that
    cancel out, give NODATA.
    """
    if counts.max(initial=0) <= 1:  # a table at the source's spacing
        values = sums.astype(np.float32)
        codes = np.copysign(np.sqrt(np.abs(values)), values).astype(np.int8)
        codes[counts == 0] = NODATA
        return codes
    values = sums.astype(np.float64)
    length = np.sqrt(np.einsum("...b,...b->...", values, values))
    valid = (counts > 0) & (length > 0)
    scale = np.where(counts == 1, 1.0, 127.5**2 / np.where(valid, length, 1.0))
    codes = np.rint(np.copysign(np.sqrt(np.abs(values) * scale[..., None]), values)).clip(-127, 127).astype(np.int8)
    codes[~valid] = NODATA
    return codes


def valid_from_codes(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """True where no band is NODATA. codes int8 [..., 64] -> bool [...]."""
    return (codes != NODATA).all(axis=-1)


def unit_length(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """True where a vector's length is 1 within LENGTH_TOLERANCE. [..., 64] -> bool [...]; NaN is False."""
    return np.abs(np.sqrt(np.einsum("...b,...b->...", vectors, vectors)) - 1.0) <= LENGTH_TOLERANCE


def _int8(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    if codes.dtype != np.int8:
        raise AnchorError(f"codes are {codes.dtype}: they must be int8, as AlphaEarth files store them")
    return codes
