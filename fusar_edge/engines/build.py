"""Folder of graphs + device spec -> sealed bundle."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec

from fusar_edge.calib.graphs import WORKSHOP_FILES, GraphFolder, open_graphs
from fusar_edge.calib.tiles.samples import SampleReader
from fusar_edge.engines.footprint import footprint
from fusar_edge.engines.fuse import compared_with_plain, fuse_decoder
from fusar_edge.engines.plans import build_plans, check_memory, open_target
from fusar_edge.engines.proof import proof_request, proven
from fusar_edge.engines.timing_cache import default_folder
from fusar_edge.errors import InputError
from fusar_edge.eval.run import Progress
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
from fusar_edge.runtime.adapters import FOLDS
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import TENSORRT, BundleSettings, PlanFacts, seal_bundle
from fusar_edge.specs import EngineSpec


def build(
    spec_name: str,
    onnx_dir: Path,
    out: Path,
    *,
    data: Path | None = None,
    reference: Path | None = None,
    images: int | None = None,
    waive: str | None = None,
    timing_cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make the bundle `out` for one device from the folder that `calibrate` (INT8) or `export` (FP32) made.

    INT8 graphs pass the gate (fusar_edge.engines.proof) or leave no bundle: `data`, a manifest that neither training
    nor calibration saw (its first `images` images), and `reference` are needed: the FP32 folder that they were made
    from, or a file of FP32's answers to `data` (eval.run.write_answers), for a model that does not fit in FP32 here.
    GateError says what falls behind. `waive`: the reason why the bundle is made all the same, which then stands
    in its manifest. Of FP32 graphs the task metrics are written down where `data` is given.

    The engine that will run it opens it once before it is published. A TensorRT spec is built on its own device alone:
    DeviceError elsewhere, before anything is done; `timing_cache` is the folder of its timings, else the user's cache
    folder. decoder = "fused" in the spec has the decoder rewritten for ONNX Runtime: GateError where it then says
    something else. Raises InputError for a folder that does not fit the spec or the reference.
    """
    spec, text = load_recipe("engines", spec_name, EngineSpec)
    check_output(out, force)
    target = open_target(spec) if spec.engine == TENSORRT else None
    graphs = open_graphs(onnx_dir)
    verify_files(graphs.path, graphs.manifest)
    request = proof_request(graphs, data, reference, images, waive, progress)
    _check_adapter(graphs, spec)
    settings = bundle_settings(graphs, spec, None if target is None else target.plan_facts(spec))
    if target is not None:
        check_memory(spec, graphs, target.facts)
    figures = dict(graphs.manifest.figures)
    with output_folder(out, force=force) as work:
        in_plans = ("*.onnx*", "*.data", Path(FOLDS).name)
        left_out = (FILENAME, *WORKSHOP_FILES, *(in_plans if target else ()))
        shutil.copytree(graphs.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
        if target is not None:
            folder = timing_cache or default_folder()
            figures["plans"] = build_plans(target, graphs, settings, spec, work, folder, progress)
        if spec.decoder == "fused":
            settings = fuse_decoder(graphs, settings, work)
        bundle = dataclasses.replace(graphs.bundle(work), settings=settings)
        backend = open_backend(bundle, spec.threads)
        if spec.decoder == "fused":
            plain = open_backend(graphs.bundle(), spec.threads)
            figures["fused_vs_plain"] = compared_with_plain(backend, plain, SampleReader(graphs))
        figures |= proven(request, bundle, backend, spec.threads, progress)
        (work / PROJECTOR).unlink(missing_ok=True)  # what per-image vectors are measured through, not deployed
        del backend

        def sealed() -> Manifest:
            return seal_bundle(
                work,
                settings,
                radiometry=graphs.radiometry,
                recipe=text,
                inputs={p.name: sha256_file(p) for p in (*graphs.path.glob("*.onnx*"), graphs.path / FILENAME)},
                figures=figures,
                packages=package_versions("tensorrt" if target else "onnxruntime", "numpy"),
            )

        manifest = sealed()
        if data is not None and target is None:
            figures["memory"] = footprint(work, spec.threads)
            manifest = sealed()
        return manifest


def _check_adapter(graphs: GraphFolder, spec: EngineSpec) -> None:
    """InputError before anything is done: a fused product has its weights side by side, and no branch beside them."""
    facts = graphs.settings.adapters
    if facts is not None and spec.decoder == "fused":
        raise InputError(
            f"{graphs.path} has the adapter {facts.exported} beside its weights, and spec {spec.name} has decoder = "
            '"fused", in which an adapter has no place: set decoder = "plain" in a spec of your own, or export without '
            "--adapter"
        )


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
