"""Both INT8 graphs of fusar-tiny build with TensorRT-RTX, without a GPU."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.qdq import linears
from fusar_edge.engines.compile_gate import BINDINGS, LIBRARIES, compile_pair, compiled
from fusar_edge.errors import GateError

ABSENT = [name for name in (LIBRARIES, BINDINGS) if importlib.util.find_spec(name) is None]

if ABSENT and os.environ.get("CI") != "true":
    pytest.skip(
        f"{', '.join(ABSENT)} not installed (Linux x86-64 only): pip install 'fusar-edge[test]'",
        allow_module_level=True,
    )


def test_both_int8_graphs_of_the_tiny_model_build() -> None:
    folder = tiny_graphs.int8_folder()
    vision, decoder = compile_pair(folder, open_graphs(folder).settings)
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
