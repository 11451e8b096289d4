"""`fusar-edge export` of a model that does not fit in memory: checkpoint -> FP32 or INT8 graphs, layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from fusar_edge import __version__
from fusar_edge.calib.adapter_file import mark
from fusar_edge.calib.graphs import LISTING, GraphFolder
from fusar_edge.calib.measured import check_layers
from fusar_edge.calib.products.summary import int8_summary
from fusar_edge.calib.qdq import Linear, kept_layers, linears
from fusar_edge.calib.smoothquant.seams import SEAMLESS
from fusar_edge.calib.tiles.choice import CalibrationSet, choose
from fusar_edge.calib.tiles.listing import data_hashes, listing, write_listing
from fusar_edge.calib.tiles.samples import SampleReader, sample_files
from fusar_edge.errors import RecipeError
from fusar_edge.export.baking.bake import Baked
from fusar_edge.export.baking.basis import projector_from
from fusar_edge.export.baking.projector import FILENAME as PROJECTOR
from fusar_edge.export.lean.adapter_file import AdapterFile
from fusar_edge.export.lean.graphs import Graph, Int8
from fusar_edge.export.lean.modules import Layers
from fusar_edge.export.lean.questions import asked
from fusar_edge.export.lean.room import check_room
from fusar_edge.export.lean.skeleton import empty_model, kept_skeletons, skeletons
from fusar_edge.export.lean.unfinished import Unfinished, unfinished
from fusar_edge.export.lean.walk import Walk
from fusar_edge.export.settings import settings
from fusar_edge.manifest import Manifest, check_output, folder_hashes, package_versions, write_manifest
from fusar_edge.model.adapted import Branch
from fusar_edge.model.weights import Weights
from fusar_edge.runtime.bundle import DECODER, TOKENIZER, BundleSettings
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY
from fusar_edge.specs import CalibRecipe, ModelRecipe

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Wanted:
    """INT8, by a recipe of calib/ on tiles of manifests."""

    recipe: CalibRecipe
    text: str
    data: tuple[Path, ...]


def export_lean(
    weights: Weights,
    recipe: ModelRecipe,
    text: str,
    out: Path,
    wanted: Wanted | None = None,
    *,
    baked: Baked | None = None,
    branch: Branch | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda step: None,
    bar: Progress = lambda done, total, what: None,
) -> Path:
    """Write the graphs of a checkpoint into `out`; at no time more than a layer of it is in memory.

    Without `wanted` the folder is what `export` makes, with it what `calibrate` makes of that. A run that was killed
    goes on when the same command is given again. Errors of `export` and `calibrate`; InputError where the disk has too
    little room, before anything is written.
    """
    check_output(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    say("hashing the checkpoint")
    inputs = weights.hashes(bar)
    with unfinished(out) as work:
        check_output(out, force)  # another process may have finished it
        chosen = None if wanted is None else _chosen(wanted, bar)
        plan = _plan(inputs, text, wanted, chosen, baked, branch)
        if work.take_up(plan, force):
            say(f"going on after {len(work.lines)} layers")
        samples = 0 if chosen is None else len(chosen.tiles) + len(chosen.held_out)
        adapter = AdapterFile(work.folder, branch, inputs, text) if branch else None
        keep = None if wanted is None else wanted.recipe.keep
        check_room(work.root, weights, samples, keep, beside=adapter.bytes if adapter else 0)
        shutil.copyfile(weights.tokenizer, work.folder / TOKENIZER)
        say("tracing the graphs without weights")
        layers = Layers(weights, baked.basis if baked else None, branch)
        rank = branch.rank if branch else None
        traced = kept_skeletons(
            work.root, lambda: skeletons(weights.config, work.root, layers.basis, recipe.export.opset, rank)
        )
        facts = settings(empty_model(weights.config), recipe, baked, branch)
        if baked:
            projector_from(layers.modulation().film_mlp, baked.basis).save(work.folder / PROJECTOR)
        found = {name: linears(graph) for name, graph in traced.items()}
        int8 = None if wanted is None else _int8(wanted, chosen, found, facts, work)
        apart = adapter.begun() if adapter else {}
        with Walk(layers, traced, found, recipe.export, work, int8, apart) as walk:
            walk.run(bar)
            say("writing the graphs")
            if adapter:
                adapter.finished(walk.folds())
            for name, model in walk.models().items():
                if branch and name == DECODER:
                    mark(model, branch.name)
                onnx.save(model, work.folder / name)
                onnx.checker.check_model(work.folder / name, full_check=True)
            if wanted is None:
                manifest = _exported(walk, facts, inputs, text, baked)
            else:
                assert chosen is not None
                manifest = _calibrated(walk, facts, inputs, wanted, chosen, baked, work)
        manifest.files = folder_hashes(work.folder)
        write_manifest(work.folder, manifest)
        work.publish(out, force)
    return out


def _chosen(wanted: Wanted, bar: Progress) -> CalibrationSet:
    def step(done: int, total: int) -> None:
        bar(done, total, "choosing tiles")

    return choose(wanted.data, wanted.recipe.set, DEFAULT_RADIOMETRY, step)


def _plan(
    inputs: dict[str, str],
    text: str,
    wanted: Wanted | None,
    chosen: CalibrationSet | None,
    baked: Baked | None,
    branch: Branch | None,
) -> dict[str, Any]:
    """All that decides what is written."""
    adapter = {"adapter": [branch.name, branch.rank]} if branch else {}
    return adapter | {
        "checkpoint": inputs,
        "recipe": text,
        "calibration": wanted.text if wanted else "",
        "tiles": listing(chosen) if chosen else [],
        "anchors": baked.basis_sha256 if baked else "",
        "version": [__version__, package_versions("torch", "transformers", "onnx", "onnxruntime", "numpy")],
    }


def _int8(
    wanted: Wanted,
    chosen: CalibrationSet | None,
    found: dict[str, list[Linear]],
    facts: dict[str, Any],
    work: Unfinished,
) -> Int8:
    """RecipeError where a pattern of the recipe fits no layer."""
    assert chosen is not None
    recipe, every = wanted.recipe, [layer for layers in found.values() for layer in layers]
    baked = facts["anchors"]["form"] == "baked"
    check_layers(every, recipe, "the model", baked=baked)
    smoothable = [layer.name for layer in every if not any(fnmatchcase(layer.name, p) for p in SEAMLESS)]
    for pattern in recipe.smooth.linears if recipe.smooth else ():
        if not any(fnmatchcase(name, pattern) for name in smoothable):
            raise RecipeError(
                f"recipe {recipe.name}: [smooth] linears: {pattern!r} names no linear that can be smoothed; there are: "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in smoothable}))} (layer names as in the graphs)"
            )
    kept: dict[str, str] = {}
    for name, layers in found.items():
        kept |= kept_layers(layers, recipe.keep, name)
    reader = SampleReader(_graph_folder(facts, work))
    samples = [[asked(reader, tile.triplet) for tile in part] for part in (chosen.tiles, chosen.held_out)]
    return Int8(recipe, kept, *samples)


def _graph_folder(facts: dict[str, Any], work: Unfinished) -> GraphFolder:
    known = {name: value for name, value in facts.items() if name in BundleSettings.__struct_fields__}
    settings = msgspec.convert(known | {"precision": "fp32"}, BundleSettings)
    return GraphFolder(work.folder, Manifest(stage="export"), settings, DEFAULT_RADIOMETRY)


def _exported(walk: Walk, facts: dict[str, Any], inputs: dict[str, str], text: str, baked: Baked | None) -> Manifest:
    return Manifest(
        stage="export",
        recipe=text,
        inputs=inputs | ({"anchors/basis.npz": baked.basis_sha256} if baked else {}),
        figures=_equality(walk, baked),
        settings=facts,
        packages=package_versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime"),
    )


def _equality(walk: Walk, baked: Baked | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"onnxruntime_vs_hugging_face": walk.equality()}
    return figures | ({"baked_vs_exact_tlm": baked.figures} if baked else {})


def _calibrated(
    walk: Walk,
    facts: dict[str, Any],
    inputs: dict[str, str],
    wanted: Wanted,
    chosen: CalibrationSet,
    baked: Baked | None,
    work: Unfinished,
) -> Manifest:
    """The manifest that `calibrate` would write."""
    (work.folder / LISTING).unlink(missing_ok=True)  # of a run that was killed here
    write_listing(work.folder / LISTING, listing(chosen))
    compared = walk.compared()
    graphs = {name: _graph_record(walk, graph) for name, graph in walk.graphs.items()}
    settings = facts | {"precision": "int8", "streamed": True}
    if wanted.recipe.smooth:
        settings |= {"smooth": msgspec.to_builtins(wanted.recipe.smooth)}
    kept = {name: why for record in graphs.values() for name, why in record["kept"].items()}
    summary = int8_summary(work.folder, _graph_folder(facts, work).settings, kept)
    seams = {name: done for line in walk.facts("seams") for name, done in line.items()}
    tiles = sample_files([tile.triplet for tile in (*chosen.tiles, *chosen.held_out)])
    return Manifest(
        stage="calibrate",
        recipe=wanted.text,
        inputs=inputs | data_hashes(wanted.data, tiles),
        figures={
            "int8_vs_fp32": compared,
            "graphs": graphs,
            **summary,
            "export": _equality(walk, baked) | {"smooth": {"recipe": wanted.recipe.name, "seams": seams}},
        },
        settings=settings,
        packages=package_versions("torch", "transformers", "optimum", "onnx", "onnxruntime", "numpy"),
    )


def _graph_record(walk: Walk, graph: Graph) -> dict[str, Any]:
    """As calib.measured.MeasuredGraph.written has it; what needs the whole graph in a session is left out."""
    ranges, splits = walk.measured()
    chosen, kept = walk.chosen(graph), walk.kept()
    names = {layer.name for layer in graph.linears}
    files = [walk.work.folder / graph.name, graph.data.path]
    return {
        "int8": len(chosen),
        "kept": {name: why for name, why in kept.items() if name in names},
        "half": graph.half,
        "bytes_fp32": sum(4 * int(np.prod(tensor.dims)) for tensor in graph.skeleton.graph.initializer),
        "bytes_int8": sum(path.stat().st_size for path in files),
        "ranges": {a.name: splits[a.name].largest if a.name in splits else ranges[a.activation] for a in chosen},
        "outliers": {a.name: splits[a.name].channels.tolist() for a in chosen if a.name in splits},
    }
