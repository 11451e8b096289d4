"""The lint: each rule on a graph that breaks it alone, and the INT8 graphs of fusar-tiny."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from fusar_edge.calib.outliers import Split
from fusar_edge.calib.products.fusion import fused_linears
from fusar_edge.calib.products.lint import (
    BUILT_FLOATING,
    BUILT_INT8,
    BUILT_UNNAMED,
    INT32_BIAS,
    NARROW,
    ON_THE_LEFT,
    OUTLIERS,
    PROBABILITIES,
    TWO_ACTIVATIONS,
    Finding,
    lint,
    records,
    table,
)
from fusar_edge.calib.qdq import linears, quantised
from fusar_edge.engines.kernels import Kernels

WIDTH, OUTPUTS = 32, 48
CONSTANTS: dict[str, Any] = {
    "weight": np.ones((WIDTH, OUTPUTS), np.int8),
    "weight_scale": np.full(OUTPUTS, 0.1, np.float32),
    "weight_zero": np.zeros(OUTPUTS, np.int8),
    "scale": np.float32(0.1),
    "zero": np.int8(0),
    "float": np.ones((WIDTH, OUTPUTS), np.float32),
    "rows": np.array([-1, WIDTH]),
}


def quantise(tensor: str = "x", result: str = "x_dequantised", zero: str = "zero", axis: int = 1) -> list[Any]:
    scaling = ["scale", zero] if zero else ["scale"]
    return [
        helper.make_node("QuantizeLinear", [tensor, *scaling], [f"{result}_codes"], axis=axis),
        helper.make_node("DequantizeLinear", [f"{result}_codes", *scaling], [result], axis=axis),
    ]


def weight(axis: int = 1, result: str = "w") -> list[Any]:
    inputs = ["weight", "weight_scale", "weight_zero"]
    return [helper.make_node("DequantizeLinear", inputs, [result], "weight_dequantise", axis=axis)]


def product(left: str = "x_dequantised", right: str = "w", op: str = "MatMul", **attributes: Any) -> list[Any]:
    return [helper.make_node(op, [left, right], ["y"], "fc", **attributes)]


def graph(*parts: list[Any], **changed: Any) -> onnx.ModelProto:
    """x, z [B, WIDTH] -> y, with the constants above but for those in `changed`."""
    values = CONSTANTS | changed
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", WIDTH]) for name in "xz"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "C"])
    nodes = [node for part in parts for node in part]
    used = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items() if name in used]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [output], tensors))


def only(model: onnx.ModelProto, **arguments: Any) -> Finding:
    (finding,) = lint(model, **arguments)
    return finding


def test_a_product_with_symmetric_q_dq_on_both_sides_runs_in_int8() -> None:
    assert only(graph(quantise(), weight(), product())) == Finding("fc", "MatMul", "weights", int8=True)


def test_the_output_channels_of_gemm_and_convolution_are_where_onnx_has_them() -> None:
    turned = {"weight": np.ones((OUTPUTS, WIDTH), np.int8)}
    assert only(graph(quantise(), weight(0), product(op="Gemm", transB=1), **turned)).int8
    assert not only(graph(quantise(), weight(1), product(op="Gemm", transB=1), **turned)).int8
    assert only(graph(quantise(), weight(1), product(op="Gemm"))).int8
    assert not only(graph(quantise(), weight(0), product(op="Gemm"))).int8
    kernel = {"weight": np.ones((OUTPUTS, 1, 3, 3), np.int8)}
    assert only(graph(quantise(), weight(0), product(op="Conv"), **kernel)).int8
    assert not only(graph(quantise(), weight(1), product(op="Conv"), **kernel)).int8


def test_one_scale_for_a_whole_weight_runs_in_int8_too() -> None:
    model = graph(quantise(), weight(), product(), weight_scale=np.float32(0.1), weight_zero=np.int8(0))
    assert only(model).int8


def test_a_weight_that_the_graph_itself_quantises_is_a_weight() -> None:
    scaling = ["weight_scale", "weight_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["float", *scaling], ["codes"], axis=1),
        helper.make_node("DequantizeLinear", ["codes", *scaling], ["w"], axis=1),
    ]
    assert only(graph(quantise(), nodes, product())) == Finding("fc", "MatMul", "weights", int8=True)


def move(op: str, tensor: str, *inputs: str, **attributes: Any) -> list[Any]:
    return [helper.make_node(op, [tensor, *inputs], ["moved"], "move", **attributes)]


IDS = [helper.make_node("Cast", ["z"], ["ids"], to=TensorProto.INT64)]
FAULTS = {
    "a float weight": (graph(quantise(), product(right="float")), "weight not quantised"),
    "a float activation": (graph(weight(), product(left="x")), "activation without Q/DQ"),
    "a float layer": (graph(product("x", "float")), "activation without Q/DQ; weight not quantised"),
    "a zero point": (
        graph(quantise(), weight(), product(), zero=np.int8(3)),
        "asymmetric zero point of the activation",
    ),
    "a zero point of the weight": (
        graph(quantise(), weight(), product(), weight_zero=np.full(OUTPUTS, 3, np.int8)),
        "asymmetric zero point of the weight",
    ),
    "unsigned codes": (
        graph(quantise(), weight(), product(), zero=np.uint8(128)),
        "activation in UINT8, not INT8",
    ),
    "no zero point, which means unsigned": (
        graph(quantise(zero=""), weight(), product()),
        "activation in UINT8, not INT8",
    ),
    "a scale per channel of the activation": (
        graph(quantise(), weight(), product(), scale=np.ones(WIDTH, np.float32), zero=np.zeros(WIDTH, np.int8)),
        "activation scale per channel",
    ),
    "a computed scale": (
        graph([helper.make_node("ReduceMax", ["z"], ["scale"], keepdims=0)], quantise(), weight(), product()),
        "activation scale is computed, not a constant",
    ),
    "codes that are cast": (
        graph(
            [helper.make_node("Cast", ["x"], ["codes"], to=TensorProto.INT8)],
            [helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["x_dequantised"])],
            weight(),
            product(),
        ),
        "activation codes that no QuantizeLinear makes",
    ),
    "a scale per input channel": (
        graph(quantise(), weight(0), product()),
        "weight scale along axis 0: output channels are axis 1",
    ),
    "a negative axis": (
        graph(quantise(), weight(-2), product()),
        "weight scale along axis 0: output channels are axis 1",
    ),
    "Transpose behind the weight": (
        graph(quantise(), weight(0), move("Transpose", "w"), product(right="moved")),
        "Transpose move between the weight's DequantizeLinear and the product",
    ),
    "Reshape behind the activation": (
        graph(quantise(), move("Reshape", "x_dequantised", "rows"), weight(), product("moved")),
        "Reshape move between the activation's DequantizeLinear and the product",
    ),
    "Cast behind the activation": (
        graph(quantise(), move("Cast", "x_dequantised", to=1), weight(), product("moved")),
        "Cast move between the activation's DequantizeLinear and the product",
    ),
    "Gather behind the activation": (
        graph(quantise(), move("Gather", "x_dequantised", "rows"), weight(), product("moved")),
        "Gather move between the activation's DequantizeLinear and the product",
    ),
    "rows of an INT8 table": (
        graph(IDS, weight(result="table"), move("Gather", "table", "ids"), weight(), product("moved")),
        "Gather move between the activation's DequantizeLinear and the product; activation scale per channel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_placement_is_named(fault: str) -> None:
    model, reason = FAULTS[fault]
    assert only(model) == Finding("fc", "MatMul", "weights", int8=False, reason=reason)


def test_a_weight_in_a_constant_node_is_a_weight() -> None:
    value = numpy_helper.from_array(CONSTANTS["float"])
    model = graph([helper.make_node("Constant", [], ["w"], value=value)], quantise(), product())
    assert only(model).reason == "weight not quantised"


def test_rows_that_are_looked_up_are_an_activation() -> None:
    model = graph(
        [helper.make_node("Cast", ["z"], ["ids"], to=7)], move("Gather", "float", "ids"), product("x", "moved")
    )
    assert only(model).kind == "activations"


def test_products_of_two_activations_stay_in_floating_point_by_design() -> None:
    assert only(graph(product("x", "z"))) == Finding("fc", "MatMul", "activations", int8=False, reason=TWO_ACTIVATIONS)
    softmax = [helper.make_node("Softmax", ["x"], ["p"])]
    assert only(graph(softmax, move("Reshape", "p", "rows"), product("moved", "z"))).reason == PROBABILITIES


def test_products_of_two_activations_with_q_dq_on_both_run_in_int8() -> None:
    both = graph(quantise(), quantise("z", "w"), product())
    assert only(both) == Finding("fc", "MatMul", "activations", int8=True)
    assert only(graph(quantise(), product(right="z"))).reason == "right activation without Q/DQ"
    assert only(graph(quantise("z", "w"), product("x"))).reason == "left activation without Q/DQ"


def test_constants_that_are_no_weights_are_geometry() -> None:
    narrow = graph(product("x", "float"), float=np.ones((WIDTH, 15), np.float32))
    assert only(narrow) == Finding("fc", "MatMul", "geometry", int8=False, reason=NARROW)
    assert only(graph(product("float", "x"))) == Finding("fc", "MatMul", "geometry", int8=False, reason=ON_THE_LEFT)
    assert only(graph(product("x", "float", "Conv"), float=np.ones((4, 1, 3, 3), np.float32))).kind == "weights"


def test_a_quantised_constant_on_the_left_has_its_scales_along_the_rows() -> None:
    assert only(graph(weight(0), quantise(), product("w", "x_dequantised"))).int8
    assert not only(graph(weight(1), quantise(), product("w", "x_dequantised"))).int8


def test_a_layer_that_was_kept_has_the_reason_that_was_given() -> None:
    assert only(graph(product("x", "float")), kept={"fc": "it is sensitive"}).reason == "it is sensitive"
    narrow = graph(product("x", "float"), float=np.ones((WIDTH, 3), np.float32))
    assert only(narrow, kept={"fc": "it is narrow"}) == Finding("fc", "MatMul", "weights", False, "it is narrow")
    assert only(graph(quantise(), weight(), product()), kept={"fc": "why"}) == Finding("fc", "MatMul", "weights", True)


def test_outlier_channels_are_listed_beside_their_layer_however_few_they_are() -> None:
    model = graph(product("x", "float"))
    result = quantised(model, linears(model), {"x": 1.0}, {"fc": Split(np.array([3, 7]), 1.0)})
    assert lint(result) == [
        Finding("fc", "MatMul", "weights", int8=True),
        Finding("fc.outliers", "MatMul", "weights", int8=False, reason=OUTLIERS),
    ]


def test_an_int32_bias_is_a_finding_of_its_own_without_multiplications() -> None:
    bias = helper.make_node("DequantizeLinear", ["bias", "scale"], ["bias_float"], "bias_dequantise")
    add = helper.make_node("Add", ["y", "bias_float"], ["sum"])
    found = lint(graph(quantise(), weight(), product(), [bias, add], bias=np.ones(OUTPUTS, np.int32)))
    assert found[0].int8
    assert found[1:] == [
        Finding("bias_dequantise", "DequantizeLinear", "bias", int8=False, reason=INT32_BIAS, macs=0),
    ]


def built(int8: tuple[str, ...] = (), floating: tuple[str, ...] = ()) -> Kernels:
    return Kernels(frozenset(int8), frozenset(floating), None, None)


def test_the_engine_that_was_built_has_the_last_word() -> None:
    right, wrong = graph(quantise(), weight(), product()), graph(weight(), product(left="x"))
    assert only(right, engine=built(int8=("fc",))) == only(right)
    assert only(right, engine=built(floating=("fc",))).reason == BUILT_FLOATING
    assert only(right, engine=built(int8=("other",))).reason == BUILT_UNNAMED
    profiles = only(right, engine=built(int8=("fc",), floating=("fc",)))
    assert (profiles.int8, profiles.reason) == (False, BUILT_FLOATING)
    moved = only(wrong, engine=built(int8=("fc",)))
    assert (moved.int8, moved.reason) == (True, f"{BUILT_INT8}activation without Q/DQ")
    assert only(wrong, engine=built(floating=("fc",))) == only(wrong)


def test_an_engine_that_names_no_product_says_nothing() -> None:
    assert only(graph(quantise(), weight(), product()), engine=built()).int8


def test_the_table_shows_what_is_not_int8_with_its_reason_as_it_was_written() -> None:
    findings = [
        Finding("a", "MatMul", "weights", int8=True, macs=7_000_000),
        Finding("b[red]", "MatMul", "weights", int8=False, reason="[keep] says so", macs=1_234_000),
        Finding("c", "DequantizeLinear", "bias", int8=False, reason="INT32", macs=0),
    ]
    text = io.StringIO()
    Console(file=text, width=120).print(table(findings))
    shown = text.getvalue()
    assert "1 of 2 products run in INT8" in shown
    assert "7.00" not in shown
    assert re.search(r"b\[red\] .*1\.23 .*\[keep\] says so", shown)
    assert "INT32" in shown


def test_records_are_plain_values_for_json() -> None:
    finding = Finding("a", "MatMul", "weights", int8=True)
    expected = {"name": "a", "op": "MatMul", "kind": "weights", "int8": True, "reason": "", "macs": None}
    assert json.loads(json.dumps(records([finding]))) == [expected]


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
def test_of_the_tiny_int8_graphs_only_kept_layers_geometry_and_products_of_activations_are_left(name: str) -> None:
    path = tiny_graphs.int8_folder() / name
    model = onnx.load(path)
    findings = {finding.name: finding for finding in lint(model, {"vision.patch_embed": "8-bit pixels"})}
    assert list(findings) == [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    fp32 = {layer.name for layer in linears(onnx.load(tiny_graphs.fp32_folder() / name))}
    int8 = {finding.name for finding in findings.values() if finding.int8}
    assert int8 == fp32 - {"vision.patch_embed"}
    assert len(int8) == fused_linears(path)  # ONNX Runtime agrees
    for finding in findings.values():
        if not finding.int8:
            assert finding.reason == expected_reason(finding.name), finding.name


def expected_reason(name: str) -> str:
    if name == "vision.patch_embed":
        return "8-bit pixels"
    if name == "tlm/MatMul":
        return ON_THE_LEFT
    return PROBABILITIES if name.endswith("attn/MatMul_1") else TWO_ACTIVATIONS


def test_of_an_fp32_graph_nothing_runs_in_int8() -> None:
    model = onnx.load(tiny_graphs.fp32_folder() / "decoder.onnx")
    findings = {finding.name: finding for finding in lint(model)}
    assert not any(finding.int8 for finding in findings.values())
    for layer in linears(model):
        assert findings[layer.name].reason == "activation without Q/DQ; weight not quantised"
