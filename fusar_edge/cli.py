"""`fusar-edge`: one verb a stage. The verbs are in fusar_edge.commands; here is the entry point."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from fusar_edge import __version__
from fusar_edge.commands import adapters, bench, data, device, downlink, engines, service, workshop
from fusar_edge.commands.app import app
from fusar_edge.errors import EdgeError

__all__ = ["adapters", "app", "bench", "data", "device", "downlink", "engines", "main", "service", "workshop"]


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
