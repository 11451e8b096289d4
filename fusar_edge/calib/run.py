"""FP32 graphs + real tiles -> INT8 graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fusar_edge import __version__
from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import check_figures
from fusar_edge.calib.graphs import LISTING, SMOOTHING_LISTING, GraphFolder, open_graphs
from fusar_edge.calib.measured import check_patterns, measured, passes
from fusar_edge.calib.products.summary import int8_summary
from fusar_edge.calib.search.run import search_folder, searched
from fusar_edge.calib.tiles.choice import choose
from fusar_edge.calib.tiles.listing import data_hashes, listing, write_listing
from fusar_edge.calib.tiles.samples import SampleReader, sample_files
from fusar_edge.data.triplet_rows import Row
from fusar_edge.errors import RecipeError
from fusar_edge.manifest import (
    FILENAME,
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    sha256_file,
    sha256_text,
    write_manifest,
)
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.runtime.ort import open_ort
from fusar_edge.specs import CalibRecipe

Progress = Callable[[int, int, str], None]


def calibrate(
    recipe_name: str,
    onnx_dir: Path,
    data: Sequence[Path],
    out: Path,
    *,
    search: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the INT8 folder `out` from the folder that `export` made and triplet manifests.

    `search`: find the fewest layers to keep out of INT8 for which the recipe's gate holds (fusar_edge.calib.search);
    sensitivity.html tells of it, and a search that was killed goes on. `progress(done, total, what)`. Raises GateError,
    with nothing written, where the visual tokens of the held-out images are further from FP32's than the recipe's
    [gate] allows, and RecipeError where the recipe smooths and the graphs were exported without.
    """
    recipe, text = load_recipe("calib", recipe_name, CalibRecipe)
    check_output(out, force)
    graphs = open_graphs(onnx_dir, stages=("export",))
    _check_smoothed(graphs, recipe)
    check_patterns(graphs, recipe)
    step = progress or (lambda done, total, what: None)
    chosen = choose(data, recipe.set, graphs.radiometry, lambda done, total: step(done, total, "choosing tiles"))
    rows = listing(chosen)
    samples, held_out = ([tile.triplet for tile in part] for part in (chosen.tiles, chosen.held_out))
    reader, fp32 = SampleReader(graphs), open_ort(graphs.bundle())
    ticks = _Ticks(step, passes(recipe) * len(samples))
    found = measured(graphs, recipe, samples, reader, fp32, ticks)
    reference = Reference(fp32, reader, held_out)
    with output_folder(out, force=force) as work:
        shutil.copytree(graphs.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILENAME, "*.onnx*"))
        also_kept: dict[str, str] = {}
        if search:
            also_kept = searched(graphs, recipe, found, reference, identity(rows, text, graphs), out, work, step)
        graph_figures = {name: graph.written(work / name, also_kept) for name, graph in found.items()}
        kept = {layer: why for figures in graph_figures.values() for layer, why in figures["kept"].items()}
        summary = int8_summary(work, graphs.settings, kept)
        write_listing(work / LISTING, rows)
        _drop_copy(work / SMOOTHING_LISTING, work / LISTING)
        figures = _gated(graphs, work, reference, recipe)
        manifest = Manifest(
            stage="calibrate",
            recipe=text,
            inputs=_inputs(graphs, data, sample_files([*samples, *held_out])),
            files=folder_hashes(work),
            figures={"int8_vs_fp32": figures, "graphs": graph_figures, **summary, "export": graphs.manifest.figures},
            settings=graphs.manifest.settings | {"precision": "int8"},
            packages=package_versions("onnx", "onnxruntime", "numpy"),
        )
        write_manifest(work, manifest)
    if search:
        shutil.rmtree(search_folder(out), ignore_errors=True)
    return manifest


def _check_smoothed(graphs: GraphFolder, recipe: CalibRecipe) -> None:
    if recipe.smooth is None:
        return
    wanted, found = msgspec.to_builtins(recipe.smooth), graphs.manifest.settings.get("smooth")
    if msgspec.json.encode(wanted) != msgspec.json.encode(found):
        state = "was exported without SmoothQuant" if found is None else "was smoothed by another recipe"
        raise RecipeError(
            f"{graphs.path} {state}, which recipe {recipe.name} asks for: fusar-edge export MODEL --checkpoint "
            f"CHECKPOINT --smooth {recipe.name} --data MANIFEST --out {graphs.path}"
        )


def identity(rows: list[Row], recipe_text: str, graphs: GraphFolder) -> str:
    """Of all that decides what a search measures, so that an unfinished one goes on only with its own."""
    versions = package_versions("onnx", "onnxruntime", "numpy")
    return sha256_text(json.dumps([recipe_text, sha256_file(graphs.path / FILENAME), rows, versions, __version__]))


def _gated(graphs: GraphFolder, work: Path, reference: Reference, recipe: CalibRecipe) -> dict[str, float]:
    """Figures of the INT8 pair. What `build` asks of tasks and tokens is not asked here."""
    figures = reference.compared(open_ort(graphs.bundle(work)))
    check_figures(figures, recipe, str(graphs.path))
    return figures


def _drop_copy(path: Path, of: Path) -> None:
    """Smoothing mostly sees the same tiles: one list of them is enough."""
    if path.is_file() and path.read_bytes() == of.read_bytes():
        path.unlink()


def _inputs(graphs: GraphFolder, data: Sequence[Path], tiles: list[Path]) -> dict[str, str]:
    """Name -> SHA-256 of the graphs, the triplet manifests and every file the set was taken from."""
    inputs = {name: sha256_file(graphs.path / name) for name in (VISION, DECODER, FILENAME)}
    made_from = {k: v for k, v in graphs.manifest.inputs.items() if k.startswith(("base/", "adapter/", "checkpoint/"))}
    return inputs | made_from | data_hashes(data, tiles)


class _Ticks:
    """Counts images over several passes."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self) -> None:
        self.done += 1
        self.progress(self.done, self.total, "ranges")
