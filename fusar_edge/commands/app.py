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
app.add_typer(anchors_app, name="anchors")
