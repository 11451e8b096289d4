"""Verbs that make data: simulate, data convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fusar_edge.commands.app import app, data_app
from fusar_edge.commands.console import Force, Out, bar, result

DataSet = Literal["ssdd", "mstar"]


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

    with bar("simulating") as step:
        manifest = write_dataset(out, scenes, seed, size=size, force=force, progress=step)
    result({"out": str(out), "simulated": True, **manifest.figures})


@data_app.command(epilog="Example: fusar-edge data convert ssdd SSDD/ --out ssdd")
def convert(
    kind: Annotated[DataSet, typer.Argument(help="Which data set SRC is.")],
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the data set as published.")],
    out: Out,
    force: Force = False,
) -> None:
    """Convert a published data set to triplet manifests, with a training and a validation split."""
    from fusar_edge.data.converters import convert as run

    with bar("converting") as step:
        manifest = run(kind, src, out, force=force, progress=step)
    result({"out": str(out), **manifest.figures})
