from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusar_edge.anchors.codes import (
    NODATA,
    codes_from_sums,
    codes_from_vectors,
    squares_from_codes,
    valid_from_codes,
    vectors_from_codes,
)
from fusar_edge.errors import AnchorError

EVERY_CODE = np.arange(-128, 128).astype(np.int8)


def test_every_code_decodes_by_the_published_formula() -> None:
    expected = [0.0 if v == -128 else float(np.sign(v)) * (v / 127.5) ** 2 for v in range(-128, 128)]
    decoded = vectors_from_codes(EVERY_CODE)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, np.array(expected, dtype=np.float32))


def test_squares_are_the_vectors_in_exact_integers() -> None:
    np.testing.assert_allclose(squares_from_codes(EVERY_CODE) / 127.5**2, vectors_from_codes(EVERY_CODE), rtol=1e-6)


def test_decoding_and_encoding_gives_every_code_back() -> None:
    codes = EVERY_CODE[1:]
    np.testing.assert_array_equal(codes_from_vectors(vectors_from_codes(codes)), codes)


@given(hnp.arrays(np.float64, (3, 64), elements=st.floats(-0.99, 0.99)))
def test_encoding_picks_a_code_whose_root_is_at_most_half_a_step_away(vectors: np.ndarray) -> None:
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5
    assert np.abs(codes_from_vectors(vectors) - roots).max() <= 0.5 + 1e-9


def test_values_beyond_one_clip_to_127_and_never_become_nodata() -> None:
    assert codes_from_vectors(np.array([-1.0, 1.0, -5.0])).tolist() == [-127, 127, -127]


def test_a_vector_marked_invalid_is_encoded_as_nodata_even_when_it_is_nan() -> None:
    codes = codes_from_vectors(np.array([[np.nan] * 64, [0.125] * 64]), valid=np.array([False, True]))
    assert valid_from_codes(codes).tolist() == [False, True]
    assert (codes[0] == NODATA).all()


def test_encoding_nan_is_refused() -> None:
    with pytest.raises(AnchorError, match="NaN"):
        codes_from_vectors(np.full(64, np.nan))


def test_codes_of_another_type_are_refused() -> None:
    with pytest.raises(AnchorError, match="int16"):
        vectors_from_codes(np.zeros(64, dtype=np.int16))  # type: ignore[arg-type]  # the wrong type is the point


def test_vectors_that_cancel_out_give_nodata() -> None:
    sums = np.zeros((1, 64), dtype=np.int32)
    assert (codes_from_sums(sums, np.array([2], dtype=np.int32)) == NODATA).all()
