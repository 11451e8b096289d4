"""The compile gate at the width of Qwen2.5-VL-7B: few layers, random weights, both profiles, vision batch 1 to 8.

Slow (`pytest -m slow`): exporting a slice takes longer than compiling it, and the decoder's 10 GB of memory.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import msgspec
import onnx
import pytest
import tiny_graphs
import torch
from slices import TEXT_7B, VISION_7B, kept_7b, slice_7b

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.products.lint import lint
from fusar_edge.calib.products.macs import stored_bytes
from fusar_edge.engines.compile_gate import BINDINGS, LIBRARIES, compile_pair, compiled
from fusar_edge.engines.kernels import Kernels
from fusar_edge.engines.memory import decoder_scratch, vision_scratch, weight_format
from fusar_edge.engines.profiles import decoder_profiles, vision_profiles
from fusar_edge.engines.shapes import shape_from_recipe
from fusar_edge.export.lean.run import Wanted, export_lean
from fusar_edge.manifest import Manifest, read_manifest, write_manifest
from fusar_edge.model import checkpoint
from fusar_edge.model.checkpoint import tokenizer_path
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.specs import CalibRecipe, EngineSpec, GateSpec, ModelRecipe

ABSENT = [name for name in (LIBRARIES, BINDINGS) if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT) and os.environ.get("CI") != "true", reason=f"{', '.join(ABSENT)} not installed"),
]

BLOCK = ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")


def assert_only_kept_layers_and_products_of_activations_are_listed(path: Path, kernels: Kernels) -> None:
    """By the lint, before and after the engine was asked. TLM's resize, a constant, counts as the latter."""
    model = onnx.load(path)
    kept = kept_7b(model)
    listed = {finding.name: finding for finding in lint(model, kept) if not finding.int8}
    assert set(listed) == set(kept) | {node.name for node in model.graph.node if "/MatMul" in node.name}
    for name, finding in listed.items():
        assert finding.reason == kept[name] if name in kept else finding.kind in ("activations", "geometry")
    assert lint(model, kept, kernels) == lint(model, kept)


def test_vision_at_7b_width_builds_for_batches_of_1_to_8_with_every_linear_in_int8(tmp_path: Path) -> None:
    settings = slice_7b(VISION, tmp_path)
    assert (settings.channels, settings.image_size, settings.cells) == (TEXT_7B.hidden_size, 504, 18)
    result = compiled(tmp_path / VISION, vision_profiles(settings, 8))
    linears = {f"vision.blocks.{block}.{name}" for block in (0, 1) for name in BLOCK}
    linears |= {"vision.merger.mlp.0", "vision.merger.mlp.2", "tlm.film_mlp.0", "tlm.film_mlp.2"}
    assert result.kernels.int8 == linears
    assert_only_kept_layers_and_products_of_activations_are_listed(tmp_path / VISION, result.kernels)
    assert stored_bytes(tmp_path / VISION).bytes_per_quantised_parameter <= 1.1
    # Products of activations, and the patch embedding that the recipe keeps.
    assert {name for name in result.kernels.floating if "MatMul" not in name} == {"vision.patch_embed"}
    assert result.plan_bytes < 1.1 * (tmp_path / VISION).stat().st_size
    one = compiled(tmp_path / VISION, vision_profiles(settings, 1)).kernels.scratch_bytes
    eight = result.kernels.scratch_bytes
    assert one is not None
    assert eight is not None
    # Measured: 335 MiB and 2,597 MiB, most of it the scores of the full-attention block, (16, 1296, 1296) per image.
    assert 7 < eight / one < 9
    weights, shape = (
        weight_format("int8", ()),
        shape_from_recipe(load_recipe("export", "fusar-gpt-7b", ModelRecipe)[0], "7b"),
    )
    for batch, scratch in ((1, one), (8, eight)):
        assert 0.9 < scratch / vision_scratch(shape, batch, weights) < 1.0


def test_the_decoder_at_7b_width_builds_with_both_profiles_and_its_linears_in_int8(tmp_path: Path) -> None:
    settings = slice_7b(DECODER, tmp_path, layers=2)
    assert (settings.kv_heads, settings.head_dim) == (4, 128)
    prefill, decode = decoder_profiles(settings, 512, 1024)
    both, alone = (compiled(tmp_path / DECODER, profiles) for profiles in ([prefill, decode], [decode]))
    linears = {f"decoder.layers.{layer}.{name}" for layer in (0, 1) for name in LAYER}
    assert both.kernels.int8 == linears | {"decoder.lm_head"}
    assert alone.kernels.int8 == both.kernels.int8
    assert_only_kept_layers_and_products_of_activations_are_listed(tmp_path / DECODER, both.kernels)
    assert stored_bytes(tmp_path / DECODER).bytes_per_quantised_parameter <= 1.1
    shape = shape_from_recipe(load_recipe("export", "fusar-gpt-7b", ModelRecipe)[0], "7b")
    spec = msgspec.structs.replace(load_recipe("engines", "h200", EngineSpec)[0], prefill_tokens=512, cache_tokens=1024)
    assert both.kernels.scratch_bytes is not None
    # Measured: 192 MiB, where the planner's formula says 258.
    assert 0.6 < both.kernels.scratch_bytes / decoder_scratch(shape, spec, weight_format("int8", ())) < 1.0
    assert alone.plan_bytes < 1.1 * (tmp_path / DECODER).stat().st_size
    # TensorRT-RTX 1.7 keeps a copy of the weights for each profile, whatever extra_memory_target says.
    assert both.plan_bytes < 2.1 * (tmp_path / DECODER).stat().st_size


def test_an_export_layer_by_layer_at_7b_width_builds_with_every_linear_in_int8(tmp_path: Path) -> None:
    """2 decoder and 2 vision layers through `export --int8`: external data, SmoothQuant, outlier branches."""
    tiny = load_recipe("export", "fusar-tiny", ModelRecipe)[0]
    text = msgspec.structs.replace(TEXT_7B, num_hidden_layers=2)
    recipe = msgspec.structs.replace(tiny, image_size=504, anchor_nodes=18, vision=VISION_7B, text=text)
    words = tokenizer_path(tiny, "fusar-tiny")
    model = checkpoint.new_model(recipe, words)
    torch.nn.init.normal_(model.tlm.film_mlp[2].weight, std=0.02)
    checkpoint.save_model(model, words, tmp_path / "checkpoint")
    write_manifest(tmp_path / "checkpoint", Manifest(stage="stage2"))
    del model
    calib, text_of_it = load_recipe("calib", "w8a8-smoothquant", CalibRecipe)
    calib = msgspec.structs.replace(calib, gate=GateSpec(vision_cosine=0.9))  # random weights, four tiles
    weights = open_weights(tmp_path / "checkpoint", recipe)
    out = export_lean(weights, recipe, "", tmp_path / "int8", Wanted(calib, text_of_it, (tiny_graphs.tiles(),)))
    equality = read_manifest(out).figures["export"]["onnxruntime_vs_hugging_face"]
    assert min(figures.get("cosine", 1) for figures in equality.values()) > 0.9999
    settings = open_graphs(out).settings
    made = {result.graph: result.kernels for result in compile_pair(out, settings, batch=1)}
    linears = {f"vision.blocks.{block}.{name}" for block in (0, 1) for name in BLOCK}
    linears |= {"vision.merger.mlp.0", "vision.merger.mlp.2", "tlm.film_mlp.0", "tlm.film_mlp.2"}
    assert made[VISION].int8 == linears
    linears = {f"decoder.layers.{layer}.{name}" for layer in (0, 1) for name in (*LAYER, "mlp.down_proj")}
    linears |= {"decoder.lm_head"}
    assert made[DECODER].int8 == linears
    for name in (VISION, DECODER):
        assert stored_bytes(out / name).bytes_per_quantised_parameter <= 1.1
