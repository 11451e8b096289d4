"""`fusar-edge`: one verb a stage. Every verb is a thin cover of a Python function, which is imported when it runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fusar_edge import __version__
from fusar_edge.anchors.cli import app as anchors_app
from fusar_edge.errors import EdgeError, MissingExtraError

app = typer.Typer(
    help="FUSAR-GPT on the edge: train, export, INT8, bundle, interpret SAR scenes.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Real data sets -> triplet manifests.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data")
app.add_typer(anchors_app, name="anchors")

Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it appears whole or not at all.")]
Threads = Annotated[int, typer.Option(min=0, help="Processor threads; 0: all.")]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Name on the shelf, or a path to a .toml file.")]


Stage = Literal["base", "1", "2"]
DataSet = Literal["ssdd", "mstar"]
Values = Literal["auto", "uint8", "db", "power", "amplitude"]


class Task(Enum):  # typer takes no list of literals
    caption = "caption"
    count = "count"
    grid = "grid"
    classify = "classify"
    detect = "detect"


# Device side --------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: fusar-edge demo --out my-demo")
def demo(
    out: Out = Path("fusar-edge-demo"),
    bundle: Annotated[str, typer.Option(help="Bundle folder, or `default`.")] = "default",
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated scene.")] = 7,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Simulate a scene and interpret it with the bundle in the package: captions, GeoJSON and an overlay image."""
    from fusar_edge.runtime.demo import demo as run

    with _bar("interpreting") as step:
        summary = run(out, force=force, bundle=bundle, seed=seed, threads=threads, show=_say, progress=step)
    _result(summary)


@app.command(
    epilog="Example: fusar-edge interpret default scene.tif --task count --task detect --out r.geojson --overlay r.png"
)
def interpret(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or `default`.")],
    scenes: Annotated[list[Path], typer.Argument(metavar="SCENE...", help="Georeferenced SAR GeoTIFFs.")],
    out: Annotated[Path, typer.Option(help="GeoJSON to write.")],
    task: Annotated[
        list[Task] | None, typer.Option(help="What to ask of every tile; repeat. Default: caption.")
    ] = None,
    overlay: Annotated[Path | None, typer.Option(help="PNG to write: boxes, tiles and captions on the scene.")] = None,
    anchors: Annotated[Path | None, typer.Option(help="AlphaEarth anchor table; none: plain Qwen2.5-VL.")] = None,
    year: Annotated[int | None, typer.Option(help="Year of the anchors. Default: nearest to the scene's.")] = None,
    label: Annotated[str, typer.Option(help="Class that count, grid and detect ask for.")] = "ship",
    overlap: Annotated[int | None, typer.Option(min=0, help="Pixels that neighbouring tiles share.")] = None,
    band: Annotated[int | None, typer.Option(min=1, help="Band of a file with several.")] = None,
    values: Annotated[Values, typer.Option(help="What the pixels are.")] = "auto",
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Interpret SAR scenes tile by tile into GeoJSON, and an overlay image."""
    from fusar_edge.runtime.job import interpret_to_files

    with _bar("interpreting") as step:
        _, summary = interpret_to_files(
            bundle,
            scenes,
            [t.value for t in task or [Task.caption]],
            out=out,
            overlay=overlay,
            anchors=anchors,
            year=year,
            label=label,
            overlap_px=overlap,
            band=band,
            values=values,
            threads=threads,
            force=force,
            progress=step,
        )
    found = summary["anchors"]
    if found is not None and not found["found"]:
        _say(f"no anchor was found in {anchors}: the answers are plain Qwen2.5-VL's. Nodes by reason: {found}")
    _result(summary)


@app.command(epilog="Example: fusar-edge verify default")
def verify(bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or `default`.")]) -> None:
    """Check every file of a bundle against its hash, and open both graphs."""
    from fusar_edge.runtime.bundle import open_bundle
    from fusar_edge.runtime.session import Session

    opened = open_bundle(bundle)
    Session(opened, threads=1)
    _result({"bundle": str(opened.folder), "ok": True, "sha256": opened.sha256, "files": len(opened.manifest.files)})


@app.command(epilog="Example: fusar-edge eval default --data ssdd/val.jsonl --json metrics.json")
def eval(
    target: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="Bundle, `default`, or checkpoint.")],
    data: Annotated[Path, typer.Option(help="Triplet manifest.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="File to write the metrics to.")] = None,
    answers: Annotated[Path | None, typer.Option(help="JSONL to write every question and answer to.")] = None,
    task: Annotated[list[Task] | None, typer.Option(help="Only these tasks; repeat. Default: all.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Task metrics on a manifest; the same command for a checkpoint and for a bundle of any precision."""
    from fusar_edge.eval.run import evaluate

    with _bar("asking") as step:
        metrics = evaluate(
            target,
            data,
            tasks=[t.value for t in task or []],
            images=images,
            out=json_out,
            answers=answers,
            threads=threads,
            force=force,
            progress=step,
        )
    _show_metrics(metrics)
    _result(metrics)


@app.command()
def doctor() -> None:
    """What is installed here, and which parts of fusar-edge can run."""
    from fusar_edge.manifest import package_versions
    from fusar_edge.runtime.bundle import DEFAULT

    extras = {
        "workshop (train, export, calibrate, build)": (
            "torch",
            "transformers",
            "peft",
            "accelerate",
            "onnx",
            "optimum",
        ),
        "jetson (GPU memory)": ("pycuda",),
        "compile gate": ("tensorrt_rtx_bindings",),
    }
    _say(f"fusar-edge {__version__}, Python {sys.version.split()[0]}")
    found = {name: [p for p in packages if find_spec(p) is None] for name, packages in extras.items()}
    for name, missing in found.items():
        _say(f"{name}: {'ready' if not missing else 'missing ' + ', '.join(missing)}")
    _say(f"default bundle: {'present' if DEFAULT.is_dir() else 'absent'}")
    _result(
        {
            "version": __version__,
            "missing": found,
            "default_bundle": DEFAULT.is_dir(),
            "packages": package_versions("numpy", "onnxruntime", "rasterio", "zarr", "torch", "transformers", "onnx"),
        }
    )


# Data ---------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: fusar-edge simulate --out sim --scenes 200 --seed 7")
def simulate(
    out: Out,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=64, help="Side of a scene, pixels.")] = 504,
    force: Force = False,
) -> None:
    """Simulated SAR scenes with known truth: GeoTIFFs, AlphaEarth-like anchors and a triplet manifest."""
    from fusar_edge.data.simulator import write_dataset

    with _bar("simulating") as step:
        manifest = write_dataset(out, scenes, seed, size=size, force=force, progress=step)
    _result({"out": str(out), "simulated": True, **manifest.figures})


@data_app.command(epilog="Example: fusar-edge data convert ssdd SSDD/ --out ssdd")
def convert(
    kind: Annotated[DataSet, typer.Argument(help="Which data set SRC is.")],
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the data set as published.")],
    out: Out,
    force: Force = False,
) -> None:
    """Convert a published data set to triplet manifests, with a training and a validation split."""
    from fusar_edge.data.converters import convert as run

    with _bar("converting") as step:
        manifest = run(kind, src, out, force=force, progress=step)
    _result({"out": str(out), **manifest.figures})


# Workshop -----------------------------------------------------------------------------------------------------------


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
    _need_workshop()
    from fusar_edge.train.run import train as run

    with _bar("train") as step:
        manifest = run(
            recipe,
            stage,
            data,
            out,
            init=init,
            scale=scale,
            force=force,
            log=_say,
            progress=lambda what, done, total: step(done, total, what),
        )
    _result({"out": str(out), "stage": manifest.stage, **manifest.figures})


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
    _need_workshop()
    from fusar_edge.export.run import export_model
    from fusar_edge.manifest import read_manifest

    folder = export_model(recipe, checkpoint, out, anchors=anchors, force=force, progress=_say)
    _result({"out": str(folder), **read_manifest(folder).figures})


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
    _need_workshop()
    from fusar_edge.calib.run import calibrate as run

    with _bar("calibrating") as step:
        manifest = run(recipe, onnx, data, out, force=force, progress=step)
    _result({"out": str(out), **manifest.figures["int8_vs_fp32"]})


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
    force: Force = False,
) -> None:
    """Graphs -> bundle for one device, every file sealed by its hash."""
    _need_workshop()
    from fusar_edge.engines.build import build as run

    with _bar("measuring") as step:
        manifest = run(spec, onnx, out, data=data, reference=reference, images=images, force=force, progress=step)
    _result({"out": str(out), "precision": manifest.settings["precision"], "files": len(manifest.files)})


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
    _need_workshop()
    from fusar_edge.export.baking.bake import bake_table

    with _bar("baking") as step:
        manifest = bake_table(
            table, checkpoint, out, rank=rank, max_error=max_error, like=like, force=force, progress=step
        )
    _result({"table": str(out), **manifest.figures["baked"], "credit": manifest.settings["credit"]})


# Shared -------------------------------------------------------------------------------------------------------------


def _need_workshop() -> None:
    missing = [p for p in ("torch", "transformers", "peft", "accelerate", "onnx", "optimum") if find_spec(p) is None]
    if missing:
        raise MissingExtraError(
            f"this verb needs {', '.join(missing)}, which is not installed: pip install 'fusar-edge[workshop]'"
        )


def _say(text: str) -> None:
    """A line for a person, on stderr."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def _result(value: dict[str, Any]) -> None:
    """The last line on stdout, for a program."""
    print(json.dumps(value, default=str))


@contextmanager
def _bar(what: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, called with (done, total[, text])."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def step(done: int, total: int, text: str = "") -> None:
            label = f"{what} {text.splitlines()[0][:48]}" if text.strip() else what
            progress.update(task, completed=done, total=total, description=label.replace("[", r"\["))

        yield step


def _show_metrics(metrics: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{metrics['model']} {metrics['precision']} on {metrics['data']}, {metrics['images']} images"
    table = Table("task", "questions", "parsed", "metric", "value", "95 %", "best constant", title=title)
    for task, figures in metrics["tasks"].items():
        constant = figures.get("best_constant", {}).get("accuracy", "")
        for name, figure in figures.items():
            if isinstance(figure, dict) and "value" in figure:
                low, high = figure["interval_95"]
                first = name in ("accuracy", "acc_100")
                row = (task, str(figures["questions"]), f"{figures['parsed']:.3f}", name, f"{figure['value']:.3f}")
                table.add_row(*row, f"{low:.3f} .. {high:.3f}", str(constant) if first else "")
    Console(stderr=True).print(table)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """FUSAR-GPT on the edge: train, export, INT8, bundle, interpret SAR scenes."""


def main() -> None:
    """Entry point: exit 0, 1 for a check that failed, 2 for input that cannot be used; no traceback for either."""
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # zarr's other writes, when one has met a full disk
    try:
        app()
    except EdgeError as error:
        print(f"fusar-edge: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("fusar-edge: interrupted; nothing was left half-written", file=sys.stderr)
        raise SystemExit(130) from None
