"""The network read back from a bundle's graphs is the one that they were exported from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_model import SMALL_RECIPE, TOKENS, random_model

from fusar_edge.bench.peers.architecture import Architecture, architecture_from
from fusar_edge.bench.peers.fp32_graph import dequantised, fp32_model
from fusar_edge.bench.peers.hugging_face import network
from fusar_edge.bench.peers.weights import Weights, layer_weights, state_dict_from
from fusar_edge.calib.qdq import half_embeddings, linears, quantised
from fusar_edge.errors import BundleError
from fusar_edge.export.baking.basis import Basis
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.parity import run_from_file, sample
from fusar_edge.export.settings import settings
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.vision import hf_patches_from_grey
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.specs import ModelRecipe

SPECIAL = {name: TOKENS[name] for name in ("video", "vision_start", "vision_end")}


@pytest.fixture(scope="module")
def model() -> FusarForConditionalGeneration:
    return random_model(msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe))


@pytest.fixture(scope="module")
def folder(model: FusarForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32")
    vision, decoder = VisionGraph(model).eval(), DecoderGraph(model).eval()
    write_graph(vision, FusarVisionOnnxConfig(vision.config), path / "vision.onnx")
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), path / "decoder.onnx")
    return path


def bundle_settings(model: FusarForConditionalGeneration, **changes: object) -> BundleSettings:
    recipe = msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe)
    known = set(BundleSettings.__struct_fields__)
    return msgspec.convert({k: v for k, v in settings(model, recipe).items() if k in known} | changes, BundleSettings)


def read_back(model: FusarForConditionalGeneration, vision: Path, decoder: Path) -> tuple[Architecture, Weights]:
    graphs = fp32_model(vision), fp32_model(decoder)
    weights = layer_weights(graphs[0]), layer_weights(graphs[1])
    return architecture_from(bundle_settings(model), graphs, weights), state_dict_from(*weights)


def test_every_weight_of_the_checkpoint_is_read_back(model: FusarForConditionalGeneration, folder: Path) -> None:
    _, state = read_back(model, folder / "vision.onnx", folder / "decoder.onnx")
    wanted = model.state_dict()
    assert set(state) == set(wanted)
    patch = "model.visual.patch_embed.proj.weight"  # folded: three colours and two frames cannot be told apart
    assert state[patch].shape == tuple(wanted[patch].shape)
    for name in set(wanted) - {patch}:
        np.testing.assert_array_equal(state[name], wanted[name].numpy(), err_msg=name)


def test_the_config_is_read_from_the_graphs(model: FusarForConditionalGeneration, folder: Path) -> None:
    shape, _ = read_back(model, folder / "vision.onnx", folder / "decoder.onnx")
    for part, config in ((shape.vision, model.config.vision_config), (shape.text, model.config.text_config)):
        said = {name: value for name, value in part.items() if name not in ("mrope_section", "rms_norm_eps")}
        assert said == {name: getattr(config, name) for name in said}
    assert shape.text["mrope_section"] == model.config.text_config.rope_scaling["mrope_section"]
    assert shape.text["rms_norm_eps"] == pytest.approx(model.config.text_config.rms_norm_eps, rel=1e-6)
    assert shape.sigma == pytest.approx(model.config.fusar["sigma"])


@torch.no_grad()
def test_hugging_face_says_what_the_fp32_graphs_say(model: FusarForConditionalGeneration, folder: Path) -> None:
    shape, state = read_back(model, folder / "vision.onnx", folder / "decoder.onnx")
    built, tlm = network(bundle_settings(model), shape, state, SPECIAL)
    given = sample(model, 1)
    visual = run_from_file(folder / "vision.onnx")(given.vision)["visual_tokens"]
    built.model.visual.register_forward_hook(lambda _, __, tokens: tlm(tokens[None], *anchors_of(given.vision))[0])
    patches, grid = hf_patches_from_grey(torch.from_numpy(given.vision["pixels"]))
    np.testing.assert_allclose(built.model.visual(patches, grid).numpy(), visual[0], atol=1e-4)
    ids = torch.from_numpy(given.input_ids).long()
    whole = built(input_ids=ids, pixel_values=patches, image_grid_thw=grid).logits[0, -1].numpy()
    feed = {name: getattr(given, name) for name in ("input_ids", "visual_index", "position_ids")}
    past = np.zeros((0, *DecoderGraph(model).cache_row(1)), np.float32)
    ours = run_from_file(folder / "decoder.onnx")(feed | {"visual_tokens": visual, "past": past})["logits"][0]
    np.testing.assert_allclose(whole, ours, atol=1e-4 * np.abs(ours).max())


def anchors_of(vision: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(vision[name]) for name in ("anchors", "anchor_positions", "anchor_mask")]


def test_int8_weights_come_back_as_the_floats_that_their_codes_stand_for(
    model: FusarForConditionalGeneration, folder: Path, tmp_path: Path
) -> None:
    for name in ("vision.onnx", "decoder.onnx"):
        graph = onnx.load(folder / name)
        layers = [layer for layer in linears(graph) if layer.op != "Conv"]
        int8 = quantised(graph, layers, {layer.activation: 4.0 for layer in layers})
        half_embeddings(int8)
        onnx.save(int8, tmp_path / name)
    _, state = read_back(model, tmp_path / "vision.onnx", tmp_path / "decoder.onnx")
    wanted = model.state_dict()
    assert set(state) == set(wanted)
    for name in ("model.visual.blocks.1.attn.qkv.weight", "model.language_model.layers.1.mlp.up_proj.weight"):
        step = np.abs(wanted[name].numpy()).max(axis=1, keepdims=True) / 127
        difference = np.abs(state[name] - wanted[name].numpy())
        assert (difference <= step * 0.5001).all()
        assert difference.max() > 0
    head, table = state["lm_head.weight"], state["model.language_model.embed_tokens.weight"]
    assert not np.array_equal(head, table)  # INT8 and FP16 of the same matrix
    np.testing.assert_allclose(table, wanted["lm_head.weight"].numpy(), rtol=1e-3, atol=1e-6)


def test_the_fp32_graph_of_an_int8_graph_runs_and_holds_no_codes(folder: Path, tmp_path: Path) -> None:
    graph = onnx.load(folder / "decoder.onnx")
    layers = linears(graph)
    int8 = quantised(graph, layers, {layer.activation: 4.0 for layer in layers})
    assert half_embeddings(int8)
    onnx.save(int8, tmp_path / "int8.onnx")
    plain = fp32_model(tmp_path / "int8.onnx")
    onnx.checker.check_model(plain, full_check=True)
    assert not [n for n in plain.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert not [t for t in plain.graph.initializer if t.data_type in (TensorProto.INT8, TensorProto.FLOAT16)]


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantising_follows_the_onnx_operator(axis: int) -> None:
    rng = np.random.default_rng(axis)
    codes, scale = rng.integers(-127, 128, (5, 7)).astype(np.int8), rng.random((5, 7)[axis]).astype(np.float32)
    node = helper.make_node("DequantizeLinear", ["codes", "scale"], ["out"], axis=axis)
    tensors = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [5, 7])
    graph = helper.make_model(helper.make_graph([node], "g", [], [out], tensors))
    graph.ir_version, graph.opset_import[0].version = 9, 19
    (reference,) = ReferenceEvaluator(graph).run(None, {})
    np.testing.assert_array_equal(dequantised(codes, scale, axis), reference)


@torch.no_grad()
def test_a_bundle_for_baked_tables_gives_its_basis_back(model: FusarForConditionalGeneration, tmp_path: Path) -> None:
    rng, width = np.random.default_rng(3), 2 * model.config.text_config.hidden_size
    parts = [rng.normal(size=shape).astype(np.float32) for shape in ((width,), (16, width), (width,))]
    graph = VisionGraph(model, Basis(*parts)).eval()
    write_graph(graph, FusarVisionOnnxConfig(graph.config), tmp_path / "vision.onnx")
    decoder = DecoderGraph(model).eval()
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), tmp_path / "decoder.onnx")
    shape, state = read_back(model, tmp_path / "vision.onnx", tmp_path / "decoder.onnx")
    chosen = bundle_settings(model, anchors={"form": "baked", "bands": 16, "basis_sha256": "5" * 64})
    built, tlm = network(chosen, shape, state, SPECIAL)
    given = sample(model, 1, bands=16)
    patches, grid = hf_patches_from_grey(torch.from_numpy(given.vision["pixels"]))
    tokens = tlm(built.model.visual(patches, grid)[None], *anchors_of(given.vision))
    visual = run_from_file(tmp_path / "vision.onnx")(given.vision)["visual_tokens"]
    np.testing.assert_allclose(tokens.numpy(), visual, atol=1e-4 * np.abs(visual).max())


def test_graphs_that_are_not_ours_are_refused_with_what_they_lack(
    model: FusarForConditionalGeneration, folder: Path
) -> None:
    graphs = fp32_model(folder / "vision.onnx"), fp32_model(folder / "decoder.onnx")
    weights = layer_weights(graphs[0]), layer_weights(graphs[1])
    del weights[0]["vision.merger.mlp.0.weight"]
    with pytest.raises(BundleError, match=r"vision\.merger\.mlp\.0\.weight"):
        architecture_from(bundle_settings(model), graphs, weights)
