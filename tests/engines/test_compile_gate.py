"""Both INT8 graphs of fusar-tiny build with TensorRT-RTX, without a GPU."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.outliers import Split
from fusar_edge.calib.products.lint import BUILT_INT8, Finding, lint
from fusar_edge.calib.qdq import linears, quantised
from fusar_edge.engines.compile_gate import BINDINGS, LIBRARIES, Compiled, compile_pair, compiled
from fusar_edge.engines.kernels import Kernels
from fusar_edge.engines.profiles import vision_profiles
from fusar_edge.errors import GateError
from fusar_edge.manifest import read_manifest

ABSENT = [name for name in (LIBRARIES, BINDINGS) if importlib.util.find_spec(name) is None]

if ABSENT and os.environ.get("CI") != "true":
    pytest.skip(
        f"{', '.join(ABSENT)} not installed (Linux x86-64 only): pip install 'fusar-edge[test]'",
        allow_module_level=True,
    )


@functools.cache
def tiny_pair() -> list[Compiled]:
    folder = tiny_graphs.int8_folder()
    return compile_pair(folder, open_graphs(folder).settings)


def test_both_int8_graphs_of_the_tiny_model_build() -> None:
    folder = tiny_graphs.int8_folder()
    vision, decoder = tiny_pair()
    # A plan of INT8 weights is smaller than the FP32 graph; a decoder has one set of kernels per profile.
    assert 0 < vision.plan_bytes < (tiny_graphs.fp32_folder() / "vision.onnx").stat().st_size
    assert decoder.plan_bytes > 0
    assert min(vision.layers, decoder.layers) > 100
    for result in (vision, decoder):
        layers = linears(onnx.load(folder / result.graph))  # what is still a float MatMul is not INT8
        assert result.kernels.int8 == int8_linears(folder / result.graph)
        assert not result.kernels.int8 & {layer.name for layer in layers}


def int8_linears(path: Path) -> set[str]:
    """Nodes whose weight comes from INT8 through DequantizeLinear."""
    nodes = onnx.load(path).graph.node
    dequantised = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    return {n.name for n in nodes if n.op_type in ("MatMul", "Gemm", "Conv") and n.input[1] in dequantised}


@pytest.mark.parametrize("place", [0, 1], ids=["vision", "decoder"])
def test_the_lint_and_the_engine_agree_on_every_product_of_the_tiny_model(place: int) -> None:
    result = tiny_pair()[place]
    model = onnx.load(tiny_graphs.int8_folder() / result.graph)
    findings = lint(model)
    assert {finding.name for finding in findings if finding.int8} == result.kernels.int8
    assert {finding.name for finding in findings if not finding.int8} == result.kernels.floating
    assert lint(model, engine=result.kernels) == findings


WIDTH = 64
SCALED: dict[str, Any] = {
    "weight": np.ones((WIDTH, WIDTH), np.int8),
    "weight_scale": np.full(WIDTH, 0.1, np.float32),
    "weight_zero": np.zeros(WIDTH, np.int8),
    "scale": np.float32(0.1),
    "zero": np.int8(0),
    "float": np.ones((WIDTH, WIDTH), np.float32),
    "bias": np.ones(WIDTH, np.int32),
    "rows": np.array([-1, WIDTH]),
}
QUANTISE = helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["codes"], "quantise")
DEQUANTISE = helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["a"], "dequantise")
ACTIVATION = [QUANTISE, DEQUANTISE]
TURNED = helper.make_node("Transpose", ["w"], ["turned"], "turn", perm=[1, 0])
FLAT = helper.make_node("Reshape", ["a", "rows"], ["flat"], "flatten")
POSITIVE = helper.make_node("Relu", ["a"], ["positive"], "positive")


def weight(axis: int = 1) -> onnx.NodeProto:
    inputs = ["weight", "weight_scale", "weight_zero"]
    return helper.make_node("DequantizeLinear", inputs, ["w"], "weight_dequantise", axis=axis)


def product(left: str = "a", right: str = "w") -> onnx.NodeProto:
    return helper.make_node("MatMul", [left, right], ["p"], "fc")


def built(folder: Path, *nodes: onnx.NodeProto, **changed: Any) -> tuple[onnx.ModelProto, Kernels]:
    """h = sin(x); p of `nodes`; y = cos(p): the product `fc` stands between other work, as in a model."""
    before, after = helper.make_node("Sin", ["x"], ["h"], "sin"), helper.make_node("Cos", ["p"], ["y"], "cos")
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in (SCALED | changed).items() if k in used]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", WIDTH]) for n in "xy")
    path = saved(folder, [before, *nodes, after], [x], [y], constants)
    return onnx.load(path), compiled(path, [{"x": ((1, WIDTH), (8, WIDTH), (32, WIDTH))}]).kernels


def judged(folder: Path, *nodes: onnx.NodeProto, **changed: Any) -> Finding:
    """Of the lint without the engine, which must agree."""
    model, kernels = built(folder, *nodes, **changed)
    (finding,) = lint(model)
    assert finding.int8 == ("fc" in kernels.int8)
    return finding


def test_tensorrt_runs_in_int8_what_the_lint_says_it_does(tmp_path: Path) -> None:
    assert judged(tmp_path, *ACTIVATION, weight(), product()).int8
    single = {"weight_scale": np.float32(0.1), "weight_zero": np.int8(0)}
    assert judged(tmp_path, *ACTIVATION, weight(), product(), **single).int8


UNFIT: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "activation without Q/DQ": ([weight(), product("h")], {}),
    "weight not quantised": ([*ACTIVATION, product("a", "float")], {}),
    "activation scale per channel": (
        [*ACTIVATION, weight(), product()],
        {"scale": np.full(WIDTH, 0.1, np.float32), "zero": np.zeros(WIDTH, np.int8)},
    ),
    "weight scale along axis 0: output channels are axis 1": ([*ACTIVATION, weight(0), product()], {}),
    "Relu positive between the activation's DequantizeLinear and the product": (
        [*ACTIVATION, POSITIVE, weight(), product("positive")],
        {},
    ),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_tensorrt_does_not_run_in_int8_what_the_lint_says_it_would_not(reason: str, tmp_path: Path) -> None:
    nodes, changed = UNFIT[reason]
    assert judged(tmp_path, *nodes, **changed).reason == reason


def test_what_this_tensorrt_moves_out_of_the_way_the_lint_knows_from_the_engine_alone(tmp_path: Path) -> None:
    for nodes in (
        [*ACTIVATION, weight(0), TURNED, product("a", "turned")],
        [*ACTIVATION, FLAT, weight(), product("flat")],
    ):
        model, kernels = built(tmp_path, *nodes)
        (alone,), (seen,) = lint(model), lint(model, engine=kernels)
        assert not alone.int8
        assert "between" in alone.reason
        assert (seen.int8, seen.reason) == (True, BUILT_INT8 + alone.reason)


def test_tensorrt_refuses_the_zero_points_and_biases_that_the_lint_lists(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="Non-zero zero point is not supported"):
        built(tmp_path, *ACTIVATION, weight(), product(), zero=np.int8(3))
    assert lint(onnx.load(tmp_path / "g.onnx"))[0].reason == "asymmetric zero point of the activation"
    bias = helper.make_node("DequantizeLinear", ["bias", "scale"], ["b"], "bias_dequantise")
    with pytest.raises(GateError, match=r"bias_dequantise.*Int32"):
        built(tmp_path, *ACTIVATION, weight(), product(), bias, helper.make_node("Add", ["p", "b"], ["sum"], "add"))
    assert [f.name for f in lint(onnx.load(tmp_path / "g.onnx")) if f.kind == "bias"] == ["bias_dequantise"]


def test_outlier_channels_beside_a_linear_build_and_leave_it_in_int8(tmp_path: Path) -> None:
    source, figures = tiny_graphs.fp32_folder(), read_manifest(tiny_graphs.int8_folder()).figures
    model = onnx.load(source / "vision.onnx")
    ranges = figures["graphs"]["vision.onnx"]["ranges"]
    layers = [layer for layer in linears(model) if layer.name in ranges]
    split = ["vision.merger.mlp.2", "vision.blocks.0.mlp.down_proj"]
    splits = {name: Split(np.array([1, 40]), ranges[name]) for name in split}
    onnx.save(
        quantised(model, layers, {a.activation: ranges[a.name] for a in layers}, splits), tmp_path / "vision.onnx"
    )
    settings = open_graphs(tiny_graphs.int8_folder()).settings
    engine = compiled(tmp_path / "vision.onnx", vision_profiles(settings, 1)).kernels
    assert set(split) <= engine.int8
    found = {f.name: f for f in lint(onnx.load(tmp_path / "vision.onnx"), {}, engine)}
    assert all(found[name].int8 and not found[f"{name}.outliers"].int8 for name in split)


def test_a_node_that_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], "vision.blocks.0/Det")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B"])
    with pytest.raises(GateError, match=r"g\.onnx.*vision\.blocks\.0/Det"):
        compiled(saved(tmp_path, [node], [x], [y], []), [{"x": ((1, 4, 4), (1, 4, 4), (2, 4, 4))}])


def test_a_gather_of_int8_rows_does_not_build_which_is_why_embeddings_are_half(tmp_path: Path) -> None:
    constants = [
        numpy_helper.from_array(np.ones((64, 32), np.int8), "table"),
        numpy_helper.from_array(np.float32(1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["row"], "gather"),
        helper.make_node("DequantizeLinear", ["row", "scale", "zero"], ["y"], "dequantise"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])
    with pytest.raises(GateError, match="constant"):
        compiled(saved(tmp_path, nodes, [ids], [y], constants), [{"ids": ((1,), (4,), (8,))}])


def test_an_input_that_the_contract_does_not_have_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in "xy")
    with pytest.raises(GateError, match=r"its inputs are \['x'\]; the contract has \['pixels'\]"):
        compiled(saved(tmp_path, [node], [x], [y], []), [{"pixels": ((1, 4), (1, 4), (1, 4))}])


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"
