"""Ranges and scales against those of ONNX Runtime's quantiser and, by files it wrote once, of nvidia-modelopt."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator

from fusar_edge.calib.qdq import int8_weight, linears, quantised
from fusar_edge.calib.ranges import BINS, Feeds, collect_ranges
from fusar_edge.specs import RangeSpec

TOOLS = Path(__file__).parents[2] / "tools" / "int8"
GOLDEN = Path(__file__).parent / "golden"
MAX, ENTROPY = RangeSpec(method="max"), RangeSpec(method="entropy")
ONE_ULP = 1.2e-7
"""Of float32, relative: scales are rounded once, from float64 there and from float32 here."""
ORT_BINS = 2048
LINEARS = ["MatMul", "Gemm", "Conv"]


def tool(name: str) -> ModuleType:
    """A script of tools/int8, which is no package."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


small = tool("golden_from_modelopt")
MODELOPT: dict[str, dict[str, float]] = json.loads((GOLDEN / "modelopt-scales.json").read_text())


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "small.onnx"
    onnx.save(small.small_graph(), path)
    return path


def ours(graph: Path, spec: RangeSpec, feeds: Sequence[Feeds]) -> dict[str, float]:
    return collect_ranges(graph, [layer.activation for layer in linears(onnx.load(graph))], feeds, spec)


def theirs(
    graph: Path, method: CalibrationMethod, feeds: Sequence[Feeds], at_once: int = 0, **options: Any
) -> dict[str, float]:
    """|x| that becomes 127 by ONNX Runtime's calibrator, told `at_once` batches at a time (0: all together)."""
    calibrator = create_calibrator(
        graph, LINEARS, str(graph.with_name("augmented.onnx")), method, extra_options={"symmetric": True} | options
    )
    step = at_once or len(feeds)
    for start in range(0, len(feeds), step):
        calibrator.collect_data(tool("with_modelopt").Batches(feeds[start : start + step]))
    found = calibrator.compute_data()
    return {name: float(np.abs(found[name].range_value).max()) for name in MODELOPT["max"]}


def weights(model: onnx.ModelProto, suffix: str = "") -> dict[str, np.ndarray[Any, Any]]:
    layers = linears(small.small_graph())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {layer.weight: constants[layer.weight + suffix] for layer in layers}


def check_weights(model: onnx.ModelProto, suffix: str) -> None:
    """Codes and scales of each output channel; both sides divide the largest |w| by 127."""
    axes = {layer.weight: layer.axis for layer in linears(small.small_graph())}
    codes, scales = weights(model, suffix), weights(model, "_scale")
    for name, weight in weights(small.small_graph()).items():
        our_codes, our_scales = int8_weight(weight, axes[name])
        np.testing.assert_allclose(scales[name], our_scales, rtol=ONE_ULP)
        np.testing.assert_array_equal(codes[name], our_codes)


def test_max_is_what_min_max_of_onnxruntime_finds(graph: Path) -> None:
    found = ours(graph, MAX, small.feeds())
    assert found == pytest.approx(theirs(graph, CalibrationMethod.MinMax, small.feeds()), rel=1e-6)
    assert found["x"] == small.OUTLIER


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_a_percentile_is_that_of_onnxruntime_within_one_bin_of_either(graph: Path, percentile: float) -> None:
    """The true value lies between: ONNX Runtime takes the lower edge of its bin, we the upper edge of ours.

    Its bin is the largest |x| / 2048; ours is top / 4096, and top is less than twice the largest |x|.
    """
    found = ours(graph, RangeSpec(percentile=percentile), small.feeds())
    peer = theirs(graph, CalibrationMethod.Percentile, small.feeds(), percentile=percentile)
    for name, largest in ours(graph, MAX, small.feeds()).items():
        assert -1e-6 * largest <= found[name] - peer[name] <= largest * (1 / ORT_BINS + 2 / BINS), name
        assert found[name] < largest


def test_entropy_at_onnxruntimes_bins_is_max_where_ours_cuts_an_outlier_off(graph: Path) -> None:
    """128 bins for 128 levels: one clipping point to choose from, the largest |x|. quantize_static offers no more."""
    largest, cut = (ours(graph, spec, small.feeds()) for spec in (MAX, ENTROPY))
    assert theirs(graph, CalibrationMethod.Entropy, small.feeds()) == pytest.approx(largest, rel=1e-6)
    finer = theirs(graph, CalibrationMethod.Entropy, small.feeds(), num_bins=512)
    for name in largest:
        assert cut[name] < 0.7 * largest[name]
        assert 0.5 < cut[name] / finer[name] < 2  # other bins, and its levels are counted in integers


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_a_file_of_quantize_static_has_the_scales_and_codes_of_ours(graph: Path, method: str) -> None:
    """Its entropy too has the scales of our max."""
    path = graph.with_name(f"{method}.onnx")
    quantize_static(
        graph,
        path,
        tool("with_modelopt").Batches(small.feeds()),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=LINEARS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Entropy if method == "entropy" else CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True},
    )
    source = onnx.load(graph)
    our_file = quantised(source, linears(source), ours(graph, MAX, small.feeds()))
    scales = small.activation_scales(onnx.load(path))
    assert {k: scales[k] for k in MODELOPT["max"]} == pytest.approx(small.activation_scales(our_file), rel=1e-6)
    check_weights(onnx.load(path), "_quantized")


def test_the_file_of_modelopts_max_has_the_scales_and_codes_of_ours(graph: Path) -> None:
    model = onnx.load(GOLDEN / "modelopt-max.onnx")
    source = onnx.load(graph)
    our_file = quantised(source, linears(source), ours(graph, MAX, small.feeds()))
    assert small.activation_scales(model) == pytest.approx(small.activation_scales(our_file), rel=1e-6)
    check_weights(model, "")


def test_modelopts_percentile_is_its_max() -> None:
    assert MODELOPT["percentile"] == MODELOPT["max"]


def test_modelopts_entropy_is_max_where_the_outlier_comes_first_and_ours_is_not(graph: Path) -> None:
    """It counts in 128 bins of the first batch's range and adds bins as later ones need more."""
    assert MODELOPT["entropy, outlier first"] == MODELOPT["max"]
    first, last = (ours(graph, ENTROPY, feeds) for feeds in (small.outlier_first(), small.feeds()))
    for name, largest in ours(graph, MAX, small.feeds()).items():
        assert first[name] < 0.7 * largest
        assert 2 / 3 < first[name] / last[name] < 1.5  # 0.73 to 0.99: bins of another width, a flat minimum


def test_modelopts_entropy_is_onnxruntimes_told_batch_by_batch_and_ours_within_a_factor_of_two(graph: Path) -> None:
    modelopt = {name: 127 * scale for name, scale in MODELOPT["entropy"].items()}
    assert theirs(graph, CalibrationMethod.Entropy, small.feeds(), at_once=1) == pytest.approx(modelopt, rel=0.02)
    for name, found in ours(graph, ENTROPY, small.feeds()).items():
        assert 0.5 < found / modelopt[name] < 2  # 0.71 to 1.58: bins of 1/64 of the first batch's range
