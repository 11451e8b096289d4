"""The root of the command line, and its groups."""

from __future__ import annotations

import typer

from fusar_edge.anchors.cli import app as anchors_app

app = typer.Typer(
    help="FUSAR-GPT on the edge: train, export, INT8, bundle, interpret SAR scenes.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Real data sets -> triplet manifests.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data")
bundle_app = typer.Typer(help="What is in a bundle.", no_args_is_help=True, rich_markup_mode="markdown")
adapters_app = typer.Typer(
    help="Task adapters: stage-2 LoRAs beside the weights, one small file each (docs/adapters.md).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
bundle_app.add_typer(adapters_app, name="adapters")
app.add_typer(bundle_app, name="bundle")
app.add_typer(anchors_app, name="anchors")
