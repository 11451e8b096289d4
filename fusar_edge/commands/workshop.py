"""Verbs of the workshop: train, export, calibrate, build, plan, anchors bake."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusar_edge.anchors.cli import app as anchors_app
from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, Out, Recipe, bar, result, say
from fusar_edge.errors import MissingExtraError

Stage = Literal["base", "1", "2"]
Precision = Literal["int8", "int8-fp16", "fp16", "fp32"]


@app.command(
    epilog="Example: fusar-edge train fusar-tiny --stage base --data ssdd/train.jsonl@4 "
    "--data sim/triplets.jsonl@3 --out base"
)
def train(
    recipe: Recipe,
    stage: Annotated[Stage, typer.Option(help="base: from scratch; 1: knowledge injection; 2: task execution.")],
    data: Annotated[list[str], typer.Option(help="Triplet manifest, or MANIFEST@WEIGHT; repeat for several.")],
    out: Out,
    init: Annotated[Path | None, typer.Option(help="Checkpoint of the stage before.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the recipe's steps, for a trial run; recorded.")] = 1.0,
    force: Force = False,
) -> None:
    """Train one stage. A run that was killed goes on when the same command is given again."""
    need_workshop()
    from fusar_edge.train.run import train as run

    with bar("train") as step:
        manifest = run(
            recipe,
            stage,
            data,
            out,
            init=init,
            scale=scale,
            force=force,
            log=say,
            progress=lambda what, done, total: step(done, total, what),
        )
    result({"out": str(out), "stage": manifest.stage, **manifest.figures})


@app.command(epilog="Example: fusar-edge export fusar-tiny --checkpoint stage2 --out onnx")
def export(
    recipe: Recipe,
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: export/out/RECIPE.")] = None,
    anchors: Annotated[
        Path | None, typer.Option(help="Table that `anchors bake` made: the graph takes its coefficients.")
    ] = None,
    force: Force = False,
) -> None:
    """Checkpoint -> ONNX graphs, their equality with PyTorch and Hugging Face measured and written down."""
    need_workshop()
    from fusar_edge.export.run import export_model
    from fusar_edge.manifest import read_manifest

    folder = export_model(recipe, checkpoint, out, anchors=anchors, force=force, progress=say)
    result({"out": str(folder), **read_manifest(folder).figures})


@app.command(
    epilog="Example: fusar-edge calibrate w8a8-percentile --onnx onnx --data ssdd/train.jsonl "
    "--data sim/triplets.jsonl --out int8"
)
def calibrate(
    recipe: Recipe,
    onnx: Annotated[Path, typer.Option(help="Folder that `export` wrote.")],
    data: Annotated[
        list[Path], typer.Option(help="Triplet manifest with the tiles to take ranges from; repeat for several.")
    ],
    out: Out,
    force: Force = False,
) -> None:
    """FP32 graphs -> INT8 graphs with explicit Q/DQ, ranges from real tiles."""
    need_workshop()
    from fusar_edge.calib.run import calibrate as run

    with bar("calibrating") as step:
        manifest = run(recipe, onnx, data, out, force=force, progress=step)
    result({"out": str(out), **manifest.figures["int8_vs_fp32"]})


@app.command(epilog="Example: fusar-edge build cpu --onnx int8 --reference onnx --data ssdd/val.jsonl --out bundle")
def build(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Device on the shelf engines/, or a .toml file.")],
    onnx: Annotated[Path, typer.Option(help="Folder that `calibrate` (INT8) or `export` (FP32) wrote.")],
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="Manifest that training never saw: its task metrics go into the bundle.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="FP32 folder to measure beside it on --data.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images of --data.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Folder of TensorRT's timings. Default: the user's cache folder.")
    ] = None,
    force: Force = False,
) -> None:
    """Graphs -> bundle for one device, every file sealed by its hash. A TensorRT spec is built on its own device."""
    from fusar_edge.engines.build import build as run

    with bar("building") as step:
        manifest = run(
            spec,
            onnx,
            out,
            data=data,
            reference=reference,
            images=images,
            timing_cache=timing_cache,
            force=force,
            progress=step,
        )
    result({"out": str(out), "precision": manifest.settings["precision"], "files": len(manifest.files)})


@app.command(epilog="Example: fusar-edge plan jetson-orin-nx-16gb --model fusar-gpt-7b --precision int8-fp16 --baked")
def plan(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Device on the shelf engines/, or a .toml file.")],
    model: Annotated[str, typer.Option(help="Model on the shelf export/, or a .toml file.")],
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the graphs. int8: as `calibrate` writes them, the rest float32. Default: the spec's."),
    ] = None,
    calib: Annotated[str, typer.Option(help="Recipe whose [keep] names the layers outside INT8.")] = "w8a8-percentile",
    baked: Annotated[bool, typer.Option("--baked", help="Anchors from a baked table: no TLM MLP.")] = False,
) -> None:
    """Memory that a model takes on a device, and a roofline estimate of its speed. Exit 2 where it does not fit."""
    from rich.console import Console

    from fusar_edge.engines.plan_table import plan_record, plan_tables
    from fusar_edge.engines.planner import plan as run
    from fusar_edge.engines.planner import require_fit

    planned = run(spec, model, precision=precision, calib=calib, baked=baked)
    Console(stderr=True, highlight=False).print(plan_tables(planned))
    require_fit(planned)
    for warning in (planned.build_warning, planned.risk):
        if warning:
            say(warning)
    result(plan_record(planned))


@anchors_app.command("bake", epilog="Example: fusar-edge anchors bake la.anchors --checkpoint stage2 --out la.baked")
def bake_command(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Folder that `anchors build` made.")],
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` wrote.")],
    out: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="Coefficients (bytes) of an anchor. Default: 32.")] = None,
    max_error: Annotated[
        float, typer.Option(help="Bound of the error on held-out places; a constant has error 1.")
    ] = 0.05,
    like: Annotated[
        Path | None, typer.Option(help="Baked table whose basis to take, so that one engine serves both.")
    ] = None,
    force: Force = False,
) -> None:
    """Table of AlphaEarth codes -> table of TLM's output, for engines without TLM's MLP (`export --anchors`)."""
    need_workshop()
    from fusar_edge.export.baking.bake import bake_table

    with bar("baking") as step:
        manifest = bake_table(
            table, checkpoint, out, rank=rank, max_error=max_error, like=like, force=force, progress=step
        )
    result({"table": str(out), **manifest.figures["baked"], "credit": manifest.settings["credit"]})


def need_workshop() -> None:
    missing = [p for p in ("torch", "transformers", "peft", "accelerate", "onnx", "optimum") if find_spec(p) is None]
    if missing:
        raise MissingExtraError(
            f"this verb needs {', '.join(missing)}, which is not installed: pip install 'fusar-edge[workshop]'"
        )
