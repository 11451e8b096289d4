"""Graphs at the width of Qwen2.5-VL-7B with very few layers and random weights: what a compile gate can afford."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import small_model

from fusar_edge.calib.qdq import half_embeddings, linears, quantised, save_graph
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.settings import settings
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.model.network import FusarForConditionalGeneration, network_config
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import VISION, BundleSettings
from fusar_edge.specs import CalibRecipe, ModelRecipe, TextSpec, VisionSpec

VISION_7B = VisionSpec(
    depth=2,
    hidden_size=1280,
    num_heads=16,
    intermediate_size=3420,
    window_size=112,
    fullatt_block_indexes=(1,),
)
"""One windowed block and one of full attention, of 32."""
TEXT_7B = TextSpec(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=1,
    num_attention_heads=28,
    num_key_value_heads=4,
    mrope_section=(16, 24, 24),
)
"""One layer of 28."""
VOCABULARY = 4096
"""Instead of 152,064: the head is one more linear, whatever its width."""
RANGE = 8.0
"""|x| that becomes 127, everywhere: kernels do not depend on it."""


def slice_7b(graph: Literal["vision.onnx", "decoder.onnx"], folder: Path, layers: int = 1) -> BundleSettings:
    """Write the INT8 graph at 7B width into `folder`, with the layers kept in FP32 that the shipped recipe keeps.

    `layers`: of the decoder.
    """
    small = msgspec.toml.decode(small_model.SMALL_RECIPE, type=ModelRecipe)
    vision, text = small.vision, msgspec.structs.replace(TEXT_7B, num_hidden_layers=layers)
    if graph == VISION:
        vision, text = VISION_7B, msgspec.structs.replace(TEXT_7B, intermediate_size=64)
    recipe = msgspec.structs.replace(small, name="slice", image_size=504, anchor_nodes=18, vision=vision, text=text)
    model = new_model(recipe)
    if graph == VISION:
        module: VisionGraph | DecoderGraph = VisionGraph(model).eval()
        write_graph(module, FusarVisionOnnxConfig(module.config), folder / graph)
    else:
        module = DecoderGraph(model).eval()
        write_graph(module, FusarDecoderOnnxConfig(module.config), folder / graph)
    known = {field.name for field in msgspec.structs.fields(BundleSettings)}
    facts = {name: value for name, value in settings(model, recipe).items() if name in known}
    del model, module
    to_int8(folder / graph)
    return msgspec.convert(facts | {"precision": "int8"}, BundleSettings)


def new_model(recipe: ModelRecipe) -> FusarForConditionalGeneration:
    """As Hugging Face starts it: kernels do not depend on the values."""
    vision = msgspec.to_builtins(recipe.vision) | {"out_hidden_size": TEXT_7B.hidden_size}
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    text = msgspec.to_builtins(recipe.text)
    text["mrope_section"] = list(text["mrope_section"])
    tokens = small_model.TOKENS | {"vocab_size": VOCABULARY}
    config = network_config(vision, text, recipe.image_size, recipe.tlm.sigma, recipe.tlm.hidden_mult, tokens)
    return FusarForConditionalGeneration(config).eval()


def kept_7b(model: onnx.ModelProto) -> dict[str, str]:
    """Float layers of the graph that the shipped recipe keeps -> why."""
    keep = load_recipe("calib", "w8a8-percentile", CalibRecipe)[0].keep
    return {a.name: why for a in linears(model) for pattern, why in keep.items() if fnmatchcase(a.name, pattern)}


def to_int8(path: Path) -> None:
    """In place, as `calibrate` does, but for the ranges."""
    model = onnx.load(path)
    kept = kept_7b(model)
    chosen = [layer for layer in linears(model) if layer.name not in kept]
    result = quantised(model, chosen, {layer.activation: RANGE for layer in chosen})
    half_embeddings(result)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    save_graph(result, path)


if __name__ == "__main__":
    print(slice_7b(sys.argv[1], Path(sys.argv[2])))  # type: ignore[arg-type]  # a command line for measuring
