"""Verbs that make an engine for a device: build, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, Out, bar, result, say
from fusar_edge.errors import InputError

Precision = Literal["int8", "int8-fp16", "fp16", "fp32"]
TrainedStage = Literal["1", "2"]
CALIB = "w8a8-percentile"


@app.command(epilog="Example: fusar-edge build cpu --onnx int8 --reference onnx --data ssdd/val.jsonl --out bundle")
def build(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Device on the shelf engines/, or a .toml file.")],
    onnx: Annotated[Path, typer.Option(help="Folder that `calibrate` (INT8) or `export` (FP32) wrote.")],
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="Manifest that nothing was trained or calibrated on: the gate's questions.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="FP32 folder that INT8 was made from, or what `eval CHECKPOINT --answers` wrote elsewhere."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images of --data.")] = None,
    waive: Annotated[
        str | None, typer.Option(metavar="REASON", help="Build what does not pass the gate; the reason is recorded.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Folder of TensorRT's timings. Default: the user's cache folder.")
    ] = None,
    force: Force = False,
) -> None:
    """Graphs -> bundle for one device, every file sealed by its hash. A TensorRT spec is built on its own device.

    INT8 has to keep what FP32 can do on --data (the recipe's [gate]); where it does not, there is no bundle.
    """
    from fusar_edge.calib.gate_table import gate_table
    from fusar_edge.engines.build import build as run

    with bar("building") as step:
        manifest = run(
            spec,
            onnx,
            out,
            data=data,
            reference=reference,
            images=images,
            waive=waive,
            timing_cache=timing_cache,
            force=force,
            progress=step,
        )
    gate = manifest.figures.get("gate")
    if gate:
        from rich.console import Console

        Console(stderr=True, highlight=False).print(gate_table(gate))
    held = None if gate is None else gate["holds"]
    facts = {"precision": manifest.settings["precision"], "files": len(manifest.files), "gate_holds": held}
    result({"out": str(out), **facts, "waiver": gate and gate["waiver"]})


@app.command(epilog="Example: fusar-edge plan jetson-orin-nx-16gb --model fusar-gpt-7b --precision int8-fp16 --baked")
def plan(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Device on the shelf engines/, or a .toml file.")],
    model: Annotated[str, typer.Option(help="Model on the shelf export/, or a .toml file.")],
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the graphs. int8: as `calibrate` writes them, the rest float32. Default: the spec's."),
    ] = None,
    calib: Annotated[str, typer.Option(help="Recipe whose [keep] names the layers outside INT8.")] = CALIB,
    baked: Annotated[bool, typer.Option("--baked", help="Anchors from a baked table: no TLM MLP.")] = False,
    train: Annotated[
        TrainedStage | None,
        typer.Option(metavar="STAGE", help="Memory of training stage 1 or 2 instead, by strategy."),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=2, help="GPUs that --train is shared by. Default: 4.")] = None,
) -> None:
    """Memory that a model takes on a device, and a roofline estimate of its speed. Exit 2 where it does not fit.

    With --train: what a stage of training takes on each GPU, in one process, with DDP, FSDP and DeepSpeed ZeRO-2.
    """
    from rich.console import Console

    if train is not None:
        given = {"--precision": precision is not None, "--calib": calib != CALIB, "--baked": baked}
        stray = ", ".join(name for name, there in given.items() if there)
        if stray:
            raise InputError(f"plan --train does not take {stray}: leave it out")
        plan_training_command(spec, model, int(train), processes or 4)
        return
    if processes is not None:
        raise InputError("plan takes --processes with --train alone: leave it out")

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


def plan_training_command(spec: str, model: str, stage: int, processes: int) -> None:
    from rich.console import Console

    from fusar_edge.engines.training_memory import plan_training, require_training_fit
    from fusar_edge.engines.training_table import training_record, training_table

    planned = plan_training(spec, model, stage, processes)
    Console(stderr=True, highlight=False).print(training_table(planned))
    require_training_fit(planned)
    result(training_record(planned))
