"""fusar-tiny with random weights as FP32 and INT8 folders, and tiles to calibrate on; made once for all tests."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fusar_edge.anchors.grid import grid_positions
from fusar_edge.anchors.per_image import write_anchor_file
from fusar_edge.calib.run import calibrate
from fusar_edge.data.tasks import canonical_prompt
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.settings import settings
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.manifest import Manifest, folder_hashes, write_manifest
from fusar_edge.model.checkpoint import new_model, tokenizer_path
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe

RECIPE = """
name = "quick"
[set]
tiles = 4
[ranges]
method = "percentile"
percentile = 99.99
[keep]
"vision.patch_embed" = "8-bit pixels"
[gate]                  # random weights
vision_cosine = 0.99
vision_norm = 0.02
logits_cosine = 0.98
token_agreement = 0.8
logits_kl = 0.05
"""

_FOLDER = tempfile.TemporaryDirectory(prefix="fusar-edge-tests-")


def _at(name: str) -> Path:
    return Path(_FOLDER.name) / name


def random_model() -> FusarForConditionalGeneration:
    """fusar-tiny, random in every parameter."""
    recipe, _ = load_recipe("export", "fusar-tiny", ModelRecipe)
    model = new_model(recipe, tokenizer_path(recipe, "fusar-tiny")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def write_fp32(model: FusarForConditionalGeneration, folder: Path) -> Path:
    """As `export` makes it, without its proofs of equality."""
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    folder.mkdir()
    vision, decoder = VisionGraph(model).eval(), DecoderGraph(model).eval()
    write_graph(vision, FusarVisionOnnxConfig(vision.config), folder / "vision.onnx")
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), folder / "decoder.onnx")
    (folder / "tokenizer.json").write_bytes(tokenizer_path(recipe, "fusar-tiny").read_bytes())
    manifest = Manifest(stage="export", recipe=text, files=folder_hashes(folder), settings=settings(model, recipe))
    write_manifest(folder, manifest)
    return folder


@functools.cache
def fp32_folder() -> Path:
    return write_fp32(random_model(), _at("fp32"))


@functools.cache
def int8_folder() -> Path:
    recipe = _at("quick.toml")
    recipe.write_text(RECIPE)
    calibrate(str(recipe), fp32_folder(), [tiles()], _at("int8"))
    return _at("int8")


@functools.cache
def tiles() -> Path:
    """Manifest of six speckle tiles; every other one has anchors."""
    return _speckle_tiles(_at("tiles"), seed=0)


@functools.cache
def other_tiles() -> Path:
    """Six that nothing was calibrated on."""
    return _speckle_tiles(_at("other"), seed=1)


def _speckle_tiles(folder: Path, seed: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(6):
        speckle = np.clip(generator.exponential(20, (64, 64)), 0, 255).astype(np.uint8)
        Image.fromarray(speckle).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "question": canonical_prompt("count"), "answer": str(number)}
        if number % 2:
            vectors = generator.normal(size=(9, 64)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            write_anchor_file(folder / f"{number}.npz", vectors, grid_positions(3))
            row["aef"] = f"{number}.npz"
        rows.append(json.dumps(row))
    (folder / "tiles.jsonl").write_text("\n".join(rows))
    return folder / "tiles.jsonl"
