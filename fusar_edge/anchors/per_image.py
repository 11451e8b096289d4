"""The official per-image anchor file: `.npz` with features and positions, and the two older `.npy` forms."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import BANDS
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import output_file

PLACE_FIELDS = ("lon", "lat", "row", "col", "x", "y")
"""The first six columns of the [S, 70] form, and the fields of the structured one that are no vector."""


class ImageAnchors(NamedTuple):
    """The anchors of one image."""

    features: npt.NDArray[np.float32]
    """[S, 64], S > 0, finite. A vector of zeros is an anchor like any other in the official files: there is no mask."""
    positions: npt.NDArray[np.float32]
    """[S, 2], (y, x) in [0, 1]."""


class PlacedAnchors(NamedTuple):
    """The anchors of one image by where they lie."""

    lon: npt.NDArray[np.float64]
    """[S], degrees, WGS 84; the [S, 70] form is often float32, which is 0.4 m at 180 degrees."""
    lat: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]
    """[S, 64]"""


def read_anchor_file(path: Path | str) -> ImageAnchors:
    """Read `.npz` (features [S, 64], positions [S, 2]) or `.npy`: structured fields, or [S, 70] = lon, lat, row, col,
    x, y, A00..A63. Positions of `.npy` are y and x (row and col where a structured file lacks them), each min-max
    normalised over the file; an axis without extent is 0. Pickled content is never loaded.

    Raises AnchorError, naming the file. Source: official FUSAR-GPT code, data loading.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise AnchorError(f"{path}: an anchor file ends in .npz (features, positions) or .npy")
    with _readable(path) as file:
        features, positions = readers[path.suffix.lower()](path, file)
    return _checked(path, features, positions)


def read_placed_anchors(path: Path | str) -> PlacedAnchors:
    """Read a `.npy` of `read_anchor_file` for where its anchors lie. AnchorError where it has no lon and lat."""
    path = Path(path)
    with _readable(path) as file:
        array = _load_npy(path, file)
        names = array.dtype.names
        if names and not {"lon", "lat"} <= set(names):
            raise AnchorError(f"{path}: no fields lon and lat, only {list(names)[:8]}...; its place is not known")
        lon, lat = (array["lon"], array["lat"]) if names else (array[:, 0], array[:, 1])
        features = _from_fields(path, array)[0] if names else array[:, 6:]
        anchors = _checked(path, features, np.zeros((len(features), 2)))
        return PlacedAnchors(lon.astype(np.float64), lat.astype(np.float64), anchors.features)


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """The open file; what NumPy raises for damaged content becomes an AnchorError."""
    try:
        with open(path, "rb") as file:  # np.load(path) leaves a damaged archive open
            yield file
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, SyntaxError, MemoryError) as problem:
        # NumPy: ValueError for pickled or cut content, SyntaxError and MemoryError for a damaged header
        raise AnchorError(f"{path}: cannot be read ({problem}); it may be truncated, or hold pickled objects") from None


def write_anchor_file(
    path: Path | str, features: npt.ArrayLike, positions: npt.ArrayLike, *, force: bool = False
) -> None:
    """Write the `.npz` form: features [S, 64] and positions [S, 2] in [0, 1] as float32. Refuses what could not be read
    back (AnchorError) and a file that exists (OutputExistsError)."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise AnchorError(f"{path}: the per-image file is written as .npz")
    anchors = _checked(path, np.asarray(features), np.asarray(positions))
    with output_file(path, force=force) as work:
        np.savez(work, features=anchors.features, positions=anchors.positions)


def _read_npz(path: Path, file: BinaryIO) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise AnchorError(f"{path}: it is one array under the name .npz; rename it to .npy")
    with archive:
        missing = [name for name in ("features", "positions") if name not in archive.files]
        if missing:
            raise AnchorError(
                f"{path}: no array {missing[0]!r}, only {archive.files}; needed are features and positions"
            )
        return archive["features"], archive["positions"]


def _read_npy(path: Path, file: BinaryIO) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    array = _load_npy(path, file)
    features, y, x = _from_fields(path, array) if array.dtype.names else (array[:, 6:], array[:, 5], array[:, 4])
    return features, np.stack([_min_max(path, y), _min_max(path, x)], axis=1)


def _load_npy(path: Path, file: BinaryIO) -> npt.NDArray[Any]:
    """Structured [S], or [S, 70]."""
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise AnchorError(f"{path}: it is an archive under the name .npy; rename it to .npz")
    if array.dtype.names:
        return array.reshape(-1)
    if array.ndim == 1 and array.size % (BANDS + 6) == 0:
        array = array.reshape(-1, BANDS + 6)
    if array.ndim != 2 or array.shape[1] != BANDS + 6:
        raise AnchorError(f"{path}: shape {array.shape}; it must be [S, 70] = lon, lat, row, col, x, y, A00..A63")
    return array


def _from_fields(path: Path, array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """features [S, 64], y [S], x [S] of a structured array."""
    names = array.dtype.names or ()
    bands = sorted((name for name in names if re.fullmatch(r"[aA]\d+", name)), key=lambda name: int(name[1:]))
    if len(bands) != BANDS:
        raise AnchorError(f"{path}: {len(bands)} fields A00..A63 among {list(names)[:8]}...; needed are {BANDS}")
    y, x = ("y", "x") if {"y", "x"} <= set(names) else ("row", "col")
    if not {y, x} <= set(names):
        raise AnchorError(f"{path}: neither fields x and y nor row and col, only {list(names)[:8]}...")
    return np.stack([array[name] for name in bands], axis=1), array[y], array[x]


def _min_max(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    numbers = _float32(path, "coordinates", values)
    if not numbers.size:
        return numbers
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)


def _checked(path: Path, features: npt.NDArray[Any], positions: npt.NDArray[Any]) -> ImageAnchors:
    if features.ndim != 2 or features.shape[1] != BANDS or not len(features):
        raise AnchorError(
            f"{path}: features have shape {features.shape}; they must be [S, {BANDS}] with S of 1 or more"
        )
    if positions.shape != (len(features), 2):
        raise AnchorError(f"{path}: positions have shape {positions.shape}; they must be [{len(features)}, 2], (y, x)")
    features, positions = _float32(path, "features", features), _float32(path, "positions", positions)
    if positions.min() < 0 or positions.max() > 1:
        raise AnchorError(
            f"{path}: positions reach from {positions.min():g} to {positions.max():g}; they are (y, x) in [0, 1]: "
            "divide pixel rows and columns by the image's size - 1"
        )
    return ImageAnchors(features, positions)


def _float32(path: Path, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "fiu":
        raise AnchorError(f"{path}: {name} are of type {values.dtype}; they must be numbers")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise AnchorError(f"{path}: {name} hold NaN or infinity (or overflow float32); leave such anchors out")
    return numbers
