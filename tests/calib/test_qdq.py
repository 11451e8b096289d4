"""The Q/DQ writer against fake quantisation in NumPy, executed by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.products.fusion import fused_linears
from fusar_edge.calib.qdq import half_embeddings, int8_weight, kept_layers, linears, quantised, reaches, save_graph
from fusar_edge.errors import RecipeError

Array = np.ndarray[Any, np.dtype[Any]]
GENERATOR = np.random.default_rng(0)
TABLE = GENERATOR.normal(size=(40, 32)).astype(np.float32)
WEIGHTS = {name: GENERATOR.normal(size=(32, 32)).astype(np.float32) for name in ("a", "b", "c")}
BIAS = GENERATOR.normal(size=32).astype(np.float32)
RANGES = {"x": 2.0, "h": 9.0, "lines": 12.0}


def small_graph() -> onnx.ModelProto:
    """x = table[ids]; h = (x a + bias) * (x b); logits = (h c) table^T: two readers of x, a tied table."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], "embed"),
        helper.make_node("MatMul", ["x", "a"], ["xa"], "layers.0.a"),
        helper.make_node("Add", ["bias", "xa"], ["xab"], "layers.0.a/Add"),
        helper.make_node("MatMul", ["x", "b"], ["xb"], "layers.0.b"),
        helper.make_node("Mul", ["xab", "xb"], ["h"], "mul"),
        helper.make_node("MatMul", ["h", "c"], ["flat"], "layers.0.down"),
        helper.make_node("Reshape", ["flat", "rows"], ["lines"], "reshape"),
        helper.make_node("Gemm", ["lines", "table"], ["logits"], "head", transB=1),
    ]
    constants = [numpy_helper.from_array(v, k) for k, v in {**WEIGHTS, "table": TABLE, "bias": BIAS}.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 32]), "rows"))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["B", "N"])
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", 40]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "N", 32]),
    ]
    graph = helper.make_graph(nodes, "g", [ids], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def run(model: onnx.ModelProto, feed: dict[str, Array], optimise: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def faked(x: Array, largest: float) -> Array:
    scale = np.float32(largest / 127)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale


def faked_weight(weight: Array, axis: int) -> Array:
    codes, scale = int8_weight(weight, axis)
    return codes * np.expand_dims(scale, 1 - axis)


@pytest.mark.parametrize("optimise", [False, True])
def test_a_quantised_graph_computes_what_fake_quantisation_in_numpy_does(optimise: bool) -> None:
    model = small_graph()
    ids = np.arange(0, 40, 3, dtype=np.int32)[None]
    result = quantised(model, linears(model), RANGES)
    x = faked(TABLE[ids], RANGES["x"])
    a, b, c = (faked_weight(WEIGHTS[k], 1) for k in "abc")
    h = (x @ a + BIAS) * (x @ b)
    flat = faked(h, RANGES["h"]) @ c
    expected = faked(flat[0], RANGES["lines"]) @ faked_weight(TABLE, 0).T
    found = run(result, {"ids": ids}, optimise)[0]
    # One activation code may round the other way: a step of its scale times a weight.
    assert np.abs(found - expected).max() < 2 * RANGES["lines"] / 127 * np.abs(TABLE).max() + 1e-3
    assert np.mean(np.abs(found - expected)) < 1e-2


def test_every_linear_fuses_also_where_two_read_one_tensor(tmp_path: Path) -> None:
    model = small_graph()
    save_graph(quantised(model, linears(model), RANGES), tmp_path / "g.onnx")
    assert fused_linears(tmp_path / "g.onnx") == len(linears(model)) == 4


def test_weights_are_stored_as_int8_per_output_channel_with_zero_points_of_zero() -> None:
    model = small_graph()
    result = quantised(model, linears(model), RANGES)
    constants = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert {k for k, v in constants.items() if v.dtype == np.float32 and v.ndim == 2} == {"table"}  # Gather reads it
    axes = {}
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            codes, axis = constants[node.input[0]], node.attribute[0].i
            assert codes.dtype == np.int8
            assert codes.min() >= -127
            assert constants[node.input[1]].shape == (codes.shape[axis],)
            axes[node.name] = axis
    assert axes == {f"{k}_axis1_dequantise": 1 for k in "abc"} | {"table_axis0_dequantise": 0}


def test_no_bias_is_quantised() -> None:
    model = small_graph()
    result = quantised(model, linears(model), RANGES)
    assert all(t.data_type != TensorProto.INT32 for t in result.graph.initializer)
    assert "bias" in {t.name for t in result.graph.initializer}


def test_a_kept_layer_is_left_untouched() -> None:
    model = small_graph()
    kept = kept_layers(linears(model), {"layers.*.down": "it is sensitive"}, "g")
    assert kept == {"layers.0.down": "it is sensitive"}
    result = quantised(model, [layer for layer in linears(model) if layer.name not in kept], RANGES)
    down = next(node for node in result.graph.node if node.name == "layers.0.down")
    assert list(down.input) == ["h", "c"]


def test_a_recipe_that_keeps_every_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="keeps all 4 layers of g"):
        kept_layers(linears(small_graph()), {"*": "why not"}, "g")


def test_int8_weights_are_within_half_a_step_and_a_channel_of_zeros_stays_zero() -> None:
    weight = GENERATOR.normal(size=(24, 16)).astype(np.float32)
    weight[:, 3] = 0
    codes, scale = int8_weight(weight, 1)
    assert np.all(np.abs(codes * scale - weight) <= scale / 2 * 1.0001)
    assert scale[3] == 1
    assert not codes[:, 3].any()


def test_a_convolution_is_scaled_per_output_channel() -> None:
    kernel = GENERATOR.normal(size=(5, 1, 3, 3)).astype(np.float32) * np.arange(1, 6).reshape(5, 1, 1, 1)
    node = helper.make_node("Conv", ["x", "k"], ["y"], "conv", strides=[3, 3])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 9, 9])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 3, 3])
    constants = [numpy_helper.from_array(kernel.astype(np.float32), "k")]
    graph = helper.make_graph([node], "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    image = GENERATOR.random((1, 1, 9, 9), dtype=np.float32)
    found = run(quantised(model, linears(model), {"x": 1.0}), {"x": image})[0]
    codes, scale = int8_weight(kernel.astype(np.float32), 0)
    patches = faked(image, 1.0).reshape(3, 3, 3, 3).transpose(0, 2, 1, 3).reshape(9, 9)
    expected = (patches @ (codes * scale.reshape(-1, 1, 1, 1)).reshape(5, 9).T).T.reshape(1, 5, 3, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_embedding_table_is_stored_in_half_and_read_as_float_also_by_the_graphs_output() -> None:
    model = small_graph()
    result = quantised(model, linears(model), RANGES)
    assert half_embeddings(result) == ["table"]
    ids = np.array([[0, 39, 7]], np.int32)
    found = run(result, {"ids": ids})[1]
    np.testing.assert_array_equal(found, TABLE.astype(np.float16).astype(np.float32)[ids])
    assert {t.name for t in result.graph.initializer if t.data_type == TensorProto.FLOAT16} == {"table"}


def test_a_table_that_something_else_reads_too_stays_float() -> None:
    model = small_graph()
    assert half_embeddings(model) == []  # the Gemm reads it as well
    result = quantised(model, linears(model), RANGES)
    result.graph.node.append(helper.make_node("Transpose", ["table"], ["turned"], "turn"))
    assert half_embeddings(result) == []


def test_what_depends_on_an_input_is_found_through_the_graph() -> None:
    assert reaches(small_graph(), "h") == {"h", "flat", "lines", "logits"}


def test_narrow_constants_and_constants_on_the_left_are_no_layers() -> None:
    narrow = numpy_helper.from_array(np.ones((1, 32), np.float32), "frequencies")
    left = numpy_helper.from_array(np.ones((32, 32), np.float32), "resize")
    model = small_graph()
    model.graph.initializer.extend([narrow, left])
    model.graph.node.extend([
        helper.make_node("MatMul", ["x", "frequencies"], ["angles"], "rotary"),
        helper.make_node("MatMul", ["resize", "x"], ["spread"], "tlm/MatMul"),
    ])  # fmt: skip
    assert [layer.name for layer in linears(model)] == ["layers.0.a", "layers.0.b", "layers.0.down", "head"]


def test_large_weights_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    save_graph(small_graph(), tmp_path / "g.onnx", largest_bytes=1000)
    assert (tmp_path / "g.onnx.data").is_file()
    ids = np.array([[1, 2]], np.int32)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[1], TABLE[ids])
