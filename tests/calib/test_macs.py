"""Multiply-accumulates against the architecture's formulas, worked out by hand and by the planner; bytes on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import small_model
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.outliers import Split
from fusar_edge.calib.products.lint import Finding, lint
from fusar_edge.calib.products.macs import (
    counted,
    decoder_dims,
    int8_share,
    node_macs,
    stored_bytes,
    tile_macs,
    tile_share,
    vision_dims,
)
from fusar_edge.calib.qdq import half_embeddings, linears, quantised, save_graph
from fusar_edge.engines.memory import weight_format
from fusar_edge.engines.roofline import Work, arithmetic_of, decoder_work, vision_work
from fusar_edge.engines.shapes import ModelShape, shape_from_recipe
from fusar_edge.errors import InputError
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.specs import ModelRecipe

KEPT = {"vision.patch_embed": "8-bit pixels"}


def settings() -> BundleSettings:
    return open_graphs(tiny_graphs.int8_folder()).settings


def loaded(name: str) -> onnx.ModelProto:
    return onnx.load(tiny_graphs.int8_folder() / name)


# By hand ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 graphs of tests/small_model.py."""
    folder = tmp_path_factory.mktemp("small")
    model = small_model.random_model(msgspec.toml.decode(small_model.SMALL_RECIPE, type=ModelRecipe))
    vision, decoder = VisionGraph(model).eval(), DecoderGraph(model).eval()
    write_graph(vision, FusarVisionOnnxConfig(vision.config), folder / "vision.onnx")
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), folder / "decoder.onnx")
    return folder


@pytest.mark.parametrize("anchors", [1, 25])
def test_vision_of_the_small_model_multiplies_what_the_formulas_say(small: Path, anchors: int) -> None:
    macs = node_macs(onnx.load(small / "vision.onnx"), {"batch": 1, "anchors": anchors})
    patches, tokens, width = 100, 25, 32
    assert macs["vision.patch_embed"] == patches * 14 * 14 * width
    assert macs["vision.blocks.0.attn.qkv"] == patches * width * 3 * width
    assert macs["vision.blocks.2.mlp.down_proj"] == patches * 48 * width
    assert macs["vision.merger.mlp.0"] == tokens * (4 * width) ** 2
    assert macs["vision.merger.mlp.2"] == tokens * 4 * width * 64
    assert macs["vision.blocks.1.attn/MatMul"] == macs["vision.blocks.1.attn/MatMul_1"] == patches**2 * width
    # 5 x 5 cells in windows of 2: four of 16 patches, four of 8, one of 4; a MatMul for each size.
    windows = sum(count for name, count in macs.items() if name.startswith("vision.blocks.0.attn/"))
    assert windows == 2 * (4 * 16**2 + 4 * 8**2 + 4**2) * width
    assert macs["tlm.film_mlp.0"] == anchors * 64 * 256
    assert macs["tlm.film_mlp.2"] == anchors * 256 * 2 * 64
    spread = sum(count for name, count in macs.items() if name.startswith("tlm/"))
    assert spread == tokens * patches * anchors + 2 * tokens * anchors * 64
    block = patches * (4 * width * width + 3 * width * 48)
    products = 2 * windows + 2 * patches**2 * width + spread
    layers = macs["vision.patch_embed"] + 3 * block + tokens * (128 * 128 + 128 * 64) + anchors * (64 + 128) * 256
    assert sum(macs.values()) == layers + products


@pytest.mark.parametrize(("new", "past"), [(30, 0), (1, 30), (1, 1), (7, 26)])
def test_the_small_decoder_multiplies_what_the_formulas_say(small: Path, new: int, past: int) -> None:
    dims = {"batch": 1, "tokens": new, "visual": 25, "cached": past}
    macs = node_macs(onnx.load(small / "decoder.onnx"), dims)
    assert macs["decoder.layers.1.self_attn.q_proj"] == new * 64 * 64
    assert macs["decoder.layers.1.self_attn.k_proj"] == new * 64 * 2 * 16
    assert macs["decoder.layers.0.mlp.up_proj"] == new * 64 * 96
    assert macs["decoder.lm_head"] == 64 * 128  # for the last token alone
    scores, mixed = (macs[f"decoder.layers.0.self_attn/{name}"] for name in ("MatMul", "MatMul_1"))
    assert scores == mixed == 4 * new * (past + new) * 16
    layer = new * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 2 * scores
    assert sum(macs.values()) == 2 * layer + 64 * 128


def test_a_gemm_that_is_turned_and_a_grouped_convolution_are_counted() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], "gemm", transA=1),
        helper.make_node("Reshape", ["g", "image"], ["r"]),
        helper.make_node("Conv", ["r", "k"], ["y"], "conv", group=2),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    values = {"w": np.ones((5, 18)), "k": np.ones((6, 2, 3, 3)), "image": np.array([1, 4, 3, 6])}
    tensors = [
        numpy_helper.from_array(v.astype(np.int64 if k == "image" else np.float32), k) for k, v in values.items()
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors))
    model.ir_version, model.opset_import[0].version = 8, 17
    assert node_macs(model, {}) == {"gemm": 4 * 5 * 18, "conv": 6 * 4 * 2 * 9}


# By the planner -----------------------------------------------------------------------------------------------------


def tiny_shape() -> ModelShape:
    return shape_from_recipe(load_recipe("export", "fusar-tiny", ModelRecipe)[0], "fusar-tiny")


INT8 = weight_format("int8", KEPT)


def assert_agree(findings: list[Finding], work: Work) -> None:
    assert sum(f.macs or 0 for f in findings if f.int8) == work.macs["int8"]
    assert sum(f.macs or 0 for f in findings if not f.int8) == work.macs["float32"]


def test_vision_of_fusar_tiny_is_what_the_planner_counts_too() -> None:
    model = loaded("vision.onnx")
    findings = counted(lint(model, KEPT), node_macs(model, vision_dims(settings())))
    assert_agree(findings, vision_work(tiny_shape(), INT8, arithmetic_of(INT8)))
    share = int8_share(findings)
    # 324 patches of width 192: blocks 2 and 5 attend to all, the others to 36; patches and 81 tokens, 81 anchors.
    layers = 324 * 6 * (4 * 192 * 192 + 3 * 192 * 512) + 81 * (768 * 768 + 768 * 256) + 81 * (64 * 1024 + 1024 * 512)
    patches = 324 * 196 * 192
    products = 2 * 192 * 324 * (2 * 324 + 4 * 36) + 81 * 81 * (324 + 2 * 256)
    assert share["weights"] == pytest.approx(layers / (layers + patches), rel=1e-12)
    assert share["all"] == pytest.approx(layers / (layers + patches + products), rel=1e-12)


@pytest.mark.parametrize(("new", "past"), [(100, 0), (1, 100), (30, 97)])
def test_the_decoder_of_fusar_tiny_is_what_the_planner_counts_too(new: int, past: int) -> None:
    model = loaded("decoder.onnx")
    findings = counted(lint(model), node_macs(model, decoder_dims(settings(), new, past)))
    assert_agree(findings, decoder_work(tiny_shape(), INT8, arithmetic_of(INT8), new, past, cache_bytes=4))
    assert int8_share(findings)["weights"] == 1


# Shares -------------------------------------------------------------------------------------------------------------


def test_shares_are_those_of_multiply_accumulates_and_geometry_is_no_weight() -> None:
    findings = [
        Finding("a", "MatMul", "weights", int8=True, macs=60),
        Finding("b", "MatMul", "weights", int8=False, macs=20),
        Finding("c", "MatMul", "activations", int8=True, macs=5),
        Finding("d", "MatMul", "activations", int8=False, macs=10),
        Finding("e", "MatMul", "geometry", int8=False, macs=5),
        Finding("f", "DequantizeLinear", "bias", int8=False, macs=0),
    ]
    assert int8_share(findings) == {"weights": 0.75, "all": 0.65}
    assert math.isnan(int8_share(findings[5:])["all"])


def test_a_share_of_findings_that_were_not_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="a has no multiply-accumulates"):
        int8_share([Finding("a", "MatMul", "weights", int8=True)])


def test_counting_leaves_a_bias_at_nothing() -> None:
    bias = Finding("b", "DequantizeLinear", "bias", int8=False, macs=0)
    assert counted([Finding("a", "MatMul", "weights", int8=True), bias], {"a": 7})[1] == bias


def test_a_tile_is_vision_prefill_and_every_step_after_it() -> None:
    vision, decoder, s = loaded("vision.onnx"), loaded("decoder.onnx"), settings()
    parts = [node_macs(vision, vision_dims(s)), node_macs(decoder, decoder_dims(s, 100, 0))]
    parts += [node_macs(decoder, decoder_dims(s, 1, past)) for past in (100, 101, 102, 103)]
    expected: dict[str, int] = {}
    for part in parts:
        expected |= {name: expected.get(name, 0) + count for name, count in part.items()}
    assert tile_macs(s, vision, decoder, 100, 5) == expected
    assert tile_macs(s, vision, decoder, 100, 1) == parts[0] | parts[1]  # prefill brings the first token
    findings = lint(vision, KEPT) + lint(decoder)
    assert tile_share(s, vision, decoder, findings, 100, 5) == int8_share(counted(findings, expected))


def test_sizes_are_those_of_one_image_with_a_whole_grid_of_anchors() -> None:
    assert vision_dims(settings()) == {"batch": 1, "anchors": 81}
    assert vision_dims(settings(), 1) == {"batch": 1, "anchors": 1}
    assert decoder_dims(settings(), 5, 3) == {"batch": 1, "tokens": 5, "visual": 81, "cached": 3}


# What is asked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [{"batch": 1}, {"batch": 1, "anchors": 9, "tokens": 3}])
def test_sizes_must_be_those_that_the_graph_leaves_open(dims: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"the graph has \['anchors', 'batch'\]: give a size for each"):
        node_macs(loaded("vision.onnx"), dims)


def test_a_shape_that_depends_on_values_is_refused() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["c"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("MatMul", ["x", "c"], ["y"], "m"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    with pytest.raises(InputError, match="leave the shape of c open"):
        node_macs(model, {})


def test_weights_are_not_needed_to_count(tmp_path: Path) -> None:
    save_graph(loaded("decoder.onnx"), tmp_path / "g.onnx", largest_bytes=1000)
    (tmp_path / "g.onnx.data").unlink()
    bare = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    dims = decoder_dims(settings(), 5, 3)
    assert node_macs(bare, dims) == node_macs(loaded("decoder.onnx"), dims)


# Bytes on disk ------------------------------------------------------------------------------------------------------

WEIGHT = np.ones((64, 32), np.float32)


def two_layers(**splits: Split) -> onnx.ModelProto:
    """logits = (table[ids] first + bias) table^T in INT8, its table in half precision."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], "embed"),
        helper.make_node("MatMul", ["x", "first"], ["f"], "first"),
        helper.make_node("Add", ["f", "bias"], ["b"], "add"),
        helper.make_node("Gemm", ["b", "table"], ["y"], "head", transB=1),
    ]
    values: dict[str, Any] = {"table": WEIGHT, "first": np.ones((32, 32)), "bias": np.ones(32)}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])
    model = helper.make_model(helper.make_graph(nodes, "g", [ids], [y], tensors))
    result = quantised(model, linears(model), {"x": 1.0, "b": 1.0}, splits)
    half_embeddings(result)
    return result


@pytest.mark.parametrize("largest_bytes", [1_000_000, 100], ids=["one file", "external data"])
def test_every_byte_of_a_graph_is_accounted_for(tmp_path: Path, largest_bytes: int) -> None:
    save_graph(two_layers(first=Split(np.array([5]), 1.0)), tmp_path / "g.onnx", largest_bytes)
    stored = stored_bytes(tmp_path / "g.onnx")
    assert stored.parameters == stored.codes == 64 * 32 + 32 * 32
    assert stored.scales == (64 + 32) * 5 + 2 * 5  # FP32 scale and INT8 zero point, per channel and per activation
    assert stored.outliers == 32 * 4
    assert stored.floating == {"table": 64 * 32 * 2, "bias": 32 * 4}
    assert stored.total == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 0 < stored.rest < stored.total
    counted_bytes = stored.codes + stored.scales + stored.outliers + stored.rest
    assert stored.bytes_per_quantised_parameter == counted_bytes / stored.parameters


def test_an_int32_bias_is_no_quantised_weight(tmp_path: Path) -> None:
    model = two_layers()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.int32), "b32"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "b32_scale"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["b32", "b32_scale"], ["unread"], "b32"))
    save_graph(model, tmp_path / "g.onnx")
    assert stored_bytes(tmp_path / "g.onnx").parameters == 64 * 32 + 32 * 32


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
def test_a_quantised_parameter_of_fusar_tiny_takes_no_more_than_1_1_bytes(name: str) -> None:
    path = tiny_graphs.int8_folder() / name
    stored = stored_bytes(path)
    assert stored.total == path.stat().st_size
    weights = [n for n in linears(onnx.load(tiny_graphs.fp32_folder() / name)) if n.name not in KEPT]
    fp32 = {t.name: math.prod(t.dims) for t in onnx.load(tiny_graphs.fp32_folder() / name).graph.initializer}
    assert stored.parameters == sum(fp32[layer.weight] for layer in weights)
    assert 1 < stored.bytes_per_quantised_parameter <= 1.1  # 1.044 and 1.041


def test_a_graph_without_quantised_weights_has_no_bytes_per_parameter() -> None:
    assert math.isnan(stored_bytes(tiny_graphs.fp32_folder() / "vision.onnx").bytes_per_quantised_parameter)
