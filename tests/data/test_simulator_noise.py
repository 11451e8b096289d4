"""The random fields against their textbook statistics."""

from __future__ import annotations

import numpy as np
import pytest

from fusar_edge.data.simulator.noise import correlated_normal, fractal, gamma_texture, power_from_db, resized, speckle


def distance_to_distribution(sample: np.ndarray, cdf: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic of a sorted sample whose theoretical distribution function is `cdf`."""
    steps = np.arange(1, len(sample) + 1) / len(sample)
    return float(max(np.abs(steps - cdf).max(), np.abs(steps - 1 / len(sample) - cdf).max()))


def test_single_look_speckle_is_exponential() -> None:
    sample = np.sort(speckle(np.random.default_rng(1), 300, 300, 1).ravel().astype(np.float64))
    assert sample.mean() == pytest.approx(1.0, abs=0.015)
    assert sample.std() == pytest.approx(sample.mean(), abs=0.02)
    assert distance_to_distribution(sample, 1 - np.exp(-sample)) < 1.63 / np.sqrt(len(sample))  # 1 % level


@pytest.mark.parametrize("looks", [2, 4, 20])
def test_the_equivalent_number_of_looks_is_the_number_of_looks(looks: int) -> None:
    sample = speckle(np.random.default_rng(2), 300, 300, looks).astype(np.float64)
    assert sample.mean() == pytest.approx(1.0, abs=0.01)
    assert sample.mean() ** 2 / sample.var() == pytest.approx(looks, rel=0.04)


@pytest.mark.parametrize("cell_px", [1.0, 2.5])
@pytest.mark.parametrize("order", [2.0, 8.0])
def test_texture_times_speckle_has_the_moments_of_the_k_distribution(order: float, cell_px: float) -> None:
    rng = np.random.default_rng(3)
    texture = gamma_texture(rng, 900, 900, order, cell_px).astype(np.float64)
    assert texture.mean() == pytest.approx(1.0, abs=0.01)
    assert texture.var() == pytest.approx(1 / order, rel=0.05)
    intensity = texture * speckle(rng, 900, 900, 1)
    assert (intensity**2).mean() / intensity.mean() ** 2 == pytest.approx(2 * (1 + 1 / order), rel=0.03)


def test_correlated_normal_noise_has_unit_variance_at_every_pixel() -> None:
    rng = np.random.default_rng(4)
    fields = np.stack([correlated_normal(rng, 12, 9, 3.3) for _ in range(4000)])
    assert np.abs(fields.std(axis=0) - 1).max() < 0.06  # five deviations of a sample deviation
    assert np.abs(fields.mean(axis=0)).max() < 0.08
    assert np.mean(fields[:, 5, 4] * fields[:, 5, 5]) > 0.5


def test_a_steeper_spectrum_makes_smoother_fractal_noise() -> None:
    def neighbours(beta: float) -> float:
        field = fractal(np.random.default_rng(5), 96, 96, beta)
        assert field.mean() == pytest.approx(0, abs=1e-5)
        assert field.std() == pytest.approx(1, abs=1e-4)
        return float((field[:, 1:] * field[:, :-1]).mean())

    assert neighbours(1.0) < neighbours(2.0) < neighbours(4.0)


def test_resizing_keeps_a_ramp_where_it_is() -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32) + 0.5, (40, 1))  # value = place of the pixel's centre
    large = resized(ramp, 100, 100)
    np.testing.assert_allclose(large[50, 2:-2], (np.arange(100) + 0.5)[2:-2] / 2.5, atol=1e-5)
    np.testing.assert_allclose(resized(ramp, 50, 50, factor=2.0)[3, 1:], (np.arange(50) + 0.5)[1:] / 2, atol=1e-5)


def test_decibels_become_power() -> None:
    np.testing.assert_allclose(power_from_db([-20, 0, 3]), [0.01, 1.0, 1.99526], rtol=1e-5)
