"""Activation ranges against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.ranges import BINS, AbsoluteHistogram, collect_ranges
from fusar_edge.errors import DataError
from fusar_edge.specs import RangeSpec

MAX = RangeSpec(method="max")


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
