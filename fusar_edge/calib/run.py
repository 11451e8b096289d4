"""FP32 graphs + real tiles -> INT8 graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusar_edge.calib.compare import compared
from fusar_edge.calib.fusion import fused_linears
from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.calib.qdq import Linear, half_embeddings, kept_layers, linears, quantised, reaches, save_graph
from fusar_edge.calib.ranges import Feeds, collect_ranges
from fusar_edge.calib.samples import SampleReader, sample_files, split_samples
from fusar_edge.data.triplets import Triplet, read_triplets
from fusar_edge.errors import GateError
from fusar_edge.manifest import (
    FILENAME,
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    sha256_file,
    write_manifest,
)
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import Backend
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.runtime.ort import open_ort
from fusar_edge.specs import CalibRecipe

if TYPE_CHECKING:
    from onnx import ModelProto

Progress = Callable[[int, int], None]
NO_ANCHORS = "no tile of the calibration data has anchors, so its range is unknown"
ALL_ZERO = "its input is 0 on all calibration data"


def calibrate(
    recipe_name: str,
    onnx_dir: Path,
    data: Sequence[Path],
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the INT8 folder `out` from the folder that `export` made and triplet manifests.

    `progress(done, total)` counts images. Raises GateError, with nothing written, where the visual tokens of the
    held-out images are further from FP32's than the recipe's `vision_cosine` allows.
    """
    recipe, text = load_recipe("calib", recipe_name, CalibRecipe)
    check_output(out, force)
    graphs = open_graphs(onnx_dir, stages=("export",))
    samples, held_out = split_samples([t for path in data for t in read_triplets(path)], recipe.samples, recipe.seed)
    ticks = _Ticks(progress, 2 * len(samples) + len(held_out))
    reader, fp32 = SampleReader(graphs), open_ort(graphs.bundle())
    with output_folder(out, force=force) as work:
        shutil.copytree(graphs.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILENAME, "*.onnx*"))
        anchored = any(sample.aef for sample in samples)
        vision_feeds = (feed for s in ticks.over(samples) for feed in reader.vision_feeds(s))
        decoder_feeds = (feed for s in ticks.over(samples) for feed in reader.decoder_feeds(fp32, s))
        graph_figures = {
            VISION: _write_int8(graphs, VISION, recipe, vision_feeds, work, anchored=anchored),
            DECODER: _write_int8(graphs, DECODER, recipe, decoder_feeds, work),
        }
        figures = _gated(graphs, work, fp32, reader, list(ticks.over(held_out)), recipe)
        manifest = Manifest(
            stage="calibrate",
            recipe=text,
            inputs=_inputs(graphs, data, sample_files(samples)),
            files=folder_hashes(work),
            figures={"int8_vs_fp32": figures, "graphs": graph_figures, "export": graphs.manifest.figures},
            settings=graphs.manifest.settings | {"precision": "int8"},
            packages=package_versions("onnx", "onnxruntime", "numpy"),
        )
        write_manifest(work, manifest)
    return manifest


def _write_int8(
    graphs: GraphFolder, name: str, recipe: CalibRecipe, feeds: Iterator[Feeds], work: Path, anchored: bool = True
) -> dict[str, Any]:
    """Write one INT8 graph into `work`; returns what was done to it."""
    import onnx

    source = graphs.path / name
    model = onnx.load(source)
    layers = linears(model)
    kept = kept_layers(layers, recipe.keep, str(source))
    if not anchored:
        kept |= _kept_without_anchors(model, layers, kept)
    chosen = [layer for layer in layers if layer.name not in kept]
    ranges = collect_ranges(source, [layer.activation for layer in chosen], feeds, recipe.ranges)
    kept |= {layer.name: ALL_ZERO for layer in chosen if ranges[layer.activation] == 0}
    chosen = [layer for layer in chosen if layer.name not in kept]
    result = quantised(model, chosen, ranges)
    tables = half_embeddings(result)
    save_graph(result, work / name)
    fused = fused_linears(work / name)
    return {
        "int8": len(chosen),
        "fused_on_cpu": fused,
        "kept": {layer.name: kept[layer.name] for layer in layers if layer.name in kept},
        "half": tables,
        "bytes_fp32": _size(graphs.path, name),
        "bytes_int8": _size(work, name),
        "ranges": {layer.name: round(ranges[layer.activation], 5) for layer in chosen},
    }


def _kept_without_anchors(model: ModelProto, layers: list[Linear], kept: dict[str, str]) -> dict[str, str]:
    seen = reaches(model, "pixels")
    return {a.name: NO_ANCHORS for a in layers if a.activation not in seen and a.name not in kept}


def _gated(
    graphs: GraphFolder, work: Path, fp32: Backend, reader: SampleReader, held_out: list[Triplet], recipe: CalibRecipe
) -> dict[str, float]:
    figures = compared(open_ort(graphs.bundle(work)), fp32, reader, held_out)
    if figures["vision_cosine"] < recipe.vision_cosine:
        raise GateError(
            f"{graphs.path}: INT8 visual tokens have cosine {figures['vision_cosine']:.4f} with FP32 on "
            f"{len(held_out)} held-out images; recipe {recipe.name} asks for {recipe.vision_cosine}. Nothing was "
            "written: add the sensitive layers to [keep], or calibrate on more and more varied tiles"
        )
    return figures


def _inputs(graphs: GraphFolder, data: Sequence[Path], tiles: list[Path]) -> dict[str, str]:
    """Name -> SHA-256 of the graphs, the triplet manifests and every file the ranges were taken from."""
    inputs = {name: sha256_file(graphs.path / name) for name in (VISION, DECODER, FILENAME)}
    inputs |= {f"data/{path.resolve().parent.name}/{path.name}": sha256_file(path) for path in data}
    folders = [path.resolve().parent for path in data]
    for tile in map(Path.resolve, tiles):
        folder = next((f for f in folders if tile.is_relative_to(f)), tile.parent)
        inputs[f"tile/{folder.name}/{tile.relative_to(folder).as_posix()}"] = sha256_file(tile)
    return inputs


def _size(folder: Path, name: str) -> int:
    """Bytes of a graph with its external weights."""
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))


class _Ticks:
    """Counts images over several passes."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def over(self, samples: list[Triplet]) -> Iterator[Triplet]:
        for sample in samples:
            yield sample
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)
