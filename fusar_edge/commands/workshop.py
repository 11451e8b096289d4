"""Verbs of the workshop: train, export, calibrate, anchors bake."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusar_edge.anchors.cli import app as anchors_app
from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, Out, Recipe, RecipeOption, Sigma, bar, result, say
from fusar_edge.errors import InputError, MissingExtraError

Stage = Literal["base", "1", "2"]

CHECKPOINT = "a folder that `train` wrote or of the official form, hub:OWNER/REPO/FOLDER, or `base`, the recipe's"


@app.command(
    epilog="Example: fusar-edge train fusar-tiny --stage base --data ssdd/train.jsonl@4 "
    "--data sim/triplets.jsonl@3 --out base"
)
def train(
    recipe: Recipe,
    stage: Annotated[Stage, typer.Option(help="base: from scratch; 1: knowledge injection; 2: task execution.")],
    data: Annotated[list[str], typer.Option(help="Triplet manifest, or MANIFEST@WEIGHT; repeat for several.")],
    out: Out,
    init: Annotated[str | None, typer.Option(help=f"Checkpoint of the stage before: {CHECKPOINT}.")] = None,
    sigma: Sigma = None,
    scale: Annotated[float, typer.Option(help="Share of the recipe's steps, for a trial run; recorded.")] = 1.0,
    force: Force = False,
) -> None:
    """Train one stage. A run that was killed goes on when the same command is given again.

    In several processes (docs/training.md): `accelerate launch --config_file ddp.yaml -m fusar_edge train ...`.
    """
    need_workshop()
    from fusar_edge.train.processes import processes
    from fusar_edge.train.run import train as run

    first = processes().is_main_process
    with bar("train", shown=first) as step:
        manifest = run(
            recipe,
            stage,
            data,
            out,
            init=init,
            sigma=sigma,
            scale=scale,
            force=force,
            log=say,
            progress=lambda what, done, total: step(done, total, what),
        )
    if first:
        result({"out": str(out), "stage": manifest.stage, **manifest.figures})


@app.command(
    epilog="Example: fusar-edge export fusar-tiny --checkpoint stage2 --smooth w8a8-smoothquant "
    "--data ssdd/train.jsonl --data sim/triplets.jsonl --out onnx"
)
def export(
    recipe: Recipe,
    checkpoint: Annotated[str, typer.Option(help=f"{CHECKPOINT}.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: export/out/RECIPE.")] = None,
    anchors: Annotated[
        Path | None, typer.Option(help="Table that `anchors bake` made: the graph takes its coefficients.")
    ] = None,
    smooth: Annotated[
        str | None, typer.Option(help="Recipe of calib/ with [smooth]: fold SmoothQuant into the weights.")
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(help="Recipe of calib/: write INT8 graphs, layer by layer, as `calibrate` would of FP32 ones."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Triplet manifest for --smooth or --int8; repeat for several. As for `calibrate`."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep the checkpoint's LoRA beside the weights, as the adapter NAME."),
    ] = None,
    adapter_rank: Annotated[
        int | None, typer.Option(min=1, help="Rank that adapters can have. Default: that of this one.")
    ] = None,
    sigma: Sigma = None,
    force: Force = False,
) -> None:
    """Checkpoint -> ONNX graphs, their equality with PyTorch and Hugging Face measured and written down.

    A large model (7B: 33 GB in float32) is never held in memory: its layers are read, compared and written one by one,
    and with --int8 smoothed and quantised on the way. Such an export that was killed goes on when the same command is
    given again.
    """
    need_workshop()
    from fusar_edge.export.run import export_model
    from fusar_edge.manifest import read_manifest

    with bar("exporting") as step:
        folder = export_model(
            recipe,
            checkpoint,
            out,
            sigma=sigma,
            anchors=anchors,
            smooth=smooth,
            int8=int8,
            data=data or (),
            adapter=adapter,
            adapter_rank=adapter_rank,
            force=force,
            progress=say,
            bar=step,
        )
    figures = read_manifest(folder).figures
    told = ("graphs", "smooth", "export", "not_int8", "macs_counted_for")  # of each layer: they are in the manifest
    result({"out": str(folder)} | {name: value for name, value in figures.items() if name not in told})


@app.command(
    epilog="Example: fusar-edge calibrate w8a8-smoothquant --onnx onnx --data ssdd/train.jsonl "
    "--data sim/triplets.jsonl --out int8; then: fusar-edge calibrate --compare onnx int8 --data ssdd/val.jsonl"
)
def calibrate(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name on the shelf, or a path to a .toml file.")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="Folder that `export` wrote.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Triplet manifest with the tiles to choose from; repeat for several.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; it appears whole or not at all.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Keep the fewest layers out of INT8 for which the gate holds.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Name the first layer where two precisions part, and do nothing else."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Tiles that --compare runs; 8.")] = None,
    lint: Annotated[
        Path | None, typer.Option(metavar="INT8", help="List every product of INT8 graphs that is not in INT8 and why.")
    ] = None,
    force: Force = False,
) -> None:
    """FP32 graphs -> INT8 graphs with explicit Q/DQ, ranges from real tiles.

    --compare A B takes checkpoints, FP32 or INT8 graphs and bundles, A being the reference; exit code 1 where they
    part. --lint INT8 asks TensorRT-RTX, where it is installed, what it makes of the graphs.
    """
    need_workshop()
    given: dict[str, object] = {
        "RECIPE": recipe,
        "--onnx": onnx,
        "--data": data,
        "--out": out,
        "--search": search or None,
    }
    given |= {"--compare": compare, "--lint": lint, "--images": images, "--force": force or None}
    allowed = {"--compare": {"--compare", "--data", "--images"}, "--lint": {"--lint"}}
    mode = "--compare" if compare is not None else "--lint" if lint is not None else "RECIPE"
    stray = {name for name, value in given.items() if value is not None}
    stray -= allowed.get(mode, set(given) - {"--compare", "--lint", "--images"})
    if stray:
        raise InputError(f"calibrate {mode} does not take {', '.join(sorted(stray))}: leave it out")
    if compare is not None:
        compare_command(compare, data or [], images or 8)
        return
    if lint is not None:
        lint_command(lint)
        return
    if recipe is None or onnx is None or not data or out is None:
        raise InputError(
            "calibrate takes RECIPE, --onnx, --data and --out; or --compare A B and --data; or --lint INT8"
        )
    if search and find_spec("matplotlib") is None:
        raise MissingExtraError("--search draws its report with matplotlib: pip install 'fusar-edge[workshop]'")
    from fusar_edge.calib.run import calibrate as run

    with bar("calibrating") as step:
        manifest = run(recipe, onnx, data, out, search=search, force=force, progress=step)
    if search:
        say(f"what each layer costs: {out / 'sensitivity.html'}")
    kept = {name: why for graph in manifest.figures["graphs"].values() for name, why in graph["kept"].items()}
    for name, why in kept.items():
        say(f"not in INT8: {name}: {why}", markup=False)
    result({"out": str(out), **manifest.figures["int8_vs_fp32"], "kept": list(kept)})


@anchors_app.command("bake", epilog="Example: fusar-edge anchors bake la.anchors --checkpoint stage2 --out la.baked")
def bake_command(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Folder that `anchors build` made.")],
    checkpoint: Annotated[
        str, typer.Option(help="Folder that `train` wrote; with --recipe of the official form, hub:..., or `base` too.")
    ],
    out: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="Coefficients (bytes) of an anchor. Default: 32.")] = None,
    max_error: Annotated[
        float, typer.Option(help="Bound of the error on held-out places; a constant has error 1.")
    ] = 0.05,
    like: Annotated[
        Path | None, typer.Option(help="Baked table whose basis to take, so that one engine serves both.")
    ] = None,
    recipe: RecipeOption = None,
    sigma: Sigma = None,
    force: Force = False,
) -> None:
    """Table of AlphaEarth codes -> table of TLM's output, for engines without TLM's MLP (`export --anchors`)."""
    need_workshop()
    from fusar_edge.export.baking.bake import bake_table

    with bar("baking") as step:
        manifest = bake_table(
            table,
            checkpoint,
            out,
            rank=rank,
            max_error=max_error,
            like=like,
            recipe=recipe,
            sigma=sigma,
            force=force,
            progress=step,
        )
    result({"table": str(out), **manifest.figures["baked"], "credit": manifest.settings["credit"]})


def compare_command(pair: tuple[Path, Path], data: list[Path], images: int) -> None:
    from rich.console import Console

    from fusar_edge.calib.divergence.run import compare_precisions, table
    from fusar_edge.calib.tiles.samples import some_samples

    if not data:
        raise InputError("--compare A B runs both on tiles with questions and answers: give --data MANIFEST")
    with bar("comparing") as step:
        found = compare_precisions(*pair, some_samples(data, images), progress=step)
    Console(stderr=True, highlight=False).print(table(found))
    first = None if found.first is None else found.first.name
    result({"first": first, "reason": found.reason, "layers": len(found.layers)})
    if first is not None:
        raise typer.Exit(1)


def lint_command(folder: Path) -> None:
    from rich.console import Console

    from fusar_edge.calib.graphs import open_graphs
    from fusar_edge.calib.products.lint import records, table
    from fusar_edge.calib.products.summary import linted

    graphs = open_graphs(folder, stages=("calibrate",))
    compiled = find_spec("tensorrt_rtx_bindings") is not None and find_spec("tensorrt_rtx_libs") is not None
    say("compiling with TensorRT-RTX" if compiled else "TensorRT-RTX is not installed: by the graphs' Q/DQ alone")
    kept = {name: why for graph in graphs.manifest.figures["graphs"].values() for name, why in graph["kept"].items()}
    found = linted(folder, kept, graphs.settings, compiled)
    for name, findings in found.items():
        Console(stderr=True, highlight=False).print(name, table(findings))
    rows = [row for findings in found.values() for row in records(findings)]
    result({"compiled": compiled, "products": len(rows), "not_int8": [row for row in rows if not row["int8"]]})


def need_workshop() -> None:
    missing = [p for p in ("torch", "transformers", "peft", "accelerate", "onnx", "optimum") if find_spec(p) is None]
    if missing:
        raise MissingExtraError(
            f"this verb needs {', '.join(missing)}, which is not installed: pip install 'fusar-edge[workshop]'"
        )
