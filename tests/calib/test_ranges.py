"""Activation ranges against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.ranges import BINS, AbsoluteHistogram, collect_ranges, least_divergence
from fusar_edge.errors import DataError
from fusar_edge.specs import RangeSpec

MAX = RangeSpec(method="max")
STREAMS = st.sampled_from([np.float16, np.float32]).flatmap(
    lambda kind: st.lists(
        arrays(kind, st.integers(0, 40), elements={"allow_nan": False, "allow_infinity": False}), max_size=5
    )
)
"""Arrays of one type, of any magnitude that it has."""
TINY = np.array([1e-40, 2e-40, 3e-40], np.float32)


@pytest.mark.parametrize("percentile", [60.0, 90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("growth", [0.5, 1.0, 37.0])
def test_a_percentile_of_a_stream_is_numpys_within_two_bins(percentile: float, growth: float) -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(50, 20)).astype(np.float32) * growth**step for step in range(4)]
    histogram = AbsoluteHistogram()
    for part in parts:
        histogram.add(part)
    everything = np.abs(np.concatenate(parts)).ravel()
    expected = np.percentile(everything, percentile, method="inverted_cdf")
    found = histogram.range(RangeSpec(percentile=percentile))
    assert abs(found - expected) <= 2 * histogram.top / BINS
    assert histogram.counts.sum() == everything.size
    assert histogram.top < 2 * max(everything.max(), np.abs(parts[0]).max())


def test_max_is_exact_whatever_the_bins() -> None:
    histogram = AbsoluteHistogram()
    for value in (0.1, -7.3, 3.0):
        histogram.add(np.array([value]))
    assert histogram.range(MAX) == 7.3


def test_zeros_seen_before_any_other_value_are_counted() -> None:
    histogram = AbsoluteHistogram()
    histogram.add(np.zeros(90))
    histogram.add(np.full(10, 5.0))
    assert histogram.counts.sum() == 100
    assert histogram.range(RangeSpec(percentile=80)) <= 5 / BINS
    assert histogram.range(RangeSpec(percentile=95)) == 5


def test_the_order_of_a_stream_moves_a_percentile_by_bins_only() -> None:
    generator = np.random.default_rng(1)
    parts = [generator.exponential(scale, 500) for scale in (0.01, 1, 300)]
    forth, back = AbsoluteHistogram(), AbsoluteHistogram()
    for part, other in zip(parts, reversed(parts), strict=True):
        forth.add(part)
        back.add(other)
    spec = RangeSpec(percentile=99)
    assert forth.range(spec) == pytest.approx(back.range(spec), abs=2 * max(forth.top, back.top) / BINS)


def histogram_of(stream: list[np.ndarray]) -> AbsoluteHistogram:
    histogram = AbsoluteHistogram()
    for values in stream:
        histogram.add(values)
    return histogram


@settings(deadline=None)
@given(STREAMS)
@example([TINY, np.array([3e38], np.float32)])
def test_max_of_any_stream_is_that_of_all_its_values(stream: list[np.ndarray]) -> None:
    everything = np.concatenate([np.zeros(1), *stream])
    assert histogram_of(stream).range(MAX) == np.abs(everything).max()


@settings(deadline=None)
@given(STREAMS, st.floats(50, 100, exclude_min=True))
@example([TINY], 60.0)
@example([np.linspace(0, 0.01, 30, dtype=np.float16)], 60.0)
def test_a_percentile_of_any_stream_covers_its_share_and_two_bins_less_do_not(
    stream: list[np.ndarray], percentile: float
) -> None:
    """The definition itself, on values as they are: no histogram, no interpolation."""
    everything = np.abs(np.concatenate([np.zeros(0), *stream]))
    histogram = histogram_of(stream)
    found = histogram.range(RangeSpec(percentile=percentile))
    share = percentile / 100 * everything.size
    assert histogram.counts.sum() == everything.size
    assert np.count_nonzero(everything <= found * (1 + 1e-12)) >= share
    assert np.count_nonzero(everything < found - 2 * histogram.top / BINS) < share or found == 0
    assert found <= everything.max(initial=0)


def int8_error(values: np.ndarray, clip: float) -> float:
    step = clip / 127
    return float(np.square(np.clip(np.rint(values / step), -127, 127) * step - values).sum())


@pytest.mark.parametrize("shape", ["normal", "laplace", "outliers", "uniform", "spikes"])
def test_mse_is_as_good_as_a_search_over_all_clipping_points(shape: str) -> None:
    generator = np.random.default_rng(3)
    values = {
        "normal": generator.normal(size=20_000),
        "laplace": generator.laplace(size=20_000),
        "outliers": np.concatenate([generator.normal(size=20_000), generator.normal(size=10) * 100]),
        "uniform": generator.uniform(-1, 1, 20_000),
        "spikes": generator.choice([0.0, 0.5, 3.0], 20_000, p=[0.7, 0.29, 0.01]),
    }[shape]
    histogram = AbsoluteHistogram()
    histogram.add(values)
    found = histogram.range(RangeSpec(method="mse"))
    best = min(int8_error(values, clip) for clip in np.linspace(0.005, 1, 400) * np.abs(values).max())
    assert int8_error(values, found) <= max(1.03 * best, len(values) * (histogram.top / BINS) ** 2)
    assert found <= histogram.largest


def divergence_by_hand(counts: list[int], edge: int) -> float:
    """The published algorithm written as loops."""
    reference = counts[:edge]
    groups: list[list[int]] = [[] for _ in range(128)]
    for place in range(edge):
        groups[min(place * 128 // edge, 127)].append(place)
    spread = [0.0] * edge
    for group in groups:
        filled = [place for place in group if reference[place]]
        for place in filled:
            spread[place] = sum(reference[p] for p in group) / len(filled)
    reference = [*reference[:-1], reference[-1] + sum(counts[edge:])]
    p, q = [v / sum(reference) for v in reference], [v / sum(spread) for v in spread]
    if any(a and not b for a, b in zip(p, q, strict=True)):
        q = [(v + 1e-4) / (1 + 1e-4 * edge) for v in q]
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)


@pytest.mark.parametrize("seed", [4, 5])
def test_entropy_is_the_published_algorithm(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.abs(np.concatenate([generator.laplace(size=3000), [40.0]]))
    counts = np.histogram(values, bins=400)[0]
    expected = min(range(128, 401), key=lambda edge: divergence_by_hand([0, *counts[1:].tolist()], edge))
    assert least_divergence(counts) == expected < 400


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_a_method_that_clips_stands_a_constant_zeros_and_one_value(method: str) -> None:
    spec = RangeSpec(method=method)
    for values, expected in ((np.zeros(5), 0.0), (np.full(9, 3.0), 3.0), (np.array([0.0, 0.0, 2.0]), 2.0)):
        histogram = AbsoluteHistogram()
        histogram.add(values)
        assert histogram.range(spec) == pytest.approx(expected, rel=0.02)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = relu(x w), x [B, 4]."""
    weight = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2) - 4, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "first"), helper.make_node("Relu", ["h"], ["y"], "last")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 2])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_ranges_of_inputs_and_inner_tensors_are_those_of_the_arrays_themselves(graph: Path) -> None:
    generator = np.random.default_rng(2)
    feeds = [{"x": generator.normal(size=(3, 4)).astype(np.float32)} for _ in range(5)]
    found = collect_ranges(graph, ["x", "h"], iter(feeds), MAX)
    weight = np.arange(8, dtype=np.float32).reshape(4, 2) - 4
    every = np.concatenate([feed["x"] for feed in feeds])
    assert found["x"] == pytest.approx(np.abs(every).max())
    assert found["h"] == pytest.approx(np.abs(every @ weight).max(), rel=1e-6)


def test_a_tensor_that_is_not_finite_is_refused_by_name(graph: Path) -> None:
    with pytest.raises(DataError, match=r"g\.onnx: h is not a finite number"):
        collect_ranges(graph, ["h"], [{"x": np.full((1, 4), np.nan, np.float32)}], MAX)
