"""`fusar-edge export`: checkpoint -> vision.onnx, decoder.onnx, tokenizer.json, manifest.json, equality proven."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusar_edge.errors import AnchorError, InputError
from fusar_edge.export.adapters import write_adapter
from fusar_edge.export.baking.bake import Baked, open_baked
from fusar_edge.export.baking.basis import projector_from, tlm_sha256
from fusar_edge.export.baking.projector import FILENAME as PROJECTOR
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.lean.run import Wanted, export_lean
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.parity import check_against_hugging_face, check_files, check_fold
from fusar_edge.export.settings import settings
from fusar_edge.export.smoothing import Folded, Progress, smoothed, smoothing
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.manifest import (
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    write_manifest,
)
from fusar_edge.model.adapted import adapt_model, adapted_linears, branch_of
from fusar_edge.model.checkpoint import load_checkpoint
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.weights import Weights, open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.adapters import check_name
from fusar_edge.specs import CalibRecipe, ModelRecipe

LARGEST_WHOLE = 4 << 30
"""Bytes in float32 up to which a model is held in memory; a larger one is exported layer by layer."""


def export_model(
    recipe_name: str,
    checkpoint: str | Path,
    out: Path | None = None,
    *,
    sigma: float | None = None,
    anchors: Path | None = None,
    smooth: str | None = None,
    int8: str | None = None,
    data: Sequence[Path] = (),
    adapter: str | None = None,
    adapter_rank: int | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
    bar: Progress = lambda done, total, what: None,
) -> Path:
    """Export a checkpoint; returns the folder, `export/out/NAME` unless given. `progress` is told each step.

    `smooth`: a recipe of calib/ with [smooth], whose factors are chosen on tiles of the manifests `data` and folded
    into the weights (SmoothQuant): the graphs say the same and are easier to quantise. `bar(done, total, what)` counts.
    `anchors`: a table that `anchors bake` made from this checkpoint; the vision graph takes its coefficients, and
    projector.npz, which makes them of vectors, lies beside it. `int8`: a recipe of calib/; the folder then is what
    `calibrate` makes, written layer by layer, as every model beyond LARGEST_WHOLE is exported. `adapter`: a name; the
    LoRA of the checkpoint's language model then stays beside the weights, in adapters/, as branches of `adapter_rank`
    or its own rank. RecipeError, CheckpointError, AnchorError, OutputExistsError; GateError where equality fails. Any
    error leaves no output.
    """
    recipe, text = load_recipe("export", recipe_name, ModelRecipe)
    out = Path(out) if out else Path("export") / "out" / recipe.name
    check_output(out, force)
    streamed = _int8_recipe(int8, smooth, data)
    wanted = smoothing(smooth, data) if streamed is None else None
    if adapter is None and adapter_rank is not None:
        raise InputError("--adapter-rank is of the branch that --adapter NAME asks for: give both or neither")
    if adapter is not None:
        check_name(adapter)
    weights = open_weights(checkpoint, recipe, sigma=sigma)
    branch = None if adapter is None else branch_of(adapter, weights, adapter_rank)
    large = weights.bytes_fp32() > LARGEST_WHOLE
    if large and wanted is not None:
        raise InputError(
            f"{checkpoint} is {weights.bytes_fp32() / (1 << 30):.0f} GiB in float32 and is exported layer by layer: "
            f"give --int8 {smooth} in place of --smooth {smooth}, which smooths and quantises on the way"
        )
    baked = None if anchors is None else _baked_of(weights, Path(anchors), checkpoint)
    if large or streamed is not None:
        return export_lean(
            weights, recipe, text, out, streamed, baked=baked, branch=branch, force=force, say=progress, bar=bar
        )
    progress("reading the checkpoint")
    model, tokenizer, parent = load_checkpoint(checkpoint, recipe, sigma=sigma)
    with output_folder(out, force=force) as work:
        facts, folded = settings(model, recipe, baked, branch), Folded({}, {}, {})
        inputs, apart = weights.hashes(), {}
        if branch is not None:
            progress("taking the adapter out of the weights")
            # Hugging Face's own forward, merged as PEFT merges, against the base with the branches beside it.
            apart = {"unmerged_vs_merged": check_fold(model, lambda: adapt_model(model, branch), recipe.export)}
        if wanted is not None:
            progress("smoothing activations")
            # Smoothing runs the checkpoint, which takes vectors also where the graph is baked.
            plain = settings(model, recipe)
            folded = smoothed(model, tokenizer.parent, parent, plain, wanted, recipe.export, work, bar)
        if branch is not None:
            write_adapter(work, branch, adapted_linears(model.model.language_model.layers), inputs, text)
        figures = apart | write_graphs(model, recipe, work, progress, baked, adapter)
        shutil.copyfile(tokenizer, work / "tokenizer.json")
        manifest = Manifest(
            stage="export",
            recipe=text,
            inputs=inputs | ({"anchors/basis.npz": baked.basis_sha256} if baked else {}) | folded.inputs,
            files=folder_hashes(work),
            figures=figures | folded.figures,
            settings=facts | folded.settings,
            packages=package_versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime"),
        )
        write_manifest(work, manifest)
    return out


def write_graphs(
    model: FusarForConditionalGeneration,
    recipe: ModelRecipe,
    folder: Path,
    progress: Callable[[str], None] = lambda step: None,
    baked: Baked | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """vision.onnx and decoder.onnx of a model in eval mode and float32; returns the figures of their equality.

    Those of a baked table against the exact TLM, as `anchors bake` measured them, stand beside them. `adapter`: name of
    the one in `folder` that decoder.onnx refers to, where the model's linears have branches.
    """
    spec = recipe.export
    basis = baked.basis if baked else None
    vision, decoder = VisionGraph(model, basis).eval(), DecoderGraph(model).eval()
    progress("comparing with Hugging Face")
    hugging_face = check_against_hugging_face(model, vision, decoder, spec)
    progress("writing vision.onnx")
    write_graph(vision, FusarVisionOnnxConfig(vision.config), folder / "vision.onnx", spec.opset)
    progress("writing decoder.onnx")
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), folder / "decoder.onnx", spec.opset, adapter=adapter)
    progress("comparing ONNX Runtime with PyTorch")
    files = check_files(model, vision, decoder, folder, spec)
    figures: dict[str, Any] = {"pytorch_vs_hugging_face": hugging_face, "onnxruntime_vs_pytorch": files}
    if baked is None:
        return figures
    projector_from(model.tlm.film_mlp, baked.basis).save(folder / PROJECTOR)
    return figures | {"baked_vs_exact_tlm": baked.figures}


def _int8_recipe(int8: str | None, smooth: str | None, data: Sequence[Path]) -> Wanted | None:
    if int8 is None:
        return None
    if smooth is not None:
        raise InputError(f"--int8 {int8} smooths as its recipe says: leave --smooth {smooth} out")
    if not data:
        raise InputError(f"--int8 {int8} takes ranges on real tiles: give --data MANIFEST")
    return Wanted(*load_recipe("calib", int8, CalibRecipe), tuple(data))


def _baked_of(weights: Weights, table: Path, checkpoint: str | Path) -> Baked:
    baked = open_baked(table)
    if baked.tlm_sha256 != tlm_sha256(weights.tlm_state()):
        raise AnchorError(
            f"{table} was baked from another TLM than that of {checkpoint}: give the checkpoint that it was baked "
            f"with, or bake again: fusar-edge anchors bake TABLE --checkpoint {checkpoint}"
        )
    return baked
