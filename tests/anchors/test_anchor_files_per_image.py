from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusar_edge.anchors.grid import grid_positions
from fusar_edge.anchors.per_image import read_anchor_file, write_anchor_file
from fusar_edge.errors import AnchorError, OutputExistsError

FEATURES = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
POSITIONS = grid_positions(2)


def columns(count: int = 6) -> np.ndarray:
    """[S, 70] with pixel coordinates of which x and y differ from row and col."""
    rng = np.random.default_rng(2)
    return np.concatenate([rng.uniform(100, 900, size=(count, 6)), rng.normal(size=(count, 64))], axis=1)


def normalised(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_what_is_written_is_read_back_bit_for_bit(data: st.DataObject, count: int) -> None:
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    features = data.draw(hnp.arrays(np.float32, (count, 64), elements=finite))
    positions = data.draw(hnp.arrays(np.float32, (count, 2), elements=st.floats(0, 1, width=32)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        write_anchor_file(path, features, positions)
        read = read_anchor_file(path)
    np.testing.assert_array_equal(read.features, features)
    np.testing.assert_array_equal(read.positions, positions)
    assert read.features.dtype == read.positions.dtype == np.float32


def test_an_old_numeric_file_takes_positions_from_its_x_and_y_columns(tmp_path: Path) -> None:
    table = columns()
    np.save(tmp_path / "a.npy", table)
    read = read_anchor_file(tmp_path / "a.npy")
    np.testing.assert_array_equal(read.features, table[:, 6:].astype(np.float32))
    expected = np.stack([normalised(table[:, 5]), normalised(table[:, 4])], axis=1)
    np.testing.assert_allclose(read.positions, expected, atol=1e-6)


def test_a_flat_old_file_is_read_as_rows_of_70(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", columns().ravel())
    np.save(tmp_path / "b.npy", columns())
    np.testing.assert_array_equal(
        read_anchor_file(tmp_path / "a.npy").features, read_anchor_file(tmp_path / "b.npy").features
    )


@pytest.mark.parametrize(("y", "x"), [("y", "x"), ("row", "col")])
def test_an_old_structured_file_is_read_by_field_name_whatever_the_order(tmp_path: Path, y: str, x: str) -> None:
    names = [x, *(f"A{band:02d}" for band in reversed(range(64))), y, "lon"]
    array = np.zeros(5, dtype=[(name, "f4") for name in names])
    for band in range(64):
        array[f"A{band:02d}"] = band
    array[y], array[x] = [0, 1, 2, 3, 4], [8, 6, 4, 2, 0]
    np.save(tmp_path / "a.npy", array)
    read = read_anchor_file(tmp_path / "a.npy")
    assert read.features[0].tolist() == list(range(64))
    assert read.positions.tolist() == [[0, 1], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1, 0]]


def test_an_axis_without_extent_is_zero(tmp_path: Path) -> None:
    table = columns()
    table[:, 5] = 7
    np.save(tmp_path / "a.npy", table)
    assert (read_anchor_file(tmp_path / "a.npy").positions[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("features", "positions", "reason"),
    [
        (FEATURES, POSITIONS * 504, r"reach from 0 to 504"),
        (FEATURES, POSITIONS - 0.1, r"reach from -0.1"),
        (FEATURES[:, :63], POSITIONS, r"shape \(4, 63\)"),
        (FEATURES, POSITIONS[:3], r"must be \[4, 2\]"),
        (FEATURES[:0], POSITIONS[:0], r"S of 1 or more"),
        (np.full((4, 64), np.nan), POSITIONS, r"features hold NaN"),
        (np.full((4, 64), 1e300), POSITIONS, r"features hold NaN or infinity"),
        (FEATURES, np.full((4, 2), np.nan), r"positions hold NaN"),
        (FEATURES.astype(complex), POSITIONS, r"type complex128"),
        (FEATURES.astype(str), POSITIONS, r"type <U"),
    ],
)
def test_unusable_arrays_are_refused_on_reading_and_on_writing(
    tmp_path: Path, features: np.ndarray, positions: np.ndarray, reason: str
) -> None:
    np.savez(tmp_path / "bad.npz", features=features, positions=positions)
    with pytest.raises(AnchorError, match=rf"bad\.npz: .*{reason}"):
        read_anchor_file(tmp_path / "bad.npz")
    with pytest.raises(AnchorError, match=rf"out\.npz: .*{reason}"):
        write_anchor_file(tmp_path / "out.npz", features, positions)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_pickled_content_is_never_loaded(tmp_path: Path, name: str) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    if name.endswith("npz"):
        np.savez(tmp_path / name, features=objects, positions=objects)
    else:
        np.save(tmp_path / name, objects, allow_pickle=True)
    with pytest.raises(AnchorError, match=rf"{name}: .*pickle"):
        read_anchor_file(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name.endswith("npz"):
        write_anchor_file(path, FEATURES, POSITIONS)
    else:
        np.save(path, columns())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AnchorError, match=name):
        read_anchor_file(path)


def test_a_flipped_byte_of_the_vectors_is_refused_by_the_archives_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_anchor_file(path, FEATURES, POSITIONS)
    data = bytearray(path.read_bytes())
    data[data.index(FEATURES.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(AnchorError, match=r"a\.npz"):
        read_anchor_file(path)


@pytest.mark.parametrize("name", ["none.npz", "none.npy", "none.txt"])
def test_a_missing_file_or_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnchorError, match=name):
        read_anchor_file(tmp_path / name)


def test_an_archive_without_the_two_arrays_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES)
    with pytest.raises(AnchorError, match=r"no array 'positions', only \['features'\]"):
        read_anchor_file(tmp_path / "a.npz")


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    write_anchor_file(tmp_path / "a.npz", FEATURES, POSITIONS)
    with pytest.raises(OutputExistsError):
        write_anchor_file(tmp_path / "a.npz", FEATURES, POSITIONS)
    write_anchor_file(tmp_path / "a.npz", FEATURES[:1], POSITIONS[:1], force=True)
    assert len(read_anchor_file(tmp_path / "a.npz").features) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
