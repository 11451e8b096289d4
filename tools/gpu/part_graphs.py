"""Part `graphs`: writes the FP32 and INT8 graphs of the session's models and what ONNX Runtime says to one case."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Case, compared, outputs
from models import MODELS, model_of, recipe_of, tokenizer_file
from record import Record

from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.manifest import Manifest, folder_hashes, output_folder, write_manifest
from fusar_edge.runtime.bundle import DECODER, VISION

TILES = 3
RECIPE = f"""
name = "session"
[set]
tiles = {TILES - 1}
[ranges]
method = "percentile"
percentile = 99.99
[keep]
"vision.patch_embed" = "8-bit pixels"
[gate]                    # random weights: the part `engines` compares INT8 with INT8
vision_cosine = 0.5
vision_norm = 1.0
"""


def write_fp32(name: str, folder: Path) -> None:
    """As `fusar-edge export` makes it, without its proofs of equality: those are for trained models."""
    from fusar_edge.export.decoder_graph import DecoderGraph
    from fusar_edge.export.graph_file import write_graph
    from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
    from fusar_edge.export.settings import settings
    from fusar_edge.export.vision_graph import VisionGraph

    model, recipe = model_of(name), recipe_of(name)
    with output_folder(folder) as work:
        vision, decoder = VisionGraph(model).eval(), DecoderGraph(model).eval()
        write_graph(vision, FusarVisionOnnxConfig(vision.config), work / VISION)
        write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), work / DECODER)
        shutil.copy(tokenizer_file(), work / "tokenizer.json")
        manifest = Manifest(stage="export", files=folder_hashes(work), settings=settings(model, recipe))
        write_manifest(work, manifest)


def write_int8(fp32: Path, folder: Path, work: Path) -> None:
    """Through `calibrate`, on tiles of speckle with random anchors."""
    from fusar_edge.calib.run import calibrate

    recipe = work / "session.toml"
    recipe.write_text(RECIPE)
    calibrate(str(recipe), fp32, [speckle_tiles(work / "tiles")], folder)


def speckle_tiles(folder: Path) -> Path:
    """A triplet manifest of TILES tiles."""
    from PIL import Image

    from fusar_edge.anchors.grid import grid_positions
    from fusar_edge.anchors.per_image import write_anchor_file
    from fusar_edge.data.tasks import canonical_prompt

    folder.mkdir(exist_ok=True)
    generator, rows = np.random.default_rng(0), []
    for number in range(TILES):
        speckle = np.clip(generator.exponential(40, (504, 504)), 0, 255).astype(np.uint8)
        Image.fromarray(speckle).save(folder / f"{number}.png")
        vectors = generator.normal(size=(81, 64)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_anchor_file(folder / f"{number}.npz", vectors, grid_positions(9))
        row = {"image": f"{number}.png", "aef": f"{number}.npz", "answer": str(number)}
        rows.append(json.dumps(row | {"question": canonical_prompt("count")}))
    (folder / "tiles.jsonl").write_text("\n".join(rows))
    return folder / "tiles.jsonl"


def reference(graphs: GraphFolder, path: Path) -> dict[str, Any]:
    """Write what ONNX Runtime on the CPU gives for the session's case; the decoder sees FP32's visual tokens."""
    from fusar_edge.runtime.ort import open_ort

    bundle = dataclasses.replace(graphs.bundle(), settings=graphs.settings)
    fp32 = path.with_name(path.name.replace("int8", "fp32"))
    given = np.load(fp32)["visual_tokens"] if fp32 != path else None
    found = outputs(open_ort(bundle), graphs.settings, Case(graphs.settings), given)
    assert all(np.isfinite(array).all() for array in found.values()), f"{path}: not finite"
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **found)
    return {} if fp32 == path else {"int8_vs_fp32": compared(found, dict(np.load(fp32)))}


def step_bytes(path: Path) -> dict[str, int]:
    """Bytes of weights that one run of a graph must read, by type; tables that only Gather reads do not count."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    rows = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    rows -= {name for node in graph.node if node.op_type != "Gather" for name in node.input}  # tied: the output's too
    found: dict[str, int] = {}
    for weight in graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        if weight.name not in rows:
            found[kind.name] = found.get(kind.name, 0) + int(np.prod(weight.dims)) * kind.itemsize
    return found


def make(name: str, work: Path) -> dict[str, Any]:
    """Graphs, references and facts of one model, in `work`/NAME-{fp32,int8}[.npz]."""
    folders = {precision: work / f"{name}-{precision}" for precision in ("fp32", "int8")}
    if not folders["fp32"].is_dir():
        write_fp32(name, folders["fp32"])
    if not folders["int8"].is_dir():
        write_int8(folders["fp32"], folders["int8"], work)
    figures: dict[str, Any] = {}
    for precision, folder in folders.items():
        figures |= reference(open_graphs(folder), work / f"{name}-{precision}.npz")
        figures[f"bytes_{precision}"] = {graph: step_bytes(folder / graph) for graph in (VISION, DECODER)}
    (work / f"{name}.json").write_text(json.dumps(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="kept between calls: what is there is not made again")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    import onnxruntime
    import torch

    record = Record("graphs", given.out, torch=torch.__version__, onnxruntime=onnxruntime.__version__)
    for name in given.models:
        record.run(name, partial(make, name, given.work))


if __name__ == "__main__":
    main()
