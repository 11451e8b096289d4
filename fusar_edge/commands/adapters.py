"""Task adapters of a bundle: bundle adapters list, add, use, remove. All but `add` run on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusar_edge.commands.app import adapters_app
from fusar_edge.commands.console import Sigma, bar, result, say

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the adapter: small letters, digits, '.', '_', '-'.")]


@adapters_app.command("list", epilog="Example: fusar-edge bundle adapters list bundle")
def list_command(bundle: Bundle) -> None:
    """Adapters of a bundle, which one answers, and where each came from."""
    from fusar_edge.runtime.adapters import listed
    from fusar_edge.runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    found = listed(opened)
    for row in found:
        say(
            f"{'*' if row['active'] else ' '} {row['name']}: {row['stage']}, rank {row['rank']} of "
            f"{row['branch_rank']}, on {', '.join(row['targets'])}, {row['bytes']} bytes"
            f"{', measured when the bundle was built' if row['measured'] else ''}",
            markup=False,
        )
    if not found:
        say("this bundle's LoRA is merged into its weights: it has no place for an adapter")
    active = opened.settings.adapters
    result({"bundle": str(opened.folder), "active": active and active.active, "adapters": found})


@adapters_app.command("add", epilog="Example: fusar-edge bundle adapters add bundle ships --checkpoint stage2-ships")
def add_command(
    bundle: Bundle,
    name: Name,
    checkpoint: Annotated[
        str, typer.Option(help="Folder of the official form, or hub:OWNER/REPO/FOLDER; on the bundle's base.")
    ],
    base: Annotated[
        Path | None, typer.Option(help="Folder of the bundle's base on this machine. Default: where its recipe says.")
    ] = None,
    sigma: Sigma = None,
) -> None:
    """Put the LoRA of a checkpoint beside the others (workshop: its base is needed). It answers after `use`."""
    from fusar_edge.commands.workshop import need_workshop

    need_workshop()
    from fusar_edge.export.adding import add_adapter

    with bar("hashing") as step:
        record = add_adapter(bundle, name, checkpoint, base=base, sigma=sigma, progress=step)
    say("it was neither calibrated nor measured with: fusar-edge bundle adapters use, then fusar-edge eval")
    facts = {"rank": record.rank, "branch_rank": record.branch_rank, "targets": list(record.targets)}
    result({"bundle": bundle, "added": name, **facts, "bytes": record.bytes})


@adapters_app.command("use", epilog="Example: fusar-edge bundle adapters use bundle ships")
def use_command(bundle: Bundle, name: Name) -> None:
    """Have an adapter answer from now on, in one step that a kill does not halve. Restart what has the bundle open."""
    from fusar_edge.runtime.adapters import use_adapter

    opened = use_adapter(bundle, name)
    facts = opened.settings.adapters
    assert facts is not None
    if facts.active != facts.exported:
        say(f"the bundle's figures were measured with the adapter {facts.exported}, not with {name}: fusar-edge eval")
    result({"bundle": str(opened.folder), "active": name, "sha256": opened.sha256})


@adapters_app.command("remove", epilog="Example: fusar-edge bundle adapters remove bundle ships")
def remove_command(bundle: Bundle, name: Name) -> None:
    """Take an adapter out: not the one in use, nor the one that the bundle was built with."""
    from fusar_edge.runtime.adapters import remove_adapter

    opened = remove_adapter(bundle, name)
    result({"bundle": str(opened.folder), "removed": name, "sha256": opened.sha256})
