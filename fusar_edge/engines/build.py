"""Folder of graphs + device spec -> sealed bundle."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.compare import compared
from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.calib.samples import SampleReader, split_samples
from fusar_edge.data.triplets import read_triplets
from fusar_edge.engines.fuse import compared_with_plain, fuse_decoder
from fusar_edge.engines.plans import build_plans, check_memory, open_target
from fusar_edge.engines.timing_cache import default_folder
from fusar_edge.errors import InputError
from fusar_edge.eval.metrics import task_metrics
from fusar_edge.eval.run import Progress, ask_manifest
from fusar_edge.export.baking.projector import FILENAME as PROJECTOR
from fusar_edge.manifest import (
    FILENAME,
    Manifest,
    check_output,
    output_folder,
    package_versions,
    sha256_file,
    verify_files,
)
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import TENSORRT, Bundle, BundleSettings, PlanFacts, seal_bundle
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
    timing_cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the bundle `out` for one device from the folder that `calibrate` (INT8) or `export` (FP32) made.

    The engine that will run it opens it once before it is published. A TensorRT spec is built on its own device alone:
    DeviceError elsewhere, before anything is done; `timing_cache` is the folder of its timings, else the user's cache
    folder. decoder = "fused" in the spec has the decoder rewritten for ONNX Runtime: GateError where it then says
    something else. `data`: a manifest that training never saw, whose task metrics (of its first `images` images) go
    into the bundle's manifest, with those of the FP32 folder `reference` beside them. Raises InputError for a folder
    that does not fit the spec.
    """
    spec, text = load_recipe("engines", spec_name, EngineSpec)
    check_output(out, force)
    if data is None and (reference is not None or images is not None):
        raise InputError("--reference and --images say what to measure: give --data, the manifest to measure on")
    target = open_target(spec) if spec.engine == TENSORRT else None
    graphs = open_graphs(onnx_dir)
    settings = bundle_settings(graphs, spec, None if target is None else target.plan_facts(spec))
    references = [] if reference is None else [open_graphs(reference, stages=("export",)).bundle()]
    if target is not None:
        verify_files(graphs.path, graphs.manifest)
        check_memory(spec, graphs, target.facts)
    figures = dict(graphs.manifest.figures)
    with output_folder(out, force=force) as work:
        left_out = (FILENAME, *(("*.onnx*",) if target else ()))
        shutil.copytree(graphs.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
        if target is not None:
            folder = timing_cache or default_folder()
            figures["plans"] = build_plans(target, graphs, settings, spec, work, folder, progress)
        if spec.decoder == "fused":
            settings = fuse_decoder(graphs, settings, work)
        bundle = dataclasses.replace(graphs.bundle(work), settings=settings)
        if spec.decoder == "fused":
            figures |= _fused_figures(bundle, graphs, references, spec, data)
        if data is not None:
            figures["tasks"] = _task_figures([bundle, *references], spec, data, images, progress)
        (work / PROJECTOR).unlink(missing_ok=True)  # what per-image vectors are measured through, not deployed
        manifest = seal_bundle(
            work,
            settings,
            radiometry=graphs.radiometry,
            recipe=text,
            inputs={path.name: sha256_file(path) for path in (*graphs.path.glob("*.onnx*"), graphs.path / FILENAME)},
            figures=figures,
            packages=package_versions("tensorrt" if target else "onnxruntime", "numpy"),
        )
        if data is None:
            open_backend(bundle, spec.threads)
    return manifest


def _fused_figures(
    bundle: Bundle, graphs: GraphFolder, references: list[Bundle], spec: EngineSpec, data: Path | None
) -> dict[str, Any]:
    """What `calibrate` measured on the plain decoder, measured again on the one that is shipped."""
    made, reader = open_backend(bundle, spec.threads), SampleReader(graphs)
    figures: dict[str, Any] = {
        "fused_vs_plain": compared_with_plain(made, open_backend(graphs.bundle(), spec.threads), reader)
    }
    if data is not None and bundle.settings.precision == "int8":
        held_out = split_samples(read_triplets(data), 1, 0)[1]
        for reference in references:
            figures["int8_vs_fp32"] = compared(made, open_backend(reference, spec.threads), reader, held_out)
    return figures


def _task_figures(
    bundles: list[Bundle], spec: EngineSpec, data: Path, images: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Precision -> task metrics, and what they were measured on."""
    figures: dict[str, Any] = {"data": f"{data.parent.name}/{data.name}", "data_sha256": sha256_file(data)}
    for bundle in bundles:
        session = Session(bundle, spec.threads)
        precision = bundle.settings.precision
        step = None if progress is None else _labelled(progress, precision)
        figures[precision] = task_metrics(ask_manifest(session, data, images=images, progress=step))
    return figures


def _labelled(progress: Progress, label: str) -> Progress:
    return lambda done, total, _: progress(done, total, label)


def bundle_settings(graphs: GraphFolder, spec: EngineSpec, plan: PlanFacts | None = None) -> BundleSettings:
    """The graphs' settings with what the device decides: engine, cache, tile, plans."""
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
        plan=plan,
    )
