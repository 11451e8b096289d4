"""Folder of graphs + device spec -> sealed bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.errors import EdgeError, InputError
from fusar_edge.eval.metrics import task_metrics
from fusar_edge.eval.run import Progress, ask_manifest
from fusar_edge.export.baking.projector import FILENAME as PROJECTOR
from fusar_edge.manifest import FILENAME, Manifest, check_output, output_folder, package_versions, sha256_file
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings, seal_bundle
from fusar_edge.runtime.ort import open_ort
from fusar_edge.runtime.session import Session
from fusar_edge.specs import EngineSpec


def build(
    spec_name: str,
    onnx_dir: Path,
    out: Path,
    *,
    data: Path | None = None,
    reference: Path | None = None,
    images: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the bundle `out` for one device from the folder that `calibrate` (INT8) or `export` (FP32) made.

    The engine that will run it opens it once before it is published. `data`: a manifest that training never saw, whose
    task metrics (of its first `images` images) go into the bundle's manifest, with those of the FP32 folder `reference`
    beside them. Raises InputError for a folder that does not fit
    the spec, EdgeError for an engine that this version does not build.
    """
    spec, text = load_recipe("engines", spec_name, EngineSpec)
    check_output(out, force)
    if spec.engine != "onnxruntime":
        raise EdgeError(
            f"spec {spec.name}: engine {spec.engine!r} is not built by this version of fusar-edge. "
            'A bundle for ONNX Runtime: give a spec with engine = "onnxruntime", such as `cpu`'
        )
    if data is None and (reference is not None or images is not None):
        raise InputError("--reference and --images say what to measure: give --data, the manifest to measure on")
    graphs = open_graphs(onnx_dir)
    settings = bundle_settings(graphs, spec)
    figures = dict(graphs.manifest.figures)
    if data is not None:
        compared = [graphs, *([open_graphs(reference, stages=("export",))] if reference else [])]
        figures["tasks"] = _task_figures(compared, spec, data, images, progress)
    with output_folder(out, force=force) as work:
        shutil.copytree(graphs.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILENAME, PROJECTOR))
        manifest = seal_bundle(
            work,
            settings,
            radiometry=graphs.radiometry,
            recipe=text,
            inputs={name: sha256_file(graphs.path / name) for name in (VISION, DECODER, FILENAME)},
            figures=figures,
            packages=package_versions("onnxruntime", "numpy"),
        )
        open_ort(graphs.bundle(work), spec.threads)
    return manifest


def _task_figures(
    folders: list[GraphFolder], spec: EngineSpec, data: Path, images: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Precision -> task metrics, and what they were measured on."""
    figures: dict[str, Any] = {"data": f"{data.parent.name}/{data.name}", "data_sha256": sha256_file(data)}
    for graphs in folders:
        session = Session(graphs.bundle(), spec.threads)
        precision = graphs.settings.precision
        step = None if progress is None else _labelled(progress, precision)
        figures[precision] = task_metrics(ask_manifest(session, data, images=images, progress=step))
    return figures


def _labelled(progress: Progress, label: str) -> Progress:
    return lambda done, total, _: progress(done, total, label)


def bundle_settings(graphs: GraphFolder, spec: EngineSpec) -> BundleSettings:
    """The graphs' settings with what the device decides: engine, cache, tile."""
    used = graphs.settings.cells**2
    if spec.cache_tokens <= used:
        raise InputError(
            f"spec {spec.name}: cache_tokens is {spec.cache_tokens}, but an image of {graphs.path} alone is {used} "
            "tokens; give more, for the prompt and the answer too"
        )
    return msgspec.structs.replace(
        graphs.settings,
        engine=spec.engine,
        context_tokens=spec.cache_tokens,
        tile_px=spec.tile_px,
        overlap_px=spec.overlap_px,
    )
