"""The one mapping from SAR values to grey."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.errors import SceneError
from fusar_edge.sar.radiometry import Kind, Radiometry, grey_from_values, kind_from_sample


def test_uint8_is_divided_by_255() -> None:
    grey = grey_from_values(np.arange(256, dtype=np.uint8), "uint8", Radiometry(db_white=-10))
    assert grey.dtype == np.float32
    np.testing.assert_array_equal(grey, np.arange(256, dtype=np.float32) / np.float32(255))


def test_known_levels_have_the_grey_of_the_formula() -> None:
    db = np.array([-20.0, -10.0, 0.0, 12.0])
    np.testing.assert_allclose(grey_from_values(db, "db", Radiometry()), [0.1, 0.1**0.5, 1.0, 1.0], rtol=2e-6)
    np.testing.assert_allclose(grey_from_values(db, "db", Radiometry(db_white=-10)), [0.1**0.5, 1, 1, 1], rtol=2e-6)


@given(st.floats(-60, 20), st.floats(-30, 60))
def test_db_power_and_amplitude_of_one_backscatter_are_one_grey(db: float, db_white: float) -> None:
    power = 10 ** (db / 10)
    radiometry = Radiometry(db_white=db_white)
    greys = [
        grey_from_values(np.array([db]), "db", radiometry),
        grey_from_values(np.array([power]), "power", radiometry),
        grey_from_values(np.array([power**0.5]), "amplitude", radiometry),
    ]
    np.testing.assert_allclose(greys, greys[0][0], rtol=2e-6)
    assert 0 <= greys[0][0] <= 1


def test_what_is_not_finite_or_negative_power_is_black() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.001], np.float32)
    kinds: tuple[Kind, ...] = ("db", "power", "amplitude")
    for kind in kinds:
        assert grey_from_values(values[:3], kind, Radiometry()).tolist() == [0, 0, 0]
    assert grey_from_values(values[3:], "power", Radiometry()).tolist() == [0]


def test_a_radiometry_survives_the_bundle_and_refuses_an_unknown_key() -> None:
    stored = msgspec.json.encode(Radiometry(db_white=-3.5))
    assert msgspec.json.decode(stored, type=Radiometry) == Radiometry(db_white=-3.5)
    with pytest.raises(msgspec.ValidationError, match="db_black"):
        msgspec.json.decode(b'{"db_black": 1}', type=Radiometry)


@pytest.mark.parametrize(
    ("values", "kind"), [([-22.0, -8.0, 3.0], "db"), ([-20.0], "db"), ([0.0, 0.02, 30.0], "power"), ([0.0], "power")]
)
def test_float_values_are_judged_by_their_range(values: list[float], kind: str) -> None:
    assert kind_from_sample(np.array(values, np.float32), "s.tif") == kind


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([-9999.0, 0.1], "nodata"),
        ([-0.002, 0.03, 0.4], "noise-subtracted"),
        ([-1.7, 1.5], "noise-subtracted"),
        ([-300.0, 20.0], "no dB and no power"),
        ([-100.0, 25_000.0], "no dB and no power"),
        ([80.0, 120.0, 4000.0], "too bright"),
    ],
)
def test_ambiguous_float_values_are_refused_with_the_option_that_decides(values: list[float], why: str) -> None:
    with pytest.raises(SceneError, match=rf"s\.tif.*{why}.*--values"):
        kind_from_sample(np.array(values), "s.tif")
