"""Verbs of the device side: demo, interpret, verify, eval, doctor."""

from __future__ import annotations

import sys
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fusar_edge import __version__
from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, Out, RecipeOption, Sigma, Threads, bar, result, say

Values = Literal["auto", "uint8", "db", "power", "amplitude"]


class Task(Enum):  # typer takes no list of literals
    caption = "caption"
    count = "count"
    grid = "grid"
    classify = "classify"
    detect = "detect"


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

    with bar("interpreting") as step:
        summary = run(out, force=force, bundle=bundle, seed=seed, threads=threads, show=say, progress=step)
    result(summary)


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

    with bar("interpreting") as step:
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
        say(f"no anchor was found in {anchors}: the answers are plain Qwen2.5-VL's. Nodes by reason: {found}")
    result(summary)


@app.command(epilog="Example: fusar-edge verify default")
def verify(bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or `default`.")]) -> None:
    """Check every file of a bundle against its hash, open both graphs, and say whether INT8 passed the gate."""
    from fusar_edge.runtime.bundle import open_bundle
    from fusar_edge.runtime.session import Session

    opened = open_bundle(bundle)
    Session(opened, threads=1)
    gate = opened.manifest.figures.get("gate", {})
    if opened.settings.precision != "fp32":
        passed = "not asked"
        if gate:
            passed = f"passed on {gate['images']} images" if gate["holds"] else f"waived: {gate['waiver']}"
        say(f"gate on INT8 against FP32 (docs/int8.md): {passed}", markup=False)
        for failed in gate.get("failed", ()):
            say(f"  failed: {failed}", markup=False)
    facts = {"gate_holds": gate.get("holds"), "waiver": gate.get("waiver")} if gate else {}
    adapters = opened.settings.adapters
    if adapters is not None:
        facts["adapter"] = adapters.active
        if adapters.active != adapters.exported:
            say(f"gate and figures are of the adapter {adapters.exported}; {adapters.active}, in use, was not measured")
            facts |= {"gate_holds": None, "gate_of": adapters.exported} if gate else {}
    files = len(opened.manifest.files)
    result({"bundle": str(opened.folder), "ok": True, "sha256": opened.sha256, "files": files, **facts})


@app.command(epilog="Example: fusar-edge eval default --data ssdd/val.jsonl --json metrics.json")
def eval(
    target: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="Bundle, `default`, or checkpoint.")],
    data: Annotated[Path, typer.Option(help="Triplet manifest.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="File to write the metrics to.")] = None,
    answers: Annotated[Path | None, typer.Option(help="JSONL to write every question and answer to.")] = None,
    task: Annotated[list[Task] | None, typer.Option(help="Only these tasks; repeat. Default: all.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    grammar: Annotated[bool, typer.Option(help="Answers keep to the grammar of their task.")] = True,
    recipe: RecipeOption = None,
    sigma: Sigma = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Task metrics on a manifest; the same command for a checkpoint and for a bundle of any precision.

    A checkpoint is a folder that `train` wrote; with --recipe also one of the official form, hub:OWNER/REPO/FOLDER, or
    `base`, the recipe's.
    """
    from fusar_edge.eval.run import evaluate

    if recipe is not None and target != "default":
        from fusar_edge.commands.workshop import need_workshop

        need_workshop()
    with bar("asking") as step:
        metrics = evaluate(
            target,
            data,
            tasks=[t.value for t in task or []],
            images=images,
            out=json_out,
            answers=answers,
            threads=threads,
            grammar=grammar,
            recipe=recipe,
            sigma=sigma,
            force=force,
            progress=step,
        )
    show_metrics(metrics)
    result(metrics)


@app.command()
def doctor() -> None:
    """What is installed here, and which parts of fusar-edge can run."""
    from fusar_edge.manifest import package_versions
    from fusar_edge.runtime.bundle import DEFAULT
    from fusar_edge.runtime.trt_api import driver_problem

    extras = {
        "workshop (train, export, calibrate, build)": (
            "torch",
            "transformers",
            "peft",
            "accelerate",
            "onnx",
            "optimum",
        ),
        "tables (index and cluster of `anchors build`)": ("pyarrow", "distributed"),
        "jetson (GPU memory)": ("pycuda",),
        "TensorRT": ("tensorrt",),
        "compile gate": ("tensorrt_rtx_bindings",),
    }
    say(f"fusar-edge {__version__}, Python {sys.version.split()[0]}")
    found = {name: [p for p in packages if find_spec(p) is None] for name, packages in extras.items()}
    for name, missing in found.items():
        say(f"{name}: {'ready' if not missing else 'missing ' + ', '.join(missing)}")
    problem = driver_problem()
    say(f"GPU: {problem or 'a driver answers'}")
    say(f"default bundle: {'present' if DEFAULT.is_dir() else 'absent'}")
    result(
        {
            "version": __version__,
            "missing": found,
            "gpu": problem is None,
            "default_bundle": DEFAULT.is_dir(),
            "packages": package_versions("numpy", "onnxruntime", "rasterio", "zarr", "torch", "transformers", "onnx"),
        }
    )


def show_metrics(metrics: dict[str, Any]) -> None:
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
