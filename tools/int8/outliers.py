#!/usr/bin/env python3
"""A trained model with planted activation outliers, quantised in every way: which recipes pass the gate?

    python tools/int8/outliers.py --checkpoint stage2 --data ssdd/train.jsonl --held-out ssdd/val.jsonl

Outliers of 100 times in 0.5 % of the channels are planted at every seam (fusar_edge.calib.smoothquant.planted); the
function of the model stays. The gate's stages are asked on the held-out manifest. Prints a markdown table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import stage_checks
from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.measured import measured
from fusar_edge.calib.smoothquant.planted import plant
from fusar_edge.calib.smoothquant.smooth import smooth
from fusar_edge.calib.tiles.choice import choose
from fusar_edge.calib.tiles.samples import SampleReader, some_samples
from fusar_edge.export.run import write_graphs
from fusar_edge.export.settings import settings
from fusar_edge.manifest import Manifest, write_manifest
from fusar_edge.model.checkpoint import load_checkpoint
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.ort import open_ort
from fusar_edge.specs import CalibRecipe, ModelRecipe, RangeSpec

METHODS = ("max", "percentile", "mse", "entropy")


def graphs_of(given: argparse.Namespace, folder: Path, planted: bool, smoothed: CalibRecipe | None) -> Path:
    """FP32 graphs, as `export` writes them."""
    recipe, text = load_recipe("export", given.recipe, ModelRecipe)
    model, tokenizer, _ = load_checkpoint(given.checkpoint)
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    manifest = Manifest(stage="export", recipe=text, settings=settings(model, recipe))
    if planted:
        plant(model)
    if smoothed is not None and smoothed.smooth is not None:
        for name in ("vision.onnx", "decoder.onnx"):
            (folder / name).touch()  # what open_graphs looks for; written below
        write_manifest(folder, manifest)
        graphs = open_graphs(folder)
        tiles = [t.triplet for t in choose([given.data], smoothed.set, graphs.radiometry).tiles]
        smooth(model, graphs, tiles, smoothed.smooth, smoothed.ranges)
    write_graphs(model, recipe, folder)
    write_manifest(folder, manifest)
    return folder


def figures_of(given: argparse.Namespace, folder: Path, recipe: CalibRecipe, work: Path) -> dict[str, float]:
    """The gate's stages with every layer in INT8 but those that the recipe keeps."""
    graphs = open_graphs(folder)
    reader, fp32 = SampleReader(graphs), open_ort(graphs.bundle())
    tiles = [t.triplet for t in choose([given.data], recipe.set, graphs.radiometry).tiles]
    found = measured(graphs, recipe, tiles, reader, fp32)
    work.mkdir()
    for name, graph in found.items():
        graph.write(work / name, graph.chosen())
    return Reference(fp32, reader, some_samples([given.held_out], given.images)).compared(open_ort(graphs.bundle(work)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recipe", default="fusar-tiny")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32)
    given = parser.parse_args()
    plain = load_recipe("calib", "w8a8-percentile", CalibRecipe)[0]
    plain = msgspec.structs.replace(plain, keep={k: v for k, v in plain.keep.items() if "patch_embed" in k})
    smoothing = load_recipe("calib", "w8a8-smoothquant", CalibRecipe)[0]
    print("| outliers | recipe | 1 - cosine, vision | norm | KL, nats | tokens | gate (stages) |")
    print("|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for planted in (False, True):
            label = "planted" if planted else "none"
            for recipe in [*(_with(plain, method) for method in METHODS), smoothing]:
                kind = "smooth" if recipe.smooth else "plain"
                folder = work / f"{label}-{kind}"
                if not folder.is_dir():
                    graphs_of(given, folder, planted, recipe if recipe.smooth else None)
                f = figures_of(given, folder, recipe, work / f"{label}-{recipe.name}")
                failed = [check.name for check in stage_checks(f, recipe.gate) if not check.holds]
                rows.append({"outliers": label, "recipe": recipe.name, "failed": failed, **f})
                print(
                    f"| {label} | {recipe.name} | {1 - f['vision_cosine']:.2e} | {f['vision_norm_ratio']:.4f} "
                    f"| {f['logits_kl']:.2e} | {f['token_agreement']:.1%} "
                    f"| {'fails: ' + ', '.join(failed) if failed else 'passes'} |",
                    flush=True,
                )
    print(json.dumps(rows))


def _with(recipe: CalibRecipe, method: Any) -> CalibRecipe:
    return msgspec.structs.replace(recipe, name=f"w8a8, {method}", ranges=RangeSpec(method=method))


if __name__ == "__main__":
    main()
