"""Verbs of the downlink: a packet on board, the packet read on the ground, its receipt back on board."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, result, say
from fusar_edge.errors import InputError

if TYPE_CHECKING:
    from fusar_edge.service.journal import Journal

DataDir = Annotated[Path, typer.Argument(metavar="DATA_DIR", help="Folder of the service; it may be running.")]


@app.command(epilog="Example: fusar-edge downlink fusar-edge-data --budget 64KiB --out packet.bin")
def downlink(
    out: Annotated[Path, typer.Option(help="Packet to write.")],
    data_dir: DataDir = Path("fusar-edge-data"),
    budget: Annotated[str, typer.Option(help="Bytes at most, such as 340, 64KiB or 1MB.")] = "64KiB",
    resend_after: Annotated[float, typer.Option(min=0, help="Hours until a record without receipt goes again.")] = 6.0,
    force: Force = False,
) -> None:
    """Write the most valuable records that fit into a budget of bytes; what was acknowledged never goes again."""
    from fusar_edge.manifest import check_output, output_file
    from fusar_edge.service.onboard.downlink import bytes_from_text, make_packet, withdraw

    check_output(out, force)
    size = bytes_from_text(budget)
    with _journal(data_dir) as journal:
        made = make_packet(journal, size, resend_after_s=resend_after * 3600)
        if made.sequence is not None:
            try:
                with output_file(out, force=force) as work:
                    work.write_bytes(made.data)
            except BaseException as problem:
                withdraw(journal, made.sequence)
                if isinstance(problem, OSError):
                    raise InputError(f"{out}: cannot be written ({problem.strerror}); its records wait again") from None
                raise
    if made.sequence is None:
        say("nothing waits for the downlink: no packet was written")
    written = str(out) if made.sequence is not None else None
    result(
        {
            "out": written,
            "sequence": made.sequence,
            "bytes": len(made.data),
            "budget": size,
            "records": made.records,
            "left": made.left,
        }
    )


@app.command("downlink-read", epilog="Example: fusar-edge downlink-read packet.bin --out r.geojson")
def read(
    packet: Annotated[Path, typer.Argument(metavar="PACKET", help="What `downlink` wrote.")],
    out: Annotated[Path, typer.Option(help="GeoJSON to write.")],
    force: Force = False,
) -> None:
    """Read a packet on the ground into GeoJSON, and say the receipt that goes back."""
    from fusar_edge.manifest import check_output, output_file
    from fusar_edge.runtime.geojson import collection_bytes
    from fusar_edge.service.onboard.ground import read_packet

    check_output(out, force)
    try:
        data = packet.read_bytes()
    except OSError as problem:
        raise InputError(f"{packet}: cannot be read ({problem.strerror}); give what `downlink` wrote") from None
    try:
        collection = read_packet(data)
    except InputError as problem:
        raise InputError(f"{packet}: {problem}") from None
    with output_file(out, force=force) as work:
        work.write_bytes(collection_bytes(collection))
    result({"out": str(out), "simulated": collection["simulated"], **collection["downlink"]})


@app.command("downlink-ack", epilog="Example: fusar-edge downlink-ack fusar-edge-data 12-9f3ab2c4 13-00c81a77")
def ack(
    data_dir: DataDir,
    receipts: Annotated[list[str], typer.Argument(metavar="RECEIPT...", help="What `downlink-read` said.")],
) -> None:
    """Take receipts from the ground: the records of these packets never go again."""
    from fusar_edge.service.onboard.downlink import acknowledge

    with _journal(data_dir) as journal:
        taken = acknowledge(journal, receipts)
    result({"packets": taken.packets, "records": taken.records})


@contextmanager
def _journal(data_dir: Path) -> Iterator[Journal]:
    """The journal of a data folder, beside a service that may be running."""
    from fusar_edge.service.journal import Journal

    path = data_dir / "journal.sqlite"
    if not path.is_file():
        raise InputError(f"{data_dir} has no {path.name}: give the --data-dir of `fusar-edge serve`")
    journal = Journal.open(path, ())
    try:
        yield journal
    finally:
        journal.close()
