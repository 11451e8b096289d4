"""Outlier channels in float beside the INT8 product, against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.outliers import Split, outlier_channels, with_outliers
from fusar_edge.calib.qdq import int8_weight, linears, quantised
from fusar_edge.specs import OutlierSpec

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(48, 32)).astype(np.float32)
BIAS = GENERATOR.normal(size=32).astype(np.float32)
LARGE = np.array([5, 40])
X = GENERATOR.normal(size=(2, 9, 48)).astype(np.float32)
X[..., LARGE] *= 300


def graph() -> onnx.ModelProto:
    """y = x w + b."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "mlp.2"),
        helper.make_node("Add", ["b", "p"], ["y"], "mlp.2/Add"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "N", 48])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "N", 32])
    constants = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def split_graph() -> tuple[onnx.ModelProto, float]:
    model, largest = graph(), float(np.abs(np.delete(X, LARGE, -1)).max())
    return quantised(model, linears(model), {"x": 1e9}, {"mlp.2": Split(LARGE, largest)}), largest


def test_a_split_product_is_int8_without_the_outliers_plus_those_in_float() -> None:
    model, largest = split_graph()
    inner = WEIGHT.copy()
    inner[LARGE] = 0
    codes, scale = int8_weight(inner, 1)
    step = np.float32(largest / 127)
    rounded = np.clip(np.rint(X / step), -128, 127) * step
    expected = rounded @ (codes * scale) + X[..., LARGE] @ WEIGHT[LARGE] + BIAS
    np.testing.assert_allclose(run(model), expected, rtol=1e-4, atol=1e-2)


def test_it_is_far_nearer_to_float_than_one_range_for_all_channels() -> None:
    model, exact = graph(), run(graph())
    plain = run(quantised(model, linears(model), {"x": float(np.abs(X).max())}))
    split = run(split_graph()[0])
    assert np.abs(split - exact).mean() < 0.02 * np.abs(plain - exact).mean()


def test_the_rows_come_back() -> None:
    model, _ = split_graph()
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    emptied = WEIGHT.copy()
    emptied[LARGE] = 0
    np.testing.assert_array_equal(with_outliers(emptied, "mlp.2", constants), WEIGHT)
    np.testing.assert_array_equal(with_outliers(emptied, "mlp.0", constants), emptied)


@pytest.mark.parametrize(
    ("maxima", "expected"),
    [
        ([1.0] * 98 + [50.0, 9.0], [98, 99]),
        ([1.0] * 98 + [50.0, 7.0], [98]),  # below eight times the median
        ([1.0] * 97 + [50.0, 60.0, 70.0], [98, 99]),  # two in a hundred at most
        ([1.0] * 100, []),
        ([0.0] * 100, []),
    ],
)
def test_an_outlier_is_a_channel_far_above_the_median_and_they_are_few(
    maxima: list[float], expected: list[int]
) -> None:
    assert outlier_channels(np.array(maxima), OutlierSpec(linears=("*",), share=0.02)).tolist() == expected


def test_what_reads_the_weights_back_finds_them_whole() -> None:
    from fusar_edge.bench.peers.fp32_graph import fp32_from
    from fusar_edge.engines.layer_source import LayerSource

    model, _ = split_graph()
    found = LayerSource(model).weight("mlp.2")
    assert found.scale is None
    inner = WEIGHT.copy()
    inner[LARGE] = 0
    codes, scale = int8_weight(inner, 1)
    expected = codes * scale
    expected[LARGE] = WEIGHT[LARGE]
    np.testing.assert_array_equal(found.values, expected.T)
    plain = fp32_from(split_graph()[0])
    assert [node.op_type for node in plain.graph.node] == ["MatMul", "Add"]
    np.testing.assert_allclose(run(plain), X @ expected + BIAS, rtol=1e-4, atol=1e-2)


def test_a_fused_decoder_holds_the_whole_weight_and_its_plain_twin_comes_back() -> None:
    import tiny_graphs

    from fusar_edge.calib.graphs import open_graphs
    from fusar_edge.engines.fused import fused
    from fusar_edge.engines.layer_source import LayerSource
    from fusar_edge.engines.plain_twin import with_weights, without_weights

    graphs = open_graphs(tiny_graphs.int8_folder())
    model = onnx.load(tiny_graphs.fp32_folder() / "decoder.onnx")
    layers = [a for a in linears(model) if "layers.0." in a.name]
    splits = {f"decoder.layers.0.{n}": Split(np.array([3]), 4.0) for n in ("mlp.down_proj", "self_attn.k_proj")}
    split = quantised(model, layers, {a.activation: 4.0 for a in layers}, splits)
    made, _ = fused(split, graphs.settings)
    codes = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    whole = LayerSource(split).weight("decoder.layers.0.mlp.down_proj").values
    name = "decoder.layers.0.mlp.down_proj"
    blocks = (codes[f"{name}.codes"].astype(np.float32) - 128) * codes[f"{name}.scale"].reshape(len(whole), -1, 1)
    np.testing.assert_allclose(blocks.reshape(len(whole), -1), whole, atol=np.abs(whole).max() / 127)
    back = with_weights(without_weights(split, made), made)
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (split, back))
    for key in before:
        if "layers.0" in key:
            np.testing.assert_array_equal(before[key], after[key], err_msg=key)


def test_the_range_of_a_split_layer_is_that_of_its_other_channels() -> None:
    import tiny_graphs

    from fusar_edge.calib.graphs import open_graphs
    from fusar_edge.calib.measured import measured
    from fusar_edge.calib.ranges import channel_maxima
    from fusar_edge.calib.tiles.samples import SampleReader
    from fusar_edge.data.triplets import read_triplets
    from fusar_edge.runtime.ort import open_ort
    from fusar_edge.specs import CalibRecipe, RangeSpec

    graphs = open_graphs(tiny_graphs.fp32_folder())
    reader, samples = SampleReader(graphs), read_triplets(tiny_graphs.tiles())[:2]
    spec = OutlierSpec(linears=("vision.blocks.0.mlp.down_proj",), ratio=1.5, share=0.05)
    recipe = CalibRecipe(name="split", ranges=RangeSpec(method="max"), outliers=spec)
    graph = measured(graphs, recipe, samples, reader, open_ort(graphs.bundle()))["vision.onnx"]
    ((name, split),) = graph.splits.items()
    activation = next(layer.activation for layer in graph.layers if layer.name == name)
    feeds = [feed for sample in samples for feed in reader.vision_feeds(sample)]
    maxima = channel_maxima(graphs.path / "vision.onnx", [activation], feeds)[activation]
    assert split.channels.tolist() == outlier_channels(maxima, spec).tolist() != []
    assert split.largest == pytest.approx(np.delete(maxima, split.channels).max())
    assert split.largest < graph.ranges[activation] == pytest.approx(maxima.max())
